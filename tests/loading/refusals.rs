//! What is refused, and what the error says.
//!
//! What lives here: sets that cannot be had, sizes that can never fit, loads inside of loads, patience that is
//! over. What does not: sources that fail (`failures`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use weighbridge::source::Evictable;
use weighbridge::{Demand, Error, Lease, WeightRegistry};

use crate::support::{SOON, addition, block_on, bytes};
use crate::{Kitchen, ONE, away, resident, value};

/// Handles that mean nothing, sets that cannot come back.
#[test]
fn what_is_wrong_with_the_sets_is_said_first() {
    let (registry, _, sets) = away(1, 1);
    let other = WeightRegistry::builder().build().unwrap();
    let foreign = other.publish("s", bytes(64, 1)).unwrap();
    let refused = registry.acquire_or_load([sets[0], foreign], SOON);
    assert!(matches!(refused, Err(Error::WrongRegistry { .. })));
    let retired = registry.publish("gone", bytes(0, 1)).unwrap();
    registry.retire(retired).unwrap();
    let refused = registry.acquire_or_load([sets[0], retired], SOON);
    assert!(matches!(refused, Err(Error::StaleHandle { .. })));
    assert!(registry.estimate(&Demand::new().set(retired)).is_err());
    assert!(registry.pin(retired, "x").is_err() && registry.pinned_by(foreign).is_err());
    // None, and one twice.
    assert_eq!(registry.acquire_or_load([], SOON).unwrap().sets().len(), 0);
    let twice = registry.acquire_or_load([sets[0]; 2], SOON).unwrap();
    assert_eq!(twice.sets().len(), 2);
    assert_eq!(registry.ledger().peak, ONE);
}

/// Another base than its own is found before anything is loaded.
#[test]
fn a_wrong_pair_is_refused_before_it_is_loaded() {
    let registry = WeightRegistry::builder().build().unwrap();
    let kitchen = Kitchen::new(2);
    let [base, other] = [0, 1].map(|at| {
        registry
            .publish(format!("s{at}"), kitchen.source(at))
            .unwrap()
    });
    let adapter = registry.publish("adapter", addition(64, 7, base)).unwrap();
    registry.evict(other).unwrap();
    let refused = registry.acquire_or_load([adapter, other], SOON);
    assert!(matches!(refused, Err(Error::WrongBase { .. })));
    assert_eq!(resident(&registry), ["adapter", "s0"]);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let (registry, _, sets) = away(4, 2);
    let refused = registry.acquire_or_load(&sets[..3], SOON).unwrap_err();
    assert!(
        matches!(refused, Error::NeverFits { requested, immovable: 0, limit, account: None } if (requested, limit) == (3 * ONE, 2 * ONE)),
        "{refused}"
    );
    assert!(refused.is_over_limit() && refused.is_out_of_memory());
    assert_eq!(registry.ledger().peak, ONE, "the publishes");
    assert!(resident(&registry).is_empty());

    let fixed = registry.publish("fixed", bytes(64, 9)).unwrap();
    drop(registry.acquire_or_load(sets[0], SOON).unwrap());
    let pin = registry.pin(sets[0], "somebody").unwrap();
    let refused = registry.acquire_or_load(sets[1], SOON).unwrap_err();
    assert!(
        matches!(refused, Error::NeverFits { immovable, .. } if immovable == 2 * ONE),
        "{refused}"
    );
    assert_eq!(resident(&registry), ["fixed", "s0"]);
    drop(pin);
    // What is wanted as well stays.
    let refused = registry.acquire_or_load([sets[0], sets[1]], SOON);
    assert!(matches!(refused, Err(Error::NeverFits { .. })));
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    registry.retire(fixed).unwrap().reclaimed(SOON).unwrap();
    drop(registry.acquire_or_load([sets[0], sets[1]], SOON).unwrap());
}

#[test]
fn a_source_that_asks_for_another_load_is_refused() {
    let registry = Arc::new(WeightRegistry::builder().build().unwrap());
    let kitchen = Kitchen::new(1);
    let other = registry.publish("other", kitchen.source(0)).unwrap();
    registry.evict(other).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let open = {
        let (registry, seen) = (Arc::downgrade(&registry), Arc::clone(&seen));
        move || {
            if let Some(registry) = registry.upgrade()
                && let Some(own) = registry.lookup("s")
            {
                let asked = [
                    registry.acquire_or_load(other, SOON).map(drop),
                    registry.acquire_or_load(own, SOON).map(drop),
                    registry.load(own).map(drop),
                ];
                seen.lock().unwrap().extend(asked);
            }
            Ok(bytes(64, 7))
        }
    };
    let set = registry
        .publish("s", Evictable::opened_by(open).unwrap())
        .unwrap();
    registry.evict(set).unwrap();
    drop(registry.acquire_or_load(set, SOON).unwrap());
    registry.evict(set).unwrap();
    drop(block_on(registry.acquire_or_load_async(set)).unwrap());
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), 6);
    for refused in seen {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::LoadInsideLoad), "{refused}");
        assert!(refused.is_misuse());
    }
    // Afterwards this thread may.
    drop(registry.acquire_or_load(other, SOON).unwrap());
}

#[test]
fn whoever_waits_too_long_is_told_who_is_in_the_way() {
    let (registry, _, sets) = away(3, 2);
    let lease = registry
        .acquire_or_load_as("request-42", [sets[0], sets[1]], SOON)
        .unwrap();
    let refused = registry
        .acquire_or_load(sets[2], Duration::from_millis(20))
        .unwrap_err();
    assert!(refused.is_timeout());
    let message = refused.to_string();
    assert!(
        message.contains("request-42") && message.contains("64 bytes"),
        "{message}"
    );
    let Error::NotLoaded(overdue) = refused else {
        panic!("{message}")
    };
    assert_eq!((overdue.missing, overdue.waiting), (ONE, 0));
    assert_eq!(overdue.leased.len(), 2);
    assert_eq!(registry.stats().waiting, 0, "it is out of the line");
    assert_eq!(value(&lease, sets[0]), 0);
    drop(lease);
    drop(registry.acquire_or_load(sets[2], Duration::ZERO).unwrap());
}

/// A tenant is not told of others' sets.
#[test]
fn a_tenant_is_told_of_its_own_holdups_only() {
    let registry = WeightRegistry::builder()
        .limit_bytes(2 * ONE)
        .build()
        .unwrap();
    let kitchen = Kitchen::new(3);
    let [ours, theirs] = ["ours", "theirs"].map(|name| registry.namespace(name).unwrap());
    let mine = ours.publish("a", kitchen.source(0)).unwrap();
    ours.evict(mine).unwrap();
    let own = ours.publish("b", kitchen.source(1)).unwrap();
    let other = theirs.publish("secret", kitchen.source(2)).unwrap();
    let _leases = (
        registry.acquire_as("mine", own).unwrap(),
        registry.acquire_as("secret", other).unwrap(),
    );
    let patience = Duration::from_millis(1);
    let message = |refused: Result<Lease, Error>| refused.unwrap_err().to_string();
    let told = message(ours.acquire_or_load(mine, patience));
    assert!(told.contains("mine") && !told.contains("secret"), "{told}");
    let told = message(registry.acquire_or_load(mine, patience));
    assert!(told.contains("mine") && told.contains("secret"), "{told}");
}
