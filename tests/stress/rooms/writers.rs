//! Writers against writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weighbridge::{Error, WeightRegistry};

use super::Size;
use super::crew::Crew;
use super::oracle::{
    CHARGE, LONG, Seen, Stamp, acquire, close, limited, registry, source, stamp_in,
};

/// Of two that replace the same generation, one wins.
pub fn two_writers(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    let won = Arc::new(AtomicU64::new(0));
    let mut crew = Crew::new();
    for writer in 1..=2u64 {
        let (registry, won) = (Arc::clone(&registry), Arc::clone(&won));
        crew.lead(move || {
            for round in 0..size.rounds {
                let current = registry.acquire(set).unwrap();
                let current = current.set(set).unwrap().generation();
                let next = source(1, (writer << 32) | round);
                match registry.replace_if(set, current, next) {
                    Ok(swap) => {
                        assert_eq!(swap.previous.generation(), current);
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(lost) => assert!(lost.error().is_conflict(), "{lost}"),
                }
            }
        });
    }
    for way in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            if let Some(lease) = acquire(&registry, &[set], way) {
                assert_eq!(stamp_in(&lease, set).set, 1);
            }
        });
    }
    crew.work();
    let commits = registry.stats().commits;
    assert_eq!(commits, won.load(Ordering::Relaxed) + 1);
    close(&registry);
}

/// Transactions that name the same sets in different orders.
pub fn crossing_transactions(size: Size) {
    let registry = registry();
    let sets = [1, 2, 3].map(|set| {
        let name = format!("s{set}");
        registry.publish(name.as_str(), source(set, 0)).unwrap()
    });
    let mut crew = Crew::new();
    for writer in 1..=2u64 {
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            for round in 0..size.rounds {
                let mut all = registry.transaction();
                for step in 0..3u64 {
                    let at = (step * writer + round) % 3;
                    let staged = all.stage(source(at + 1, (writer << 32) | round)).unwrap();
                    all.replace(sets[at as usize], staged).unwrap();
                }
                all.commit().unwrap();
            }
        });
    }
    for way in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            let Some(lease) = acquire(&registry, &sets, way) else {
                return;
            };
            let stamps = sets.map(|set| stamp_in(&lease, set));
            assert_eq!(stamps.map(|stamp| stamp.set), [1, 2, 3]);
            assert!(
                stamps
                    .iter()
                    .all(|stamp| stamp.version == stamps[0].version),
                "mixed"
            );
        });
    }
    crew.work();
    close(&registry);
}

/// Back and forth between kept generations.
pub fn rollbacks(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    registry.keep_previous(set, 2).unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            writer.replace(set, source(1, version)).unwrap();
            writer.rollback(set).unwrap();
            let kept = writer.kept(set).unwrap();
            if let Some(oldest) = kept.first() {
                writer.rollback_to(set, oldest.generation).unwrap();
            }
        }
    });
    for way in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            let Some(lease) = acquire(&registry, &[set], way) else {
                return;
            };
            let stamp = stamp_in(&lease, set);
            assert!(stamp.set == 1 && stamp.version <= size.rounds, "{stamp:?}");
        });
    }
    crew.work();
    close(&registry);
}

/// Where both generations do not fit, the set is empty for a while, and never over the limit.
pub fn drained_swaps(size: Size) {
    let limit = CHARGE + CHARGE / 2;
    let registry = limited(limit);
    let set = registry.publish("s", source(1, 0)).unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let swap = writer.replace_drained(set, source(1, version), LONG);
            assert!(swap.unwrap().previous.is_reclaimed());
        }
    });
    for _ in 0..size.threads {
        let (registry, mut seen) = (Arc::clone(&registry), Seen::default());
        crew.follow(move || match registry.acquire(set) {
            Ok(lease) => drop::<Stamp>(seen.see(&lease, set)),
            Err(Error::NotResident { .. }) => assert!(total(&registry) <= limit),
            Err(other) => panic!("{other}"),
        });
    }
    crew.work();
    assert!(registry.ledger().peak <= limit);
    close(&registry);
}

fn total(registry: &WeightRegistry) -> u64 {
    registry.ledger().total()
}
