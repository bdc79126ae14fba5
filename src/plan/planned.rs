//! One tensor of a plan.
//!
//! What lives here: [`PlannedTensor`]. What does not: order, places and ties (`plan`).

use std::sync::Arc;

use crate::error::Error;
use crate::tensor::{DtypeName, Shard, WeightKind, replaced};

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: DtypeName,
    pub(crate) shape: Box<[usize]>,
    pub(crate) byte_len: u64,
    pub(crate) kind: WeightKind,
    /// Index of the tensor whose bytes these are.
    pub(crate) tie: Option<usize>,
    pub(crate) shard: Option<Shard>,
    /// The base's tensor that it replaces.
    pub(crate) replaces: Option<Arc<str>>,
    /// The part that it is in, if it is in one.
    pub(crate) part: Option<u32>,
    /// Place in the arena, or in its part; a tie has its target's.
    pub(crate) offset: u64,
}

impl PlannedTensor {
    /// A tensor before it has a place. `byte_len` is what its header says.
    pub(crate) fn new(name: &str, dtype: DtypeName, shape: Vec<usize>, byte_len: u64) -> Self {
        PlannedTensor {
            name: name.into(),
            dtype,
            shape: shape.into(),
            byte_len,
            kind: WeightKind::Base,
            tie: None,
            shard: None,
            replaces: None,
            part: None,
            offset: 0,
        }
    }

    /// A replacement's name tells what it replaces.
    pub(crate) fn of_kind(mut self, kind: WeightKind) -> Self {
        self.kind = kind;
        self.replaces = (kind == WeightKind::Replacement).then(|| replaced(&self.name));
        self
    }

    /// Says which part of the whole it is.
    pub(crate) fn cut(&mut self, shard: Option<Shard>) -> Result<(), Error> {
        let shard = shard.map_or(Ok(None), |shard| shard.of(&self.shape));
        self.shard = shard.map_err(|reason| Error::InvalidTensor {
            tensor: self.name.to_string(),
            reason,
        })?;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dtype.
    pub fn dtype(&self) -> &DtypeName {
        &self.dtype
    }

    /// Its shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// What part it plays.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Which part of the whole tensor it is; `None` if it is the whole.
    pub fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// The base's tensor that it replaces, for a [`WeightKind::Replacement`].
    pub fn replaces(&self) -> Option<&str> {
        self.replaces.as_deref()
    }

    /// Which [part](super::PlannedParts) it is in; `None`: it stays in memory with its set.
    pub fn part(&self) -> Option<usize> {
        self.part.map(|part| part as usize)
    }

    /// Where it starts in the arena, or in its part: a multiple of 64. In memory that a source brings: where it is.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its place in the arena, or in its part: what a source fills.
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start + self.byte_len as usize
    }
}
