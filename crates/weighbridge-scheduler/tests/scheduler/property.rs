//! The promises through the public interface, with random arrivals, lengths, limits, replaces and cancels.
//!
//! All is resident here, so that a round depends on nothing but what was drawn. Weights that come late are drawn in
//! the tests of the order itself.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weighbridge::{Generation, SetHandle};
use weighbridge_scheduler::{Limits, Ticket, Turn};

use crate::World;

#[derive(Debug, Clone)]
enum Act {
    /// A request for this adapter, or the base, that runs for so many rounds.
    Admit(Option<usize>, u64),
    Replace(usize),
    /// Of those that wait, if there are so many.
    Cancel(usize),
    Round,
}

const ADAPTERS: usize = 5;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let one = prop_oneof![
        6 => (proptest::option::weighted(0.8, 0..ADAPTERS), 1u64..8)
            .prop_map(|(adapter, runs)| Act::Admit(adapter, runs)),
        1 => (0..ADAPTERS).prop_map(Act::Replace),
        1 => (0usize..6).prop_map(Act::Cancel),
        4 => Just(Act::Round),
    ];
    proptest::collection::vec(one, 1..80)
}

type Adapter = Option<(SetHandle, Generation)>;

/// Somebody who waits, as this test sees it.
struct Waits {
    adapter: Adapter,
    since: u64,
    runs: u64,
    /// By which round it joins, once it is overdue.
    by: Option<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn limits_bound_and_generations_hold(
        acts in acts(),
        running in 1usize..6,
        adapters in 1usize..4,
        patience in 0u64..6,
    ) {
        let world = World::new(ADAPTERS as u8);
        let limits = Limits::default().running(running).adapters(adapters).patience(patience);
        let scheduler = world.scheduler::<u64>(limits);
        let longest = 8;
        let mut waits: BTreeMap<Ticket, Waits> = BTreeMap::new();
        let mut batch: Vec<(u64, Turn<u64>)> = Vec::new();
        let (mut round, mut swaps, mut admitted, mut cancelled, mut joined) = (0, 0, 0, 0, 0);
        // At the end, rounds until nobody waits.
        let drain = std::iter::repeat_n(Act::Round, 2_000);
        for act in acts.into_iter().chain(drain) {
            match act {
                Act::Admit(adapter, runs) => {
                    let adapter = adapter.map(|at| world.adapters[at]);
                    let ticket = scheduler.admit(world.base, adapter, "r", runs).unwrap();
                    let now = adapter.map(|set| {
                        (set, world.registry.scope(|scope| scope.get(set).unwrap().generation()))
                    });
                    waits.insert(ticket, Waits { adapter: now, since: round, runs, by: None });
                    admitted += 1;
                }
                Act::Replace(at) => world.replace(at, 77),
                Act::Cancel(at) => {
                    if let Some((&ticket, _)) = waits.iter().nth(at) {
                        let runs = waits.remove(&ticket).unwrap().runs;
                        prop_assert_eq!(scheduler.cancel(ticket), Some(runs));
                        prop_assert_eq!(scheduler.cancel(ticket), None);
                        cancelled += 1;
                    }
                }
                Act::Round => {
                    if waits.is_empty() && batch.is_empty() {
                        continue;
                    }
                    round += 1;
                    batch.retain(|(until, _)| *until > round);
                    // Oldest first, so those before it in the line are counted.
                    let mut line = 0;
                    for one in waits.values_mut().filter(|one| round - one.since > patience) {
                        line += 1;
                        one.by.get_or_insert(round + line * longest);
                    }
                    let before: Vec<Adapter> =
                        batch.iter().map(|(_, turn)| turn.place.adapter()).collect();
                    let answer = scheduler.schedule();
                    prop_assert_eq!(answer.number, round);
                    prop_assert!(answer.failed.is_empty());
                    let mut seen = before;
                    for turn in answer.joined {
                        joined += 1;
                        let one = waits.remove(&turn.ticket).expect("it did not wait");
                        // What it was admitted with, and nothing else.
                        prop_assert_eq!(turn.payload, one.runs);
                        prop_assert_eq!(turn.place.adapter(), one.adapter);
                        let sets: Vec<_> =
                            turn.lease.sets().map(|set| (set.handle(), set.generation())).collect();
                        prop_assert_eq!(sets.len(), 1 + usize::from(one.adapter.is_some()));
                        prop_assert_eq!(sets[0].0, world.base);
                        prop_assert_eq!(sets.get(1).copied(), one.adapter);
                        if one.adapter.is_some() && !seen.contains(&one.adapter) {
                            swaps += 1;
                        }
                        seen.push(one.adapter);
                        batch.push((round + one.runs, turn));
                    }
                    for (ticket, one) in &waits {
                        let late = one.by.is_some_and(|by| by <= round);
                        prop_assert!(!late, "{} waits longer than the bound", ticket);
                    }
                    // The audit.
                    let mut own: Vec<_> =
                        batch.iter().filter_map(|(_, turn)| turn.place.adapter()).collect();
                    own.sort();
                    own.dedup();
                    prop_assert!(batch.len() <= running && own.len() <= adapters);
                    let stats = scheduler.stats();
                    prop_assert_eq!((stats.running, stats.adapters), (batch.len(), own.len()));
                    prop_assert_eq!((stats.joined, stats.swaps), (joined, swaps));
                    prop_assert_eq!(stats.waiting, waits.len());
                    prop_assert_eq!((stats.admitted, stats.cancelled), (admitted, cancelled));
                }
            }
        }
        prop_assert!(waits.is_empty() && batch.is_empty());
        drop(scheduler);
        world.end();
    }
}
