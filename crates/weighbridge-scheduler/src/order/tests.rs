//! The order alone, without a registry: what it prefers, and that its bound holds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Candidate, Order};
use crate::batch::Batch;

/// A request of a world without weights.
#[derive(Debug, Clone)]
struct Request {
    adapter: Option<u8>,
    /// The round before which it comes.
    comes: u64,
    /// How many rounds later its weights do.
    late: u64,
    /// For how many rounds it runs.
    runs: u64,
    /// It is cancelled if it waits for so many rounds.
    gives_up: Option<u64>,
}

/// An engine whose requests end when their rounds are over.
struct World {
    order: Order<u8>,
    batch: Batch<u8>,
    round: u64,
    waiting: BTreeMap<u64, Request>,
    /// Until which round.
    running: BTreeMap<u64, (Option<u8>, u64)>,
}

impl World {
    fn new(running: usize, adapters: usize, patience: u64) -> Self {
        World {
            order: Order::new(patience),
            batch: Batch::new(running, adapters),
            round: 0,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    /// Those who end before the next round.
    fn end(&mut self) -> Vec<u64> {
        let next = self.round + 1;
        let over = self.running.iter().filter(|(_, (_, until))| *until <= next);
        let over: Vec<u64> = over.map(|(&ticket, _)| ticket).collect();
        for ticket in &over {
            let (adapter, _) = self.running.remove(ticket).unwrap();
            self.batch.end(adapter);
        }
        over
    }

    /// Who joins.
    fn round(&mut self) -> Vec<u64> {
        self.round += 1;
        let round = self.round;
        let there = self.waiting.iter();
        let there = there.filter(|(_, one)| one.comes + one.late < round);
        let ready: Vec<Candidate<u8>> = there
            .map(|(&ticket, one)| Candidate {
                ticket,
                adapter: one.adapter,
                since: one.comes,
            })
            .collect();
        let joined = self.order.choose(round, &ready, &mut self.batch);
        let joined: Vec<u64> = joined.iter().map(|one| ready[one.at].ticket).collect();
        for ticket in &joined {
            let one = self.waiting.remove(ticket).expect("it joined twice");
            self.running
                .insert(*ticket, (one.adapter, round + one.runs));
        }
        joined
    }

    /// Adds requests for these. Their tickets: a hundred times the rounds so far, and up.
    fn wait(&mut self, adapters: &[Option<u8>]) {
        for (at, &adapter) in (0..).zip(adapters) {
            let ticket = 100 * self.round + at;
            self.waiting.insert(ticket, request(adapter, self.round));
        }
    }

    fn stop(&mut self, ticket: u64) {
        let (adapter, _) = self.running.remove(&ticket).unwrap();
        self.batch.end(adapter);
    }
}

/// One that is there, and runs until it is stopped.
fn request(adapter: Option<u8>, comes: u64) -> Request {
    Request {
        adapter,
        comes,
        late: 0,
        runs: u64::MAX / 2,
        gives_up: None,
    }
}

const A: Option<u8> = Some(1);
const B: Option<u8> = Some(2);
const C: Option<u8> = Some(3);
const BASE: Option<u8> = None;

#[test]
fn who_needs_no_swap_comes_first_then_the_larger_group_then_the_older() {
    let mut world = World::new(1, 1, 9);
    world.wait(&[A]);
    assert_eq!(world.round(), [0]);
    world.wait(&[B, A, BASE]);
    world.stop(0);
    assert_eq!(world.round(), [102], "only the base needs no swap");

    let mut world = World::new(4, 2, 9);
    world.wait(&[A]);
    assert_eq!(world.round(), [0]);
    world.wait(&[B, C, C, A]);
    assert_eq!(world.round(), [103, 101, 102], "A runs, then two for C");

    let mut world = World::new(2, 1, 9);
    world.wait(&[C, B, C, B]);
    assert_eq!(world.round(), [0, 2], "as many, but C was first");
}

#[test]
fn whoever_was_passed_over_often_enough_is_first() {
    for patience in 0..4 {
        // One adapter place, A's, and always somebody for A who would need no swap.
        let mut world = World::new(2, 1, patience);
        world.wait(&[A]);
        assert_eq!(world.round(), [0]);
        world.wait(&[B]);
        let mut running = 0;
        let mut passed_over = 0;
        loop {
            let younger = 1_000 + passed_over;
            world.waiting.insert(younger, request(A, world.round));
            let joined = world.round();
            if joined.is_empty() {
                break;
            }
            assert_eq!(joined, [younger]);
            world.stop(running);
            running = younger;
            passed_over += 1;
            assert!(passed_over <= patience, "it is passed over once too often");
        }
        assert_eq!(passed_over, patience, "then A lets in nobody any more");
        world.stop(running);
        assert_eq!(world.round(), [100]);
    }
}

#[test]
fn one_generation_leaves_for_who_is_overdue_and_the_others_go_on() {
    let mut world = World::new(6, 2, 0);
    world.wait(&[A, A, B]);
    assert_eq!(world.round(), [0, 1, 2]);
    // C finds no place. Nobody waits for B, so B leaves. A and the base go on behind C.
    world.wait(&[C, A, BASE]);
    assert_eq!(world.round(), [101, 102]);
    // B still leaves, and somebody for it is behind C.
    world.wait(&[B]);
    assert!(world.round().is_empty());
    world.stop(2);
    // There is one running place, and the one of B's request. The first is C's, the other nobody's: A leaves for B.
    assert_eq!(world.round(), [100]);
    for ticket in [0, 1, 101] {
        assert!(world.round().is_empty());
        world.stop(ticket);
    }
    assert_eq!(world.round(), [200]);
}

#[test]
fn the_generation_that_fewest_wait_for_leaves_and_stays_the_one() {
    for (waiting, leaves, other) in [([A, A, B], B, A), ([B, B, A], A, B)] {
        let mut world = World::new(9, 2, 5);
        world.wait(&[A, B]);
        assert_eq!(world.round(), [0, 1]);
        world.wait(&[C]);
        for _ in 0..5 {
            assert!(world.round().is_empty());
        }
        for (at, adapter) in (1_000..).zip(waiting) {
            world.waiting.insert(at, request(adapter, world.round));
        }
        let joined = world.round();
        let of = |world: &World, adapter| {
            let all = joined.iter().filter(|one| world.running[one].0 == adapter);
            all.count()
        };
        assert_eq!((of(&world, leaves), of(&world, other)), (0, 2));
        // Now one waits for what leaves, and nobody for the other one.
        assert_eq!(world.order.leaving, leaves);
        assert!(world.round().is_empty());
        assert_eq!(world.order.leaving, leaves);
    }
}

/// Whoever stands before who lacks a place joins what leaves for him.
#[test]
fn who_was_overdue_first_joins_also_what_is_leaving() {
    let mut world = World::new(2, 1, 0);
    world.wait(&[A, A]);
    assert_eq!(world.round(), [0, 1]);
    world.wait(&[A, B, A]);
    assert!(
        world.round().is_empty(),
        "there is no running place, and A leaves for B"
    );
    assert_eq!(world.order.leaving, A);
    world.stop(0);
    assert_eq!(world.round(), [100]);
    world.stop(1);
    assert!(world.round().is_empty(), "it is behind B");
    world.stop(100);
    assert_eq!(world.round(), [101]);
}

#[test]
fn a_generation_that_leaves_for_nobody_any_more_lets_in_again() {
    let mut world = World::new(4, 1, 0);
    world.wait(&[A]);
    assert_eq!(world.round(), [0]);
    world.wait(&[B, A]);
    assert!(world.round().is_empty());
    world.waiting.remove(&100);
    assert_eq!(world.round(), [101]);
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let one = (
        proptest::option::weighted(0.8, 0u8..6),
        0u64..40,
        prop_oneof![3 => Just(0u64), 1 => 0u64..25],
        1u64..9,
        proptest::option::weighted(0.1, 1u64..20),
    )
        .prop_map(|(adapter, comes, late, runs, gives_up)| Request {
            adapter,
            comes,
            late,
            runs,
            gives_up,
        });
    proptest::collection::vec(one, 1..60).prop_map(|mut all| {
        all.sort_by_key(|one| one.comes);
        all
    })
}

/// By when somebody who is overdue joins at the latest.
struct Bound {
    /// Who ran right after the round from which the turnover is counted; `None`: from the next round.
    turnover: Option<BTreeSet<u64>>,
    /// How many turnovers there may still be.
    left: usize,
    by_round: u64,
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The bound, the limits, and that no place stays free for which there is somebody.
    #[test]
    fn nobody_waits_longer_than_the_bound(
        all in requests(),
        running in 1usize..6,
        adapters in 1usize..5,
        patience in 0u64..8,
    ) {
        let longest = all.iter().map(|one| one.runs).max().unwrap_or(1);
        let mut world = World::new(running, adapters, patience);
        let mut coming: Vec<(u64, Request)> = (0u64..).zip(all).collect();
        // In the order in which they became overdue, by this test's own count.
        let mut line: Vec<u64> = Vec::new();
        let mut bounds: BTreeMap<u64, Bound> = BTreeMap::new();
        while !(coming.is_empty() && world.waiting.is_empty()) {
            prop_assert!(world.round < 5_000, "somebody waits for ever");
            let now = world.round;
            let arrives = coming.iter().take_while(|(_, one)| one.comes <= now).count();
            world.waiting.extend(coming.drain(..arrives));
            let gone: Vec<u64> = world.waiting.iter()
                .filter(|(_, one)| one.gives_up.is_some_and(|after| now - one.comes >= after))
                .map(|(&ticket, _)| ticket)
                .collect();
            let ended = world.end();
            for ticket in &gone {
                world.waiting.remove(ticket);
                bounds.remove(ticket);
                line.retain(|other| other != ticket);
            }
            for bound in bounds.values_mut() {
                let Some(turnover) = &mut bound.turnover else {
                    continue;
                };
                turnover.retain(|other| !ended.contains(other));
                if turnover.is_empty() {
                    bound.turnover = None;
                    bound.left -= 1;
                }
            }
            // Who is overdue from now on.
            let next = world.round + 1;
            for (&ticket, one) in &world.waiting {
                let there = one.comes + one.late < next;
                if there && next - one.comes > patience && !bounds.contains_key(&ticket) {
                    let left = line.len() + 1;
                    let by_round = next + left as u64 * longest;
                    bounds.insert(ticket, Bound { turnover: None, left, by_round });
                    line.push(ticket);
                }
            }
            let must: Vec<u64> = bounds.iter()
                .filter(|(_, bound)| bound.left == 0 || bound.by_round <= next)
                .map(|(&ticket, _)| ticket)
                .collect();
            let line_before = line.clone();
            let joined = world.round();
            for ticket in must {
                prop_assert!(joined.contains(&ticket), "{} is still waiting", ticket);
            }
            for ticket in &joined {
                bounds.remove(ticket);
                line.retain(|other| other != ticket);
            }
            for bound in bounds.values_mut() {
                let running = || world.running.keys().copied().collect();
                bound.turnover.get_or_insert_with(running);
            }
            // The limits, counted anew.
            let runs: BTreeSet<u8> = world.running.values().filter_map(|(own, _)| *own).collect();
            prop_assert!(world.running.len() <= running && runs.len() <= adapters);
            prop_assert_eq!(world.running.len(), world.batch.requests());
            // Nobody stays who could go at nobody's cost.
            let there = |one: &&Request| one.comes + one.late < next;
            if world.running.len() < running {
                for one in world.waiting.values().filter(there) {
                    let new = one.adapter.is_some_and(|own| !runs.contains(&own));
                    let leaving = one.adapter.is_some() && one.adapter == world.order.leaving;
                    let no_place = new && runs.len() == adapters;
                    prop_assert!(no_place || leaving && !line.is_empty(), "{:?} could run", one);
                }
            }
            // Within a generation nobody passes an older one, unless he was overdue before it.
            let position = |ticket: &u64| {
                let at = line_before.iter().position(|other| other == ticket);
                at.unwrap_or(usize::MAX)
            };
            for (ticket, one) in &world.waiting {
                let there = one.comes + one.late < next;
                let passed = joined.iter().find(|other| {
                    *other > ticket
                        && world.running[other].0 == one.adapter
                        && position(other) >= position(ticket)
                });
                prop_assert!(!there || passed.is_none(), "{:?} passed {}", passed, ticket);
            }
        }
    }

    /// Base requests that pass do not move the first that is overdue by a single round.
    #[test]
    fn base_requests_that_pass_do_not_delay_the_first_of_the_line(
        ran in proptest::collection::vec((0u8..4, 1u64..9), 1..6),
        bases in proptest::collection::vec((1u64..40, 0u64..10), 1..12),
        places in 1usize..9,
        adapters in 1usize..4,
    ) {
        let joins = |with_bases: bool| {
            let mut world = World::new(places, adapters, 20);
            world.round = 30;
            for (ticket, &(adapter, runs)) in (0..).zip(&ran) {
                let batch = &mut world.batch;
                if batch.free() > 0 && (batch.has(Some(adapter)) || batch.has_adapter_place()) {
                    batch.join(Some(adapter));
                    world.running.insert(ticket, (Some(adapter), 30 + runs));
                }
            }
            world.waiting.insert(100, request(Some(9), 0));
            for offset in 0..20 {
                let coming = bases.iter().filter(|(_, comes)| with_bases && *comes == offset);
                for (at, &(runs, _)) in (0..).zip(coming) {
                    let base = Request { runs, ..request(None, world.round) };
                    world.waiting.insert(1_000 + offset * 100 + at, base);
                }
                world.end();
                if world.round().contains(&100) {
                    return Some(world.round);
                }
            }
            None
        };
        let without = joins(false);
        prop_assert!(without.is_some());
        prop_assert_eq!(joins(true), without);
    }
}
