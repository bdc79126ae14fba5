//! Sets that stand on sets, and generations that come back: adapters, aliases, rollbacks, drained swaps.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;

use weighbridge::source::InMemory;
use weighbridge::{Error, WeightRegistry};
use weighbridge_shuttle_tests::{
    LINE, LONG, SOON, adapter, bytes, empty, explore, filled, registry, saw, spawn, start, total,
    value,
};

#[test]
fn a_base_moves_while_an_adapter_is_published() {
    let outcomes = ["came along", "came afterwards", "stands on the old one"];
    explore(
        "a_base_moves_while_an_adapter_is_published",
        &outcomes,
        || {
            let registry = registry();
            let base = registry.publish("base", bytes(0)).unwrap();
            let publisher = start(&registry, move |registry| {
                registry.publish("a", adapter(base, 7)).unwrap()
            });
            let mut all = registry.transaction();
            all.replace(base, registry.stage(bytes(1)).unwrap())
                .unwrap();
            all.rebind_adapters(base).unwrap();
            let moved = match all.commit() {
                Ok(done) => {
                    let along = done.previous.len() == 2;
                    saw(if along {
                        "came along"
                    } else {
                        "came afterwards"
                    });
                    1
                }
                // It was published after `rebind_adapters` had looked.
                Err(failed) => match failed.error() {
                    Error::Dependants { .. } => {
                        saw("stands on the old one");
                        0
                    }
                    other => panic!("{other}"),
                },
            };
            let on_it = publisher.join().unwrap();
            // Whatever came first, the pair is whole.
            let lease = registry.acquire([on_it, base]).unwrap();
            assert_eq!((value(&lease, on_it), value(&lease, base)), (7, moved));
            let current = lease.set(base).unwrap().generation();
            let told = lease.provenance();
            let bound = told.sets.iter().find_map(|set| set.base.as_ref());
            assert_eq!(bound.unwrap().generation, current, "bound to what is gone");
            drop(lease);
            registry.retire_cascade(base).unwrap();
            empty(&registry);
        },
    );
}

#[test]
fn a_cascade_takes_every_adapter() {
    explore(
        "a_cascade_takes_every_adapter",
        &["with it", "no base", "stale"],
        || {
            let registry = registry();
            let base = registry.publish("base", bytes(0)).unwrap();
            let publisher = start(&registry, move |registry| {
                registry.publish("a", adapter(base, 7))
            });
            let gone = registry.retire_cascade(base).unwrap().len();
            match publisher.join().unwrap() {
                Ok(adapter) => {
                    assert_eq!(gone, 2, "an adapter was left without a base");
                    assert!(registry.acquire(adapter).is_err());
                    saw("with it");
                }
                Err(failed) => {
                    assert_eq!(gone, 1);
                    match failed.error() {
                        Error::BaseNotCurrent { .. } => saw("no base"),
                        Error::StaleHandle { .. } => saw("stale"),
                        other => panic!("{other}"),
                    }
                }
            }
            empty(&registry);
        },
    );
}

#[test]
fn an_alias_follows_its_owner() {
    let outcomes = ["not there yet", "new", "owner is held", "owner is gone"];
    explore("an_alias_follows_its_owner", &outcomes, || {
        let registry = registry();
        let owner = registry.publish("owner", bytes(0)).unwrap();
        let weight = registry.weight_handle(owner, "w").unwrap();
        let publisher = start(&registry, move |registry| {
            let alias = InMemory::new().alias("head", weight).unwrap();
            registry.publish("alias", alias)
        });
        // The aliases that are there come along by themselves.
        registry.replace(owner, bytes(1)).unwrap();
        if let Some(alias) = registry.lookup("alias") {
            let lease = registry.acquire([alias, owner]).unwrap();
            assert_eq!((value(&lease, alias), value(&lease, owner)), (1, 1));
            saw("new");
        } else {
            saw("not there yet");
        }
        let retired = registry.retire(owner);
        match (publisher.join().unwrap(), retired) {
            (Ok(alias), Err(Error::AliasedBy { .. })) => {
                let lease = registry.acquire([alias, owner]).unwrap();
                assert_eq!((value(&lease, alias), value(&lease, owner)), (1, 1));
                saw("owner is held");
                drop(lease);
                registry.retire_cascade(owner).unwrap();
            }
            (Err(_), Ok(_)) => saw("owner is gone"),
            other => panic!("{other:?}"),
        }
        empty(&registry);
    });
}

#[test]
fn a_rollback_races_a_retire() {
    explore(
        "a_rollback_races_a_retire",
        &["rolled back", "gone", "1", "2"],
        || {
            let registry = registry();
            let set = registry.publish("s", bytes(1)).unwrap();
            registry.keep_previous(set, 1).unwrap();
            registry.replace(set, bytes(2)).unwrap();
            let retirer = start(&registry, move |registry| {
                let gone = registry.retire(set).unwrap();
                gone.reclaimed(LONG).unwrap();
            });
            let reader = start(&registry, move |registry| {
                if let Ok(lease) = registry.acquire(set) {
                    saw(value(&lease, set).to_string());
                }
            });
            match registry.rollback(set) {
                Ok(_) => saw("rolled back"),
                Err(Error::StaleHandle { .. }) => saw("gone"),
                Err(other) => panic!("{other}"),
            }
            retirer.join().unwrap();
            reader.join().unwrap();
            assert_eq!(total(&registry), 0, "kept for nobody");
            empty(&registry);
        },
    );
}

#[test]
fn rollbacks_and_a_replace_keep_one() {
    explore("rollbacks_and_a_replace_keep_one", &["1", "3"], || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        registry.keep_previous(set, 1).unwrap();
        registry.replace(set, bytes(2)).unwrap();
        let other = start(&registry, move |registry| {
            registry.rollback(set).unwrap();
        });
        let third = start(&registry, move |registry| {
            registry.replace(set, bytes(3)).unwrap();
        });
        registry.rollback(set).unwrap();
        other.join().unwrap();
        third.join().unwrap();
        saw(filled(&registry, set).to_string());
        // What is kept is charged, and nothing else.
        let kept = registry.kept(set).unwrap().len() as u64;
        assert_eq!(kept, 1);
        for retirement in registry.retired() {
            retirement.reclaimed(LONG).unwrap();
        }
        let ledger = registry.ledger();
        assert_eq!((ledger.kept, ledger.resident), (kept * LINE, LINE));
        empty(&registry);
    });
}

/// Room for one set only.
fn tight() -> Arc<WeightRegistry> {
    let builder = WeightRegistry::builder().event_capacity(32);
    Arc::new(builder.limit_bytes(LINE).build().unwrap())
}

#[test]
fn a_drained_swap_waits_for_clones() {
    let outcomes = ["old", "new", "not resident"];
    explore("a_drained_swap_waits_for_clones", &outcomes, || {
        let registry = tight();
        let set = registry.publish("s", bytes(1)).unwrap();
        let swapper = start(&registry, move |registry| {
            registry.replace_drained(set, bytes(2), LONG).unwrap();
        });
        let watcher = start(&registry, |registry| {
            assert!(registry.ledger().total() <= LINE, "both at once");
        });
        match registry.acquire(set) {
            Ok(lease) => {
                let before = value(&lease, set);
                let clone = lease.clone();
                drop(lease);
                assert_eq!(value(&clone, set), before, "swapped under a clone");
                saw(if before == 1 { "old" } else { "new" });
            }
            Err(Error::NotResident { .. }) => saw("not resident"),
            Err(other) => panic!("{other}"),
        }
        swapper.join().unwrap();
        watcher.join().unwrap();
        assert_eq!((filled(&registry, set), total(&registry)), (2, LINE));
        assert_eq!(registry.ledger().peak, LINE);
        empty(&registry);
    });
}

#[test]
fn a_drained_swap_runs_out_of_time() {
    explore(
        "a_drained_swap_runs_out_of_time",
        &["swapped", "came back"],
        || {
            let registry = tight();
            let set = registry.publish("s", bytes(1)).unwrap();
            let held = registry.acquire(set).unwrap();
            let holder = spawn(move || {
                assert_eq!(value(&held, set), 1);
                drop(held);
            });
            let answer = registry.replace_drained(set, bytes(2), SOON);
            holder.join().unwrap();
            let now = match answer {
                Ok(_) => 2,
                Err(failed) => match failed.error() {
                    Error::NotDrained(_) | Error::NotReclaimed(_) => 1,
                    other => panic!("{other}"),
                },
            };
            assert_eq!((filled(&registry, set), total(&registry)), (now, LINE));
            saw(if now == 2 { "swapped" } else { "came back" });
            empty(&registry);
        },
    );
}

/// The old generation is about to come back, and somebody else fills the place first.
#[test]
fn a_drained_swap_comes_back_too_late() {
    let outcomes = ["came back", "too late", "before it was empty"];
    explore("a_drained_swap_comes_back_too_late", &outcomes, || {
        let registry = tight();
        let set = registry.publish("s", bytes(1)).unwrap();
        let held = registry.acquire(set).unwrap();
        // No bytes: there is room for that.
        let filler = start(&registry, move |registry| {
            registry.replace(set, InMemory::new()).unwrap()
        });
        let failed = registry.replace_drained(set, bytes(2), SOON).unwrap_err();
        let superseded = filler.join().unwrap().previous.generation().number();
        match (failed.error(), superseded) {
            // The first commit was the publish, the second one emptied the place.
            (Error::Conflict { .. }, 2) => saw("too late"),
            (Error::NotDrained(_), 3) => saw("came back"),
            (Error::Conflict { .. } | Error::OverLimit { .. }, 1) => saw("before it was empty"),
            (other, superseded) => panic!("{other}, and {superseded} was superseded"),
        }
        drop((held, failed));
        empty(&registry);
    });
}

#[test]
fn two_drained_swaps() {
    let outcomes = ["both", "one", "not resident"];
    explore("two_drained_swaps", &outcomes, || {
        let registry = tight();
        let set = registry.publish("s", bytes(1)).unwrap();
        let swap = move |registry: &WeightRegistry, fill| match registry.replace_drained(
            set,
            bytes(fill),
            LONG,
        ) {
            Ok(_) => true,
            Err(failed) => match failed.error() {
                Error::NotResident { .. } => {
                    saw("not resident");
                    false
                }
                Error::Conflict { .. } | Error::OverLimit { .. } => false,
                other => panic!("{other}"),
            },
        };
        let two = start(&registry, move |registry| swap(registry, 2));
        let (three, two) = (swap(&registry, 3), two.join().unwrap());
        assert!(two || three, "nobody swapped");
        let now = filled(&registry, set);
        assert!(now == 2 && two || now == 3 && three);
        saw(if two && three { "both" } else { "one" });
        assert_eq!((total(&registry), registry.ledger().peak), (LINE, LINE));
        empty(&registry);
    });
}

/// While a drained swap waits, or loads, somebody brings back what it emptied, or retires the set.
#[test]
fn a_drained_swap_is_overtaken() {
    let outcomes = [
        "swapped",
        "brought back",
        "retired before",
        "retired while empty",
        "retired after",
    ];
    explore("a_drained_swap_is_overtaken", &outcomes, || {
        let registry = tight();
        let set = registry.publish("s", bytes(1)).unwrap();
        let held = registry.acquire(set).unwrap();
        let holder = spawn(move || drop(held));
        let swapper = start(&registry, move |registry| {
            let answer = registry.replace_drained(set, bytes(2), LONG);
            answer.err().map(|failed| failed.into_parts().0)
        });
        let back = match registry.rollback(set) {
            Ok(_) => true,
            // Not empty yet, or not any more.
            Err(Error::NotKept { .. }) => false,
            Err(other) => panic!("{other}"),
        };
        let early = match registry.acquire(set) {
            Ok(lease) => Some(value(&lease, set)),
            Err(Error::NotResident { .. }) => None,
            Err(other) => panic!("{other}"),
        };
        let gone = registry.retire(set).unwrap();
        holder.join().unwrap();
        match (swapper.join().unwrap(), back, early) {
            (None, false, early) => saw(if early == Some(2) {
                "retired after"
            } else {
                "swapped"
            }),
            (Some(Error::Conflict { .. } | Error::StaleHandle { .. }), true, Some(1)) => {
                saw("brought back");
            }
            (Some(Error::StaleHandle { .. }), false, Some(1)) => saw("retired before"),
            (Some(Error::StaleHandle { .. }), false, None) => saw("retired while empty"),
            other => panic!("{other:?}"),
        }
        gone.reclaimed(LONG).unwrap();
        assert_eq!((total(&registry), registry.ledger().peak), (0, LINE));
        empty(&registry);
    });
}

#[test]
fn what_is_kept_and_a_retire() {
    explore("what_is_kept_and_a_retire", &["kept", "gone"], || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        registry.keep_previous(set, 1).unwrap();
        registry.replace(set, bytes(2)).unwrap();
        let retirer = start(&registry, move |registry| registry.retire(set).unwrap());
        match registry.kept(set) {
            Ok(kept) => {
                assert_eq!(kept.len(), 1, "no instant has the set and keeps nothing");
                saw("kept");
            }
            Err(Error::StaleHandle { .. }) => saw("gone"),
            Err(other) => panic!("{other}"),
        }
        let gone = retirer.join().unwrap();
        gone.reclaimed(LONG).unwrap();
        empty(&registry);
    });
}

#[test]
fn a_drained_swap_takes_adapters_along() {
    let outcomes = ["published before", "published after", "room for both"];
    explore("a_drained_swap_takes_adapters_along", &outcomes, || {
        let builder = WeightRegistry::builder().event_capacity(32);
        let registry = Arc::new(builder.limit_bytes(3 * LINE).build().unwrap());
        let base = registry.publish("base", bytes(1)).unwrap();
        let leaving = registry.publish("leaving", adapter(base, 8)).unwrap();
        // What is left is the coming adapter's, so that the base has no room for both.
        let coming = registry.stage(adapter(base, 9)).unwrap();
        let publisher = start(&registry, move |registry| {
            let set = registry.publish_staged("coming", coming).unwrap();
            let stands_on = |set| {
                let lease = registry.acquire([base, set]).ok()?;
                let of = lease
                    .provenance()
                    .sets
                    .into_iter()
                    .find_map(|set| set.base)?;
                assert_eq!(of.generation, lease.set(base).unwrap().generation());
                Some(value(&lease, base))
            };
            match stands_on(set) {
                Some(1) => saw("published before"),
                Some(_) => saw("published after"),
                None => {}
            }
            set
        });
        let retirer = start(&registry, move |registry| {
            registry.retire(leaving).unwrap();
        });
        let now = match registry.replace_drained(base, bytes(2), LONG) {
            Ok(_) => 2,
            // The one that left made room for both, and then it is a replace like any other.
            Err(failed) => match failed.error() {
                Error::Dependants { .. } => {
                    saw("room for both");
                    1
                }
                other => panic!("{other}"),
            },
        };
        let coming = publisher.join().unwrap();
        retirer.join().unwrap();
        let lease = registry.acquire([base, coming]).unwrap();
        assert_eq!((value(&lease, base), value(&lease, coming)), (now, 9));
        drop(lease);
        assert!(registry.ledger().peak <= 3 * LINE);
        registry.retire_cascade(base).unwrap();
        empty(&registry);
    });
}

#[test]
fn what_is_let_go_of_is_listed_until_it_is_back() {
    let outcomes = ["kept", "let go of", "back"];
    let name = "what_is_let_go_of_is_listed_until_it_is_back";
    explore(name, &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        registry.keep_previous(set, 1).unwrap();
        registry
            .replace(set, bytes(2))
            .unwrap()
            .previous
            .reclaimed(LONG)
            .unwrap();
        let writer = start(&registry, move |registry| {
            registry.keep_previous(set, 0).unwrap();
        });
        let now = registry.ledger();
        saw(match (now.kept, now.retired) {
            (LINE, 0) => "kept",
            (0, LINE) => "let go of",
            (0, 0) => "back",
            both => panic!("{both:?}"),
        });
        writer.join().unwrap();
        for going in registry.retired() {
            going.reclaimed(LONG).unwrap();
        }
        assert_eq!(total(&registry), LINE, "it was in no list");
        empty(&registry);
    });
}

#[test]
fn keeping_fewer_races_a_replace() {
    explore("keeping_fewer_races_a_replace", &["1", "2"], || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        registry.keep_previous(set, 2).unwrap();
        registry.replace(set, bytes(2)).unwrap();
        let writer = start(&registry, move |registry| {
            registry.replace(set, bytes(3)).unwrap();
            let kept = registry.kept(set).unwrap();
            saw(kept.len().to_string());
            let latest = kept.last().expect("at least one is kept");
            registry.rollback_to(set, latest.generation).unwrap();
        });
        registry.keep_previous(set, 1).unwrap();
        assert!(registry.kept(set).unwrap().len() <= 1);
        writer.join().unwrap();
        assert_eq!(filled(&registry, set), 2);
        for going in registry.retired() {
            going.reclaimed(LONG).unwrap();
        }
        assert_eq!(registry.kept(set).unwrap().len(), 1);
        assert_eq!(total(&registry), 2 * LINE);
        empty(&registry);
    });
}

#[test]
fn an_adapter_is_moved_while_its_new_base_goes() {
    let outcomes = ["moved", "gone", "leased before", "leased after"];
    let name = "an_adapter_is_moved_while_its_new_base_goes";
    explore(name, &outcomes, || {
        let registry = registry();
        let old = registry.publish("old", bytes(1)).unwrap();
        let new = registry.publish("new", bytes(2)).unwrap();
        let set = registry.publish("a", adapter(old, 3)).unwrap();
        let mover = start(&registry, move |registry| {
            registry.rebind(set, new).map(drop)
        });
        let reader = start(&registry, move |registry| {
            let lease = registry.acquire(set).unwrap();
            assert_eq!(value(&lease, set), 3);
            let on = lease.set(set).unwrap().base();
            saw(if on == Some(new) {
                "leased after"
            } else {
                "leased before"
            });
        });
        let gone = registry.retire(new);
        let on = match (mover.join().unwrap(), gone) {
            (Ok(()), Err(Error::Dependants { .. })) => {
                saw("moved");
                new
            }
            (Err(Error::StaleHandle { .. } | Error::BaseNotCurrent { .. }), Ok(_)) => {
                saw("gone");
                old
            }
            both => panic!("{both:?}"),
        };
        reader.join().unwrap();
        let lease = registry.acquire([set, on]).unwrap();
        assert_eq!(value(&lease, set), 3);
        drop(lease);
        empty(&registry);
    });
}
