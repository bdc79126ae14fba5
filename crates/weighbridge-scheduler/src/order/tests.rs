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
        }
        assert_eq!(passed_over, patience, "then A lets in nobody any more");
        world.stop(running);
        assert_eq!(world.round(), [100]);
    }
}

#[test]
fn one_generation_leaves_for_one_that_is_overdue_and_the_others_go_on() {
    let mut world = World::new(10, 2, 0);
    world.wait(&[A, A, B]);
    assert_eq!(world.round(), [0, 1, 2]);
    // C finds no place. Nobody waits for B, so B leaves. A and the base go on behind C.
    world.wait(&[C, A, BASE]);
    assert_eq!(world.round(), [101, 102]);
    // B still leaves; somebody for it needs another place then, so A leaves, too. The base goes on.
    world.wait(&[B, A, BASE]);
    assert_eq!(world.round(), [202]);
    world.stop(2);
    assert_eq!(
        world.round(),
        [100],
        "the place was B's, and it is the first one's"
    );
    for ticket in [0, 1, 101] {
        assert!(world.round().is_empty(), "A leaves for B");
        world.stop(ticket);
    }
    assert_eq!(world.round(), [200]);
}

#[test]
fn whoever_passes_leaves_a_place_for_each_that_is_overdue() {
    // Four places, one of them A's; two for B are overdue.
    let mut world = World::new(4, 1, 0);
    world.wait(&[A]);
    assert_eq!(world.round(), [0]);
    world.wait(&[B, B, BASE, BASE]);
    assert_eq!(world.round(), [102], "one may pass, two places are kept");
    world.stop(0);
    assert_eq!(
        world.round(),
        [100, 101, 103],
        "nobody is kept a place for by now"
    );
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

/// What must have ended before `ticket` joins at the latest, and the last round of that.
struct Bound {
    before: BTreeSet<u64>,
    by_round: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

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
                bound.before.retain(|other| !ended.contains(other) && !gone.contains(other));
            }
            // Who is overdue from now on.
            let next = world.round + 1;
            for (&ticket, one) in &world.waiting {
                let there = one.comes + one.late < next;
                if there && next - one.comes > patience && !bounds.contains_key(&ticket) {
                    let before = world.running.keys().chain(&line).copied().collect();
                    let by_round = next + (line.len() as u64 + 1) * longest;
                    bounds.insert(ticket, Bound { before, by_round });
                    line.push(ticket);
                }
            }
            let must: Vec<u64> = bounds.iter()
                .filter(|(_, bound)| bound.before.is_empty() || bound.by_round <= next)
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
            // The limits, counted anew.
            let runs: BTreeSet<u8> = world.running.values().filter_map(|(own, _)| *own).collect();
            prop_assert!(world.running.len() <= running && runs.len() <= adapters);
            prop_assert_eq!(world.running.len(), world.batch.requests());
            // Nobody stays who could go at nobody's cost.
            if line.is_empty() && world.running.len() < running {
                for one in world.waiting.values().filter(|one| one.comes + one.late < next) {
                    let new = one.adapter.is_some_and(|own| !runs.contains(&own));
                    prop_assert!(new && runs.len() == adapters, "{:?} could run", one);
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

    /// Base requests that pass do not move anybody who is overdue by a single round.
    #[test]
    fn base_requests_that_pass_delay_nobody(
        ran in proptest::collection::vec((0u8..4, 1u64..9), 1..6),
        line in proptest::collection::vec((proptest::option::weighted(0.8, 0u8..7), 1u64..9), 1..12),
        bases in proptest::collection::vec((1u64..40, 0u64..10), 1..12),
        places in 1usize..9,
        adapters in 1usize..4,
    ) {
        let rounds_of = |with_bases: bool| {
            let mut world = World::new(places, adapters, 20);
            world.round = 30;
            for (ticket, &(adapter, runs)) in ran.iter().enumerate() {
                let fits = world.batch.free() > 0
                    && (world.batch.has(Some(adapter)) || world.batch.has_adapter_place());
                if fits {
                    world.batch.join(Some(adapter));
                    world.running.insert(ticket as u64, (Some(adapter), 30 + runs));
                }
            }
            let lasting = |adapter, comes, runs| Request { runs, ..request(adapter, comes) };
            for (at, &(adapter, runs)) in line.iter().enumerate() {
                world.waiting.insert(100 + at as u64, lasting(adapter, 0, runs));
            }
            let mut joined = BTreeMap::new();
            for offset in 0..400 {
                if with_bases {
                    for (at, &(runs, comes)) in bases.iter().enumerate() {
                        if comes == offset {
                            let ticket = 1_000 + offset * 100 + at as u64;
                            world.waiting.insert(ticket, lasting(None, world.round, runs));
                        }
                    }
                }
                world.end();
                for ticket in world.round() {
                    joined.insert(ticket, world.round);
                }
            }
            joined.retain(|ticket, _| *ticket < 1_000);
            joined
        };
        let without = rounds_of(false);
        prop_assert_eq!(without.len(), line.len());
        prop_assert_eq!(rounds_of(true), without);
    }
}
