//! Histories of real threads.
//!
//! What lives here: threads that begin at once, and what they wrote down. What does not: the operations
//! (`acts`), whether their answers can be explained (`checker`).

use std::sync::{Arc, Barrier};
use std::thread;

use weighbridge::WeightRegistry;

use super::acts::{Actor, Touched};
use super::checker::Span;
use super::model::{Fill, NAMES, Op};
use super::source::Diary;

pub const THREADS: usize = 4;
pub const OPERATIONS: usize = 12;

/// A mistake that is made on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// Several sets are leased one after the other and said to be of one instant.
    LeaseOneByOne,
    /// A look-up remembers what it said the last time.
    OldLookup,
    /// A replace that demands a generation looks first and replaces then.
    LookThenReplace,
    /// A load remembers that the set was there the last time.
    OldResidency,
}

/// xorshift64*
pub struct Random(pub u64);

impl Random {
    pub fn of(seed: u64) -> Self {
        Random((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % end
    }
}

/// One history of this many threads, each with its number of operations; `seed` decides which.
pub fn history(seed: u64, planted: Planted) -> Vec<Span<Op>> {
    let registry = WeightRegistry::builder().keep_previous(1).build().unwrap();
    let diary = Arc::new(Diary::default());
    let actor = |thread: usize, known: Vec<_>| Actor {
        registry: &registry,
        diary: &diary,
        thread,
        random: Random::of(seed * THREADS as u64 + thread as u64),
        planted,
        fill: (thread * 60) as Fill,
        known,
        remembered: [None; NAMES],
        there: Vec::new(),
        pin: None,
    };
    // Two sets are there already.
    let mut first = actor(0, Vec::new());
    first.fill = (THREADS * 60) as Fill;
    let mut all = Vec::new();
    for index in 0..2 {
        first.timed(&mut all, |first| first.publish(index));
    }
    let known = first.known;
    // Made before any of them waits for the others.
    let actors: Vec<_> = (0..THREADS)
        .map(|thread| actor(thread, known.clone()))
        .collect();
    let start = Barrier::new(THREADS);
    let spans: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = actors
            .into_iter()
            .map(|mut actor| {
                let start = &start;
                scope.spawn(move || {
                    let mut spans = Vec::new();
                    start.wait();
                    for _ in 0..OPERATIONS {
                        actor.timed(&mut spans, Actor::anything);
                        if actor.random.below(4) == 0 {
                            thread::yield_now();
                        }
                    }
                    if actor.pin.is_some() {
                        actor.timed(&mut spans, Actor::pin);
                    }
                    spans
                })
            })
            .collect();
        let spans = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        spans.collect()
    });
    all.extend(spans);
    let came = came(&all, &diary);
    [with_contention(&all), came].concat()
}

/// What was read again for requests: it came before the last of those ended that were under way when that
/// began, for it was one of them that read it.
fn came(spans: &[(Span<Op>, Touched)], diary: &Diary) -> Vec<Span<Op>> {
    let read = diary.read_again().into_iter();
    read.map(|(from, fill)| {
        let requests = spans.iter().filter(|(_, touched)| touched.loads);
        let under_way = requests.filter(|(span, _)| span.from < from && from < span.to);
        let to = under_way.map(|(span, _)| span.to).max();
        Span {
            thread: THREADS,
            from,
            to: to.expect("somebody read it"),
            op: Op::Came(fill),
        }
    })
    .collect()
}

/// Says of each refused publish whether somebody else had a hold on its name while it was under way, and of
/// each refused eviction whether somebody else may have had a lease.
fn with_contention(spans: &[(Span<Op>, Touched)]) -> Vec<Span<Op>> {
    let others_have = |span: &Span<Op>, has: &dyn Fn(&Touched) -> bool| {
        spans.iter().any(|(other, touched)| {
            has(touched)
                && other.thread != span.thread
                && other.from < span.to
                && span.from < other.to
        })
    };
    let all = spans.iter().map(|(span, touched)| {
        let mut span = span.clone();
        let held = touched.names.iter().position(|&held| held).unwrap_or(0);
        match span.op {
            Op::Taken { name, .. } => {
                let contended = others_have(&span, &|other| other.names[name]);
                span.op = Op::Taken { name, contended };
            }
            Op::Busy { .. } => {
                let contended = others_have(&span, &|other| other.names[held]);
                span.op = Op::Busy { contended };
            }
            Op::InUse { set, .. } => {
                let contended = others_have(&span, &|other| other.leases.contains(&set));
                span.op = Op::InUse { set, contended };
            }
            _ => {}
        }
        span
    });
    all.collect()
}
