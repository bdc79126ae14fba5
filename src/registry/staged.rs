//! What is in memory and not published yet, and how it comes back when a publish fails.
//!
//! What lives here: [`Staged`], the room it is filled in, [`PublishError`]. What does not: filling it
//! (`publish`, `filling`), making it current (`commit`).

use std::fmt;
use std::sync::Arc;

use super::generation::Bytes;
use crate::error::Error;
use crate::handle::{SetHandle, SetKind};
use crate::identity::{Identity, content_identity};
use crate::layout::{Extents, Layout};
use crate::plan::Plan;

/// Memory for a set, charged and laid out, with nothing in it yet.
pub(super) struct Room {
    pub(super) registry: u32,
    pub(super) plan: Plan,
    pub(super) layout: Arc<Layout>,
    pub(super) base: Option<SetHandle>,
    pub(super) bytes: Bytes,
}

impl Room {
    /// What it is now that everything is in it: `declared`, or by its contents.
    pub(super) fn fill(self, declared: Option<&str>) -> Staged {
        let Room {
            registry,
            plan,
            layout,
            base,
            bytes,
        } = self;
        let identity = match declared {
            Some(revision) => Identity::declared(&plan, revision),
            None => content_identity(&plan, bytes.arena.as_slice()),
        };
        Staged {
            registry,
            extents: plan.extents(&layout),
            plan,
            layout,
            base,
            identity,
            bytes,
        }
    }
}

/// A set whose bytes are in memory, charged and identified, and which nobody can see yet.
///
/// Dropping it gives the bytes back and leaves no trace.
pub struct Staged {
    /// Whose ledger is charged.
    pub(super) registry: u32,
    pub(super) plan: Plan,
    /// As a first generation would have them: made here, so that a commit need not.
    pub(super) layout: Arc<Layout>,
    pub(super) extents: Extents,
    pub(super) base: Option<SetHandle>,
    pub(super) identity: Identity,
    pub(super) bytes: Bytes,
}

impl Staged {
    /// What the bytes are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The tensors.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes that the ledger is charged for it.
    pub fn bytes(&self) -> u64 {
        self.bytes.charge.bytes()
    }

    pub(super) fn kind(&self) -> SetKind {
        if self.base.is_some() {
            SetKind::Adapter
        } else {
            SetKind::Checkpoint
        }
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("origin", &self.plan.origin())
            .field("identity", &self.identity)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// A publish or replace that failed: why, and the staged set, if it got that far.
#[derive(Debug)]
pub struct PublishError(Box<(Error, Option<Staged>)>);

impl PublishError {
    pub(super) fn new(error: Error, staged: Option<Staged>) -> Self {
        PublishError(Box::new((error, staged)))
    }

    /// Why it failed.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The staged set, to be published elsewhere or later; `None` if staging itself failed.
    pub fn into_staged(self) -> Option<Staged> {
        self.0.1
    }

    /// Both.
    pub fn into_parts(self) -> (Error, Option<Staged>) {
        *self.0
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.0.source()
    }
}

impl From<PublishError> for Error {
    fn from(failed: PublishError) -> Self {
        failed.0.0
    }
}

impl From<Error> for PublishError {
    fn from(error: Error) -> Self {
        PublishError::new(error, None)
    }
}
