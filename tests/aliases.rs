//! Tensors that are another set's: one storage, charged once, never dangling, never out of step.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::source::InMemory;
use weighbridge::{Dtype, Error, Plan, SetHandle, WeightKind, WeightRegistry};

/// A set with one tensor of its own and `head`, which is `w` of `owner`.
fn user(registry: &WeightRegistry, owner: SetHandle) -> InMemory {
    let w = registry.weight_handle(owner, "w").unwrap();
    InMemory::new()
        .tensor("own", Dtype::U8, [2], [7, 7])
        .unwrap()
        .alias("head", w)
        .unwrap()
}

fn head(registry: &WeightRegistry, set: SetHandle) -> Vec<u8> {
    let lease = registry.acquire(set).unwrap();
    lease
        .set(set)
        .unwrap()
        .get("head")
        .unwrap()
        .bytes()
        .to_vec()
}

#[test]
fn an_alias_is_the_other_sets_storage_and_is_charged_once() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(4096, 1)).unwrap();
    let alone = registry.ledger().total();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    assert_eq!(registry.ledger().total(), alone + 64, "its own two bytes");

    let lease = registry.acquire([owner, set]).unwrap();
    let target = lease.set(owner).unwrap().get("w").unwrap();
    let alias = lease.set(set).unwrap().get("head").unwrap();
    assert_eq!(alias.bytes().as_ptr(), target.bytes().as_ptr());
    assert_eq!(alias.bytes().len(), 4096);
    assert_eq!((alias.dtype(), alias.shape()), (Dtype::U8, &[4096][..]));
    assert_eq!(alias.kind(), WeightKind::TiedAlias);
    assert_eq!(lease.set(set).unwrap().bytes(), 64);
    let handle = registry.weight_handle(set, "head").unwrap();
    assert_eq!(lease.weight(handle).unwrap().bytes(), target.bytes());
}

/// What a set is does not depend on where its bytes lie.
#[test]
fn a_set_with_an_alias_is_what_a_set_with_a_copy_is() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 3)).unwrap();
    let shared = registry.stage(user(&registry, owner)).unwrap();
    let copied = InMemory::new()
        .tensor("own", Dtype::U8, [2], [7, 7])
        .and_then(|set| set.tensor("head", Dtype::U8, [8], [3; 8]))
        .unwrap();
    let copied = registry.stage(copied).unwrap();
    assert_eq!(shared.identity(), copied.identity());
    let set = registry.publish_staged("user", shared).unwrap();
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().identity(), copied.identity());
}

#[test]
fn replacing_the_target_replaces_the_alias_at_the_same_instant() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    let old = registry.acquire([owner, set]).unwrap();
    let before = old.set(set).unwrap().identity().clone();

    let swap = registry.replace(owner, bytes(8, 2)).unwrap();
    let new = registry.acquire([owner, set]).unwrap();
    let view = new.set(set).unwrap();
    assert_eq!(view.get("head").unwrap().bytes(), [2; 8]);
    assert_eq!(
        view.get("own").unwrap().bytes(),
        [7, 7],
        "its own bytes stay"
    );
    assert_eq!(view.generation(), swap.generation, "one commit");
    assert_ne!(*view.identity(), before, "other bytes, another identity");

    // Who leased the old one keeps the old bytes, through the alias as well.
    let kept = old.set(set).unwrap();
    assert_eq!(kept.get("head").unwrap().bytes(), [1; 8]);
    assert!(!swap.previous.is_drained());
    drop((old, new));
    // The owner's old generation, and the alias's, which had its bytes too.
    for old in registry.retired().iter().chain([&swap.previous]) {
        old.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), 64 + 64);
}

/// A lease of the alias alone keeps the bytes, and the ledger knows them until they are back.
#[test]
fn a_lease_of_the_alias_keeps_the_storage() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let going = registry.retire_cascade(owner).unwrap();
    assert_eq!(going.len(), 2);
    going[0].reclaimed(SOON).unwrap(); // the owner's own generation is done...
    assert_eq!(head_of(&lease, set), [1; 8]);
    assert_eq!(registry.ledger().total(), 128, "...but its bytes are held");
    assert_eq!(registry.ledger().retired, 128);
    drop(lease);
    going[1].reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

fn head_of(lease: &weighbridge::Lease, set: SetHandle) -> Vec<u8> {
    let set = lease.set(set).unwrap();
    set.get("head").unwrap().bytes().to_vec()
}

#[test]
fn a_target_with_aliases_does_not_go_alone() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    let refused = registry.retire(owner).unwrap_err();
    let Error::AliasedBy { set: name, aliases } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(
        (name.name(), aliases.as_slice()),
        ("owner", &["user".into()][..])
    );
    assert!(refused.is_conflict() && refused.to_string().contains("retire_cascade"));
    assert_eq!(head(&registry, set), [1; 8], "as it was");

    // In one transaction, or the alias first.
    let mut both = registry.transaction();
    both.retire(owner).unwrap();
    both.retire(set).unwrap();
    both.commit().unwrap();
    assert!(registry.lookup("owner").is_none() && registry.lookup("user").is_none());
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    registry.retire(set).unwrap();
    registry.retire(owner).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn a_target_that_would_not_fit_its_aliases_is_refused_whole() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    let other_name = InMemory::new().tensor("x", Dtype::U8, [8], [2; 8]).unwrap();
    let other_dtype = InMemory::new().tensor("w", Dtype::I8, [8], [2; 8]).unwrap();
    for (next, word) in [
        (bytes(9, 2), "U8 [9] there, U8 [8] here"),
        (other_name, "no such tensor"),
        (other_dtype, "I8 [8] there, U8 [8] here"),
    ] {
        let refused = registry.replace(owner, next).unwrap_err();
        assert!(
            matches!(refused.error(), Error::AliasMismatch { alias, .. } if alias == "head"),
            "{refused}"
        );
        assert!(refused.to_string().contains(word), "{refused}");
        assert!(refused.into_staged().is_some(), "it comes back");
        assert_eq!(head(&registry, set), [1; 8]);
    }
    // With the set itself in the same transaction it goes.
    let mut both = registry.transaction();
    both.replace(owner, registry.stage(bytes(9, 2)).unwrap())
        .unwrap();
    both.replace(set, registry.stage(bytes(1, 1)).unwrap())
        .unwrap();
    both.commit().unwrap();
    assert!(
        registry.replace(owner, bytes(3, 3)).is_ok(),
        "nothing is an alias any more"
    );
}

#[test]
fn an_alias_of_an_alias_is_an_alias_of_what_that_is() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let middle = registry.publish("middle", user(&registry, owner)).unwrap();
    let head_of_middle = registry.weight_handle(middle, "head").unwrap();
    let last = InMemory::new().alias("head", head_of_middle).unwrap();
    let last = registry.publish("last", last).unwrap();
    assert_eq!(registry.ledger().total(), 128, "nothing of its own");
    assert_eq!(registry.dependants_of(owner).unwrap().len(), 2);
    assert!(registry.dependants_of(middle).unwrap().is_empty());
    registry.retire(middle).unwrap();
    registry.replace(owner, bytes(8, 5)).unwrap();
    assert_eq!(head(&registry, last), [5; 8]);
    assert!(matches!(
        registry.retire(owner),
        Err(Error::AliasedBy { .. })
    ));
}

/// Two sets may use tensors of each other. They change and go together.
#[test]
fn sets_that_alias_each_other() {
    let registry = registry();
    let a = registry.publish("a", bytes(8, 1)).unwrap();
    let b = registry.publish("b", user(&registry, a)).unwrap();
    let own = registry.weight_handle(b, "own").unwrap();
    let next = bytes(8, 2).alias("theirs", own).unwrap();
    registry.replace(a, next).unwrap();
    let lease = registry.acquire([a, b]).unwrap();
    assert_eq!(lease.set(a).unwrap().get("theirs").unwrap().bytes(), [7, 7]);
    assert_eq!(lease.set(b).unwrap().get("head").unwrap().bytes(), [2; 8]);
    assert_eq!(
        lease.set(a).unwrap().generation(),
        lease.set(b).unwrap().generation()
    );
    drop(lease);
    // The tensor that is aliased cannot become an alias of its own alias.
    let head_of_b = registry.weight_handle(b, "head").unwrap();
    let circle = InMemory::new().alias("w", head_of_b).unwrap();
    let refused = registry.replace(a, circle).unwrap_err();
    assert!(refused.to_string().contains("this very set"), "{refused}");
    assert!(matches!(registry.retire(a), Err(Error::AliasedBy { .. })));
    assert!(matches!(registry.retire(b), Err(Error::AliasedBy { .. })));
    let gone = registry.retire_cascade(a).unwrap();
    for one in &gone {
        one.reclaimed(SOON).unwrap();
    }
    assert_eq!((gone.len(), registry.ledger().total()), (2, 0));
}

#[test]
fn what_cannot_be_an_alias() {
    let registry = registry();
    let elsewhere = support::registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let foreign = elsewhere.publish("owner", bytes(8, 1)).unwrap();
    let foreign = elsewhere.weight_handle(foreign, "w").unwrap();
    let refuse = |source: InMemory| registry.stage(source).unwrap_err();
    assert!(matches!(
        refuse(InMemory::new().alias("x", foreign).unwrap()),
        Error::WrongRegistry { .. }
    ));
    assert!(bytes(8, 1).alias("w", w).is_err(), "the name is taken");
    let twice = InMemory::new().alias("x", w).unwrap().alias("x", w);
    assert!(matches!(twice, Err(Error::InvalidTensor { .. })));
    let tensor = ("x", Dtype::U8, vec![1]);
    assert!(Plan::of("p", [tensor]).unwrap().with_alias("x", w).is_err());
    // An alias of the very set whose next generation it is.
    let refused = registry
        .replace(owner, InMemory::new().alias("x", w).unwrap())
        .unwrap_err();
    assert!(refused.to_string().contains("declare a tie"), "{refused}");
    // The target goes between staging and publishing.
    let staged = registry.stage(user(&registry, owner)).unwrap();
    registry.retire(owner).unwrap().reclaimed(SOON).unwrap();
    let refused = registry.publish_staged("user", staged).unwrap_err();
    assert!(refused.error().is_not_found(), "{refused}");
    assert!(matches!(
        refuse(InMemory::new().alias("x", w).unwrap()),
        Error::StaleHandle { .. }
    ));
    drop(refused);
    assert_eq!(registry.ledger().total(), 0, "nothing is left behind");
}

/// The identity of a set that is vouched for still follows what its aliases are.
#[test]
fn a_declared_set_is_not_the_same_when_its_alias_changes() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = user(&registry, owner).declared("r1");
    let set = registry.publish("user", set).unwrap();
    let key = || registry.acquire(set).unwrap().cache_key();
    let first = key();
    registry.replace(owner, bytes(8, 2)).unwrap();
    assert_ne!(key(), first);
    registry.replace(owner, bytes(8, 1)).unwrap();
    assert_eq!(key(), first, "the same bytes again");
}

/// An adapter on a base whose head is another set's: the base moves with the head, and the adapter is
/// moved by whoever knows that it still fits.
#[test]
fn an_adapter_on_a_base_with_an_alias() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let base = tiny().alias("extra.weight", w).unwrap();
    let base = registry.publish("base", base).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let refused = registry.replace(owner, bytes(8, 2)).unwrap_err();
    assert!(
        matches!(refused.error(), Error::Dependants { set, .. } if set.name() == "base"),
        "{refused}"
    );
    let Some(staged) = refused.into_staged() else {
        panic!("it comes back");
    };
    let mut all = registry.transaction();
    all.replace(owner, staged).unwrap();
    all.rebind(pirate, base).unwrap();
    all.commit().unwrap();
    let lease = registry.acquire([base, pirate]).unwrap();
    let set = lease.set(base).unwrap();
    assert_eq!(set.get("extra.weight").unwrap().bytes(), [2; 8]);
    drop(lease);
    assert_eq!(registry.retire_cascade(owner).unwrap().len(), 3);
}

#[test]
fn rollback_of_either_side_keeps_them_in_step() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    registry.keep_previous(owner, 1).unwrap();
    registry.keep_previous(set, 1).unwrap();
    registry.replace(owner, bytes(8, 2)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let next = InMemory::new().alias("head", w).unwrap();
    registry.replace(set, next).unwrap();
    registry.rollback(set).unwrap();
    let lease = registry.acquire(set).unwrap();
    let view = lease.set(set).unwrap();
    assert_eq!(view.get("own").unwrap().bytes(), [7, 7], "rolled back");
    assert_eq!(
        view.get("head").unwrap().bytes(),
        [2; 8],
        "what the target is now"
    );
    drop(lease);
    registry.rollback(owner).unwrap();
    assert_eq!(head(&registry, set), [1; 8]);
}

/// Readers see alias and target of one commit, whatever writers do.
#[test]
fn an_alias_and_its_target_are_never_seen_apart() {
    const SWAPS: u8 = 200;
    let registry = registry();
    let owner = registry.publish("owner", bytes(64, 0)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (mut reads, mut last) = (0u32, 0);
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let lease = registry.acquire([set, owner]).unwrap();
                    let target = lease.set(owner).unwrap().get("w").unwrap().bytes()[63];
                    let alias = lease.set(set).unwrap().get("head").unwrap().bytes()[0];
                    assert_eq!(alias, target, "mixed");
                    assert!(alias >= last, "time went back");
                    last = alias;
                    reads += 1;
                }
            });
        }
        // Two writers: one of the target, one of the set itself.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match registry.replace(set, user(&registry, owner)) {
                    Ok(_) => {}
                    Err(failed) => assert!(failed.error().is_not_found(), "{failed}"),
                }
            }
        });
        for fill in 1..=SWAPS {
            registry.replace(owner, bytes(64, fill)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    for one in registry.retire_cascade(owner).unwrap() {
        one.reclaimed(SOON).unwrap();
    }
    for old in registry.retired() {
        old.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), 0);
}

/// A cascade finds what is bound to the set while it is being bound.
#[test]
fn a_cascade_leaves_nothing_standing() {
    let registry = registry();
    for round in 0..20 {
        let owner = registry.publish("owner", bytes(8, 1)).unwrap();
        std::thread::scope(|scope| {
            for user_of in 0..3 {
                let registry = &registry;
                scope.spawn(move || {
                    let Ok(w) = registry.weight_handle(owner, "w") else {
                        return;
                    };
                    let source = InMemory::new().alias("head", w).unwrap();
                    let name = format!("user {user_of}");
                    match registry.publish(name.as_str(), source) {
                        Ok(_) => {}
                        Err(failed) => assert!(failed.error().is_not_found(), "{failed}"),
                    }
                });
            }
            scope.spawn(|| registry.retire_cascade(owner).unwrap());
        });
        assert_eq!(registry.stats().sets, 0, "round {round}");
        for old in registry.retired() {
            old.reclaimed(SOON).unwrap();
        }
        assert_eq!(registry.ledger().total(), 0, "round {round}");
    }
}

#[test]
fn aliases_and_drained_swaps_do_not_mix() {
    let registry = WeightRegistry::builder().limit_bytes(8192).build().unwrap();
    let owner = registry.publish("owner", bytes(4096, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    let refused = registry
        .replace_drained(owner, bytes(4160, 2), Duration::ZERO)
        .unwrap_err();
    assert!(
        matches!(refused.error(), Error::AliasedBy { .. }),
        "{refused}"
    );
    assert_eq!(head(&registry, set), [1; 4096]);
}

/// What is kept for a rollback keeps no other set's memory.
#[test]
fn a_kept_generation_keeps_only_its_own_bytes() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(4096, 1)).unwrap();
    let set = registry.publish("user", user(&registry, owner)).unwrap();
    registry.keep_previous(set, 1).unwrap();
    registry.replace(set, bytes(64, 3)).unwrap();
    registry.retire(owner).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().retired, 0);
    let refused = registry.rollback(set).unwrap_err();
    assert!(
        refused.is_not_found(),
        "what it stood on is gone: {refused}"
    );
}

#[test]
fn a_refused_set_comes_back_as_it_was_staged() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(8, 1)).unwrap();
    let set = registry.publish("user", bytes(8, 9)).unwrap();
    let stale = registry.catalog().get("user").unwrap().generation;
    registry.replace(set, bytes(8, 8)).unwrap();
    let staged = registry.stage(user(&registry, owner)).unwrap();
    let before = staged.identity().clone();
    registry.replace(owner, bytes(8, 2)).unwrap();
    let refused = registry.replace_staged_if(set, stale, staged).unwrap_err();
    assert_eq!(*refused.into_staged().unwrap().identity(), before);
}

/// A set that would come along is retired at that moment: then it need not.
#[test]
fn a_follower_that_goes_holds_nobody_up() {
    let registry = registry();
    let owner = registry.publish("owner", bytes(64, 1)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let user = registry.publish("user", user(&registry, owner)).unwrap();
                registry.retire(user).unwrap();
            }
        });
        for round in 0..1_000 {
            if let Err(failed) = registry.replace(owner, bytes(64, 2)) {
                done.store(true, Ordering::Relaxed);
                panic!("round {round}: {failed}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
