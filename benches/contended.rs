//! Readers that are not alone: beside a second reader of the same set, beside one of another set, and
//! beside a writer that makes a new generation of that very set current every 50 microseconds.
//!
//! The figure is what one operation of the first reader takes. Meanwhile the other thread runs on a
//! core of its own, if there is one: on two cores that leaves none for the registry's reclaimer, whose
//! work the readers pay in turns then. The peers replace an `Arc` under the key, and whoever drops its
//! last clone frees it.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use weighbridge_benches::{Entry, Map, Peers, registry_of, set_of};

const SETS: usize = 64;
const PERIOD: Duration = Duration::from_micros(50);

/// Who else is at it, and on which key.
#[derive(Clone, Copy)]
enum Beside {
    ReaderOf(usize),
    WriterOf(usize),
}

/// Measures `read(0)` while another thread reads or writes over and over.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    beside: Beside,
    read: impl Fn(usize) + Sync,
    write: impl Fn(usize) + Sync,
) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                match beside {
                    Beside::ReaderOf(key) => read(key),
                    Beside::WriterOf(key) if Instant::now() >= next => {
                        write(key);
                        next += PERIOD;
                    }
                    Beside::WriterOf(_) => spin_loop(),
                }
            }
        });
        group.bench_function(name, |bench| bench.iter(|| read(black_box(0))));
        over.store(true, Ordering::Relaxed);
    });
}

/// Lease one set and release it; the peers clone the `Arc` and drop it.
fn acquire(criterion: &mut Criterion) {
    for (title, beside) in [
        ("a reader of the same set", Beside::ReaderOf(0)),
        ("a reader of another set", Beside::ReaderOf(SETS / 2)),
        ("a writer of this set", Beside::WriterOf(0)),
        ("a writer of another set", Beside::WriterOf(SETS / 2)),
    ] {
        let mut group = criterion.benchmark_group(format!("acquire and drop beside {title}"));
        let (registry, handles) = registry_of(SETS);
        measure(
            &mut group,
            "weighbridge",
            beside,
            |key| drop(registry.acquire(handles[key]).expect("current")),
            |key| drop(registry.replace(handles[key], set_of(1)).expect("replaced")),
        );
        maps(&mut group, beside, |entry| drop(Arc::clone(entry)));
        group.finish();
    }
}

/// From a handle to the entry, without keeping it.
fn get(criterion: &mut Criterion) {
    for (title, beside) in [
        ("a reader of the same set", Beside::ReaderOf(0)),
        ("a writer of this set", Beside::WriterOf(0)),
    ] {
        let mut group = criterion.benchmark_group(format!("get by handle beside {title}"));
        let (registry, handles) = registry_of(SETS);
        measure(
            &mut group,
            "weighbridge",
            beside,
            |key| {
                registry.scope(|scope| {
                    black_box(scope.get(handles[key]).expect("current").generation());
                })
            },
            |key| drop(registry.replace(handles[key], set_of(1)).expect("replaced")),
        );
        maps(&mut group, beside, |entry| {
            black_box(entry.len());
        });
        group.finish();
    }
}

/// The peers, each with a reader that calls `look` with the entry inside its guard.
fn maps(group: &mut BenchmarkGroup<'_, WallTime>, beside: Beside, look: impl Fn(&Entry) + Sync) {
    let peers = Peers::of(0..SETS);
    measure(
        group,
        "RwLock<HashMap>",
        beside,
        |key| look(&peers.rwlock.read().expect("not poisoned")[&key]),
        |key| {
            let entry = fresh();
            let old = peers
                .rwlock
                .write()
                .expect("not poisoned")
                .insert(key, entry);
            drop(old);
        },
    );
    measure(
        group,
        "dashmap",
        beside,
        |key| look(&peers.dashmap.get(&key).expect("there")),
        |key| drop(peers.dashmap.insert(key, fresh())),
    );
    measure(
        group,
        "papaya",
        beside,
        |key| look(peers.papaya.pin().get(&key).expect("there")),
        |key| {
            peers.papaya.pin().insert(key, fresh());
        },
    );
    measure(
        group,
        "ArcSwap<HashMap>",
        beside,
        |key| look(&peers.arcswap.load()[&key]),
        |key| {
            let mut map: Map<usize, Entry> = (**peers.arcswap.load()).clone();
            map.insert(key, fresh());
            peers.arcswap.store(Arc::new(map));
        },
    );
}

fn fresh() -> Entry {
    Arc::new(vec![0; 16])
}

criterion_group!(benches, acquire, get);
criterion_main!(benches);
