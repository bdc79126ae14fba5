//! Bytes that are read piece by piece, by several threads.
//!
//! What lives here: [`Pieces`], [`ReadPieces`], the same of files. What does not: cutting, threads, hashing
//! (`reading`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::file::SourceFile;
use super::header::FileTensor;
use crate::error::Error;
use crate::plan::{Plan, PlannedTensor};

/// What a source can do for the registry beyond [`read_into`](super::Source::read_into): see
/// [`Source::pieces`](super::Source::pieces). The library's sources of files have them.
///
/// # Examples
/// A source of one's own that can be streamed:
/// ```
/// use weighbridge::source::{Pieces, ReadPieces, Source};
/// use weighbridge::{Dtype, Error, Plan};
///
/// struct Ramp(Plan);
///
/// impl ReadPieces for Ramp {
///     fn read(&self, _tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
///         (offset..).zip(bytes).for_each(|(at, byte)| *byte = at as u8);
///         Ok(())
///     }
/// }
///
/// impl Source for Ramp {
///     fn plan(&self) -> &Plan {
///         &self.0
///     }
///
///     fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
///         let all = self.0.tensors().iter().enumerate();
///         all.into_iter().try_for_each(|(at, tensor)| self.read(at, 0, &mut arena[tensor.range()]))
///     }
///
///     fn pieces(&self) -> Option<Pieces<'_>> {
///         Some(Pieces::of(&self.0, self))
///     }
/// }
///
/// let ramp = Ramp(Plan::of("a ramp", [("w", Dtype::U8, vec![300])])?);
/// let registry = weighbridge::WeightRegistry::builder().build()?;
/// let set = registry.publish("ramp", ramp)?;
/// assert_eq!(registry.acquire(set)?.set(set)?.get("w")?.bytes()[257], 1);
/// # Ok::<(), Error>(())
/// ```
pub struct Pieces<'s> {
    read: Box<dyn ReadPieces + 's>,
    /// Whose tensors these are the pieces of.
    plan: &'s Plan,
    /// Whatever it says it has read it has written.
    trusted: bool,
}

impl<'s> Pieces<'s> {
    /// `read` has the tensors of `plan`, by their [indices](Plan::tensors).
    pub fn of(plan: &'s Plan, read: impl ReadPieces + 's) -> Self {
        Pieces {
            trusted: false,
            ..Self::new(plan, read)
        }
    }

    /// The same of this library's own sources, which write all of what they say: what is there need not be
    /// cleared before.
    pub(crate) fn new(plan: &'s Plan, read: impl ReadPieces + 's) -> Self {
        Pieces {
            read: Box::new(read),
            plan,
            trusted: true,
        }
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

    /// The same pieces, of the same tensors, in another plan.
    pub(super) fn by(self, plan: &'s Plan) -> Self {
        Pieces { plan, ..self }
    }

    pub(super) fn plan(&self) -> &'s Plan {
        self.plan
    }

    pub(crate) fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        if !self.trusted {
            bytes.fill(0);
        }
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

/// Reads pieces of tensors, from several threads at once. See [`Pieces`].
pub trait ReadPieces: Sync {
    /// Fills `bytes`, which are zero, with what tensor `tensor` of the plan has from `offset` on. Not asked for ties.
    ///
    /// # Errors
    /// Whatever is wrong. Pieces that are being read by others come to their end; no more are asked for.
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Called once, after the last piece of a set, or of a part of one: was all of it of one state of the source?
    ///
    /// # Errors
    /// It was not. What was read does not count.
    fn finish(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl<P: ReadPieces + ?Sized> ReadPieces for &P {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        (**self).read(tensor, offset, bytes)
    }

    fn finish(&self) -> Result<(), Error> {
        (**self).finish()
    }
}

/// For each tensor of a plan its file, and where it begins there.
pub(super) type Places = Arc<[Option<(usize, u64)>]>;

/// Tensors in files.
pub(super) struct InFiles<'s> {
    files: Vec<&'s SourceFile>,
    places: Places,
}

/// Where the tensors of `plan` are in files with these, in order.
pub(super) fn places<'s>(plan: &Plan, files: impl Iterator<Item = &'s [FileTensor]>) -> Places {
    let mut stored = HashMap::new();
    for (number, tensors) in files.enumerate() {
        let tensors = tensors.iter();
        stored.extend(tensors.map(|one| (one.tensor.name(), (number, one.at))));
    }
    let place = |one: &PlannedTensor| stored.get(one.name()).copied();
    plan.tensors().iter().map(place).collect()
}

impl<'s> InFiles<'s> {
    pub(super) fn new(files: impl Iterator<Item = &'s SourceFile>, places: Places) -> Self {
        InFiles {
            files: files.collect(),
            places,
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
