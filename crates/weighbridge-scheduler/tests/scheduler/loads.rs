//! Weights that are away when they are wanted.

use std::time::{Duration, Instant};

use weighbridge::source::Evictable;
use weighbridge::{Error, WeightRegistry};
use weighbridge_scheduler::{Limits, Turn};

use crate::{SOON, World, checkpoint, gated, lora, next_round, payloads};

#[test]
fn what_is_away_is_loaded_once_for_all_who_want_it() {
    let world = World::new(1);
    let (gate, slow) = gated(&world, "slow");
    gate.set(true, false);
    let scheduler = world.scheduler(Limits::default());
    for payload in 0..3 {
        scheduler
            .admit(world.base, Some(slow), "r", payload)
            .unwrap();
    }
    scheduler
        .admit(world.base, Some(world.adapters[0]), "r", 9)
        .unwrap();
    // Whoever is there does not wait for them.
    assert_eq!(payloads(&scheduler.schedule().joined), [9]);
    gate.entered(1);
    scheduler.admit(world.base, Some(slow), "r", 3).unwrap();
    gate.set(false, false);
    // A place came back, too, so there may be a round in between.
    let round = next_round(&scheduler);
    assert_eq!(payloads(&round.joined), [0, 1, 2, 3]);
    assert_eq!((gate.opened(), scheduler.stats().loads), (1, 1));
    let mut generations = round.joined.iter().map(|turn| turn.place.adapter());
    let first = generations.next().unwrap();
    assert!(first.is_some() && generations.all(|other| other == first));
}

#[test]
fn a_load_that_fails_ends_its_requests_and_nobody_else() {
    let world = World::new(1);
    let (gate, broken) = gated(&world, "broken");
    gate.set(false, true);
    let scheduler = world.scheduler(Limits::default());
    let tickets = [1, 2].map(|payload| {
        scheduler
            .admit(world.base, Some(broken), "r", payload)
            .unwrap()
    });
    let round = next_round(&scheduler);
    assert!(round.joined.is_empty());
    for (failed, (ticket, payload)) in round.failed.iter().zip(tickets.iter().zip([1, 2])) {
        assert_eq!((failed.ticket, failed.payload), (*ticket, payload));
        let Error::LoadFailed { set, .. } = &*failed.error else {
            panic!("{}", failed.error)
        };
        assert_eq!(set.name(), "broken");
        assert!(failed.error.is_io());
    }
    assert_eq!((round.failed.len(), gate.opened()), (2, 1));
    scheduler
        .admit(world.base, Some(world.adapters[0]), "r", 3)
        .unwrap();
    assert_eq!(payloads(&scheduler.schedule().joined), [3]);
}

/// Whether its load was asked for or not.
#[test]
fn an_adapter_that_is_retired_while_its_request_waits_without_it_is_an_error() {
    let world = World::new(0);
    let (gate, first) = gated(&world, "first");
    let (_, second) = gated(&world, "second");
    gate.set(true, false);
    let scheduler = world.scheduler(Limits::default().ahead(1));
    let stale =
        |failed: &Error, set| matches!(failed, Error::StaleHandle { handle } if *handle == set);
    for (payload, adapter) in [(1, first), (2, second)] {
        scheduler
            .admit(world.base, Some(adapter), "r", payload)
            .unwrap();
    }
    assert!(scheduler.schedule().is_empty());
    gate.entered(1);
    world.registry.retire(second).unwrap();
    let round = scheduler.schedule();
    assert_eq!((round.failed.len(), round.failed[0].payload), (1, 2));
    assert!(stale(&round.failed[0].error, second));

    world.registry.retire(first).unwrap();
    gate.set(false, false);
    let round = next_round(&scheduler);
    assert_eq!((round.joined.len(), round.failed.len()), (0, 1));
    assert!(stale(&round.failed[0].error, first));
    world.end();
}

#[test]
fn what_is_replaced_while_it_is_waited_for_comes_as_its_next_generation() {
    let world = World::new(0);
    let (gate, slow) = gated(&world, "slow");
    gate.set(true, false);
    let scheduler = world.scheduler(Limits::default());
    scheduler.admit(world.base, Some(slow), "r", ()).unwrap();
    assert!(scheduler.schedule().is_empty());
    gate.entered(1);
    let replaced = world.registry.replace(slow, lora(world.base, 5)).unwrap();
    gate.set(false, false);
    let round = next_round(&scheduler);
    assert_eq!(
        round.joined[0].place.adapter(),
        Some((slow, replaced.generation))
    );
}

/// Not all at once, and the oldest first.
#[test]
fn loads_are_asked_for_so_many_ahead() {
    let world = World::new(0);
    let gates: Vec<_> = (0..4).map(|at| gated(&world, &format!("g{at}"))).collect();
    let scheduler = world.scheduler(Limits::default().ahead(2));
    for (payload, (gate, adapter)) in gates.iter().enumerate() {
        gate.set(true, false);
        // Two for each: they are asked for together.
        scheduler
            .admit(world.base, Some(*adapter), "r", payload)
            .unwrap();
        scheduler
            .admit(world.base, Some(*adapter), "r", payload)
            .unwrap();
    }
    assert!(scheduler.schedule().is_empty() && scheduler.schedule().is_empty());
    assert_eq!(scheduler.stats().loads, 2);
    gates[0].0.entered(1);
    gates[1].0.entered(1);
    gates[1].0.set(false, false);
    assert_eq!(payloads(&next_round(&scheduler).joined), [1, 1]);
    assert!(scheduler.schedule().is_empty());
    assert_eq!(scheduler.stats().loads, 3, "the next one is asked for");
    gates[2].0.entered(1);
    assert_eq!(gates[3].0.opened(), 0);
    for (gate, _) in &gates {
        gate.set(false, false);
    }
    let mut left = 6;
    while left > 0 {
        left -= next_round(&scheduler).joined.len();
    }
}

#[test]
fn a_load_that_nobody_wants_any_more_is_in_nobodys_way() {
    let world = World::new(0);
    let [(gate, first), (_, second)] = ["first", "second"].map(|name| gated(&world, name));
    gate.set(true, false);
    let scheduler = world.scheduler(Limits::default().ahead(1));
    let cancelled = scheduler.admit(world.base, Some(first), "r", 1).unwrap();
    scheduler.admit(world.base, Some(second), "r", 2).unwrap();
    assert!(scheduler.schedule().is_empty());
    gate.entered(1);
    assert!(scheduler.schedule().is_empty());
    assert_eq!(scheduler.stats().loads, 1);
    scheduler.cancel(cancelled).unwrap();
    // The other one is read although this one still is.
    assert_eq!(payloads(&next_round(&scheduler).joined), [2]);
    gate.set(false, false);
}

/// There is room for one adapter, and requests for the one that is there keep coming and overlap, so that it is always
/// leased. The other one is loaded all the same.
#[test]
fn an_adapter_that_is_away_runs_although_requests_for_a_resident_one_keep_coming() {
    let one_of_each = {
        let world = World::new(1);
        world.registry.ledger().total()
    };
    let limited = WeightRegistry::builder()
        .limit_bytes(one_of_each)
        .build()
        .unwrap();
    let registry = std::sync::Arc::new(limited);
    let base = registry.publish("base", checkpoint()).unwrap();
    let away = registry
        .publish("away", Evictable::new(lora(base, 1)))
        .unwrap();
    registry.evict(away).unwrap();
    let busy = registry
        .publish("busy", Evictable::new(lora(base, 2)))
        .unwrap();
    let world = World {
        registry,
        base,
        adapters: vec![away, busy],
    };
    let scheduler = world.scheduler(Limits::default().patience(3));
    scheduler.admit(base, Some(away), "r", "away").unwrap();
    let (mut running, mut others): (Vec<(u64, Turn<&str>)>, usize) = Default::default();
    let deadline = Instant::now() + SOON;
    loop {
        if scheduler.waiting() < 4 {
            scheduler.admit(base, Some(busy), "r", "busy").unwrap();
        }
        let round = scheduler.schedule();
        running.retain(|(until, _)| *until > round.number);
        running.extend(
            round
                .joined
                .into_iter()
                .map(|turn| (round.number + 3, turn)),
        );
        if running.iter().any(|(_, turn)| turn.payload == "away") {
            break;
        }
        others = others.max(running.len());
        assert!(
            Instant::now() < deadline,
            "it is never loaded: {scheduler:?}"
        );
        scheduler.wait(Duration::from_millis(1));
    }
    assert!(others > 1, "requests for the busy one overlapped");
    assert!(scheduler.stats().pressed > 0);
    // And those that were held back come after it, though nobody is admitted any more.
    running.clear();
    while scheduler.waiting() > 0 {
        drop(next_round(&scheduler));
    }
    drop(scheduler);
    world.end();
}
