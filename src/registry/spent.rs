//! Tests of the end of all slots and tags, which in earnest is 2^32 sets away: two-bit tags on a few
//! slots, through the public interface.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use super::WeightRegistry;
use crate::core::Bounds;
use crate::source::InMemory;
use crate::{Dtype, Error, SetHandle};

const SOON: Duration = Duration::from_secs(60);
const TWO_BITS: u32 = 3;

fn registry(slots: u32) -> WeightRegistry {
    let bounds = Bounds {
        slots,
        last_tag: TWO_BITS,
    };
    WeightRegistry::builder().build_within(bounds).unwrap()
}

fn bytes(fill: u8) -> InMemory {
    InMemory::new()
        .tensor("w", Dtype::U8, [4], [fill; 4])
        .unwrap()
}

/// All that a caller can do with a handle.
#[track_caller]
fn assert_stale(registry: &WeightRegistry, set: SetHandle) {
    let stale = |error: Error| matches!(error, Error::StaleHandle { handle } if handle == set);
    assert!(stale(registry.acquire(set).unwrap_err()));
    assert!(stale(registry.acquire_as("late", set).unwrap_err()));
    assert!(stale(registry.weight_handle(set, "w").unwrap_err()));
    assert!(stale(registry.retire(set).unwrap_err()));
    assert!(stale(registry.replace(set, bytes(0)).unwrap_err().into()));
    assert!(stale(registry.transaction().retire(set).unwrap_err()));
    registry.scope(|scope| {
        assert!(stale(scope.get(set).unwrap_err()));
        assert!(stale(scope.acquire(set).unwrap_err()));
    });
}

/// A publish that finds everything spent: nothing is left of it.
#[track_caller]
fn assert_spent(registry: &WeightRegistry, name: &str) {
    let before = registry.stats();
    let failed = registry.publish(name, bytes(9)).unwrap_err();
    assert!(matches!(failed.error(), Error::Spent), "{failed}");
    assert!(failed.error().is_exhausted());
    let staged = failed.into_staged().expect("what was staged comes back");
    let mut transaction = registry.transaction();
    let failed = transaction.publish(name, staged).unwrap_err();
    assert!(matches!(failed.error(), Error::Spent), "{failed}");
    assert!(failed.into_staged().is_some());
    // The transaction goes on without that step.
    drop(transaction);
    assert_eq!(registry.lookup(name), None);
    assert_eq!(registry.stats().sets, before.sets, "the name stayed taken");
    assert_eq!(registry.stats().commits, before.commits);
    assert_eq!(registry.ledger().reserved, before.ledger.reserved);
}

#[test]
fn a_slot_whose_tags_are_spent_is_never_used_again() {
    let registry = registry(1);
    let mut old: Vec<SetHandle> = Vec::new();
    for tenant in 1..=TWO_BITS {
        let set = registry.publish("a", bytes(tenant as u8)).unwrap();
        assert!(!old.contains(&set), "a handle came back");
        assert_eq!(registry.lookup("a"), Some(set));
        for &stale in &old {
            assert_stale(&registry, stale);
        }
        let lease = registry.acquire(set).unwrap();
        let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
        assert_eq!(bytes, [tenant as u8; 4]);
        registry.retire(set).unwrap();
        old.push(set);
    }
    assert_spent(&registry, "a");
    assert_spent(&registry, "b");
    for stale in old {
        assert_stale(&registry, stale);
    }
    assert_eq!(registry.stats().sets, 0);
    for going in registry.retired() {
        going.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn the_last_tenant_of_a_spent_slot_is_served_like_any_other() {
    let registry = registry(1);
    for _ in 1..TWO_BITS {
        let set = registry.publish("a", bytes(1)).unwrap();
        registry.retire(set).unwrap();
    }
    let last = registry.publish("a", bytes(1)).unwrap();
    let lease = registry.acquire(last).unwrap();
    assert_spent(&registry, "b");
    let failed = registry.publish("a", bytes(2)).unwrap_err();
    assert!(matches!(failed.error(), Error::AlreadyPublished { .. }));
    // Generations cost no tags.
    for fill in 2..20 {
        registry.replace(last, bytes(fill)).unwrap();
    }
    assert_eq!(lease.set(last).unwrap().get("w").unwrap().bytes(), [1; 4]);
    let going = registry.retire(last).unwrap();
    drop(lease);
    going.reclaimed(SOON).unwrap();
    assert_stale(&registry, last);
    assert_spent(&registry, "a");
}

#[test]
fn a_publish_that_is_given_up_costs_a_tag_and_no_more() {
    let registry = registry(1);
    let mut handles = HashSet::new();
    for _ in 0..TWO_BITS {
        // Its handle was seen, so it must not come back.
        let mut given_up = registry.transaction();
        let staged = given_up.stage(bytes(1)).unwrap();
        let handle = given_up.publish("a", staged).unwrap();
        assert!(handles.insert(handle), "{handle} came back");
        drop(given_up);
        assert_stale(&registry, handle);
    }
    assert_spent(&registry, "a");
    assert_eq!(registry.stats().commits, 0);
}

#[test]
fn threads_use_up_every_tag_of_every_slot_exactly_once() {
    const SLOTS: u32 = 70;
    const THREADS: usize = 4;
    let registry = registry(SLOTS);
    let used = Mutex::new(HashSet::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (registry, used) = (&registry, &used);
            scope.spawn(move || {
                let name = format!("set-{thread}");
                loop {
                    let set = match registry.publish(name.as_str(), bytes(thread as u8)) {
                        Ok(set) => set,
                        Err(failed) => {
                            assert!(matches!(failed.error(), Error::Spent), "{failed}");
                            return;
                        }
                    };
                    assert!(
                        used.lock().unwrap().insert(set),
                        "{set} was given out twice"
                    );
                    let lease = registry.acquire(set).unwrap();
                    let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
                    assert_eq!(bytes, [thread as u8; 4]);
                    registry.retire(set).unwrap();
                }
            });
        }
    });
    let used = used.into_inner().unwrap();
    assert_eq!(used.len() as u32, SLOTS * TWO_BITS);
    for set in used {
        assert_stale(&registry, set);
    }
    assert_eq!(registry.stats().sets, 0);
}
