//! Who holds what, for how long, and how it ends: leases, waits, retirements, the registry's drop.

mod support;

use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use support::{SOON, bytes, registry};
use weighbridge::Error;

#[test]
fn a_running_request_keeps_its_generation() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    let old = registry.acquire(set).unwrap();
    let replaced = registry.replace(set, bytes(4, 2)).unwrap();
    assert_eq!(old.weight(w).unwrap().bytes(), [1; 4]);
    let new = registry.acquire(set).unwrap();
    assert_eq!(new.weight(w).unwrap().bytes(), [2; 4]);
    assert_eq!(new.set(set).unwrap().generation(), replaced.generation);
    assert!(replaced.generation > old.set(set).unwrap().generation());
    assert!(!replaced.previous.is_drained());
    assert_eq!(replaced.previous.leases(), 1);
    drop(old);
    replaced.previous.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().retired, 0);
}

#[test]
fn a_wait_that_times_out_names_who_is_in_the_way() {
    let registry = registry();
    let set = registry.publish(("tenant-7", "code"), bytes(4, 1)).unwrap();
    let named = registry.acquire_as("request-42", set).unwrap();
    let unnamed = registry.acquire(set).unwrap();
    let twin = named.clone();
    let going = registry.retire(set).unwrap();
    let error = going.drained(Duration::ZERO).unwrap_err();
    assert!(error.is_timeout());
    let Error::NotDrained(holdup) = error else {
        panic!("{error}")
    };
    assert_eq!(holdup.leases, 3);
    let labels: Vec<_> = holdup
        .holders
        .iter()
        .map(|holder| holder.label.as_str())
        .collect();
    assert_eq!(labels, ["request-42", "request-42"]);
    let text = holdup.to_string();
    for part in ["tenant-7/code", "generation 1", "request-42", "1 more"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    drop((named, twin));
    assert!(going.holders().is_empty(), "a released lease was named");
    let Err(Error::NotReclaimed(holdup)) = going.reclaimed(Duration::ZERO) else {
        panic!("a lease is still there")
    };
    assert!(holdup.to_string().contains("acquire_as"), "{holdup}");
    drop(unnamed);
    going.drained(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
}

#[test]
fn a_retirement_covers_every_generation_that_is_still_held() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let first = registry.acquire_as("on generation 1", set).unwrap();
    let swap = registry.replace(set, bytes(4, 2)).unwrap();
    let second = registry.acquire_as("on generation 2", set).unwrap();
    let going = registry.retire(set).unwrap();
    assert_eq!((going.leases(), swap.previous.leases()), (2, 1));
    assert_eq!(going.bytes(), 128);
    let text = going.drained(Duration::ZERO).unwrap_err().to_string();
    assert!(
        text.contains("on generation 1") && text.contains("on generation 2"),
        "{text}"
    );
    drop(second);
    assert!(!going.is_drained());
    drop(first);
    going.reclaimed(SOON).unwrap();
    swap.previous.reclaimed(Duration::ZERO).unwrap();
}

#[test]
fn waiters_in_several_threads_all_hear_the_end() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let going = registry.retire(set).unwrap();
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (going, barrier) = (going.clone(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                going.drained(SOON).unwrap();
                going.reclaimed(SOON).unwrap();
            });
        }
        barrier.wait();
        drop(lease);
    });
    assert!(registry.retired().is_empty());
}

#[test]
fn a_panicking_request_releases_its_lease_once() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let request = || {
        let _lease = registry.acquire(set).unwrap();
        panic!("on purpose");
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(request)).is_err());
    let going = registry.retire(set).unwrap();
    assert_eq!(going.leases(), 0);
    going.drained(SOON).unwrap();
}

#[test]
fn a_forgotten_lease_is_counted_and_named() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    std::mem::forget(registry.acquire_as("lost", set).unwrap());
    let going = registry.retire(set).unwrap();
    assert_eq!(
        (going.leases(), going.holders()[0].label.as_str()),
        (1, "lost")
    );
    assert!(going.drained(Duration::ZERO).is_err());
    // Other sets do not care.
    let other = registry.publish("b", bytes(4, 1)).unwrap();
    registry.retire(other).unwrap().reclaimed(SOON).unwrap();
}

#[test]
fn leases_outlive_the_registry_and_free_what_they_held() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 7)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    let lease = registry.acquire_as("survivor", set).unwrap();
    let retired = registry.publish("b", bytes(4, 8)).unwrap();
    let held = registry.acquire(retired).unwrap();
    let going = registry.retire(retired).unwrap();
    drop(registry);
    assert_eq!(lease.weight(w).unwrap().bytes(), [7; 4]);
    assert!(!going.is_reclaimed());
    drop(held);
    going.reclaimed(Duration::ZERO).unwrap();
    drop(lease.clone());
    drop(lease);
}

#[test]
fn dropping_the_registry_gives_bytes_back_while_pooled_threads_live_on() {
    const THREADS: usize = 32;
    let registry = Arc::new(registry());
    let set = registry.publish("a", bytes(1 << 20, 1)).unwrap();
    let (ready, wait_ready) = mpsc::channel();
    let (go, release): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<()>()).unzip();
    let threads: Vec<_> = release
        .into_iter()
        .map(|release| {
            let (registry, ready) = (Arc::clone(&registry), ready.clone());
            std::thread::spawn(move || {
                // The thread becomes a participant of the registry's epochs and stays alive.
                drop(registry.acquire(set).unwrap());
                drop(registry);
                ready.send(()).unwrap();
                let _ = release.recv();
            })
        })
        .collect();
    for _ in 0..THREADS {
        wait_ready.recv().unwrap();
    }
    let replaced = registry.replace(set, bytes(1 << 20, 2)).unwrap();
    replaced.previous.reclaimed(SOON).unwrap();
    let lease = registry.acquire(set).unwrap();
    let registry = Arc::into_inner(registry).expect("all threads gave theirs back");
    let going = registry
        .publish("b", bytes(1 << 20, 3))
        .and_then(|b| Ok(registry.retire(b)?));
    let going = going.unwrap();
    drop(registry);
    going
        .reclaimed(Duration::ZERO)
        .expect("dropping the registry waits for its reclaimer");
    drop(lease);
    drop(go);
    for thread in threads {
        thread.join().unwrap();
    }
}
