//! Bytes that are read piece by piece, by several threads.
//!
//! What lives here: [`Pieces`], the same of files. What does not: cutting, threads, hashing (`reading`).

use std::collections::HashMap;
use std::fmt;

use super::file::SourceFile;
use super::header::FileTensor;
use crate::error::Error;
use crate::plan::{Plan, PlannedTensor};

/// What a source of files can do for the registry beyond [`read_into`](super::Source::read_into): see
/// [`Source::pieces`](super::Source::pieces). Made by this library's sources only, because it is trusted:
/// whatever it says it has read it has written.
pub struct Pieces<'s> {
    read: Box<dyn ReadPieces + 's>,
    /// Whose tensors these are the pieces of.
    plan: &'s Plan,
}

impl<'s> Pieces<'s> {
    pub(crate) fn new(plan: &'s Plan, read: impl ReadPieces + 's) -> Self {
        let read = Box::new(read);
        Pieces { read, plan }
    }

    /// Are they pieces of what `plan` describes, tensor by tensor? A wrapper may forward them, and have
    /// another plan.
    pub(crate) fn are_of(&self, plan: &Plan) -> bool {
        let (ours, theirs) = (self.plan.tensors(), plan.tensors());
        let same = |(ours, theirs): (&PlannedTensor, &PlannedTensor)| {
            ours.name() == theirs.name()
                && ours.range().len() == theirs.range().len()
                && ours.tie == theirs.tie
        };
        std::ptr::eq(self.plan, plan)
            || (ours.len() == theirs.len() && ours.iter().zip(theirs).all(same))
    }

    pub(super) fn plan(&self) -> &'s Plan {
        self.plan
    }

    pub(crate) fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.read.read(tensor, offset, bytes)
    }

    pub(crate) fn finish(&self) -> Result<(), Error> {
        self.read.finish()
    }
}

impl fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pieces")
    }
}

/// See [`Pieces`].
pub(crate) trait ReadPieces: Sync {
    /// Fills `bytes` with what tensor `tensor` of the plan has from `offset` on. Called by several threads.
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Called once, after the last piece: was all of it of one state of the source?
    fn finish(&self) -> Result<(), Error>;
}

impl<P: ReadPieces + ?Sized> ReadPieces for &P {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        (**self).read(tensor, offset, bytes)
    }

    fn finish(&self) -> Result<(), Error> {
        (**self).finish()
    }
}

/// Tensors in files.
pub(super) struct InFiles<'s> {
    files: Vec<&'s SourceFile>,
    /// For each tensor of the plan its file, and where it begins there.
    places: Vec<Option<(usize, u64)>>,
}

impl<'s> InFiles<'s> {
    pub(super) fn new(
        plan: &Plan,
        files: impl Iterator<Item = (&'s SourceFile, &'s [FileTensor])>,
    ) -> Self {
        let mut all = Vec::new();
        let mut stored = HashMap::new();
        for (number, (file, tensors)) in files.enumerate() {
            all.push(file);
            stored.extend(
                tensors
                    .iter()
                    .map(|one| (one.tensor.name(), (number, one.at))),
            );
        }
        let place = |name: &str| stored.get(name).copied();
        InFiles {
            files: all,
            places: plan.tensors().iter().map(|one| place(one.name())).collect(),
        }
    }
}

impl ReadPieces for InFiles<'_> {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let Some((file, at)) = self.places[tensor] else {
            unreachable!("the plan was made of what is in the files")
        };
        self.files[file].read_exact_at(bytes, at + offset)
    }

    fn finish(&self) -> Result<(), Error> {
        self.files
            .iter()
            .try_for_each(|file| file.check_unchanged())
    }
}
