//! Bugs that users of other systems reported, told again to this registry: one test for each that can
//! be told, with the report it comes from. What other test files tell already is not repeated.

mod support;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::{SOON, adapter, bytes, fixture, registry, tiny};
use weighbridge::source::{Checkpoint, InMemory, Source};
use weighbridge::{Dtype, Error, Lease, Plan, SetHandle, WeightRegistry};

fn first_byte(lease: &Lease, set: SetHandle) -> u8 {
    lease.set(set).unwrap().get("w").unwrap().bytes()[0]
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

/// SGLang #32238: generation is paused, so nothing drains; unload then load deadlocks.
#[test]
fn unload_and_load_do_not_wait_for_requests_that_are_paused() {
    let registry = registry();
    let mut paused = Vec::new();
    for step in 0..20 {
        let set = registry.publish("policy", bytes(64, step)).unwrap();
        paused.push((set, registry.acquire(set).unwrap()));
        registry.retire(set).unwrap();
    }
    assert_eq!(registry.ledger().retired, 20 * 64);
    for (step, (set, lease)) in paused.iter().enumerate() {
        assert_eq!(usize::from(first_byte(lease, *set)), step);
    }
    drop(paused);
    for going in registry.retired() {
        going.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), 0);
}

/// vLLM #54839, #42633: unload forgets the name only, the bytes stay; a reload keeps both copies.
#[test]
fn unloading_gives_the_bytes_back_and_reloading_does_not_keep_two() {
    let registry = registry();
    for fill in 0..20 {
        let set = registry.publish("a", bytes(4096, fill)).unwrap();
        assert_eq!(registry.ledger().total(), 4096);
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().total(), 0);
    }
}

/// vLLM #47724: an adapter is loaded out of band, takes another one's slot, and a running request of
/// another tenant decodes with it. Nobody notices.
#[test]
fn a_slots_next_tenant_is_never_served_to_the_last_ones_requests() {
    let registry = registry();
    let mine = registry.publish(("tenant-a", "x"), bytes(64, 7)).unwrap();
    let w = registry.weight_handle(mine, "w").unwrap();
    let running = registry.acquire(mine).unwrap();
    registry.retire(mine).unwrap();
    let mut handles = HashSet::from([mine]);
    // A handle prints as `set registry:slot#tag`.
    let slot = |set: SetHandle| set.to_string().split('#').next().map(str::to_owned);
    for fill in 0..100 {
        let theirs = registry
            .publish(("tenant-b", "x"), bytes(64, 100 + fill))
            .unwrap();
        assert!(handles.insert(theirs), "a handle came back");
        assert_eq!(
            slot(theirs),
            slot(mine),
            "this is about a slot's next tenant"
        );
        assert_eq!(running.weight(w).unwrap().bytes(), [7; 64]);
        assert!(matches!(
            registry.acquire(mine),
            Err(Error::StaleHandle { .. })
        ));
        assert_eq!(registry.lookup(("tenant-a", "x")), None);
        let lease = registry.acquire(theirs).unwrap();
        assert!(lease.weight(w).unwrap_err().is_misuse());
        registry.retire(theirs).unwrap();
    }
}

/// SGLang #7426: modules that the new adapter lacks keep the evicted adapter's weights.
#[test]
fn a_new_generation_has_nothing_of_the_old_one() {
    let registry = registry();
    let of = |modules: &[&str], fill: u8| {
        modules.iter().fold(InMemory::new(), |set, module| {
            let a = ([1, 4], [fill; 4]);
            let b = ([4, 1], [fill; 4]);
            set.lora(module, Dtype::U8, a, b, 1.0).unwrap()
        })
    };
    let base = ["q", "k", "v"].iter().fold(InMemory::new(), |set, module| {
        let name = format!("{module}.weight");
        set.tensor(name, Dtype::U8, [4, 4], [0; 16]).unwrap()
    });
    let base = registry.publish("base", base).unwrap();
    let set = registry
        .publish("adapter", of(&["q", "k", "v"], 1).on(base))
        .unwrap();
    let name = |module: &str| format!("base_model.model.{module}.lora_A.weight");
    let handles = ["q", "k", "v"].map(|module| registry.weight_handle(set, &name(module)).unwrap());
    registry.replace(set, of(&["k"], 2).on(base)).unwrap();
    let lease = registry.acquire([base, set]).unwrap();
    let view = lease.set(set).unwrap().adapter().unwrap();
    assert_eq!(view.len(), 1);
    assert_eq!((view.position("q"), view.position("v")), (None, None));
    for (handle, there) in handles.into_iter().zip([false, true, false]) {
        match lease.weight(handle) {
            Ok(weight) => assert!(there && weight.bytes() == [2; 4]),
            Err(error) => assert!(!there && error.is_not_found(), "{error}"),
        }
    }
}

/// vLLM #20873, SkyRL #2250: an adapter that is loaded again is packed, or scaled, a second time.
#[test]
fn loading_the_same_adapter_again_gives_the_same_bytes_and_scales() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let seen = |set| {
        let lease = registry.acquire([base, set]).unwrap();
        let view = lease.set(set).unwrap().adapter().unwrap();
        let modules = view.modules().map(|module| {
            let module = module.unwrap();
            let bytes = (module.a.bytes().to_vec(), module.b.bytes().to_vec());
            (module.scaling, module.alpha, module.rank, bytes)
        });
        (modules.collect::<Vec<_>>(), lease.cache_key())
    };
    let load = || adapter("pirate-v1", base);
    let set = registry.publish("pirate", load()).unwrap();
    let first = seen(set);
    for _ in 0..5 {
        registry.replace(set, load()).unwrap();
        assert!(seen(set) == first, "the second load differs from the first");
    }
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    let again = registry.publish("pirate", load()).unwrap();
    assert!(seen(again) == first, "evicted, loaded again, and different");
}

/// SGLang #30913: the limit counts a set against itself when it is refreshed; every step after the
/// first is rejected, and rollouts go on with step 1.
#[test]
fn a_set_is_refreshed_step_after_step_within_room_for_two() {
    let registry = WeightRegistry::builder().limit_bytes(8192).build().unwrap();
    let set = registry.publish("policy", bytes(4096, 0)).unwrap();
    for step in 1..100 {
        let swap = registry.replace(set, bytes(4096, step)).unwrap();
        assert_eq!(first_byte(&registry.acquire(set).unwrap(), set), step);
        swap.previous.reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().total(), 4096);
    }
    assert_eq!(registry.ledger().peak, 8192);
}

/// SimpleTuner #2714, TensorRT-LLM #17368: the file of loaded weights is overwritten in place.
#[test]
fn overwriting_the_file_of_a_loaded_set_does_not_reach_it() {
    let registry = registry();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::copy(fixture("tiny-llama/model.safetensors"), &path).unwrap();
    let set = registry
        .publish("a", Checkpoint::open(&path).unwrap())
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let all = || -> Vec<u8> {
        let weights = lease.set(set).unwrap().iter();
        weights
            .flat_map(|weight| weight.unwrap().bytes())
            .copied()
            .collect()
    };
    let before = all();
    let len = std::fs::metadata(&path).unwrap().len() as usize;
    std::fs::write(&path, vec![0xFF; len]).unwrap();
    assert!(all() == before);
    std::fs::write(&path, b"").unwrap();
    assert!(
        all() == before,
        "bytes were read from the file after it was loaded"
    );
}

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

/// SGLang #31084: each worker has a registry of its own, and they disagree on what is loaded.
#[test]
fn all_threads_agree_on_what_is_loaded() {
    const WORKERS: usize = 4;
    let registry = registry();
    let done = AtomicBool::new(false);
    let loaded = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // What was loaded when we looked is found by whoever looks after that.
                    for number in 0..loaded.load(Ordering::Acquire) {
                        let name = format!("adapter-{number}");
                        let set = registry.lookup(name.as_str()).expect("never loaded");
                        let lease = registry.acquire(set).unwrap();
                        assert_eq!(usize::from(first_byte(&lease, set)), number);
                        let again = registry.publish(name, bytes(64, 0)).unwrap_err();
                        assert!(matches!(again.error(), Error::AlreadyPublished { .. }));
                    }
                }
            });
        }
        for number in 0..40 {
            let name = format!("adapter-{number}");
            registry.publish(name, bytes(64, number)).unwrap();
            loaded.store(usize::from(number) + 1, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.stats().sets, 40);
}

/// Dynamo #11163: a load fails, its rollback fails, and "already loaded" is answered for ever.
#[test]
fn a_name_whose_load_failed_is_as_if_it_had_never_been_asked_for() {
    struct Fails(InMemory);
    impl Source for Fails {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::MissingShard {
                file: "made up".into(),
            })
        }
    }
    let registry = registry();
    for fill in 0..10 {
        let failed = registry.publish("a", Fails(bytes(64, fill))).unwrap_err();
        assert!(failed.error().is_malformed());
        let set = registry.publish("a", bytes(64, fill)).unwrap();
        let failed = registry.replace(set, Fails(bytes(64, 99))).unwrap_err();
        assert!(failed.error().is_malformed());
        assert_eq!(first_byte(&registry.acquire(set).unwrap(), set), fill);
        registry.retire(set).unwrap();
    }
}
