//! Does the harness see anything? What must fail fails, and what the facade promises holds here, too.
#![cfg(weighbridge_shuttle)]

use weighbridge::__shuttle::contract;
use weighbridge::{Next, WeightRegistry};
use weighbridge_shuttle_tests::{LONG, SOON, bytes, empty, explore, registry, saw, start};

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
        let publish = |registry: &WeightRegistry| {
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

/// Two calls that follow each other are not one step.
#[test]
fn switches_happen_between_calls() {
    explore(
        "switches_happen_between_calls",
        &["between two looks"],
        || {
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
        },
    );
}

/// A near deadline passes at any moment, also when what is waited for has begun.
#[test]
fn near_deadlines_pass_at_any_moment() {
    let outcomes = ["passed", "not in time to pass"];
    explore("near_deadlines_pass_at_any_moment", &outcomes, || {
        let registry = registry();
        let mut events = registry.events();
        let writer = start(&registry, |registry| {
            registry.publish("s", bytes(1)).unwrap();
        });
        let answer = events.next_timeout(SOON);
        saw(match answer {
            Next::Event(_) => "not in time to pass",
            Next::Nothing => "passed",
            other => panic!("{other:?}"),
        });
        writer.join().unwrap();
        empty(&registry);
    });
}
