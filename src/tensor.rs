//! What a tensor is, wherever it comes from: its role, its dtype by name, its length.
//!
//! What lives here: words that plans and layouts share. What does not: tables of tensors (`plan`,
//! `layout`).

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
