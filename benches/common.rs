//! What the benchmarks share: sets to publish, names to look up, and the peers' maps.
//!
//! The peers get the same work as the registry: from a key to something that keeps the bytes alive,
//! or, inside a guard, to the entry itself. All maps use one hasher.

pub mod harness;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, RwLock};

use arc_swap::ArcSwap;
use weighbridge::source::InMemory;
use weighbridge::{Dtype, SetHandle, WeightRegistry};

/// One hasher for every map.
pub type Hasher = foldhash::fast::RandomState;

/// A map that is shared by one of the usual means.
pub type Map<K, V> = HashMap<K, V, Hasher>;

/// What the peers keep: an entry by `Arc`, which is how a reader holds on to it.
pub type Entry = Arc<Vec<u8>>;

/// A set of `tensors` small tensors in memory, named like a model's.
///
/// # Panics
/// If the library refuses them.
pub fn set_of(tensors: usize) -> InMemory {
    let mut source = InMemory::new();
    for index in 0..tensors {
        let name = tensor_name(index);
        source = source
            .tensor(name, Dtype::F32, [4], [0u8; 16])
            .expect("a legal tensor");
    }
    source
}

/// The name of tensor `index`.
pub fn tensor_name(index: usize) -> String {
    let (layer, which) = (index / 14, index % 14);
    format!("base_model.model.model.layers.{layer}.self_attn.proj_{which}.lora_A.weight")
}

/// The name of adapter `index` as a tenant would give it.
pub fn set_name(index: usize) -> String {
    format!("customer-{:04}-support-adapter-{index:06}", index % 97)
}

/// A registry with `sets` one-tensor sets.
///
/// # Panics
/// If the library refuses them.
pub fn registry_of(sets: usize) -> (WeightRegistry, Vec<SetHandle>) {
    let registry = WeightRegistry::builder().build().expect("a registry");
    let handles = (0..sets)
        .map(|index| {
            registry
                .publish(set_name(index), set_of(1))
                .expect("published")
        })
        .collect();
    (registry, handles)
}

/// The peers, filled with the same keys.
pub struct Peers<K> {
    /// `RwLock<HashMap>`.
    pub rwlock: RwLock<Map<K, Entry>>,
    /// dashmap 6.
    pub dashmap: dashmap::DashMap<K, Entry, Hasher>,
    /// papaya.
    pub papaya: papaya::HashMap<K, Entry, Hasher>,
    /// `ArcSwap<HashMap>`.
    pub arcswap: ArcSwap<Map<K, Entry>>,
}

impl<K: Eq + std::hash::Hash + Clone> Peers<K> {
    /// Filled with `keys`.
    pub fn of(keys: impl Iterator<Item = K>) -> Self {
        let hasher = Hasher::default();
        let entry: Entry = Arc::new(vec![0; 16]);
        let map: Map<K, Entry> = {
            let mut map = Map::with_hasher(hasher.clone());
            map.extend(keys.map(|key| (key, Arc::new(entry.to_vec()))));
            map
        };
        let dashmap = dashmap::DashMap::with_hasher(hasher.clone());
        let papaya = papaya::HashMap::with_hasher(hasher.clone());
        for (key, value) in &map {
            dashmap.insert(key.clone(), Arc::clone(value));
            papaya.pin().insert(key.clone(), Arc::clone(value));
        }
        Peers {
            rwlock: RwLock::new(map.clone()),
            dashmap,
            papaya,
            arcswap: ArcSwap::from_pointee(map),
        }
    }
}

/// A cheap, repeatable walk over `0..len` that prefetchers do not guess.
pub struct Walk {
    state: u64,
    len: usize,
}

impl Walk {
    /// Over `0..len`.
    pub fn over(len: usize) -> Self {
        Walk {
            state: 0x9E37_79B9_7F4A_7C15,
            len,
        }
    }

    /// The next index.
    #[inline]
    pub fn step(&mut self) -> usize {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        ((self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as usize * self.len) >> 32
    }
}

/// Keeps the hasher type honest: it must be usable by every map above.
const _: fn() = || {
    fn hashes<H: BuildHasher + Clone + Default>() {}
    hashes::<Hasher>();
};
