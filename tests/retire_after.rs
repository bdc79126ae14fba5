//! Taking weights away: behind a fence, and with a word to those who still hold them.

mod support;

use std::sync::{Arc, Barrier};

use support::device::published;
use support::{SOON, bytes, registry};
use weighbridge::{Error, Lease, fence};

#[test]
fn retire_after_holds_the_generation_that_was_current() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let (done, fence) = fence::signal("at retire");
    let going = registry.retire_after(set, fence).unwrap();
    assert!(matches!(
        registry.acquire(set),
        Err(Error::StaleHandle { .. })
    ));
    assert_eq!(going.fences()[0].name, "at retire");
    assert!(!going.is_drained());
    // The name is free at once.
    registry.publish("a", bytes(64, 2)).unwrap();
    done.set();
    going.reclaimed(SOON).unwrap();
}

#[test]
fn retire_after_retires_nothing_when_it_fails() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let first = registry
        .acquire(set)
        .unwrap()
        .sets()
        .next()
        .unwrap()
        .generation();
    let second = registry.replace(set, bytes(64, 2)).unwrap().generation;
    let dropped = Arc::new(());
    let fence = |token: &Arc<()>| {
        let token = Arc::clone(token);
        move || Arc::strong_count(&token) == 0
    };
    let error = registry
        .retire_after_if(set, first, fence(&dropped))
        .unwrap_err();
    let Error::Conflict {
        expected, current, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((expected, current), (first, second));
    assert_eq!(registry.stats().pending_fences, 0);
    assert_eq!(Arc::strong_count(&dropped), 1, "the fence is dropped");
    registry
        .retire_after_if(set, second, || true)
        .unwrap()
        .reclaimed(SOON)
        .unwrap();
    let error = registry.retire_after(set, fence(&dropped)).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(Arc::strong_count(&dropped), 1);
}

/// Whatever generation a racing replace leaves, the one that is retired is the one that is fenced.
#[test]
fn retire_after_fences_what_it_retires_while_replaces_race_it() {
    for _ in 0..200 {
        let registry = registry();
        let (set, _) = published(&registry, "a", 0);
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                for fill in 1..20 {
                    if registry.replace(set, bytes(64, fill)).is_err() {
                        break;
                    }
                }
            });
            barrier.wait();
            let (done, fence) = fence::signal("at retire");
            let going = registry.retire_after(set, fence).unwrap();
            let fences = going.fences();
            assert_eq!(fences.len(), 1);
            assert_eq!(fences[0].generation, going.generation());
            done.set();
            going.reclaimed(SOON).unwrap();
        });
    }
}

#[test]
fn a_revoked_lease_is_told_and_keeps_its_bytes() {
    let registry = registry();
    let (set, w) = published(&registry, "a", 1);
    let (other, _) = published(&registry, "b", 2);
    let lease = registry.acquire([set, other]).unwrap();
    assert!(!lease.is_revoked() && !lease.is_superseded());
    let replaced = registry.replace(set, bytes(1 << 16, 3)).unwrap();
    assert!(lease.is_superseded() && !lease.is_revoked());
    let twin = lease.clone();
    replaced.previous.revoke();
    assert!(lease.is_revoked() && twin.is_revoked());
    let told = |lease: &Lease| {
        let of = |at| lease.set(at).unwrap();
        (
            of(set).is_revoked(),
            of(set).is_superseded(),
            of(other).is_revoked(),
            of(other).is_superseded(),
        )
    };
    assert_eq!(told(&lease), (true, true, false, false));
    assert_eq!(
        lease.weight(w).unwrap().bytes(),
        vec![1; 1 << 16],
        "nothing is taken away"
    );
    let new = registry.acquire(set).unwrap();
    assert!(!new.is_revoked() && !new.is_superseded());
    let going = registry.revoke(set).unwrap();
    assert!(new.is_revoked() && new.is_superseded());
    assert!(registry.revoke(set).unwrap_err().is_not_found());
    assert_eq!(going.leases(), 3);
    drop((lease, twin, new));
    going.reclaimed(SOON).unwrap();
}
