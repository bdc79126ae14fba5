//! What a tensor is, wherever it comes from: its role, its shard, its dtype by name, its length.
//!
//! What lives here: words that plans and layouts share. What does not: tables of tensors (`plan`,
//! `layout`).

use std::fmt;
use std::sync::Arc;

use crate::Dtype;

/// What part a tensor plays in its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WeightKind {
    /// A tensor of a base model.
    Base,
    /// The A matrix of a LoRA module, `[rank, in_features]`.
    LoraA,
    /// The B matrix of a LoRA module, `[out_features, rank]`.
    LoraB,
    /// A second name for another tensor of the same set, such as a tied `lm_head.weight`.
    TiedAlias,
    /// A full tensor saved with an adapter, to be used instead of the base's.
    Replacement,
}

/// Which part of a tensor this is, where a model is spread over several devices: of `world` equal
/// parts along dimension `dim`, number `rank`.
///
/// The words are those of `mistralrs-quant` (`Shard::Simple { dim, rank, world_size }`). Of one part
/// in all it is the whole tensor, and is treated as if nothing had been said. Heads of keys and values
/// that several devices share are cut into fewer parts: give `rank` and `world` of the part, not of the
/// device. Where parts are padded to be equal (vocabularies), give the module's features, too
/// ([`Plan::modules`](crate::Plan::modules)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard {
    /// The dimension that was cut.
    pub dim: u32,
    /// Which of the parts, from 0.
    pub rank: u32,
    /// How many parts there are.
    pub world: u32,
}

impl Shard {
    /// What is kept of it for a tensor of this shape: nothing if it is the whole.
    ///
    /// # Errors
    /// A reason, if there is no such part or no such dimension, or the whole would have no size.
    pub(crate) fn of(self, shape: &[usize]) -> Result<Option<Self>, String> {
        let Shard { dim, rank, world } = self;
        if rank >= world {
            return Err(format!(
                "is to be part {rank} of {world}; parts count from 0"
            ));
        }
        let Some(&part) = shape.get(dim as usize) else {
            return Err(format!(
                "is to be cut along dimension {dim}, its shape is {shape:?}"
            ));
        };
        if part.checked_mul(world as usize).is_none() {
            return Err(format!(
                "of shape {shape:?} is to be one of {world} along dimension {dim}: the whole has no size"
            ));
        }
        Ok((world > 1).then_some(self))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shard { dim, rank, world } = self;
        write!(f, "part {rank} of {world} along dimension {dim}")
    }
}

/// What PEFT puts before the names of an adapter's tensors.
pub(crate) const ADAPTER_PREFIX: &str = "base_model.model.";

/// The base's tensor that a tensor of this name replaces. PEFT saves `modules_to_save` under their
/// own names, and an embedding or head that LoRA was put on as its `base_layer`
/// (`get_peft_model_state_dict` in peft's `utils/save_and_load.py`).
pub(crate) fn replaced(name: &str) -> Arc<str> {
    let name = name.strip_prefix(ADAPTER_PREFIX).unwrap_or(name);
    match name.rsplit_once('.') {
        Some((module, part)) => match module.strip_suffix(".base_layer") {
            Some(module) => format!("{module}.{part}").into(),
            None => name.into(),
        },
        None => name.into(),
    }
}

/// A dtype as its file names it, and its meaning if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DtypeName {
    known: Option<Dtype>,
    name: Arc<str>,
}

impl std::hash::Hash for DtypeName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // The meaning follows from the name.
        self.name.hash(state);
    }
}

impl DtypeName {
    /// By the name that safetensors gives it. A name that is not known makes the tensor unreadable,
    /// not its file.
    pub fn parse(name: &str) -> Self {
        use serde::Deserialize;
        use serde::de::IntoDeserializer;
        use serde::de::value::{Error as Unknown, StrDeserializer};
        let name_in: StrDeserializer<'_, Unknown> = name.into_deserializer();
        DtypeName {
            known: Dtype::deserialize(name_in).ok(),
            name: name.into(),
        }
    }

    /// Its meaning.
    pub fn dtype(&self) -> Option<Dtype> {
        self.known
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<Dtype> for DtypeName {
    fn from(dtype: Dtype) -> Self {
        DtypeName {
            known: Some(dtype),
            name: dtype.to_string().into(),
        }
    }
}

/// The bytes a tensor of this dtype and shape has.
///
/// # Errors
/// A reason, if the product overflows, or ends within a byte (sub-byte dtypes).
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Result<u64, String> {
    let overflow = || format!("shape {shape:?} x {dtype} is more than 2^64 bits");
    let mut bits = dtype.bitsize() as u64;
    for &dim in shape {
        bits = bits.checked_mul(dim as u64).ok_or_else(overflow)?;
    }
    if !bits.is_multiple_of(8) {
        return Err(format!(
            "shape {shape:?} x {dtype} ends within a byte ({bits} bits)"
        ));
    }
    Ok(bits / 8)
}

/// [`byte_len`] of a tensor whose bytes are at hand: these are as many.
///
/// # Errors
/// As [`byte_len`]; a reason with both sides, if more or fewer were given.
pub fn given_len(dtype: Dtype, shape: &[usize], given: usize) -> Result<u64, String> {
    let expected = byte_len(dtype, shape)?;
    if expected != given as u64 {
        return Err(format!(
            "{dtype} x {shape:?} is {expected} bytes, {given} were given"
        ));
    }
    Ok(expected)
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn replacements_name_what_they_replace() {
        for (name, base_tensor) in [
            ("base_model.model.score.weight", "score.weight"),
            (
                "base_model.model.lm_head.base_layer.weight",
                "lm_head.weight",
            ),
            (
                "base_model.model.a.base_layer.b.weight",
                "a.base_layer.b.weight",
            ),
            ("base_model.model.weight", "weight"),
            ("score.bias", "score.bias"),
        ] {
            assert_eq!(&*replaced(name), base_tensor);
        }
    }
}
