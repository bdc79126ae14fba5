//! What a registry's own threads keep while they have nothing to do. A binary of its own: it counts every
//! allocation.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::sync::Arc;

use counting::live;
use support::device::until;
use support::{SOON, block_on, bytes};
use weighbridge::source::Evictable;
use weighbridge::{SetHandle, WeightRegistry};

/// A node of crossbeam-epoch's queue of garbage. A participant keeps up to 64 nodes that it has met for itself.
const NODE: usize = 2_072;
const ROUNDS: usize = 4_000;

/// A load on a loader's thread, and commits whose garbage it meets there.
fn round(registry: &Arc<WeightRegistry>, loaded: SetHandle, replaced: SetHandle) {
    // Whoever loaded it may have it for a moment longer.
    until("nobody has it", || registry.evict(loaded).is_ok());
    drop(block_on(registry.acquire_or_load_async([loaded])).unwrap());
    for fill in 0..4 {
        let replace = registry.replace(replaced, bytes(64, fill)).unwrap();
        replace.previous.reclaimed(SOON).unwrap();
    }
}

#[test]
fn an_idle_loader_keeps_no_garbage() {
    let registry = Arc::new(WeightRegistry::builder().loaders(1).build().unwrap());
    let source = Evictable::opened_by(|| Ok(bytes(64, 1))).unwrap();
    let loaded = registry.publish("loaded", source).unwrap();
    let replaced = registry.publish("replaced", bytes(64, 0)).unwrap();
    let mut all: Vec<usize> = (0..ROUNDS)
        .map(|_| {
            round(&registry, loaded, replaced);
            live()
        })
        .skip(ROUNDS / 10)
        .collect();
    all.sort_unstable();
    let (least, usual, most) = (all[0], all[all.len() / 2], all[all.len() - 1]);
    println!("{least} to {most} bytes, usually {usual}");
    // What this thread and the reclaimer's have at a time is some nodes, too; and while a thread that reads has no core,
    // garbage waits for it.
    assert!(usual - least < 10 * NODE, "{least}, usually {usual}");
}
