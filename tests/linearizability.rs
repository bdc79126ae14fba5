//! Histories of real threads over the public operations, each explained by an order of single steps.
//!
//! What lives here: how many histories, what must be seen in them, mistakes that must be found, and a
//! second opinion on the search. The parts are in `linear/`.
//!
//! `WEIGHBRIDGE_HISTORIES` is how many; 5,000 if it is not set.

mod linear;
mod support;

use std::collections::BTreeMap;

use linear::checker::{Model, Span, linearize};
use linear::drive::{OPERATIONS, Planted, Random, THREADS, history};
use linear::model::{Op, Registry, State};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

fn kind(op: &Op) -> String {
    let text = format!("{op:?}");
    let end = text.find(|at: char| !at.is_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

fn explain(seed: u64, history: &[Span<Op>]) {
    if let Err(stuck) = linearize::<Registry>(history) {
        let left = (0..history.len()).filter(|index| !stuck.order.contains(index));
        let line = |index: usize| {
            let Span {
                thread,
                from,
                to,
                op,
            } = &history[index];
            format!("\n  {from}-{to}, thread {thread}: {op:?}")
        };
        let left: String = left.map(line).collect();
        let order: String = stuck.order.iter().map(|&index| line(index)).collect();
        panic!(
            "history {seed} has no explanation. After{order}\nin {:?}\nnone of these fits first:{left}",
            stuck.state
        );
    }
}

#[test]
fn every_history_has_an_explanation() {
    let wanted = std::env::var("WEIGHBRIDGE_HISTORIES").ok();
    let wanted = wanted.map_or(5_000, |text| text.parse().expect("a number"));
    let mut seen = BTreeMap::new();
    let mut overlaps = 0;
    for seed in 0..wanted {
        let history = history(seed, Planted::Nothing);
        explain(seed, &history);
        for span in &history {
            *seen.entry(kind(&span.op)).or_insert(0u64) += 1;
            let meets = |other: &&Span<Op>| {
                other.thread != span.thread && other.from < span.to && span.from < other.to
            };
            overlaps += history.iter().filter(meets).count() as u64;
        }
    }
    println!("{wanted} histories of {THREADS} x {OPERATIONS}, {overlaps} overlaps, {seen:?}");
    let kinds = [
        "Born",
        "Named",
        "Gone",
        "Cascade",
        "Blocked",
        "Unnamed",
        "Taken",
        "Busy",
        "Replaced",
        "RolledBack",
        "NothingKept",
        "Keeps",
        "Conflict",
        "Stale",
        "Leased",
        "Scoped",
        "Found",
        "Listed",
        "Commits",
        "Together",
        "LeasedOrLoaded",
        "Came",
        "Away",
        "Evicted",
        "NothingThere",
        "Loaded",
        "There",
        "InUse",
        "Shared",
        "Stays",
        "Pinned",
        "Unpinned",
        "PinnedDown",
    ];
    for kind in kinds {
        assert!(seen.contains_key(kind), "never seen: {kind}");
    }
    assert!(overlaps > wanted, "the threads hardly met");
}

#[test]
fn mistakes_are_found() {
    for planted in [
        Planted::LeaseOneByOne,
        Planted::OldLookup,
        Planted::LookThenReplace,
        Planted::OldResidency,
    ] {
        let found = (0..5_000).find(|&seed| {
            let history = history(seed, planted);
            linearize::<Registry>(&history).is_err()
        });
        println!("{planted:?}: found in history {found:?}");
        assert!(found.is_some(), "{planted:?} was not found");
    }
}

/// The same model for the checker of todc.
struct Todc;

impl Specification for Todc {
    type State = State;
    type Operation = Op;

    fn init() -> State {
        Registry::init()
    }

    fn apply(op: &Op, state: &State) -> (bool, State) {
        match Registry::step(state, op) {
            Some(next) => (true, next),
            None => (false, state.clone()),
        }
    }
}

fn todc_says(history: &[Span<Op>]) -> bool {
    let mut actions = Vec::new();
    // Each operation is a process of its own: those of a thread do not overlap anyway, except the two
    // halves of one.
    for (process, span) in history.iter().enumerate() {
        actions.push((span.from, process, Action::Call(span.op.clone())));
        actions.push((span.to, process, Action::Response(span.op.clone())));
    }
    actions.sort_by_key(|&(at, process, _)| (at, process));
    let actions = actions
        .into_iter()
        .map(|(_, process, action)| (process, action));
    WGLChecker::<Todc>::is_linearizable(History::from_actions(actions.collect()))
}

/// Changes one answer.
fn spoil(history: &mut [Span<Op>], random: &mut Random) {
    loop {
        let index = random.below(history.len());
        match &mut history[index].op {
            Op::Leased(number, _)
            | Op::LeasedOrLoaded(number, _)
            | Op::Scoped(number, _)
            | Op::Commits(number) => *number += 1,
            Op::Found(_, found) => *found = None,
            Op::Replaced(_, _, _, number, _) => *number -= 1,
            Op::Gone(_, generation) => *generation += 1,
            _ => continue,
        }
        return;
    }
}

/// Ours and todc's search agree, on histories as they are and on ones with a changed answer.
#[test]
fn a_second_opinion() {
    let mut random = Random::of(1);
    let mut verdicts = [0, 0];
    for seed in 0..300 {
        let mut history = history(seed, Planted::Nothing);
        assert!(todc_says(&history), "history {seed}");
        spoil(&mut history, &mut random);
        let ours = linearize::<Registry>(&history).is_ok();
        assert_eq!(ours, todc_says(&history), "spoilt history {seed}");
        verdicts[usize::from(ours)] += 1;
    }
    println!(
        "spoilt histories: {} refused, {} explained",
        verdicts[0], verdicts[1]
    );
    assert!(verdicts[0] > 100);
}
