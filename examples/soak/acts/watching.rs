//! Observers: the catalog, the numbers, a subscriber that is slow.

use weighbridge::Next;

use crate::roles;
use crate::worker::{Done, Worker};
use crate::world::{LIMIT, bump};

pub fn catalog(worker: &mut Worker) -> Done {
    let world = worker.world.clone();
    let catalog = world.registry.catalog();
    worker.saw_number(catalog.number().number());
    for group in 0..roles::GROUP.len() / roles::MEMBERS {
        let seen: Vec<Option<u64>> = roles::group(group)
            .map(|role| {
                let entry = catalog.get(&roles::name(role));
                entry.map(|entry| entry.generation.number())
            })
            .collect();
        world.demand(seen.iter().all(|one| *one == seen[0]), || {
            format!("the catalog has a transaction in part: {seen:?}")
        });
    }
    if worker.random.once_in(10) {
        std::hint::black_box(catalog.to_json());
    }
    Ok(())
}

pub fn numbers(worker: &mut Worker) -> Done {
    let world = &worker.world;
    let ledger = world.registry.ledger();
    world.demand(ledger.total() <= LIMIT && ledger.peak <= LIMIT, || {
        format!("over the limit: {ledger:?}")
    });
    match worker.random.below(4) {
        0 => drop(std::hint::black_box(world.registry.stats().to_json())),
        1 => drop(std::hint::black_box(world.registry.fences())),
        2 => {
            for going in world.registry.retired() {
                std::hint::black_box(going.holders());
            }
        }
        _ => drop(std::hint::black_box(world.registry.accounts())),
    }
    Ok(())
}

/// Reads a few events, or starts anew; what it does not get it is told of, to the number.
pub fn events(worker: &mut Worker) -> Done {
    let world = worker.world.clone();
    let fresh = worker.random.once_in(50);
    if fresh {
        worker.slow = None;
    }
    let wanted = worker.random.below(200);
    let (subscription, expected) = worker
        .slow
        .get_or_insert_with(|| (world.registry.events(), 0));
    for _ in 0..wanted {
        match subscription.try_next() {
            Next::Event(event) => {
                world.demand(*expected == 0 || event.sequence == *expected, || {
                    format!("event {} came where {expected} was due", event.sequence)
                });
                *expected = event.sequence + 1;
                bump(&world.counts.events);
            }
            Next::Missed(missed) => {
                if *expected > 0 {
                    *expected += missed;
                }
                bump(&world.counts.gaps);
            }
            Next::Nothing | Next::Closed => break,
        }
    }
    Ok(())
}
