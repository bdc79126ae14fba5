//! What others do to flat weights in the registry underneath.

use super::*;

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
