//! One linear module, and how its weight may be stored.
//!
//! What lives here: plain data. What does not: where it is found (`packed`, `table`), whether an adapter
//! fits (`fit`).

use crate::layout::info::TensorInfo;
use crate::tensor::Shard;

/// How the weights of a set's linear modules are stored, where that changes what shapes mean: named by
/// `quantization_config` in a checkpoint's `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum WeightFormat {
    /// A matrix of floats is a linear weight, `[out, in]`; a matrix of integers may be anything. That
    /// covers FP8, where a `weight` of `F8_E4M3` has its scales beside it as `weight_scale` or
    /// `weight_scale_inv` (`FbgemmFp8Linear` and `FP8Linear` in transformers' `integrations`,
    /// `float-quantized` of compressed-tensors).
    #[default]
    Plain,
    /// Also a matrix of I8 with its scales beside it is a linear weight, `[out, in]`: `SCB` of
    /// bitsandbytes (`Linear8bitLt` in its `nn/modules.py`; row-major is the only layout it still
    /// loads), `weight_scale` of compressed-tensors (`int-quantized`).
    Int8,
    /// `qweight` `[in * bits / 32, out]`, `scales` `[groups, out]`, `g_idx` `[in]` (`QuantLinear` in
    /// AutoGPTQ's `nn_modules/qlinear`).
    Gptq {
        /// Bits of a weight, if they are the same for all modules.
        bits: Option<u32>,
    },
    /// `qweight` `[in, out * bits / 32]`, `scales` `[in / group, out]` (`WQLinear_GEMM` in AutoAWQ's
    /// `modules/linear/gemm.py`).
    Awq {
        /// Bits of a weight.
        bits: u32,
    },
}

/// What a module is to an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Module {
    /// A linear module of known features.
    Linear(Linear),
    /// Its weight is known not to be a matrix: a norm, a convolution.
    NotLinear,
    /// There are tensors of it or below it, but they do not tell its features.
    Unchecked,
}

/// A linear module, `y = W x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    pub(super) outputs: Side,
    pub(super) inputs: Side,
}

impl Linear {
    /// Features of `y`, of the whole module where this is a part of it.
    pub fn outputs(&self) -> usize {
        self.outputs.size
    }

    /// Features of `x`, of the whole module where this is a part of it.
    pub fn inputs(&self) -> usize {
        self.inputs.size
    }
}

/// One dimension of the whole, and which part of it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) size: usize,
    pub(super) shard: Option<Shard>,
}

impl Side {
    pub(super) fn whole(size: usize) -> Self {
        Side { size, shard: None }
    }

    /// Dimension `dim` of a tensor, if it has that.
    pub(super) fn of(info: &TensorInfo, dim: usize) -> Option<Self> {
        let here = *info.shape().get(dim)?;
        let shard = info.shard().filter(|shard| shard.dim as usize == dim);
        let world = shard.map_or(1, |shard| shard.world as usize);
        Some(Side {
            size: here.checked_mul(world)?,
            shard,
        })
    }

    /// (rank, world), if it is a part.
    pub(super) fn part(self) -> Option<(u32, u32)> {
        self.shard.map(|shard| (shard.rank, shard.world))
    }
}
