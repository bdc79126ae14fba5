//! References counted by hand: counts that drift, unloads that wait for ever, bytes that go too early.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use weighbridge::source::Source;
use weighbridge::{Error, Lease, Plan, SetHandle, WeightRegistry};

use crate::support::{SOON, addition, bytes, registry};
use crate::{first_byte, served};

fn leases(registry: &WeightRegistry, set: SetHandle) -> u64 {
    registry.scope(|scope| scope.get(set).unwrap().leases())
}

/// SGLang #25864, #34205, #29179: a batch of two with four samples each acquires eight times and
/// releases ten; an aborted one never does. Unload then waits for ever.
#[test]
fn every_way_out_of_a_request_releases_once() {
    #[derive(Debug, Clone, Copy)]
    enum Out {
        Returns,
        Fails,
        Panics,
        IsCancelled,
    }
    fn sample(lease: Lease, set: SetHandle, out: Out) -> Result<u8, Error> {
        match out {
            Out::Fails => {
                lease.set(set)?.get("nowhere")?;
                unreachable!("there is no such tensor")
            }
            Out::Panics => panic!("on purpose"),
            Out::Returns | Out::IsCancelled => Ok(first_byte(&lease, set)),
        }
    }
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let held = registry.acquire(set).unwrap();
    let leases = || registry.scope(|scope| scope.get(set).unwrap().leases());
    for out in [Out::Returns, Out::Fails, Out::Panics, Out::IsCancelled] {
        for _ in 0..2 {
            let parent = registry.acquire_as("batch", set).unwrap();
            let samples: Vec<Lease> = (0..4).map(|_| parent.clone()).collect();
            assert_eq!(leases(), 6);
            for lease in samples {
                if let Out::IsCancelled = out {
                    // Dropped without having been polled once.
                    let future = async move { sample(lease, set, out) };
                    drop(future);
                } else {
                    let _ = catch_unwind(AssertUnwindSafe(|| sample(lease, set, out)));
                }
            }
            assert_eq!(leases(), 2, "{out:?}");
            drop(parent);
            assert_eq!(leases(), 1, "{out:?}");
        }
    }
    let going = registry.retire(set).unwrap();
    drop(held);
    going.reclaimed(SOON).unwrap();
}

/// SGLang #36894, oMLX #3363: one adapter that cannot be unloaded, and nothing else is served again.
#[test]
fn a_set_that_never_drains_is_in_nobodys_way() {
    let registry = registry();
    let stuck = registry.publish("stuck", bytes(64, 1)).unwrap();
    let lost = registry.acquire_as("a request that hangs", stuck).unwrap();
    let going = registry.retire(stuck).unwrap();
    assert!(going.drained(Duration::ZERO).unwrap_err().is_timeout());
    // Somebody waits for it all the while.
    thread::scope(|scope| {
        scope.spawn(|| going.drained(SOON).unwrap());
        for fill in 0..50 {
            // The very same name, too.
            for name in ["stuck", "other"] {
                let set = registry.publish(name, bytes(64, fill)).unwrap();
                assert_eq!(first_byte(&registry.acquire(set).unwrap(), set), fill);
                registry.retire(set).unwrap().reclaimed(SOON).unwrap();
            }
        }
        assert_eq!(first_byte(&lost, stuck), 1);
        drop(lost);
    });
    going.reclaimed(SOON).unwrap();
}

/// SGLang PR #31808: in reinforcement learning the counters drift "by hundreds per adapter per rollout", and
/// an unload takes 130 s where it should take 0.03.
#[test]
fn counts_do_not_drift_however_many_rollouts_there_are() {
    const THREADS: usize = 4;
    let registry = registry();
    let set = registry.publish("policy", bytes(64, 1)).unwrap();
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (registry, start) = (&registry, &start);
            scope.spawn(move || {
                start.wait();
                for rollout in 0..2000 {
                    let parent = registry.acquire(set).unwrap();
                    let samples: Vec<Lease> = (0..rollout % 5).map(|_| parent.clone()).collect();
                    if (rollout + thread) % 2 == 0 {
                        drop(parent);
                        drop(samples);
                    } else {
                        drop((samples, parent));
                    }
                }
            });
        }
    });
    assert_eq!(leases(&registry, set), 0);
    let going = registry.retire(set).unwrap();
    assert!(
        going.is_drained(),
        "nobody has it, and an unload would wait"
    );
    going.reclaimed(SOON).unwrap();
}

/// SGLang PR #33300: parent, child and warm-up requests all observe one lease, and it is released by a task
/// that may be collected before it has run.
#[test]
fn a_lease_that_is_shared_ends_with_the_last_of_its_users_wherever_that_is() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let parent = registry.acquire_as("parent", set).unwrap();
    let child = parent.clone();
    let warm_up = std::sync::Arc::new(parent.clone());
    drop(parent);
    let going = registry.retire(set).unwrap();
    assert_eq!(going.leases(), 2);
    // The task that was to release it never runs: it is dropped with what it holds.
    drop(async move { drop(child) });
    let observer = std::sync::Arc::clone(&warm_up);
    drop(warm_up);
    assert_eq!(
        (going.leases(), going.holders()[0].label.as_str()),
        (1, "parent")
    );
    thread::spawn(move || assert_eq!(first_byte(&observer, set), 1))
        .join()
        .unwrap();
    going.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

/// SGLang PR #9084: a counter is deleted while somebody still counts on it; the next user of its name has
/// another one.
#[test]
fn a_late_release_does_not_count_for_the_next_set_of_that_name() {
    let registry = registry();
    let old = registry.publish("a", bytes(64, 1)).unwrap();
    let late = registry.acquire(old).unwrap();
    let going = registry.retire(old).unwrap();
    let new = registry.publish("a", bytes(64, 2)).unwrap();
    let lease = registry.acquire(new).unwrap();
    assert_eq!((going.leases(), leases(&registry, new)), (1, 1));
    drop(late);
    assert_eq!((going.leases(), leases(&registry, new)), (0, 1));
    going.reclaimed(SOON).unwrap();
    assert_eq!(first_byte(&lease, new), 2);
}

/// SGLang PR #33299: an adapter is looked up, then its count goes up; an unload slips between the two.
#[test]
fn nothing_slips_between_a_look_up_and_its_lease() {
    let registry = registry();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let Some(set) = registry.lookup("a") else {
                        continue;
                    };
                    match registry.acquire(set) {
                        // What is leased is whole, and stays, whatever becomes of the name.
                        Ok(lease) => {
                            let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
                            assert!(bytes.iter().all(|byte| *byte == bytes[0] && *byte != 0));
                        }
                        Err(error) => {
                            assert!(matches!(error, Error::StaleHandle { .. }), "{error}")
                        }
                    }
                }
            });
        }
        for round in 0..1000 {
            let set = registry
                .publish("a", bytes(256, 1 + (round % 200) as u8))
                .unwrap();
            registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.ledger().total(), 0);
}

/// TensorRT-LLM #18407: a suspended request keeps its adapter active, so the cache of one adapter is stuck;
/// when it goes on it has no way to get its adapter again.
#[test]
fn a_suspended_request_can_let_go_and_knows_what_it_gets_when_it_goes_on() {
    let registry = WeightRegistry::builder().limit_bytes(64).build().unwrap();
    let a = registry.publish("a", bytes(64, 1)).unwrap();
    let running = registry.acquire(a).unwrap();
    let (number, key) = (running.set(a).unwrap().generation(), running.cache_key());
    drop(running); // Suspended.
    registry.retire(a).unwrap().reclaimed(SOON).unwrap();
    let b = registry.publish("b", bytes(64, 2)).unwrap();
    registry.retire(b).unwrap().reclaimed(SOON).unwrap();
    // Its handle says that it is not the same any more; its contents say that they are.
    assert!(matches!(
        registry.acquire(a),
        Err(Error::StaleHandle { .. })
    ));
    let again = registry.publish("a", bytes(64, 1)).unwrap();
    let resumed = registry.acquire(again).unwrap();
    assert!(resumed.set(again).unwrap().generation() > number);
    assert_eq!(resumed.cache_key(), key);
}

/// Triton #3583: client A unloads a model between B's load and B's call. Asked for: a store where "I can
/// unload a model only if ref count is 0".
#[test]
fn one_clients_unload_does_not_take_a_model_from_under_another() {
    let registry = registry();
    let set = registry.publish("x", bytes(64, 1)).unwrap();
    let b = registry.acquire_as("client b", set).unwrap();
    // A can see that it is in use, and by whom; and if A does not care, B has it all the same.
    assert_eq!(leases(&registry, set), 1);
    assert_eq!(registry.stats().oldest_lease.unwrap().label, "client b");
    let going = registry.retire(set).unwrap();
    assert_eq!(first_byte(&b, set), 1);
    drop(b);
    going.reclaimed(SOON).unwrap();
}

/// TRL PR #7017: the trainer unloads version v-k while long rollouts still name it.
#[test]
fn long_rollouts_keep_the_version_that_they_began_with() {
    let registry = registry();
    let set = registry.publish("policy", bytes(64, 0)).unwrap();
    let mut rollouts = Vec::new();
    for version in 1..=20 {
        if version % 4 == 0 {
            rollouts.push((registry.acquire(set).unwrap(), version - 1));
        }
        registry.replace(set, bytes(64, version)).unwrap();
    }
    let numbers: Vec<_> = rollouts
        .iter()
        .map(|(lease, _)| lease.set(set).unwrap().generation())
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
    for (lease, version) in &rollouts {
        assert_eq!(first_byte(lease, set), *version);
    }
    assert_eq!(served(&registry, set), 20);
    // What is held is what is charged, and it goes with each of them.
    while let Some(rollout) = rollouts.pop() {
        drop(rollout);
        for going in registry.retired().iter().filter(|going| going.is_drained()) {
            going.reclaimed(SOON).unwrap();
        }
        assert_eq!(registry.ledger().retired, 64 * rollouts.len() as u64);
    }
}

/// llama.cpp PR #25611: an adapter that fails to load is freed, and used.
#[test]
fn an_adapter_that_fails_to_load_takes_nothing_of_its_base_along() {
    struct Fails<'l>(weighbridge::source::InMemory, &'l Lease);
    impl Source for Fails<'_> {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn base(&self) -> Option<SetHandle> {
            Source::base(&self.0)
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            // The base serves while it is read, half of it.
            arena.fill(0xEE);
            assert!(
                self.1
                    .sets()
                    .all(|set| set.iter().all(|weight| weight.is_ok()))
            );
            Err(Error::MissingShard {
                file: "made up".into(),
            })
        }
    }
    let registry = registry();
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    let good = registry.publish("good", addition(64, 2, base)).unwrap();
    let running = registry.acquire([base, good]).unwrap();
    for _ in 0..10 {
        let bad = || Fails(addition(64, 9, base), &running);
        assert!(
            registry
                .publish("bad", bad())
                .unwrap_err()
                .error()
                .is_malformed()
        );
        assert!(
            registry
                .replace(good, bad())
                .unwrap_err()
                .error()
                .is_malformed()
        );
        assert_eq!(first_byte(&running, base), 1);
        let more = running.set(good).unwrap().iter().next().unwrap();
        assert_eq!(more.unwrap().bytes(), [2; 64]);
    }
    assert_eq!(registry.ledger().total(), 128);
    drop(running);
    registry.retire_cascade(base).unwrap();
}
