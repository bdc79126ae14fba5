//! Weights registered one by one.

mod support;
#[cfg(all(feature = "metrics", feature = "tracing"))]
#[path = "support/observers.rs"]
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{SOON, adapter, bytes, fixture, registry, tiny};
use weighbridge::flat::{
    Address, FlatHandle, FlatKind, FlatRegistry, Loaded, Registered, Totals, WeightLoader,
};
use weighbridge::layout::ModuleScale;
use weighbridge::source::{Checkpoint, Foreign, InMemory, Source};
use weighbridge::{Dtype, Error, EventKind, Next, Operation, SetHandle, Shard, WeightRegistry};

fn flat() -> FlatRegistry {
    FlatRegistry::new(Arc::new(registry()))
}

fn put(flat: &FlatRegistry, name: &str, fill: u8) -> FlatHandle {
    flat.register(name, Dtype::U8, [4], &[fill; 4])
        .unwrap()
        .handle()
}

/// Nothing that anybody can ask has another answer than before.
fn untouched<R>(flat: &FlatRegistry, act: impl FnOnce() -> R) -> R {
    let before = (flat.totals(), flat.registry().ledger().total());
    let commits = flat.registry().stats().commits;
    let result = act();
    assert_eq!((flat.totals(), flat.registry().ledger().total()), before);
    assert_eq!(flat.registry().stats().commits, commits);
    result
}

// ---- the six behaviours ----

#[test]
fn a_registered_weight_is_found_and_read() {
    let flat = flat();
    assert!(flat.is_empty() && flat.lookup("embed").is_none());
    let values = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
    let embed = flat
        .register("embed", Dtype::F32, [1, 2], &values)
        .unwrap()
        .handle();
    assert_eq!(flat.lookup("embed"), Some(embed));
    assert!(flat.lookup("unembed").is_none());
    let pinned = flat.get(embed).unwrap();
    assert_eq!(pinned.bytes(), values);
    assert_eq!((pinned.dtype(), pinned.shape()), (Dtype::F32, &[1, 2][..]));
    assert_eq!((pinned.name(), pinned.handle()), ("embed", embed));
    let entry = flat.entry(embed).unwrap();
    assert_eq!((entry.kind, entry.bytes), (FlatKind::Base, 8));
    assert_eq!((entry.dtype, &*entry.shape), (Dtype::F32, &[1, 2][..]));
    assert_eq!(entry.name.to_string(), "flat/embed");
    assert_eq!((flat.len(), flat.total_bytes()), (1, 8));
}

#[test]
fn the_same_again_is_the_same_and_anything_else_a_conflict() {
    let flat = flat();
    let w = flat.register("w", Dtype::U8, [4], &[1; 4]).unwrap();
    assert!(w.is_new());
    let w = w.handle();
    untouched(&flat, || {
        let again = flat.register("w", Dtype::U8, [4], &[1; 4]).unwrap();
        assert_eq!(again, Registered::Reused(w));
        for (dtype, shape, bytes) in [
            (Dtype::U8, vec![4], [2; 4]),
            (Dtype::U8, vec![2, 2], [1; 4]),
            (Dtype::I8, vec![4], [1; 4]),
        ] {
            let refused = flat.register("w", dtype, &shape, &bytes).unwrap_err();
            let Error::AlreadyRegistered {
                identity, offered, ..
            } = &refused
            else {
                panic!("{refused}")
            };
            assert!(identity.starts_with("U8 [4], blake3:"), "{refused}");
            let side = format!("{dtype} {shape:?}, blake3:");
            assert!(offered.starts_with(&side), "{refused}");
            assert_ne!(identity, offered);
            assert!(refused.is_conflict());
        }
        let other = put_alias_target(&flat, w);
        assert!(matches!(other, Err(Error::AlreadyRegistered { .. })));
    });
    assert_eq!(flat.get(w).unwrap().bytes(), [1; 4]);
}

/// An alias under the name of a weight.
fn put_alias_target(flat: &FlatRegistry, target: FlatHandle) -> Result<Registered, Error> {
    flat.alias("w", target, Dtype::U8, [4])
}

#[test]
fn pins_and_releases_balance() {
    let flat = flat();
    let w = put(&flat, "w", 7);
    assert_eq!(flat.pin_count(w).unwrap(), 0);
    let first = flat.get(w).unwrap();
    let second = flat.pin_as("step-3", w).unwrap();
    let third = second.clone();
    assert_eq!(flat.pin_count(w).unwrap(), 3);
    drop(first);
    assert_eq!(flat.pin_count(w).unwrap(), 2);

    let gone = flat.unregister(w).unwrap();
    assert!(matches!(flat.get(w), Err(Error::StaleHandle { .. })));
    assert_eq!((gone.leases(), gone.is_drained()), (2, false));
    let late = gone.drained(Duration::ZERO).unwrap_err();
    assert!(late.to_string().contains("step-3"), "{late}");
    assert_eq!((second.bytes(), third.bytes()), (&[7; 4][..], &[7; 4][..]));
    drop((second, third));
    gone.reclaimed(SOON).unwrap();
    assert_eq!(flat.registry().ledger().total(), 0);
}

#[test]
fn a_tied_alias_is_its_target() {
    let flat = flat();
    let embed = put(&flat, "embed", 3);
    let head = flat.alias("lm_head", embed, Dtype::U8, [4]).unwrap();
    let again = flat.alias("lm_head", embed, Dtype::U8, [4]).unwrap();
    assert_eq!((head.is_new(), again.is_new()), (true, false));
    let head = head.handle();
    assert_eq!(flat.lookup("lm_head"), Some(head));
    assert_eq!(
        flat.entry(head).unwrap().kind,
        FlatKind::TiedAlias { target: embed }
    );
    let pinned = flat.get(head).unwrap();
    assert_eq!((pinned.bytes(), pinned.handle()), (&[3; 4][..], embed));
    assert_eq!(
        pinned.bytes().as_ptr(),
        flat.get(embed).unwrap().bytes().as_ptr()
    );
    for weight in [head, embed] {
        assert_eq!(flat.pin_count(weight).unwrap(), 1);
    }
    // Another target under the name is a conflict that names both.
    let other = put(&flat, "other", 4);
    let refused = flat.alias("lm_head", other, Dtype::U8, [4]).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("an alias of flat/embed") && text.contains("an alias of flat/other"),
        "{text}"
    );
    // The alias goes alone; then its target can.
    let refused = flat.unregister(embed).unwrap_err();
    assert!(
        matches!(&refused, Error::WeightTied { weight, aliases }
            if weight.name() == "embed" && aliases.len() == 1 && aliases[0].name() == "lm_head"),
        "{refused}"
    );
    flat.unregister(head).unwrap();
    assert!(matches!(flat.get(head), Err(Error::StaleHandle { handle }) if handle == head.set()));
    flat.unregister(embed).unwrap();
}

#[test]
fn totals_skip_aliases() {
    let flat = flat();
    let embed = put(&flat, "embed", 1);
    flat.alias("head", embed, Dtype::U8, [4]).unwrap();
    flat.register(("pirate", "a"), Dtype::F16, [3], &[0; 6])
        .unwrap();
    let Totals {
        base,
        lora,
        aliases,
        ..
    } = flat.totals();
    assert_eq!((base.weights, base.bytes), (1, 4));
    assert_eq!((lora.weights, lora.bytes, aliases), (1, 6, 1));
    assert_eq!((flat.len(), flat.total_bytes()), (2, 10));
    for previous in flat.unregister_cascade(embed).unwrap() {
        previous.reclaimed(SOON).unwrap();
    }
    assert_eq!((flat.len(), flat.total_bytes()), (1, 6));
    assert_eq!(flat.totals().aliases, 0);
    assert!(flat.lookup("head").is_none() && flat.lookup("embed").is_none());
}

#[test]
fn slices_belong_to_their_adapter() {
    let flat = flat();
    put(&flat, "base", 0);
    let slice = |adapter, name: &str, fill| {
        flat.register((adapter, name), Dtype::U8, [2], &[fill; 2])
            .unwrap()
            .handle()
    };
    let pirate = [slice("pirate", "a", 1), slice("pirate", "b", 2)];
    let robot = [slice("robot", "a", 3)];
    assert_eq!(
        flat.adapter_names(),
        ["pirate", "robot"].map(Arc::<str>::from)
    );
    assert_eq!(flat.adapter_handles("pirate"), pirate);
    assert_eq!(flat.adapter_handles("robot"), robot);
    assert!(flat.adapter_handles("nobody").is_empty());
    assert_eq!(flat.adapter_bytes("pirate"), 4);
    let entry = flat.entry(pirate[0]).unwrap();
    assert_eq!(
        (entry.kind, entry.adapter.as_deref()),
        (FlatKind::Lora, Some("pirate"))
    );
    assert_eq!(flat.lookup(("robot", "a")), Some(robot[0]));
    let commits = flat.registry().stats().commits;
    assert_eq!(flat.unregister_adapter("pirate").unwrap().len(), 2);
    assert_eq!(
        flat.registry().stats().commits,
        commits + 1,
        "at one instant"
    );
    assert_eq!(flat.adapter_names(), [Arc::<str>::from("robot")]);
    assert!(flat.unregister_adapter("pirate").unwrap().is_empty());
}

// ---- registering ----

#[test]
fn what_is_not_a_weight_is_refused_and_leaves_nothing() {
    let flat = flat();
    let target = put(&flat, "target", 1);
    let long = "x".repeat(600);
    untouched(&flat, || {
        for shape in [vec![5], vec![], vec![usize::MAX, usize::MAX]] {
            let refused = flat.register("w", Dtype::U8, shape, &[0; 4]).unwrap_err();
            assert!(matches!(refused, Error::InvalidTensor { .. }), "{refused}");
        }
        for name in ["", "a\nb", &long] {
            let refused = flat.register(name, Dtype::U8, [1], &[0]).unwrap_err();
            assert!(matches!(refused, Error::InvalidName { .. }), "{refused}");
        }
        for adapter in ["", "a\0", &long] {
            let refused = flat.register((adapter, "w"), Dtype::U8, [1], &[0]);
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::InvalidName { .. }), "{refused}");
            assert!(flat.lookup((adapter, "w")).is_none());
        }
        let refused = flat.alias("t", target, Dtype::U8, [2, 2]).unwrap_err();
        assert!(
            refused.to_string().contains("U8 [4] and not U8 [2, 2]"),
            "{refused}"
        );
        let two = bytes(4, 1).tensor("x", Dtype::U8, [1], [1]).unwrap();
        let refused = flat.register_from("two", two).unwrap_err();
        assert!(refused.to_string().contains("2 tensors"), "{refused}");
        let big = vec![0; 65 << 20];
        let refused = flat.register("big", Dtype::U8, [65 << 20], &big);
        assert!(matches!(refused, Err(Error::OverLimit { .. })));
    });
    // Nothing at all, and a scalar, are weights.
    let none = flat.register("none", Dtype::F32, [0, 7], &[]).unwrap();
    assert!(flat.get(none.handle()).unwrap().bytes().is_empty());
    let one = flat.register("one", Dtype::U8, [], &[9]).unwrap();
    assert!(flat.get(one.handle()).unwrap().shape().is_empty());
}

#[test]
fn a_source_of_one_tensor_is_a_weight() {
    let flat = flat();
    let w = flat.register_from("w", bytes(4, 5)).unwrap().handle();
    assert_eq!(flat.get(w).unwrap().bytes(), [5; 4]);
    // However it was given, it is the same.
    let again = flat.register("w", Dtype::U8, [4], &[5; 4]).unwrap();
    assert_eq!(again, Registered::Reused(w));
    let again = flat.register_from("w", bytes(4, 5)).unwrap();
    assert_eq!(again, Registered::Reused(w));
    assert!(flat.register_from("w", bytes(4, 6)).is_err());
    let revision = || bytes(4, 5).declared("r1");
    let r = flat.register_from("r", revision()).unwrap().handle();
    let again = untouched(&flat, || flat.register_from("r", revision()).unwrap());
    assert_eq!(again, Registered::Reused(r));
    // A revision vouches for bytes, not for what they are taken to be.
    for shape in [[2, 2], [1, 4]] {
        let other = InMemory::new().tensor("w", Dtype::U8, shape, [5; 4]);
        let refused = flat.register_from("r", other.unwrap().declared("r1"));
        assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })));
    }
}

#[test]
fn a_name_that_somebody_else_took_is_not_ours() {
    let flat = flat();
    let core = flat.registry();
    let three = InMemory::new().tensor("x", Dtype::U8, [1], [1]).unwrap();
    core.publish(("flat", "taken"), three).unwrap();
    let refused = flat.register("taken", Dtype::U8, [1], &[1]).unwrap_err();
    assert!(
        matches!(refused, Error::AlreadyPublished { .. }),
        "{refused}"
    );
    let theirs = flat.lookup("taken").unwrap();
    assert!(matches!(flat.get(theirs), Err(Error::NoSuchTensor { .. })));
    assert!(matches!(
        flat.unregister(theirs),
        Err(Error::OtherNamespace { .. })
    ));
    // A second flat registry on the same namespace does not mistake the first one's for its own.
    let w = put(&flat, "w", 1);
    let second = FlatRegistry::new(Arc::clone(core));
    assert!(second.register("w", Dtype::U8, [4], &[1; 4]).is_err());
    assert!(second.unregister(w).is_err());
    assert!(flat.get(w).is_ok());
}

/// What a refusal says to do can be done here, and does it.
#[test]
fn refusals_say_what_to_do_here() {
    let flat = flat();
    let core = flat.registry();
    let w = put(&flat, "w", 1);
    let refused = flat.register("w", Dtype::U8, [4], &[2; 4]).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.starts_with("flat/w is already registered: generation 1, U8 [4], blake3:")
            && text.contains("; offered: U8 [4], blake3:")
            && text.ends_with(". Unregister it first, or register under another name"),
        "{text}"
    );
    let tied = flat.alias("tied", w, Dtype::U8, [4]).unwrap().handle();
    let text = flat.unregister(w).unwrap_err().to_string();
    assert_eq!(
        text,
        "flat/w has aliases: flat/tied. Unregister those first; unregister_cascade takes a weight and \
         all its aliases at one instant"
    );
    for went in flat.unregister_cascade(w).unwrap() {
        went.reclaimed(SOON).unwrap();
    }
    assert!(flat.is_empty() && matches!(flat.get(tied), Err(Error::StaleHandle { .. })));
    // What stands on it underneath, one way or the other.
    let w = put(&flat, "w", 2);
    let slice = flat.register(("pirate", "a"), Dtype::U8, [4], &[1; 4]);
    let slice = slice.unwrap().handle();
    let on_it = core.publish("adapter", bytes(1, 1).on(w.set())).unwrap();
    let tensor = core.weight_handle(slice.set(), "weight").unwrap();
    let user = InMemory::new().alias("head", tensor).unwrap();
    let user = core.publish("user", user).unwrap();
    untouched(&flat, || {
        for refused in [
            flat.unregister(w).unwrap_err(),
            flat.unregister_cascade(w).unwrap_err(),
            flat.unregister(slice).unwrap_err(),
            flat.unregister_adapter("pirate").unwrap_err(),
        ] {
            let text = refused.to_string();
            let both = [
                "flat/w has dependants in the registry underneath: adapter. ",
                r"flat\u{2f}pirate/a has dependants in the registry underneath: user. ",
            ];
            assert!(both.iter().any(|side| text.starts_with(side)), "{text}");
            assert!(text.ends_with(". Retire those there first"), "{text}");
            assert!(matches!(&refused, Error::WeightBound { sets, .. } if sets.len() == 1));
        }
    });
    for set in [on_it, user] {
        core.retire(set).unwrap();
    }
    flat.unregister(w).unwrap();
    flat.unregister_adapter("pirate").unwrap();
    assert_eq!(flat.totals(), Totals::default());
    // A stranger's set is the business of the registry underneath, and of nobody's books here.
    core.publish(("flat", "w"), weight(4, 1)).unwrap();
    let refused = flat.register("w", Dtype::U8, [4], &[1; 4]).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains(", not registered here; offered: "), "{text}");
    core.retire(core.lookup(("flat", "w")).unwrap()).unwrap();
    put(&flat, "w", 1);
    // A whole file under the name of a weight.
    let refused = flat.load(("flat", "w"), bytes(4, 1)).unwrap_err();
    assert!(
        matches!(refused, Error::AlreadyRegistered { .. }),
        "{refused}"
    );
}

#[test]
fn a_weight_that_is_retired_behind_our_back_is_struck_out_when_it_is_met() {
    let flat = flat();
    let w = put(&flat, "w", 1);
    flat.registry().retire(w.set()).unwrap();
    assert!(matches!(flat.get(w), Err(Error::StaleHandle { .. })));
    assert!(matches!(flat.unregister(w), Err(Error::StaleHandle { .. })));
    assert_eq!(flat.totals(), Totals::default());
    assert_eq!(flat.registry().ledger().resident, 0);
    // And a target cannot be: its aliases hold it, whoever asks.
    let w = put(&flat, "w", 2);
    flat.alias("a", w, Dtype::U8, [4]).unwrap();
    assert!(matches!(
        flat.registry().retire(w.set()),
        Err(Error::Dependants { dependants, .. }) if dependants.len() == 1
    ));
}

#[test]
fn of_many_who_register_one_name_one_creates_it() {
    let flat = flat();
    let race = |content: fn(u8) -> u8| {
        let mut results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let flat = &flat;
                    scope.spawn(move || flat.register("w", Dtype::U8, [4], &[content(thread); 4]))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let created = results
            .extract_if(.., |result| matches!(result, Ok(Registered::Created(_))))
            .count();
        assert_eq!(created, 1);
        results
    };
    for _ in 0..50 {
        let same = race(|_| 7);
        assert!(same.iter().all(Result::is_ok), "{same:?}");
        flat.unregister(flat.lookup("w").unwrap()).unwrap();
        let different = race(|thread| thread);
        for refused in different {
            assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })));
        }
        flat.unregister(flat.lookup("w").unwrap()).unwrap();
    }
    assert_eq!(flat.totals(), Totals::default());
}

/// Weights of four bytes, all at once.
fn put_all(flat: &FlatRegistry, weights: &[(&str, u8)]) -> Result<Vec<Registered>, Error> {
    let bytes: Vec<[u8; 4]> = weights.iter().map(|&(_, fill)| [fill; 4]).collect();
    let one = |(&(name, _), bytes)| (Address::from(name), Dtype::U8, &[4][..], bytes);
    let bytes = bytes.iter().map(|bytes| &bytes[..]);
    flat.register_all(weights.iter().zip(bytes).map(one))
}

#[test]
fn many_are_registered_at_one_instant_or_not_at_all() {
    let flat = flat();
    let w = put(&flat, "w", 1);
    untouched(&flat, || {
        let refused = put_all(&flat, &[("a", 1), ("b", 1), ("w", 2)]).unwrap_err();
        assert!(
            matches!(refused, Error::AlreadyRegistered { .. }),
            "{refused}"
        );
        let refused = put_all(&flat, &[("a", 1), ("b", 1), ("a", 1)]).unwrap_err();
        assert!(refused.to_string().contains("is there twice"), "{refused}");
        let refused = put_all(&flat, &[("a", 1), ("", 1)]).unwrap_err();
        assert!(matches!(refused, Error::InvalidName { .. }), "{refused}");
    });
    assert!(flat.lookup("a").is_none());
    let commits = flat.registry().stats().commits;
    let made = put_all(&flat, &[("a", 3), ("w", 1), ("b", 4)]).unwrap();
    assert_eq!(flat.registry().stats().commits, commits + 1);
    let new: Vec<_> = made.iter().map(|one| one.is_new()).collect();
    assert_eq!((new, made[1].handle()), (vec![true, false, true], w));
    assert_eq!(flat.get(made[2].handle()).unwrap().bytes(), [4; 4]);
    assert_eq!((flat.len(), flat.total_bytes()), (3, 12));
    flat.unregister(made[2].handle()).unwrap();
}

/// What comes and goes while a batch is being read.
#[test]
fn a_batch_looks_again_when_it_is_complete() {
    let flat = flat();
    let batch = |meanwhile: &dyn Fn()| {
        let second = std::iter::once_with(|| {
            meanwhile();
            (Address::from("b"), Dtype::U8, &[1][..], &[2][..])
        });
        let first = (Address::from("a"), Dtype::U8, &[1][..], &[1][..]);
        flat.register_all(std::iter::once(first).chain(second))
    };
    let register = |fill| flat.register("a", Dtype::U8, [1], &[fill]);
    let unregister = |name: &str| {
        let weight = flat.lookup(name).unwrap();
        flat.unregister(weight).unwrap().reclaimed(SOON).unwrap();
    };
    // The same came: it is used.
    let made = batch(&|| assert!(register(1).unwrap().is_new())).unwrap();
    assert_eq!((made[0].is_new(), made[1].is_new()), (false, true));
    assert_eq!(Some(made[0].handle()), flat.lookup("a"));
    unregister("b");
    // What was there went.
    let refused = batch(&|| unregister("a")).unwrap_err();
    assert!(matches!(refused, Error::NameBusy { .. }), "{refused}");
    // Something else came.
    let refused = batch(&|| assert!(register(9).unwrap().is_new())).unwrap_err();
    assert!(
        matches!(refused, Error::AlreadyRegistered { .. }),
        "{refused}"
    );
    assert!(flat.lookup("b").is_none());
    assert_eq!((flat.len(), flat.total_bytes()), (1, 1));
    unregister("a");
    assert_eq!(flat.registry().ledger().total(), 0);
}

#[test]
fn of_many_who_register_the_same_batch_one_creates_each() {
    let flat = flat();
    let batch = [("a", 1), ("b", 2), ("c", 3)];
    for _ in 0..50 {
        let made: Vec<Vec<Registered>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| put_all(&flat, &batch).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        for weight in 0..batch.len() {
            let created = made.iter().filter(|made| made[weight].is_new()).count();
            assert_eq!(created, 1);
            flat.unregister(made[0][weight].handle()).unwrap();
        }
    }
    assert_eq!(flat.totals(), Totals::default());
}

/// The books against a plain model, over many changes of all kinds.
#[test]
fn the_books_never_drift() {
    let flat = flat();
    let mut there: HashMap<String, (FlatHandle, Option<String>)> = HashMap::new();
    let mut seed = 12345u64;
    let mut random = |below: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for _ in 0..4_000 {
        let name = format!("w{}", random(24));
        match (random(5), there.get(&name).cloned()) {
            (0 | 1, None) => {
                there.insert(name.clone(), (put(&flat, &name, 1), None));
            }
            (2, None) => {
                let target = format!("w{}", random(24));
                if let Some((handle, of)) = there.get(&target).cloned() {
                    let alias = flat.alias(&name, handle, Dtype::U8, [4]).unwrap();
                    there.insert(name, (alias.handle(), Some(of.unwrap_or(target))));
                }
            }
            (3, Some((handle, _))) => {
                let aliased = there.values().any(|(_, of)| of.as_ref() == Some(&name));
                assert_eq!(flat.unregister(handle).is_err(), aliased);
                if !aliased {
                    there.remove(&name);
                }
            }
            (4, Some((handle, _))) => {
                flat.unregister_cascade(handle).unwrap();
                there.retain(|other, (_, of)| *other != name && of.as_ref() != Some(&name));
            }
            _ => {}
        }
        let aliases = there.values().filter(|(_, of)| of.is_some()).count();
        assert_eq!(flat.totals().aliases, aliases);
        assert_eq!(flat.len(), there.len() - aliases);
        assert_eq!(flat.total_bytes(), 4 * flat.len() as u64);
    }
    for (name, (handle, of)) in &there {
        assert_eq!(flat.lookup(name), Some(*handle));
        let held = flat.get(*handle).unwrap();
        assert_eq!(held.name(), of.as_ref().unwrap_or(name));
    }
}

/// Aliases are made and taken apart with their target while others read through them.
#[test]
fn an_alias_gives_its_target_or_nothing() {
    const ENOUGH: usize = 100;
    let flat = flat();
    let (given, stale) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough =
        || [&given, &stale].map(|seen| seen.load(Ordering::Relaxed) >= ENOUGH) == [true; 2];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + SOON;
            let mut round = 0u8;
            while !enough() {
                assert!(
                    Instant::now() < deadline,
                    "{given:?} given, {stale:?} stale"
                );
                round = round.wrapping_add(1);
                let embed = put(&flat, "embed", round);
                flat.alias("head", embed, Dtype::U8, [4]).unwrap();
                flat.unregister_cascade(embed).unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !enough() {
                    let Some(head) = flat.lookup("head") else {
                        continue;
                    };
                    match flat.get(head) {
                        Ok(held) => {
                            assert_eq!((held.name(), held.bytes().len()), ("embed", 4));
                            assert!(held.bytes().iter().all(|&byte| byte == held.bytes()[0]));
                            given.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(Error::StaleHandle { handle }) => {
                            assert_eq!(handle, head.set());
                            stale.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(flat.totals(), Totals::default());
}

// ---- behind our back ----

/// One tensor as all flat weights have it: what may follow one in the registry underneath.
fn weight(len: usize, fill: u8) -> InMemory {
    InMemory::new()
        .tensor("weight", Dtype::U8, [len], vec![fill; len])
        .unwrap()
}

/// What the books say of everything, in short: weights, bytes, aliases, adapters.
fn books(flat: &FlatRegistry) -> (usize, u64, usize, usize) {
    let (adapters, weights) = (flat.adapter_names(), flat.len());
    assert_eq!(flat.is_empty(), weights == 0);
    (
        weights,
        flat.total_bytes(),
        flat.totals().aliases,
        adapters.len(),
    )
}

#[test]
fn what_is_retired_underneath_counts_no_longer() {
    let flat = flat();
    let core = Arc::clone(flat.registry());
    let w = put(&flat, "w", 1);
    core.retire(w.set()).unwrap();
    assert_eq!(books(&flat), (0, 0, 0, 0));
    assert_eq!(flat.totals(), Totals::default());
    let w = put(&flat, "w", 2);
    assert_eq!(books(&flat), (1, 4, 0, 0));
    // With its aliases, beside others, and slices.
    put(&flat, "stays", 3);
    flat.alias("tied", w, Dtype::U8, [4]).unwrap();
    let slice = flat.register(("pirate", "a"), Dtype::U8, [2], &[1; 2]);
    let slice = slice.unwrap().handle();
    assert_eq!(books(&flat), (3, 10, 1, 1));
    core.retire_cascade(w.set()).unwrap();
    assert_eq!(books(&flat), (2, 6, 0, 1));
    let mut both = core.transaction();
    both.retire(slice.set()).unwrap();
    both.publish(("else", "where"), core.stage(bytes(4, 1)).unwrap())
        .unwrap();
    both.commit().unwrap();
    assert_eq!(books(&flat), (1, 4, 0, 0));
    assert_eq!(flat.adapter_bytes("pirate"), 0);
    assert!(flat.adapter_handles("pirate").is_empty());
    // The advice of the registry underneath may be followed, too.
    let w = flat.lookup("stays").unwrap();
    core.retire(w.set()).unwrap();
    assert_eq!(books(&flat), (0, 0, 0, 0));
    assert!(flat.unregister_adapter("pirate").unwrap().is_empty());
}

#[test]
fn what_is_replaced_underneath_counts_as_what_it_is_now() {
    let core = WeightRegistry::builder().keep_previous(1).build().unwrap();
    let flat = FlatRegistry::new(Arc::new(core));
    let core = flat.registry();
    let w = put(&flat, "w", 1);
    let slice = flat.register(("pirate", "a"), Dtype::U8, [2], &[1; 2]);
    let slice = slice.unwrap().handle();
    core.replace(w.set(), weight(9, 7)).unwrap();
    core.replace(slice.set(), weight(5, 7)).unwrap();
    assert_eq!(books(&flat), (2, 14, 0, 1));
    assert_eq!(flat.adapter_bytes("pirate"), 5);
    let entry = flat.entry(w).unwrap();
    assert_eq!((entry.bytes, &*entry.shape), (9, &[9][..]));
    assert_eq!(flat.get(w).unwrap().bytes(), [7; 9]);
    core.rollback(w.set()).unwrap();
    assert_eq!(books(&flat), (2, 9, 0, 1));
    assert_eq!(flat.get(w).unwrap().bytes(), [1; 4]);
    // By what is no weight: it is not to be read here, but it is there and can go.
    let two = weight(3, 1).tensor("more", Dtype::U8, [3], [1; 3]).unwrap();
    core.replace(w.set(), two).unwrap();
    assert_eq!(books(&flat), (2, 11, 0, 1));
    assert!(matches!(flat.get(w), Err(Error::NoSuchTensor { .. })));
    assert!(matches!(flat.entry(w), Err(Error::NoSuchTensor { .. })));
    assert!(matches!(
        flat.alias("tied", w, Dtype::U8, [3]),
        Err(Error::NoSuchTensor { .. })
    ));
    core.rollback(w.set()).unwrap();
    assert_eq!(flat.get(w).unwrap().bytes(), [1; 4]);
    for weight in [w, slice] {
        flat.unregister(weight).unwrap();
    }
    assert_eq!(books(&flat), (0, 0, 0, 0));
}

#[test]
fn a_target_that_is_replaced_underneath_takes_its_aliases_along() {
    let flat = flat();
    let core = flat.registry();
    let w = put(&flat, "w", 1);
    let other = put(&flat, "other", 2);
    let tied = flat.alias("tied", w, Dtype::U8, [4]).unwrap().handle();
    let mut all = core.transaction();
    all.replace(w.set(), core.stage(weight(6, 3)).unwrap())
        .unwrap();
    all.rebind_adapters(w.set()).unwrap();
    all.commit().unwrap();
    assert_eq!(books(&flat), (2, 10, 1, 0));
    assert_eq!(flat.get(tied).unwrap().bytes(), [3; 6]);
    assert_eq!(&*flat.entry(tied).unwrap().shape, [6]);
    // It is moved to another target: that is what it holds now.
    core.rebind(tied.set(), other.set()).unwrap();
    let kind = flat.entry(tied).unwrap().kind;
    assert_eq!(kind, FlatKind::TiedAlias { target: other });
    assert_eq!(flat.get(tied).unwrap().handle(), other);
    assert!(flat.unregister(other).is_err());
    flat.unregister(w).unwrap();
    assert_eq!(flat.unregister_cascade(other).unwrap().len(), 2);
    assert_eq!(books(&flat), (0, 0, 0, 0));
}

/// What went underneath is in nobody's way.
#[test]
fn what_was_retired_underneath_holds_up_no_change() {
    let flat = flat();
    let core = flat.registry();
    let tied = |name: &str, target| {
        let made = flat.alias(name, target, Dtype::U8, [4]);
        made.unwrap().handle()
    };
    let w = put(&flat, "w", 1);
    core.retire(tied("tied", w).set()).unwrap();
    flat.unregister(w).unwrap();
    let w = put(&flat, "w", 1);
    let [gone, stays] = [tied("gone", w), tied("stays", w)];
    core.retire(gone.set()).unwrap();
    let went = flat.unregister_cascade(w).unwrap();
    let went: Vec<_> = went.iter().map(|one| one.set()).collect();
    assert_eq!(went, [w.set(), stays.set()]);
    let slice = |name, shape: [usize; 2]| {
        let bytes = vec![1; shape[0] * shape[1]];
        let made = flat.register(("pirate", name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let [gone, _stays] = [slice("a", [1, 3]), slice("b", [2, 1])];
    core.retire(gone.set()).unwrap();
    assert_eq!(flat.unregister_adapter("pirate").unwrap().len(), 1);
    let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = core.publish("base", small.unwrap()).unwrap();
    let [a, b, gone] = [
        slice("a", [1, 3]),
        slice("b", [2, 1]),
        slice("gone", [2, 1]),
    ];
    let mut group = flat.lora_group("pirate");
    let scale = ModuleScale::new(1, 1.0, false);
    group.module("p", scale, a, b).unwrap();
    core.retire(gone.set()).unwrap();
    group.seal("pirate", base).unwrap();
    assert_eq!(books(&flat), (0, 0, 0, 0));
}

/// However much happens between two questions, and though some of it has no event.
#[test]
fn the_books_are_right_however_much_they_missed() {
    let core = WeightRegistry::builder().event_capacity(4).build().unwrap();
    let flat = FlatRegistry::new(Arc::new(core));
    let core = flat.registry();
    let weights = ["a", "b", "c", "d", "e", "f", "g"].map(|name| put(&flat, name, 1));
    assert_eq!(books(&flat), (7, 28, 0, 0));
    core.transaction().commit().unwrap();
    assert_eq!(books(&flat), (7, 28, 0, 0));
    core.retire(weights[0].set()).unwrap();
    core.transaction().commit().unwrap();
    assert_eq!(books(&flat), (6, 24, 0, 0));
    for weight in &weights[1..] {
        core.retire(weight.set()).unwrap();
    }
    assert_eq!(books(&flat), (0, 0, 0, 0));
    // More than the stream holds, in one commit.
    let weights = ["a", "b", "c", "d", "e", "f", "g"].map(|name| put(&flat, name, 1));
    let mut all = core.transaction();
    for weight in &weights[1..] {
        all.retire(weight.set()).unwrap();
    }
    all.commit().unwrap();
    assert_eq!(books(&flat), (1, 4, 0, 0));
    flat.unregister(weights[0]).unwrap();
    assert_eq!(books(&flat), (0, 0, 0, 0));
}

/// Others commit all the time: still nothing is counted that went before the question.
#[test]
fn nothing_counts_that_went_before_the_question() {
    let flat = flat();
    let core = flat.registry();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["x", "y"] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let set = core.publish(("else", name), bytes(4, 1)).unwrap();
                    core.retire(set).unwrap();
                }
            });
        }
        let checked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for round in 0..300u16 {
                let w = put(&flat, "w", round as u8);
                assert_eq!(books(&flat), (1, 4, 0, 0));
                core.replace(w.set(), weight(7, 1)).unwrap();
                assert_eq!(books(&flat), (1, 7, 0, 0));
                let tied = flat.alias("tied", w, Dtype::U8, [7]).unwrap().handle();
                match round % 3 {
                    0 => drop(core.retire_cascade(w.set()).unwrap()),
                    1 => {
                        core.retire(tied.set()).unwrap();
                        flat.unregister(w).unwrap();
                    }
                    _ => drop(flat.unregister_cascade(w).unwrap()),
                }
                assert_eq!(books(&flat), (0, 0, 0, 0));
            }
        }));
        done.store(true, Ordering::Relaxed);
        checked.unwrap();
    });
}

/// Everything at once, from several threads, some of it behind our back.
#[test]
fn the_books_balance_after_every_interleaving() {
    const ROUNDS: usize = 300;
    let flat = flat();
    let core = flat.registry();
    let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = core.publish("base", small.unwrap()).unwrap();
    let slices = [("a", [1, 3]), ("b", [2, 1])];
    let fine = |error: &Error| {
        let expected = error.is_conflict() || error.is_not_found();
        expected || matches!(error, Error::AdapterMismatch { .. })
    };
    let check =
        |result: Result<(), Error>| assert!(result.as_ref().err().is_none_or(fine), "{result:?}");
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (flat, check) = (&flat, &check);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = ["u", "v", "w"][(round + thread) % 3];
                    let here = flat.lookup(name);
                    match (round * 7 + thread * 5) % 11 {
                        0 | 1 => check(flat.register(name, Dtype::U8, [4], &[1; 4]).map(drop)),
                        2 => check(here.map_or(Ok(()), |w| flat.unregister(w).map(drop))),
                        3 => check(here.map_or(Ok(()), |w| flat.unregister_cascade(w).map(drop))),
                        4 => check(here.map_or(Ok(()), |w| {
                            let tied = ["t", "u"][round % 2];
                            flat.alias(tied, w, Dtype::U8, [4]).map(drop)
                        })),
                        5 => check(here.map_or(Ok(()), |w| core.retire(w.set()).map(drop))),
                        6 => check(here.map_or(Ok(()), |w| core.retire_cascade(w.set()).map(drop))),
                        7 => check(put_all(flat, &[("u", 1), ("x", 1)]).map(drop)),
                        8 => check(flat.unregister_adapter("pirate").map(drop)),
                        9 => check((|| {
                            let mut group = flat.lora_group("pirate");
                            let [a, b] = slices.map(|(name, shape)| {
                                let bytes = vec![1; shape[0] * shape[1]];
                                flat.register(("pirate", name), Dtype::U8, shape, &bytes)
                            });
                            let scale = ModuleScale::new(1, 1.0, false);
                            group.module("p", scale, a?.handle(), b?.handle())?;
                            let sealed = group.seal(("sealed", name), base)?;
                            core.retire(sealed.set).map(drop)
                        })()),
                        _ => check(here.map_or(Ok(()), |w| {
                            let held = flat.get(w)?;
                            assert_eq!(held.bytes(), [1; 4]);
                            flat.pin_count(w).map(drop)
                        })),
                    }
                }
            });
        }
    });
    // What the registry has is what the books say.
    let catalog = core.catalog();
    let ours = catalog.entries().iter();
    let ours = ours.filter(|set| set.name.namespace().starts_with("flat"));
    let (aliases, weights): (Vec<_>, Vec<_>) = ours.partition(|set| set.base.is_some());
    let (base, lora): (Vec<_>, Vec<_>) = weights
        .into_iter()
        .partition(|set| set.name.namespace() == "flat");
    let totals = flat.totals();
    assert_eq!(totals.aliases, aliases.len());
    assert_eq!(
        (totals.base.weights, totals.lora.weights),
        (base.len(), lora.len())
    );
    assert_eq!(totals.base.bytes, 4 * base.len() as u64);
    assert_eq!(flat.adapter_handles("pirate").len(), lora.len());
    // And all of it can go.
    flat.unregister_adapter("pirate").unwrap();
    for set in base {
        let weight = flat.lookup(set.name.name()).unwrap();
        flat.unregister_cascade(weight).unwrap();
    }
    assert_eq!(flat.totals(), Totals::default());
    core.retire(core.lookup("base").unwrap()).unwrap();
    for going in core.retired() {
        going.reclaimed(SOON).unwrap();
    }
    assert_eq!(core.ledger().total(), 0);
}

// ---- strangers ----

#[test]
fn what_only_looks_like_a_weight_is_none() {
    let flat = flat();
    let core = flat.registry();
    let two = weight(1, 1).tensor("zz", Dtype::U8, [1], [2]).unwrap();
    core.publish(("flat", "two"), two).unwrap();
    let w = put(&flat, "w", 1);
    // An adapter on a weight, with tensors of its own: not an alias.
    core.publish(("flat", "on it"), bytes(1, 1).on(w.set()))
        .unwrap();
    for name in ["two", "on it"] {
        let theirs = flat.lookup(name).unwrap();
        assert!(
            matches!(flat.get(theirs), Err(Error::NoSuchTensor { .. })),
            "{name}"
        );
        let refused = flat.alias("tied", theirs, Dtype::U8, [4]);
        assert!(
            matches!(refused, Err(Error::OtherNamespace { .. })),
            "{name}"
        );
        assert_eq!(flat.pin_count(theirs).unwrap(), 0);
    }
    let held = flat.get(w).unwrap();
    let theirs = flat.lookup("on it").unwrap();
    assert_eq!(
        (flat.pin_count(theirs).unwrap(), held.bytes()),
        (0, &[1; 4][..])
    );
}

#[test]
fn a_source_that_is_more_than_its_tensor_is_refused_or_kept_whole() {
    let flat = flat();
    let core = flat.registry();
    let other = core.publish("other", bytes(4, 1)).unwrap();
    let alias = core.weight_handle(other, "w").unwrap();
    let more = bytes(4, 1).alias("more", alias).unwrap();
    let refused = untouched(&flat, || flat.register_from("w", more).unwrap_err());
    assert!(
        refused.to_string().contains("1 tensor and 1 alias"),
        "{refused}"
    );
    // Parts of a tensor are different things, though their bytes are the same.
    let part = |rank| {
        let shard = Shard {
            dim: 0,
            rank,
            world: 2,
        };
        bytes(4, 1).shards(move |_| Some(shard)).unwrap()
    };
    let first = flat.register_from("part", part(0)).unwrap();
    assert!(first.is_new());
    assert_eq!(
        flat.register_from("part", part(0)).unwrap(),
        Registered::Reused(first.handle())
    );
    assert!(flat.register_from("part", part(1)).is_err());
    let declared = |rank| part(rank).declared("r1");
    assert!(flat.register_from("r1", declared(0)).unwrap().is_new());
    let again = untouched(&flat, || flat.register_from("r1", declared(0)).unwrap());
    assert!(!again.is_new());
    assert!(flat.register_from("r1", declared(1)).is_err());
    // Memory that is to stay where it is cannot be a weight, which is a copy.
    let theirs = Foreign::new(Theirs([1; 4].into())).unwrap();
    let theirs = theirs.tensor("w", Dtype::U8, [4], 0).unwrap();
    let refused = untouched(&flat, || flat.register_from("theirs", theirs).unwrap_err());
    assert!(
        refused.is_malformed() && refused.to_string().contains("is copied"),
        "{refused}"
    );
}

struct Theirs(Box<[u8]>);

impl weighbridge::memory::Owner for Theirs {
    fn byte_len(&self) -> u64 {
        self.0.len() as u64
    }
    fn address(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }
    fn as_host(&self) -> Option<&[u8]> {
        Some(&self.0)
    }
}

#[test]
fn whatever_is_loaded_again_is_the_same() {
    let flat = flat();
    let core = flat.registry();
    let shard = Shard {
        dim: 0,
        rank: 0,
        world: 2,
    };
    let part = || bytes(4, 1).shards(|_| Some(shard)).unwrap();
    let owner = flat.load("owner", bytes(4, 1)).unwrap().handle();
    let w = core.weight_handle(owner, "w").unwrap();
    let user = || InMemory::new().alias("head", w).unwrap();
    type Make<'m> = (&'m str, &'m dyn Fn() -> InMemory);
    let all: [Make<'_>; 4] = [
        ("part", &part),
        ("declared part", &|| part().declared("r1")),
        ("user", &user),
        ("declared user", &|| user().declared("r1")),
    ];
    for (name, source) in all {
        let first = flat.load(name, source()).unwrap();
        assert!(first.is_new(), "{name}");
        let again = untouched(&flat, || flat.load(name, source()).unwrap());
        assert_eq!(again, Registered::Reused(first.handle()), "{name}");
    }
    let other = user().tensor("more", Dtype::U8, [1], [1]).unwrap();
    assert!(flat.load("user", other).is_err());
}

#[test]
fn what_changes_nothing_commits_nothing() {
    let flat = flat();
    put_all(&flat, &[("a", 1), ("b", 1)]).unwrap();
    untouched(&flat, || {
        let again = put_all(&flat, &[("a", 1), ("b", 1)]).unwrap();
        assert!(again.iter().all(|one| !one.is_new()));
        assert!(put_all(&flat, &[]).unwrap().is_empty());
        assert!(flat.unregister_adapter("nobody").unwrap().is_empty());
    });
}

// ---- groups ----

/// What is sealed is what was paired: a slice that was replaced since does not go for it.
#[test]
fn a_slice_that_was_replaced_is_not_sealed() {
    let flat = flat();
    let core = flat.registry();
    let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = core.publish("base", small.unwrap()).unwrap();
    let slice = |name, shape: [usize; 2]| {
        let bytes = vec![1; shape[0] * shape[1]];
        let made = flat.register(("pirate", name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let [a, b] = [slice("a", [1, 3]), slice("b", [2, 1])];
    let mut group = flat.lora_group("pirate");
    let scale = ModuleScale::new(1, 1.0, false);
    group.module("p", scale, a, b).unwrap();
    core.replace(a.set(), weight(3, 9)).unwrap();
    let commits = core.stats().commits;
    let refused = group.seal("pirate", base).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    assert_eq!(
        (core.stats().commits, books(&flat)),
        (commits, (2, 5, 0, 1))
    );
    assert_eq!(flat.get(a).unwrap().bytes(), [9; 3]);
    assert!(core.lookup("pirate").is_none());
}

/// Registers the modules of a fixture's adapter as flat slices, and pairs them.
fn slices<'f>(
    flat: &'f FlatRegistry,
    base: SetHandle,
    from: &str,
) -> weighbridge::flat::LoraGroup<'f> {
    let core = flat.registry();
    let whole = core.publish("whole", adapter(from, base)).unwrap();
    let lease = core.acquire(whole).unwrap();
    core.retire(whole).unwrap();
    let modules = lease.set(whole).unwrap().adapter().unwrap();
    let scales: BTreeMap<String, ModuleScale> = adapter(from, base)
        .plan()
        .adapter()
        .unwrap()
        .modules()
        .map(|(name, scale)| (name.to_owned(), scale))
        .collect();
    let mut group = flat.lora_group("pirate");
    for module in modules.modules() {
        let module = module.unwrap();
        let [a, b] = [("A", module.a), ("B", module.b)].map(|(matrix, weight)| {
            let name = format!("{}.{matrix}", module.module);
            flat.register(
                ("pirate", &*name),
                weight.dtype(),
                weight.shape(),
                weight.bytes(),
            )
            .unwrap()
            .handle()
        });
        group
            .module(module.module, scales[module.module], a, b)
            .unwrap();
    }
    group
}

#[test]
fn sealed_slices_are_the_adapter_that_a_file_would_have_given() {
    let flat = flat();
    let core = Arc::clone(flat.registry());
    let base = core.publish("base", tiny()).unwrap();
    let expected = core.stage(adapter("pirate-v1", base)).unwrap();
    let group = slices(&flat, base, "pirate-v1");
    let count = flat.adapter_handles("pirate").len();
    assert!(count >= 2);
    let commits = core.stats().commits;
    let sealed = group.seal("pirate", base).unwrap();
    assert_eq!(core.stats().commits, commits + 1, "at one instant");
    let lease = core.acquire([base, sealed.set]).unwrap();
    let set = lease.set(sealed.set).unwrap();
    assert_eq!(set.identity(), expected.identity());
    assert_eq!(set.generation(), sealed.generation);
    assert_eq!(sealed.previous.len(), count);
    for slice in sealed.previous {
        slice.reclaimed(SOON).unwrap();
    }
    assert_eq!(flat.totals(), Totals::default());
    assert!(flat.adapter_names().is_empty());

    // The next version, over the first one.
    let next = core.stage(adapter("pirate-v2", base)).unwrap();
    let again = slices(&flat, base, "pirate-v2");
    let swapped = again.seal_over(sealed.set).unwrap();
    assert_eq!(swapped.set, sealed.set);
    assert_eq!(swapped.previous[0].generation(), sealed.generation);
    assert_eq!(set.identity(), expected.identity(), "a lease keeps its own");
    let lease = core.acquire(sealed.set).unwrap();
    assert_eq!(lease.set(sealed.set).unwrap().identity(), next.identity());
}

#[test]
fn a_group_that_does_not_fit_is_refused_and_changes_nothing() {
    let flat = flat();
    let core = Arc::clone(flat.registry());
    let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = core.publish("base", small.unwrap()).unwrap();
    let slice = |adapter, name: &str, shape: [usize; 2]| {
        let bytes = vec![1; shape[0] * shape[1]];
        let made = flat.register((adapter, name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let a = slice("pirate", "a", [1, 3]);
    let b = slice("pirate", "b", [2, 1]);
    let other = slice("robot", "a", [1, 3]);
    let plain = put(&flat, "plain", 1);
    let scale = |rank| ModuleScale::new(rank, 2.0, false);
    let pair = |module: &str, rank| {
        let mut group = flat.lora_group("pirate");
        group.module(module, scale(rank), a, b).map(|()| group)
    };
    let mismatch = |refused: Error, says: &str| {
        let text = refused.to_string();
        assert!(matches!(refused, Error::AdapterMismatch { .. }), "{text}");
        assert!(text.contains(says), "{text}");
    };
    untouched(&flat, || {
        mismatch(pair("p", 0).unwrap_err(), "rank is 0");
        mismatch(
            pair("p", 2).unwrap().seal("x", base).unwrap_err(),
            "rank 2 by the configuration",
        );
        mismatch(
            pair("q", 1).unwrap().seal("x", base).unwrap_err(),
            "the base has no tensor of this module",
        );
        mismatch(
            flat.lora_group("pirate").seal("x", base).unwrap_err(),
            "no module",
        );
        let mut group = pair("p", 1).unwrap();
        mismatch(
            group.module("p", scale(1), a, b).unwrap_err(),
            "slices already",
        );
        for stranger in [other, plain] {
            let refused = group.module("q", scale(1), a, stranger).unwrap_err();
            mismatch(refused, "not a slice of this adapter");
        }
        let refused = group.seal("base", base).unwrap_err();
        assert!(
            matches!(refused, Error::AlreadyPublished { .. }),
            "{refused}"
        );
        let refused = pair("p", 1).unwrap().seal_over(base).unwrap_err();
        assert!(matches!(refused, Error::AdapterWithoutBase { .. }));
    });
    // A slice that nobody paired would be lost.
    let c = slice("pirate", "c", [2, 1]);
    let refused = untouched(&flat, || pair("p", 1).unwrap().seal("x", base));
    mismatch(refused.unwrap_err(), r"flat\u{2f}pirate/c is in no module");
    flat.unregister(c).unwrap().reclaimed(SOON).unwrap();
    // Somebody else's alias of a slice.
    let alias = flat.alias("alias", a, Dtype::U8, [1, 3]).unwrap().handle();
    let refused = untouched(&flat, || pair("p", 1).unwrap().seal("x", base));
    assert!(matches!(refused, Err(Error::WeightTied { .. })));
    assert!(matches!(
        flat.unregister_adapter("pirate"),
        Err(Error::WeightTied { .. })
    ));
    flat.unregister(alias).unwrap();
    // A slice that went meanwhile, although the group still holds its bytes.
    let group = pair("p", 1).unwrap();
    flat.unregister(b).unwrap();
    assert!(matches!(
        group.seal("x", base),
        Err(Error::StaleHandle { handle }) if handle == b.set()
    ));
    assert!(core.lookup("x").is_none() && flat.get(a).is_ok());
    assert_eq!(core.ledger().reserved, 0);
}

#[test]
fn a_slice_may_be_an_alias_within_its_adapter() {
    let flat = flat();
    let two = InMemory::new()
        .tensor("p.weight", Dtype::U8, [2, 3], [0; 6])
        .and_then(|set| set.tensor("q.weight", Dtype::U8, [2, 3], [0; 6]));
    let base = flat.registry().publish("base", two.unwrap()).unwrap();
    let put = |name, shape: [usize; 2], fill| {
        let bytes = vec![fill; shape[0] * shape[1]];
        let made = flat.register(("vera", name), Dtype::U8, shape, &bytes);
        made.unwrap().handle()
    };
    let shared = put("shared.A", [1, 3], 1);
    let [p, q] = [put("p.B", [2, 1], 2), put("q.B", [2, 1], 3)];
    let tied = flat.alias(("vera", "q.A"), shared, Dtype::U8, [1, 3]);
    let tied = tied.unwrap().handle();
    assert_eq!(flat.adapter_handles("vera").len(), 4);
    let scale = ModuleScale::new(1, 1.0, false);
    let mut group = flat.lora_group("vera");
    group.module("p", scale, shared, p).unwrap();
    group.module("q", scale, tied, q).unwrap();
    let sealed = group.seal("vera", base).unwrap();
    let lease = flat.registry().acquire(sealed.set).unwrap();
    let view = lease.set(sealed.set).unwrap().adapter().unwrap();
    for (index, fill) in [2, 3].into_iter().enumerate() {
        let module = view.module(index).unwrap();
        assert_eq!(module.a.bytes(), [1; 3]);
        assert_eq!(module.b.bytes(), [fill; 2]);
    }
    assert_eq!(flat.totals(), Totals::default());
}

// ---- whole files ----

#[test]
fn loading_a_file_again_is_the_same_unless_it_changed() {
    let flat = flat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::copy(fixture("tiny-llama/model.safetensors"), &path).unwrap();
    let open = || Checkpoint::open(&path).unwrap();
    let first = flat.load("llama", open()).unwrap();
    assert!(first.is_new());
    let set = first.handle();
    untouched(&flat, || {
        assert_eq!(flat.load("llama", open()).unwrap(), Registered::Reused(set));
    });
    // The same path, other bytes.
    let mut content = std::fs::read(&path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &content).unwrap();
    let refused = untouched(&flat, || flat.load("llama", open()).unwrap_err());
    assert!(
        matches!(refused, Error::AlreadyPublished { .. }),
        "{refused}"
    );
    // Changed between its header and its last byte.
    let opened = open();
    content.truncate(content.len() - 1);
    std::fs::write(&path, &content).unwrap();
    let refused = untouched(&flat, || flat.load("other", opened).unwrap_err());
    assert!(matches!(refused, Error::SourceChanged { .. }), "{refused}");
    assert!(flat.registry().lookup("other").is_none());
    // Adapters with the same content on another base are something else.
    let twin = flat.registry().publish("twin", tiny()).unwrap();
    let base = flat.registry().publish("base", tiny()).unwrap();
    let pirate = |base| flat.load("pirate", adapter("pirate-v1", base));
    assert!(pirate(base).unwrap().is_new() && !pirate(base).unwrap().is_new());
    let refused = pirate(twin).unwrap_err().to_string();
    assert!(
        refused.contains("on base") && refused.contains("on twin"),
        "{refused}"
    );
}

#[test]
fn a_declared_file_is_compared_unread() {
    struct Never(weighbridge::Plan);
    impl Source for Never {
        fn plan(&self) -> &weighbridge::Plan {
            &self.0
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            panic!("was read")
        }
        fn declared(&self) -> Option<&str> {
            Some("r1")
        }
    }
    let flat = flat();
    let set = flat.load("s", bytes(4, 1).declared("r1")).unwrap().handle();
    let plan = bytes(4, 1).plan().clone();
    let again = flat.load("s", Never(plan)).unwrap();
    assert_eq!(again, Registered::Reused(set));
    assert!(flat.load("s", bytes(4, 1).declared("r2")).is_err());
}

#[test]
fn of_many_who_load_one_name_one_creates_it() {
    let flat = flat();
    for round in 0..50 {
        let name = format!("s{round}");
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| flat.load(&*name, bytes(4, 1)).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_new()).count(), 1);
        assert!(results.iter().all(|it| it.handle() == results[0].handle()));
    }
}

/// Code that knows nothing but the contract.
fn contents(loader: &dyn WeightLoader) -> BTreeMap<String, Vec<u8>> {
    let bytes = |name: &str| loader.tensor_bytes(name).unwrap().to_vec();
    loader
        .names()
        .map(|name| (name.to_owned(), bytes(name)))
        .collect()
}

#[test]
fn a_loaded_set_lends_names_and_bytes_like_the_file_itself() {
    let flat = flat();
    let path = fixture("tiny-llama/model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let set = flat
        .load("llama", Checkpoint::open(&path).unwrap())
        .unwrap();
    let set = set.handle();
    let core = flat.registry();
    let loaded = Loaded::new(core.acquire(set).unwrap(), set).unwrap();
    assert_eq!(contents(&loaded), contents(&file));
    assert!(contents(&loaded).len() > 1);
    assert!(loaded.tensor_bytes("no.such.tensor").is_none());
    assert!(WeightLoader::tensor_bytes(&file, "no.such.tensor").is_none());
    // It holds what it lends.
    core.retire(set).unwrap();
    assert_eq!(contents(&loaded), contents(&file));
    let other = core.publish("other", bytes(4, 1)).unwrap();
    let foreign = Loaded::new(core.acquire(other).unwrap(), set);
    assert!(matches!(foreign, Err(Error::NotInLease { .. })));
}

#[test]
fn everything_travels() {
    fn travels<T: Send + Sync + 'static>() {}
    travels::<FlatRegistry>();
    travels::<weighbridge::flat::Pinned>();
    travels::<Loaded>();
    travels::<FlatHandle>();
    let one = WeightRegistry::builder().build().unwrap();
    for namespace in ["", "a\nb"] {
        assert!(FlatRegistry::within(Arc::new(registry()), namespace).is_err());
    }
    assert!(FlatRegistry::within(Arc::new(one), "model").is_ok());
}

// ---- whoever watches ----

/// What is told of refusals meanwhile: the operation, the subject, the reason.
fn refusals(flat: &FlatRegistry, act: impl FnOnce()) -> Vec<(Operation, String, String)> {
    let mut events = flat.registry().events();
    act();
    let told = events.pending().filter_map(|next| match next {
        Next::Event(event) => match event.kind {
            EventKind::Refused {
                operation,
                subject,
                reason,
                ..
            } => Some((operation, subject, reason)),
            _ => None,
        },
        _ => None,
    });
    told.collect()
}

#[test]
fn a_refusal_is_told_once_in_the_words_of_the_caller() {
    let flat = flat();
    let w = put(&flat, "w", 1);
    flat.alias("tied", w, Dtype::U8, [4]).unwrap();
    put(&flat, "x", 1);
    let batch_too_late = || {
        let second = std::iter::once_with(|| {
            put(&flat, "late", 9);
            (Address::from("b"), Dtype::U8, &[1][..], &[2][..])
        });
        let first = (Address::from("late"), Dtype::U8, &[1][..], &[1][..]);
        flat.register_all(std::iter::once(first).chain(second))
            .unwrap_err()
    };
    type Refuses<'r> = (Operation, &'r str, &'r dyn Fn() -> Error);
    let all: [Refuses<'_>; 5] = [
        (Operation::Publish, "flat/w", &|| {
            flat.register("w", Dtype::U8, [4], &[2; 4]).unwrap_err()
        }),
        (Operation::Publish, "flat/w", &|| {
            flat.load(("flat", "w"), bytes(4, 1)).unwrap_err()
        }),
        (Operation::Retire, "set ", &|| {
            flat.unregister(w).unwrap_err()
        }),
        (Operation::Publish, "flat/x", &|| {
            put_all(&flat, &[("a", 1), ("x", 2)]).unwrap_err()
        }),
        (Operation::Transaction, "2 weight(s)", &batch_too_late),
    ];
    for (operation, subject, act) in all {
        let mut error = None;
        let told = refusals(&flat, || error = Some(act()));
        let [(of, about, reason)] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!((*of, reason), (operation, &error.unwrap().to_string()));
        assert!(about.starts_with(subject), "{about}");
    }
}

/// The same came while it was being read: it is used, and nobody was refused anything.
#[test]
fn a_call_that_finds_what_it_wanted_was_not_refused() {
    struct Late<'f>(&'f FlatRegistry, InMemory);
    impl Source for Late<'_> {
        fn plan(&self) -> &weighbridge::Plan {
            self.1.plan()
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            put(self.0, "w", 1);
            self.0.load("set", bytes(4, 1))?;
            self.1.read_into(arena)
        }
    }
    let flat = flat();
    let late = || Late(&flat, bytes(4, 1));
    let told = refusals(&flat, || {
        let made = flat.register_from("w", late()).unwrap();
        assert_eq!(made, Registered::Reused(flat.lookup("w").unwrap()));
        flat.unregister(made.handle()).unwrap();
        flat.registry()
            .retire(flat.registry().lookup("set").unwrap())
            .unwrap();
        assert!(!flat.load("set", late()).unwrap().is_new());
    });
    assert!(told.is_empty(), "{told:?}");
}

/// Memory that a load brought for nothing ends when the lock is free, and what its owner does then is told
/// as always.
#[test]
fn an_owner_may_call_the_flat_registry_when_it_ends() {
    struct Calls(Arc<FlatRegistry>, [u8; 4]);
    impl weighbridge::memory::Owner for Calls {
        fn byte_len(&self) -> u64 {
            4
        }
        fn address(&self) -> u64 {
            self.1.as_ptr().expose_provenance() as u64
        }
        fn as_host(&self) -> Option<&[u8]> {
            Some(&self.1)
        }
    }
    impl Drop for Calls {
        fn drop(&mut self) {
            assert_eq!(self.0.len(), 1);
            self.0.register("w", Dtype::U8, [4], &[9; 4]).unwrap_err();
        }
    }
    let (tell, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let flat = Arc::new(flat());
        put(&flat, "w", 1);
        let brought = |fill| {
            let memory = Foreign::new(Calls(Arc::clone(&flat), [fill; 4])).unwrap();
            memory.tensor("w", Dtype::U8, [4], 0).unwrap()
        };
        flat.load("set", bytes(4, 1)).unwrap();
        let told = refusals(&flat, || {
            assert!(!flat.load("set", brought(1)).unwrap().is_new())
        });
        assert_eq!(told.len(), 1, "{told:?}");
        let told = refusals(&flat, || drop(flat.load("set", brought(2)).unwrap_err()));
        let subjects: Vec<_> = told.iter().map(|(_, about, _)| &**about).collect();
        assert_eq!(subjects, ["set", "flat/w"]);
        tell.send(()).unwrap();
    });
    ends.recv_timeout(SOON).expect("it hangs, or failed");
}

#[cfg(any(feature = "metrics", feature = "tracing"))]
mod watched {
    use std::cell::Cell;
    use std::sync::mpsc;

    use super::*;

    thread_local! {
        /// An observer's own calls are reported, too.
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }

    /// What it does when it is told something: asks for everything, and changes something.
    struct Looks {
        flat: Arc<FlatRegistry>,
        told: Arc<AtomicUsize>,
    }

    impl Looks {
        fn look(&self) {
            if INSIDE.replace(true) {
                return;
            }
            self.told.fetch_add(1, Ordering::Relaxed);
            let flat = &*self.flat;
            assert!(flat.total_bytes() < 1000 && !format!("{flat:?}").is_empty());
            flat.adapter_names();
            let mine = flat.register(("observer", "mine"), Dtype::U8, [1], &[1]);
            flat.entry(mine.unwrap().handle()).unwrap();
            flat.unregister_adapter("observer").unwrap();
            INSIDE.set(false);
        }
    }

    #[cfg(feature = "metrics")]
    mod meter {
        use metrics::*;

        impl Recorder for super::Looks {
            fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
                self.look();
                Counter::noop()
            }
            fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
                Gauge::noop()
            }
            fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
                self.look();
                Histogram::noop()
            }
        }
    }

    #[cfg(feature = "tracing")]
    mod diary {
        use tracing::span::{Attributes, Id, Record};
        use tracing::subscriber::Interest;
        use tracing::{Event, Metadata};

        impl tracing::Subscriber for super::Looks {
            fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
                Interest::sometimes()
            }
            fn enabled(&self, about: &Metadata<'_>) -> bool {
                about.target() == "weighbridge"
            }
            fn new_span(&self, _: &Attributes<'_>) -> Id {
                self.look();
                Id::from_u64(1)
            }
            fn record(&self, _: &Id, _: &Record<'_>) {}
            fn record_follows_from(&self, _: &Id, _: &Id) {}
            fn event(&self, _: &Event<'_>) {
                self.look();
            }
            fn enter(&self, _: &Id) {
                self.look();
            }
            fn exit(&self, _: &Id) {
                self.look();
            }
            fn try_close(&self, _: Id) -> bool {
                self.look();
                true
            }
        }
    }

    /// Runs `body` under a subscriber. While there is no more than one, a thread without any that meets
    /// one of the library's callsites first tells the cache that nobody is interested in it: so there are
    /// always two more.
    #[cfg(feature = "tracing")]
    fn subscribed<T>(
        subscriber: impl tracing::Subscriber + Send + Sync + 'static,
        body: impl FnOnce() -> T,
    ) -> T {
        static MORE: std::sync::LazyLock<[tracing::Dispatch; 2]> = std::sync::LazyLock::new(|| {
            [(), ()].map(|()| {
                tracing::Dispatch::new(Looks {
                    flat: Arc::new(flat()),
                    told: Arc::default(),
                })
            })
        });
        std::sync::LazyLock::force(&MORE);
        tracing::subscriber::with_default(subscriber, body)
    }

    /// Runs `body` with such observers, and says how often they were told something.
    fn watched<T>(flat: &Arc<FlatRegistry>, body: impl FnOnce() -> T) -> (T, usize) {
        let told = Arc::new(AtomicUsize::new(0));
        let looks = || Looks {
            flat: Arc::clone(flat),
            told: Arc::clone(&told),
        };
        #[cfg(feature = "metrics")]
        let body = || metrics::with_local_recorder(&looks(), body);
        #[cfg(feature = "tracing")]
        let body = || subscribed(looks(), body);
        (body(), told.load(Ordering::Relaxed))
    }

    /// Runs `body` on a thread that may not come back.
    fn ends(body: impl FnOnce() + Send + 'static) {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            body();
            tell.send(()).unwrap();
        });
        match told.recv_timeout(SOON) {
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
            _ => thread.join().unwrap(),
        }
    }

    #[test]
    fn an_observer_may_ask_and_change_the_flat_registry_that_tells_it() {
        ends(|| {
            let flat = Arc::new(flat());
            let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
            let base = flat.registry().publish("base", small.unwrap()).unwrap();
            let slices = |fill: u8| {
                let slice = |name, shape: [usize; 2]| {
                    let bytes = vec![fill; shape[0] * shape[1]];
                    let made = flat.register(("pirate", name), Dtype::U8, shape, &bytes);
                    made.unwrap().handle()
                };
                let mut group = flat.lora_group("pirate");
                let scale = ModuleScale::new(1, 1.0, false);
                let [a, b] = [slice("a", [1, 3]), slice("b", [2, 1])];
                group.module("p", scale, a, b).unwrap();
                group
            };
            let does = |what: &str, act: &dyn Fn()| {
                let ((), told) = watched(&flat, act);
                assert!(told > 0, "nobody was told: {what}");
            };
            let here = |name: &str| flat.lookup(name).unwrap();
            does("register", &|| {
                put(&flat, "w", 1);
            });
            does("a conflict", &|| {
                flat.register("w", Dtype::U8, [4], &[2; 4]).unwrap_err();
            });
            does("a source", &|| {
                flat.register_from("s", bytes(4, 1)).unwrap();
            });
            does("alias", &|| {
                flat.alias("tied", here("w"), Dtype::U8, [4]).unwrap();
            });
            does("an alias in the way", &|| {
                flat.unregister(here("w")).unwrap_err();
            });
            does("a batch", &|| drop(put_all(&flat, &[("x", 1), ("y", 1)])));
            does("a batch's conflict", &|| {
                put_all(&flat, &[("z", 1), ("x", 2)]).unwrap_err();
            });
            does("a batch that comes too late", &|| {
                let second = std::iter::once_with(|| {
                    put(&flat, "late", 9);
                    (Address::from("b"), Dtype::U8, &[1][..], &[2][..])
                });
                let first = (Address::from("late"), Dtype::U8, &[1][..], &[1][..]);
                let batch = std::iter::once(first).chain(second);
                flat.register_all(batch).unwrap_err();
            });
            does("unregister", &|| drop(flat.unregister(here("x")).unwrap()));
            does("cascade", &|| {
                flat.unregister_cascade(here("w")).unwrap();
            });
            let sealed = Cell::new(None);
            does("seal", &|| {
                let made = slices(1).seal("pirate", base).unwrap();
                sealed.set(Some(made.set));
            });
            let sealed = sealed.get().unwrap();
            does("seal over", &|| {
                slices(2).seal_over(sealed).unwrap();
            });
            does("a seal that is refused", &|| {
                slices(3).seal("pirate", base).unwrap_err();
            });
            does("an adapter", &|| {
                assert_eq!(flat.unregister_adapter("pirate").unwrap().len(), 2);
            });
            does("load", &|| {
                flat.load("l", bytes(4, 1)).unwrap();
            });
            does("load again", &|| {
                assert!(!flat.load("l", bytes(4, 1)).unwrap().is_new());
            });
            does("another load", &|| {
                flat.load("l", bytes(4, 2)).unwrap_err();
            });
            assert_eq!(flat.registry().stats().observer_panics, 0);
            for name in ["s", "y", "late"] {
                flat.unregister(here(name)).unwrap();
            }
            assert_eq!(flat.totals(), Totals::default());
        });
    }

    /// A destructor of a source that is registered for nothing runs when the lock is free, and what it
    /// does is told as always.
    #[test]
    fn a_source_that_is_not_needed_may_call_the_flat_registry_when_it_goes() {
        struct Goes {
            flat: Arc<FlatRegistry>,
            source: InMemory,
        }
        impl Source for Goes {
            fn plan(&self) -> &weighbridge::Plan {
                self.source.plan()
            }
            fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
                put(&self.flat, "came first", 1);
                self.source.read_into(arena)
            }
        }
        impl Drop for Goes {
            fn drop(&mut self) {
                put(&self.flat, "went", 1);
            }
        }
        ends(|| {
            let flat = Arc::new(flat());
            let goes = |source| Goes {
                flat: Arc::clone(&flat),
                source,
            };
            let (refused, _) = watched(&flat, || {
                flat.register_from("came first", goes(bytes(4, 2)))
            });
            assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })));
            assert!(flat.lookup("went").is_some());
        });
    }

    /// A call is one span, with the time that it took, and one operation, whatever it asks of the registry
    /// underneath.
    #[test]
    #[cfg(all(feature = "metrics", feature = "tracing"))]
    fn a_call_is_told_as_one() {
        let (meter, diary) = (watch::Meter::default(), watch::Diary::default());
        let flat = flat();
        let base = flat.registry().publish("base", tiny()).unwrap();
        let w = put(&flat, "w", 1);
        let told = |act: &dyn Fn()| {
            metrics::with_local_recorder(&meter, || subscribed(diary.clone(), act));
            diary.take().join(" ")
        };
        // Every callsite has been met.
        let tied = flat.alias("tied", w, Dtype::U8, [4]).unwrap().handle();
        flat.unregister(w).unwrap_err();
        flat.unregister(tied).unwrap();
        let [y, z] = ["y", "z"].map(|name| put(&flat, name, 1));
        flat.unregister_cascade(y).unwrap();
        flat.unregister_cascade(z).unwrap();
        let warm = flat.registry().stats().commits;
        let one = |what: &str, number: u64, changes: usize| {
            format!("> {what} - message=committed commit={number} changes={changes} <")
        };
        let register = || {
            flat.register("x", Dtype::U8, [1], &[1]).unwrap();
        };
        let story = told(&register);
        assert_eq!(
            story,
            format!(
                "> stage subject=x < {}",
                one("publish subject=flat/x", warm + 1, 1)
            )
        );
        assert_eq!(told(&register), "", "nothing happened");
        flat.alias("tied", w, Dtype::U8, [4]).unwrap();
        let story = told(&|| drop(flat.unregister(w).unwrap_err()));
        let refused = "- message=refused: flat/w has aliases: flat/tied. Unregister those first;";
        let retire = format!("> retire subject={} ", w.set());
        assert!(story.starts_with(&format!("{retire}{refused}")), "{story}");
        assert!(
            story.ends_with(r#"operation="retire" cause="conflict" <"#),
            "{story}"
        );
        let story = told(&|| drop(flat.unregister_cascade(w).unwrap()));
        let both = format!("transaction subject={} and its aliases", w.set());
        assert_eq!(story, one(&both, warm + 3, 2));
        let story = told(&|| drop(flat.unregister(flat.lookup("x").unwrap()).unwrap()));
        assert!(
            story.starts_with("> retire ") && story.ends_with(" changes=1 <"),
            "{story}"
        );
        let group = slices(&flat, base, "pirate-v1");
        let slices = flat.adapter_handles("pirate").len();
        let number = flat.registry().stats().commits + 1;
        let group = Cell::new(Some(group));
        let story = told(&|| drop(group.take().unwrap().seal("pirate", base).unwrap()));
        let seal = one(
            r"transaction subject=flat\u{2f}pirate/*",
            number,
            slices + 1,
        );
        assert!(story.ends_with(&seal), "{story}");
        for (name, value) in [
            ("weighbridge_operations_total operation=publish", 1.0),
            ("weighbridge_operations_total operation=retire", 1.0),
            ("weighbridge_operations_total operation=transaction", 2.0),
            ("weighbridge_operation_seconds operation=transaction", 2.0),
            (
                "weighbridge_refusals_total operation=retire cause=conflict",
                1.0,
            ),
            ("weighbridge_commits_total", 4.0),
            ("weighbridge_changes_total", 5.0 + slices as f64),
        ] {
            assert_eq!(meter.value(name), Some(value), "{name}");
        }
    }

    /// Whoever is slow to listen holds up the call that tells it, and no other.
    #[test]
    #[cfg(feature = "metrics")]
    fn a_slow_observer_holds_up_nobody_else() {
        use metrics::*;

        /// Waits, once, when it is told of a commit.
        struct Slow {
            told: mpsc::Sender<()>,
            go_on: mpsc::Receiver<()>,
        }
        impl Recorder for Slow {
            fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
                if key.name() == "weighbridge_commits_total" {
                    self.told.send(()).unwrap();
                    self.go_on.recv_timeout(SOON).unwrap();
                }
                Counter::noop()
            }
            fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
                Gauge::noop()
            }
            fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
                Histogram::noop()
            }
        }
        ends(|| {
            let flat = Arc::new(flat());
            let (told, is_told) = mpsc::channel();
            let (go, go_on) = mpsc::channel();
            let slow = std::thread::spawn({
                let flat = Arc::clone(&flat);
                move || {
                    let slow = Slow { told, go_on };
                    with_local_recorder(&slow, || put(&flat, "slow", 1));
                }
            });
            is_told.recv_timeout(SOON).unwrap();
            let (tell, fast) = mpsc::channel();
            std::thread::spawn({
                let flat = Arc::clone(&flat);
                move || tell.send((put(&flat, "fast", 1), flat.len())).unwrap()
            });
            let others = fast.recv_timeout(Duration::from_secs(10));
            go.send(()).unwrap();
            slow.join().unwrap();
            assert_eq!(others.expect("it waits for an observer").1, 2);
        });
    }

    /// Somebody moves the adapter to another base while its next version is being read.
    #[test]
    #[cfg(feature = "metrics")]
    fn an_adapter_that_is_moved_meanwhile_is_not_moved_back() {
        use metrics::*;

        struct Moves<'r>(&'r WeightRegistry, SetHandle, SetHandle, Cell<bool>);
        impl Recorder for Moves<'_> {
            fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
                let stage = key.labels().any(|label| label.value() == "stage");
                if stage && !self.3.replace(true) {
                    self.0.rebind(self.1, self.2).unwrap();
                }
                Counter::noop()
            }
            fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
                Gauge::noop()
            }
            fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
                Histogram::noop()
            }
        }
        let flat = flat();
        let core = flat.registry();
        let [one, two] = ["one", "two"].map(|name| core.publish(name, tiny()).unwrap());
        let sealed = slices(&flat, one, "pirate-v1").seal("pirate", one).unwrap();
        let next = slices(&flat, one, "pirate-v2");
        let moves = Moves(core, sealed.set, two, Cell::new(false));
        let refused = with_local_recorder(&moves, || next.seal_over(sealed.set)).unwrap_err();
        assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
        let base = core.scope(|scope| scope.get(sealed.set).unwrap().base());
        assert_eq!(base, Some(two));
    }
}
