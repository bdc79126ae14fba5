//! A source that takes its time: while it hangs in the middle of its bytes, everybody else is served, and
//! also whoever writes the same set.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use weighbridge::{Error, SetHandle};

use crate::faulty::{At, Faulty, Script};
use crate::operations::{OPERATIONS, Operation};
use crate::support::device::until;
use crate::support::{SOON, bytes};
use crate::world::{TENANT, World, original};

/// A source's way to wait until it is told, and the test's way to tell it.
struct Gate {
    reached: Receiver<()>,
    open: Sender<()>,
}

fn gate(piece: usize) -> (Arc<Script>, Gate) {
    let (arrive, reached) = mpsc::channel();
    let (open, opened) = mpsc::channel();
    let opened = Mutex::new(opened);
    let script = Script::new(At::Piece(piece), move || {
        arrive.send(()).unwrap();
        let told = opened.lock().unwrap().recv_timeout(SOON);
        told.expect("nobody told the source to go on");
        Ok(())
    });
    (script, Gate { reached, open })
}

/// Runs `operation`, and `meanwhile` while it hangs in its `piece`-th piece.
fn meanwhile(
    world: &World,
    operation: &Operation,
    piece: usize,
    meanwhile: impl FnOnce(),
) -> Result<(), Error> {
    let (script, gate) = gate(piece);
    thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let source = Faulty::new(world, operation.takes, &script);
            (operation.load)(world, source)
        });
        gate.reached
            .recv_timeout(SOON)
            .expect("it is not loaded in pieces");
        meanwhile();
        gate.open.send(()).unwrap();
        loading.join().unwrap()
    })
}

/// Every kind of change, of sets that nobody loads.
fn others_change(world: &World) {
    let registry = &world.registry;
    let other = registry.publish("other", bytes(64, 1)).unwrap();
    let swap = registry.replace(other, bytes(64, 2)).unwrap();
    swap.previous.reclaimed(SOON).unwrap();
    registry.replace_drained(other, bytes(64, 3), SOON).unwrap();
    let tenant = registry.namespace(TENANT).unwrap();
    let mut both = registry.transaction();
    let staged = both.stage(bytes(64, 4)).unwrap();
    both.publish((TENANT, "another"), staged).unwrap();
    both.retire(other).unwrap();
    for previous in both.commit().unwrap().previous {
        previous.reclaimed(SOON).unwrap();
    }
    let another = tenant.lookup("another").unwrap();
    tenant.retire(another).unwrap().reclaimed(SOON).unwrap();
    let weight = world
        .flat
        .register("other", weighbridge::Dtype::U8, [1], &[1]);
    world
        .flat
        .unregister(weight.unwrap().handle())
        .unwrap()
        .reclaimed(SOON)
        .unwrap();
}

#[test]
fn everybody_else_is_served_while_a_source_hangs() {
    let world = World::new();
    for operation in OPERATIONS {
        for piece in [0, 2] {
            let what = format!("{}, while it hangs in piece {piece}", operation.name);
            let done = meanwhile(&world, operation, piece, || {
                // What is being loaded is charged already, and nobody sees it.
                assert!(world.registry.ledger().reserved > 0, "{what}");
                // A set that gave up its memory for this says so; all others are there.
                world.serves(&what, operation.empties.map(|set| set(&world)));
                others_change(&world);
                let gone = world.registry.retired();
                assert!(
                    gone.iter().all(|gone| gone.is_reclaimed()),
                    "{what}: {gone:?}"
                );
            });
            done.unwrap_or_else(|error| panic!("{what}: {error}"));
            world.intact(&what, None);
        }
    }
    world.end();
}

/// What becomes of a load whose set another writer changed meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Its generation is the one after the other writer's.
    Follows,
    Conflict,
    Taken,
}

/// The writer of the same set does not wait for the source; and the load learns of it.
#[test]
fn a_hanging_source_is_in_no_other_writers_way() {
    let world = World::new();
    let replace = |set: SetHandle| {
        let swap = world.registry.replace(set, original(&world, set)).unwrap();
        swap.previous.reclaimed(SOON).unwrap();
    };
    let take_the_name = |name: &str| {
        let set = world.registry.publish(name, bytes(64, 1)).unwrap();
        assert_eq!(world.registry.lookup(name), Some(set));
        set
    };
    let rows: [(&str, Then); 4] = [
        ("publish", Then::Taken),
        ("replace", Then::Follows),
        ("replace_if", Then::Conflict),
        ("a transaction", Then::Follows),
    ];
    for (name, then) in rows {
        let operation = OPERATIONS
            .iter()
            .find(|operation| operation.name == name)
            .unwrap();
        let mut taken = None;
        let answer = meanwhile(&world, operation, 1, || match then {
            Then::Taken => taken = Some(take_the_name("new")),
            Then::Follows | Then::Conflict => replace(world.target),
        });
        match (then, answer) {
            (Then::Follows, Ok(())) => {}
            (Then::Conflict, Err(Error::Conflict { .. })) => {}
            (Then::Taken, Err(Error::AlreadyPublished { .. })) => {}
            (_, answer) => panic!("{name}: {answer:?}"),
        }
        if let Some(set) = taken {
            world.registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        }
        world.intact(name, None);
    }
    world.end();
}

/// A drained swap that hangs: the set says that it has no bytes, another one of the same set is told so,
/// and a retire needs to wait for neither.
#[test]
fn a_set_whose_drained_swap_hangs_can_be_retired() {
    let world = World::new();
    let name = "replace_drained, room for one";
    let operation = OPERATIONS
        .iter()
        .find(|operation| operation.name == name)
        .unwrap();
    let registry = &world.registry;
    let answer = meanwhile(&world, operation, 1, || {
        let refused = registry.acquire(world.target).unwrap_err();
        assert!(matches!(refused, Error::NotResident { .. }), "{refused}");
        let second = registry.replace_drained(world.target, bytes(4096, 9), SOON);
        let second = second.unwrap_err();
        assert!(
            second.error().is_out_of_memory()
                || matches!(second.error(), Error::NotResident { .. }),
            "{second}"
        );
        registry.retire(world.target).unwrap();
        assert_eq!(registry.lookup("target"), None);
    });
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::StaleHandle { .. }), "{error}");
    until("the bytes that were read for nothing are back", || {
        registry.ledger().total() + 4096 == world.total
    });
    world.serves("after the retire", Some(world.target));
}
