//! Replacing a set whose two generations do not fit into memory together.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{SOON, adapter, bytes, fixture, tiny};
use weighbridge::source::{Checkpoint, InMemory, Source};
use weighbridge::{Dtype, Error, Plan, SetHandle, WeightRegistry};

fn limited(bytes: u64) -> WeightRegistry {
    WeightRegistry::builder()
        .limit_bytes(bytes)
        .build()
        .unwrap()
}

fn fill(registry: &WeightRegistry, set: SetHandle) -> u8 {
    let lease = registry.acquire(set).unwrap();
    lease.set(set).unwrap().get("w").unwrap().bytes()[0]
}

#[test]
fn the_old_memory_goes_to_the_new_generation() {
    for (old, new) in [
        (64 << 10, 64 << 10),
        (64 << 10, 32 << 10),
        (32 << 10, 64 << 10),
    ] {
        let registry = limited(80 << 10);
        let set = registry.publish("s", bytes(old, 1)).unwrap();
        let swap = registry.replace_drained(set, bytes(new, 2), SOON).unwrap();
        assert_eq!(fill(&registry, set), 2);
        assert!(swap.previous.is_reclaimed());
        assert_eq!(registry.stats().reclaimed_bytes, old as u64);
        let now = registry.ledger();
        assert_eq!((now.resident, now.total()), (new as u64, new as u64));
        assert!(now.peak <= 80 << 10);
        let lease = registry.acquire(set).unwrap();
        assert_eq!(lease.set(set).unwrap().generation(), swap.generation);
    }
}

#[test]
fn where_both_fit_nobody_notices() {
    let registry = limited(1 << 20);
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let swap = registry
        .replace_drained(set, bytes(64, 2), Duration::ZERO)
        .unwrap();
    assert_eq!(swap.previous.leases(), 1, "it did not wait");
    assert_eq!(fill(&registry, set), 2);
    drop(lease);
}

#[test]
fn somebody_who_keeps_the_old_one_gets_it_back_in_place() {
    let registry = limited(96);
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    let lease = registry.acquire_as("request-42", set).unwrap();
    let refused = registry
        .replace_drained(set, bytes(64, 2), Duration::ZERO)
        .unwrap_err();
    assert!(
        matches!(refused.error(), Error::NotDrained(_))
            && refused.to_string().contains("request-42"),
        "{refused}"
    );
    let again = registry.acquire(set).unwrap();
    assert_eq!(again.weight(w).unwrap().bytes(), [1; 64]);
    assert_eq!(
        again.weight(w).unwrap().bytes().as_ptr(),
        lease.weight(w).unwrap().bytes().as_ptr()
    );
    assert!(again.number() > lease.number());
    let now = registry.ledger();
    assert_eq!((now.resident, now.total()), (64, 64));
    drop((lease, again));
    registry.replace_drained(set, bytes(64, 2), SOON).unwrap();
    assert_eq!(fill(&registry, set), 2);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn what_can_never_fit_is_refused_before_anything_happens() {
    let registry = limited(128);
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    let other = registry.publish("other", bytes(64, 1)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let refused = registry
        .replace_drained(set, bytes(65, 2), SOON)
        .unwrap_err();
    assert!(refused.error().is_out_of_memory(), "{refused}");
    let again = registry.acquire(set).unwrap();
    assert_eq!(
        again.set(set).unwrap().generation(),
        lease.set(set).unwrap().generation()
    );
    registry.retire(other).unwrap();
}

/// While its place is empty the set says so, and nothing else: it keeps its name, its handle, its
/// tensors, and its adapters.
#[test]
fn a_vacated_set_is_not_resident_and_says_so() {
    struct Look<'r, S>(&'r WeightRegistry, SetHandle, S, &'r AtomicBool);
    impl<S: Source> Source for Look<'_, S> {
        fn plan(&self) -> &Plan {
            self.2.plan()
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            let Look(registry, set, source, looked) = self;
            let refused = registry.acquire(*set).unwrap_err();
            assert!(matches!(refused, Error::NotResident { .. }), "{refused}");
            assert_eq!(registry.lookup("base"), Some(*set));
            let catalog = registry.catalog();
            let entry = catalog.get("base").unwrap();
            assert_eq!(
                (entry.handle, entry.bytes, entry.resident),
                (*set, 0, false)
            );
            assert!(registry.weight_handle(*set, "model.norm.weight").is_ok());
            assert!(matches!(
                registry.retire(*set),
                Err(Error::Dependants { .. })
            ));
            looked.store(true, Ordering::Relaxed);
            source.read_into(arena)
        }
    }
    let plan = tiny().plan().charged_bytes();
    let registry = limited(plan + plan / 2);
    let base = registry.publish("base", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let before = registry.ledger().total();
    let looked = AtomicBool::new(false);
    let next = Checkpoint::open(fixture("tiny-llama-sharded")).unwrap();
    registry
        .replace_drained(base, Look(&registry, base, next, &looked), SOON)
        .unwrap();
    assert!(looked.into_inner());
    assert_eq!(registry.ledger().total(), before);
    assert!(registry.ledger().peak <= plan + plan / 2);
    let lease = registry.acquire([base, pirate]).unwrap();
    assert!(lease.set(base).unwrap().get("model.norm.weight").is_ok());
    drop(lease);
    for one in registry.retire_cascade(base).unwrap() {
        one.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), 0);
}

/// The source breaks when the old bytes are gone already: the set has none, and can be given some.
#[test]
fn a_source_that_breaks_leaves_the_set_without_bytes() {
    struct Broken(Plan);
    impl Source for Broken {
        fn plan(&self) -> &Plan {
            &self.0
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::InvalidTensor {
                tensor: "w".to_owned(),
                reason: "broken on purpose".to_owned(),
            })
        }
    }
    let registry = limited(96);
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    let broken = Broken(Plan::of("broken", [("w", Dtype::U8, vec![64])]).unwrap());
    let failed = registry.replace_drained(set, broken, SOON).unwrap_err();
    let Error::Emptied { set: empty, cause } = failed.error() else {
        panic!("{failed}")
    };
    assert_eq!(empty.to_string(), "s");
    assert!(cause.is_malformed() && failed.error().is_malformed());
    let text = failed.to_string();
    assert!(
        text.contains("on purpose") && text.contains("s has given up"),
        "{text}"
    );
    assert!(!registry.catalog().get("s").unwrap().resident);
    assert!(!registry.scope(|scope| scope.get(set).unwrap().is_resident()));
    assert_eq!(registry.ledger().total(), 0);
    assert!(matches!(
        registry.acquire(set),
        Err(Error::NotResident { .. })
    ));
    assert!(matches!(
        registry
            .replace_drained(set, bytes(100, 2), SOON)
            .unwrap_err()
            .error(),
        Error::OverLimit { .. }
    ));
    registry.replace(set, bytes(64, 3)).unwrap();
    assert_eq!(fill(&registry, set), 3);
    assert!(registry.catalog().get("s").unwrap().resident);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

/// An adapter that does not fit the next base stops the swap while the old one is still there.
#[test]
fn adapters_are_looked_at_before_the_set_is_vacated() {
    let plan = tiny().plan().charged_bytes();
    let registry = limited(plan + plan / 2);
    let base = registry.publish("base", tiny()).unwrap();
    registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let next = bytes(plan as usize, 1);
    let refused = registry.replace_drained(base, next, SOON).unwrap_err();
    assert!(
        matches!(refused.error(), Error::AdapterMismatch { .. }),
        "{refused}"
    );
    registry.acquire(base).unwrap();
}

/// Kept generations of the set itself do not stand in the way of the swap's own accounts.
#[test]
fn it_goes_together_with_keeping() {
    let registry = limited(64 * 3 + 32);
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    registry.keep_previous(set, 1).unwrap();
    registry.replace(set, bytes(64, 2)).unwrap(); // keeps 1
    let other = registry.publish("other", bytes(64, 1)).unwrap();
    registry.replace_drained(set, bytes(64, 3), SOON).unwrap(); // 2 is gone, 1 is kept
    assert_eq!(fill(&registry, set), 3);
    registry.rollback(set).unwrap();
    assert_eq!(fill(&registry, set), 1);
    registry.retire(other).unwrap();
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
}

/// Requests come and go, other loads want the memory: it always goes to the swap, the limit always
/// holds, and a request sees one generation or is told that there is none right now.
#[test]
fn under_load_the_limit_holds_and_nothing_is_mixed() {
    let registry = limited(3 * 4096 - 64);
    let set = registry.publish("s", bytes(4096, 0)).unwrap();
    let _other = registry.publish("other", bytes(4096, 9)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    match registry.acquire(set) {
                        Ok(lease) => {
                            let set = lease.set(set).unwrap();
                            let seen = set.get("w").unwrap().bytes();
                            assert!(seen.iter().all(|&byte| byte == seen[0]), "mixed");
                        }
                        Err(refused) => {
                            assert!(matches!(refused, Error::NotResident { .. }), "{refused}");
                            std::thread::yield_now();
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            // A thief: takes whatever is free.
            while !done.load(Ordering::Relaxed) {
                drop(registry.stage(bytes(2048, 7)));
            }
        });
        for version in 1..=40 {
            let next = InMemory::new()
                .tensor("w", Dtype::U8, [4096], vec![version; 4096])
                .unwrap();
            registry.replace_drained(set, next, SOON).unwrap();
            assert_eq!(fill(&registry, set), version);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(registry.ledger().peak < 3 * 4096);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 4096);
}

/// A source that does something while its set's place is empty.
struct Meanwhile<S, F>(S, F);

impl<S: Source, F: Fn()> Source for Meanwhile<S, F> {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }
    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        (self.1)();
        self.0.read_into(arena)
    }
    fn base(&self) -> Option<SetHandle> {
        self.0.base()
    }
}

/// A base is replaced while the place of its adapter is empty: the adapter moves along as it is, and
/// its next generation stands on the new base.
#[test]
fn an_empty_place_moves_along_with_its_base() {
    let registry = limited(64 << 20);
    let base = registry.publish("base", tiny()).unwrap();
    let tenant = registry.namespace("t").unwrap();
    let pirate = tenant
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let full = registry.namespace_stats("t").bytes.total();
    let limits = weighbridge::NamespaceLimits::none().bytes(full);
    registry.set_namespace_limits("t", limits).unwrap();
    let next = Meanwhile(adapter("pirate-v2", base), || {
        assert!(registry.acquire(pirate).is_err(), "its place is empty");
        let mut both = registry.transaction();
        let staged = registry.stage(tiny()).unwrap();
        both.replace(base, staged).unwrap();
        assert_eq!(both.rebind_adapters(base).unwrap(), 1);
        both.commit().unwrap();
        assert!(registry.acquire(pirate).is_err(), "it is still empty");
    });
    registry.replace_drained(pirate, next, SOON).unwrap();
    registry.acquire([base, pirate]).unwrap();
    assert_eq!(registry.namespace_stats("t").bytes.total(), full);
    for one in registry.retire_cascade(base).unwrap() {
        one.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), 0);
}

/// The same for an alias: whoever replaces its target is not held up by a place that is empty.
#[test]
fn an_empty_place_holds_nobody_up() {
    let registry = limited(1 << 20);
    let owner = registry.publish("owner", bytes(64, 1)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let user = || bytes(64, 7).alias("head", w).unwrap();
    let set = registry.publish(("t", "user"), user()).unwrap();
    let full = registry.namespace_stats("t").bytes.total();
    let limits = weighbridge::NamespaceLimits::none().bytes(full);
    registry.set_namespace_limits("t", limits).unwrap();
    let next = Meanwhile(user(), || {
        registry.replace(owner, bytes(64, 2)).unwrap();
    });
    registry.replace_drained(set, next, SOON).unwrap();
    let lease = registry.acquire([owner, set]).unwrap();
    let head = lease.set(set).unwrap().get("head").unwrap();
    assert_eq!(head.bytes(), [2; 64]);
}

/// Somebody else fills the empty place: the swap says so, and returns what it staged.
#[test]
fn an_empty_place_that_somebody_else_fills() {
    let registry = limited(200);
    let set = registry.publish("s", bytes(128, 1)).unwrap();
    let next = Meanwhile(bytes(128, 2), || {
        registry.replace(set, bytes(64, 3)).unwrap();
    });
    let failed = registry.replace_drained(set, next, SOON).unwrap_err();
    assert!(matches!(failed.error(), Error::Conflict { .. }), "{failed}");
    assert!(failed.into_staged().is_some());
    assert_eq!(fill(&registry, set), 3);
    assert_eq!(registry.ledger().total(), 64);
}

/// An adapter that comes while the place is empty, on what the set was: the next generation does not
/// fit it any more, and the set stays without bytes, which the error says. What was staged comes back.
#[test]
fn an_adapter_that_comes_meanwhile_may_leave_it_empty() {
    let base = |n: usize| {
        let up = InMemory::new().tensor("up.weight", Dtype::F32, [n, n], vec![0; 4 * n * n]);
        up.unwrap()
    };
    let registry = limited(64 * 64 * 6);
    let set = registry.publish("base", base(64)).unwrap();
    let next = Meanwhile(base(60), || {
        let (a, b) = (([1, 64], [0; 256]), ([64, 1], [0; 256]));
        let lora = InMemory::new().lora("up", Dtype::F32, a, b, 1.0).unwrap();
        registry.publish("adapter", lora.on(set)).unwrap();
    });
    let failed = registry.replace_drained(set, next, SOON).unwrap_err();
    let Error::Emptied { cause, .. } = failed.error() else {
        panic!("{failed}")
    };
    assert!(matches!(**cause, Error::AdapterMismatch { .. }), "{failed}");
    assert!(failed.into_staged().is_some());
    registry.replace_drained(set, base(64), SOON).unwrap();
    assert!(registry.acquire(set).is_ok());
}

/// Both sides of a refusal are about the whole generation, not about what is missing.
#[test]
fn what_can_never_fit_is_told_in_whole_generations() {
    let registry = limited(100);
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    let refused = registry
        .replace_drained(set, bytes(128, 2), SOON)
        .unwrap_err();
    let Error::OverLimit {
        requested,
        in_use,
        limit,
    } = *refused.error()
    else {
        panic!("{refused}")
    };
    assert_eq!((requested, in_use, limit), (128, 0, 100));
}
