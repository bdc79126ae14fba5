//! Identity: what a generation is, independent of where and when it was loaded.
//!
//! What lives here: the content hash, declared revisions, cache keys. What does not: when a source
//! may skip the hash (`source`).

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::escape::Clean;
use crate::plan::Plan;

/// What a generation is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Identity {
    /// The registry read every byte: BLAKE3 over names, dtypes, shapes and contents, and, for an
    /// adapter, the resolved rank and scaling of each module. Equal on every host.
    Content([u8; 32]),
    /// The caller vouches for the contents by a revision of its own.
    Declared(Arc<str>),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Content(digest) => {
                f.write_str("blake3:")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Identity::Declared(revision) => write!(f, "declared:{}", Clean(revision)),
        }
    }
}

/// As it prints, but nothing is escaped: this is what machines compare.
impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Identity::Content(_) => to.collect_str(self),
            Identity::Declared(_) => to.serialize_str(&self.text()),
        }
    }
}

impl Identity {
    /// The exact text that stands for it in cache keys and in JSON.
    fn text(&self) -> String {
        match self {
            Identity::Content(_) => self.to_string(),
            Identity::Declared(revision) => format!("declared:{revision}"),
        }
    }
}

const CONTENT_TAG: &[u8] = b"weighbridge content v1";
const CACHE_TAG: &[u8] = b"weighbridge cache key v1";

fn hash_text(hasher: &mut blake3::Hasher, text: &str) {
    hash_number(hasher, text.len() as u64);
    hasher.update(text.as_bytes());
}

fn hash_number(hasher: &mut blake3::Hasher, number: u64) {
    hasher.update(&number.to_le_bytes());
}

/// The content identity of `plan`'s tensors as they lie in `arena`.
///
/// The format, version 1: the tag `weighbridge content v1`; the number of tensors; per tensor in
/// bytewise order of names: name, dtype name, rank, dimensions, BLAKE3 of its bytes (a tie under
/// its own name with its target's digest, so that it makes no difference whether a tied head is
/// stored or declared); for an adapter then the number of modules and per module in order of names:
/// module name, rank (u32), scaling (f64 bits). Numbers are little-endian u64 unless noted, texts
/// are preceded by their length.
///
/// # Panics
/// If `arena` is shorter than the plan says.
pub fn content_identity(plan: &Plan, arena: &[u8]) -> Identity {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTENT_TAG);
    let digests: Vec<Option<blake3::Hash>> = plan
        .tensors()
        .iter()
        .map(|tensor| {
            tensor
                .tie
                .is_none()
                .then(|| blake3::hash(&arena[tensor.range()]))
        })
        .collect();
    hash_number(&mut hasher, plan.tensors().len() as u64);
    for (index, tensor) in plan.tensors().iter().enumerate() {
        hash_text(&mut hasher, tensor.name());
        hash_text(&mut hasher, tensor.dtype().name());
        hash_number(&mut hasher, tensor.shape().len() as u64);
        for &dim in tensor.shape() {
            hash_number(&mut hasher, dim as u64);
        }
        if let Some(digest) = digests[tensor.tie.unwrap_or(index)] {
            hasher.update(digest.as_bytes());
        }
    }
    if let Some(adapter) = plan.adapter() {
        hash_number(&mut hasher, adapter.len() as u64);
        for (module, scale) in adapter.modules() {
            hash_text(&mut hasher, module);
            hasher.update(&scale.rank.to_le_bytes());
            hasher.update(&scale.scaling.to_bits().to_le_bytes());
        }
    }
    Identity::Content(*hasher.finalize().as_bytes())
}

/// A key for what was computed with a lease's weights: KV and prefix caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// Over the identities of a lease's sets, in order.
    pub(crate) fn of<'i>(identities: impl Iterator<Item = &'i Identity>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(CACHE_TAG);
        for identity in identities {
            hash_text(&mut hasher, &identity.text());
        }
        CacheKey(*hasher.finalize().as_bytes())
    }

    /// The key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheKey(")?;
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}
