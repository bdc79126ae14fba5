//! What happens in a registry, as its observers are told.
//!
//! What lives here: [`Event`] and what it says. What does not: receiving events (`subscription`),
//! making them (`posting`), the ring that they go through (`events`).

use serde::Serialize;

use super::catalog::entry::CatalogEntry;
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::names::SetName;

/// Something that happened.
///
/// As JSON it is one object; see [docs/JSON.md](crate::_documentation::json).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// Its place in this registry's stream: consecutive, from 1.
    pub sequence: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    pub(super) fn new(sequence: u64, kind: EventKind) -> Self {
        Event { sequence, kind }
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        crate::json::document(self)
    }
}

/// What happened.
///
/// Events of commits come in the order of commits. Those of one commit follow each other; `more` says
/// how many of them are still to come, so that whoever mirrors the registry can take them at one
/// instant, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A set has its first generation.
    #[non_exhaustive]
    Published {
        /// The commit.
        commit: Generation,
        /// Events of the same commit that follow.
        more: usize,
        /// What is current now.
        now: CatalogEntry,
    },
    /// A set has its next generation.
    #[non_exhaustive]
    Replaced {
        /// The commit.
        commit: Generation,
        /// Events of the same commit that follow.
        more: usize,
        /// What is current now.
        now: CatalogEntry,
        /// What was: running requests keep it.
        previous: Former,
    },
    /// A set is no longer there.
    #[non_exhaustive]
    Retired {
        /// The commit.
        commit: Generation,
        /// Events of the same commit that follow.
        more: usize,
        /// What was: running requests keep it.
        previous: Former,
    },
    /// The bytes of a generation that was replaced or retired are back in the ledger, except those that
    /// are kept for a rollback, and those that another generation has, too (rolled back to, rebound, or
    /// as an alias): of these it has let go. Comes after that event.
    ///
    /// What is kept goes without an event of its own: [`LedgerSnapshot::kept`] falls then, and
    /// [`Stats::reclaimed_bytes`] rises.
    ///
    /// [`LedgerSnapshot::kept`]: crate::LedgerSnapshot::kept
    /// [`Stats::reclaimed_bytes`]: crate::Stats::reclaimed_bytes
    #[non_exhaustive]
    Reclaimed {
        /// What is gone.
        former: Former,
    },
    /// The bytes of a current generation were taken away: see [`WeightRegistry::evict`]. It is current still.
    ///
    /// [`WeightRegistry::evict`]: crate::WeightRegistry::evict
    #[non_exhaustive]
    Evicted {
        /// What cannot be leased for the time being.
        now: CatalogEntry,
    },
    /// They are there again: see [`WeightRegistry::load`].
    ///
    /// [`WeightRegistry::load`]: crate::WeightRegistry::load
    #[non_exhaustive]
    Loaded {
        /// What can be leased again.
        now: CatalogEntry,
    },
    /// A writer was told no: by a call of the registry that stages, publishes, replaces, retires, rebinds,
    /// rolls back, evicts or loads, or adds such a step to a transaction, and whatever the reason, a stale handle and another
    /// namespace's set among them. Calls that read, reserve, or set how much is kept or may be had are no
    /// writers here, and a filling tells who fills it only. Whoever is told so in a loop fills the stream; it
    /// then says less of the rest.
    #[non_exhaustive]
    Refused {
        /// What it wanted.
        operation: Operation,
        /// To what: a set's name, a handle, or where the bytes would have come from. Escaped, and cut
        /// after 1,024 bytes, as is `reason`.
        subject: String,
        /// The kind of refusal.
        cause: Cause,
        /// The error's message.
        reason: String,
    },
}

/// A generation that is no longer current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Former {
    /// The set's name.
    #[serde(flatten)]
    pub name: SetName,
    /// The set's handle.
    pub handle: SetHandle,
    /// The generation.
    pub generation: Generation,
    /// Bytes that the ledger is charged for it. It gets them back when nothing has them any more: that is
    /// when this generation is [reclaimed](EventKind::Reclaimed), or later where they are kept for a
    /// rollback or another generation has them, too.
    pub bytes: u64,
}

/// What a writer wants from a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// Bytes into memory.
    Stage,
    /// A new set.
    Publish,
    /// A next generation.
    Replace,
    /// A set goes.
    Retire,
    /// Several sets at one instant.
    Transaction,
    /// Make a kept generation current again.
    Rollback,
    /// Move an adapter to another base.
    Rebind,
    /// Bytes of a current generation go.
    Evict,
    /// They come back.
    Load,
}

impl Operation {
    /// As in JSON and in the labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Stage => "stage",
            Operation::Publish => "publish",
            Operation::Replace => "replace",
            Operation::Retire => "retire",
            Operation::Transaction => "transaction",
            Operation::Rollback => "rollback",
            Operation::Rebind => "rebind",
            Operation::Evict => "evict",
            Operation::Load => "load",
        }
    }
}

/// The kind of a refusal: which of [`Error`]'s predicates holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// [`Error::is_not_found`].
    NotFound,
    /// [`Error::is_conflict`].
    Conflict,
    /// [`Error::is_out_of_memory`].
    OutOfMemory,
    /// [`Error::is_exhausted`].
    Exhausted,
    /// [`Error::is_malformed`].
    Malformed,
    /// [`Error::is_unsupported`].
    Unsupported,
    /// [`Error::is_io`].
    Io,
    /// [`Error::is_misuse`].
    Misuse,
    /// None of these.
    Other,
}

impl Cause {
    /// As in JSON and in the labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::NotFound => "not_found",
            Cause::Conflict => "conflict",
            Cause::OutOfMemory => "out_of_memory",
            Cause::Exhausted => "exhausted",
            Cause::Malformed => "malformed",
            Cause::Unsupported => "unsupported",
            Cause::Io => "io",
            Cause::Misuse => "misuse",
            Cause::Other => "other",
        }
    }
}

impl From<&Error> for Cause {
    fn from(error: &Error) -> Self {
        let causes = [
            (Error::is_not_found as fn(&Error) -> bool, Cause::NotFound),
            (Error::is_conflict, Cause::Conflict),
            (Error::is_out_of_memory, Cause::OutOfMemory),
            (Error::is_exhausted, Cause::Exhausted),
            (Error::is_malformed, Cause::Malformed),
            (Error::is_unsupported, Cause::Unsupported),
            (Error::is_io, Cause::Io),
            (Error::is_misuse, Cause::Misuse),
        ];
        let found = causes.into_iter().find(|(is, _)| is(error));
        found.map_or(Cause::Other, |(_, cause)| cause)
    }
}
