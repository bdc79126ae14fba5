//! Identity: what a generation is, independent of where and when it was loaded.
//!
//! What lives here: the content hash, declared revisions, cache keys. What does not: when a source
//! may skip the hash (`source`).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use serde::{Serialize, Serializer};

use crate::escape::Clean;
use crate::layout::ModuleScale;
use crate::plan::{Plan, PlannedTensor};
use crate::tensor::Shard;

/// What a generation is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Identity {
    /// The registry read every byte: BLAKE3 over names, dtypes, shapes and contents, for an adapter the
    /// resolved rank and scaling of each module, and which part of which tensor is here, where a model
    /// is spread over devices. Equal on every host.
    ///
    /// The format, version 1: the tag `weighbridge content v1`; the number of tensors; per tensor in
    /// bytewise order of names: name, dtype name, rank, dimensions, BLAKE3 of its bytes (a tie or an
    /// alias under its own name with its target's digest, so that it makes no difference whether a
    /// tied head is stored or declared); for an adapter then the number of modules and per module in
    /// order of names: module name, rank (u32), scaling (f64 bits); if any tensor is a part of a whole
    /// then `u64::MAX`, which is no number of modules, the number of such tensors, and per tensor in
    /// order of names (a tie under its own): name, dimension, rank, world. Numbers are little-endian
    /// u64 unless noted, texts are preceded by their length.
    Content([u8; 32]),
    /// The caller vouches for the contents by a revision of its own.
    Declared(Arc<str>),
    /// The same, for a part of what the revision names: BLAKE3 over which part of which tensor.
    DeclaredPart(Arc<str>, [u8; 32]),
    /// Nobody vouches and not every byte was read (memory of a device, files that are mapped): a
    /// fingerprint of where the contents come from. It tells generations of this process apart. Equal
    /// fingerprints do not mean equal contents anywhere else, and if files are written to in spite of
    /// everything, not even here.
    Unread(Arc<str>),
}

impl Identity {
    /// What `plan` describes, by the revision that a caller vouches with.
    pub(crate) fn declared(plan: &Plan, revision: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(PART_TAG);
        let parts = plan.tensors().iter();
        if hash_shards(
            &mut hasher,
            parts.map(|tensor| (tensor.name(), tensor.shard())),
        ) {
            Identity::DeclaredPart(revision.into(), *hasher.finalize().as_bytes())
        } else {
            Identity::Declared(revision.into())
        }
    }

    /// Does an equal identity mean equal weights on another host, too?
    pub fn is_portable(&self) -> bool {
        !matches!(self, Identity::Unread(_))
    }

    /// The same, if not every byte that went into it was read.
    pub(crate) fn unread(self) -> Self {
        match self {
            Identity::Content(digest) => Identity::Unread(hex(&digest).into()),
            Identity::Declared(text) | Identity::Unread(text) => Identity::Unread(text),
            Identity::DeclaredPart(text, parts) => {
                Identity::Unread(format!("{}:{text}", hex(&parts)).into())
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Content(digest) => write!(f, "blake3:{}", hex(digest)),
            Identity::Declared(revision) => write!(f, "declared:{}", Clean(revision)),
            // The digest has a known length, so no revision can be read as revision and part.
            Identity::DeclaredPart(revision, parts) => {
                write!(f, "declared-part:{}:{}", hex(parts), Clean(revision))
            }
            Identity::Unread(fingerprint) => write!(f, "unread:{}", Clean(fingerprint)),
        }
    }
}

/// As it prints, but nothing is escaped: this is what machines compare.
impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text())
    }
}

impl Identity {
    /// The exact text that stands for it in digests, cache keys and JSON.
    fn text(&self) -> String {
        match self {
            Identity::Content(digest) => format!("blake3:{}", hex(digest)),
            Identity::Declared(revision) => format!("declared:{revision}"),
            Identity::DeclaredPart(revision, parts) => {
                format!("declared-part:{}:{revision}", hex(parts))
            }
            Identity::Unread(fingerprint) => format!("unread:{fingerprint}"),
        }
    }
}

const UNREAD_TAG: &[u8] = b"weighbridge unread v1";
const CONTENT_TAG: &[u8] = b"weighbridge content v1";
const CACHE_TAG: &[u8] = b"weighbridge cache key v1";
const PART_TAG: &[u8] = b"weighbridge part v1";
/// No number of modules.
const SHARDS: u64 = u64::MAX;

fn hash_text(hasher: &mut blake3::Hasher, text: &str) {
    hash_number(hasher, text.len() as u64);
    hasher.update(text.as_bytes());
}

fn hash_number(hasher: &mut blake3::Hasher, number: u64) {
    hasher.update(&number.to_le_bytes());
}

/// One tensor, as the content identity sees it.
pub(crate) struct Seen<'t> {
    pub(crate) name: &'t str,
    pub(crate) dtype: &'t str,
    pub(crate) shape: &'t [usize],
    pub(crate) shard: Option<Shard>,
    pub(crate) digest: Digest,
}

/// BLAKE3 of a tensor's bytes.
pub(crate) type Digest = [u8; 32];

/// The digest of one tensor's bytes.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// Hashes which part of which tensor is here, if any is a part.
fn hash_shards<'t>(
    hasher: &mut blake3::Hasher,
    tensors: impl Iterator<Item = (&'t str, Option<Shard>)>,
) -> bool {
    let parts: Vec<(&str, Shard)> = tensors
        .filter_map(|(name, shard)| Some((name, shard?)))
        .collect();
    if parts.is_empty() {
        return false;
    }
    hash_number(hasher, SHARDS);
    hash_number(hasher, parts.len() as u64);
    for (name, shard) in parts {
        hash_text(hasher, name);
        for number in [shard.dim, shard.rank, shard.world] {
            hash_number(hasher, u64::from(number));
        }
    }
    true
}

/// What stands for the digest of a tensor that is not read: what its set is, and its name there.
pub(crate) fn digest_unread(set: &Identity, tensor: &str) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(UNREAD_TAG);
    hash_text(&mut hasher, &set.text());
    hash_text(&mut hasher, tensor);
    *hasher.finalize().as_bytes()
}

/// A fingerprint that nothing else has.
pub(crate) fn unique() -> Arc<str> {
    format!("memory:{}", hex(&random())).into()
}

fn random() -> [u8; 16] {
    // Each has keys of its own, from the system's generator.
    let [high, low] = [(), ()].map(|()| RandomState::new().hash_one(UNREAD_TAG));
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// What this process has and no other.
fn process() -> &'static [u8; 16] {
    static PROCESS: OnceLock<[u8; 16]> = OnceLock::new();
    PROCESS.get_or_init(random)
}

/// The digests of `plan`'s tensors as they lie in `arena`, in the plan's order; a tie has its
/// target's.
///
/// # Panics
/// If `arena` is shorter than the plan says.
pub(crate) fn digests(plan: &Plan, arena: &[u8]) -> Vec<Digest> {
    let own = |tensor: &PlannedTensor| match tensor.tie {
        None => digest(&arena[tensor.range()]),
        Some(_) => Digest::default(),
    };
    let mut digests: Vec<Digest> = plan.tensors().iter().map(own).collect();
    for (index, tensor) in plan.tensors().iter().enumerate() {
        if let Some(target) = tensor.tie {
            digests[index] = digests[target];
        }
    }
    digests
}

/// The content identity of a set's tensors, in bytewise order of names, and an adapter's modules.
/// The format is written down at [`Identity::Content`].
pub(crate) fn identity_of<'t>(
    tensors: &[Seen<'t>],
    modules: Option<impl ExactSizeIterator<Item = (&'t str, ModuleScale)>>,
) -> Identity {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTENT_TAG);
    hash_number(&mut hasher, tensors.len() as u64);
    for tensor in tensors {
        hash_text(&mut hasher, tensor.name);
        hash_text(&mut hasher, tensor.dtype);
        hash_number(&mut hasher, tensor.shape.len() as u64);
        for &dim in tensor.shape {
            hash_number(&mut hasher, dim as u64);
        }
        hasher.update(&tensor.digest);
    }
    if let Some(modules) = modules {
        hash_number(&mut hasher, modules.len() as u64);
        for (module, scale) in modules {
            hash_text(&mut hasher, module);
            hasher.update(&scale.rank.to_le_bytes());
            hasher.update(&scale.scaling.to_bits().to_le_bytes());
        }
    }
    let parts = tensors.iter().map(|tensor| (tensor.name, tensor.shard));
    hash_shards(&mut hasher, parts);
    Identity::Content(*hasher.finalize().as_bytes())
}

/// The content identity of `plan`'s tensors as they lie in `arena`: the format is that of version 1,
/// as it is written down at [`Identity::Content`].
///
/// # Panics
/// If `arena` is shorter than the plan says.
pub fn content_identity(plan: &Plan, arena: &[u8]) -> Identity {
    identity_by(plan, digests(plan, arena))
}

/// [`content_identity`], by the [digests] of the plan's tensors.
pub(crate) fn identity_by(plan: &Plan, digests: Vec<Digest>) -> Identity {
    let seen = plan.tensors().iter().zip(digests);
    let seen = seen.map(|(tensor, digest)| Seen {
        name: tensor.name(),
        dtype: tensor.dtype().name(),
        shape: tensor.shape(),
        shard: tensor.shard(),
        digest,
    });
    let seen: Vec<Seen<'_>> = seen.collect();
    identity_of(&seen, plan.adapter().map(|adapter| adapter.modules()))
}

/// The identity of a set that is vouched for (`declared`) and has aliases into sets that are not: the
/// caller's revision, and what the aliases are.
pub(crate) fn declared_with_aliases(declared: &Identity, aliases: &[Seen<'_>]) -> Identity {
    let none: Option<std::iter::Empty<(&str, ModuleScale)>> = None;
    let with =
        |revision: &str| format!("{revision}+aliases:{}", identity_of(aliases, none).text()).into();
    match declared {
        Identity::Declared(revision) => Identity::Declared(with(revision)),
        Identity::DeclaredPart(revision, parts) => Identity::DeclaredPart(with(revision), *parts),
        Identity::Unread(fingerprint) => Identity::Unread(with(fingerprint)),
        // The registry read it.
        Identity::Content(_) => declared.clone(),
    }
}

/// A key for what was computed with a lease's weights: KV and prefix caches.
///
/// If one of the identities is not [portable](Identity::is_portable), no other process has an equal
/// key, so that a cache that is shared between hosts cannot mix what was computed with other bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// Over the identities of a lease's sets, in order.
    pub(crate) fn of<'i>(identities: impl Iterator<Item = &'i Identity>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(CACHE_TAG);
        for identity in identities {
            hash_text(&mut hasher, &identity.text());
            if !identity.is_portable() {
                hasher.update(process());
            }
        }
        CacheKey(*hasher.finalize().as_bytes())
    }

    /// The key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The whole key, in lower-case hexadecimal.
impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheKey(")?;
        f.write_str(&hex(&self.0[..8]))?;
        f.write_str("…)")
    }
}
