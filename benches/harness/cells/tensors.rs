//! From the names of an adapter and of its tensor to the tensor's handle.
//!
//! What lives here: ours by two names, the peers' by one that is made of both and is there already.
//! What does not: names of sets alone (`lookup`), handles (`weight`).

use std::hint::black_box;

use super::super::rows::{Cell, Report};
use super::super::traces::{PACK, Trace, packed, unpacked};
use super::super::turns::Route;
use super::{Contenders, adapters, come_and_go, draws, registry_with, set_names, tensor_names};

const GROUP: &str = "tensor by names";

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let (adapters, tensors) = adapters(report);
    let what = format!("{adapters} adapters of {tensors}");
    let name = format!("{GROUP}, {what}");
    if !report.wants(&[name.clone(), format!("{name}, a writer")]) {
        return;
    }
    let (sets, parts) = (set_names(adapters), tensor_names(tensors));
    let composite = composite(&sets, &parts);
    let (registry, _) = registry_with(&sets, tensors);
    let find = |index| {
        let (set, tensor) = unpacked(index);
        let set = registry.lookup(sets[set].as_str()).expect("published");
        registry.weight_handle(set, &parts[tensor]).expect("there")
    };
    let mut ours = [Route::new("", |turn| {
        turn.each(|index| {
            black_box(find(index));
        })
    })
    .writing(|number| come_and_go(&registry, number))];
    let mut peers = contenders.tensors(&composite);
    let trace = Trace::of_tensors(adapters, tensors, draws(report));
    for writer in [false, true] {
        for &threads in report.scale().threads() {
            let cell = Cell {
                group: GROUP,
                what: what.clone(),
                size: adapters * tensors,
                trace: &trace,
                threads,
                writer,
                few: false,
            };
            report.measure(&cell, &mut ours, &mut peers);
        }
    }
}

/// Both names in one, by packed index.
fn composite(sets: &[String], parts: &[String]) -> Vec<String> {
    let mut all = vec![String::new(); sets.len() * PACK];
    for (set, of_set) in sets.iter().enumerate() {
        for (part, of_part) in parts.iter().enumerate() {
            all[packed(set, part)] = format!("{of_set}/{of_part}");
        }
    }
    all
}
