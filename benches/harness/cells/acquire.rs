//! Keeping the bytes of one set or two, and letting go.
//!
//! What lives here: all threads on the same sets, with and without a writer that replaces one of them.
//! What does not: reading in between (`weight`).

use weighbridge::{Dtype, SetHandle, source::InMemory};

use super::super::rows::{Cell, Report};
use super::super::traces::Trace;
use super::super::turns::{Route, Turn};
use super::{Contenders, draws, registry};
use crate::set_of;

const GROUP: &str = "acquire and drop";

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let registry = registry();
    let base = InMemory::new().tensor("q_proj.weight", Dtype::U8, [2, 3], [0; 6]);
    let base = base.expect("a legal tensor");
    let base = registry.publish("base", base).expect("published");
    let adapter = registry
        .publish("adapter", adapter_on(base))
        .expect("published");
    // A base that is replaced takes its adapters along: the one that is alone has none.
    let alone = registry.publish("alone", set_of(1)).expect("published");
    let replace = |set: SetHandle, next: InMemory| {
        drop(registry.replace(set, next).expect("replaced"));
    };
    let registry = &registry;
    let both = [base, adapter];
    let mut of_one = [
        Route::new("reader in hand", |turn: &mut Turn<'_>| {
            let reader = registry.reader();
            turn.each(|_| drop(reader.acquire(alone).expect("current")));
        })
        .writing(|_| replace(alone, set_of(1))),
        Route::new("from any thread", |turn: &mut Turn<'_>| {
            turn.each(|_| drop(registry.acquire(alone).expect("current")));
        })
        .writing(|_| replace(alone, set_of(1))),
    ];
    let mut of_two = [
        Route::new("reader in hand", |turn: &mut Turn<'_>| {
            let reader = registry.reader();
            turn.each(|_| drop(reader.acquire(both).expect("current")));
        })
        .writing(|_| replace(adapter, adapter_on(base))),
        Route::new("from any thread", |turn: &mut Turn<'_>| {
            turn.each(|_| drop(registry.acquire(both).expect("current")));
        })
        .writing(|_| replace(adapter, adapter_on(base))),
    ];
    let trace = Trace::of_one(draws(report));
    for (sets, what, ours) in [
        (1, "one set", &mut of_one),
        (2, "a base and its adapter", &mut of_two),
    ] {
        let mut peers = contenders.acquire(sets);
        for writer in [false, true] {
            for &threads in report.scale().threads() {
                let cell = Cell {
                    group: GROUP,
                    what: what.to_owned(),
                    size: sets,
                    trace: &trace,
                    threads,
                    writer,
                    few: false,
                };
                report.measure(&cell, ours, &mut peers);
            }
        }
    }
}

fn adapter_on(base: SetHandle) -> InMemory {
    let (a, b) = (([1, 3], [1; 3]), ([2, 1], [1; 2]));
    let adapter = InMemory::new().lora("q_proj", Dtype::U8, a, b, 1.0);
    adapter.expect("a legal module").on(base)
}
