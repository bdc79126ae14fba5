//! 512 readers at a time, wave after wave: what they held comes back to the byte, and so does what
//! their threads were registered with. A binary of its own: it counts every allocation.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::sync::Barrier;
use std::thread;

use counting::live;

use support::{SOON, bytes, registry};
use weighbridge::{Retirement, SetHandle, WeightRegistry};

const THREADS: usize = 512;
const STACK: usize = 128 << 10;
/// Swaps while a wave is there.
const SWAPS: u8 = 30;
/// What a registration with the epochs takes at the least: its bag of garbage alone is larger.
const REGISTRATION: usize = 1 << 10;

/// The generation's number is in every byte of both sets.
fn read(registry: &WeightRegistry, sets: [SetHandle; 2], reader: usize) {
    let check = |lease: weighbridge::Lease| {
        let bytes = |set| lease.set(set).unwrap().get("w").unwrap().bytes();
        let [a, b] = sets.map(bytes);
        assert!(a.iter().chain(b).all(|byte| *byte == a[0]), "mixed");
    };
    match reader % 4 {
        0 => check(registry.acquire(sets).unwrap()),
        1 => check(registry.acquire_as("one of many", sets).unwrap().clone()),
        2 => check(registry.reader().acquire(sets).unwrap()),
        _ => registry.scope(|scope| {
            let numbers = sets.map(|set| scope.get(set).unwrap().generation());
            assert_eq!(numbers[0], numbers[1], "a scope is as of one commit");
            if let Ok(lease) = scope.acquire(sets) {
                check(lease);
            }
        }),
    }
}

/// Gives both sets their next generation at one instant.
fn swap(registry: &WeightRegistry, sets: [SetHandle; 2], fill: u8) -> Vec<Retirement> {
    let mut both = registry.transaction();
    for set in sets {
        let staged = registry.stage(bytes(256, fill)).unwrap();
        both.replace(set, staged).unwrap();
    }
    both.commit().unwrap().previous
}

/// All readers at once, each with a lease of the first generation it sees; swaps; the end of all.
fn wave(registry: &WeightRegistry, sets: [SetHandle; 2]) {
    let all_there = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let all_there = &all_there;
            let reader = move || {
                let lease = registry.acquire(sets).unwrap();
                all_there.wait();
                (0..4).for_each(|round| read(registry, sets, number + round));
                drop(lease);
            };
            let small = thread::Builder::new().stack_size(STACK);
            small.spawn_scoped(scope, reader).unwrap();
        }
        all_there.wait();
        (1..=SWAPS).for_each(|fill| drop(swap(registry, sets, fill)));
    });
    for going in registry.retired() {
        assert_eq!(going.leases(), 0, "every thread has ended");
        going.reclaimed(SOON).unwrap();
    }
    let ledger = registry.ledger();
    assert_eq!(
        (ledger.reserved, ledger.resident, ledger.retired),
        (0, 512, 0)
    );
}

/// Swaps until no more than `bound` bytes are live, or until it has become clear that they stay.
fn settle(registry: &WeightRegistry, sets: [SetHandle; 2], bound: usize) -> usize {
    for _ in 0..1_000 {
        if live() <= bound {
            break;
        }
        for previous in swap(registry, sets, 0) {
            previous.reclaimed(SOON).unwrap();
        }
    }
    live()
}

#[test]
fn five_hundred_readers_come_and_go_and_leave_nothing() {
    let registry = registry();
    let sets = ["a", "b"].map(|name| registry.publish(name, bytes(256, 0)).unwrap());
    drop(swap(&registry, sets, 0));
    // What stays by design is there after the first wave: arc-swap keeps one node per thread of the
    // largest wave, for the next threads.
    wave(&registry, sets);
    let first = settle(&registry, sets, 0);
    for wave_number in 2..=4 {
        wave(&registry, sets);
        let bound = first + THREADS * REGISTRATION / 4;
        let left = settle(&registry, sets, bound);
        assert!(
            left <= bound,
            "wave {wave_number}: {first} bytes grew to {left}"
        );
    }
    for set in sets {
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    }
    assert_eq!((registry.ledger().total(), registry.stats().sets), (0, 0));
    assert_eq!(registry.stats().unlabelled, 0);
}
