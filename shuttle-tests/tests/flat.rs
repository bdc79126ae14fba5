//! The flat registry: weights that are registered, aliased, pinned and unregistered by several, and the
//! registry underneath that changes meanwhile.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;

use weighbridge::flat::{FlatHandle, FlatRegistry, Registered};
use weighbridge::layout::ModuleScale;
use weighbridge::source::InMemory;
use weighbridge::{Dtype, Error};
use weighbridge_shuttle_tests::{LONG, bytes, empty, explore, registry, saw, start, value};

fn flat() -> Arc<FlatRegistry> {
    Arc::new(FlatRegistry::new(registry()))
}

fn register(flat: &FlatRegistry, name: &str, fill: u8) -> Result<Registered, Error> {
    flat.register(name, Dtype::U8, [4], &[fill; 4])
}

#[track_caller]
fn pinned(flat: &FlatRegistry, weight: FlatHandle) -> u8 {
    let pinned = flat.get(weight).unwrap();
    assert_eq!(pinned.bytes(), [pinned.bytes()[0]; 4]);
    pinned.bytes()[0]
}

/// What the books say is what the registry has.
fn settled(flat: &FlatRegistry) {
    let charged = flat.registry().ledger().resident;
    let names = flat.len() + flat.totals().aliases;
    assert_eq!(names, flat.registry().stats().sets, "the books are wrong");
    // Lines of 64 bytes hold 4.
    assert_eq!(flat.total_bytes() * 16, charged, "the books are wrong");
}

#[test]
fn the_same_weight_is_registered_once() {
    let outcomes = ["mine", "the other's"];
    explore("the_same_weight_is_registered_once", &outcomes, || {
        let flat = flat();
        let other = start(&flat, |flat| register(flat, "w", 1).unwrap());
        let mine = register(&flat, "w", 1).unwrap();
        let other = other.join().unwrap();
        assert_eq!(mine.handle(), other.handle());
        assert!(mine.is_new() != other.is_new(), "{mine:?} {other:?}");
        saw(if mine.is_new() { "mine" } else { "the other's" });
        assert_eq!((flat.total_bytes(), flat.len()), (4, 1));
        assert_eq!(pinned(&flat, mine.handle()), 1);
        settled(&flat);
        empty(flat.registry());
    });
}

#[test]
fn one_name_has_one_weight() {
    explore("one_name_has_one_weight", &["mine", "the other's"], || {
        let flat = flat();
        let other = start(&flat, |flat| register(flat, "w", 1));
        let mine = register(&flat, "w", 2);
        let (winner, fill, refused) = match (mine, other.join().unwrap()) {
            (Ok(mine), Err(refused)) => (mine.handle(), 2, refused),
            (Err(refused), Ok(other)) => (other.handle(), 1, refused),
            both => panic!("{both:?}"),
        };
        assert!(
            matches!(refused, Error::AlreadyRegistered { .. }),
            "{refused}"
        );
        assert_eq!((pinned(&flat, winner), flat.total_bytes()), (fill, 4));
        saw(if fill == 2 { "mine" } else { "the other's" });
        settled(&flat);
        empty(flat.registry());
    });
}

#[test]
fn an_alias_holds_its_target() {
    explore("an_alias_holds_its_target", &["tied", "stale"], || {
        let flat = flat();
        let target = register(&flat, "w", 1).unwrap().handle();
        let aliaser = start(&flat, move |flat| flat.alias("x", target, Dtype::U8, [4]));
        let gone = flat.unregister(target);
        match (aliaser.join().unwrap(), gone) {
            (Ok(alias), Err(Error::WeightTied { .. })) => {
                assert_eq!(pinned(&flat, alias.handle()), 1);
                settled(&flat);
                flat.unregister_cascade(target).unwrap();
                saw("tied");
            }
            (Err(Error::StaleHandle { .. }), Ok(_)) => saw("stale"),
            both => panic!("{both:?}"),
        }
        assert_eq!((flat.total_bytes(), flat.len()), (0, 0));
        empty(flat.registry());
    });
}

#[test]
fn pins_outlive_an_unregister() {
    explore(
        "pins_outlive_an_unregister",
        &["pinned", "stale", "again"],
        || {
            let flat = flat();
            let weight = register(&flat, "w", 1).unwrap().handle();
            let holder = start(&flat, move |flat| match flat.get(weight) {
                Ok(pinned) => {
                    assert_eq!(pinned.bytes(), [1; 4]);
                    saw("pinned");
                }
                Err(Error::StaleHandle { .. }) => saw("stale"),
                Err(other) => panic!("{other}"),
            });
            let registrar = start(&flat, |flat| {
                if register(flat, "w", 2).is_ok() {
                    saw("again");
                }
            });
            flat.unregister(weight).unwrap().reclaimed(LONG).unwrap();
            holder.join().unwrap();
            registrar.join().unwrap();
            settled(&flat);
            empty(flat.registry());
        },
    );
}

#[test]
fn the_books_follow_the_registry_underneath() {
    let outcomes = ["refused", "caught up", "both gone"];
    explore(
        "the_books_follow_the_registry_underneath",
        &outcomes,
        || {
            let flat = flat();
            let weight = register(&flat, "w", 1).unwrap().handle();
            let beneath = start(&flat, move |flat| {
                flat.registry().retire(weight.set()).is_ok()
            });
            let other = start(&flat, |flat| register(flat, "x", 3).unwrap().handle());
            let mine = flat.unregister(weight).is_ok();
            let theirs = beneath.join().unwrap();
            assert!(mine != theirs, "gone twice, or never");
            saw(if mine { "refused" } else { "both gone" });
            let x = other.join().unwrap();
            assert_eq!(
                (flat.len(), flat.total_bytes(), pinned(&flat, x)),
                (1, 4, 3)
            );
            saw("caught up");
            settled(&flat);
            empty(flat.registry());
            assert_eq!((flat.len(), flat.total_bytes()), (0, 0));
        },
    );
}

#[test]
fn an_adapter_goes_whole() {
    let outcomes = ["both", "one", "none"];
    explore("an_adapter_goes_whole", &outcomes, || {
        let flat = flat();
        let registrar = start(&flat, |flat| {
            for name in ["a", "b"] {
                let address = ("tenant", name);
                flat.register(address, Dtype::U8, [4], &[1; 4]).unwrap();
            }
        });
        let gone = flat.unregister_adapter("tenant").unwrap().len();
        saw(["none", "one", "both"][gone]);
        registrar.join().unwrap();
        assert_eq!(flat.adapter_handles("tenant").len(), 2 - gone);
        assert_eq!(flat.adapter_bytes("tenant"), 4 * (2 - gone as u64));
        settled(&flat);
        empty(flat.registry());
    });
}

#[test]
fn a_cascade_takes_an_alias_that_comes() {
    let outcomes = ["along with it", "too late"];
    explore("a_cascade_takes_an_alias_that_comes", &outcomes, || {
        let flat = flat();
        let target = register(&flat, "w", 1).unwrap().handle();
        let aliaser = start(&flat, move |flat| flat.alias("x", target, Dtype::U8, [4]));
        let gone = flat.unregister_cascade(target).unwrap().len();
        match (aliaser.join().unwrap(), gone) {
            (Ok(_), 2) => saw("along with it"),
            (Err(Error::StaleHandle { .. }), 1) => saw("too late"),
            both => panic!("{both:?}"),
        }
        assert_eq!((flat.len(), flat.totals().aliases), (0, 0));
        settled(&flat);
        empty(flat.registry());
    });
}

#[test]
fn lists_that_overlap_are_registered_once() {
    let outcomes = ["mine", "the other's"];
    explore("lists_that_overlap_are_registered_once", &outcomes, || {
        fn list(flat: &FlatRegistry, names: [&str; 2]) -> Vec<Registered> {
            let weights = names.map(|name| (name.into(), Dtype::U8, &[4][..], &[1; 4][..]));
            flat.register_all(weights).unwrap()
        }
        let flat = flat();
        let other = start(&flat, |flat| list(flat, ["a", "b"]));
        let mine = list(&flat, ["b", "c"]);
        let other = other.join().unwrap();
        assert_eq!(mine[0].handle(), other[1].handle());
        assert!(mine[0].is_new() != other[1].is_new(), "{mine:?} {other:?}");
        assert!(mine[1].is_new() && other[0].is_new(), "{mine:?} {other:?}");
        saw(if mine[0].is_new() {
            "mine"
        } else {
            "the other's"
        });
        assert_eq!((flat.total_bytes(), flat.len()), (12, 3));
        settled(&flat);
        empty(flat.registry());
    });
}

#[test]
fn the_same_set_is_loaded_once() {
    let outcomes = ["mine", "the other's"];
    explore("the_same_set_is_loaded_once", &outcomes, || {
        let flat = flat();
        let other = start(&flat, |flat| flat.load("m", bytes(1)).unwrap());
        let mine = flat.load("m", bytes(1)).unwrap();
        let other = other.join().unwrap();
        assert_eq!(mine.handle(), other.handle());
        assert!(mine.is_new() != other.is_new(), "{mine:?} {other:?}");
        saw(if mine.is_new() { "mine" } else { "the other's" });
        let lease = flat.registry().acquire(mine.handle()).unwrap();
        assert_eq!(value(&lease, mine.handle()), 1);
        drop(lease);
        assert_eq!(flat.registry().stats().sets, 1);
        empty(flat.registry());
    });
}

#[test]
fn an_adapter_is_sealed_from_what_is_there() {
    let outcomes = [
        "sealed",
        "a slice is gone",
        "a slice went before the commit",
    ];
    explore("an_adapter_is_sealed_from_what_is_there", &outcomes, || {
        let flat = flat();
        let core = flat.registry();
        let base = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
        let base = core.publish("base", base.unwrap()).unwrap();
        let slice = |name, shape: [usize; 2]| {
            let bytes = vec![1; shape[0] * shape[1]];
            let made = flat.register(("pirate", name), Dtype::U8, shape, &bytes);
            made.unwrap().handle()
        };
        let [a, b] = [slice("a", [1, 3]), slice("b", [2, 1])];
        let thief = start(&flat, move |flat| flat.unregister(a).map(drop));
        let mut group = flat.lora_group("pirate");
        let scale = ModuleScale::new(1, 1.0, false);
        let paired = group.module("p", scale, a, b);
        let sealed = match paired {
            Ok(()) => group.seal("pirate", base).map(Some),
            Err(Error::StaleHandle { .. }) => Ok(None),
            Err(other) => panic!("{other}"),
        };
        match (sealed, thief.join().unwrap()) {
            (Ok(Some(sealed)), Err(Error::StaleHandle { .. })) => {
                assert_eq!(core.lookup("pirate"), Some(sealed.set));
                assert_eq!((flat.len(), flat.total_bytes()), (0, 0));
                saw("sealed");
            }
            (Ok(None), Ok(())) => saw("a slice is gone"),
            (Err(Error::StaleHandle { .. }), Ok(())) => {
                saw("a slice went before the commit");
                assert_eq!(core.lookup("pirate"), None);
                assert_eq!((flat.len(), flat.total_bytes()), (1, 2));
            }
            both => panic!("{both:?}"),
        }
        empty(core);
    });
}
