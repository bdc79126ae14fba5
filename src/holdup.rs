//! Who and what is in the way of a wait.
//!
//! What lives here: what a time-out says. What does not: waiting (`registry::retirement`).

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::handle::Generation;
use crate::names::SetName;

/// A labelled lease that holds a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// The label given to `acquire_as`.
    pub label: String,
    /// How long the lease has been held.
    #[serde(rename = "age_seconds", serialize_with = "crate::json::seconds")]
    pub age: Duration,
}

/// A lease that was given away until a fence has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FenceHolder {
    /// The fence's name, with the lease's label in parentheses if it had one.
    pub name: String,
    /// How long ago the lease was given away.
    #[serde(rename = "age_seconds", serialize_with = "crate::json::seconds")]
    pub age: Duration,
    /// The generation that it holds.
    pub generation: Generation,
    /// The fence panicked: it never passes.
    pub broken: bool,
}

impl fmt::Display for FenceHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.broken {
            "panicked and never passes, waited for"
        } else {
            "not passed for"
        };
        write!(f, "fence {:?} {state} {:.1?}", self.name, self.age)
    }
}

/// Who and what is in the way of a wait that timed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holdup {
    /// The set.
    #[serde(flatten)]
    pub set: SetName,
    /// Its generation; of a retired set, the last one.
    pub generation: Generation,
    /// How long was waited.
    #[serde(rename = "waited_seconds", serialize_with = "crate::json::seconds")]
    pub waited: Duration,
    /// Leases in the way, labelled or not, fenced or not. Zero: the bytes are with the reclaimer.
    pub leases: u64,
    /// The labelled ones among them that somebody still has, oldest first.
    pub holders: Vec<Holder>,
    /// Those among them that wait for a fence, oldest first.
    pub fences: Vec<FenceHolder>,
}

/// What is in the way of sets that were wanted and were not there in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Overdue {
    /// How long was waited.
    #[serde(rename = "waited_seconds", serialize_with = "crate::json::seconds")]
    pub waited: Duration,
    /// By how many bytes it did not fit when it was tried last: of the total, or of an account. Zero: there
    /// was room, and the sets were being read.
    pub missing: u64,
    /// How many others wait for room.
    pub waiting: usize,
    /// Sets that could be evicted if they were not leased, most bytes first.
    pub leased: Vec<Holdup>,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not loaded after {:.1?}: ", self.waited)?;
        if self.missing == 0 {
            return f.write_str("there is room, but reading has not come to its end");
        }
        write!(f, "{} bytes are missing", self.missing)?;
        if self.waiting > 0 {
            write!(f, ", {} others wait", self.waiting)?;
        }
        for (at, holdup) in self.leased.iter().take(NAMED).enumerate() {
            f.write_str(if at == 0 { "; in the way: " } else { "; " })?;
            holdup.fmt(f)?;
        }
        match self.leased.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more sets"),
        }
    }
}

/// How many holders, and how many fences, a message names.
const NAMED: usize = 5;

impl fmt::Display for Holdup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set {} generation {}", self.set, self.generation)?;
        if !self.waited.is_zero() {
            write!(f, " after {:.1?}", self.waited)?;
        }
        f.write_str(": ")?;
        if self.leases == 0 {
            return f.write_str("no lease is left, the reclaimer has not freed the bytes yet");
        }
        write!(f, "{} lease(s) held", self.leases)?;
        let mut named = 0;
        let mut lead = |f: &mut fmt::Formatter<'_>| {
            named += 1;
            f.write_str(if named == 1 { ": " } else { ", " })
        };
        for holder in self.holders.iter().take(NAMED) {
            lead(f)?;
            write!(f, "{:?} for {:.1?}", holder.label, holder.age)?;
        }
        for fence in self.fences.iter().take(NAMED) {
            lead(f)?;
            write!(f, "{fence}")?;
        }
        match self.leases.saturating_sub(named) {
            _ if named == 0 => f.write_str(", none labelled (use acquire_as to have them named)"),
            0 => Ok(()),
            unnamed => write!(f, " and {unnamed} more"),
        }
    }
}
