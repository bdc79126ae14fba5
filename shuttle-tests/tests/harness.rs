//! Does the harness see anything? What must fail fails, and what the facade promises holds here, too.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weighbridge::__shuttle::contract;
use weighbridge_shuttle_tests::{
    LONG, SOON, bytes, empty, explore, registry, saw, spawn, start,
};

#[test]
fn contract_of_the_maps() {
    explore("contract_of_the_maps", &[], || {
        contract::map_answers();
        contract::map_races();
    });
}

#[test]
fn contract_of_the_pointers() {
    explore("contract_of_the_pointers", &[], || {
        contract::swap_answers();
        contract::swap_races();
    });
}

#[test]
fn contract_of_the_shares() {
    explore("contract_of_the_shares", &[], || {
        contract::share_answers();
        contract::share_races();
    });
}

/// If the library were built on std, its calls would be one step each, and this would pass.
#[test]
#[should_panic(expected = "looked before it leapt")]
fn a_look_before_a_leap_must_be_found() {
    explore("a_look_before_a_leap_must_be_found", &[], || {
        let registry = registry();
        let publish = |registry: &weighbridge::WeightRegistry| {
            if registry.lookup("s").is_none() {
                let answer = registry.publish("s", bytes(1));
                assert!(answer.is_ok(), "looked before it leapt");
            }
        };
        let other = start(&registry, publish);
        publish(&registry);
        other.join().unwrap();
    });
}

/// What waits for ever is told, not waited for.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wait_for_nothing_must_be_found() {
    explore("a_wait_for_nothing_must_be_found", &[], || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let gone = registry.retire(set).unwrap();
        gone.drained(LONG).unwrap();
        drop(lease);
    });
}

/// A step in the middle of the library's own calls: two counters that one commit moves together are never
/// seen apart by who looks at both at once, and are seen apart by who looks at one after the other.
#[test]
fn switches_happen_inside_of_calls() {
    let outcomes = ["between two looks"];
    explore("switches_happen_inside_of_calls", &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(0)).unwrap();
        let writer = start(&registry, move |registry| {
            registry.replace(set, bytes(1)).unwrap();
        });
        let first = registry.stats().commits;
        if registry.stats().commits != first {
            saw("between two looks");
        }
        writer.join().unwrap();
        empty(&registry);
    });
}

/// A near deadline passes at any moment: before, between and after what it races.
#[test]
fn near_deadlines_pass_at_any_moment() {
    let outcomes = ["before", "after", "not at all"];
    explore("near_deadlines_pass_at_any_moment", &outcomes, || {
        let registry = registry();
        let mut events = registry.events();
        let steps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&steps);
        let writer = start(&registry, move |registry| {
            counted.store(1, Ordering::SeqCst);
            registry.publish("s", bytes(1)).unwrap();
        });
        let answer = events.next_timeout(SOON);
        let begun = steps.load(Ordering::SeqCst) == 1;
        saw(match answer {
            weighbridge::Next::Event(_) => "not at all",
            weighbridge::Next::Nothing if begun => "after",
            weighbridge::Next::Nothing => "before",
            other => panic!("{other:?}"),
        });
        writer.join().unwrap();
        spawn(|| ()).join().unwrap();
        empty(&registry);
    });
}
