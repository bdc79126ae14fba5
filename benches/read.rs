//! The read side beside its peers: lease one, two, eight sets; read a weight inside a lease; get by
//! handle; look up by name.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use weighbridge::SetHandle;
use weighbridge_benches::{Peers, Walk, registry_of, set_name, set_of, tensor_name};

const SETS: usize = 64;

/// Lease and release. The peers clone an `Arc` per set, which is what keeps bytes alive with them;
/// none of them gives several sets as of one instant except the swapped map.
fn acquire(criterion: &mut Criterion) {
    let (registry, handles) = registry_of(SETS);
    let reader = registry.reader();
    let peers = Peers::of(0..SETS as u32);
    for count in [1usize, 2, 8] {
        let mut group = criterion.benchmark_group(format!("acquire and drop, {count} set(s)"));
        let sets: Vec<SetHandle> = handles[..count].to_vec();
        let keys: Vec<u32> = (0..count as u32).collect();
        group.bench_function("weighbridge, from any thread", |bench| {
            bench.iter(|| registry.acquire(black_box(&sets)).expect("current"))
        });
        group.bench_function("weighbridge, reader in hand", |bench| {
            bench.iter(|| reader.acquire(black_box(&sets)).expect("current"))
        });
        group.bench_function("RwLock<HashMap>", |bench| {
            bench.iter(|| {
                let map = peers.rwlock.read().expect("not poisoned");
                keys.iter()
                    .map(|key| Arc::clone(&map[black_box(key)]))
                    .for_each(drop);
            })
        });
        group.bench_function("dashmap", |bench| {
            bench.iter(|| {
                for key in &keys {
                    let entry = peers.dashmap.get(black_box(key)).expect("there");
                    drop(Arc::clone(&entry));
                }
            })
        });
        group.bench_function("papaya", |bench| {
            bench.iter(|| {
                let map = peers.papaya.pin();
                for key in &keys {
                    drop(Arc::clone(map.get(black_box(key)).expect("there")));
                }
            })
        });
        group.bench_function("ArcSwap<HashMap>", |bench| {
            bench.iter(|| {
                let map = peers.arcswap.load();
                keys.iter()
                    .map(|key| Arc::clone(&map[black_box(key)]))
                    .for_each(drop);
            })
        });
        group.finish();
    }
}

/// One of 448 tensors inside a lease that is held, against a plain array of slices.
fn weight(criterion: &mut Criterion) {
    const TENSORS: usize = 448;
    let (registry, _) = registry_of(1);
    let set = registry
        .publish("adapter", set_of(TENSORS))
        .expect("published");
    let handles: Vec<_> = (0..TENSORS)
        .map(|index| {
            registry
                .weight_handle(set, &tensor_name(index))
                .expect("there")
        })
        .collect();
    let lease = registry.acquire(set).expect("current");
    let array: Vec<&[u8]> = handles
        .iter()
        .map(|&handle| lease.weight(handle).expect("there").bytes())
        .collect();
    let mut group = criterion.benchmark_group("weight inside a lease");
    let mut walk = Walk::over(TENSORS);
    group.bench_function("weighbridge", |bench| {
        bench.iter(|| lease.weight(handles[walk.step()]).expect("there").bytes()[0])
    });
    group.bench_function("plain array", |bench| bench.iter(|| array[walk.step()][0]));
    group.finish();
}

/// From a handle (or its peer's integer key) to the entry, without keeping it.
fn get(criterion: &mut Criterion) {
    let (registry, handles) = registry_of(SETS);
    let reader = registry.reader();
    let peers = Peers::of(0..SETS as u32);
    let mut walk = Walk::over(SETS);
    let mut group = criterion.benchmark_group("get by handle");
    registry.scope(|scope| {
        group.bench_function("weighbridge, inside a scope", |bench| {
            bench.iter(|| {
                scope
                    .get(handles[walk.step()])
                    .expect("current")
                    .generation()
            })
        });
    });
    group.bench_function("weighbridge, reader in hand", |bench| {
        bench.iter(|| {
            reader
                .scope()
                .get(handles[walk.step()])
                .expect("current")
                .generation()
        })
    });
    group.bench_function("weighbridge, from any thread", |bench| {
        bench.iter(|| {
            registry.scope(|scope| {
                scope
                    .get(handles[walk.step()])
                    .expect("current")
                    .generation()
            })
        })
    });
    group.bench_function("RwLock<HashMap>", |bench| {
        bench.iter(|| peers.rwlock.read().expect("not poisoned")[&(walk.step() as u32)].len())
    });
    group.bench_function("dashmap", |bench| {
        bench.iter(|| {
            peers
                .dashmap
                .get(&(walk.step() as u32))
                .expect("there")
                .len()
        })
    });
    group.bench_function("papaya", |bench| {
        bench.iter(|| {
            peers
                .papaya
                .pin()
                .get(&(walk.step() as u32))
                .expect("there")
                .len()
        })
    });
    group.bench_function("ArcSwap<HashMap>", |bench| {
        bench.iter(|| peers.arcswap.load()[&(walk.step() as u32)].len())
    });
    group.finish();
}

/// From a name to the handle, random over the names.
fn lookup(criterion: &mut Criterion) {
    for count in [400usize, 10_000] {
        let (registry, _) = registry_of(count);
        let names: Vec<String> = (0..count).map(set_name).collect();
        let peers = Peers::of(names.iter().cloned());
        let mut walk = Walk::over(count);
        let mut group = criterion.benchmark_group(format!("lookup by name, {count} names"));
        group.bench_function("weighbridge", |bench| {
            bench.iter(|| {
                registry
                    .lookup(names[walk.step()].as_str())
                    .expect("published")
            })
        });
        group.bench_function("RwLock<HashMap>", |bench| {
            bench.iter(|| peers.rwlock.read().expect("not poisoned")[&names[walk.step()]].len())
        });
        group.bench_function("dashmap", |bench| {
            bench.iter(|| peers.dashmap.get(&names[walk.step()]).expect("there").len())
        });
        group.bench_function("papaya", |bench| {
            bench.iter(|| {
                peers
                    .papaya
                    .pin()
                    .get(&names[walk.step()])
                    .expect("there")
                    .len()
            })
        });
        group.bench_function("ArcSwap<HashMap>", |bench| {
            bench.iter(|| peers.arcswap.load()[&names[walk.step()]].len())
        });
        group.finish();
    }
}

criterion_group!(benches, acquire, weight, get, lookup);
criterion_main!(benches);
