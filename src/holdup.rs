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
    /// Leases in the way, labelled or not. Zero: the bytes are with the reclaimer.
    pub leases: u64,
    /// The labelled ones among them, oldest first.
    pub holders: Vec<Holder>,
}

impl fmt::Display for Holdup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "set {} generation {} after {:.1?}: ",
            self.set, self.generation, self.waited
        )?;
        if self.leases == 0 {
            return f.write_str("no lease is left, the reclaimer has not freed the bytes yet");
        }
        write!(f, "{} lease(s) held", self.leases)?;
        for (index, holder) in self.holders.iter().take(5).enumerate() {
            let lead = if index == 0 { ": " } else { ", " };
            write!(f, "{lead}{:?} for {:.1?}", holder.label, holder.age)?;
        }
        let unnamed = self.leases.saturating_sub(self.holders.len().min(5) as u64);
        if unnamed != 0 && !self.holders.is_empty() {
            write!(f, " and {unnamed} more")?;
        } else if self.holders.is_empty() {
            f.write_str(", none labelled (use acquire_as to have them named)")?;
        }
        Ok(())
    }
}
