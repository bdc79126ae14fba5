//! Names and handles: who comes, who goes, and who must not be taken for whom.

use std::collections::HashMap;
use std::sync::Arc;

use weighbridge::{Error, SetHandle};

use super::Size;
use super::crew::Crew;
use super::oracle::{close, registry, source, stamp_in};

/// One slot, tenant after tenant: a handle leads to its own tenant or nowhere.
pub fn stale_handles(size: Size) {
    let registry = registry();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let set = writer.publish("s", source(1, version)).unwrap();
            writer.retire(set).unwrap();
        }
    });
    for _ in 0..size.threads {
        let registry = Arc::clone(&registry);
        // Which version each handle's bytes were, by the first lease of it.
        let mut tenants: HashMap<SetHandle, u64> = HashMap::new();
        let mut known: Vec<SetHandle> = Vec::new();
        crew.follow(move || {
            if let Some(set) = registry.lookup("s") {
                known.push(set);
            }
            let recent = known.len().saturating_sub(4);
            for &set in &known[recent..] {
                match registry.acquire(set) {
                    Ok(lease) => {
                        let version = stamp_in(&lease, set).version;
                        let first = *tenants.entry(set).or_insert(version);
                        assert_eq!(first, version, "{set} leads to another tenant");
                        assert_eq!(lease.set(set).unwrap().handle(), set);
                    }
                    Err(Error::StaleHandle { handle }) => assert_eq!(handle, set),
                    Err(Error::NotResident { .. }) => (),
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    crew.work();
    close(&registry);
}

/// Few names, many writers.
pub fn fights_for_names(size: Size) {
    const NAMES: u64 = 4;
    let registry = registry();
    // Of all lengths, so that memory of all sizes changes hands.
    let name = |number: u64| format!("set-{number}-{}", "x".repeat(17 * number as usize));
    let mut crew = Crew::new();
    for writer in 0..size.threads as u64 {
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            for round in 0..size.rounds {
                let number = (round + writer) % NAMES;
                match registry.publish(name(number).as_str(), source(number, round)) {
                    Ok(set) => {
                        assert_eq!(registry.lookup(name(number).as_str()), Some(set));
                        registry.retire(set).unwrap();
                        assert_ne!(registry.lookup(name(number).as_str()), Some(set));
                    }
                    Err(lost) => assert!(lost.error().is_conflict(), "{lost}"),
                }
            }
        });
    }
    for _ in 0..2 {
        let registry = Arc::clone(&registry);
        let mut turn = 0;
        crew.follow(move || {
            turn += 1;
            let number = turn % NAMES;
            let Some(set) = registry.lookup(name(number).as_str()) else {
                return;
            };
            if let Ok(lease) = registry.acquire(set) {
                assert_eq!(stamp_in(&lease, set).set, number, "another name's set");
                assert_eq!(lease.set(set).unwrap().name().name(), name(number));
            }
        });
    }
    crew.work();
    assert_eq!(
        registry.stats().sets,
        0,
        "a name or a claim was left behind"
    );
    close(&registry);
}

/// More sets than the first segments of the table have, while others look for the newest.
pub fn table_grows(size: Size) {
    const WRITERS: u64 = 2;
    let registry = registry();
    let name = |writer: u64, number: u64| format!("{writer}-{number}");
    let mut crew = Crew::new();
    for writer in 0..WRITERS {
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            for number in 0..2 * size.rounds {
                let source = source(writer, number);
                registry
                    .publish(name(writer, number).as_str(), source)
                    .unwrap();
            }
        });
    }
    for reader in 0..size.threads as u64 {
        let registry = Arc::clone(&registry);
        let (writer, mut next) = (reader % WRITERS, 0);
        crew.follow(move || {
            while let Some(set) = registry.lookup(name(writer, next).as_str()) {
                let lease = registry.acquire(set).unwrap();
                let stamp = stamp_in(&lease, set);
                assert_eq!((stamp.set, stamp.version), (writer, next));
                next += 1;
            }
        });
    }
    crew.work();
    assert_eq!(registry.stats().sets as u64, 2 * size.rounds * WRITERS);
    close(&registry);
}
