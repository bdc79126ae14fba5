//! Loaders that fail or panic: at every step there is, in every operation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use weighbridge::Error;

use crate::faulty::{At, Faulty, Script, disk_error};
use crate::operations::{OPERATIONS, Operation};
use crate::world::World;

/// How a loader ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Loaded,
    Refused,
    Panicked,
}

/// Does `operation` with a source that follows `script`, checks everything, and does it again with one that
/// is healthy. Says how the first one ended, and whether it left a set without bytes.
fn strike(world: &World, operation: &Operation, script: &Arc<Script>, at: At) -> (End, bool) {
    let what = format!("{}, {at:?}", operation.name);
    let source = Faulty::new(world, operation.takes, script);
    let run = || (operation.load)(world, source);
    let end = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => End::Loaded,
        Ok(Err(error)) => {
            let io = matches!(&error, Error::Emptied { cause, .. } if cause.is_io());
            assert!(error.is_io() || io, "{what}: {error}");
            End::Refused
        }
        Err(_) => End::Panicked,
    };
    let may_be_empty = operation.empties.map(|set| set(world));
    let empty = world.intact(&what, may_be_empty);
    let healthy = Faulty::new(world, operation.takes, &Script::none());
    (operation.load)(world, healthy).unwrap_or_else(|error| panic!("after {what}: {error}"));
    world.intact(&format!("after {what}"), None);
    (end, empty)
}

/// Strikes at every place of a kind in turn, until there is none left. Each must end with `expected`.
fn everywhere(
    place: impl Fn(usize) -> At,
    expected: End,
    blow: fn() -> Result<(), Error>,
) {
    let world = World::new();
    for operation in OPERATIONS {
        let (mut places, mut emptied) = (0, 0);
        loop {
            let at = place(places);
            let script = Script::new(at, blow);
            let (end, empty) = strike(&world, operation, &script, at);
            if !script.struck() {
                assert_eq!(end, End::Loaded, "{}, {at:?}", operation.name);
                break;
            }
            assert_eq!(end, expected, "{}, {at:?}", operation.name);
            emptied += usize::from(empty);
            places += 1;
        }
        println!("{}: {places} places, {emptied} left a set without bytes", operation.name);
        assert!(places >= 4, "{}: it was not loaded in pieces", operation.name);
        assert_eq!(emptied > 0, operation.empties.is_some(), "{}", operation.name);
    }
    world.end();
}

#[test]
fn a_read_that_fails_at_any_piece() {
    everywhere(At::Piece, End::Refused, || Err(disk_error()));
}

#[test]
fn a_panic_at_any_question_and_any_piece() {
    everywhere(At::Step, End::Panicked, || panic!("on purpose"));
}
