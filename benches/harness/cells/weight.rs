//! A tensor's bytes, inside a lease that is held.
//!
//! What lives here: one adapter, and many of which each has its lease, beside maps by two numbers and
//! beside a plain array. What does not: taking the lease (`acquire`).

use std::hint::black_box;

use weighbridge::{Lease, WeightHandle};

use super::super::rows::{Cell, Report};
use super::super::traces::{PACK, Trace, unpacked};
use super::super::turns::{Route, Turn};
use super::{Contenders, adapters, draws, registry_with, set_names, tensor_names};

const GROUP: &str = "weight inside a lease";

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let (many, tensors) = adapters(report);
    for count in [1, many] {
        let what = format!("{count} adapter(s) of {tensors}");
        if report.wants(&[format!("{GROUP}, {what}")]) {
            measure(report, contenders, (count, tensors), what);
        }
    }
}

fn measure(
    report: &mut Report,
    contenders: &dyn Contenders,
    (adapters, tensors): (usize, usize),
    what: String,
) {
    let (registry, sets) = registry_with(&set_names(adapters), tensors);
    let leases: Vec<Lease> = sets
        .iter()
        .map(|&set| registry.acquire(set).expect("current"))
        .collect();
    let names = tensor_names(tensors);
    let mut handles: Vec<WeightHandle> = Vec::with_capacity(adapters * PACK);
    for &set in &sets {
        let handle = |name: &String| registry.weight_handle(set, name).expect("there");
        handles.extend(names.iter().map(handle));
        // The gap of a packed index: asked for by nobody.
        handles.resize(handles.len().next_multiple_of(PACK), handle(&names[0]));
    }
    let array: Vec<&[u8]> = handles
        .iter()
        .enumerate()
        .map(|(index, &handle)| {
            let lease = &leases[unpacked(index).0];
            lease.weight(handle).expect("there").bytes()
        })
        .collect();
    let see = |bytes: &[u8]| {
        black_box((bytes.as_ptr(), bytes.len()));
    };
    let (one, all) = (&leases[0], &leases[..]);
    let ours = |turn: &mut Turn<'_>| match adapters {
        1 => turn.each(|index| see(one.weight(handles[index]).expect("there").bytes())),
        _ => turn.each(|index| {
            let lease = &all[unpacked(index).0];
            see(lease.weight(handles[index]).expect("there").bytes());
        }),
    };
    let mut ours = [Route::new("", ours)];
    let mut peers = contenders.weight(adapters, tensors);
    if !peers.is_empty() {
        let plain = |turn: &mut Turn<'_>| turn.each(|index| see(array[index]));
        peers.push(Route::new("plain array", plain).limit());
    }
    let trace = Trace::of_tensors(adapters, tensors, draws(report));
    for threads in [1, 2] {
        let cell = Cell {
            group: GROUP,
            what: what.clone(),
            size: adapters * tensors,
            trace: &trace,
            threads,
            writer: false,
            few: false,
        };
        report.measure(&cell, &mut ours, &mut peers);
    }
}
