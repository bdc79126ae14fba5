//! From a handle to the entry, without keeping it.
//!
//! What lives here: our three ways, on one key by all threads, and over many. What does not: keeping it
//! (`acquire`), names (`lookup`).

use std::hint::black_box;

use super::super::rows::{Cell, Report};
use super::super::traces::{Law, Trace};
use super::super::turns::Route;
use super::{Contenders, draws, registry_with, set_names};

const GROUP: &str = "get by handle";
/// The way of ours that peers with a guard held all the time are set beside.
pub const HELD: &str = "held scope";

pub(super) fn run(report: &mut Report, contenders: &dyn Contenders) {
    let many = report.scale().of(10_000, 10_000, 100);
    let one_key = ("one key".to_owned(), Trace::of_one(draws(report)));
    let uniform = Trace::drawn(Law::Uniform, many, draws(report));
    let cases = [one_key, (format!("{many} sets, uniform"), uniform)];
    if !report.wants(&cases.each_ref().map(|(what, _)| format!("{GROUP}, {what}"))) {
        return;
    }
    let (registry, handles) = registry_with(&set_names(many), 1);
    let mut ours = [
        Route::new(HELD, |turn| {
            registry.scope(|scope| {
                turn.each(|index| {
                    black_box(scope.get(handles[index]).expect("current").generation());
                })
            })
        }),
        Route::new("reader in hand", |turn| {
            let reader = registry.reader();
            turn.each(|index| {
                let scope = reader.scope();
                black_box(scope.get(handles[index]).expect("current").generation());
            })
        }),
        Route::new("from any thread", |turn| {
            turn.each(|index| {
                registry.scope(|scope| {
                    black_box(scope.get(handles[index]).expect("current").generation());
                })
            })
        }),
    ];
    let mut peers = contenders.get(many);
    for (what, trace) in &cases {
        for &threads in report.scale().threads() {
            let cell = Cell {
                group: GROUP,
                what: what.clone(),
                size: many,
                trace,
                threads,
                writer: false,
                few: false,
            };
            report.measure(&cell, &mut ours, &mut peers);
        }
    }
}
