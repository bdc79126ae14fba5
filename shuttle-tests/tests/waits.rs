//! Ends: waits for leases and bytes, revocations, fences, registries that are dropped.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use weighbridge::fence::{Steps, signal};
use weighbridge::memory::Owner;
use weighbridge::source::Foreign;
use weighbridge::{Dtype, Error, Next};
use weighbridge_shuttle_tests::{
    LONG, SOON, all, bytes, empty, explore, registry, saw, spawn, start, total, value,
};

#[test]
fn a_drain_is_never_missed() {
    let outcomes = ["waited", "drained before", "bytes back before"];
    explore("a_drain_is_never_missed", &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let holders = [lease.clone(), lease].map(|lease| spawn(move || drop(lease)));
        let gone = registry.retire(set).unwrap();
        let other = gone.clone();
        let waiter = spawn(move || other.reclaimed(LONG).unwrap());
        let first = match (gone.is_drained(), gone.is_reclaimed()) {
            (false, _) => "waited",
            (true, false) => "drained before",
            (true, true) => "bytes back before",
        };
        saw(first);
        gone.drained(LONG).unwrap();
        assert_eq!((gone.leases(), gone.is_drained()), (0, true));
        gone.reclaimed(LONG).unwrap();
        assert_eq!(total(&registry), 0);
        waiter.join().unwrap();
        all(holders);
        empty(&registry);
    });
}

#[test]
fn a_wait_that_runs_out_says_who_is_in_the_way() {
    let outcomes = ["in time", "late", "late, by then nobody"];
    explore(
        "a_wait_that_runs_out_says_who_is_in_the_way",
        &outcomes,
        || {
            let registry = registry();
            let set = registry.publish("s", bytes(1)).unwrap();
            let lease = registry.acquire_as("held", set).unwrap();
            let gone = registry.retire(set).unwrap();
            let holder = spawn(move || drop(lease));
            match gone.drained(SOON) {
                Ok(()) => saw("in time"),
                Err(Error::NotDrained(holdup)) => {
                    match (holdup.leases, holdup.holders.as_slice()) {
                        (1, [one]) if one.label == "held" => saw("late"),
                        // It ended while the answer was made.
                        (0, []) => saw("late, by then nobody"),
                        (0 | 1, _) => saw("late, half of it"),
                        other => panic!("{other:?}"),
                    }
                }
                Err(other) => panic!("{other}"),
            }
            holder.join().unwrap();
            empty(&registry);
        },
    );
}

#[test]
fn holders_see_a_revocation() {
    explore("holders_see_a_revocation", &["seen", "not yet"], || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let revoker = start(&registry, move |registry| {
            registry.revoke(set).unwrap();
        });
        if lease.is_revoked() {
            assert!(lease.is_superseded(), "revoked, but current");
            saw("seen");
        } else {
            saw("not yet");
        }
        revoker.join().unwrap();
        assert!(lease.is_revoked() && lease.clone().is_revoked());
        assert_eq!(value(&lease, set), 1, "a revocation takes nothing away");
        drop(lease);
        empty(&registry);
    });
}

/// Memory that counts how often it ends.
struct Counted(Box<[u8]>, Arc<AtomicUsize>);

impl Owner for Counted {
    fn byte_len(&self) -> u64 {
        self.0.len() as u64
    }

    fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn as_host(&self) -> Option<&[u8]> {
        Some(&self.0)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fill(0);
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn leases_outlive_the_registry() {
    let outcomes = ["the holder was first", "the registry was first"];
    explore("leases_outlive_the_registry", &outcomes, || {
        let ends = Arc::new(AtomicUsize::new(0));
        let registry = registry();
        let memory = Counted([5; 4].into(), Arc::clone(&ends));
        let source = Foreign::new(memory).unwrap();
        let source = source.tensor("w", Dtype::U8, [4], 0).unwrap();
        let set = registry.publish("s", source).unwrap();
        let other = registry.publish("t", bytes(1)).unwrap();
        let lease = registry.acquire([set, other]).unwrap();
        let mut events = registry.events();
        let (clone, held) = (lease.clone(), Arc::clone(&ends));
        let holder = spawn(move || {
            assert_eq!((value(&clone, set), value(&clone, other)), (5, 1));
            assert_eq!(held.load(Ordering::SeqCst), 0, "freed under a lease");
            drop(clone);
        });
        // Whichever thread is the last one that has the registry drops it.
        let writer = start(&registry, move |registry| {
            registry.replace(other, bytes(2)).unwrap();
        });
        drop(registry);
        assert_eq!((value(&lease, set), value(&lease, other)), (5, 1));
        let rest = spawn(move || drop(lease));
        writer.join().unwrap();
        let first = ends.load(Ordering::SeqCst) == 0;
        saw(if first {
            "the registry was first"
        } else {
            "the holder was first"
        });
        holder.join().unwrap();
        rest.join().unwrap();
        assert_eq!(ends.load(Ordering::SeqCst), 1, "not freed, or twice");
        while events.next_timeout(LONG) != Next::Closed {}
    });
}

#[test]
fn a_fence_holds_until_its_signal() {
    let outcomes = ["already passed", "waits"];
    explore("a_fence_holds_until_its_signal", &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let passed = Arc::new(AtomicUsize::new(0));
        // Two at once: one of them starts the keeper's thread.
        let signals = [0, 1].map(|_| {
            let lease = registry.acquire(set).unwrap();
            let (bell, fence) = signal("device");
            let giver = spawn(move || lease.release_after(fence));
            let passed = Arc::clone(&passed);
            let device = spawn(move || {
                passed.fetch_add(1, Ordering::SeqCst);
                bell.set();
            });
            [giver, device]
        });
        let gone = registry.retire(set).unwrap();
        let done = passed.load(Ordering::SeqCst) == 2;
        saw(if done { "already passed" } else { "waits" });
        gone.reclaimed(LONG).unwrap();
        assert_eq!(passed.load(Ordering::SeqCst), 2, "let go before its fence");
        all(signals.into_iter().flatten());
        empty(&registry);
    });
}

#[test]
fn a_fence_that_is_polled_passes() {
    explore("a_fence_that_is_polled_passes", &["kept", "passed"], || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let steps = Arc::new(Steps::new("stream"));
        let counter = Arc::clone(&steps);
        let device = spawn(move || {
            counter.complete(1);
            counter.complete(2);
        });
        let gone = registry.retire_after(set, steps.after(2)).unwrap();
        let pending = registry.stats().pending_fences;
        saw(if pending == 1 { "kept" } else { "passed" });
        gone.reclaimed(LONG).unwrap();
        device.join().unwrap();
        empty(&registry);
    });
}

#[test]
fn a_fence_outlives_the_registry() {
    explore("a_fence_outlives_the_registry", &["gone", "held"], || {
        let ends = Arc::new(AtomicUsize::new(0));
        let registry = registry();
        let memory = Counted([5; 4].into(), Arc::clone(&ends));
        let source = Foreign::new(memory).unwrap();
        let source = source.tensor("w", Dtype::U8, [4], 0).unwrap();
        let set = registry.publish("s", source).unwrap();
        let lease = registry.acquire(set).unwrap();
        let (bell, fence) = signal("device");
        let gone = registry.retire(set).unwrap();
        lease.release_after(fence);
        let watched = Arc::clone(&ends);
        let device = spawn(move || {
            assert_eq!(watched.load(Ordering::SeqCst), 0, "let go before its fence");
            bell.set();
        });
        Arc::into_inner(registry).map(drop).expect("the only one");
        let held = ends.load(Ordering::SeqCst) == 0;
        saw(if held { "held" } else { "gone" });
        gone.reclaimed(LONG).unwrap();
        assert_eq!(ends.load(Ordering::SeqCst), 1);
        device.join().unwrap();
    });
}

#[test]
fn a_fence_covers_what_is_retired() {
    let outcomes = ["the first one", "the second one"];
    explore("a_fence_covers_what_is_retired", &outcomes, || {
        let ends = Arc::new(AtomicUsize::new(0));
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let memory = Counted([5; 4].into(), Arc::clone(&ends));
        let source = Foreign::new(memory).unwrap();
        let source = source.tensor("w", Dtype::U8, [4], 0).unwrap();
        let writer = start(&registry, move |registry| {
            let staged = registry.stage(source).unwrap();
            registry.replace_staged(set, staged).is_ok()
        });
        let (bell, fence) = signal("device");
        let gone = registry.retire_after(set, fence).unwrap();
        let replaced = writer.join().unwrap();
        assert!(!gone.is_drained(), "nobody holds it");
        if replaced {
            // It was the last generation, and work on a device may still read it.
            let waited = gone.reclaimed(SOON);
            assert!(waited.is_err(), "let go before its fence");
            assert_eq!(ends.load(Ordering::SeqCst), 0, "let go before its fence");
        }
        saw(if replaced {
            "the second one"
        } else {
            "the first one"
        });
        bell.set();
        gone.reclaimed(LONG).unwrap();
        assert_eq!(ends.load(Ordering::SeqCst), 1);
        empty(&registry);
    });
}

#[test]
fn a_fence_is_put_on_what_was_expected_or_on_nothing() {
    let outcomes = ["retired", "conflict"];
    let name = "a_fence_is_put_on_what_was_expected_or_on_nothing";
    explore(name, &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let seen = registry.scope(|scope| scope.get(set).unwrap().generation());
        let writer = start(&registry, move |registry| {
            registry.replace(set, bytes(2)).map(|swap| swap.previous)
        });
        let (bell, fence) = signal("device");
        match (
            registry.retire_after_if(set, seen, fence),
            writer.join().unwrap(),
        ) {
            (Ok(gone), Err(_)) => {
                saw("retired");
                assert_eq!(gone.generation(), seen);
                assert!(gone.reclaimed(SOON).is_err(), "let go before its fence");
                bell.set();
                gone.reclaimed(LONG).unwrap();
            }
            (Err(Error::Conflict { .. }), Ok(previous)) => {
                saw("conflict");
                // Nobody waits for the fence, which never passes.
                previous.reclaimed(LONG).unwrap();
                assert_eq!(registry.stats().pending_fences, 0);
                drop(bell);
            }
            both => panic!("{both:?}"),
        }
        empty(&registry);
    });
}
