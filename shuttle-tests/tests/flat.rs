//! The flat registry: weights that are registered, aliased, pinned and unregistered by several, and the
//! registry underneath that changes meanwhile.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;

use weighbridge::flat::{FlatHandle, FlatRegistry, Registered};
use weighbridge::{Dtype, Error};
use weighbridge_shuttle_tests::{LONG, empty, explore, registry, saw, start};

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
