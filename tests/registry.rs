//! The registry's promises, one test each, through the public interface.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use support::{SOON, adapter, addition, bytes, registry, tiny};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Generation, NamespaceLimits, Plan, SetHandle, WeightRegistry};

#[test]
fn a_retired_name_is_free_and_its_handles_are_stale_for_ever() {
    let registry = registry();
    let first = registry.publish("a", bytes(4, 1)).unwrap();
    let w = registry.weight_handle(first, "w").unwrap();
    registry.retire(first).unwrap();
    assert_eq!(registry.lookup("a"), None);
    assert!(
        matches!(registry.acquire(first), Err(Error::StaleHandle { handle }) if handle == first)
    );
    let second = registry.publish("a", bytes(4, 2)).unwrap();
    assert_ne!(first, second);
    assert_eq!(registry.lookup("a"), Some(second));
    assert!(registry.acquire(first).unwrap_err().is_not_found());
    assert!(registry.retire(first).unwrap_err().is_not_found());
    assert!(
        registry
            .weight_handle(first, "w")
            .unwrap_err()
            .is_not_found()
    );
    let lease = registry.acquire(second).unwrap();
    assert!(
        lease.weight(w).unwrap_err().is_misuse(),
        "a stale weight handle read something"
    );
}

#[test]
fn handles_of_another_registry_are_refused() {
    let (one, other) = (registry(), registry());
    let set = one.publish("a", bytes(4, 1)).unwrap();
    other.publish("a", bytes(4, 2)).unwrap();
    assert!(matches!(
        other.acquire(set),
        Err(Error::WrongRegistry { .. })
    ));
    assert!(matches!(
        other.retire(set),
        Err(Error::WrongRegistry { .. })
    ));
    assert!(other.scope(|scope| scope.get(set).is_err()));
}

#[test]
fn ordinals_survive_swaps_that_add_and_drop_tensors() {
    let registry = registry();
    let of = |names: &[&str]| {
        names.iter().fold(InMemory::new(), |set, name| {
            let fill = name.as_bytes()[0];
            set.tensor(name, Dtype::U8, [1], [fill]).unwrap()
        })
    };
    let set = registry.publish("s", of(&["b", "d"])).unwrap();
    let handles = ["b", "d"].map(|name| registry.weight_handle(set, name).unwrap());
    // "a" sorts before both: positions move, ordinals must not.
    registry.replace(set, of(&["a", "d"])).unwrap();
    let lease = registry.acquire(set).unwrap();
    let Err(Error::NoSuchTensor { tensor, .. }) = lease.weight(handles[0]) else {
        panic!("a dropped tensor was read")
    };
    assert_eq!(tensor, "b");
    assert_eq!(lease.weight(handles[1]).unwrap().bytes(), b"d");
    let there = lease.set(set).unwrap();
    let names: Vec<_> = there.iter().map(|weight| weight.unwrap().name()).collect();
    assert_eq!(
        names,
        ["d", "a"],
        "what only an earlier generation had is none of its tensors"
    );
    registry.replace(set, of(&["a", "b", "c", "d"])).unwrap();
    let lease = registry.acquire(set).unwrap();
    for (handle, byte) in handles.into_iter().zip([b"b", b"d"]) {
        assert_eq!(lease.weight(handle).unwrap().bytes(), byte);
    }
    let names: Vec<_> = lease
        .set(set)
        .unwrap()
        .iter()
        .map(|weight| weight.unwrap().name().to_owned())
        .collect();
    assert_eq!(names, ["b", "d", "a", "c"], "by ordinal");
    let of_a = registry.weight_handle(set, "a").unwrap();
    // Back to the first layout: the same one, not another that equals it.
    registry.replace(set, of(&["d", "b"])).unwrap();
    assert_eq!(registry.weight_handle(set, "b").unwrap(), handles[0]);
    let now = registry.acquire(set).unwrap();
    let twin = registry.publish("twin", of(&["b", "d"])).unwrap();
    let twin = registry.acquire(twin).unwrap();
    assert!(std::ptr::eq(
        now.sets().next().unwrap().layout(),
        twin.sets().next().unwrap().layout()
    ));
    assert!(
        matches!(now.weight(of_a), Err(Error::NoSuchTensor { tensor, .. }) if tensor == "a"),
        "an ordinal past the layout is still known by name"
    );
}

#[test]
fn compare_and_swap_on_generations() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let first = registry
        .acquire(set)
        .unwrap()
        .set(set)
        .unwrap()
        .generation();
    let second = registry
        .replace_if(set, first, bytes(4, 2))
        .unwrap()
        .generation;
    let failed = registry.replace_if(set, first, bytes(4, 3)).unwrap_err();
    assert!(matches!(
        *failed.error(),
        Error::Conflict { expected, current, .. } if expected == first && current == second
    ));
    assert!(failed.into_staged().is_none(), "nothing was read");
    let staged = registry.stage(bytes(4, 3)).unwrap();
    let failed = registry.replace_staged_if(set, first, staged).unwrap_err();
    let staged = failed.into_staged().expect("the staged set comes back");
    assert_eq!(registry.ledger().reserved, staged.bytes());
    assert!(matches!(
        registry.retire_if(set, first),
        Err(Error::Conflict { .. })
    ));
    let third = registry
        .replace_staged_if(set, second, staged)
        .unwrap()
        .generation;
    assert_eq!(
        registry
            .acquire(set)
            .unwrap()
            .set(set)
            .unwrap()
            .get("w")
            .unwrap()
            .bytes(),
        [3; 4]
    );
    registry.retire_if(set, third).unwrap();
}

#[test]
fn a_name_conflict_prints_both_sides_and_returns_what_was_staged() {
    let registry = registry();
    registry.publish("a", bytes(4, 1)).unwrap();
    let staged = registry.stage(bytes(4, 2)).unwrap();
    let identity = staged.identity().to_string();
    let failed = registry.publish_staged("a", staged).unwrap_err();
    let text = failed.to_string();
    assert!(
        text.contains(&identity) && text.contains("generation 1"),
        "{text}"
    );
    assert!(failed.error().is_conflict());
    let staged = failed.into_staged().expect("the staged set comes back");
    registry.publish_staged("b", staged).unwrap();
    let failed = registry.publish("a", bytes(4, 3)).unwrap_err();
    assert!(failed.error().is_conflict() && failed.into_staged().is_none());
}

#[test]
fn illegal_names_are_refused() {
    let registry = registry();
    for name in ["", "a\nb", &"x".repeat(513)] {
        let failed = registry.publish(name, bytes(4, 1)).unwrap_err();
        assert!(
            matches!(failed.error(), Error::InvalidName { .. }),
            "{name:?}"
        );
    }
    let hostile = "t\u{7}\nFAKE LOG LINE";
    for refused in [
        registry.namespace(hostile).map(drop),
        registry.namespace("").map(drop),
        registry.set_namespace_limits(hostile, NamespaceLimits::none()),
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(
            !text.contains(char::is_control) && text.contains("name \""),
            "{text}"
        );
    }
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn several_sets_are_leased_as_of_one_instant() {
    const ROUNDS: u8 = 200;
    let registry = registry();
    let sets = [0, 1].map(|n| registry.publish(format!("s{n}"), bytes(64, 0)).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            while !done.load(Ordering::Relaxed) {
                let lease = registry.acquire(sets).unwrap();
                let [a, b] = sets.map(|set| lease.set(set).unwrap());
                let read = |set: weighbridge::LeasedSet<'_>| set.get("w").unwrap().bytes()[0];
                // The second is always replaced after the first.
                assert!(
                    read(a) == read(b) || read(a) == read(b) + 1,
                    "no instant had both"
                );
                assert!(a.generation() <= lease.number() && b.generation() <= lease.number());
            }
        };
        scope.spawn(reader);
        scope.spawn(reader);
        for round in 1..=ROUNDS {
            for set in sets {
                registry.replace(set, bytes(64, round)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn adapters_hold_their_base_and_answer_for_no_other() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let other = registry.publish("other", bytes(4, 1)).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    assert!(matches!(
        registry.retire(base),
        Err(Error::Dependants { dependants, .. }) if dependants == ["pirate".into()]
    ));
    let failed = registry.replace(base, tiny()).unwrap_err();
    assert!(
        matches!(failed.error(), Error::Dependants { dependants, .. } if dependants.len() == 1)
    );
    drop(failed);
    registry.acquire([base, pirate]).unwrap();
    registry.acquire(pirate).unwrap();
    registry.acquire([other, base, pirate]).unwrap();
    let Err(Error::WrongBase { adapter: name, .. }) = registry.acquire([other, pirate]) else {
        panic!("an adapter was leased with a base that is not its own")
    };
    assert_eq!(name.name(), "pirate");
    assert_eq!(
        registry.ledger().retired,
        0,
        "a refused acquire kept a lease"
    );
    registry.retire(pirate).unwrap();
    registry.retire(base).unwrap().reclaimed(SOON).unwrap();
    // Its base is gone.
    let failed = registry
        .publish("late", adapter("robot", base))
        .unwrap_err();
    assert!(failed.error().is_not_found(), "{failed}");
    let unbound = support::fixture("adapters/robot");
    let unbound = weighbridge::source::PeftAdapter::open(unbound).unwrap();
    let failed = registry.publish("unbound", unbound).unwrap_err();
    assert!(matches!(failed.error(), Error::AdapterWithoutBase { .. }));
}

#[test]
fn an_adapter_that_was_staged_on_an_older_base_is_checked_again() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let staged = registry.stage(adapter("pirate-v1", base)).unwrap();
    registry.replace(base, tiny()).unwrap();
    let pirate = registry.publish_staged("pirate", staged).unwrap();
    registry.retire(pirate).unwrap();
    let staged = registry.stage(adapter("pirate-v1", base)).unwrap();
    registry.replace(base, bytes(4, 1)).unwrap();
    let failed = registry.publish_staged("pirate", staged).unwrap_err();
    assert!(
        matches!(failed.error(), Error::AdapterMismatch { .. }),
        "{failed}"
    );
    assert!(failed.into_staged().is_some());
    assert_eq!(registry.lookup("pirate"), None);
    assert_eq!(registry.ledger().reserved, 0);
}

#[test]
fn a_checkpoint_is_not_replaced_by_an_adapter() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let failed = registry.replace(set, adapter("robot", base)).unwrap_err();
    assert!(matches!(failed.error(), Error::KindMismatch { .. }));
}

#[test]
fn the_limit_holds_and_refusals_leave_nothing() {
    let registry = WeightRegistry::builder().limit_bytes(1000).build().unwrap();
    let set = registry.publish("a", bytes(512, 1)).unwrap();
    let failed = registry.replace(set, bytes(512, 2)).unwrap_err();
    let Error::OverLimit {
        requested,
        in_use,
        limit,
    } = *failed.error()
    else {
        panic!("{failed}")
    };
    assert_eq!((requested, in_use, limit), (512, 512, 1000));
    assert!(failed.error().is_out_of_memory());
    assert_eq!(registry.ledger().total(), 512);
    // Retired but held counts.
    let lease = registry.acquire(set).unwrap();
    let going = registry.retire(set).unwrap();
    assert!(registry.publish("b", bytes(512, 2)).is_err());
    assert_eq!(registry.ledger().retired, 512);
    drop(lease);
    going.reclaimed(SOON).unwrap();
    registry.publish("b", bytes(512, 2)).unwrap();
    assert_eq!(
        (registry.ledger().resident, registry.ledger().peak),
        (512, 512)
    );
}

/// A source that fails in the middle of reading.
struct Broken(InMemory);

impl Source for Broken {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        arena.fill(0xAA);
        Err(Error::SourceChanged {
            file: "made up".into(),
            what: "it broke".into(),
        })
    }
}

#[test]
fn a_load_that_fails_leaves_no_trace() {
    let registry = registry();
    let failed = registry.publish("a", Broken(bytes(4096, 1))).unwrap_err();
    assert!(failed.error().is_malformed() && failed.into_staged().is_none());
    assert_eq!((registry.ledger().total(), registry.stats().sets), (0, 0));
    assert_eq!(registry.lookup("a"), None);
    registry.publish("a", bytes(4, 1)).unwrap();
}

#[test]
fn a_load_that_panics_leaves_no_trace() {
    struct Panics(InMemory);
    impl Source for Panics {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            panic!("on purpose")
        }
    }
    let registry = registry();
    let publish = || registry.publish("a", Panics(bytes(4096, 1)));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(publish));
    assert!(caught.is_err());
    assert_eq!(registry.ledger().total(), 0);
    registry.publish("a", bytes(4, 1)).unwrap();
}

#[test]
fn scopes_repeat_their_reads_and_say_when_they_are_out_of_date() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let reader = registry.reader();
    let mut scope = reader.scope();
    let first = scope.get(set).unwrap().generation();
    let replaced = registry.replace(set, bytes(4, 2)).unwrap();
    replaced
        .previous
        .reclaimed(SOON)
        .expect("bytes must not wait for an open scope");
    assert_eq!(scope.get(set).unwrap().generation(), first);
    assert!(matches!(scope.acquire(set), Err(Error::Superseded { .. })));
    scope.refresh();
    assert!(scope.get(set).unwrap().generation() > first);
    let lease = scope.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [2; 4]);
}

#[test]
fn the_catalog_is_a_picture_at_one_commit_and_holds_no_bytes() {
    let registry = registry();
    let empty = registry.catalog();
    assert!(empty.entries().is_empty());
    let base = registry.publish("tiny", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let catalog = registry.catalog();
    assert_eq!(catalog.number().number(), registry.stats().commits);
    let names: Vec<_> = catalog
        .entries()
        .iter()
        .map(|entry| entry.name.to_string())
        .collect();
    assert_eq!(names, ["pirate", "tiny"]);
    let entry = catalog.get("pirate").unwrap();
    assert_eq!(
        (entry.handle, entry.base, entry.tensors),
        (pirate, Some(base), 16)
    );
    assert!(
        Arc::ptr_eq(&catalog, &registry.catalog()),
        "taken again though nothing changed"
    );
    registry.retire(pirate).unwrap().reclaimed(SOON).unwrap();
    registry.retire(base).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
    assert!(
        catalog.get("pirate").is_some(),
        "an old picture stays what it was"
    );
    assert!(registry.catalog().entries().is_empty());
}

#[test]
fn adapters_with_the_same_tensors_share_one_layout() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    for name in ["pirate-v1", "pirate-v2", "shout"] {
        registry.publish(name, adapter(name, base)).unwrap();
    }
    assert_eq!(registry.stats().layouts, 2);
    registry.publish("robot", adapter("robot", base)).unwrap();
    assert_eq!(registry.stats().layouts, 3);
}

#[test]
fn cache_keys_follow_contents_not_names_or_numbers() {
    let (one, other) = (registry(), registry());
    let key =
        |registry: &WeightRegistry, sets: &[SetHandle]| registry.acquire(sets).unwrap().cache_key();
    let a = one.publish("a", bytes(4, 1)).unwrap();
    let b = other.publish("b", bytes(4, 1)).unwrap();
    assert_eq!(key(&one, &[a]), key(&other, &[b]));
    let before = key(&one, &[a]);
    one.replace(a, bytes(4, 2)).unwrap();
    assert_ne!(key(&one, &[a]), before, "new bytes under an old key");
    one.replace(a, bytes(4, 1)).unwrap();
    assert_eq!(key(&one, &[a]), before, "the same bytes again");
    let c = one.publish("c", bytes(4, 1)).unwrap();
    assert_ne!(key(&one, &[a, c]), before);
    one.replace(a, bytes(4, 1).declared("r1")).unwrap();
    assert_ne!(key(&one, &[a]), before);
}

#[test]
fn generation_numbers_are_monotone_over_the_registry() {
    let registry = registry();
    let mut last: Option<Generation> = None;
    for name in ["a", "b", "a2"] {
        let set = registry.publish(name, bytes(4, 1)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let now = lease.set(set).unwrap().generation();
        assert!(last < Some(now));
        assert_eq!(lease.number(), now);
        last = Some(now);
    }
}

#[test]
fn a_set_that_is_retired_before_publish_returns_leaves_no_name() {
    // Somebody who iterates can learn a handle before publish returns. Whoever comes last, the name
    // ends up free.
    let registry = registry();
    std::thread::scope(|scope| {
        let (found, hunt) = mpsc::channel::<()>();
        let registry = &registry;
        scope.spawn(move || {
            let mut hunted = 0;
            while hunted < 200 {
                let catalog = registry.catalog();
                for entry in catalog.entries() {
                    if registry.retire(entry.handle).is_ok() {
                        hunted += 1;
                        let _ = found.send(());
                    }
                }
            }
        });
        for _ in 0..200 {
            registry.publish("prey", bytes(4, 1)).unwrap();
            hunt.recv().unwrap();
            while registry.lookup("prey").is_some() {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!((registry.stats().sets, registry.lookup("prey")), (0, None));
}

#[test]
fn types_travel_as_documented() {
    fn all<T: Send + Sync + 'static>() {}
    all::<WeightRegistry>();
    all::<weighbridge::Lease>();
    all::<weighbridge::Staged>();
    all::<weighbridge::Retirement>();
    all::<weighbridge::Catalog>();
    all::<weighbridge::PublishError>();
    fn copies<T: Copy + Send + Sync + 'static>() {}
    copies::<SetHandle>();
    copies::<weighbridge::WeightHandle>();
}

#[test]
fn what_was_staged_elsewhere_is_refused_and_comes_back() {
    let (here, there) = (registry(), registry());
    let set = here.publish("s", bytes(4, 1)).unwrap();
    let staged = there.stage(bytes(4, 2)).unwrap();
    let failed = here.publish_staged("t", staged).unwrap_err();
    assert!(failed.error().is_misuse(), "{failed}");
    let staged = failed.into_staged().unwrap();
    let failed = here.replace_staged(set, staged).unwrap_err();
    assert!(matches!(failed.error(), Error::StagedElsewhere { .. }));
    let used = |registry: &WeightRegistry| registry.ledger().reserved;
    assert_eq!(used(&there), failed.into_staged().unwrap().bytes());
    assert_eq!(used(&there), 0);
}

#[test]
fn only_checkpoints_are_bases() {
    let registry = registry();
    let base = registry.publish("base", bytes(4, 1)).unwrap();
    let adapter = registry.publish("adapter", addition(4, 2, base)).unwrap();
    // Bound to itself, or to another adapter: refused, and nothing spins.
    for failed in [
        registry.replace(adapter, addition(4, 3, adapter)).err(),
        registry.publish("second", addition(4, 3, adapter)).err(),
    ] {
        let Some(Error::NotABase { base }) = failed.map(Error::from) else {
            panic!("an adapter was taken for a base")
        };
        assert_eq!(base.to_string(), "adapter");
    }
}

#[test]
fn a_refused_replace_leaves_no_names_behind() {
    let registry = registry();
    let of = |name: &str| InMemory::new().tensor(name, Dtype::U8, [1], [1]).unwrap();
    let set = registry.publish("s", of("first")).unwrap();
    let stale = registry
        .acquire(set)
        .unwrap()
        .set(set)
        .unwrap()
        .generation();
    registry.replace(set, of("first")).unwrap();
    for attempt in 0..100 {
        let source = of(&format!("refused-{attempt}"));
        let failed = registry.replace_if(set, stale, source);
        assert!(failed.unwrap_err().error().is_conflict());
    }
    registry.replace(set, of("second")).unwrap();
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().layout().ordinals(), 0..2);
}

/// What the set alone forbids is said before a byte is reserved or read.
#[test]
fn a_replace_that_cannot_be_reads_nothing() {
    struct Unread(InMemory, Option<SetHandle>);
    impl Source for Unread {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            panic!("it was read")
        }
        fn base(&self) -> Option<SetHandle> {
            self.1
        }
    }
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let adapter = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let peak = registry.ledger().peak;
    let refused = |set, on| {
        registry
            .replace(set, Unread(bytes(4096, 1), on))
            .unwrap_err()
    };
    let under = refused(base, None);
    assert!(matches!(under.error(), Error::Dependants { .. }), "{under}");
    let checkpoint = refused(adapter, None);
    assert!(matches!(checkpoint.error(), Error::KindMismatch { .. }));
    let text = "pirate is an adapter; a checkpoint cannot replace it";
    assert!(checkpoint.to_string().contains(text), "{checkpoint}");
    assert!(matches!(
        refused(base, Some(base)).error(),
        Error::KindMismatch { .. }
    ));
    assert_eq!(registry.ledger().peak, peak, "nothing was reserved");
}

/// Ordinals are the set's for its whole life, so a generation may have none of some: those are not its.
#[test]
fn a_generation_lists_its_own_tensors_and_no_others() {
    let registry = registry();
    let with = |names: &[&str]| {
        let none = Ok(InMemory::new());
        let add =
            |set: Result<InMemory, Error>, name: &&str| set?.tensor(name, Dtype::U8, [1], [7]);
        names.iter().fold(none, add).unwrap()
    };
    let set = registry.publish("set", with(&["a", "b"])).unwrap();
    registry.replace(set, with(&["b", "c"])).unwrap();
    let lease = registry.acquire(set).unwrap();
    let listed = lease.set(set).unwrap().iter();
    let names: Vec<&str> = listed.map(|weight| weight.unwrap().name()).collect();
    assert_eq!(names, ["b", "c"]);
}
