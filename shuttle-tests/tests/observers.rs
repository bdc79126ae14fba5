//! What observers see while sets change: events, catalogs, statistics.
#![cfg(weighbridge_shuttle)]

use std::collections::BTreeMap;
use std::sync::Arc;

use weighbridge::{EventKind, Next, SetHandle, Subscription, WeightRegistry};
use weighbridge_shuttle_tests::{LONG, SOON, bytes, empty, explore, registry, saw, start, value};

/// The next event of a commit: its number, what follows of it, the set, and its generation then.
fn next_commit(events: &mut Subscription) -> Option<(u64, usize, SetHandle, Option<u64>)> {
    loop {
        let event = match events.next_timeout(LONG) {
            Next::Event(event) => event,
            Next::Closed => return None,
            other => panic!("{other:?}"),
        };
        return Some(match event.kind {
            EventKind::Published {
                commit, more, now, ..
            } => (
                commit.number(),
                more,
                now.handle,
                Some(now.generation.number()),
            ),
            EventKind::Replaced {
                commit, more, now, ..
            } => (
                commit.number(),
                more,
                now.handle,
                Some(now.generation.number()),
            ),
            EventKind::Retired {
                commit,
                more,
                previous,
                ..
            } => (commit.number(), more, previous.handle, None),
            _ => continue,
        });
    }
}

#[test]
fn events_come_in_the_order_of_commits() {
    let outcomes = ["ahead of the event", "at the event"];
    explore("events_come_in_the_order_of_commits", &outcomes, || {
        let registry = registry();
        let a = registry.publish("a", bytes(0)).unwrap();
        let b = registry.publish("b", bytes(0)).unwrap();
        // Of its own: writers of one set wait for each other before they come here.
        let c = registry.publish("c", bytes(0)).unwrap();
        let mut events = registry.events();
        let one = start(&registry, move |registry| {
            registry.replace(c, bytes(1)).unwrap();
        });
        let two = start(&registry, move |registry| {
            let mut both = registry.transaction();
            for set in [a, b] {
                let staged = registry.stage(bytes(2)).unwrap();
                both.replace(set, staged).unwrap();
            }
            both.commit().unwrap();
        });
        let mut last = 3;
        let mut following = 0;
        for _ in 0..3 {
            let (commit, more, set, generation) = next_commit(&mut events).unwrap();
            assert_eq!(generation, Some(commit));
            if following == 0 {
                assert_eq!(commit, last + 1, "a commit was passed over, or told late");
            } else {
                assert_eq!((commit, more), (last, following - 1), "a commit was torn");
            }
            (last, following) = (commit, more);
            // Told of is visible.
            let (number, current) = registry.scope(|scope| {
                let current = scope.get(set).unwrap().generation().number();
                (scope.number().number(), current)
            });
            assert!(
                number >= commit && current >= commit,
                "told before it is so"
            );
            saw(if number > commit {
                "ahead of the event"
            } else {
                "at the event"
            });
        }
        one.join().unwrap();
        two.join().unwrap();
        empty(&registry);
    });
}

#[test]
fn slow_subscribers_are_told_what_they_missed() {
    let outcomes = ["missed", "saw everything"];
    explore(
        "slow_subscribers_are_told_what_they_missed",
        &outcomes,
        || {
            let builder = WeightRegistry::builder().event_capacity(4);
            let registry = Arc::new(builder.build().unwrap());
            let mut events = registry.events();
            // Three commits, each with an event; the last one tells of bytes that are back, too.
            let writer = start(&registry, |registry| {
                let set = registry.publish("s", bytes(1)).unwrap();
                registry.replace(set, bytes(2)).unwrap();
                registry.retire(set).unwrap();
                for retirement in registry.retired() {
                    retirement.reclaimed(LONG).unwrap();
                }
            });
            let (mut seen, mut missed, mut next) = (0, 0, 1);
            let mut take = |found| match found {
                Next::Event(event) => {
                    assert_eq!(event.sequence, next, "a gap nobody told of");
                    (seen, next) = (seen + 1, next + 1);
                    true
                }
                Next::Missed(count) => {
                    (missed, next) = (missed + count, next + count);
                    true
                }
                Next::Nothing => true,
                Next::Closed => false,
            };
            take(events.try_next());
            take(events.next_timeout(SOON));
            writer.join().unwrap();
            Arc::into_inner(registry).map(drop).expect("the only one");
            while take(events.next_timeout(LONG)) {}
            assert_eq!(seen + missed, 5, "lost or told twice");
            saw(if missed > 0 {
                "missed"
            } else {
                "saw everything"
            });
        },
    );
}

#[test]
fn a_mirror_ends_up_the_same() {
    let outcomes = ["from the catalog", "from events"];
    explore("a_mirror_ends_up_the_same", &outcomes, || {
        let registry = registry();
        let a = registry.publish("a", bytes(0)).unwrap();
        let writer = start(&registry, move |registry| {
            let mut all = registry.transaction();
            all.publish("b", registry.stage(bytes(1)).unwrap()).unwrap();
            all.replace(a, registry.stage(bytes(1)).unwrap()).unwrap();
            all.commit().unwrap();
            registry.retire(a).unwrap();
        });
        let mut events = registry.events();
        let catalog = registry.catalog();
        let mut mirror: BTreeMap<SetHandle, u64> = catalog
            .entries()
            .iter()
            .map(|entry| (entry.handle, entry.generation.number()))
            .collect();
        let known = catalog.number().number();
        saw(if known == 3 {
            "from the catalog"
        } else {
            "from events"
        });
        writer.join().unwrap();
        let now: BTreeMap<SetHandle, u64> = registry
            .catalog()
            .entries()
            .iter()
            .map(|entry| (entry.handle, entry.generation.number()))
            .collect();
        Arc::into_inner(registry).map(drop).expect("the only one");
        while let Some((commit, _, set, generation)) = next_commit(&mut events) {
            if commit <= known {
                continue;
            }
            match generation {
                Some(generation) => drop(mirror.insert(set, generation)),
                None => assert!(mirror.remove(&set).is_some(), "retired twice"),
            }
        }
        assert_eq!(mirror, now);
    });
}

#[test]
fn a_catalog_is_of_one_instant() {
    let outcomes = ["old", "new", "the other's is older"];
    explore("a_catalog_is_of_one_instant", &outcomes, || {
        let registry = registry();
        let sets = ["a", "b"].map(|name| registry.publish(name, bytes(0)).unwrap());
        let writer = start(&registry, move |registry| {
            let mut both = registry.transaction();
            for set in sets {
                let staged = registry.stage(bytes(1)).unwrap();
                both.replace(set, staged).unwrap();
            }
            both.commit().unwrap();
        });
        let look = |registry: &WeightRegistry| {
            let catalog = registry.catalog();
            let of = |name: &str| match catalog.get(name) {
                Some(entry) => entry.generation.number(),
                None => panic!("{name} is not in {}", catalog.to_json()),
            };
            let (a, b) = (of("a"), of("b"));
            assert!((a, b) == (1, 2) || (a, b) == (3, 3), "mixed: {a} {b}");
            let number = catalog.number().number();
            assert_eq!(number >= 3, a == 3, "not of its number");
            // Later looks are not older.
            assert!(registry.catalog().number() >= catalog.number());
            number
        };
        let other = start(&registry, look);
        let mine = look(&registry);
        saw(if mine == 2 { "old" } else { "new" });
        let theirs = other.join().unwrap();
        if theirs < mine {
            saw("the other's is older");
        }
        writer.join().unwrap();
        assert_eq!(registry.catalog().number().number(), 3);
        empty(&registry);
    });
}

#[test]
fn statistics_add_up() {
    let outcomes = ["held", "not held"];
    explore("statistics_add_up", &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(0)).unwrap();
        let reader = start(&registry, move |registry| {
            let lease = registry.acquire_as("r", set).unwrap();
            assert!(value(&lease, set) < 2);
        });
        let writer = start(&registry, move |registry| {
            registry.replace(set, bytes(1)).unwrap();
        });
        let stats = registry.stats();
        assert_eq!(stats.sets, 1);
        assert!((1..=2).contains(&stats.commits));
        // The old and the new, each once, whatever their states.
        assert!(stats.ledger.total() <= 128 && stats.ledger.peak <= 128);
        let held = stats.oldest_lease.is_some_and(|holder| holder.label == "r");
        saw(if held { "held" } else { "not held" });
        reader.join().unwrap();
        writer.join().unwrap();
        for retirement in registry.retired() {
            retirement.reclaimed(LONG).unwrap();
        }
        let stats = registry.stats();
        assert_eq!((stats.commits, stats.retired_generations), (2, 0));
        assert_eq!((stats.ledger.total(), stats.ledger.resident), (64, 64));
        assert!(stats.oldest_lease.is_none());
        empty(&registry);
    });
}
