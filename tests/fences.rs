//! Fences: bytes stay until the device is done, whoever else has let go, and whoever waits for them
//! is told.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use support::device::{Device, published, until};
use support::{SOON, bytes, registry};
use weighbridge::Error;
use weighbridge::fence::{self, Steps};

#[test]
fn bytes_stay_until_the_fence_has_passed_though_the_lease_is_gone() {
    let registry = registry();
    let (set, w) = published(&registry, "a", 7);
    let device = Device::queue(registry.acquire(set).unwrap(), w, "stream 0");
    let going = registry.retire(set).unwrap();
    assert_eq!((going.leases(), going.is_drained()), (1, false));
    // Other sets come and go meanwhile.
    for round in 0..10 {
        let other = registry.publish("other", bytes(64, round)).unwrap();
        registry.retire(other).unwrap().reclaimed(SOON).unwrap();
    }
    assert!(!going.is_reclaimed());
    assert!(registry.ledger().retired >= 1 << 16);
    assert_eq!(device.finish(), vec![7; 1 << 16]);
    going.drained(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
    let ledger = registry.ledger();
    assert_eq!((ledger.retired, ledger.resident), (0, 0));
    until("the fence is still counted", || {
        registry.stats().pending_fences == 0
    });
    assert_eq!(registry.stats().oldest_fence, None);
}

#[test]
fn a_drain_names_the_fences_in_the_way() {
    let registry = registry();
    let (set, w) = published(&registry, "a", 7);
    let named = Device::queue(
        registry.acquire_as("request-42", set).unwrap(),
        w,
        "stream\n7",
    );
    let unnamed = Arc::new(AtomicBool::new(false));
    let passed = Arc::clone(&unnamed);
    registry
        .acquire(set)
        .unwrap()
        .release_after(move || passed.load(Ordering::Acquire));
    let held = registry.acquire_as("request-43", set).unwrap();
    let going = registry.retire(set).unwrap();
    let Err(Error::NotDrained(holdup)) = going.drained(Duration::ZERO) else {
        panic!("three leases are in the way")
    };
    assert_eq!(holdup.leases, 3);
    let labels: Vec<_> = holdup.holders.iter().map(|holder| &*holder.label).collect();
    assert_eq!(
        labels,
        ["request-43"],
        "a lease that was given away is its fence's"
    );
    let mut names: Vec<_> = holdup.fences.iter().map(|fence| &*fence.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["stream\n7 (request-42)", "unnamed fence"]);
    let text = holdup.to_string();
    for part in [
        "3 lease(s)",
        "\"request-43\" for",
        r#"fence "stream\n7 (request-42)" not passed for"#,
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert!(!text.contains('\n') && !text.contains("more"), "{text}");
    let fences = registry.fences();
    assert_eq!(fences.len(), 2);
    // Asked later: it cannot be younger.
    let stats = registry.stats();
    assert_eq!(stats.pending_fences, 2);
    assert!(stats.oldest_fence >= fences.last().map(|fence| fence.age));
    assert!(
        registry
            .fences()
            .iter()
            .all(|fence| fence.generation == going.generation())
    );
    named.finish();
    unnamed.store(true, Ordering::Release);
    until("a fence that passed is still named", || {
        going.fences().is_empty()
    });
    assert_eq!(going.leases(), 1);
    drop(held);
    going.reclaimed(SOON).unwrap();
}

#[test]
fn a_message_names_a_few_of_many_fences() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 7);
    let steps = Steps::new("stream");
    for step in 1..=20 {
        registry
            .acquire(set)
            .unwrap()
            .release_after(steps.after(step));
    }
    let going = registry.retire(set).unwrap();
    assert_eq!(going.fences().len(), 20);
    let text = going.drained(Duration::ZERO).unwrap_err().to_string();
    assert_eq!(text.matches("fence ").count(), 5, "{text}");
    assert!(text.ends_with("and 15 more"), "{text}");
    steps.complete(19);
    until("19 steps are completed", || going.leases() == 1);
    assert_eq!(going.fences()[0].name, "stream after step 20");
    steps.complete(7); // An old number changes nothing.
    steps.complete(20);
    going.reclaimed(SOON).unwrap();
}

#[test]
fn a_fence_outlives_the_registry_and_frees_what_it_held() {
    let registry = registry();
    let (retired, w) = published(&registry, "retired", 1);
    let first = Device::queue(registry.acquire(retired).unwrap(), w, "retired");
    let late = registry.acquire(retired).unwrap();
    let going = registry.retire(retired).unwrap();
    let (current, other) = published(&registry, "current", 2);
    let second = Device::queue(registry.acquire(current).unwrap(), other, "current");
    drop(registry); // Does not wait for fences.
    assert_eq!(going.fences()[0].name, "retired");
    assert_eq!(first.finish(), vec![1; 1 << 16]);
    until("the fence has passed", || going.leases() == 1);
    assert_eq!(second.finish(), vec![2; 1 << 16]);
    // A lease that is given away when the registry is long gone.
    let third = Device::queue(late, w, "late");
    assert_eq!(going.fences()[0].name, "late");
    assert_eq!(third.finish(), vec![1; 1 << 16]);
    going.drained(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
}

/// Nothing else keeps what a fence kept: not the lease's metadata, not the ledger, not the keeper.
#[test]
fn after_the_last_fence_nothing_of_the_registry_is_left() {
    struct Canary(Arc<AtomicUsize>);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let (opens, gate) = mpsc::channel::<()>();
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let canary = Canary(Arc::clone(&dropped));
    registry.acquire(set).unwrap().release_after(move || {
        let _ = &canary;
        gate.try_recv() == Err(mpsc::TryRecvError::Disconnected)
    });
    let going = registry.retire(set).unwrap();
    drop(registry);
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    drop(opens);
    going.reclaimed(SOON).unwrap();
    until("the fence was not dropped", || {
        dropped.load(Ordering::Relaxed) == 1
    });
}

#[test]
fn a_thousand_fences_from_many_threads_pass_in_any_order() {
    const THREADS: usize = 8;
    const EACH: usize = 125;
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let barrier = Barrier::new(THREADS);
    let signals: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (registry, barrier) = (&registry, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let queue = |index| {
                        let (done, fence) = fence::signal(format!("{thread}-{index}"));
                        registry.acquire(set).unwrap().release_after(fence);
                        done
                    };
                    (0..EACH).map(queue).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let going = registry.retire(set).unwrap();
    assert_eq!(going.leases(), (THREADS * EACH) as u64);
    assert_eq!(registry.stats().pending_fences, (THREADS * EACH) as u64);
    assert_eq!(going.fences().len(), THREADS * EACH);
    // Every seventh first, from two threads.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let signals = &signals;
            scope.spawn(move || {
                for start in 0..7 {
                    for signal in signals.iter().skip(start).step_by(7).skip(half).step_by(2) {
                        assert!(!signals.is_empty());
                        signal.set();
                    }
                }
            });
        }
    });
    going.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().retired, 0);
    until("all are gone", || registry.stats().pending_fences == 0);
}

#[test]
fn a_fence_that_has_passed_already_is_in_nobodys_way() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let (done, fence) = fence::signal("early");
    done.set();
    done.set();
    registry.acquire(set).unwrap().release_after(fence);
    registry.acquire(set).unwrap().release_after(|| true);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
}

#[test]
fn a_lease_of_several_sets_holds_all_of_them_until_its_fence_has_passed() {
    let registry = registry();
    let (a, w) = published(&registry, "a", 1);
    let (b, _) = published(&registry, "b", 2);
    let device = Device::queue(registry.acquire([a, b]).unwrap(), w, "both");
    let (a, b) = (registry.retire(a).unwrap(), registry.retire(b).unwrap());
    assert_eq!((a.fences().len(), b.fences().len()), (1, 1));
    assert_eq!(
        (registry.fences().len(), registry.stats().pending_fences),
        (2, 1)
    );
    device.finish();
    a.reclaimed(SOON).unwrap();
    b.reclaimed(SOON).unwrap();
}

/// However many sets a lease has, its fence is named for each, also if the lease had no label.
#[test]
fn a_fence_on_a_wide_lease_is_named_for_each_of_its_sets() {
    let registry = registry();
    let sets: Vec<_> = (0..6)
        .map(|number| {
            registry
                .publish(format!("s{number}"), bytes(1, number))
                .unwrap()
        })
        .collect();
    let (signal, queued) = fence::signal("copy");
    registry.acquire(&sets[..]).unwrap().release_after(queued);
    assert_eq!(registry.fences().len(), sets.len());
    for set in sets {
        let late = registry.retire(set).unwrap().drained(Duration::ZERO);
        assert!(late.unwrap_err().to_string().contains("copy"));
    }
    signal.set();
}
