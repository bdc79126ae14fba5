//! From a name to a handle.
//!
//! What lives here: the cells by number of names, by law, with and without a writer. What does not: names
//! of tensors (`tensors`).

use std::hint::black_box;

use super::super::rows::{Cell, Report};
use super::super::traces::{Law, Trace};
use super::super::turns::Route;
use super::{Contenders, come_and_go, draws, registry_with, set_names};

const GROUP: &str = "lookup";

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let scale = report.scale();
    let most = scale.of(1_000_000, 20_000, 200);
    let mut counts = vec![400, 10_000, most];
    counts.retain(|&count| count <= most);
    for count in counts {
        let what = |law: Law| format!("{count} names, {}", law.name());
        let name = |law, writer| {
            let tail = if writer { ", a writer" } else { "" };
            format!("{GROUP}, {}{tail}", what(law))
        };
        let laws = [Law::Zipf, Law::Uniform];
        let all = laws.map(|law| [name(law, false), name(law, true)]).concat();
        if !report.wants(&all) {
            continue;
        }
        let names = set_names(count);
        let (registry, _) = registry_with(&names, 1);
        let ours = |turn: &mut super::super::turns::Turn<'_>| {
            turn.each(|index| {
                black_box(registry.lookup(names[index].as_str()).expect("published"));
            })
        };
        let mut ours = [Route::new("", ours).writing(|number| come_and_go(&registry, number))];
        let mut peers = contenders.lookup(&names);
        let plain = peers.len();
        peers.extend(
            contenders
                .lookup_otherwise(&names)
                .into_iter()
                .map(Route::extra),
        );
        for law in laws {
            let trace = Trace::drawn(law, count, draws(report));
            for writer in [false, true] {
                for &threads in scale.threads() {
                    let otherwise = law == Law::Uniform && !writer && threads <= 2;
                    let with = if otherwise { peers.len() } else { plain };
                    let cell = Cell {
                        group: GROUP,
                        what: what(law),
                        size: count,
                        trace: &trace,
                        threads,
                        writer,
                        few: false,
                    };
                    report.measure(&cell, &mut ours, &mut peers[..with]);
                }
            }
        }
    }
}
