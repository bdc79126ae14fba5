//! What is charged and how much of it there may be: the ledger, namespaces, sources that fail, sets that are
//! filled.
#![cfg(weighbridge_shuttle)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use weighbridge::source::{InMemory, Source};
use weighbridge::{Account, Dtype, Error, NamespaceLimits, Plan, WeightRegistry};
use weighbridge_shuttle_tests::{
    LINE, LONG, all, bytes, empty, explore, filled, registry, saw, start, total, value, yield_now,
};

#[test]
fn the_limit_holds_for_all_publishers_together() {
    let outcomes = ["2 published", "3 published"];
    explore(
        "the_limit_holds_for_all_publishers_together",
        &outcomes,
        || {
            let builder = WeightRegistry::builder().event_capacity(32);
            let registry = Arc::new(builder.limit_bytes(2 * LINE).build().unwrap());
            let publish = |name: &'static str| {
                start(&registry, move |registry| {
                    match registry.publish(name, bytes(1)) {
                        Ok(set) => {
                            if name == "a" {
                                registry.retire(set).unwrap();
                            }
                            true
                        }
                        Err(failed) => match failed.error() {
                            Error::OverLimit { .. } => false,
                            other => panic!("{other}"),
                        },
                    }
                })
            };
            let publishers = ["a", "b", "c"].map(publish);
            for _ in 0..3 {
                assert!(total(&registry) <= 2 * LINE, "over the limit");
            }
            let published = all(publishers).into_iter().filter(|&one| one).count();
            assert!(
                registry.ledger().peak <= 2 * LINE,
                "over the limit for a moment"
            );
            assert!(published >= 2, "refused although there was room");
            saw(format!("{published} published"));
            empty(&registry);
        },
    );
}

/// What is kept of a set that went makes room for whoever comes, for both of two as for one.
#[test]
fn nobody_is_refused_while_memory_is_kept() {
    const MIB: u64 = 1 << 20;
    let outcomes = ["the load came first", "the load came last"];
    explore("nobody_is_refused_while_memory_is_kept", &outcomes, || {
        let of = |mib: u64, quarters: u64| {
            let len = (mib * MIB + quarters * MIB / 4) as usize;
            let source = InMemory::new().tensor("w", Dtype::U8, [len], vec![1; len]);
            source.unwrap().declared(format!("{len}"))
        };
        let builder = WeightRegistry::builder().event_capacity(32);
        let builder = builder.limit_bytes(2 * MIB).pool_bytes(2 * MIB);
        let registry = Arc::new(builder.build().unwrap());
        let set = registry.publish("before", of(1, 1)).unwrap();
        let going = registry.retire(set).unwrap();
        going.reclaimed(LONG).unwrap();
        assert_eq!(registry.ledger().pooled, 5 * MIB / 4);
        let reserved = Arc::new(AtomicBool::new(false));
        let is_reserved = Arc::clone(&reserved);
        let publishes = start(&registry, move |registry| {
            registry.publish("set", of(1, 0)).unwrap();
            if is_reserved.load(Ordering::SeqCst) {
                "the load came last"
            } else {
                "the load came first"
            }
        });
        let reserves = start(&registry, move |registry| {
            let cache = Account::namespace("cache");
            let charge = registry.reserve_in(&cache, MIB).unwrap();
            reserved.store(true, Ordering::SeqCst);
            charge
        });
        let charge = all([reserves]).remove(0);
        let order = all([publishes]).remove(0);
        let now = registry.ledger();
        assert_eq!((now.total(), now.pooled), (2 * MIB, 0));
        assert_eq!(now.peak, now.total());
        saw(order);
        drop(charge);
    });
}

#[test]
fn a_namespace_has_its_seats() {
    let outcomes = ["too many", "both in turn"];
    explore("a_namespace_has_its_seats", &outcomes, || {
        let registry = registry();
        let limits = NamespaceLimits::none().sets(1);
        registry.set_namespace_limits("t", limits).unwrap();
        let publish = |registry: &WeightRegistry, name| {
            let tenant = registry.namespace("t").unwrap();
            match tenant.publish(name, bytes(1)) {
                Ok(set) => {
                    assert!(tenant.stats().sets <= 1, "more sets than seats");
                    tenant.retire(set).unwrap();
                    true
                }
                Err(failed) => match failed.error() {
                    Error::TooManySets { .. } => false,
                    other => panic!("{other}"),
                },
            }
        };
        let other = start(&registry, move |registry| publish(registry, "b"));
        let (mine, other) = (publish(&registry, "a"), other.join().unwrap());
        assert!(mine || other, "nobody got the seat");
        saw(if mine && other {
            "both in turn"
        } else {
            "too many"
        });
        assert_eq!(registry.namespace_stats("t").sets, 0, "a seat was lost");
        empty(&registry);
        let tenant = registry.namespace("t").unwrap();
        tenant.publish("c", bytes(1)).unwrap();
        empty(&registry);
    });
}

#[test]
fn a_namespace_has_its_bytes() {
    explore(
        "a_namespace_has_its_bytes",
        &["assigned", "refused"],
        || {
            let registry = registry();
            let limits = NamespaceLimits::none().bytes(LINE);
            registry.set_namespace_limits("t", limits).unwrap();
            let publish = |registry: &WeightRegistry, name: &'static str| {
                // Staged for nobody: charged to the namespace when it is published there.
                let staged = registry.stage(bytes(1)).unwrap();
                match registry.publish_staged(("t", name), staged) {
                    Ok(_) => true,
                    Err(failed) => match failed.error() {
                        Error::OverAccountLimit { .. } => false,
                        other => panic!("{other}"),
                    },
                }
            };
            let other = start(&registry, move |registry| publish(registry, "b"));
            let mine = publish(&registry, "a");
            assert!(mine != other.join().unwrap(), "one of them fits");
            saw(if mine { "assigned" } else { "refused" });
            let account = registry.account(&Account::namespace("t"));
            assert_eq!((account.total(), account.peak), (LINE, LINE));
            empty(&registry);
            assert_eq!(registry.account(&Account::namespace("t")).total(), 0);
        },
    );
}

/// A source that panics while it is read.
struct Panics(Plan);

impl Source for Panics {
    fn plan(&self) -> &Plan {
        &self.0
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        // Without the panic hook, which would take it for a failure of the schedule.
        resume_unwind(Box::new("the source"));
    }
}

#[test]
fn a_source_that_panics_leaves_nothing() {
    let outcomes = ["over the limit", "there was room"];
    explore("a_source_that_panics_leaves_nothing", &outcomes, || {
        let builder = WeightRegistry::builder().event_capacity(32);
        let registry = Arc::new(builder.limit_bytes(LINE).build().unwrap());
        let other = start(&registry, |registry| {
            let plan = Plan::of("bad", [("w", Dtype::U8, vec![4])]).unwrap();
            let panicked = catch_unwind(AssertUnwindSafe(|| registry.publish("s", Panics(plan))));
            // It may have been refused before it was read.
            assert!(!matches!(panicked, Ok(Ok(_))));
        });
        match registry.publish("t", bytes(1)) {
            Ok(set) => {
                assert_eq!(filled(&registry, set), 1);
                saw("there was room");
            }
            Err(failed) => {
                assert!(
                    matches!(failed.error(), Error::OverLimit { .. }),
                    "{failed}"
                );
                saw("over the limit");
            }
        }
        other.join().unwrap();
        empty(&registry);
        registry.publish("s", bytes(2)).unwrap();
        empty(&registry);
    });
}

#[test]
fn a_set_is_filled_by_several() {
    let outcomes = ["busy", "went on", "sealed too early", "complete"];
    explore("a_set_is_filled_by_several", &outcomes, || {
        let registry = registry();
        let tensors = ["a", "b"].map(|name| (name, Dtype::U8, vec![2]));
        let plan = Plan::of("filled", tensors).unwrap();
        let filling = Arc::new(registry.fill(plan, None).unwrap());
        let writers = [("a", 1), ("a", 1), ("b", 2)].map(|(tensor, fill)| {
            start(&filling, move |filling| {
                // One byte each, until nothing is missing: whoever has the turn goes on where it is.
                loop {
                    match filling.writer(tensor) {
                        Ok(writer) if writer.remaining() == 0 => return,
                        Ok(mut writer) => {
                            if writer.remaining() == 1 {
                                saw("went on");
                            }
                            writer.write(&[fill]).unwrap();
                        }
                        Err(Error::TensorBusy { .. }) => {
                            saw("busy");
                            yield_now();
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        });
        let debug = format!("{filling:?}");
        let complete = debug.contains("complete: Ok");
        saw(if complete {
            "complete"
        } else {
            "sealed too early"
        });
        all(writers);
        let filling = Arc::into_inner(filling).expect("all writers are done");
        let set = registry
            .publish_staged("f", filling.seal().unwrap())
            .unwrap();
        let lease = registry.acquire(set).unwrap();
        let leased = lease.set(set).unwrap();
        assert_eq!(leased.get("a").unwrap().bytes(), [1, 1]);
        assert_eq!(leased.get("b").unwrap().bytes(), [2, 2]);
        drop(lease);
        empty(&registry);
    });
}

#[test]
fn bytes_are_charged_until_the_last_lease() {
    let outcomes = ["charged", "given back"];
    explore("bytes_are_charged_until_the_last_lease", &outcomes, || {
        let registry = registry();
        let set = registry.publish("s", bytes(1)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let clone = lease.clone();
        let one = start(&registry, move |registry| {
            assert_eq!(value(&lease, set), 1);
            assert_eq!(total(registry), LINE, "given back under a lease");
            drop(lease);
        });
        let two = start(&registry, move |registry| {
            assert_eq!(total(registry), LINE, "given back under a lease");
            drop(clone);
            saw(if total(registry) == 0 {
                "given back"
            } else {
                "charged"
            });
        });
        let gone = registry.retire(set).unwrap();
        gone.reclaimed(LONG).unwrap();
        assert_eq!(total(&registry), 0, "reclaimed before it was given back");
        one.join().unwrap();
        two.join().unwrap();
        empty(&registry);
    });
}

#[test]
fn a_tenants_transaction_gets_all_its_seats_or_none() {
    let outcomes = ["both", "refused"];
    let name = "a_tenants_transaction_gets_all_its_seats_or_none";
    explore(name, &outcomes, || {
        let registry = registry();
        let limits = NamespaceLimits::none().sets(2);
        registry.set_namespace_limits("t", limits).unwrap();
        let other = start(&registry, |registry| {
            let tenant = registry.namespace("t").unwrap();
            tenant.publish("c", bytes(1)).is_ok()
        });
        let tenant = registry.namespace("t").unwrap();
        let mut both = tenant.transaction();
        let added = ["a", "b"].iter().all(|name| {
            let staged = both.stage(bytes(2)).unwrap();
            match both.publish(name, staged) {
                Ok(_) => true,
                Err(failed) => match failed.error() {
                    Error::TooManySets { .. } => false,
                    other => panic!("{other}"),
                },
            }
        });
        if added {
            both.commit().unwrap();
        } else {
            drop(both);
        }
        assert!(added != other.join().unwrap(), "one of them has its seats");
        saw(if added { "both" } else { "refused" });
        let there = ["a", "b"].map(|name| tenant.lookup(name).is_some());
        assert_eq!(there, [added; 2]);
        assert_eq!(tenant.stats().sets, if added { 2 } else { 1 });
        empty(&registry);
        assert_eq!(tenant.stats().sets, 0, "a seat was lost");
    });
}

#[test]
fn a_limit_is_raised_while_sets_come() {
    explore("a_limit_is_raised_while_sets_come", &["1", "2"], || {
        let registry = registry();
        let limit = |lines| NamespaceLimits::none().bytes(lines * LINE);
        registry.set_namespace_limits("t", limit(1)).unwrap();
        let other = start(&registry, move |registry| {
            registry.set_namespace_limits("t", limit(2)).unwrap();
            // And down again, below what may be there by now: that stays.
            registry.set_namespace_limits("t", limit(1)).unwrap();
        });
        let tenant = registry.namespace("t").unwrap();
        let came = ["a", "b", "c"]
            .iter()
            .filter(|name| match tenant.publish(name, bytes(1)) {
                Ok(_) => true,
                Err(failed) => match failed.error() {
                    Error::OverAccountLimit { .. } => false,
                    other => panic!("{other}"),
                },
            });
        let came = came.count() as u64;
        other.join().unwrap();
        saw(came.to_string());
        let account = registry.account(&Account::namespace("t"));
        assert_eq!((account.total(), account.peak), (came * LINE, came * LINE));
        assert!(came <= 2, "over every limit that there was");
        let refused = tenant.publish("d", bytes(1)).unwrap_err();
        assert!(matches!(refused.error(), Error::OverAccountLimit { .. }));
        empty(&registry);
    });
}
