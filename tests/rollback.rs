//! Earlier generations: kept, charged, made current again; and sets that change hands with them.

mod support;

use std::sync::mpsc::channel;

use support::theirs::{Log, Theirs, slow, whole};
use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::{Error, Identity, SetHandle, WeightRegistry};

fn fill(registry: &WeightRegistry, set: SetHandle) -> u8 {
    let lease = registry.acquire(set).unwrap();
    lease.set(set).unwrap().get("w").unwrap().bytes()[0]
}

fn identity(registry: &WeightRegistry, set: SetHandle) -> Identity {
    let lease = registry.acquire(set).unwrap();
    lease.set(set).unwrap().identity().clone()
}

#[test]
fn a_rollback_is_a_new_number_with_the_old_bytes_and_identity() {
    let registry = registry();
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    registry.keep_previous(set, 1).unwrap();
    let first = registry.acquire(set).unwrap();
    let address = first.set(set).unwrap().get("w").unwrap().bytes().as_ptr();
    let was = identity(&registry, set);
    let swap = registry.replace(set, bytes(64, 2)).unwrap();
    let now = registry.ledger();
    assert_eq!((now.resident, now.kept, now.retired), (64, 64, 0));

    let back = registry.rollback(set).unwrap();
    assert!(back.generation > swap.generation, "numbers never go back");
    let lease = registry.acquire(set).unwrap();
    let weight = lease.set(set).unwrap().get("w").unwrap();
    assert_eq!(weight.bytes().as_ptr(), address, "nothing was copied");
    assert_eq!(*lease.set(set).unwrap().identity(), was);
    let now = registry.ledger();
    assert_eq!((now.resident, now.kept, now.total()), (64, 64, 128));

    // A second rollback undoes the first.
    registry.rollback(set).unwrap();
    assert_eq!(fill(&registry, set), 2);
    drop((first, lease));
    assert_eq!(registry.stats().reclaimed_bytes, 0, "both are still there");
    let was = registry.stats().reclaimed_generations;
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
    let now = registry.stats();
    assert!(now.reclaimed_generations > was);
    assert_eq!(now.reclaimed_bytes, 128, "each byte came back once");
}

#[test]
fn no_more_are_kept_than_was_said_and_what_is_too_much_goes() {
    let registry = WeightRegistry::builder().keep_previous(2).build().unwrap();
    let set = registry.publish("s", bytes(64, 0)).unwrap();
    for version in 1..=5 {
        registry.replace(set, bytes(64, version)).unwrap();
    }
    let kept = registry.kept(set).unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept[0].generation < kept[1].generation && kept[1].bytes == 64);
    // Those that were let go of come back as soon as the reclaimer gets to them.
    for old in registry.retired() {
        old.reclaimed(SOON).unwrap();
    }
    registry.rollback_to(set, kept[0].generation).unwrap();
    assert_eq!(fill(&registry, set), 3);
    assert_eq!(identity(&registry, set), kept[0].identity);
    let refused = registry.rollback_to(set, kept[0].generation).unwrap_err();
    let Error::NotKept { kept: left, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(left.len(), 2, "4 and 5: {refused}");
    registry.keep_previous(set, 0).unwrap();
    assert_eq!(registry.ledger().kept, 0);
    assert!(registry.rollback(set).unwrap_err().is_not_found());
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(
        registry.ledger().total(),
        0,
        "kept ones that were let go of are waited for"
    );
}

#[test]
fn what_is_kept_counts_against_the_limit() {
    let registry = WeightRegistry::builder()
        .limit_bytes(128)
        .keep_previous(1)
        .build()
        .unwrap();
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    registry.replace(set, bytes(64, 2)).unwrap();
    let refused = registry.replace(set, bytes(64, 3)).unwrap_err();
    assert!(refused.error().is_out_of_memory(), "{refused}");
    registry.rollback(set).unwrap(); // needs nothing
    assert_eq!(fill(&registry, set), 1);
    assert!(registry.ledger().peak <= 128);
}

/// A kept generation that is still leased when the set goes: its bytes are waited for like all others.
#[test]
fn a_set_that_goes_takes_what_it_kept_along() {
    let registry = registry();
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    registry.keep_previous(set, 3).unwrap();
    let lease = registry.acquire(set).unwrap();
    registry.replace(set, bytes(64, 2)).unwrap();
    registry.replace(set, bytes(64, 3)).unwrap();
    registry.rollback(set).unwrap();
    let gone = registry.retire(set).unwrap();
    assert!(!gone.is_drained());
    drop(lease);
    gone.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

/// A kept generation has two ends, of its leases and of its bytes; its holders and bytes are told once.
#[test]
fn a_kept_generation_is_in_the_way_once() {
    let registry = registry();
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    registry.keep_previous(set, 1).unwrap();
    let lease = registry.acquire_as("decode", set).unwrap();
    registry.replace(set, bytes(64, 2)).unwrap();
    let gone = registry.retire(set).unwrap();
    assert_eq!((gone.leases(), gone.holders().len()), (1, 1));
    assert_eq!(gone.bytes(), 128);
    drop(lease);
    gone.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

/// What a set kept and let go of is listed until its bytes are back, however it was let go of.
#[test]
fn what_was_kept_is_listed_until_its_bytes_are_back() {
    let ways: [fn(&WeightRegistry, SetHandle); 3] = [
        |registry, set| drop(registry.replace(set, bytes(1, 3)).unwrap()),
        |registry, set| registry.keep_previous(set, 0).unwrap(),
        |registry, set| drop(registry.retire(set).unwrap()),
    ];
    for (let_go, leased) in ways.into_iter().flat_map(|way| [(way, true), (way, false)]) {
        let (registry, log) = (registry(), Log::new());
        let (go_on, may_go_on) = channel::<()>();
        let owner = Theirs::on_host([7; 1000], &log).charged(1000);
        let owner = owner.at_the_end(move || may_go_on.recv().unwrap());
        let set = registry.publish("s", whole(owner)).unwrap();
        registry.keep_previous(set, 1).unwrap();
        let lease = leased.then(|| registry.acquire(set).unwrap());
        let first = registry.replace(set, bytes(1, 2)).unwrap().previous;
        if !leased {
            first.reclaimed(SOON).unwrap(); // kept, all the same
        }
        let_go(&registry, set);
        let listed = || {
            let retired = registry.retired();
            let mut of_first = retired
                .into_iter()
                .filter(|one| one.generation() == first.generation());
            let found = of_first.next();
            assert!(of_first.next().is_none(), "one generation is listed once");
            found
        };
        let held = listed().expect("its bytes are not back");
        assert_eq!((held.leases(), held.bytes()), (u64::from(leased), 1000));
        drop(lease);
        first.drained(SOON).unwrap();
        let going = listed().expect("its bytes are not back");
        assert_eq!((going.leases(), going.is_reclaimed()), (0, false));
        assert_eq!(going.bytes(), 1000);
        go_on.send(()).unwrap();
        going.reclaimed(SOON).unwrap();
        assert!(listed().is_none());
        for rest in registry.retired() {
            rest.reclaimed(SOON).unwrap();
        }
        let now = registry.ledger();
        assert_eq!(now.total(), now.resident + now.kept);
    }
}

/// The kept bytes of one set are not listed as another's, though one transaction gave both generations the
/// same number.
#[test]
fn what_two_sets_let_go_of_is_listed_for_each() {
    let (registry, log) = (registry(), Log::new());
    let (go_on, may_go_on) = channel::<()>();
    let owner = Theirs::on_host([7; 100], &log).charged(1000);
    let owner = owner.at_the_end(move || may_go_on.recv().unwrap());
    let mut both = registry.transaction();
    let staged = [both.stage(bytes(1, 1)), both.stage(whole(owner))];
    let names = ["a", "b"].into_iter();
    let sets: Vec<SetHandle> = names
        .zip(staged)
        .map(|(name, staged)| both.publish(name, staged.unwrap()).unwrap())
        .collect();
    both.commit().unwrap();
    let &[a, b] = &*sets else { unreachable!() };
    let lease = registry.acquire(a).unwrap();
    for set in [a, b] {
        registry.keep_previous(set, 1).unwrap();
        drop(registry.replace(set, bytes(1, 2)).unwrap());
    }
    registry.keep_previous(b, 0).unwrap();
    let listed = |set| {
        let retired = registry.retired().into_iter();
        let of_set: Vec<_> = retired.filter(|one| one.set() == set).collect();
        of_set
    };
    let [of_a, of_b] = [a, b].map(listed);
    assert_eq!((of_a.len(), of_b.len()), (1, 1));
    assert_eq!((of_a[0].leases(), of_b[0].leases()), (1, 0));
    assert_eq!(of_b[0].bytes(), 1000);
    assert_eq!(of_a[0].generation(), of_b[0].generation());
    go_on.send(()).unwrap();
    of_b[0].reclaimed(SOON).unwrap();
    assert!(!of_a[0].is_reclaimed(), "somebody has a lease of it");
    drop(lease);
    of_a[0].reclaimed(SOON).unwrap();
}

/// Its node goes first, and its bytes after it: it is listed until both are gone.
#[test]
fn what_was_kept_is_listed_after_its_node_went() {
    let (registry, log) = (registry(), Log::new());
    let (busy, is_busy, go_on) = slow(&log);
    let (own, has_begun, may_end) = slow(&log);
    let set = registry.publish("s", whole(own)).unwrap();
    registry.keep_previous(set, 1).unwrap();
    let other = registry.publish("busy", whole(busy)).unwrap();
    drop(registry.retire(other).unwrap());
    is_busy.recv_timeout(SOON).unwrap();
    // The reclaimer is busy. Both wait for it, the node first.
    let first = registry.replace(set, bytes(1, 2)).unwrap().previous;
    registry.keep_previous(set, 0).unwrap();
    go_on.send(()).unwrap();
    first.reclaimed(SOON).unwrap();
    has_begun.recv_timeout(SOON).unwrap();
    let retired = registry.retired();
    assert!(
        retired
            .iter()
            .any(|one| one.set() == set && one.generation() == first.generation()),
        "its bytes are not back"
    );
    may_end.send(()).unwrap();
    for going in retired {
        going.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.ledger().total(), registry.ledger().resident);
}

#[test]
fn the_registry_gives_back_what_it_kept_although_a_lease_lives_on() {
    let (registry, log) = (registry(), Log::new());
    let kept = whole(Theirs::on_host([1; 64], &log));
    let set = registry.publish("s", kept).unwrap();
    registry.keep_previous(set, 1).unwrap();
    let first = registry.replace(set, bytes(64, 2)).unwrap().previous;
    first.reclaimed(SOON).unwrap();
    let lease = registry.acquire(set).unwrap();
    assert!(log.ends().is_empty(), "it is kept");
    drop(registry);
    assert_eq!(log.ends().len(), 1, "and goes with the registry");
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [2; 64]);
}

#[test]
fn rollbacks_that_race_never_bring_a_generation_back_twice() {
    let registry = registry();
    let set = registry.publish("s", bytes(64, 0)).unwrap();
    registry.keep_previous(set, 4).unwrap();
    for version in 1..=4 {
        registry.replace(set, bytes(64, version)).unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    registry.rollback(set).unwrap();
                    let lease = registry.acquire(set).unwrap();
                    let all = lease.set(set).unwrap();
                    let seen = all.get("w").unwrap().bytes();
                    assert!(seen.iter().all(|&byte| byte == seen[0]));
                }
            });
        }
    });
    let kept = registry.kept(set).unwrap();
    assert_eq!(kept.len(), 4);
    let mut all: Vec<String> = kept.iter().map(|one| one.identity.to_string()).collect();
    all.push(identity(&registry, set).to_string());
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 5, "each of the five once");
    assert_eq!(registry.ledger().total(), 5 * 64);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn an_adapter_moves_to_another_base_without_a_byte() {
    let registry = registry();
    let old = registry.publish("old", tiny()).unwrap();
    let new = registry.publish("new", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", old))
        .unwrap();
    let running = registry.acquire([old, pirate]).unwrap();
    let bytes_before = registry.ledger().total();
    let was = identity(&registry, pirate);
    let moved = registry.rebind(pirate, new).unwrap();
    assert_eq!(registry.ledger().total(), bytes_before);
    assert_eq!(identity(&registry, pirate), was, "the same adapter");
    registry.acquire([new, pirate]).unwrap();
    assert!(matches!(
        registry.acquire([old, pirate]),
        Err(Error::WrongBase { .. })
    ));
    assert_eq!(
        running.set(pirate).unwrap().base(),
        Some(old),
        "who runs keeps the pairing"
    );
    assert_ne!(moved.generation, running.set(pirate).unwrap().generation());
    registry.retire(old).unwrap(); // nothing stands on it any more
    drop(running);
    moved.previous.reclaimed(SOON).unwrap();
    assert_eq!(
        registry
            .acquire(pirate)
            .unwrap()
            .set(pirate)
            .unwrap()
            .base(),
        Some(new)
    );
    assert!(matches!(
        registry.retire(new),
        Err(Error::Dependants { .. })
    ));
    // What cannot be moved.
    let other = registry.publish("other", bytes(4, 1)).unwrap();
    assert!(matches!(
        registry.rebind(pirate, other),
        Err(Error::AdapterMismatch { .. })
    ));
    assert!(matches!(
        registry.rebind(other, new),
        Err(Error::KindMismatch { .. })
    ));
    assert!(matches!(
        registry.rebind(pirate, pirate),
        Err(Error::NotABase { .. })
    ));
}

#[test]
fn a_base_is_replaced_under_its_adapters() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let names = ["pirate-v1", "robot", "shout"];
    let sets = names.map(|name| registry.publish(name, adapter(name, base)).unwrap());
    let running = registry.acquire([base, sets[0]]).unwrap();
    let mut next = registry.transaction();
    next.replace(base, registry.stage(tiny()).unwrap()).unwrap();
    assert_eq!(next.rebind_adapters(base).unwrap(), 3);
    assert!(matches!(
        next.rebind(sets[0], base),
        Err(Error::TwiceInTransaction { .. })
    ));
    let done = next.commit().unwrap();
    assert_eq!(done.previous.len(), 4);
    for set in sets {
        let lease = registry.acquire([base, set]).unwrap();
        assert!(lease.sets().all(|one| one.generation() == done.generation));
    }
    drop(running);
    for old in &done.previous {
        old.reclaimed(SOON).unwrap();
    }
    // One that does not fit stops all of it.
    let mut next = registry.transaction();
    next.replace(base, registry.stage(bytes(4, 1)).unwrap())
        .unwrap();
    next.rebind_adapters(base).unwrap();
    let refused = next.commit().unwrap_err();
    assert!(
        matches!(refused.error(), Error::AdapterMismatch { .. }),
        "{refused}"
    );
    assert!(refused.step() >= 1);
    assert_eq!(refused.into_staged().len(), 1);
    registry.acquire([base, sets[2]]).unwrap();
}

#[test]
fn a_rollback_in_a_transaction_goes_with_the_others_or_not_at_all() {
    let registry = registry();
    let a = registry.publish("a", bytes(64, 1)).unwrap();
    let b = registry.publish("b", bytes(64, 1)).unwrap();
    registry.keep_previous(a, 1).unwrap();
    registry.replace(a, bytes(64, 2)).unwrap();
    let mut both = registry.transaction();
    both.rollback(a).unwrap();
    both.rollback(b).unwrap();
    let refused = both.commit().unwrap_err();
    assert!(
        matches!(refused.error(), Error::NotKept { .. }),
        "{refused}"
    );
    assert_eq!((refused.step(), fill(&registry, a)), (1, 2));
    let mut both = registry.transaction();
    both.rollback(a).unwrap();
    both.replace(b, registry.stage(bytes(64, 9)).unwrap())
        .unwrap();
    let done = both.commit().unwrap();
    let lease = registry.acquire([a, b]).unwrap();
    assert!(lease.sets().all(|set| set.generation() == done.generation));
    assert_eq!((fill(&registry, a), fill(&registry, b)), (1, 9));
}

/// Whoever watches is told: of a rollback as of any other replace, and of why one was refused.
#[test]
fn subscribers_are_told_of_rollbacks_and_moves() {
    use weighbridge::{EventKind, Next, Operation};

    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    registry.keep_previous(base, 1).unwrap();
    let mut events = registry.events();
    registry.rollback(base).unwrap_err();
    registry.rebind(base, base).unwrap_err();
    let mut both = registry.transaction();
    both.replace(base, registry.stage(tiny()).unwrap()).unwrap();
    both.rebind(pirate, base).unwrap();
    let done = both.commit().unwrap();
    let mut told = Vec::new();
    while let Next::Event(event) = events.try_next() {
        told.push(match event.kind {
            EventKind::Refused { operation, .. } => (operation.as_str().to_owned(), 0),
            EventKind::Replaced { commit, now, .. } => {
                assert_eq!(now.generation, commit);
                (now.name.name().to_owned(), commit.number())
            }
            EventKind::Reclaimed { .. } => continue,
            other => panic!("{other:?}"),
        });
    }
    let number = done.generation.number();
    assert_eq!(
        told,
        [
            (Operation::Rollback.as_str().to_owned(), 0),
            (Operation::Rebind.as_str().to_owned(), 0),
            ("base".to_owned(), number),
            ("pirate".to_owned(), number),
        ]
    );
}

#[test]
fn a_set_that_goes_is_named_by_its_last_generation() {
    let registry = registry();
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    registry.keep_previous(set, 1).unwrap();
    let last = registry.replace(set, bytes(64, 2)).unwrap().generation;
    assert_eq!(registry.retire(set).unwrap().generation(), last);
}
