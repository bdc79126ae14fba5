//! Weights registered one by one.
//!
//! What lives here: what the tests share. They are in the files beside, by concern.

#[path = "../support/mod.rs"]
mod support;
#[cfg(all(feature = "metrics", feature = "tracing"))]
#[path = "../support/observers.rs"]
mod watch;

mod behaviours;
mod files;
mod groups;
mod registering;
mod strangers;
mod underneath;
mod watching;

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{SOON, adapter, addition, bytes, fixture, registry, tiny};
use weighbridge::flat::{
    Address, FlatHandle, FlatKind, FlatRegistry, Loaded, Registered, Totals, WeightLoader,
};
use weighbridge::layout::ModuleScale;
use weighbridge::source::{Checkpoint, Foreign, InMemory, Source};
use weighbridge::{Dtype, Error, EventKind, Next, Operation, SetHandle, Shard, WeightRegistry};

fn flat() -> FlatRegistry {
    FlatRegistry::new(Arc::new(registry()))
}

fn put(flat: &FlatRegistry, name: &str, fill: u8) -> FlatHandle {
    flat.register(name, Dtype::U8, [4], &[fill; 4])
        .unwrap()
        .handle()
}

/// Nothing that anybody can ask has another answer than before.
fn untouched<R>(flat: &FlatRegistry, act: impl FnOnce() -> R) -> R {
    let before = (flat.totals(), flat.registry().ledger().total());
    let commits = flat.registry().stats().commits;
    let result = act();
    assert_eq!((flat.totals(), flat.registry().ledger().total()), before);
    assert_eq!(flat.registry().stats().commits, commits);
    result
}

/// One tensor as all flat weights have it: what may follow one in the registry underneath.
fn weight(len: usize, fill: u8) -> InMemory {
    InMemory::new()
        .tensor("weight", Dtype::U8, [len], vec![fill; len])
        .unwrap()
}

/// What the books say of everything, in short: weights, bytes, aliases, adapters.
fn books(flat: &FlatRegistry) -> (usize, u64, usize, usize) {
    let (adapters, weights) = (flat.adapter_names(), flat.len());
    assert_eq!(flat.is_empty(), weights == 0);
    (
        weights,
        flat.total_bytes(),
        flat.totals().aliases,
        adapters.len(),
    )
}

/// Weights of four bytes, all at once.
fn put_all(flat: &FlatRegistry, weights: &[(&str, u8)]) -> Result<Vec<Registered>, Error> {
    let bytes: Vec<[u8; 4]> = weights.iter().map(|&(_, fill)| [fill; 4]).collect();
    let one = |(&(name, _), bytes)| (Address::from(name), Dtype::U8, &[4][..], bytes);
    let bytes = bytes.iter().map(|bytes| &bytes[..]);
    flat.register_all(weights.iter().zip(bytes).map(one))
}

/// Registers the modules of a fixture's adapter as flat slices, and pairs them.
fn slices<'f>(
    flat: &'f FlatRegistry,
    base: SetHandle,
    from: &str,
) -> weighbridge::flat::LoraGroup<'f> {
    let core = flat.registry();
    let whole = core.publish("whole", adapter(from, base)).unwrap();
    let lease = core.acquire(whole).unwrap();
    core.retire(whole).unwrap();
    let modules = lease.set(whole).unwrap().adapter().unwrap();
    let scales: BTreeMap<String, ModuleScale> = adapter(from, base)
        .plan()
        .adapter()
        .unwrap()
        .modules()
        .map(|(name, scale)| (name.to_owned(), scale))
        .collect();
    let mut group = flat.lora_group("pirate");
    for module in modules.modules() {
        let module = module.unwrap();
        let [a, b] = [("A", module.a), ("B", module.b)].map(|(matrix, weight)| {
            let name = format!("{}.{matrix}", module.module);
            flat.register(
                ("pirate", &*name),
                weight.dtype(),
                weight.shape(),
                weight.bytes(),
            )
            .unwrap()
            .handle()
        });
        group
            .module(module.module, scales[module.module], a, b)
            .unwrap();
    }
    group
}
