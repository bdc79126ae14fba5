//! What outlives its registry: leases of every kind, on every thread, and the handles of those who
//! wait. A binary of its own: it counts every allocation.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::sync::{Barrier, Mutex};
use std::time::Duration;

use counting::live;
use support::{SOON, bytes, registry};
use weighbridge::{Error, Lease, Retirement, SetHandle, WeightRegistry};

const LEN: usize = 128 << 10;

/// Sets and what holds them: of each set one generation that was superseded and one that is current.
struct Scene {
    registry: WeightRegistry,
    sets: [SetHandle; 2],
    leases: Vec<Lease>,
    going: Vec<Retirement>,
}

impl Scene {
    fn new() -> Self {
        let registry = registry();
        let sets = ["a", "b"].map(|name| registry.publish(name, bytes(LEN, 1)).unwrap());
        let of_both = |label| registry.acquire_as(label, sets).unwrap();
        let mut leases = vec![of_both("old"), registry.acquire(sets[0]).unwrap()];
        leases.push(leases[0].clone());
        let replace = |set| registry.replace(set, bytes(LEN, 2)).unwrap().previous;
        let mut going: Vec<_> = sets.into_iter().map(replace).collect();
        leases.extend([of_both("new"), registry.acquire(sets).unwrap()]);
        leases.push(leases[3].clone());
        // One set is retired whole, the other is current to the end.
        going.push(registry.retire(sets[1]).unwrap());
        Scene {
            registry,
            sets,
            leases,
            going,
        }
    }
}

fn read(lease: &Lease, set: SetHandle) -> u8 {
    let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

/// Many rounds of the same race: the registry goes on one thread while the last leases end on others
/// and somebody waits for them on a third.
fn the_last_lease_ends_while_the_registry_goes() {
    let Scene {
        registry,
        sets,
        leases,
        going,
    } = Scene::new();
    let start = Barrier::new(4);
    let leases = Mutex::new(leases);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                // The guard ends with the statement: the lease is dropped without it.
                while let Some(lease) = { leases.lock().unwrap().pop() } {
                    let twin = lease.clone();
                    assert!(matches!(read(&lease, sets[0]), 1 | 2));
                    drop(lease);
                    assert!(matches!(read(&twin, sets[0]), 1 | 2));
                }
            });
        }
        scope.spawn(|| {
            start.wait();
            for one in &going {
                one.drained(SOON).unwrap();
                one.reclaimed(SOON).unwrap();
                assert!(one.holders().is_empty());
            }
        });
        start.wait();
        drop(registry);
    });
    assert!(
        going
            .iter()
            .all(|one| one.leases() == 0 && one.is_reclaimed())
    );
}

/// No race: everything in turn, long after the registry.
fn leases_read_clone_and_name_themselves_without_their_registry() {
    let Scene {
        registry,
        sets,
        mut leases,
        going,
    } = Scene::new();
    let w = registry.weight_handle(sets[0], "w").unwrap();
    drop(registry);
    let fills: Vec<u8> = leases.iter().map(|lease| read(lease, sets[0])).collect();
    assert_eq!(fills, [1, 1, 1, 2, 2, 2]);
    assert_eq!(leases[3].weight(w).unwrap().bytes(), [2; LEN]);
    assert_eq!(leases[3].cache_key(), leases[4].cache_key());
    // A clone of a labelled lease is labelled, on whatever thread.
    let twin = std::thread::scope(|scope| scope.spawn(|| leases[0].clone()).join().unwrap());
    let Err(Error::NotDrained(holdup)) = going[0].drained(Duration::ZERO) else {
        panic!("leases are held")
    };
    assert_eq!(holdup.leases, 4);
    let labels: Vec<_> = holdup.holders.iter().map(|one| &*one.label).collect();
    assert_eq!(labels, ["old"; 3]);
    // The whole set's retirement waits for both of its generations.
    assert_eq!((going[2].leases(), going[2].bytes()), (6, 2 * LEN as u64));
    leases.truncate(3);
    assert_eq!((going[2].leases(), going[0].is_drained()), (3, false));
    drop(leases);
    assert_eq!(going[1].holders().len(), 1);
    drop(twin);
    for one in &going {
        // Whoever dropped the last lease freed the bytes: there is nobody left to wait for.
        one.drained(Duration::ZERO).unwrap();
        one.reclaimed(Duration::ZERO).unwrap();
    }
}

#[test]
fn nothing_that_outlives_its_registry_is_lost() {
    const ROUNDS: usize = 300;
    leases_read_clone_and_name_themselves_without_their_registry();
    the_last_lease_ends_while_the_registry_goes();
    let before = live();
    for round in 0..ROUNDS {
        the_last_lease_ends_while_the_registry_goes();
        leases_read_clone_and_name_themselves_without_their_registry();
        // A lost generation is as large as this; what threads leave behind is not.
        let now = live();
        assert!(
            now < before + LEN / 2,
            "round {round}: {before} bytes grew to {now}"
        );
    }
}
