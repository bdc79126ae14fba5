//! Sources of one tensor.
//!
//! What lives here: bytes at hand, and a caller's source whose only tensor is given the name that all
//! flat weights have. What does not: what a source is (`source`).

use super::pinned::TENSOR;
use crate::Dtype;
use crate::error::Error;
use crate::plan::Plan;
use crate::source::Source;
use crate::tensor::given_len;

/// The bytes of one weight, as a source.
pub(super) struct Slice<'b> {
    plan: Plan,
    bytes: &'b [u8],
}

impl<'b> Slice<'b> {
    pub(super) fn new(
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: &'b [u8],
    ) -> Result<Self, Error> {
        given_len(dtype, shape, bytes.len()).map_err(|reason| Error::InvalidTensor {
            tensor: name.to_owned(),
            reason,
        })?;
        let plan = Plan::of(name, [(TENSOR, dtype, shape.to_vec())])?;
        Ok(Slice { plan, bytes })
    }
}

impl Source for Slice<'_> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        // One tensor: it is at the beginning.
        arena[..self.bytes.len()].copy_from_slice(self.bytes);
        Ok(())
    }
}

/// A caller's source.
pub(super) struct One<S> {
    plan: Plan,
    source: S,
}

impl<S: Source> One<S> {
    pub(super) fn new(name: &str, source: S) -> Result<Self, Error> {
        let wrong = |reason| Error::InvalidTensor {
            tensor: name.to_owned(),
            reason,
        };
        let planned = source.plan();
        let (aliases, bound) = (planned.aliases().len(), source.base().is_some());
        let ([only], 0, None, false) = (planned.tensors(), aliases, planned.adapter(), bound)
        else {
            return Err(wrong(format!(
                "{} describes {}{}{}; a weight is one tensor that stands on its own",
                planned.origin(),
                some(planned.tensors().len(), "tensor", "tensors"),
                match aliases {
                    0 => String::new(),
                    some_of => format!(" and {}", some(some_of, "alias", "aliases")),
                },
                if bound { ", bound to a base" } else { "" },
            )));
        };
        if planned.is_placed() {
            return Err(wrong(format!(
                "{} brings its memory, and a weight is copied into memory of the registry; publish it \
                 as a set, or register its bytes",
                planned.origin()
            )));
        }
        let Some(dtype) = only.dtype().dtype() else {
            return Err(wrong(format!(
                "has the unknown dtype {:?}",
                only.dtype().name()
            )));
        };
        let plan = Plan::of(planned.origin(), [(TENSOR, dtype, only.shape().to_vec())])?;
        // A part of a tensor is not another part, though their bytes are the same.
        let plan = plan.shards(|_| only.shard())?;
        Ok(One { plan, source })
    }
}

fn some(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

impl<S: Source> Source for One<S> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        // One tensor of the same size: the same arena.
        self.source.read_into(arena)
    }

    fn declared(&self) -> Option<&str> {
        self.source.declared()
    }
}
