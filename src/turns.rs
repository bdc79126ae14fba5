//! Whose turn it is to write a tensor, and how far it is written.
//!
//! What lives here: that one writes at a time, goes on where the last one stopped, and that whoever
//! looks whether all is there sees what was written (E18). What does not: the bytes
//! (`registry::filling`).

use crate::sync::Mutex;

/// How far one tensor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are written, as of the end of the last turn.
    pub written: usize,
    /// Somebody's turn has not ended.
    pub taken: bool,
}

/// The turns of all tensors of a set.
#[derive(Debug)]
pub struct Turns(Box<[Mutex<Progress>]>);

/// The right to write one tensor, until it is dropped.
#[derive(Debug)]
pub struct Turn<'t> {
    place: &'t Mutex<Progress>,
    written: usize,
}

impl Turns {
    /// Of `count` tensors of which nothing is written.
    pub fn new(count: usize) -> Self {
        Turns((0..count).map(|_| Mutex::default()).collect())
    }

    /// The right to write tensor `index`. `None`: somebody has it.
    pub fn take(&self, index: usize) -> Option<Turn<'_>> {
        let place = &self.0[index];
        let mut progress = place.lock(); // E18
        if progress.taken {
            return None;
        }
        progress.taken = true;
        let written = progress.written;
        Some(Turn { place, written })
    }

    /// How far tensor `index` is. If no turn is under way, what was written in those before happens
    /// before the return.
    pub fn progress(&self, index: usize) -> Progress {
        *self.0[index].lock() // E18
    }
}

impl Turn<'_> {
    /// Bytes that are written, in this turn and those before.
    pub fn written(&self) -> usize {
        self.written
    }

    /// `more` bytes follow those.
    pub fn wrote(&mut self, more: usize) {
        self.written += more;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut progress = self.place.lock(); // E18
        progress.written = self.written;
        progress.taken = false;
    }
}
