//! Making a set current that is in memory already.
//!
//! What lives here: one tensor and a model's. Reading, hashing and freeing are outside of the times, the
//! peers' clones of names and values too. What does not: all of it from nothing (`register`).

use std::time::Instant;

use super::super::rows::{Cell, Report};
use super::super::traces::Trace;
use super::super::turns::Route;
use super::{Contenders, registry, tensor_names};
use crate::set_of;

const GROUP: &str = "publish";
/// How many tensors a set has, and how often it is replaced in a round: about as much memory is staged.
const CASES: [(usize, usize); 2] = [(1, 256), (1_120, 16)];

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let trace = Trace::of_one(1);
    for case in [0, 1] {
        let (tensors, times) = CASES[case];
        let (others, other_times) = CASES[1 - case];
        let what = format!("{tensors} tensor(s)");
        let names = tensor_names(tensors);
        if !report.wants(&[format!("{GROUP}, {what}")]) {
            continue;
        }
        let mut peers = contenders.publish(&names, times);
        if !peers.is_empty() {
            let itself = replacing(format!("itself, {others} tensor(s)"), others, other_times);
            peers.push(itself.limit());
        }
        let cell = Cell {
            group: GROUP,
            what,
            size: tensors,
            trace: &trace,
            threads: 1,
            writer: false,
            few: false,
        };
        let mut ours = [replacing(String::new(), tensors, times)];
        report.measure(&cell, &mut ours, &mut peers);
    }
}

fn replacing(name: String, tensors: usize, times: usize) -> Route<'static> {
    let registry = registry();
    let set = registry.publish("set", set_of(tensors)).expect("published");
    Route::once(name, move || {
        let stage = |_| registry.stage(set_of(tensors)).expect("staged");
        let staged: Vec<_> = (0..times).map(stage).collect();
        let mut before = Vec::with_capacity(times);
        let started = Instant::now();
        for staged in staged {
            before.push(registry.replace_staged(set, staged).expect("replaced"));
        }
        started.elapsed().as_nanos() as f64 / times as f64
    })
}
