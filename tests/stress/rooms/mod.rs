//! The rooms of the stress test: each a registry, threads that start together, and an oracle.
//!
//! What lives here: the list. What does not: how often and with how many threads (`run`), threads
//! (`crew`), what a set's bytes must be (`oracle`).
//!
//! Nothing here uses `thread::scope`, `std::sync::Mutex` or a channel: their edges are invisible to
//! ThreadSanitizer, and what it does not see it reports. Threads meet at a gate, at their end, and in
//! the registry, so that an edge which the registry forgets is not there by another way.

mod adapters;
#[path = "../../support/block_on.rs"]
mod block_on;
mod crew;
mod ends;
mod fences;
mod flat;
mod leases;
mod memory;
mod names;
mod observers;
pub mod oracle;
mod residency;
mod streams;
mod writers;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Threads of the kind that a room is about.
    pub threads: usize,
    /// Commits, or registries, of each writer.
    pub rounds: u64,
}

/// A room.
pub type Case = fn(Size);

pub const CASES: &[(&str, Case)] = &[
    ("replace_under_readers", leases::replace_under_readers),
    (
        "transaction_under_readers",
        leases::transaction_under_readers,
    ),
    ("last_drop_elsewhere", leases::last_drop_elsewhere),
    (
        "scopes_stay_in_their_commit",
        leases::scopes_stay_in_their_commit,
    ),
    ("waits_end", leases::waits_end),
    ("revoked_leases_end", leases::revoked_leases_end),
    ("two_writers", writers::two_writers),
    ("crossing_transactions", writers::crossing_transactions),
    ("rollbacks", writers::rollbacks),
    ("drained_swaps", writers::drained_swaps),
    ("stale_handles", names::stale_handles),
    ("fights_for_names", names::fights_for_names),
    ("table_grows", names::table_grows),
    ("labels", observers::labels),
    ("events", observers::events),
    ("catalog", observers::catalog),
    ("ledger_at_its_limit", memory::ledger_at_its_limit),
    ("filled_by_many", memory::filled_by_many),
    ("staged_by_many", memory::staged_by_many),
    ("fences", fences::fences),
    ("keeper_shutdown", fences::keeper_shutdown),
    ("threads_exit_with_leases", ends::threads_exit_with_leases),
    (
        "leases_outlive_the_registry",
        ends::leases_outlive_the_registry,
    ),
    (
        "registry_dropped_at_a_full_reclaimer",
        ends::registry_dropped_at_a_full_reclaimer,
    ),
    (
        "adapters_move_with_their_base",
        adapters::adapters_move_with_their_base,
    ),
    ("aliases_follow", adapters::aliases_follow),
    ("flat_weights", flat::flat_weights),
    ("evicted_under_readers", residency::evicted_under_readers),
    ("more_sets_than_fit", residency::more_sets_than_fit),
    ("layers_come_and_go", streams::layers_come_and_go),
    ("layers_are_all_there", streams::layers_are_all_there),
];
