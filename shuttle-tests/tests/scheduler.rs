//! `weighbridge-scheduler`: nobody sleeps through what he waits for, nobody is let in beyond a limit, and every payload
//! comes out once.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weighbridge::source::Evictable;
use weighbridge::{SetHandle, WeightRegistry};
use weighbridge_scheduler::{Limits, Scheduler, Turn, Why};
use weighbridge_shuttle_tests::{
    LINE, LONG, adapter, all, bytes, empty, explore, registry, saw, spawn, start, value, yield_now,
};

fn scheduler(registry: &Arc<WeightRegistry>, limits: Limits) -> Arc<Scheduler<u8>> {
    Arc::new(Scheduler::new(Arc::clone(registry), limits).unwrap())
}

/// What an engine does until somebody joins, or a load fails. Sleeping through either is a deadlock.
fn next(scheduler: &Scheduler<u8>) -> Vec<Turn<u8>> {
    loop {
        let round = scheduler.schedule();
        assert!(round.failed.is_empty(), "{:?}", round.failed[0].error);
        if !round.joined.is_empty() {
            return round.joined;
        }
        assert!(scheduler.wait(LONG), "nothing is as late as this");
    }
}

#[test]
fn who_is_admitted_wakes_the_engine() {
    let outcomes = ["before it slept", "while it slept"];
    explore("who_is_admitted_wakes_the_engine", &outcomes, || {
        let registry = registry();
        let base = registry.publish("base", bytes(1)).unwrap();
        let scheduler = scheduler(&registry, Limits::default());
        let slept = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&slept);
        let asks = start(&scheduler, move |scheduler| {
            saw(if seen.load(Ordering::SeqCst) {
                "while it slept"
            } else {
                "before it slept"
            });
            scheduler.admit(base, None, "one", 1).unwrap();
        });
        if scheduler.schedule().joined.is_empty() {
            slept.store(true, Ordering::SeqCst);
            assert!(scheduler.wait(LONG));
            assert_eq!(next(&scheduler)[0].payload, 1);
        }
        asks.join().unwrap();
        drop(scheduler);
        empty(&registry);
    });
}

#[test]
fn a_place_that_is_free_wakes_the_engine() {
    explore(
        "a_place_that_is_free_wakes_the_engine",
        &["together"],
        || {
            let registry = registry();
            let base = registry.publish("base", bytes(1)).unwrap();
            let scheduler = scheduler(&registry, Limits::default().running(1));
            for payload in [1, 2] {
                scheduler.admit(base, None, "one", payload).unwrap();
            }
            let first = next(&scheduler).pop().unwrap();
            assert_eq!(first.payload, 1);
            let ends = spawn(move || drop(first));
            let second = next(&scheduler);
            assert_eq!((second.len(), second[0].payload), (1, 2));
            saw("together");
            drop(second);
            ends.join().unwrap();
            assert_eq!(scheduler.running(), 0);
            drop(scheduler);
            empty(&registry);
        },
    );
}

#[test]
fn no_more_wait_than_may() {
    let outcomes = ["refused", "joined between"];
    explore("no_more_wait_than_may", &outcomes, || {
        let registry = registry();
        let base = registry.publish("base", bytes(1)).unwrap();
        let scheduler = scheduler(&registry, Limits::default().waiting(1));
        let asking = [1, 2, 3].map(|payload| {
            start(&scheduler, move |scheduler| {
                let admitted = scheduler.admit(base, None, "one", payload);
                let waiting = scheduler.waiting();
                assert!(waiting <= 1, "{waiting} wait where 1 may");
                match admitted {
                    Ok(_) => 1,
                    Err(refused) => {
                        assert_eq!(refused.payload, payload);
                        assert!(matches!(refused.why, Why::Full { waiting: 1 }));
                        0
                    }
                }
            })
        });
        let joined = scheduler.schedule().joined.len();
        let admitted: usize = all(asking).into_iter().sum();
        let left = scheduler.schedule().joined.len();
        assert_eq!(joined + left, admitted);
        saw(match (admitted, joined) {
            (1, _) => "refused",
            _ => "joined between",
        });
        drop(scheduler);
        empty(&registry);
    });
}

/// A base that is away, and comes back slowly.
fn away(registry: &WeightRegistry) -> SetHandle {
    let open = || {
        // Where others may come between.
        yield_now();
        Ok(bytes(7))
    };
    let set = registry
        .publish("base", Evictable::opened_by(open).unwrap())
        .unwrap();
    registry.evict(set).unwrap();
    set
}

#[test]
fn weights_that_come_wake_the_engine() {
    let outcomes = ["it was loaded", "somebody else had loaded it"];
    explore("weights_that_come_wake_the_engine", &outcomes, || {
        let builder = WeightRegistry::builder().event_capacity(32).loaders(1);
        let registry = Arc::new(builder.build().unwrap());
        let base = away(&registry);
        let scheduler = scheduler(&registry, Limits::default());
        let other = start(&registry, move |registry| drop(registry.load(base)));
        scheduler.admit(base, None, "one", 1).unwrap();
        let turn = next(&scheduler).pop().unwrap();
        assert_eq!(value(&turn.lease, base), 7);
        saw(if scheduler.stats().loads == 1 {
            "it was loaded"
        } else {
            "somebody else had loaded it"
        });
        other.join().unwrap();
        drop((turn, scheduler));
        empty(&registry);
    });
}

/// There is room for one of two that are away: each has its turn, although each is wanted while the other is there.
#[test]
fn what_is_in_the_way_goes() {
    explore("what_is_in_the_way_goes", &["both"], || {
        let builder = WeightRegistry::builder().event_capacity(32).loaders(1);
        let builder = builder.load_backoff(Duration::ZERO, Duration::ZERO);
        let registry = Arc::new(builder.limit_bytes(LINE).build().unwrap());
        let publish = |name: &str, fill| {
            let open = Evictable::opened_by(move || Ok(bytes(fill))).unwrap();
            let set = registry.publish(name, open).unwrap();
            registry.evict(set).unwrap();
            set
        };
        let sets = [publish("a", 0), publish("b", 1)];
        let scheduler = scheduler(&registry, Limits::default().patience(1));
        let asking = [0, 1].map(|own: u8| {
            let set = sets[usize::from(own)];
            start(&scheduler, move |scheduler| {
                for _ in 0..2 {
                    scheduler.admit(set, None, "one", own).unwrap();
                }
            })
        });
        let mut served = 0;
        while served < 4 {
            for turn in next(&scheduler) {
                let set = sets[usize::from(turn.payload)];
                assert_eq!(value(&turn.lease, set), turn.payload);
                served += 1;
            }
        }
        saw("both");
        all(asking);
        drop(scheduler);
        empty(&registry);
    });
}

#[test]
fn a_payload_comes_out_once() {
    let outcomes = ["joined", "cancelled", "closed"];
    explore("a_payload_comes_out_once", &outcomes, || {
        let registry = registry();
        let base = registry.publish("base", bytes(1)).unwrap();
        let scheduler = scheduler(&registry, Limits::default());
        let ticket = scheduler.admit(base, None, "one", 1).unwrap();
        let cancels = start(&scheduler, move |scheduler| scheduler.cancel(ticket));
        let closes = start(&scheduler, |scheduler| scheduler.close());
        let joined = scheduler.schedule().joined;
        let cancelled = cancels.join().unwrap();
        let closed = closes.join().unwrap();
        let out = [
            ("joined", joined.len()),
            ("cancelled", usize::from(cancelled.is_some())),
            ("closed", closed.len()),
        ];
        assert_eq!(out.iter().map(|(_, times)| times).sum::<usize>(), 1);
        saw(out.iter().find(|(_, times)| *times == 1).unwrap().0);
        drop((joined, scheduler));
        empty(&registry);
    });
}

/// Whoever is admitted while it closes is told, or was there in time to be given back.
#[test]
fn nobody_is_left_in_one_that_is_closed() {
    let outcomes = ["in time", "too late"];
    explore("nobody_is_left_in_one_that_is_closed", &outcomes, || {
        let registry = registry();
        let base = registry.publish("base", bytes(1)).unwrap();
        let scheduler = scheduler(&registry, Limits::default());
        let asks = start(&scheduler, move |scheduler| {
            scheduler.admit(base, None, "one", 1)
        });
        let given = scheduler.close().len();
        match asks.join().unwrap() {
            Ok(_) => {
                assert_eq!(given, 1);
                saw("in time");
            }
            Err(refused) => {
                assert!(matches!(refused.why, Why::Closed));
                assert_eq!(given, 0);
                saw("too late");
            }
        }
        assert_eq!(scheduler.waiting(), 0);
        drop(scheduler);
        empty(&registry);
    });
}

/// What a request is grouped by is what its lease has, whatever is replaced meanwhile.
#[test]
fn a_group_is_of_one_generation() {
    let outcomes = ["of one", "of two"];
    explore("a_group_is_of_one_generation", &outcomes, || {
        let registry = registry();
        let base = registry.publish("base", bytes(1)).unwrap();
        let set = registry.publish("lora", adapter(base, 2)).unwrap();
        let scheduler = scheduler(&registry, Limits::default());
        let swaps = start(&registry, move |registry| {
            drop(registry.replace(set, adapter(base, 3)).unwrap());
        });
        for payload in [1, 2] {
            scheduler.admit(base, Some(set), "one", payload).unwrap();
        }
        let turns = next(&scheduler);
        swaps.join().unwrap();
        assert_eq!(turns.len(), 2);
        let mut generations = Vec::new();
        for turn in &turns {
            let leased = turn.lease.set(set).unwrap();
            assert_eq!(turn.place.adapter(), Some((set, leased.generation())));
            generations.push((leased.generation(), value(&turn.lease, set)));
        }
        generations.dedup();
        assert!(generations.is_sorted(), "newer is answered by older");
        saw(match generations.as_slice() {
            [_] => "of one",
            _ => "of two",
        });
        drop((turns, scheduler));
        empty(&registry);
    });
}
