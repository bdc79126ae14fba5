//! Memory that is kept for the next load, what makes room for it, and memory that nobody can write to. Where arenas are
//! mappings, and on Linux, where a place can be fenced in.
#![cfg(target_os = "linux")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Waker};
use std::thread;

use support::device::until;
use support::{SOON, block_on, bytes, mappings};
use weighbridge::memory::Owner;
use weighbridge::policy::{Candidate, Policy};
use weighbridge::source::{Evictable, Foreign, InMemory};
use weighbridge::{
    Account, Builder, Demand, Dtype, Error, Estimate, SetHandle, WeightHandle, WeightRegistry,
};

const MIB: usize = 1 << 20;
const M: u64 = MIB as u64;

fn with_pool(limit: u64, pool: u64) -> WeightRegistry {
    let builder = WeightRegistry::builder().limit_bytes(limit);
    builder.pool_bytes(pool).build().unwrap()
}

/// One tensor, `w`, and nobody hashes it.
fn declared(len: usize, fill: u8) -> InMemory {
    bytes(len, fill).declared(format!("{len} of {fill}"))
}

fn w(registry: &WeightRegistry, set: SetHandle) -> WeightHandle {
    registry.weight_handle(set, "w").unwrap()
}

/// Where the bytes of a set are.
fn address(registry: &WeightRegistry, set: SetHandle) -> u64 {
    let lease = registry.acquire(set).unwrap();
    lease.place(w(registry, set)).unwrap().address()
}

/// Where the bytes of a set of 4 MiB and more are, and only as long as its memory is kept another one can be there: it is
/// fenced in. A new mapping of that size needs 2 MiB more than the hole it would leave, for it is aligned.
fn fenced(registry: &WeightRegistry, set: SetHandle, len: usize) -> u64 {
    let there = address(registry, set);
    let len = len.next_multiple_of(64 << 10) as u64;
    assert!(len >= 4 * M);
    for at in [there - 4096, there + len] {
        let at = std::ptr::without_provenance_mut(at as usize);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a mapping of its own, that nobody uses, where nothing is. If something is there, it is refused, and that
        // is a fence as well.
        let _ = unsafe { libc::mmap(at, 4096, libc::PROT_NONE, flags, -1, 0) };
    }
    there
}

fn is_all(registry: &WeightRegistry, set: SetHandle, fill: u8) {
    let lease = registry.acquire(set).unwrap();
    let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
    assert!(bytes.iter().all(|&byte| byte == fill));
}

fn retire(registry: &WeightRegistry, set: SetHandle) {
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
}

/// Publishes a set of `len` bytes and retires it. Where it was.
fn come_and_go(registry: &WeightRegistry, len: usize) -> u64 {
    let set = registry.publish("passing", declared(len, 0xff)).unwrap();
    let there = if len < 4 * MIB {
        address(registry, set)
    } else {
        fenced(registry, set, len)
    };
    retire(registry, set);
    there
}

#[test]
fn the_next_set_of_its_size_has_the_memory() {
    let registry = with_pool(u64::MAX, 64 * M);
    let tenant = Account::namespace("tenant");
    registry.set_account_limit(&tenant, Some(5 * M)).unwrap();
    let set = registry.publish(("tenant", "one"), declared(5 * MIB, 1));
    let set = set.unwrap();
    let there = fenced(&registry, set, 5 * MIB);
    let going = registry.retire(set).unwrap();
    going.reclaimed(SOON).unwrap();
    let now = registry.ledger();
    assert_eq!((now.pooled, now.total(), now.peak), (5 * M, 5 * M, 5 * M));
    assert_eq!(registry.stats().reclaimed_bytes, 5 * M);
    assert_eq!(registry.account(&tenant).total(), 0, "it is nobody's");

    // One that is somewhat smaller gives the rest back.
    let len = 4 * MIB + 100;
    let set = registry.publish(("tenant", "two"), declared(len, 2));
    let set = set.unwrap();
    assert_eq!(address(&registry, set), there);
    is_all(&registry, set, 2);
    let now = registry.ledger();
    let charged = now.resident;
    assert!((len as u64..len as u64 + (64 << 10)).contains(&charged));
    assert_eq!((now.pooled, now.total(), now.peak), (0, charged, 5 * M));
    assert_eq!(registry.account(&tenant).resident, charged);
    retire(&registry, set);
    assert_eq!(registry.empty_pool().unwrap(), charged);
    assert_eq!(registry.ledger().total(), 0);
    assert_eq!(registry.empty_pool().unwrap(), 0);
}

/// Much of it would go to waste, it is too small, it is the allocator's, or the pool is too small for it.
#[test]
fn what_is_not_kept_and_what_is_not_used() {
    let registry = with_pool(u64::MAX, 8 * M);
    come_and_go(&registry, MIB - 64);
    assert_eq!(registry.ledger().total(), 0);
    come_and_go(&registry, 9 * MIB);
    assert_eq!(registry.ledger().total(), 0);
    let there = come_and_go(&registry, 8 * MIB);
    assert_eq!(registry.ledger().pooled, 8 * M);
    for len in [6 * MIB - (64 << 10), 8 * MIB + 1, 100] {
        let set = registry
            .publish(format!("{len}"), declared(len, 3))
            .unwrap();
        assert_ne!(address(&registry, set), there, "{len}");
        assert_eq!(registry.ledger().pooled, 8 * M, "{len}");
        is_all(&registry, set, 3);
    }
}

/// The room that the pool has is whoever's who wants it.
#[test]
fn nothing_is_refused_for_what_is_kept() {
    let registry = with_pool(8 * M, 8 * M);
    let fill = |registry: &WeightRegistry| {
        let sets = ["a", "b", "c", "d"].map(|name| {
            let set = registry.publish(name, declared(2 * MIB, 1));
            set.unwrap()
        });
        sets.into_iter().for_each(|set| retire(registry, set));
        assert_eq!(registry.ledger().pooled, 8 * M);
    };
    fill(&registry);
    // A set of another size: as much goes as it needs.
    let set = registry.publish("big", declared(5 * MIB, 2)).unwrap();
    let now = registry.ledger();
    assert_eq!((now.resident, now.pooled, now.peak), (5 * M, 2 * M, 8 * M));
    // Bytes of something else.
    let cache = registry.reserve_in(&Account::namespace("cache"), 2 * M);
    let cache = cache.unwrap();
    assert_eq!(
        (registry.ledger().pooled, registry.ledger().reserved),
        (0, 2 * M)
    );
    let refused = registry.publish("more", declared(MIB + 1, 3)).unwrap_err();
    assert!(matches!(
        refused.error(),
        Error::OverLimit { in_use, limit, .. } if (*in_use, *limit) == (7 * M, 8 * M)
    ));
    drop(cache);
    retire(&registry, set);
    registry.empty_pool().unwrap();

    // What is said to be in use is what could not go.
    fill(&registry);
    let refused = registry.reserve_in(&Account::namespace("cache"), 8 * M + 1);
    assert!(matches!(
        refused.unwrap_err(),
        Error::OverLimit { in_use: 0, .. }
    ));
    assert_eq!(registry.ledger().pooled, 8 * M, "it went for nothing");
    // Memory of others is in nobody's way, and nothing goes for it.
    let gpu = registry.reserve_in(&Account::foreign("gpu0"), 100 * M);
    drop(gpu.unwrap());
    assert_eq!(registry.ledger().pooled, 8 * M);
}

/// At every instant: each thread has at most one set, and there is room for one of each.
#[test]
fn nobody_is_refused_while_others_keep() {
    const THREADS: usize = 4;
    let registry = with_pool(THREADS as u64 * 2 * M, THREADS as u64 * 2 * M);
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (registry, barrier) = (&registry, &barrier);
            scope.spawn(move || {
                let mut seed = 7 + number as u64;
                barrier.wait();
                for _ in 0..100 {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let len = MIB + (seed >> 33) as usize % 5 * (MIB / 4);
                    let name = format!("set {number}");
                    if seed >> 60 == 0 {
                        let bytes = Account::namespace(&name);
                        drop(registry.reserve_in(&bytes, 2 * M).unwrap());
                    }
                    let set = registry.publish(name, declared(len, number as u8));
                    let set = set.unwrap();
                    is_all(registry, set, number as u8);
                    retire(registry, set);
                }
            });
        }
    });
    let now = registry.ledger();
    assert!(now.peak <= THREADS as u64 * 2 * M);
    assert_eq!(now.total(), now.pooled);
}

#[test]
fn the_oldest_goes_for_the_newest() {
    let registry = with_pool(u64::MAX, 20 * M);
    // Three sizes of which none serves for another.
    let there = [4 * MIB, 6 * MIB, 10 * MIB].map(|len| come_and_go(&registry, len));
    assert_eq!(registry.ledger().pooled, 20 * M);
    let newest = MIB / 4 * 27;
    come_and_go(&registry, newest);
    // The second oldest had to go with the oldest, which alone is not enough.
    let now = registry.ledger();
    let (newest, left) = (newest as u64, 10 * M);
    assert_eq!((now.pooled, now.total()), (left + newest, left + newest));
    assert_eq!(now.peak, 20 * M + newest, "the newest was there besides");
    let set = registry.publish("last", declared(10 * MIB, 1));
    assert_eq!(address(&registry, set.unwrap()), there[2]);
}

/// Between its tensors, and before it is written.
#[test]
fn nothing_is_left_of_who_was_there_before() {
    let registry = with_pool(u64::MAX, 64 * M);
    let len = 5 * MIB;
    let there = come_and_go(&registry, len);
    let gap = |registry: &WeightRegistry, set: SetHandle| {
        let lease = registry.acquire(set).unwrap();
        let a = registry.weight_handle(set, "a").unwrap();
        let place = lease.place(a).unwrap();
        assert_eq!(place.address(), there);
        let from = std::ptr::with_exposed_provenance::<u8>(place.address() as usize);
        // SAFETY: in the arena of a set that is leased: its first tensor has a byte, its second begins at 64.
        unsafe { std::slice::from_raw_parts(from.add(1), 63) }.to_vec()
    };
    let source = InMemory::new().tensor("a", Dtype::U8, [1], [1]).unwrap();
    let source = source.tensor("b", Dtype::U8, [len - 64], vec![2; len - 64]);
    let set = registry.publish("a source", source.unwrap()).unwrap();
    assert_eq!(gap(&registry, set), [0; 63]);
    let plan = {
        let tensors = [("a", vec![1]), ("b", vec![len - 64])];
        let tensors = tensors.map(|(name, shape)| (name, Dtype::U8, shape));
        weighbridge::Plan::of("step 1", tensors).unwrap()
    };
    retire(&registry, set);
    come_and_go(&registry, len);
    let filling = registry.fill(plan, None).unwrap();
    for (name, len) in [("a", 1), ("b", len - 64)] {
        filling.writer(name).unwrap().write(&vec![3; len]).unwrap();
    }
    let staged = filling.seal().unwrap();
    let set = registry.publish_staged("filled", staged).unwrap();
    assert_eq!(gap(&registry, set), [0; 63]);
}

/// By hand, for others, and for a load that finds room in the pool and evicts nobody.
#[test]
fn what_is_evicted_is_kept_and_what_is_kept_goes_before_anybody_is_evicted() {
    let registry = with_pool(24 * M, 24 * M);
    let publish = |name: &str, fill: u8| {
        let source = Evictable::new(declared(8 * MIB, fill));
        registry.publish(name, source).unwrap()
    };
    let a = publish("a", 1);
    let there = fenced(&registry, a, 8 * MIB);
    assert_eq!(registry.evict(a).unwrap(), 8 * M);
    assert_eq!(registry.ledger().pooled, 8 * M);
    let b = publish("b", 2);
    assert_eq!(address(&registry, b), there);
    let c = publish("c", 3);
    registry.evict(c).unwrap();
    let other = registry.publish("other", declared(5 * MIB, 4)).unwrap();
    retire(&registry, other);
    let now = registry.ledger();
    assert_eq!((now.resident, now.pooled), (8 * M, 13 * M));

    // It fits in what is kept.
    let estimate = registry.estimate(&Demand::new().set(a).set(c)).unwrap();
    assert!(matches!(estimate, Estimate::Now { bytes, .. } if bytes == 16 * M));
    let both = registry.acquire_or_load([a, c], SOON).unwrap();
    let now = registry.ledger();
    assert_eq!((now.resident, now.pooled, now.total()), (24 * M, 0, 24 * M));
    assert_eq!(registry.stats().evictions, 0);
    is_all(&registry, a, 1);
    is_all(&registry, c, 3);
    drop(both);
}

#[test]
fn a_drained_swap_takes_the_memory_over() {
    let registry = WeightRegistry::builder().limit_bytes(6 * M).build();
    let registry = registry.unwrap();
    let set = registry.publish("set", declared(5 * MIB, 1)).unwrap();
    let there = fenced(&registry, set, 5 * MIB);
    let swapped = registry.replace_drained(set, declared(5 * MIB, 2), SOON);
    swapped.unwrap();
    assert_eq!(address(&registry, set), there);
    is_all(&registry, set, 2);
    // Not one that is larger.
    let swapped = registry.replace_drained(set, declared(6 * MIB, 3), SOON);
    swapped.unwrap();
    is_all(&registry, set, 3);
    let now = registry.ledger();
    assert_eq!((now.total(), now.peak), (6 * M, 6 * M));
}

/// From when it is filled until it is filled again.
#[test]
fn nobody_can_write_to_memory_that_is_protected() {
    let build = |builder: Builder| builder.write_protect(true).build().unwrap();
    let registry = build(WeightRegistry::builder().pool_bytes(64 * M));
    let is = |registry: &WeightRegistry, set, wanted: &str| {
        let protection = mappings::protection(address(registry, set)).unwrap();
        assert!(protection.starts_with(wanted), "{protection}");
    };
    let evictable = Evictable::new(declared(5 * MIB, 1));
    let set = registry.publish("set", evictable).unwrap();
    is(&registry, set, "r--");
    let there = fenced(&registry, set, 5 * MIB);
    registry.evict(set).unwrap();
    registry.load(set).unwrap();
    assert_eq!(address(&registry, set), there, "it was written to again");
    is(&registry, set, "r--");
    is_all(&registry, set, 1);
    retire(&registry, set);
    let plan = weighbridge::Plan::of("filled", [("w", Dtype::U8, vec![5 * MIB])]);
    let filling = registry.fill(plan.unwrap(), None).unwrap();
    let all = vec![9; 5 * MIB];
    filling.writer("w").unwrap().write(&all).unwrap();
    let set = registry.publish_staged("filled", filling.seal().unwrap());
    let set = set.unwrap();
    assert_eq!(address(&registry, set), there);
    is(&registry, set, "r--");
    is_all(&registry, set, 9);
    // Its pages are the allocator's, and others write there.
    let small = registry.publish("small", declared(100, 1)).unwrap();
    is(&registry, small, "rw-");
    let plain = WeightRegistry::builder().build().unwrap();
    let set = plain.publish("set", declared(5 * MIB, 1)).unwrap();
    is(&plain, set, "rw-");
}

/// Loads on demand keep the total below it while they can; nobody is refused or waits for it.
#[test]
fn a_soft_limit_keeps_room_for_what_evicts_nothing() {
    let builder = WeightRegistry::builder().limit_bytes(8 * M);
    let registry = builder.soft_limit_bytes(4 * M).build().unwrap();
    assert_eq!(registry.ledger().soft_limit, 4 * M);
    let sets: Vec<SetHandle> = (1..=4)
        .map(|fill| {
            let source = Evictable::new(declared(MIB, fill));
            registry.publish(format!("{fill}"), source).unwrap()
        })
        .collect();
    assert_eq!(registry.ledger().resident, 4 * M, "up to it nothing goes");
    // A publish does not evict, and may pass it.
    let base = registry.publish("base", declared(2 * MIB, 9)).unwrap();
    assert_eq!(registry.ledger().resident, 6 * M);
    assert_eq!(registry.stats().evictions, 0);

    // A load does: itself, and what was above before.
    registry.evict(sets[0]).unwrap();
    let lease = registry.acquire_or_load([sets[0]], SOON).unwrap();
    assert_eq!(registry.stats().evictions, 2);
    until("it is freed", || registry.ledger().total() == 4 * M);
    is_all(&registry, sets[0], 1);
    drop(lease);

    // While everything is leased, it is passed, and nobody waits.
    let leases: Vec<_> = sets
        .iter()
        .map(|&set| registry.acquire_or_load([set], SOON).unwrap())
        .collect();
    // What went for the first of them, while nobody had a lease of it, may still be on its way back.
    until("it is freed", || registry.ledger().total() == 6 * M);
    drop(leases);
    registry.retire(base).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 4 * M);
}

/// What is kept is no reason to evict.
#[test]
fn the_pool_does_not_count_against_the_soft_limit() {
    let builder = WeightRegistry::builder().pool_bytes(16 * M);
    let registry = builder.soft_limit_bytes(2 * M).build().unwrap();
    come_and_go(&registry, 8 * MIB);
    let sets = [1, 2].map(|fill| {
        let source = Evictable::new(declared(MIB, fill));
        registry.publish(format!("{fill}"), source).unwrap()
    });
    registry.evict(sets[0]).unwrap();
    registry.acquire_or_load([sets[0]], SOON).unwrap();
    assert_eq!(registry.stats().evictions, 0);
    assert_eq!(registry.ledger().resident, 2 * M);
}

#[test]
fn pinned_bytes_are_those_of_pinned_sets_that_are_there() {
    let registry = WeightRegistry::builder().build().unwrap();
    let pinned = || registry.stats().pinned_bytes;
    let a = registry.publish("a", Evictable::new(bytes(64, 1))).unwrap();
    let b = registry.publish("b", bytes(128, 2)).unwrap();
    registry.evict(a).unwrap();
    let pins = [registry.pin(a, "x").unwrap(), registry.pin(b, "x").unwrap()];
    let again = registry.pin(b, "y").unwrap();
    assert_eq!(pinned(), 128);
    registry.load(a).unwrap();
    assert_eq!(pinned(), 192);
    registry.replace(b, bytes(256, 3)).unwrap();
    assert_eq!(pinned(), 320, "of the current generation");
    drop(pins);
    assert_eq!(pinned(), 256);
    registry.retire(b).unwrap();
    assert_eq!(pinned(), 0);
    drop(again);
    assert_eq!(pinned(), 0);
}

/// Both generations are there at the peak, or what is more if one waits.
#[test]
fn the_peak_of_a_swap_is_estimated() {
    let registry = WeightRegistry::builder().limit_bytes(1024).build().unwrap();
    let set = registry.publish("set", Evictable::new(bytes(512, 1)));
    let set = set.unwrap();
    let plan = |len| {
        let plan = weighbridge::Plan::of("next", [("w", Dtype::U8, vec![len])]);
        plan.unwrap()
    };
    let ask = |demand: Demand| registry.estimate(&demand).unwrap();
    let replaced = |len| ask(Demand::new().replacement(set, &plan(len)));
    let drained = |len| ask(Demand::new().drained_replacement(set, &plan(len)));
    assert!(matches!(replaced(512), Estimate::Now { bytes: 512, .. }));
    let never = replaced(576);
    assert!(
        matches!(
            never,
            Estimate::Never {
                missing: 64,
                immovable: 512,
                ..
            }
        ),
        "{never:?}"
    );
    assert!(matches!(drained(1024), Estimate::Now { bytes: 512, .. }));
    assert!(matches!(drained(448), Estimate::Now { bytes: 0, .. }));
    assert!(matches!(drained(1088), Estimate::Never { missing: 64, .. }));
    // And so it is.
    assert!(registry.replace(set, bytes(576, 2)).is_err());
    registry.replace_drained(set, bytes(1024, 2), SOON).unwrap();
    registry
        .replace_drained(set, Evictable::new(bytes(512, 1)), SOON)
        .unwrap();
    // One that is away leaves all of it.
    registry.evict(set).unwrap();
    assert!(matches!(replaced(1024), Estimate::Now { bytes: 1024, .. }));
    let other = Demand::new()
        .replacement(set, &plan(1024))
        .plan("", &plan(64));
    assert!(matches!(ask(other), Estimate::Never { missing: 64, .. }));
    let gone = registry.publish("gone", bytes(64, 1)).unwrap();
    registry.retire(gone).unwrap();
    let refused = registry.estimate(&Demand::new().replacement(gone, &plan(1)));
    assert!(matches!(refused, Err(Error::StaleHandle { handle }) if handle == gone));
}

/// By the loads of futures, too.
#[test]
fn what_is_evicted_for_others_is_used_by_them() {
    let registry = Arc::new(with_pool(5 * M, 5 * M));
    let publish = |name: &str, fill: u8| {
        let source = Evictable::new(declared(5 * MIB, fill));
        let set = registry.publish(name, source).unwrap();
        let there = fenced(&registry, set, 5 * MIB);
        registry.evict(set).unwrap();
        (set, there)
    };
    let [(a, there), (b, again)] = [publish("a", 1), publish("b", 2)];
    assert_eq!(there, again);
    registry.empty_pool().unwrap();
    drop(registry.acquire_or_load([a], SOON).unwrap());
    let there = fenced(&registry, a, 5 * MIB);
    for (set, fill) in [(b, 2), (a, 1), (b, 2)] {
        let lease = block_on(registry.acquire_or_load_async([set])).unwrap();
        assert_eq!(address(&registry, set), there);
        is_all(&registry, set, fill);
        drop(lease);
    }
    assert_eq!(registry.ledger().peak, 5 * M);
}

#[test]
fn a_request_for_everything_is_refused() {
    let registry = with_pool(u64::MAX, 64 * M);
    come_and_go(&registry, MIB);
    assert_eq!(registry.ledger().pooled, M);
    let all = registry.reserve_in(&Account::namespace("x"), u64::MAX);
    all.map(drop).unwrap();
    let one = registry.publish("one", bytes(64, 1)).unwrap();
    let all = registry.reserve_in(&Account::namespace("x"), u64::MAX);
    assert!(matches!(all, Err(Error::OverLimit { in_use: 64, .. })));
    retire(&registry, one);
}

fn evictable(registry: &WeightRegistry, name: &str, len: usize) -> SetHandle {
    let source = Evictable::new(declared(len, 1));
    registry.publish(name, source).unwrap()
}

/// What a load was granted more than it needs, of what was kept or of a victim, comes back anyway.
#[test]
fn what_is_on_its_way_back_is_no_reason_to_evict() {
    let builder = WeightRegistry::builder().limit_bytes(10 * M);
    let builder = builder.soft_limit_bytes(4 * M).pool_bytes(8 * M);
    let registry = builder.build().unwrap();
    for name in ["a", "b"] {
        evictable(&registry, name, MIB);
    }
    let c = evictable(&registry, "c", MIB);
    registry.evict(c).unwrap();
    registry.empty_pool().unwrap();
    come_and_go(&registry, 8 * MIB);
    // Three MiB of weights, a soft limit of four.
    registry.acquire_or_load([c], SOON).unwrap();
    let now = registry.ledger();
    assert_eq!((registry.stats().evictions, now.resident), (0, 3 * M));

    let builder = WeightRegistry::builder().limit_bytes(8 * M);
    let registry = builder.soft_limit_bytes(4 * M).build().unwrap();
    let c = evictable(&registry, "c", MIB);
    registry.evict(c).unwrap();
    evictable(&registry, "big", 6 * MIB);
    for name in ["a", "b"] {
        evictable(&registry, name, MIB);
    }
    registry.acquire_or_load([c], SOON).unwrap();
    let now = registry.ledger();
    assert_eq!((registry.stats().evictions, now.resident), (1, 3 * M));
}

/// Memory whose end waits for a word.
struct Waits(Mutex<mpsc::Receiver<()>>);

impl Owner for Waits {
    fn byte_len(&self) -> u64 {
        64
    }
    fn address(&self) -> u64 {
        0
    }
    fn give_back(self: Box<Self>, _: &mut dyn FnMut()) {
        // Nobody has a word to say any more if the test has failed.
        let _ = self.0.lock().unwrap().recv();
    }
}

/// Each load evicts for itself, also while what others evicted is not back.
#[test]
fn nobody_evicts_for_the_soft_limit_twice() {
    let builder = WeightRegistry::builder().loaders(1);
    let registry = builder.soft_limit_bytes(3 * M + 4096).build().unwrap();
    let registry = Arc::new(registry);
    let (reading, is_reading) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let (wait, published) = (Mutex::new(wait), AtomicBool::new(false));
    let hangs = Evictable::opened_by(move || {
        if published.load(Ordering::Relaxed) {
            reading.send(()).unwrap();
            let _ = wait.lock().unwrap().recv();
        }
        published.store(true, Ordering::Relaxed);
        Ok(declared(64, 1))
    });
    let hangs = registry.publish("hangs", hangs.unwrap()).unwrap();
    let wanted = ["x", "y"].map(|name| evictable(&registry, name, MIB));
    for set in [hangs, wanted[0], wanted[1]] {
        registry.evict(set).unwrap();
    }
    for name in ["1", "2", "3"] {
        evictable(&registry, name, MIB);
    }
    // Nor does the reclaimer free anything meanwhile.
    let (free, waits) = mpsc::channel();
    let owner = Foreign::new(Waits(Mutex::new(waits))).unwrap();
    let blocks = registry.publish("blocks", owner).unwrap();
    registry.retire(blocks).unwrap();
    let mut nobody = Context::from_waker(Waker::noop());
    let mut first = Box::pin(registry.acquire_or_load_async([hangs]));
    assert!(first.as_mut().poll(&mut nobody).is_pending());
    is_reading.recv_timeout(SOON).unwrap();
    // The one loader hangs: what these are granted waits for it.
    let mut loads = wanted.map(|set| Box::pin(registry.acquire_or_load_async([set])));
    for load in &mut loads {
        assert!(load.as_mut().poll(&mut nobody).is_pending());
    }
    assert_eq!(registry.stats().evictions, 2, "one for each");
    assert_eq!(registry.ledger().retired, 2 * M, "it is not back");
    free.send(()).unwrap();
    go.send(()).unwrap();
    drop((first, loads));
    until("they are read", || registry.ledger().reserved == 0);
}

/// Also of what goes for the soft limit.
#[test]
fn a_policy_is_told_of_what_it_ranked_last() {
    #[derive(Default)]
    struct Notes {
        ranked: Vec<SetHandle>,
        gone: Vec<SetHandle>,
    }
    struct Noting(Arc<Mutex<Notes>>);
    impl Policy for Noting {
        fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
            let order: Vec<SetHandle> = candidates.iter().map(|one| one.set).collect();
            self.0.lock().unwrap().ranked.clone_from(&order);
            order
        }
        fn went(&mut self, sets: &[SetHandle]) {
            let mut notes = self.0.lock().unwrap();
            assert!(sets.iter().all(|set| notes.ranked.contains(set)));
            notes.gone.extend(sets);
        }
    }
    let notes: Arc<Mutex<Notes>> = Arc::default();
    let builder = WeightRegistry::builder().limit_bytes(3 * M);
    let builder = builder.policy(Noting(Arc::clone(&notes)));
    let registry = builder.soft_limit_bytes(2 * M).build().unwrap();
    let d = evictable(&registry, "d", MIB);
    registry.evict(d).unwrap();
    let idle = ["a", "b", "c"].map(|name| evictable(&registry, name, MIB));
    registry.acquire_or_load([d], SOON).unwrap();
    assert_eq!(registry.stats().observer_panics, 0);
    assert_eq!(notes.lock().unwrap().gone, idle[..2]);
}
