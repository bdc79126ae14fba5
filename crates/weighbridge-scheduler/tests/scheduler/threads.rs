//! Many threads admit while one schedules, and adapters are replaced and evicted under them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;

use weighbridge_scheduler::{Limits, Turn, Why};

use crate::{SOON, World};

const THREADS: u64 = 32;
const EACH: u64 = 60;
const ADAPTERS: u8 = 8;

/// Numbers without a pattern.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// What it brought is told to whoever admitted it, as a server would.
struct Payload {
    number: u64,
    /// `true`: it was answered.
    answer: mpsc::Sender<bool>,
}

#[test]
fn nobody_is_lost_and_no_limit_is_passed() {
    let world = World::new(ADAPTERS);
    let limits = Limits::default()
        .running(8)
        .adapters(3)
        .waiting(16)
        .patience(6)
        .ahead(2);
    let scheduler = world.scheduler::<Payload>(limits);
    let adapter = |number: u64| match mixed(number) % 10 {
        0 => None,
        other => Some(world.adapters[(other as usize * other as usize) % usize::from(ADAPTERS)]),
    };
    // So that the first of each are loaded for sure.
    for &adapter in &world.adapters {
        world.registry.evict(adapter).unwrap();
    }
    let ended = Mutex::new(BTreeSet::new());
    let clients = |client: u64| {
        for at in 0..EACH {
            let number = client * EACH + at;
            let (answer, told) = mpsc::channel();
            let mut payload = Payload { number, answer };
            let ticket = loop {
                match scheduler.admit(world.base, adapter(number), "client", payload) {
                    Ok(ticket) => break ticket,
                    Err(refused) => {
                        assert!(matches!(refused.why, Why::Full { .. }), "{refused}");
                        payload = refused.payload;
                        assert_eq!(payload.number, number);
                        thread::yield_now();
                    }
                }
            };
            // Some clients go away; whether the request was still waiting is anybody's guess.
            if mixed(number).is_multiple_of(7)
                && let Some(payload) = scheduler.cancel(ticket)
            {
                assert_eq!(payload.number, number);
                continue;
            }
            assert!(told.recv_timeout(SOON).expect("it is lost"));
            assert!(
                ended.lock().unwrap().insert(number),
                "it was answered twice"
            );
        }
    };
    let engine = || {
        let mut batch: Vec<(u64, Turn<Payload>)> = Vec::new();
        let mut total = 0;
        loop {
            let round = scheduler.schedule();
            let failed = round.failed.first().map(|failed| failed.error.to_string());
            assert_eq!(failed, None);
            for turn in round.joined {
                let number = turn.payload.number;
                // It has what it asked for, in the generation that its place is counted as.
                let sets: Vec<_> = turn
                    .lease
                    .sets()
                    .map(|set| (set.handle(), set.generation()))
                    .collect();
                assert_eq!(sets.get(1).copied(), turn.place.adapter());
                assert_eq!(turn.place.adapter().map(|(set, _)| set), adapter(number));
                batch.push((round.number + 1 + mixed(number) % 5, turn));
                total += 1;
            }
            let adapters: BTreeSet<_> = batch
                .iter()
                .filter_map(|(_, turn)| turn.place.adapter())
                .collect();
            assert!(
                batch.len() <= 8 && adapters.len() <= 3,
                "a limit was passed"
            );
            let (over, stay) = batch
                .into_iter()
                .partition(|(until, _)| *until <= round.number + 1);
            batch = stay;
            for (_, turn) in over {
                let Turn {
                    payload,
                    lease,
                    place,
                    ..
                } = turn;
                drop((lease, place));
                let _ = payload.answer.send(true);
            }
            let stats = scheduler.stats();
            let done = stats.joined + stats.failed + stats.cancelled;
            assert_eq!(stats.admitted, done + stats.waiting as u64, "{stats:?}");
            assert!(stats.waiting <= 16, "too many wait: {stats:?}");
            if done == THREADS * EACH && batch.is_empty() {
                assert_eq!((total, stats.failed), (stats.joined, 0));
                return stats;
            }
            if batch.is_empty() {
                assert!(scheduler.wait(SOON), "nobody woke the engine: {stats:?}");
            }
        }
    };
    let stats = thread::scope(|threads| {
        let engine = threads.spawn(engine);
        for client in 0..THREADS {
            threads.spawn(move || clients(client));
        }
        // The operator: until the engine is done.
        for turn in 0u64.. {
            if engine.is_finished() {
                break;
            }
            let at = (mixed(turn) % u64::from(ADAPTERS)) as usize;
            if turn.is_multiple_of(3) {
                world.replace(at, turn as u8);
            } else {
                let _ = world.registry.evict(world.adapters[at]);
            }
            thread::yield_now();
        }
        engine.join().unwrap()
    });
    assert_eq!(ended.lock().unwrap().len() as u64, stats.joined);
    assert!(
        stats.cancelled > 0 && stats.swaps > 0 && stats.loads > 0,
        "{stats:?}"
    );
    assert_eq!((scheduler.waiting(), scheduler.running()), (0, 0));
    drop(scheduler);
    world.end();
}
