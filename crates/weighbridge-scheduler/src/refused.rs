//! Why a request was not admitted.
//!
//! What lives here: the refusal, which has the payload. What does not: what ends a request that was admitted
//! (`round`).

use std::fmt;

use weighbridge::SetHandle;

/// A request that was not admitted, with what it brought.
///
/// # Examples
/// ```
/// use weighbridge_scheduler::{Refused, Why};
///
/// fn status<T>(refused: &Refused<T>) -> u16 {
///     match refused.why {
///         Why::Full { .. } => 429,
///         Why::Closed => 503,
///         Why::Unknown { .. } => 404,
///         _ => 400,
///     }
/// }
/// ```
#[non_exhaustive]
pub struct Refused<T> {
    /// What the request brought.
    pub payload: T,
    /// Why it was not admitted.
    pub why: Why,
}

impl<T> Refused<T> {
    pub(crate) fn new(payload: T, why: impl Into<Why>) -> Self {
        Refused {
            payload,
            why: why.into(),
        }
    }
}

/// See [`Refused`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// As many wait as may.
    #[error(
        "{waiting} requests wait already, and no more may; try again later, or raise the limit"
    )]
    Full {
        /// How many wait.
        waiting: usize,
    },
    /// It was [closed](crate::Scheduler::close).
    #[error("the scheduler is closed; nobody is admitted any more")]
    Closed,
    /// There is no set of this name. It is never served by the base instead.
    #[error("there is no set {name}; it was never published, or is retired")]
    Unknown {
        /// The name as it prints.
        name: String,
    },
    /// What was given as the adapter is none.
    #[error("{set} is no adapter; give a checkpoint as the base, and no adapter")]
    NotAnAdapter {
        /// The set.
        set: SetHandle,
    },
    /// The registry refuses it: a set that was retired, an adapter of another base.
    #[error(transparent)]
    Registry(#[from] weighbridge::Error),
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut refused = f.debug_struct("Refused");
        refused.field("why", &self.why).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)
    }
}

impl<T> std::error::Error for Refused<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}
