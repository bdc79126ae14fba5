//! A part that is in memory, and reading its tensors.
//!
//! What lives here: [`Part`]. What does not: how it came (`mod`), weights of what stays (`lease`).

use std::fmt;
use std::mem::ManuallyDrop;

use super::Stream;
use super::reader::Held;
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::registry::lease::Weight;

/// A part of a streamed set, in memory for as long as this lives.
///
/// Its bytes are those of the stream's lease, checked when they were read: against their digests where the set was
/// hashed; otherwise they are from the files that were opened when it was published, in the state in which these were. When it
/// is dropped, its place is free for the next part, which may be read there at once; for a device that still reads it then there is
/// [`release_after`](Self::release_after). Dropping takes the window's lock for a moment, unless every part was in memory when it came.
pub struct Part<'s> {
    stream: &'s Stream,
    held: Held,
}

impl<'s> Part<'s> {
    /// What `stream` holds, until this is dropped.
    pub(super) fn new(stream: &'s Stream, held: Held) -> Self {
        Part { stream, held }
    }

    /// The stream and what it holds, which is no longer released by this.
    pub(super) fn into_parts(self) -> (&'s Stream, Held) {
        let part = ManuallyDrop::new(self);
        (part.stream, part.held)
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.held.part as usize
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.stream.ward.parts().all()[self.held.part as usize].name()
    }

    /// One tensor, of this part or of what stays in memory. An array access: no lock, no atomic write, no name.
    ///
    /// # Errors
    /// [`Error::InPart`] if it is in another part; [`Error::NotInLease`], [`Error::NoSuchTensor`],
    /// [`Error::UnreadableTensor`].
    #[inline]
    pub fn weight(&self, weight: WeightHandle) -> Result<Weight<'_>, Error> {
        // SAFETY: this part is held until `self` is dropped, and the answer borrows from `self`.
        unsafe { self.stream.ward.weight(weight, &self.held) }
    }

    /// A tensor by name. Prefer [`weight`](Self::weight) with a handle that was resolved once.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn get(&self, tensor: &str) -> Result<Weight<'_>, Error> {
        let set = self.stream.ward.leased();
        match set.layout().ordinal(tensor) {
            Some(ordinal) => self.weight(set.handle().weight(ordinal)),
            None => Err(set.no_such_tensor(tensor.to_owned())),
        }
    }

    /// The tensors of this part, readable or not.
    pub fn iter(&self) -> impl Iterator<Item = Result<Weight<'_>, Error>> {
        let set = self.stream.ward.leased();
        let extents = &set.meta().facts.extents;
        let mine = |ordinal| {
            extents
                .in_part(ordinal)
                .is_some_and(|(part, _)| part == self.held.part)
        };
        let tensors = set.layout().tensors();
        let tensors = tensors.filter(move |(ordinal, _)| mine(*ordinal));
        tensors.map(move |(ordinal, _)| self.weight(set.handle().weight(ordinal)))
    }
}

impl Drop for Part<'_> {
    #[inline]
    fn drop(&mut self) {
        self.stream.ward.release(self.held);
    }
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("index", &self.held.part)
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}
