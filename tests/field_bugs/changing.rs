//! Bytes that change under a name, a slot, a pointer or a file that does not.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use weighbridge::source::{Checkpoint, InMemory, Source};
use weighbridge::{Dtype, Error, Plan, SetHandle, WeightRegistry};

use crate::support::device::Device;
use crate::support::{SOON, adapter, bytes, copy, fixture, registry, tiny};
use crate::{first_byte, served};

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

/// vLLM #42125: an adapter is loaded again under its name, and requests get the prefixes that were cached
/// with the old one's weights.
#[test]
fn a_cache_key_changes_when_the_bytes_do_and_only_then() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let set = registry.publish("a", adapter("pirate-v1", base)).unwrap();
    let key = || registry.acquire([base, set]).unwrap().cache_key();
    let first = key();
    registry.replace(set, adapter("pirate-v2", base)).unwrap();
    let second = key();
    assert_ne!(second, first);
    registry.replace(set, adapter("pirate-v1", base)).unwrap();
    assert_eq!(key(), first, "the same weights: what is cached is good");
    // Unloaded and loaded as something else under the same name.
    registry.retire(set).unwrap();
    let other = registry.publish("a", adapter("robot", base)).unwrap();
    let other = registry.acquire([base, other]).unwrap().cache_key();
    assert!(![first, second].contains(&other));
}

/// A source that counts how often it is read.
struct Counted(InMemory, Arc<AtomicUsize>);

impl Source for Counted {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }
    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_into(arena)
    }
}

/// vLLM #33791, PR #41482: a request that once asked to load in place reads the adapter from disk again at
/// every step.
#[test]
fn what_is_loaded_is_read_once_however_often_it_is_used() {
    let registry = registry();
    let reads = Arc::new(AtomicUsize::new(0));
    let source = |fill| Counted(bytes(64, fill), Arc::clone(&reads));
    let set = registry.publish("a", source(1)).unwrap();
    registry.replace(set, source(2)).unwrap();
    for _ in 0..100 {
        assert_eq!(served(&registry, set), 2);
    }
    // What would be refused anyway is not read at all.
    assert!(registry.publish("a", source(3)).is_err());
    assert_eq!(reads.load(Ordering::Relaxed), 2);
}

/// SkyRL PR #2129: captured CUDA graphs keep the old adapter's addresses after it was loaded again in place:
/// a device-side assert.
#[test]
fn what_was_captured_stays_where_it_is_until_it_was_used() {
    let registry = registry();
    let set = registry.publish("a", bytes(1 << 16, 1)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    let captured = registry.acquire(set).unwrap();
    let address = captured.weight(w).unwrap().bytes().as_ptr();
    let graph = Device::queue(captured.clone(), w, "graph");
    let mut numbers = HashSet::from([captured.set(set).unwrap().generation()]);
    for fill in 2..20 {
        let swap = registry.replace(set, bytes(1 << 16, fill)).unwrap();
        assert!(numbers.insert(swap.generation), "a number came back");
        let now = registry.acquire(set).unwrap();
        assert_ne!(now.weight(w).unwrap().bytes().as_ptr(), address);
        assert_eq!(captured.weight(w).unwrap().bytes().as_ptr(), address);
    }
    drop(captured);
    assert_eq!(
        graph.finish(),
        vec![1; 1 << 16],
        "the graph read other bytes"
    );
}

/// vLLM #29341, #16564: sleep discards the weights; after waking up without them the server answers garbage
/// and warns nobody.
#[test]
fn a_set_without_bytes_cannot_be_read() {
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
    let registry = WeightRegistry::builder().limit_bytes(64).build().unwrap();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let failed = registry
        .replace_drained(set, Fails(bytes(64, 2)), SOON)
        .unwrap_err();
    assert!(matches!(failed.error(), Error::Emptied { .. }), "{failed}");
    for _ in 0..3 {
        assert!(matches!(
            registry.acquire(set),
            Err(Error::NotResident { .. })
        ));
        assert!(!registry.catalog().get("a").unwrap().resident);
        assert!(!registry.scope(|scope| scope.get(set).unwrap().is_resident()));
    }
    registry.replace_drained(set, bytes(64, 3), SOON).unwrap();
    assert_eq!(served(&registry, set), 3);
}

/// torch_memory_saver #71: each pause and resume leaves more pinned, 13 to 69 GiB in four cycles; then
/// weights are overwritten, with HTTP 200 throughout.
#[test]
fn pausing_and_resuming_takes_no_more_each_time_and_changes_nothing() {
    let registry = WeightRegistry::builder()
        .limit_bytes(4096 + 64)
        .build()
        .unwrap();
    let other = registry.publish("other", bytes(64, 9)).unwrap();
    let held = registry.acquire(other).unwrap();
    let mut set = registry.publish("a", bytes(4096, 1)).unwrap();
    for cycle in 0..20 {
        registry.retire(set).unwrap().reclaimed(SOON).unwrap(); // Paused.
        assert_eq!(registry.ledger().total(), 64);
        set = registry.publish("a", bytes(4096, cycle)).unwrap(); // Resumed.
        assert_eq!(
            (served(&registry, set), first_byte(&held, other)),
            (cycle, 9)
        );
        let failed = registry.replace(set, bytes(4096, 0)).unwrap_err();
        assert!(failed.error().is_out_of_memory(), "it counts what it has");
        registry
            .replace_drained(set, bytes(4096, cycle + 1), SOON)
            .unwrap();
        assert_eq!(served(&registry, set), cycle + 1);
        assert_eq!(registry.ledger().total(), 4096 + 64);
    }
    assert_eq!(registry.ledger().peak, 4096 + 64);
}

/// vmlx-swift PR #217: 8 of 102 shards are short, by 301 MB; mapped, what is missing reads as zeros, and
/// every fifth start talks gibberish.
#[test]
fn a_shard_that_is_short_is_refused_before_anything_is_read_or_mapped() {
    for missing in [1, 4096] {
        let dir = copy("tiny-llama-sharded");
        let shard = dir.path().join("model-00002-of-00003.safetensors");
        let file = std::fs::File::options().write(true).open(&shard).unwrap();
        file.set_len(file.metadata().unwrap().len() - missing)
            .unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err();
        let text = error.to_string();
        assert!(
            error.is_malformed() && text.contains("model-00002"),
            "{text}"
        );
        assert!(text.contains("truncated"), "{text}");
    }
}
