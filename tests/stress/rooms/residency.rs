//! Bytes that go and come back under those who lease them.
//!
//! A call that waits reads several sets on scoped threads, which ThreadSanitizer does not see through, so
//! here it wants one set, and futures want several.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use weighbridge::source::{Evictable, InMemory};
use weighbridge::{Error, Lease, SetHandle, WeightRegistry};

use super::Size;
use super::block_on::block_on;
use super::crew::Crew;
use super::oracle::{CHARGE, LONG, Seen, close, limited, registry, source, stamp_in};

/// As long as somebody waits for room that may not come.
const BRIEFLY: Duration = Duration::from_millis(2);

/// A set that is made anew each time that it is read.
fn again(set: u64, version: u64) -> Evictable<InMemory> {
    Evictable::opened_by(move || Ok(source(set, version))).expect("a legal source")
}

/// In one way after the other. `None`: it was refused what may be refused.
fn lease(registry: &Arc<WeightRegistry>, sets: &[SetHandle], way: usize) -> Option<Lease> {
    let answer = match way % 4 {
        0 => registry.acquire(sets),
        1 if sets.len() == 1 => registry.acquire_or_load(sets, LONG),
        1 | 2 => block_on(registry.acquire_or_load_async(sets), LONG).expect("it ends"),
        // Dropped at any moment of it.
        _ => block_on(registry.acquire_or_load_async(sets), BRIEFLY / 8)?,
    };
    answer.map_err(may_be).ok()
}

/// What everybody here may be told.
fn may_be(error: Error) {
    match error {
        Error::NotResident { .. }
        | Error::Leased(_)
        | Error::BytesShared { .. }
        | Error::Pinned { .. }
        | Error::StaleHandle { .. }
        | Error::NotLoaded(_) => {}
        error if error.is_over_limit() => {}
        error => panic!("{error}"),
    }
}

/// Two sets are evicted and loaded by hand and on demand, and one of them is replaced, while they are leased:
/// each lease has the bytes of its generation, whatever happened to them in between.
pub fn evicted_under_readers(size: Size) {
    let registry = registry();
    let sets = [0, 1].map(|set| {
        let name = format!("set-{set}");
        registry.publish(name.as_str(), again(set, 0)).unwrap()
    });
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            writer.replace(sets[0], again(0, version)).unwrap();
            thread::yield_now();
        }
    });
    for thread in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            for round in 0..size.rounds as usize {
                let set = sets[(thread + round) % 2];
                let answer = match (thread + round / 2) % 3 {
                    0 => registry.load(set),
                    _ => registry.evict(set),
                };
                answer.map_err(may_be).unwrap_or_default();
            }
        });
    }
    for thread in 0..size.threads {
        let registry = Arc::clone(&registry);
        let (mut turn, mut seen) = (thread, [Seen::default(), Seen::default()]);
        crew.follow(move || {
            turn += 1;
            let wanted = [&sets[..1], &sets[1..], &sets][turn % 3];
            let Some(lease) = lease(&registry, wanted, turn / 3) else {
                return;
            };
            for (seen, set) in seen.iter_mut().zip(sets) {
                if wanted.contains(&set) {
                    seen.see(&lease, set);
                }
            }
        });
    }
    crew.work();
    close(&registry);
}

/// More sets than fit: whoever wants some has others evicted, while they are replaced, retired and published
/// anew. Never over the limit, and never another set's bytes.
pub fn more_sets_than_fit(size: Size) {
    const SETS: u64 = 6;
    let limit = 3 * CHARGE + CHARGE / 2;
    let registry = limited(limit);
    let name = |set: u64| format!("set-{set}");
    for set in 0..SETS {
        let handle = registry.publish(name(set).as_str(), again(set, 0)).unwrap();
        registry.evict(handle).unwrap();
    }
    let leases = Arc::new(AtomicUsize::new(0));
    let mut crew = Crew::new();
    for thread in 0..size.threads as u64 {
        let registry = Arc::clone(&registry);
        let leases = Arc::clone(&leases);
        crew.lead(move || {
            for round in 0..size.rounds {
                let turn = thread * 7 + round;
                let (one, other) = (turn % SETS, (turn + 1 + round % 3) % SETS);
                let found = |set: u64| registry.lookup(name(set).as_str());
                let (Some(first), Some(second)) = (found(one), found(other)) else {
                    continue;
                };
                let both = [first, second];
                let wanted = if round % 2 == 0 { &both[..1] } else { &both };
                let answer = if wanted.len() == 1 && thread % 2 == 0 {
                    registry.acquire_or_load(wanted, BRIEFLY)
                } else {
                    let future = registry.acquire_or_load_async(wanted);
                    let Some(answer) = block_on(future, BRIEFLY) else {
                        continue;
                    };
                    answer
                };
                let Ok(lease) = answer.map_err(may_be) else {
                    continue;
                };
                leases.fetch_add(1, Ordering::Relaxed);
                for (&handle, set) in wanted.iter().zip([one, other]) {
                    assert_eq!(stamp_in(&lease, handle).set, set, "another set's bytes");
                }
            }
        });
    }
    // One replaces, one retires and publishes again, each its own sets.
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let set = version % 2;
            let handle = writer.lookup(name(set).as_str()).unwrap();
            let pin = writer.pin(handle, "whoever replaces it").unwrap();
            if let Err(refused) = writer.replace(handle, again(set, version)) {
                let (error, _) = refused.into_parts();
                may_be(error);
            }
            drop(pin);
        }
    });
    let ender = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let name = name(2);
            if let Some(handle) = ender.lookup(name.as_str()) {
                ender.retire(handle).unwrap();
            }
            if let Err(refused) = ender.publish(name.as_str(), again(2, version)) {
                let (error, _) = refused.into_parts();
                may_be(error);
            }
        }
    });
    let observer = Arc::clone(&registry);
    crew.follow(move || {
        let ledger = observer.ledger();
        let within = ledger.total() <= limit && ledger.peak <= limit;
        assert!(within, "{ledger:?}");
    });
    crew.work();
    assert_ne!(leases.load(Ordering::Relaxed), 0, "nobody got anything");
    assert_eq!(registry.stats().waiting, 0);
    close(&registry);
}
