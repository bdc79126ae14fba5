//! What is retired, cancelled and dropped while requests wait.

use std::time::Duration;

use weighbridge_scheduler::{Limits, Why};

use crate::{SOON, World, gated, next_round, payloads};

/// vLLM resolves a name to a path, and an unload between that and the schedule goes unnoticed. Here the lease is
/// taken first.
#[test]
fn an_adapter_that_is_retired_while_its_request_waits_is_there_until_it_has_run() {
    let world = World::new(1);
    let scheduler = world.scheduler(Limits::default());
    let adapter = world.adapters[0];
    scheduler.admit(world.base, Some(adapter), "r", 7).unwrap();
    let going = world.registry.retire(adapter).unwrap();
    assert!(!going.is_drained());
    // The name is somebody else's by now.
    let source = crate::lora(world.base, 99);
    let other = world.registry.publish("a0", source).unwrap();
    let mut round = scheduler.schedule();
    let turn = round.joined.pop().unwrap();
    let set = turn.lease.set(adapter).unwrap();
    assert_eq!(set.generation(), going.generation());
    assert!(turn.lease.set(other).is_err());
    assert!(!going.is_drained());
    drop(turn);
    going.reclaimed(SOON).unwrap();
    world.registry.retire(other).unwrap();
    world.end();
}

#[test]
fn whoever_waits_can_be_cancelled_and_nobody_else() {
    let world = World::new(1);
    let scheduler = world.scheduler(Limits::default());
    let adapter = world.adapters[0];
    // With a lease.
    let ticket = scheduler.admit(world.base, Some(adapter), "r", 1).unwrap();
    assert_eq!(scheduler.cancel(ticket), Some(1));
    assert_eq!(scheduler.cancel(ticket), None, "it was cancelled");
    world.registry.evict(adapter).unwrap(); // its lease ended
    // Without a lease, before its load is asked for, and after.
    let ticket = scheduler.admit(world.base, Some(adapter), "r", 2).unwrap();
    assert_eq!(scheduler.cancel(ticket), Some(2));
    let (gate, slow) = gated(&world, "slow");
    gate.set(true, false);
    let ticket = scheduler.admit(world.base, Some(slow), "r", 3).unwrap();
    assert!(scheduler.schedule().is_empty());
    gate.entered(1);
    assert_eq!(scheduler.cancel(ticket), Some(3));
    gate.set(false, false);
    // Its load is given up, and nobody is kept from anything by it.
    let ticket = scheduler.admit(world.base, None, "r", 4).unwrap();
    let round = next_round(&scheduler);
    assert_eq!(payloads(&round.joined), [4]);
    assert_eq!(scheduler.cancel(ticket), None, "it runs");
    drop(round);
    // Failed.
    let ticket = scheduler.admit(world.base, Some(adapter), "r", 5).unwrap();
    world.registry.retire(adapter).unwrap();
    let round = scheduler.schedule();
    assert_eq!((round.failed.len(), round.failed[0].ticket), (1, ticket));
    assert_eq!(scheduler.cancel(ticket), None, "it failed");
    // Another scheduler's.
    let ticket = scheduler.admit(world.base, None, "r", 6).unwrap();
    assert_eq!(
        world.scheduler::<i32>(Limits::default()).cancel(ticket),
        None
    );

    let stats = scheduler.stats();
    assert_eq!((stats.cancelled, stats.failed, stats.joined), (3, 1, 1));
    let ended = stats.cancelled + stats.failed + stats.joined;
    assert_eq!(stats.admitted, ended + stats.waiting as u64);
}

/// Whoever is cancelled at the head of the line is in nobody's way any more.
#[test]
fn cancelling_who_is_overdue_lets_the_others_go_on() {
    let world = World::new(2);
    let scheduler = world.scheduler(Limits::default().adapters(1).patience(0));
    let [a, b] = [world.adapters[0], world.adapters[1]];
    scheduler.admit(world.base, Some(a), "r", 1).unwrap();
    let running = scheduler.schedule();
    let overdue = scheduler.admit(world.base, Some(b), "r", 2).unwrap();
    scheduler.admit(world.base, Some(a), "r", 3).unwrap();
    assert!(scheduler.schedule().is_empty(), "A leaves for B");
    assert!(!scheduler.wait(Duration::ZERO));
    scheduler.cancel(overdue).unwrap();
    assert!(
        scheduler.wait(Duration::ZERO),
        "there is a reason to look again"
    );
    assert_eq!(payloads(&scheduler.schedule().joined), [3]);
    drop(running);
}

#[test]
fn a_scheduler_that_is_dropped_keeps_no_lease() {
    let world = World::new(3);
    let (gate, slow) = gated(&world, "slow");
    gate.set(true, false);
    let scheduler = world.scheduler(Limits::default().running(1));
    for adapter in [
        None,
        Some(world.adapters[0]),
        Some(world.adapters[1]),
        Some(slow),
    ] {
        scheduler.admit(world.base, adapter, "r", ()).unwrap();
    }
    let round = scheduler.schedule();
    assert_eq!((round.joined.len(), scheduler.waiting()), (1, 3));
    gate.entered(1);
    drop(scheduler);
    drop(round);
    gate.set(false, false);
    // The load has begun, so it goes on. This waits for its end.
    world.registry.load(slow).unwrap();
    let slow = world.registry.retire(slow).unwrap();
    slow.reclaimed(SOON).unwrap();
    world.end();
}

#[test]
fn a_scheduler_that_is_closed_gives_all_back_who_wait_and_admits_nobody() {
    let world = World::new(1);
    let scheduler = world.scheduler(Limits::default().running(1).ahead(1));
    let adapter = world.adapters[0];
    scheduler.admit(world.base, None, "r", 1).unwrap();
    let running = scheduler.schedule();
    assert_eq!(payloads(&running.joined), [1]);
    // One with a lease, and one whose load is under way.
    let leased = scheduler.admit(world.base, Some(adapter), "r", 2).unwrap();
    let (gate, slow) = gated(&world, "slow");
    gate.set(true, false);
    let away = scheduler.admit(world.base, Some(slow), "r", 3).unwrap();
    assert!(scheduler.schedule().is_empty());
    gate.entered(1);

    assert_eq!(scheduler.close(), [(leased, 2), (away, 3)]);
    world.registry.evict(adapter).unwrap(); // its lease ended
    assert_eq!((scheduler.waiting(), scheduler.running()), (0, 1));
    let refused = scheduler.admit(world.base, None, "r", 4).unwrap_err();
    assert!(matches!(refused.why, Why::Closed), "{refused}");
    assert_eq!(refused.payload, 4);
    assert_eq!(scheduler.cancel(leased), None);
    assert_eq!(scheduler.close(), []);
    drop(running);
    assert!(scheduler.schedule().is_empty());
    gate.set(false, false);
    // The load has begun, so it goes on. This waits for its end.
    world.registry.load(slow).unwrap();
    let stats = scheduler.stats();
    assert_eq!((stats.admitted, stats.joined, stats.cancelled), (3, 1, 2));
    world
        .registry
        .retire(slow)
        .unwrap()
        .reclaimed(SOON)
        .unwrap();
    world.end();
}
