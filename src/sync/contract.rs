//! What we rely on in dashmap, arc-swap and std's `Arc`, as one body that runs against the real crates in the
//! shipping build (unit tests) and against their mocks in the checked build (`loom-tests`).
//!
//! What lives here: the contract. What does not: anything that only one side promises.

use std::sync::Arc;

use super::atomic::{AtomicU64, Ordering};
use super::map::ShardMap;
use super::share::Share;
use super::swap::Swap;
use super::thread::spawn_named;

/// One thread: what each call answers.
///
/// # Panics
/// If a side breaks the contract.
pub fn map_answers() {
    let map = ShardMap::<u32, u32>::new();
    assert_eq!(map.len(), 0);
    assert_eq!(map.insert_new(1, 10), Ok(()));
    assert_eq!(map.insert_new(1, 11), Err(10), "the first one stays");
    map.set(1, 12);
    map.set(2, 20);
    assert_eq!(map.insert_new(1, 0), Err(12));
    assert_eq!(map.insert_new(2, 0), Err(20));
    assert_eq!(map.len(), 2);
    assert!(!map.remove_if(&1, |&value| value == 10));
    assert!(!map.remove_if(&3, |_| true), "nobody is there");
    assert_eq!(map.len(), 2);
    assert!(map.remove_if(&1, |&value| value == 12));
    assert_eq!(map.len(), 1);
    assert_eq!(map.insert_new(1, 13), Ok(()));
}

/// Two threads: one insert wins, the loser is told the winner's value, and one removal wins.
///
/// # Panics
/// If a side breaks the contract.
pub fn map_races() {
    let map = Arc::new(ShardMap::<u32, u32>::new());
    let run = |map: &ShardMap<u32, u32>, mine: u32| {
        let told = map.insert_new(1, mine);
        (told, map.remove_if(&1, |&value| value == mine))
    };
    let other = Arc::clone(&map);
    let thread = spawn_named("contract", move || {
        let (told, removed) = run(&other, 2);
        assert_eq!(told.is_ok(), removed, "only the owner removes");
        assert!(told.is_ok() || told == Err(1));
    });
    let (told, removed) = run(&map, 1);
    assert_eq!(told.is_ok(), removed, "only the owner removes");
    assert!(told.is_ok() || told == Err(2));
    thread.expect("a thread").join().expect("no panic");
    assert_eq!(map.len(), 0);
}

/// One thread: a load sees the last store; a share outlives what replaces it.
///
/// # Panics
/// If a side breaks the contract.
pub fn swap_answers() {
    let swap = Swap::new(Arc::new(1));
    let old = swap.load_full();
    swap.store(Arc::new(2));
    assert_eq!((*old, swap.with(|&value| value)), (1, 2));
    swap.with(|&before| {
        swap.store(Arc::new(3));
        assert_eq!(before, 2, "what is looked at stays");
    });
    assert_eq!(*swap.load_full(), 3);
}

/// Two threads: loads never go back, and what came before a store is seen by who sees the store.
///
/// # Panics
/// If a side breaks the contract.
pub fn swap_races() {
    let shared = Arc::new((Swap::new(Arc::new(0)), AtomicU64::new(0)));
    let other = Arc::clone(&shared);
    let thread = spawn_named("contract", move || {
        for value in 1..=2 {
            // E12: Relaxed: the swap orders it.
            other.1.store(value, Ordering::Relaxed);
            other.0.store(Arc::new(value));
        }
    });
    let mut last = 0;
    for _ in 0..2 {
        let seen = shared.0.with(|&value| value);
        // E12: Relaxed: the swap orders it.
        let before = shared.1.load(Ordering::Relaxed);
        assert!(seen >= last, "a load went back");
        assert!(before >= seen, "seen without what came before it");
        last = seen;
    }
    thread.expect("a thread").join().expect("no panic");
    assert_eq!(*shared.0.load_full(), 2);
}

/// One thread: only the last share gives the value.
///
/// # Panics
/// If a side breaks the contract.
pub fn share_answers() {
    let first = Share::new(7);
    let second = first.clone();
    assert_eq!((*first, *second), (7, 7));
    let first = first.sole().expect_err("there is another one");
    assert_eq!(first.end(), None);
    assert_eq!(second.clone().end(), None);
    let last = second.sole();
    assert_eq!(last.ok(), Some(7));
}

/// Two threads: exactly one of them gets the value, after what the other one did with it.
///
/// # Panics
/// If a side breaks the contract.
pub fn share_races() {
    let ends = Arc::new(AtomicU64::new(0));
    let end = |share: Share<AtomicU64>, ends: &AtomicU64| {
        // E19: Relaxed, here and below: the share orders it.
        share.fetch_add(1, Ordering::Relaxed);
        if let Some(value) = share.end() {
            assert_eq!(value.load(Ordering::Relaxed), 2, "not after both"); // E19
            ends.fetch_add(1, Ordering::Relaxed); // E19
        }
    };
    let first = Share::new(AtomicU64::new(0));
    let (second, other) = (first.clone(), Arc::clone(&ends));
    let thread = spawn_named("contract", move || end(second, &other));
    end(first, &ends);
    thread.expect("a thread").join().expect("no panic");
    assert_eq!(ends.load(Ordering::Relaxed), 1, "one of them"); // E19
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    const ROUNDS: usize = 500;

    #[test]
    fn the_real_crates_keep_the_contract() {
        super::map_answers();
        super::swap_answers();
        super::share_answers();
        for _ in 0..ROUNDS {
            super::map_races();
            super::swap_races();
            super::share_races();
        }
    }
}
