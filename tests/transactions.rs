//! Several sets at one instant.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::{Error, SetHandle, WeightRegistry};

fn generation(registry: &WeightRegistry, set: SetHandle) -> weighbridge::Generation {
    let lease = registry.acquire(set).unwrap();
    lease.set(set).unwrap().generation()
}

#[test]
fn a_base_is_replaced_with_what_stands_on_it_or_not_at_all() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let robot = registry.publish("robot", adapter("robot", base)).unwrap();
    let before = generation(&registry, base);

    let mut half = registry.transaction();
    half.replace(base, registry.stage(tiny()).unwrap()).unwrap();
    let v2 = half.stage(adapter("pirate-v2", base)).unwrap();
    let v2_identity = v2.identity().clone();
    half.replace(pirate, v2).unwrap();
    let refused = half.commit().unwrap_err();
    assert!(
        matches!(refused.error(), Error::Dependants { dependants, .. } if dependants.len() == 1),
        "{refused}"
    );
    assert_eq!(refused.step(), 0);
    assert!(
        refused.to_string().contains("same transaction"),
        "{refused}"
    );
    assert_eq!(generation(&registry, base), before, "nothing was changed");
    let [staged_base, v2] = refused.into_staged().try_into().unwrap();
    assert_eq!(*v2.identity(), v2_identity, "in the order of the steps");

    // With everything that stands on it: one adapter comes along, the other one goes.
    let held = registry.acquire([base, pirate, robot]).unwrap();
    let mut whole = registry.transaction();
    whole.retire(robot).unwrap();
    whole.replace(pirate, v2).unwrap();
    whole.replace_if(base, before, staged_base).unwrap();
    let done = whole.commit().unwrap();
    assert!(done.published.is_empty());
    assert_eq!(done.previous.len(), 3);
    let lease = registry.acquire([base, pirate]).unwrap();
    for set in lease.sets() {
        assert_eq!(set.generation(), done.generation);
    }
    assert!(registry.acquire(robot).is_err() && registry.lookup("robot").is_none());
    assert!(done.previous.iter().all(|previous| previous.leases() == 1));
    drop(held);
    for previous in &done.previous {
        previous.reclaimed(SOON).unwrap();
    }
    // The adapter stands on the new generation: it still guards its base.
    assert!(matches!(
        registry.retire(base),
        Err(Error::Dependants { dependants, .. }) if dependants.len() == 1
    ));
    registry.retire(pirate).unwrap();
    registry.retire(base).unwrap();
}

#[test]
fn a_base_and_its_adapters_are_published_together() {
    let registry = registry();
    let start = registry.ledger();
    let mut all = registry.transaction();
    let staged = all.stage(tiny()).unwrap();
    let base = all.publish("base", staged).unwrap();
    let staged = all.stage(adapter("pirate-v1", base)).unwrap();
    let pirate = all.publish("pirate", staged).unwrap();
    // Not there yet, but taken.
    assert!(registry.acquire(base).is_err() && registry.lookup("base").is_none());
    let busy = registry.publish("base", bytes(4, 1)).unwrap_err();
    assert!(matches!(busy.error(), Error::NameBusy { .. }), "{busy}");
    drop(busy);
    let done = all.commit().unwrap();
    assert_eq!(done.published, [base, pirate]);
    assert_eq!(registry.lookup("pirate"), Some(pirate));
    let lease = registry.acquire([base, pirate]).unwrap();
    assert!(lease.sets().all(|set| set.generation() == done.generation));
    drop(lease);

    let mut end = registry.transaction();
    end.retire(base).unwrap();
    end.retire(pirate).unwrap();
    for previous in end.commit().unwrap().previous {
        previous.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), start.total());
}

#[test]
fn what_stands_on_something_that_goes_is_refused() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let staged = registry.stage(adapter("pirate-v2", base)).unwrap();
    let mut gone = registry.transaction();
    gone.retire(base).unwrap();
    let late = gone.stage(adapter("pirate-v2", base)).unwrap_err();
    assert!(matches!(late, Error::BaseNotCurrent { base: named } if named == base));
    gone.replace(pirate, staged).unwrap();
    let refused = gone.commit().unwrap_err();
    assert!(
        matches!(refused.error(), Error::BaseNotCurrent { .. }),
        "{refused}"
    );
    assert_eq!((refused.step(), refused.into_staged().len()), (1, 1));
    assert!(registry.acquire([base, pirate]).is_ok());

    // The new base has no such module.
    let mut other = registry.transaction();
    let small = registry.stage(bytes(4, 1)).unwrap();
    other.replace(base, small).unwrap();
    let misfit = other.stage(adapter("pirate-v2", base)).unwrap_err();
    assert!(matches!(misfit, Error::AdapterMismatch { .. }), "{misfit}");
}

#[test]
fn a_transaction_that_is_dropped_leaves_no_trace() {
    let registry = registry();
    let start = registry.ledger();
    let mut never = registry.transaction();
    let staged = registry.stage(bytes(64, 1)).unwrap();
    let handle = never.publish("never", staged).unwrap();
    drop(never);
    assert_eq!(registry.ledger().total(), start.total());
    let set = registry.publish("never", bytes(4, 1)).unwrap();
    assert_ne!(set, handle, "the slot came back with another tag");
    assert!(registry.acquire(handle).is_err());
}

#[test]
fn each_set_once_and_only_of_this_registry() {
    let (registry, other) = (registry(), registry());
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let mut both = registry.transaction();
    both.retire(set).unwrap();
    let twice = both.retire(set).unwrap_err();
    assert!(matches!(&twice, Error::TwiceInTransaction { .. }) && twice.is_misuse());
    let staged = registry.stage(bytes(4, 2)).unwrap();
    let twice = both.replace(set, staged).unwrap_err();
    assert!(matches!(twice.error(), Error::TwiceInTransaction { .. }));
    assert!(twice.into_staged().is_some());
    let staged = registry.stage(bytes(4, 2)).unwrap();
    let new = both.publish("new", staged).unwrap();
    let unborn = registry.acquire(new).unwrap_err().to_string();
    assert!(unborn.contains("not committed"), "{unborn}");
    let staged = registry.stage(bytes(4, 3)).unwrap();
    let twice = both.publish("new", staged).unwrap_err();
    assert!(matches!(twice.error(), Error::TwiceInTransaction { set } if set.to_string() == "new"));
    let foreign = other.publish("b", bytes(4, 1)).unwrap();
    assert!(matches!(
        both.retire(foreign),
        Err(Error::WrongRegistry { .. })
    ));
    let staged = other.stage(bytes(4, 2)).unwrap();
    let foreign = both.publish("b", staged).unwrap_err();
    assert!(matches!(foreign.error(), Error::StagedElsewhere { .. }));
    let done = both.commit().unwrap();
    assert_eq!((done.published, done.previous.len()), (vec![new], 1));
}

#[test]
fn a_conflict_names_its_step_and_changes_nothing() {
    let registry = registry();
    let [a, b] = ["a", "b"].map(|name| registry.publish(name, bytes(4, 0)).unwrap());
    let seen = generation(&registry, b);
    let swap = registry.replace(b, bytes(4, 1)).unwrap();
    swap.previous.reclaimed(SOON).unwrap(); // or the numbers below change by themselves
    let mut stale = registry.transaction();
    stale
        .replace(a, registry.stage(bytes(4, 9)).unwrap())
        .unwrap();
    stale
        .replace_if(b, seen, registry.stage(bytes(4, 9)).unwrap())
        .unwrap();
    let before = registry.stats();
    let refused = stale.commit().unwrap_err();
    assert!(matches!(refused.error(), Error::Conflict { expected, .. } if *expected == seen));
    assert_eq!(refused.step(), 1);
    assert_eq!(registry.stats(), before);
    drop(refused);
    let w = registry.weight_handle(a, "w").unwrap();
    assert_eq!(
        registry.acquire(a).unwrap().weight(w).unwrap().bytes(),
        [0; 4]
    );
}

#[test]
fn thousands_of_sets_become_current_at_one_instant() {
    const SETS: usize = 3_000;
    let registry = registry();
    let commits = registry.stats().commits;
    let mut bulk = registry.transaction();
    for set in 0..SETS {
        let staged = registry.stage(bytes(8, set as u8)).unwrap();
        bulk.publish(format!("set-{set}"), staged).unwrap();
    }
    let done = bulk.commit().unwrap();
    assert_eq!(registry.stats().commits, commits + 1);
    let lease = registry.acquire(&done.published[..]).unwrap();
    assert!(lease.sets().all(|set| set.generation() == done.generation));
    assert_eq!(registry.lookup("set-2999"), done.published.last().copied());
    assert_eq!(registry.stats().layouts, 1);
}

/// Writers take the same sets in opposite orders while readers lease both.
#[test]
fn transactions_in_any_order_never_wait_for_each_other_in_a_circle() {
    const ROUNDS: u8 = 200;
    let registry = registry();
    let [a, b] = ["a", "b"].map(|name| registry.publish(name, bytes(4, 0)).unwrap());
    let w = [a, b].map(|set| registry.weight_handle(set, "w").unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers = [[a, b], [b, a]].map(|order| {
            let registry = &registry;
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let mut both = registry.transaction();
                    for set in order {
                        let staged = registry.stage(bytes(4, round)).unwrap();
                        both.replace(set, staged).unwrap();
                    }
                    both.commit().unwrap();
                }
            })
        });
        for order in [[a, b], [b, a]] {
            let (registry, done) = (&registry, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let lease = registry.acquire(order).unwrap();
                    let [left, right] = w.map(|w| lease.weight(w).unwrap().bytes());
                    assert_eq!(left, right, "mixed");
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// A set comes along because its target gets another shape, and does not fit: the step that is blamed is
/// that of the target, whatever else is in the transaction.
#[test]
fn what_comes_along_and_does_not_fit_blames_what_it_follows() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let user = bytes(8, 2).alias("head", w).unwrap();
    registry.publish("user", user).unwrap();
    let mut both = registry.transaction();
    both.replace(owner, registry.stage(bytes(16, 1)).unwrap())
        .unwrap();
    both.publish("other", registry.stage(bytes(8, 1)).unwrap())
        .unwrap();
    let refused = both.commit().unwrap_err();
    assert!(
        matches!(refused.error(), Error::AliasMismatch { .. }),
        "{refused}"
    );
    assert_eq!(refused.step(), 0);
}

/// A set is retired while a transaction has it, and what the same transaction publishes gets its slot: the
/// refusal is about the one that is gone.
#[test]
fn a_slot_that_is_in_a_transaction_twice_blames_the_set_that_is_gone() {
    let registry = registry();
    let set = registry.publish("a", bytes(8, 1)).unwrap();
    let mut both = registry.transaction();
    both.retire(set).unwrap();
    registry.retire(set).unwrap();
    both.publish("b", registry.stage(bytes(8, 1)).unwrap())
        .unwrap();
    let refused = both.commit().unwrap_err();
    assert!(
        matches!(refused.error(), Error::StaleHandle { handle } if *handle == set),
        "{refused}"
    );
    assert_eq!(refused.step(), 0);
}
