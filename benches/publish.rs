//! The write side: making 1 and 1,120 tensors current, with bytes already in memory.
//!
//! For the registry that is one commit. The peers insert 1,120 entries (readers see every state in
//! between), or clone and swap the whole map.

use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use weighbridge::WeightRegistry;
use weighbridge_benches::{Entry, Peers, set_of, tensor_name};

fn publish(criterion: &mut Criterion) {
    for tensors in [1usize, 1_120] {
        let names: Vec<String> = (0..tensors).map(tensor_name).collect();
        let fresh = || {
            names
                .iter()
                .map(|name| (name.clone(), Entry::default()))
                .collect::<Vec<_>>()
        };
        // A thousand staged sets at once would measure the allocator.
        let batch = match tensors {
            1 => BatchSize::SmallInput,
            _ => BatchSize::PerIteration,
        };
        let mut group = criterion.benchmark_group(format!("publish {tensors} tensor(s)"));

        let registry = WeightRegistry::builder().build().expect("a registry");
        let set = registry.publish("set", set_of(tensors)).expect("published");
        group.bench_function("weighbridge, replace a staged set", |bench| {
            bench.iter_batched(
                || registry.stage(set_of(tensors)).expect("staged"),
                |staged| registry.replace_staged(set, staged).expect("replaced"),
                batch,
            )
        });

        let peers = Peers::of(names.iter().cloned());
        group.bench_function("RwLock<HashMap>, one write lock", |bench| {
            bench.iter_batched(
                fresh,
                |entries| peers.rwlock.write().expect("not poisoned").extend(entries),
                batch,
            )
        });
        group.bench_function("dashmap, one by one", |bench| {
            bench.iter_batched(
                fresh,
                |entries| {
                    for (name, entry) in entries {
                        peers.dashmap.insert(name, entry);
                    }
                },
                batch,
            )
        });
        group.bench_function("papaya, one by one", |bench| {
            bench.iter_batched(
                fresh,
                |entries| {
                    let map = peers.papaya.pin();
                    for (name, entry) in entries {
                        map.insert(name, entry);
                    }
                },
                batch,
            )
        });
        group.bench_function("ArcSwap<HashMap>, clone and swap", |bench| {
            bench.iter_batched(
                fresh,
                |entries| {
                    let mut map = (**peers.arcswap.load()).clone();
                    map.extend(entries);
                    peers.arcswap.store(Arc::new(map));
                },
                batch,
            )
        });
        group.finish();
    }
}

criterion_group!(benches, publish);
criterion_main!(benches);
