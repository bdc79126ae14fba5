//! Everything at once, from nothing.
//!
//! What lives here: a million sets of one tensor, and thousands of adapters, each time into an empty
//! registry. The bytes are few: what is measured is what a registry adds. What does not: what it keeps of
//! that (`held`).

use std::time::Instant;

use weighbridge::flat::{Address, FlatRegistry};
use weighbridge::{Dtype, source::InMemory};

use super::super::rows::{Cell, Report};
use super::super::traces::Trace;
use super::super::turns::Route;
use super::{Contenders, adapters, registry, set_names, set_of_one, tensor_names};

const GROUP: &str = "register";
const PAYLOAD: [u8; 16] = [7; 16];

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let count = report.scale().of(1_000_000, 20_000, 20);
    let (adapters, tensors) = adapters(report);
    let trace = Trace::of_one(1);
    let cell = |what: String, size| Cell {
        group: GROUP,
        what,
        size,
        trace: &trace,
        threads: 1,
        writer: false,
        few: true,
    };
    let sets = cell(format!("{count} sets of one tensor"), count);
    if report.wants(&[sets.name()]) {
        let names = set_names(count);
        let mut ours = [
            Route::once("one transaction", || one_by_one(&names)),
            Route::once("FlatRegistry::register_all", || flat(&names)),
        ];
        report.measure(&sets, &mut ours, &mut contenders.register(&names));
    }
    let many = cell(
        format!("{adapters} adapters of {tensors}"),
        adapters * tensors,
    );
    if report.wants(&[many.name()]) {
        let (sets, parts) = (set_names(adapters), tensor_names(tensors));
        let join = |set: &String| {
            let set = set.clone();
            parts.iter().map(move |part| format!("{set}/{part}"))
        };
        let composite: Vec<String> = sets.iter().flat_map(join).collect();
        let mut ours = [Route::once("one transaction", || of_many(&sets, &parts))];
        report.measure(&many, &mut ours, &mut contenders.register(&composite));
    }
}

/// What one of `count` took. What was made goes after that.
fn timed<T>(count: usize, make: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    let made = make();
    let took = started.elapsed().as_nanos() as f64 / count as f64;
    drop(made);
    took
}

fn one_by_one(names: &[String]) -> f64 {
    let registry = registry();
    timed(names.len(), || {
        let mut all = registry.transaction();
        for name in names {
            let staged = all.stage(set_of_one(&PAYLOAD)).expect("staged");
            all.publish(name.as_str(), staged).expect("a new name");
        }
        all.commit().expect("committed")
    })
}

fn flat(names: &[String]) -> f64 {
    let flat = FlatRegistry::new(registry().into());
    timed(names.len(), || {
        let weights = names
            .iter()
            .map(|name| (Address::from(name), Dtype::U8, &[16][..], &PAYLOAD[..]));
        flat.register_all(weights).expect("registered")
    })
}

fn of_many(sets: &[String], parts: &[String]) -> f64 {
    let registry = registry();
    timed(sets.len() * parts.len(), || {
        let mut all = registry.transaction();
        for set in sets {
            let source = parts.iter().fold(InMemory::new(), |source, part| {
                let source = source.tensor(part, Dtype::U8, [16], PAYLOAD);
                source.expect("a legal tensor")
            });
            let staged = all.stage(source).expect("staged");
            all.publish(set.as_str(), staged).expect("a new name");
        }
        all.commit().expect("committed")
    })
}
