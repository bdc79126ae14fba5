//! Memory: estimates, limits, gauges, and what does not come back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use weighbridge::flat::{FlatRegistry, Registered};
use weighbridge::source::{Checkpoint, InMemory, Source};
use weighbridge::{Account, Dtype, Error, NamespaceLimits, Plan, SetHandle, WeightRegistry};

use crate::served;
use crate::support::{SOON, bytes, fixture, registry, tiny};

/// A source that is in the middle of its load while others ask for room.
struct Slow<'b> {
    set: InMemory,
    loading: &'b AtomicUsize,
    most: &'b AtomicUsize,
    meet: &'b Barrier,
}

impl Source for Slow<'_> {
    fn plan(&self) -> &Plan {
        self.set.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        let now = self.loading.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.meet.wait();
        self.loading.fetch_sub(1, Ordering::SeqCst);
        self.set.read_into(arena)
    }
}

/// mlx-serve #40: two loads in flight each see the total without the other: 74 GB in a budget of 62.
#[test]
fn loads_in_flight_are_counted() {
    const FIT: usize = 3;
    const ASK: usize = 8;
    let registry = WeightRegistry::builder()
        .limit_bytes(4096 * FIT as u64 + 64)
        .build()
        .unwrap();
    let (loading, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Those that fit wait within their loads until all others have been refused.
    let meet = Barrier::new(ASK);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..ASK {
            let (registry, loading, most) = (&registry, &loading, &most);
            let (meet, refused) = (&meet, &refused);
            scope.spawn(move || {
                let source = Slow {
                    set: bytes(4096, number as u8),
                    loading,
                    most,
                    meet,
                };
                if let Err(failed) = registry.publish(format!("set-{number}"), source) {
                    assert!(failed.error().is_out_of_memory(), "{failed}");
                    refused.fetch_add(1, Ordering::SeqCst);
                    meet.wait();
                }
            });
        }
    });
    assert_eq!(refused.load(Ordering::SeqCst), ASK - FIT);
    assert_eq!(most.load(Ordering::SeqCst), FIT);
    assert_eq!(registry.ledger().peak, 4096 * FIT as u64);
    assert_eq!(
        (registry.ledger().resident, registry.stats().sets),
        (4096 * FIT as u64, FIT)
    );
}

/// mlx-serve #126, tensorrtllm_backend #559: nobody can tell before a load what it will take, or the
/// estimate counts every file of the directory.
#[test]
fn what_a_load_takes_is_known_before_it_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        let from = fixture("tiny-llama").join(file);
        std::fs::copy(from, dir.path().join(file)).unwrap();
    }
    // Files that a model's directory has beside its weights.
    let from = fixture("tiny-llama/model.safetensors");
    std::fs::copy(&from, dir.path().join("consolidated.safetensors")).unwrap();
    let registry = registry();
    let source = Checkpoint::open(dir.path()).unwrap();
    let promised = source.plan().charged_bytes();
    assert_eq!(promised, tiny().plan().charged_bytes());
    registry.publish("a", source).unwrap();
    assert_eq!(registry.ledger().resident, promised);
    assert_eq!(registry.ledger().peak, promised, "staging took more");
    // It is enough, and one byte less is not.
    for (limit, fits) in [(promised, true), (promised - 1, false)] {
        let registry = WeightRegistry::builder()
            .limit_bytes(limit)
            .build()
            .unwrap();
        assert_eq!(registry.publish("a", tiny()).is_ok(), fits);
    }
}

/// oMLX #1774: a pair of models of 27 GB grows to 116; "freed=-51.56 GB"; the same model is there four times.
#[test]
fn what_is_freed_is_what_was_charged_and_nothing_is_there_twice() {
    let registry = registry();
    let pair = [("a", 1000), ("b", 3000)];
    for round in 0..10 {
        let sets = pair.map(|(name, len)| registry.publish(name, bytes(len, round)).unwrap());
        let charged = pair.map(|(_, len)| (len as u64).next_multiple_of(64));
        for (name, _) in pair {
            for _ in 0..3 {
                assert!(registry.publish(name, bytes(4000, 9)).is_err());
            }
        }
        for (set, charged) in sets.into_iter().zip(charged) {
            let (before, freed) = (registry.ledger().total(), registry.stats().reclaimed_bytes);
            let going = registry.retire(set).unwrap();
            going.reclaimed(SOON).unwrap();
            assert_eq!(going.bytes(), charged);
            assert_eq!(before - registry.ledger().total(), charged);
            assert_eq!(registry.stats().reclaimed_bytes - freed, charged);
        }
        assert_eq!(registry.ledger().total(), 0);
    }
    assert_eq!(registry.ledger().peak, 1024 + 3008);
}

/// oMLX #1623: the gate looks at what the process has in memory just now (28 GB), not at what it promised to
/// its models (57 GB).
#[test]
fn memory_that_nobody_has_touched_yet_is_taken_all_the_same() {
    const HALF: usize = 32 << 20;
    let limit = 2 * HALF as u64;
    let registry = WeightRegistry::builder()
        .limit_bytes(limit)
        .build()
        .unwrap();
    let plan = || Plan::of("a trainer", [("w", Dtype::U8, vec![HALF])]).unwrap();
    // Zeroed pages that are in memory only when somebody writes them.
    let first = registry.fill(plan(), None).unwrap();
    let second = registry.fill(plan(), None).unwrap();
    let refused = registry.fill(plan(), None).unwrap_err();
    assert!(refused.is_out_of_memory(), "{refused}");
    assert!(registry.publish("small", bytes(64, 1)).is_err());
    drop(first);
    registry.publish("small", bytes(64, 1)).unwrap();
    drop(second);
    assert_eq!(registry.ledger().total(), 64);
}

/// oMLX #3446: a load stalls and is given up; its memory is neither released nor in the books after the
/// model was loaded again.
#[test]
fn a_load_that_stalls_is_in_the_books_until_it_ends_whoever_loads_meanwhile() {
    struct Stalls(InMemory, mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Source for Stalls {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            self.1.send(()).unwrap();
            // Until it is given up.
            assert!(self.2.recv_timeout(SOON).is_err());
            Err(Error::MissingShard {
                file: "made up".into(),
            })
        }
    }
    let registry = registry();
    let (stall, stalled) = mpsc::channel();
    let (give_up, given_up) = mpsc::channel();
    thread::scope(|scope| {
        let source = Stalls(bytes(4096, 1), stall, given_up);
        let stuck = scope.spawn(|| registry.publish("a", source).unwrap_err());
        stalled.recv_timeout(SOON).unwrap();
        let again = registry.publish("a", bytes(4096, 2)).unwrap();
        let ledger = registry.ledger();
        assert_eq!((ledger.reserved, ledger.resident), (4096, 4096));
        drop(give_up);
        assert!(stuck.join().unwrap().error().is_malformed());
        let ledger = registry.ledger();
        assert_eq!((ledger.reserved, ledger.resident), (0, 4096));
        assert_eq!(served(&registry, again), 2);
    });
}

/// Ollama #18282: a model that cannot fit even alone evicts others, is refused, and they come back, for ever.
#[test]
fn what_can_never_fit_is_refused_and_moves_nobody() {
    let registry = WeightRegistry::builder().limit_bytes(4096).build().unwrap();
    let set = registry.publish("a", bytes(4096, 1)).unwrap();
    let number = registry.catalog().number();
    let huge = || bytes(8192, 2);
    // Known beforehand,
    assert!(huge().plan().charged_bytes() > registry.ledger().limit);
    // and told again by whatever loads, a drained swap included.
    for error in [
        registry.publish("b", huge()).unwrap_err(),
        registry.replace(set, huge()).unwrap_err(),
        registry.replace_drained(set, huge(), SOON).unwrap_err(),
    ] {
        let Error::OverLimit {
            requested, limit, ..
        } = error.error()
        else {
            panic!("{error}")
        };
        assert_eq!((*requested, *limit), (8192, 4096));
        assert_eq!(
            (served(&registry, set), registry.catalog().number()),
            (1, number)
        );
    }
}

/// A base of one module, and its adapter of some rank.
fn of_rank(rank: usize, base: SetHandle) -> InMemory {
    let (a, b) = (
        ([rank, 64], vec![1; rank * 64]),
        ([64, rank], vec![1; 64 * rank]),
    );
    InMemory::new()
        .lora("q", Dtype::U8, a, b, 1.0)
        .unwrap()
        .on(base)
}

/// LoRAX #53, PR #306: as many adapters as were configured do not fit, for their sizes differ with their rank
/// by orders of magnitude. vLLM #14450, SGLang PR #31305: the cache is sized without them, or each is charged
/// as if it had the largest rank.
#[test]
fn adapters_are_charged_what_they_are_beside_what_the_cache_has() {
    let base = InMemory::new()
        .tensor("q.weight", Dtype::U8, [64, 64], [0; 4096])
        .unwrap();
    let registry = WeightRegistry::builder()
        .limit_bytes(4096 + 10_000)
        .build()
        .unwrap();
    let base = registry.publish("base", base).unwrap();
    let small = registry.publish("rank 1", of_rank(1, base)).unwrap();
    assert_eq!(registry.ledger().total(), 4096 + 128);
    registry.publish("rank 64", of_rank(64, base)).unwrap();
    assert_eq!(registry.ledger().total(), 4096 + 128 + 8192);
    // Few, and no more fit; many, and they do.
    assert!(
        registry
            .publish("another", of_rank(64, base))
            .unwrap_err()
            .error()
            .is_out_of_memory()
    );
    let more: Vec<_> = (0..5)
        .map(|n| registry.publish(format!("more {n}"), of_rank(2, base)))
        .collect();
    assert!(more.iter().all(Result::is_ok));
    // What is left can be given to a cache, and is then not there for adapters.
    let left = registry.ledger().limit - registry.ledger().total();
    let cache = registry
        .reserve_in(&Account::namespace("kv cache"), left)
        .unwrap();
    assert!(
        registry
            .replace(small, of_rank(1, base))
            .unwrap_err()
            .error()
            .is_out_of_memory()
    );
    drop(cache);
    registry.replace(small, of_rank(1, base)).unwrap();
    // Who wants a number of sets, too, says so, and only that one has it.
    let limits = NamespaceLimits::none().sets(1);
    registry.set_namespace_limits("tenant", limits).unwrap();
    registry.publish(("tenant", "x"), of_rank(1, base)).unwrap();
    let refused = registry
        .publish(("tenant", "y"), of_rank(1, base))
        .unwrap_err();
    assert!(
        matches!(refused.error(), Error::TooManySets { .. }),
        "{refused}"
    );
}

/// lattice #1635: the same path is loaded N times, and there are N copies.
#[test]
fn loading_the_same_again_under_its_name_is_one_copy() {
    let registry = Arc::new(registry());
    let flat = FlatRegistry::new(Arc::clone(&registry));
    let set = flat.load("tiny", tiny()).unwrap().handle();
    let total = registry.ledger().total();
    for path in ["tiny-llama", "tiny-llama-sharded", "tiny-llama"] {
        let again = flat.load("tiny", Checkpoint::open(fixture(path)).unwrap());
        assert_eq!(again.unwrap(), Registered::Reused(set));
        let refused = registry.publish("tiny", Checkpoint::open(fixture(path)).unwrap());
        assert!(matches!(
            refused.unwrap_err().error(),
            Error::AlreadyPublished { .. }
        ));
        assert_eq!(
            (registry.ledger().total(), registry.stats().sets),
            (total, 1)
        );
    }
}

/// mlx-lm #1757, vLLM PR #34600: a wake-up that runs out of memory half-way leaks what it had taken.
#[test]
fn several_sets_that_do_not_fit_together_leave_nothing() {
    let registry = WeightRegistry::builder()
        .limit_bytes(4096 * 5 / 2)
        .build()
        .unwrap();
    let there = registry.publish("there", bytes(64, 1)).unwrap();
    for _ in 0..10 {
        let mut all = registry.transaction();
        let error = (0..3).find_map(|number| {
            let staged = match all.stage(bytes(4096, number)) {
                Ok(staged) => staged,
                Err(error) => return Some(error),
            };
            all.publish(format!("part {number}"), staged).unwrap();
            None
        });
        assert!(error.unwrap().is_out_of_memory());
        assert_eq!(registry.ledger().reserved, 2 * 4096);
        drop(all);
        assert_eq!(
            (registry.ledger().total(), served(&registry, there)),
            (64, 1)
        );
        assert_eq!(registry.lookup("part 0"), None);
    }
}
