//! Leases and scopes under commits.

use std::sync::Arc;
use std::thread;

use super::Size;
use super::crew::{Crew, Shelf};
use super::oracle::{LONG, Seen, acquire, acquire_now, close, registry, source, stamp_in};

/// One writer, one set.
pub fn replace_under_readers(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            writer.replace(set, source(1, version)).unwrap();
        }
    });
    for way in 0..size.threads {
        let (registry, mut seen) = (Arc::clone(&registry), Seen::default());
        crew.follow(move || {
            if let Some(lease) = acquire(&registry, &[set], way) {
                seen.see(&lease, set);
            }
        });
    }
    crew.work();
    close(&registry);
}

/// Three sets that only ever change together are never seen apart.
pub fn transaction_under_readers(size: Size) {
    let registry = registry();
    let sets = [1, 2, 3].map(|set| registry.publish(format!("s{set}").as_str(), source(set, 0)));
    let sets = sets.map(|set| set.unwrap());
    let change = move |registry: &weighbridge::WeightRegistry, version| {
        let mut all = registry.transaction();
        for (number, set) in (1..).zip(sets) {
            let staged = all.stage(source(number, version)).unwrap();
            all.replace(set, staged).unwrap();
        }
        all.commit().unwrap();
    };
    // The first generations came one by one.
    change(&registry, 1);
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || (2..=size.rounds + 1).for_each(|version| change(&writer, version)));
    for way in 0..size.threads {
        let (registry, mut seen) = (Arc::clone(&registry), Seen::default());
        crew.follow(move || {
            // Both orders, and all or two of them.
            let mut wanted = sets;
            wanted.rotate_left(way % 3);
            let wanted = &wanted[..2 + way % 2];
            let Some(lease) = acquire(&registry, wanted, way) else {
                return;
            };
            let first = seen.see(&lease, wanted[0]);
            for &other in &wanted[1..] {
                assert_eq!(stamp_in(&lease, other).version, first.version, "mixed");
            }
        });
    }
    crew.work();
    close(&registry);
}

/// Leases are cloned and handed on; whoever has one last drops it.
pub fn last_drop_elsewhere(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    let shelf = Arc::new(Shelf::new(size.threads));
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            writer.replace(set, source(1, version)).unwrap();
        }
    });
    for place in 0..size.threads {
        let (registry, shelf) = (Arc::clone(&registry), Arc::clone(&shelf));
        let mut turn = place;
        crew.follow(move || {
            turn += 1;
            let lease = acquire(&registry, &[set], turn);
            let Some(other) = shelf.swap(turn, lease) else {
                return;
            };
            let was = stamp_in(&other, set);
            let twin = other.clone();
            drop(shelf.swap(turn + 1, Some(other)));
            assert_eq!(stamp_in(&twin, set), was, "its bytes changed");
        });
    }
    crew.work();
    drop(shelf);
    close(&registry);
}

/// Metadata under a scope is as of its commit, however long it stays open.
pub fn scopes_stay_in_their_commit(size: Size) {
    let registry = registry();
    let sets = ["a", "b"].map(|name| registry.publish(name, source(1, 0)).unwrap());
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let mut both = writer.transaction();
            for set in sets {
                let staged = both.stage(source(1, version)).unwrap();
                both.replace(set, staged).unwrap();
            }
            both.commit().unwrap();
        }
    });
    for _ in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            let reader = registry.reader();
            let mut scope = reader.scope();
            for _ in 0..3 {
                let number = scope.number();
                let before = sets.map(|set| scope.get(set).unwrap().generation());
                thread::yield_now();
                for (set, before) in sets.into_iter().zip(before) {
                    let view = scope.get(set).unwrap();
                    assert_eq!(view.generation(), before);
                    assert!(before <= number && view.layout().len() == 2);
                    assert_eq!(view.bytes(), super::oracle::CHARGE);
                    assert!(["a", "b"].contains(&view.name().name()));
                }
                scope.refresh();
                assert!(scope.number() >= number, "went back");
            }
        });
    }
    crew.work();
    close(&registry);
}

/// Several threads wait for the end of what others hold.
pub fn waits_end(size: Size) {
    let registry = registry();
    for round in 0..size.rounds {
        let set = registry.publish("s", source(1, round)).unwrap();
        let held: Vec<_> = (0..size.threads)
            .map(|way| acquire_now(&registry, &[set], way))
            .collect();
        let going = registry.retire(set).unwrap();
        let mut crew = Crew::new();
        for lease in held {
            crew.lead(move || {
                assert_eq!(stamp_in(&lease.clone(), set).version, round);
            });
        }
        for waiter in 0..2 {
            let going = going.clone();
            crew.lead(move || {
                if waiter == 0 {
                    going.drained(LONG).unwrap();
                    assert!(going.is_drained() && going.leases() == 0);
                }
                going.reclaimed(LONG).unwrap();
                assert!(going.is_drained() && going.is_reclaimed());
            });
        }
        crew.work();
    }
    close(&registry);
}

/// Holders that ask whether they should let go, and do.
pub fn revoked_leases_end(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let swap = writer.replace(set, source(1, version)).unwrap();
            swap.previous.revoke();
            swap.previous.reclaimed(LONG).unwrap();
        }
    });
    for way in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            let lease = acquire_now(&registry, &[set], way);
            let was = stamp_in(&lease, set);
            for _ in 0..50 {
                if lease.is_revoked() {
                    assert!(lease.is_superseded(), "revoked, and the newest");
                    break;
                }
                thread::yield_now();
            }
            assert_eq!(stamp_in(&lease, set), was, "its bytes changed");
        });
    }
    crew.work();
    close(&registry);
}
