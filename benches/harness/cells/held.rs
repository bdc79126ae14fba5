//! What a tensor costs besides its bytes.
//!
//! What lives here: bytes that the allocator has given out for a registry that is filled and at rest,
//! without those that its ledger is charged for, per tensor. What does not: how long it takes (`register`).

use std::time::Duration;

use super::super::allocated::during;
use super::super::rows::Report;
use super::{Contenders, adapters, registry, set_names, tensor_names};
use crate::set_of;

const GROUP: &str = "metadata";

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let scale = report.scale();
    let (adapters, tensors) = adapters(report);
    let most = scale.of(1_000_000, 20_000, 20);
    let mut cases = vec![(adapters, tensors), (10_000, 1), (most, 1)];
    cases.retain(|&(sets, of_each)| sets * of_each <= most.max(adapters * tensors));
    for (sets, of_each) in cases {
        let name = match of_each {
            1 => format!("{sets} sets of one tensor"),
            _ => format!("{sets} adapters of {of_each} tensors"),
        };
        if !report.wants(&[format!("{GROUP}, {name}")]) {
            continue;
        }
        let count = sets * of_each;
        report.held(
            &name,
            count,
            "",
            ours(&set_names(sets), of_each) / count as f64,
        );
        let names = match of_each {
            1 => set_names(sets),
            _ => {
                let parts = tensor_names(of_each);
                let join = |set: String| parts.iter().map(move |part| format!("{set}/{part}"));
                set_names(sets).into_iter().flat_map(join).collect()
            }
        };
        for (who, bytes) in contenders.held(&names) {
            report.held(&name, count, &who, bytes / count as f64);
        }
    }
}

/// Bytes of `names`, each a set of so many tensors, published one after the other as a server would.
fn ours(names: &[String], tensors: usize) -> f64 {
    let (registry, bytes) = during(|| {
        let registry = registry();
        for name in names {
            registry
                .publish(name.as_str(), set_of(tensors))
                .expect("published");
        }
        // What commits left to be tidied up is no part of what is held.
        std::thread::sleep(Duration::from_millis(50));
        registry
    });
    bytes - registry.ledger().total() as f64
}
