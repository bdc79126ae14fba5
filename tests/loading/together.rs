//! One load for all who want a set, and none that is in the way of another.
//!
//! What lives here: that a set is read once for everybody, that whoever wants something else does not wait for
//! it, and what overtakes a read. What does not: reads that fail (`failures`), who is admitted (`line`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use weighbridge::Error;

use crate::support::device::until;
use crate::support::{SOON, block_on, bytes};
use crate::{ONE, away, value};

#[test]
fn many_who_want_one_cause_one_load() {
    let (registry, kitchen, sets) = away(1, 1);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    let all = 16;
    std::thread::scope(|threads| {
        for number in 0..all {
            let (registry, set) = (&registry, sets[0]);
            threads.spawn(move || {
                let lease = if number % 2 == 0 {
                    registry.acquire_or_load(set, SOON)
                } else {
                    block_on(registry.acquire_or_load_async(set))
                };
                assert_eq!(value(&lease.unwrap(), set), 0);
            });
        }
        until("one reads", || kitchen.entered.load(Ordering::SeqCst) == 1);
        kitchen.let_go(0);
    });
    assert_eq!(kitchen.reads(0), 1);
    assert_eq!(registry.ledger().peak, ONE);
    let stats = registry.stats();
    assert_eq!((stats.loads, stats.evictions, stats.waiting), (1, 0, 0));
}

#[test]
fn other_sets_do_not_wait_for_one_that_is_read() {
    let (registry, kitchen, sets) = away(3, 3);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let slow = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        drop(registry.acquire_or_load(sets[1], SOON).unwrap());
        drop(block_on(registry.acquire_or_load_async(sets[2])).unwrap());
        assert!(!slow.is_finished());
        kitchen.let_go(0);
        slow.join().unwrap().unwrap();
    });
}

/// One request wants a set whose source hangs, and another; who wants only that other one has it.
#[test]
fn a_source_that_hangs_is_in_the_way_of_its_own_set_only() {
    let (registry, kitchen, sets) = away(4, 4);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let both = threads.spawn(|| registry.acquire_or_load([sets[0], sets[1]], SOON).map(drop));
        until("both are read", || registry.stats().loads == 2);
        drop(registry.acquire_or_load(sets[1], SOON).unwrap());
        let mut task = Box::pin(registry.acquire_or_load_async([sets[0], sets[2], sets[3]]));
        let mut context = Context::from_waker(Waker::noop());
        assert!(task.as_mut().poll(&mut context).is_pending());
        drop(block_on(registry.acquire_or_load_async([sets[3], sets[2]])).unwrap());
        assert!(!both.is_finished());
        kitchen.let_go(0);
        both.join().unwrap().unwrap();
        drop(block_on(task).unwrap());
    });
}

/// The set is replaced while its old generation is read: whoever waits gets the new one.
#[test]
fn a_replace_overtakes_a_load() {
    let (registry, kitchen, sets) = away(1, 4);
    let set = sets[0];
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| {
            let lease = registry.acquire_or_load(set, SOON).unwrap();
            value(&lease, set)
        });
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        registry.replace(set, bytes(64, 9)).unwrap();
        assert_eq!(
            registry
                .acquire(set)
                .map(|lease| value(&lease, set))
                .unwrap(),
            9
        );
        kitchen.let_go(0);
        assert_eq!(waits.join().unwrap(), 9);
    });
    assert_eq!(registry.ledger().total(), ONE);
}

#[test]
fn a_retire_overtakes_a_load() {
    let (registry, kitchen, sets) = away(1, 4);
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        registry.retire(sets[0]).unwrap();
        kitchen.let_go(0);
        let refused = waits.join().unwrap().unwrap_err();
        assert!(matches!(refused, Error::StaleHandle { .. }), "{refused}");
    });
    assert_eq!(registry.ledger().total(), 0);
}

/// A read of a generation that is gone is in nobody's way.
#[test]
fn a_read_that_hangs_ends_with_its_generation() {
    let (registry, kitchen, sets) = away(2, 4);
    let set = sets[0];
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let hangs = threads.spawn(|| registry.acquire_or_load(set, SOON).map(drop));
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        registry.replace(set, kitchen.source(1)).unwrap();
        registry.evict(set).unwrap();
        assert_eq!(value(&registry.acquire_or_load(set, SOON).unwrap(), set), 1);
        kitchen.let_go(0);
        hangs.join().unwrap().unwrap();
    });
    assert_eq!(registry.ledger().total(), ONE);
}
