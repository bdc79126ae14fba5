//! What a commit is asked for, and what it answers.
//!
//! What lives here: one set's part of a commit ([`Step`], [`Act`]), and how it ended ([`Done`],
//! [`Undone`]). What does not: how that is done (`commit`).

use std::sync::Arc;

use super::record::SetRecord;
use super::retirement::Retirement;
use super::staged::Staged;
use crate::core::Expect;
use crate::error::Error;
use crate::handle::{Generation, SetHandle};

/// What becomes of one set.
pub(super) struct Step {
    pub(super) record: Arc<SetRecord>,
    pub(super) expect: Expect,
    pub(super) act: Act,
}

impl Step {
    /// What would have become current.
    pub(super) fn into_staged(self) -> Option<Staged> {
        match self.act {
            Act::Become(staged) => Some(*staged),
            _ => None,
        }
    }
}

pub(super) enum Act {
    /// This is its next generation.
    Become(Box<Staged>),
    /// One that was kept is again, under a new number: this one, or the latest.
    Restore(Option<Generation>),
    /// The current one is again, standing on what is current then; an adapter on this base.
    Rebind(Option<SetHandle>),
    /// It stays and has no bytes until its next generation.
    Vacate,
    /// It goes.
    Retire,
}

/// A commit that went through.
pub(super) struct Done {
    pub(super) number: u64,
    /// What each step superseded.
    pub(super) previous: Vec<Option<Retirement>>,
}

/// A commit that did not: why, which step is to blame, and everything as it was.
pub(super) struct Undone {
    pub(super) error: Error,
    pub(super) index: usize,
    pub(super) steps: Vec<Step>,
}
