//! Memory that is refused, arena by arena, in every operation.
//!
//! What can be refused: arenas, which are all of a set's bytes. (Those of a mebibyte and more are mappings
//! of their own: `limits`.) Everything else that the library allocates is small and comes from collections
//! of the standard library, which end the process by Rust's rules where there is no memory, as they do in
//! whatever embeds it: tables of names and tensors, handles' records, labels, events, documents within
//! their bounds, text of messages, and what `Arc` and `Box` hold.

use weighbridge::flat::Address;
use weighbridge::source::InMemory;
use weighbridge::{Dtype, Error, SetHandle, WeightRegistry};

use crate::faulty::{Faulty, Script};
use crate::heap;
use crate::operations::OPERATIONS;
use crate::support::{SOON, bytes};
use crate::world::{self, World};

/// It says what it could not have, and that it has nothing now, if it gave that up.
fn out_of_memory(error: &Error) -> bool {
    match error {
        Error::Emptied { cause, .. } => out_of_memory(cause),
        error => matches!(error, Error::OutOfMemory { .. }) && error.is_out_of_memory(),
    }
}

/// Grants `load` one arena more each time, until it needs no more.
fn arena_by_arena(
    world: &World,
    name: &str,
    may_be_empty: Option<SetHandle>,
    load: impl Fn() -> Result<(), Error>,
) -> usize {
    for granted in 0.. {
        let what = format!("{name}, {granted} arenas");
        let (answer, refused) = heap::refusing(granted, &load);
        if !refused {
            answer.unwrap_or_else(|error| panic!("{what}: {error}"));
            world.intact(&what, None);
            return granted;
        }
        let error = answer.expect_err(&what);
        assert!(out_of_memory(&error), "{what}: {error}");
        world.intact(&what, may_be_empty);
        load().unwrap_or_else(|error| panic!("after {what}: {error}"));
        world.intact(&format!("after {what}"), None);
    }
    unreachable!("an operation has an end")
}

#[test]
fn an_arena_that_is_refused_in_any_operation() {
    let world = World::new();
    for operation in OPERATIONS {
        let set = operation.empties.map(|set| set(&world));
        let arenas = arena_by_arena(&world, operation.name, set, || {
            (operation.load)(
                &world,
                Faulty::new(&world, operation.takes, &Script::none()),
            )
        });
        // Where there is room for one only, the next one has the memory of the one before.
        let takes_over = operation.empties.is_some();
        assert_eq!(arenas == 0, takes_over, "{}", operation.name);
    }
    world.end();
}

/// Memory of another size cannot be taken over.
#[test]
fn an_arena_that_is_refused_after_a_set_was_drained() {
    // Whose arenas are counted while this one's come and go.
    let _alone = world::alone();
    let registry = WeightRegistry::builder().limit_bytes(192);
    let registry = registry.build().unwrap();
    let set = registry.publish("set", bytes(64, 1)).unwrap();
    let swap = || registry.replace_drained(set, bytes(192, 2), SOON);
    let (answer, refused) = heap::refusing(0, swap);
    assert!(refused);
    let error = answer.unwrap_err();
    assert!(matches!(error.error(), Error::Emptied { .. }), "{error}");
    assert!(out_of_memory(error.error()), "{error}");
    drop(error);
    assert_eq!(registry.ledger().total(), 0);
    swap().unwrap();
    assert_eq!(registry.ledger().resident, 192);
}

/// Those that read no source of the caller's.
#[test]
fn an_arena_that_is_refused_where_bytes_are_at_hand() {
    let world = World::new();
    let flat = &world.flat;
    arena_by_arena(&world, "a flat weight", None, || {
        let weight = flat.register("new", Dtype::U8, [9], &[1; 9])?.handle();
        flat.unregister(weight)?.reclaimed(SOON)
    });
    let arenas = arena_by_arena(&world, "many flat weights", None, || {
        let three = NAMES.map(|name| (Address::from(name), Dtype::U8, &[9][..], &[1; 9][..]));
        for made in flat.register_all(three)? {
            flat.unregister(made.handle())?.reclaimed(SOON)?;
        }
        Ok(())
    });
    assert_eq!(arenas, 3);
    let arenas = arena_by_arena(&world, "two staged sets", None, || {
        let mut both = world.registry.transaction();
        let first = both.publish("first", both.stage(bytes(64, 1))?)?;
        let on_it = both.stage(
            InMemory::new()
                .replacement("x", Dtype::U8, [1], [1])?
                .on(first),
        )?;
        let second = both.publish("second", on_it)?;
        both.commit()?;
        world.registry.retire(second)?.reclaimed(SOON)?;
        world.registry.retire(first)?.reclaimed(SOON)
    });
    assert_eq!(arenas, 2);
    world.end();
}

const NAMES: [&str; 3] = ["new", "first", "second"];
