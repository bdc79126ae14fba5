//! Loaders that fail or panic: at every step there is, in every operation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use weighbridge::flat::Address;
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Plan};

use crate::faulty::{At, Faulty, Script, disk_error};
use crate::operations::{OPERATIONS, Operation};
use crate::support::{SOON, bytes};
use crate::world::{TARGET, World};

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
            let emptied = matches!(&error, Error::Emptied { cause, .. } if cause.is_io());
            // A set that gave up its memory for this: whoever asked for it is told.
            assert_eq!(emptied, operation.empties.is_some(), "{what}: {error}");
            assert!(error.is_io() || emptied, "{what}: {error}");
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
fn everywhere(place: impl Fn(usize) -> At, expected: End, blow: fn() -> Result<(), Error>) {
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
        println!(
            "{}: {places} places, {emptied} left a set without bytes",
            operation.name
        );
        assert!(
            places >= 4,
            "{}: it was not loaded in pieces",
            operation.name
        );
        assert_eq!(
            emptied > 0,
            operation.empties.is_some(),
            "{}",
            operation.name
        );
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

/// A source that writes the first `len` bytes of each tensor and says that it is done.
struct Writes(InMemory, usize);

impl Source for Writes {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        for tensor in self.0.plan().tensors() {
            // More than there is: a panic, as for anybody who writes past the end of a slice.
            arena[tensor.range()][..self.1].fill(0xBB);
        }
        Ok(())
    }
}

/// There is nothing of others in what a loader left out, however often the memory changed hands; and what
/// was left out is part of what the set is.
#[test]
fn what_a_loader_leaves_out_is_zero_and_never_anothers() {
    let world = World::new();
    let stage = |source| world.registry.stage(source).unwrap();
    let full = stage(Writes(bytes(TARGET, 0), TARGET)).identity().clone();
    for len in [0, 1, 64, TARGET - 1] {
        // Memory of this size that has been used.
        for fill in 1..5 {
            drop(stage(Writes(bytes(TARGET, fill), TARGET)));
        }
        let set = world
            .registry
            .publish("new", Writes(bytes(TARGET, 0), len))
            .unwrap();
        let lease = world.registry.acquire(set).unwrap();
        let leased = lease.set(set).unwrap();
        let (written, left) = leased.get("w").unwrap().bytes().split_at(len);
        assert!(written.iter().all(|&byte| byte == 0xBB) && left.iter().all(|&byte| byte == 0));
        assert_ne!(*leased.identity(), full);
        drop(lease);
        world.registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        world.intact("too little", None);
    }
    world.end();
}

/// Where somebody says how much there is, that is what there must be.
#[test]
fn the_wrong_length_is_refused_wherever_one_is_given() {
    let world = World::new();
    for len in [0, TARGET - 1, TARGET + 1] {
        let what = format!("{len} bytes");
        let given = vec![1; len];
        let refused = |error: Error| assert!(error.is_malformed() || error.is_misuse(), "{error}");
        refused(
            InMemory::new()
                .tensor("w", Dtype::U8, [TARGET], given.clone())
                .unwrap_err(),
        );
        refused(
            world
                .flat
                .register("new", Dtype::U8, [TARGET], &given)
                .unwrap_err(),
        );
        let good = [1; 9];
        let all = [
            ("first", 9, &good[..]),
            ("second", TARGET, &given),
            ("new", 9, &good),
        ];
        let shapes = all.map(|(_, len, _)| [len]);
        let all = all.iter().zip(&shapes);
        let all = all
            .map(|((name, _, bytes), shape)| (Address::from(*name), Dtype::U8, &shape[..], *bytes));
        refused(world.flat.register_all(all).unwrap_err());
        let filling = world
            .registry
            .fill(bytes(TARGET, 0).plan().clone(), None)
            .unwrap();
        let wrote = filling.writer("w").unwrap().write(&given);
        if len > TARGET {
            refused(wrote.unwrap_err());
        }
        let failed = filling.seal().unwrap_err();
        assert!(
            failed.to_string().contains("bytes were written"),
            "{failed}"
        );
        drop(failed);
        let writes =
            AssertUnwindSafe(|| world.registry.publish("new", Writes(bytes(TARGET, 0), len)));
        if len > TARGET {
            assert!(catch_unwind(writes).is_err(), "{what}");
        }
        world.intact(&what, None);
    }
    world.end();
}
