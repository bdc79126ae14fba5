//! Schedules on one thread in which an address changes hands while somebody still knows what was there.
//!
//! What lives here: one script per thing that could be taken for its successor: nodes, layouts, names,
//! arenas, labels, registries. What does not: chance; the rooms of the stress test are beside.

use std::collections::HashSet;
use std::time::Instant;

use weighbridge::source::InMemory;
use weighbridge::{Dtype, Error, SetHandle, WeightRegistry};

use super::rooms::oracle::{LEN, LONG, Stamp, close, registry, source, stamp_in};

/// A script.
pub type Script = fn();

pub const SCRIPTS: &[(&str, Script)] = &[
    ("tenants_of_one_node", tenants_of_one_node),
    ("generations_of_one_arena", generations_of_one_arena),
    ("a_scope_over_a_reused_node", a_scope_over_a_reused_node),
    ("a_lease_over_reused_blocks", a_lease_over_reused_blocks),
    ("layouts_at_one_address", layouts_at_one_address),
    ("labels_of_one_entry", labels_of_one_entry),
    ("registries_at_one_address", registries_at_one_address),
];

const ROUNDS: u64 = 50;

/// Waits for what the reclaimer is going to make true.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Waits until nothing that was superseded is needed any more, so that its blocks become free.
fn settle(registry: &WeightRegistry) {
    for going in registry.retired() {
        going.reclaimed(LONG).unwrap();
    }
    until("metadata is still there", || {
        registry.stats().metadata_waiting == 0
    });
}

/// Where the bytes of `w` are.
fn place(registry: &WeightRegistry, set: SetHandle) -> usize {
    let lease = registry.acquire(set).unwrap();
    let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
    bytes.as_ptr() as usize
}

#[track_caller]
fn is_stale(registry: &WeightRegistry, set: SetHandle) {
    let stale = |error: Error| matches!(error, Error::StaleHandle { handle } if handle == set);
    assert!(stale(registry.acquire(set).unwrap_err()));
    assert!(stale(registry.acquire_as("late", set).unwrap_err()));
    assert!(stale(registry.weight_handle(set, "w").unwrap_err()));
    assert!(stale(registry.retire(set).unwrap_err()));
    assert!(stale(
        registry.replace(set, source(9, 9)).unwrap_err().into()
    ));
    registry.scope(|scope| {
        assert!(stale(scope.get(set).unwrap_err()));
        assert!(stale(scope.acquire(set).unwrap_err()));
    });
}

/// One slot, and tenants whose nodes, names and bytes lie where the last one's lay.
fn tenants_of_one_node() {
    let registry = registry();
    let (mut gone, mut places) = (Vec::new(), HashSet::new());
    for version in 0..ROUNDS {
        let set = registry.publish("s", source(1, version)).unwrap();
        let w = registry.weight_handle(set, "w").unwrap();
        for &(old, old_w) in gone.iter().rev().take(3) {
            is_stale(&registry, old);
            let lease = registry.acquire(set).unwrap();
            assert!(lease.weight(old_w).is_err(), "another tenant's tensor");
            assert!(lease.set(old).is_err());
            assert_eq!(stamp_in(&lease, set).version, version);
        }
        places.insert(place(&registry, set));
        gone.push((set, w));
        registry.retire(set).unwrap();
        settle(&registry);
    }
    assert!(
        (places.len() as u64) < ROUNDS,
        "no address came back: this tests nothing"
    );
    close(&registry);
}

/// Generations whose bytes lie where an earlier one's lay are not that one.
fn generations_of_one_arena() {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    let (mut keys, mut places) = (HashSet::new(), HashSet::new());
    let mut last = None;
    for version in 1..ROUNDS {
        let lease = registry.acquire(set).unwrap();
        let generation = lease.set(set).unwrap().generation();
        assert!(keys.insert(lease.cache_key()), "two generations, one key");
        places.insert(place(&registry, set));
        drop(lease);
        if let Some(old) = last.replace(generation) {
            let lost = registry.replace_if(set, old, source(1, 999)).unwrap_err();
            assert!(lost.error().is_conflict(), "{lost}");
            assert!(registry.retire_if(set, old).unwrap_err().is_conflict());
        }
        registry
            .replace_if(set, generation, source(1, version))
            .unwrap();
        settle(&registry);
    }
    assert!(
        places.len() < keys.len(),
        "no address came back: this tests nothing"
    );
    close(&registry);
}

/// What a scope sees stays what it was, however much is freed and allocated meanwhile.
fn a_scope_over_a_reused_node() {
    let registry = registry();
    let set = registry.publish("the one", source(1, 1)).unwrap();
    for round in 0..ROUNDS {
        let reader = registry.reader();
        let scope = reader.scope();
        let view = scope.get(set).unwrap();
        let before = (view.generation(), view.identity().clone());
        registry.replace(set, source(1, round + 2)).unwrap();
        for other in 0..4 {
            let name = format!("other-{other}");
            let other = registry.publish(name.as_str(), source(2, other)).unwrap();
            registry.retire(other).unwrap().reclaimed(LONG).unwrap();
        }
        assert_eq!((view.generation(), view.identity().clone()), before);
        assert_eq!((view.name().name(), view.handle()), ("the one", set));
        assert!(view.weight_handle("w").is_ok() && view.layout().len() == 2);
        assert_eq!(scope.get(set).unwrap().generation(), before.0);
    }
    close(&registry);
}

/// What a lease holds stays what it was.
fn a_lease_over_reused_blocks() {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    for version in 1..ROUNDS {
        let lease = registry.acquire_as("long", set).unwrap();
        let twin = lease.clone();
        let swap = registry.replace(set, source(1, version)).unwrap();
        drop(lease);
        let other = registry.publish("other", source(2, version)).unwrap();
        registry.retire(other).unwrap().reclaimed(LONG).unwrap();
        let was = stamp_in(&twin, set);
        assert_eq!((was.set, was.version), (1, version - 1));
        assert_eq!(swap.previous.holders()[0].label, "long");
        drop(twin);
        swap.previous.reclaimed(LONG).unwrap();
    }
    close(&registry);
}

/// Tables of tensors that come and go where the last one lay.
fn layouts_at_one_address() {
    let registry = registry();
    let of = |name: &str, version: u64| {
        let bytes = Stamp { set: 1, version }.bytes(LEN);
        InMemory::new()
            .tensor(name, Dtype::U8, [LEN], bytes)
            .unwrap()
    };
    let mut places = HashSet::new();
    for round in 0..ROUNDS {
        let name = format!("tensor-{}", round % 7);
        let set = registry.publish("s", of(&name, round)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let layout = lease.set(set).unwrap().layout();
        places.insert(std::ptr::from_ref(layout) as usize);
        let found = lease.set(set).unwrap().get(&name).unwrap();
        assert_eq!(
            (found.name(), Stamp::of(found.bytes()).version),
            (&*name, round)
        );
        assert!(lease.set(set).unwrap().get("tensor-x").is_err());
        drop(lease);
        registry.retire(set).unwrap();
        settle(&registry);
        until("a layout is still there", || registry.stats().layouts == 0);
    }
    assert!(
        (places.len() as u64) < ROUNDS,
        "no address came back: this tests nothing"
    );
    close(&registry);
}

/// Labels that take each other's place.
fn labels_of_one_entry() {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    for version in 1..ROUNDS {
        let label = format!("request-{version}");
        let lease = registry.acquire_as(&label, set).unwrap();
        let swap = registry.replace(set, source(1, version)).unwrap();
        let newer = registry.acquire_as("newer", set).unwrap();
        let labels = || -> Vec<String> {
            let holders = swap.previous.holders().into_iter();
            holders.map(|holder| holder.label).collect()
        };
        assert_eq!(labels(), [&*label]);
        drop(lease);
        let again = registry.acquire_as("in its place", set).unwrap();
        assert!(labels().is_empty(), "another generation's: {:?}", labels());
        drop((newer, again));
    }
    close(&registry);
}

/// A registry where another one was: nobody's handle, registration or lease leads there.
fn registries_at_one_address() {
    let mut places = HashSet::new();
    let mut before: Option<(SetHandle, weighbridge::Lease)> = None;
    for round in 0..ROUNDS {
        let registry = Box::new(WeightRegistry::builder().build().unwrap());
        places.insert(&raw const *registry as usize);
        if let Some((old, lease)) = before.take() {
            let error = registry.acquire(old).unwrap_err();
            assert!(matches!(error, Error::WrongRegistry { .. }), "{error}");
            assert_eq!(stamp_in(&lease, old).version, round - 1);
        }
        let set = registry.publish("s", source(1, round)).unwrap();
        let lease = registry.acquire(set).unwrap();
        registry.scope(|scope| assert_eq!(scope.get(set).unwrap().leases(), 1));
        assert_eq!(stamp_in(&lease, set).version, round);
        before = Some((set, lease));
    }
    assert!(
        (places.len() as u64) < ROUNDS,
        "no address came back: this tests nothing"
    );
}
