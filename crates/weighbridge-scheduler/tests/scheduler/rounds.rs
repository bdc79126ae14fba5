//! Who joins, and how places come back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use weighbridge_scheduler::{Limits, Place, Turn};

use crate::{SOON, World, payloads};

/// SGLang #23141: a base request was counted as an adapter, and an assertion ended the server.
#[test]
fn base_requests_need_no_adapter_place() {
    let world = World::new(2);
    let scheduler = world.scheduler(Limits::default().running(5).adapters(1));
    let [a, b] = [world.adapters[0], world.adapters[1]];
    for (adapter, payload) in [(None, 0), (Some(a), 1), (None, 2), (Some(b), 3), (None, 4)] {
        scheduler.admit(world.base, adapter, "r", payload).unwrap();
    }
    let round = scheduler.schedule();
    assert_eq!(payloads(&round.joined), [0, 2, 4, 1]);
    let adapters: Vec<_> = round
        .joined
        .iter()
        .map(|turn| turn.place.adapter().map(|it| it.0))
        .collect();
    assert_eq!(adapters, [None, None, None, Some(a)]);
    let stats = scheduler.stats();
    assert_eq!((stats.running, stats.adapters, stats.swaps), (4, 1, 1));
}

/// SGLang #15129: an adapter was never scheduled as long as requests for another one kept coming.
#[test]
fn an_adapter_runs_although_requests_for_another_keep_coming() {
    let world = World::new(2);
    let (patience, lasts) = (5, 3);
    let limits = Limits::default().running(4).adapters(1).patience(patience);
    let scheduler = world.scheduler(limits);
    let [a, b] = [world.adapters[0], world.adapters[1]];
    let mut running: Vec<(u64, Turn<&str>)> = Vec::new();
    let overdue_at = 2 + patience;
    for number in 1..=overdue_at + lasts {
        running.retain(|(until, _)| *until > number);
        // There is always somebody for A who waits, and a place in the batch for him.
        scheduler.admit(world.base, Some(a), "r", "a").unwrap();
        if number == 2 {
            scheduler.admit(world.base, Some(b), "r", "b").unwrap();
        }
        let round = scheduler.schedule();
        assert_eq!(round.number, number);
        let joined = payloads(&round.joined);
        if number < overdue_at {
            assert_eq!(joined, ["a"], "it needs no swap");
        } else if let Some(first) = joined.first() {
            assert_eq!(*first, "b");
            return;
        }
        running.extend(round.joined.into_iter().map(|turn| (number + lasts, turn)));
    }
    panic!("B waits longer than the bound: {scheduler:?}");
}

/// Two generations of one adapter are two adapters, and each request has the one that it was admitted with.
#[test]
fn a_replace_while_they_wait_makes_two_adapters() {
    for (places, joined) in [(1, vec![1, 2]), (2, vec![1, 2, 3])] {
        let world = World::new(1);
        let scheduler = world.scheduler(Limits::default().adapters(places));
        let adapter = world.adapters[0];
        let admit = |payload| {
            scheduler
                .admit(world.base, Some(adapter), "r", payload)
                .unwrap()
        };
        admit(1);
        admit(2);
        world.replace(0, 200);
        admit(3);
        let round = scheduler.schedule();
        assert_eq!(payloads(&round.joined), joined);
        for turn in &round.joined {
            let set = turn.lease.set(adapter).unwrap();
            let expected = if turn.payload == 3 { 200 } else { 0 };
            assert_eq!(turn.place.adapter(), Some((adapter, set.generation())));
            let mut weights = set.iter();
            assert!(weights.all(|weight| weight.unwrap().bytes() == [expected; 8]));
        }
        let stats = scheduler.stats();
        assert_eq!((stats.adapters, stats.swaps), (places, places as u64));
        drop(round);
        assert_eq!(scheduler.schedule().joined.len(), 3 - joined.len());
    }
}

#[test]
fn a_place_comes_back_once_on_every_path() {
    let world = World::new(1);
    let scheduler = world.scheduler(Limits::default().running(1));
    let next = || {
        scheduler
            .admit(world.base, Some(world.adapters[0]), "r", ())
            .unwrap();
        let mut round = scheduler.schedule();
        assert_eq!((round.joined.len(), scheduler.running()), (1, 1));
        round.joined.pop().unwrap()
    };
    // With the round that nobody looked at.
    scheduler.admit(world.base, None, "r", ()).unwrap();
    drop(scheduler.schedule());
    assert_eq!(scheduler.running(), 0);
    // Whole, and in parts.
    drop(next());
    assert_eq!(scheduler.running(), 0);
    let turn = next();
    drop(turn.lease);
    assert_eq!(scheduler.running(), 1, "the place is by itself");
    drop(turn.place);
    assert_eq!(scheduler.running(), 0);
    // With a panic.
    let turn = next();
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _running = turn;
        panic!("on purpose")
    }));
    assert!(caught.is_err());
    assert_eq!(scheduler.running(), 0);
    // On another thread, after the scheduler.
    let place: Place = next().place;
    drop(scheduler);
    std::thread::spawn(move || drop(place)).join().unwrap();
    world.end();
}

#[test]
fn the_engine_sleeps_until_there_is_news() {
    let world = World::new(1);
    let scheduler = world.scheduler(Limits::default());
    let nothing = Duration::ZERO;
    drop(scheduler.schedule());
    assert!(!scheduler.wait(nothing));

    let ticket = scheduler.admit(world.base, None, "r", ()).unwrap();
    assert!(scheduler.wait(nothing), "somebody was admitted");
    assert!(scheduler.wait(nothing), "no round was done since");
    let round = scheduler.schedule();
    assert!(!scheduler.wait(nothing));
    drop(round);
    assert!(scheduler.wait(nothing), "a place came back");
    assert!(scheduler.schedule().is_empty() && !scheduler.wait(nothing));
    assert_eq!(scheduler.cancel(ticket), None);
    assert!(!scheduler.wait(nothing), "nobody was cancelled");
    scheduler.wake();
    assert!(scheduler.wait(nothing));
    drop(scheduler.schedule());

    // Asleep, and woken by another thread.
    std::thread::scope(|threads| {
        let engine = threads.spawn(|| scheduler.wait(SOON));
        scheduler.admit(world.base, None, "r", ()).unwrap();
        assert!(engine.join().unwrap());
    });
}
