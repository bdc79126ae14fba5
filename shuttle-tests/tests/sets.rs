//! Sets that are published, replaced and retired while others lease them.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use weighbridge::{Error, Generation, WeightRegistry};
use weighbridge_shuttle_tests::{bytes, empty, explore, filled, registry, saw, start, value};

#[test]
fn transaction_is_leased_whole() {
    let outcomes = ["old", "new", "seen old", "seen new", "superseded"];
    explore("transaction_is_leased_whole", &outcomes, || {
        let registry = registry();
        let sets = ["a", "b"].map(|name| registry.publish(name, bytes(0)).unwrap());
        let [a, b] = sets;
        let writer = start(&registry, move |registry| {
            let mut both = registry.transaction();
            for set in sets {
                let staged = registry.stage(bytes(1)).unwrap();
                both.replace(set, staged).unwrap();
            }
            both.commit().unwrap();
        });
        let observer = start(&registry, move |registry| {
            registry.scope(|scope| {
                let seen = sets.map(|set| scope.get(set).unwrap().generation().number());
                assert!(seen == [1, 2] || seen == [3, 3], "mixed metadata: {seen:?}");
                saw(if seen[0] == 3 { "seen new" } else { "seen old" });
                match scope.acquire([b, a]) {
                    Ok(lease) => {
                        let values = sets.map(|set| value(&lease, set));
                        assert_eq!(values, [u8::from(seen[0] == 3); 2], "not what was seen");
                    }
                    Err(Error::Superseded { .. }) => saw("superseded"),
                    Err(other) => panic!("{other}"),
                }
            });
        });
        let lease = registry.acquire([a, b]).unwrap();
        let values = sets.map(|set| value(&lease, set));
        assert_eq!(values[0], values[1], "mixed");
        saw(if values[0] == 0 { "old" } else { "new" });
        drop(lease);
        writer.join().unwrap();
        observer.join().unwrap();
        empty(&registry);
    });
}

#[test]
fn later_commits_are_not_seen_without_earlier_ones() {
    let name = "later_commits_are_not_seen_without_earlier_ones";
    explore(name, &["00", "10", "11"], || {
        let registry = registry();
        let a = registry.publish("a", bytes(0)).unwrap();
        let b = registry.publish("b", bytes(0)).unwrap();
        let writer = start(&registry, move |registry| {
            registry.replace(a, bytes(1)).unwrap();
            registry.replace(b, bytes(1)).unwrap();
        });
        let reader = registry.reader();
        let mut last = (0, 0);
        for _ in 0..2 {
            let lease = reader.acquire([b, a]).unwrap();
            let now = (value(&lease, a), value(&lease, b));
            assert_ne!(now, (0, 1), "the second commit without the first");
            assert!(now >= last, "time went back");
            last = now;
            saw(format!("{}{}", now.0, now.1));
        }
        writer.join().unwrap();
        empty(&registry);
    });
}

#[test]
fn a_compare_and_swap_lets_one_win() {
    explore(
        "a_compare_and_swap_lets_one_win",
        &["first", "second"],
        || {
            let registry = registry();
            let set = registry.publish("s", bytes(0)).unwrap();
            let expected = registry.scope(|scope| scope.get(set).unwrap().generation());
            let attempt = move |registry: &WeightRegistry, fill| -> Option<Generation> {
                match registry.replace_if(set, expected, bytes(fill)) {
                    Ok(replaced) => Some(replaced.generation),
                    Err(failed) => match failed.error() {
                        Error::Conflict { current, .. } if *current > expected => None,
                        other => panic!("{other}"),
                    },
                }
            };
            let one = start(&registry, move |registry| attempt(registry, 1));
            let two = attempt(&registry, 2);
            let one = one.join().unwrap();
            assert!(one.is_some() != two.is_some(), "{one:?} {two:?}");
            assert_eq!(filled(&registry, set), if one.is_some() { 1 } else { 2 });
            saw(if one.is_some() { "first" } else { "second" });
            empty(&registry);
        },
    );
}

#[test]
fn a_slot_and_a_name_are_used_again() {
    let outcomes = [
        "old",
        "stale",
        "named old",
        "named new",
        "nobody",
        "named stale",
    ];
    explore("a_slot_and_a_name_are_used_again", &outcomes, || {
        let registry = registry();
        let first = registry.publish("s", bytes(1)).unwrap();
        let writer = start(&registry, move |registry| {
            registry.retire(first).unwrap();
            let second = registry.publish("s", bytes(2)).unwrap();
            assert_ne!(first, second);
        });
        let reader = start(&registry, move |registry| match registry.acquire(first) {
            Ok(lease) => {
                assert_eq!(value(&lease, first), 1, "another tenant's bytes");
                saw("old");
            }
            Err(Error::StaleHandle { handle }) if handle == first => saw("stale"),
            Err(other) => panic!("{other}"),
        });
        if let Some(found) = registry.lookup("s") {
            match registry.acquire(found) {
                Ok(lease) => {
                    let old = found == first;
                    assert_eq!(value(&lease, found), if old { 1 } else { 2 });
                    saw(if old { "named old" } else { "named new" });
                }
                Err(Error::StaleHandle { .. }) if found == first => saw("named stale"),
                Err(other) => panic!("{other}"),
            }
        } else {
            saw("nobody");
        }
        writer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(filled(&registry, registry.lookup("s").unwrap()), 2);
        empty(&registry);
    });
}

#[test]
fn one_name_has_one_publisher() {
    let outcomes = ["busy", "there already", "one", "two"];
    explore("one_name_has_one_publisher", &outcomes, || {
        let registry = registry();
        let publish = |registry: &WeightRegistry, fill| match registry.publish("s", bytes(fill)) {
            Ok(set) => Some(set),
            Err(failed) => {
                match failed.error() {
                    Error::NameBusy { .. } => saw("busy"),
                    Error::AlreadyPublished { .. } => saw("there already"),
                    other => panic!("{other}"),
                }
                None
            }
        };
        let one = start(&registry, move |registry| publish(registry, 1));
        let two = publish(&registry, 2);
        let (winner, fill) = match (one.join().unwrap(), two) {
            (Some(set), None) => (set, 1),
            (None, Some(set)) => (set, 2),
            both => panic!("{both:?}"),
        };
        saw(if fill == 1 { "one" } else { "two" });
        assert_eq!(registry.lookup("s"), Some(winner));
        assert_eq!(filled(&registry, winner), fill);
        assert_eq!(registry.stats().sets, 1);
        empty(&registry);
    });
}

#[test]
fn a_set_is_retired_before_its_publisher_returns() {
    let outcomes = ["not there yet", "before it returned", "afterwards"];
    explore(
        "a_set_is_retired_before_its_publisher_returns",
        &outcomes,
        || {
            let registry = registry();
            let returned = Arc::new(AtomicBool::new(false));
            let told = Arc::clone(&returned);
            let publisher = start(&registry, move |registry| {
                registry.publish("s", bytes(1)).unwrap();
                told.store(true, Ordering::SeqCst);
            });
            let catalog = registry.catalog();
            if let Some(entry) = catalog.entries().first() {
                registry.retire(entry.handle).unwrap();
                let late = returned.load(Ordering::SeqCst);
                saw(if late {
                    "afterwards"
                } else {
                    "before it returned"
                });
                publisher.join().unwrap();
                assert_eq!(registry.lookup("s"), None, "the name of a set that is gone");
            } else {
                saw("not there yet");
                publisher.join().unwrap();
                registry.retire(registry.lookup("s").unwrap()).unwrap();
            }
            registry.publish("s", bytes(2)).unwrap();
            empty(&registry);
        },
    );
}

#[test]
fn transactions_over_the_same_sets_do_not_mix() {
    let name = "transactions_over_the_same_sets_do_not_mix";
    explore(name, &["one", "two"], || {
        let registry = registry();
        let sets = ["a", "b"].map(|name| registry.publish(name, bytes(0)).unwrap());
        let change = |registry: &WeightRegistry, sets: [_; 2], fill| {
            let mut both = registry.transaction();
            for set in sets {
                let staged = registry.stage(bytes(fill)).unwrap();
                both.replace(set, staged).unwrap();
            }
            both.commit().unwrap().generation
        };
        let [a, b] = sets;
        // Locked in another order than named.
        let one = start(&registry, move |registry| change(registry, [b, a], 1));
        let two = change(&registry, [a, b], 2);
        let one = one.join().unwrap();
        let values = sets.map(|set| filled(&registry, set));
        let last = if one > two { 1 } else { 2 };
        assert_eq!(values, [last, last], "not the last commit's");
        saw(if last == 1 { "one" } else { "two" });
        empty(&registry);
    });
}
