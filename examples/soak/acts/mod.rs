//! The operations, and how often each is drawn.

mod adapters;
mod fences;
mod files;
mod flat;
mod others;
mod reading;
mod residency;
mod streaming;
mod tenants;
mod together;
mod watching;
mod writing;

use std::time::Duration;

pub use files::foresee;
pub use flat::account;
pub use streaming::clear as clear_streams;

use crate::worker::{Done, Worker};

/// One operation.
pub struct Act {
    pub name: &'static str,
    /// How often it is drawn, beside the others.
    pub weight: usize,
    /// How long it may wait for others, by its own deadlines.
    pub waits: Duration,
    pub run: fn(&mut Worker) -> Done,
}

const fn act(name: &'static str, weight: usize, run: fn(&mut Worker) -> Done) -> Act {
    let waits = Duration::ZERO;
    Act {
        name,
        weight,
        waits,
        run,
    }
}

const fn waiting(name: &'static str, weight: usize, run: fn(&mut Worker) -> Done) -> Act {
    let waits = Duration::from_millis(100);
    Act {
        name,
        weight,
        waits,
        run,
    }
}

/// Each operation as often as its weight says; `only` those with one of these in their names.
pub fn drawn(only: &[String]) -> Vec<&'static Act> {
    let wanted =
        |act: &&Act| only.is_empty() || only.iter().any(|it| act.name.contains(it.as_str()));
    let wanted = ACTS.iter().filter(wanted);
    wanted
        .flat_map(|act| std::iter::repeat_n(act, act.weight))
        .collect()
}

const ACTS: &[Act] = &[
    act("lease one set", 150, reading::one),
    act("lease a group", 80, reading::group),
    act("lease a base and its adapters", 80, reading::stack),
    act("lease an owner and its users", 40, reading::tied),
    act("lease through a reader", 30, reading::reader),
    act("look from a scope", 40, reading::scope),
    act("read by handles", 40, reading::handles),
    act("clone a lease", 30, reading::twin),
    act("take a lease from the shelf", 30, reading::take),
    act("evict", 40, residency::evict),
    act("load", 15, residency::load),
    waiting("acquire or load", 60, residency::acquire),
    waiting("acquire or load as a future", 20, residency::acquire_async),
    act("pin a set, or let it go", 10, residency::pin),
    act("estimate", 5, residency::estimate),
    act("publish", 40, writing::publish),
    act("replace", 40, writing::replace),
    act("compare and swap", 30, writing::swap_if),
    waiting("retire", 20, writing::retire),
    act("revoke", 5, writing::revoke),
    act("keep earlier generations", 10, writing::keep),
    act("roll back", 20, writing::roll_back),
    waiting("replace drained", 10, writing::drained),
    act("stage and let go", 5, writing::abandon),
    act("fill by several threads", 3, writing::fill),
    act("a name that is used once", 10, writing::once),
    act("publish a group", 15, together::publish),
    act("replace a group", 40, together::replace),
    act("retire a group", 6, together::retire),
    act("a transaction that is not committed", 5, together::abandon),
    act("a transaction that is refused", 10, together::refused),
    act("publish an owner or a user", 20, together::publish_tied),
    act("replace an owner or a user", 20, together::replace_tied),
    act("retire an owner or a user", 6, together::retire_tied),
    act("publish a base", 15, adapters::publish_base),
    act("publish an adapter", 30, adapters::publish),
    act("replace an adapter", 20, adapters::replace),
    act("replace a base", 20, adapters::replace_base),
    act("move an adapter", 15, adapters::rebind),
    act("retire a base or an adapter", 6, adapters::retire),
    act("files", 2, files::change),
    act("a lease of files", 4, files::lease),
    waiting("change a tenant's set", 40, tenants::change),
    act("lease a tenant's set", 30, tenants::lease),
    act("look into another tenant", 5, tenants::look_across),
    act("change a flat weight", 30, flat::change),
    act("pin a flat weight", 40, flat::pin),
    act("flat totals", 5, flat::totals),
    act("lease until a fence", 15, fences::give),
    act("retire after a fence", 5, fences::retire),
    act("signal a fence", 20, fences::signal),
    act("catalog", 10, watching::catalog),
    act("ledger and statistics", 10, watching::numbers),
    act("events", 10, watching::events),
    act("change a streamed set", 8, streaming::change),
    waiting("stream a set", 30, streaming::pass),
    act("a registry of its own", 1, others::nested),
    act("planted", 1, others::planted),
];
