//! Registering: conflicts, batches, sources, and books that never drift.

use super::*;

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
    let on_it = core.publish("adapter", addition(1, 1, w.set())).unwrap();
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

/// A refused name is shown quoted and on one line, whoever gave it.
#[test]
fn names_that_are_refused_are_shown_escaped() {
    let flat = flat();
    for address in [("", "a\nb"), ("pirate", "a\nb"), ("a\nb", "w")] {
        let refused = flat.register(address, Dtype::U8, [1], &[1]).unwrap_err();
        assert!(matches!(refused, Error::InvalidName { .. }), "{refused}");
        assert!(!refused.to_string().contains(char::is_control), "{refused}");
    }
    assert!(flat.is_empty());
}
