//! One tensor of a layout.
//!
//! What lives here: plain data. What does not: where it is in its set (`layout`).

use std::sync::Arc;

use crate::Dtype;
use crate::tensor::{DtypeName, Shard, WeightKind};

/// One tensor of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorInfo {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: DtypeName,
    pub(crate) shape: Box<[usize]>,
    pub(crate) byte_len: u64,
    pub(crate) kind: WeightKind,
    pub(crate) tie: Option<u32>,
    pub(crate) shard: Option<Shard>,
    pub(crate) replaces: Option<Arc<str>>,
}

impl TensorInfo {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dtype; `None` if the name its file gives is not known. Such a tensor is held and
    /// accounted for, but cannot be read.
    #[inline]
    pub fn dtype(&self) -> Option<Dtype> {
        self.dtype.dtype()
    }

    /// The dtype as its file names it.
    pub fn dtype_name(&self) -> &str {
        self.dtype.name()
    }

    /// Its shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its length in bytes.
    #[inline]
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// What part it plays.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// The ordinal of the tensor whose bytes these are, for a tie.
    pub fn tie(&self) -> Option<u32> {
        self.tie
    }

    /// Which part of the whole tensor it is; `None` if it is the whole.
    pub fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// The base's tensor that it replaces, for a [`WeightKind::Replacement`].
    pub fn replaces(&self) -> Option<&str> {
        self.replaces.as_deref()
    }
}
