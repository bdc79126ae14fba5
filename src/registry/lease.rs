//! Leases: the hold on the bytes of one generation of each of their sets, and reading through them.
//!
//! What lives here: [`Lease`], [`LeasedSet`], [`Weight`]. What does not: an adapter's modules
//! (`adapter`), taking a lease (`read`), the count itself (`core`).

use std::fmt;
use std::ptr::NonNull;

use super::content::Facts;
use super::entries::Entries;
use super::face::Face;
use super::generation::{Hold, Holds, Meta, generation};
use crate::Dtype;
use crate::error::Error;
use crate::handle::{Generation, SetHandle, SetKind, WeightHandle};
use crate::identity::{CacheKey, Identity};
use crate::layout::{Layout, TensorInfo};
use crate::names::SetName;
use crate::tensor::WeightKind;

/// A hold on the bytes of one generation of each of its sets, all current at one instant.
///
/// Take one lease per request and keep it from prefill to the last token: the KV cache of that
/// request was computed with these weights. While it lives, the bytes stay where they are and what
/// they are, whatever is published, replaced or retired. It is released exactly once, when it is
/// dropped, on every path: return, `?`, panic, a cancelled future. Where a device still reads the
/// bytes then, give it away with [`release_after`](Lease::release_after) instead.
///
/// `Send + Sync + Clone + 'static`, holds no lock, may outlive the registry.
///
/// Progress: `clone` and `drop` are wait-free, except that the drop of the last lease of a retired
/// generation hands the bytes to the reclaimer (lock-free); it frees nothing itself unless the
/// registry is gone. If the lease is labelled, both are lock-free.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [2], [byte; 2]);
/// let base = registry.publish("base", version(1)?)?;
/// let head = registry.publish("head", version(1)?)?;
/// let w = registry.weight_handle(base, "w")?;
///
/// let lease = registry.acquire([base, head])?; // both as of one instant
/// registry.replace(base, version(2)?)?;
/// assert_eq!(lease.weight(w)?.bytes(), [1, 1]); // what it was
/// assert!(lease.is_superseded()); // a newer one is there
///
/// let elsewhere = lease.clone(); // counts by itself, and may go to any thread
/// let length = std::thread::spawn(move || elsewhere.weight(w).map(|w| w.bytes().len()));
/// assert_eq!(length.join().unwrap()?, 2);
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct Lease {
    /// The face of the first hold's generation: a read looks no further.
    first: First,
    pub(super) holds: Holds,
    number: u64,
    pub(super) labels: Entries,
}

/// Where the face of a lease's first hold is, as long as the holds are there; of none, if there is none.
struct First(NonNull<Face>);

// SAFETY: it is used as a `&Face`, which is Sync.
unsafe impl Send for First {}
// SAFETY: as above.
unsafe impl Sync for First {}

impl First {
    #[inline]
    fn of(holds: &Holds) -> Self {
        First(NonNull::from(match holds {
            Holds::One(hold) => &hold.meta().face,
            Holds::Two(_) | Holds::Many(_) => Self::of_many(holds),
        }))
    }

    #[inline(never)]
    fn of_many(holds: &Holds) -> &Face {
        holds
            .first()
            .map_or_else(|| Face::of_none(), |hold| &hold.meta().face)
    }
}

impl Lease {
    #[inline]
    pub(super) fn new(holds: Holds, number: u64) -> Self {
        Lease {
            first: First::of(&holds),
            holds,
            number,
            labels: Entries::NONE,
        }
    }

    /// Enters every generation of this lease under `label` in the slab, in place of a label that it had.
    pub(super) fn labelled(mut self, label: &str) -> Self {
        self.leave_labels();
        // If what follows panics, they have been left.
        self.labels = Entries::NONE;
        self.labels = self
            .holds
            .iter()
            .map(|hold| {
                hold.meta()
                    .shared
                    .label(label, hold.meta().handle.slot, hold.node().birth())
            })
            .collect();
        self
    }

    /// The handles of its sets.
    pub(super) fn handles(&self) -> impl Iterator<Item = SetHandle> + '_ {
        self.holds.iter().map(|hold| hold.meta().handle)
    }

    /// Of these sets, this lease was no use that a policy should know of.
    pub(super) fn unmark(&self, sets: &[SetHandle]) {
        for hold in self.holds.iter() {
            if sets.contains(&hold.meta().handle) {
                hold.node().vitals().state().clear_visited();
            }
        }
    }

    #[cold]
    fn leave_labels(&mut self) {
        for (hold, label) in self.holds.iter().zip(self.labels.iter()) {
            if let Some(label) = label {
                hold.meta().shared.labels.release(*label);
            }
        }
    }

    #[inline]
    fn hold(&self, set: SetHandle) -> Result<&Hold, Error> {
        match self.holds.iter().find(|hold| hold.meta().handle == set) {
            Some(hold) => Ok(hold),
            None => Err(self.not_leased(set)),
        }
    }

    #[cold]
    fn not_leased(&self, set: SetHandle) -> Error {
        Error::NotInLease {
            set,
            leased: self.sets().map(|set| set.handle()).collect(),
        }
    }

    /// One tensor. An array access: no lock, no atomic write, no name.
    ///
    /// # Errors
    /// [`Error::NotInLease`] if the handle's set is not part of this lease, [`Error::NoSuchTensor`]
    /// if the leased generation lacks the tensor, [`Error::UnreadableTensor`] if its dtype is not
    /// known, [`Error::NotHostReadable`] if it is in memory of a device: see
    /// [`place`](Self::place). Progress: wait-free, errors included (those allocate their texts).
    #[inline]
    pub fn weight(&self, weight: WeightHandle) -> Result<Weight<'_>, Error> {
        // SAFETY: our hold keeps the bytes until we are dropped (E4), and the answer borrows from us.
        match unsafe { self.face().weight(weight) } {
            Some(found) => Ok(found),
            None => self.weight_elsewhere(weight),
        }
    }

    /// The face of its first set.
    #[inline(always)]
    pub(super) fn face(&self) -> &Face {
        // SAFETY: it is the face of a hold that we have until we are dropped, which keeps the node (E6), or
        // it is static.
        unsafe { self.first.0.as_ref() }
    }

    /// One that the first set's face does not show: of the others (an adapter's, beside its base), or
    /// what has to be looked for.
    #[inline(never)]
    fn weight_elsewhere(&self, weight: WeightHandle) -> Result<Weight<'_>, Error> {
        for hold in self.holds.iter().skip(1) {
            // SAFETY: we have the hold until we are dropped, and it keeps node and bytes (E4, E6).
            if let Some(found) = unsafe { hold.meta().face.weight(weight) } {
                return Ok(found);
            }
        }
        self.set(weight.set())?.weight_by_layout(weight.ordinal())
    }

    /// One of the leased sets.
    ///
    /// # Errors
    /// [`Error::NotInLease`].
    #[inline]
    pub fn set(&self, set: SetHandle) -> Result<LeasedSet<'_>, Error> {
        Ok(LeasedSet {
            hold: self.hold(set)?,
        })
    }

    /// The leased sets, in the order in which they were asked for.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = LeasedSet<'_>> {
        self.holds.iter().map(|hold| LeasedSet { hold })
    }

    /// The commit as of which all sets of this lease were current together.
    pub fn number(&self) -> Generation {
        Generation(self.number)
    }

    /// A key for KV and prefix caches: the identities of all sets of this lease, in order. Equal
    /// keys mean equal weights, also on another host: if an identity is not
    /// [portable](Identity::is_portable), no other process has the key.
    ///
    /// It is about what the lease holds and nothing else: lease an adapter together with its base, or
    /// the key does not tell on which base it was used. The same sets in another order have another
    /// key: a cache that is shared wants them in one order. Numbers and names play no part: bytes
    /// that are published again, or under another name, have the same key, and so have sets that were
    /// declared with one revision.
    pub fn cache_key(&self) -> CacheKey {
        CacheKey::of(self.holds.iter().map(|hold| &hold.meta().facts.identity))
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        let labels = self
            .holds
            .iter()
            .zip(self.labels.iter())
            .map(|(hold, label)| label.and_then(|label| hold.meta().shared.label_again(label)))
            .collect();
        let holds = self.holds.clone();
        Lease {
            first: First::of(&holds),
            holds,
            number: self.number,
            labels,
        }
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if !self.labels.are_none() {
            // Before the holds: a label never outlives what it names.
            self.leave_labels();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("number", &self.number)
            .field("sets", &self.sets().collect::<Vec<_>>())
            .finish()
    }
}

/// One set of a lease.
#[derive(Clone, Copy)]
pub struct LeasedSet<'l> {
    pub(super) hold: &'l Hold,
}

impl<'l> LeasedSet<'l> {
    #[inline]
    pub(super) fn meta(&self) -> &'l Meta {
        self.hold.meta()
    }

    /// The set's handle.
    pub fn handle(&self) -> SetHandle {
        self.meta().handle
    }

    /// The set's name.
    pub fn name(&self) -> &'l SetName {
        &self.meta().record.name
    }

    /// Checkpoint or adapter.
    pub fn kind(&self) -> SetKind {
        self.meta().kind
    }

    /// The leased generation.
    pub fn generation(&self) -> Generation {
        generation(self.hold.node())
    }

    /// What the leased generation is.
    pub fn identity(&self) -> &'l Identity {
        &self.meta().facts.identity
    }

    /// The table of its tensors.
    pub fn layout(&self) -> &'l Layout {
        &self.meta().facts.layout
    }

    /// Bytes that the ledger is charged for it.
    pub fn bytes(&self) -> u64 {
        self.meta().bytes
    }

    /// The base an adapter is bound to.
    pub fn base(&self) -> Option<SetHandle> {
        self.meta().facts.base
    }

    #[inline]
    pub(super) fn weight(&self, ordinal: u32) -> Result<Weight<'l>, Error> {
        // SAFETY: the hold keeps node and bytes (E4, E6).
        match unsafe { self.meta().face.at(ordinal.into()) } {
            Some(found) => Ok(found),
            None => self.weight_by_layout(ordinal),
        }
    }

    /// One that the face does not show. Of other sets for example: it is no error to come here.
    #[inline(never)]
    fn weight_by_layout(&self, ordinal: u32) -> Result<Weight<'l>, Error> {
        let meta = self.meta();
        let layout = &*meta.facts.layout;
        let Some(info) = layout.tensor(ordinal) else {
            return Err(self.no_such_tensor(meta.record.tensor_name(ordinal)));
        };
        let (Some(_), Some(place)) = (info.dtype(), meta.facts.extents.place(ordinal)) else {
            return Err(self.unreadable(info));
        };
        match self.hold.storage().get(place, info.byte_len() as usize) {
            Some(bytes) => Ok(Weight::new(layout, ordinal, bytes)),
            None => self.beyond_the_host(ordinal, info),
        }
    }

    /// What the host has of a tensor that it cannot read: nothing of nothing, wherever that is.
    #[cold]
    fn beyond_the_host(&self, ordinal: u32, info: &TensorInfo) -> Result<Weight<'l>, Error> {
        if let Some(in_part) = self.in_part(info) {
            return Err(in_part);
        }
        if info.byte_len() == 0 {
            return Ok(Weight::new(self.layout(), ordinal, &[]));
        }
        Err(Error::NotHostReadable {
            set: self.name().clone(),
            tensor: info.name().to_owned(),
        })
    }

    /// A tensor of a part is there only through a stream.
    #[cold]
    pub(super) fn in_part(&self, info: &TensorInfo) -> Option<Error> {
        let Facts {
            layout,
            extents,
            parts,
            ..
        } = &self.meta().facts;
        let (part, _) = extents.in_part(layout.ordinal(info.name())?)?;
        let part = parts.as_ref()?.planned.all().get(part as usize)?;
        Some(Error::InPart {
            set: self.name().clone(),
            tensor: info.name().to_owned(),
            part: part.name().to_owned(),
        })
    }

    #[cold]
    pub(super) fn no_such_tensor(&self, tensor: String) -> Error {
        Error::NoSuchTensor {
            set: self.name().clone(),
            generation: self.generation(),
            tensor,
        }
    }

    #[cold]
    fn unreadable(&self, info: &TensorInfo) -> Error {
        Error::UnreadableTensor {
            set: self.name().clone(),
            tensor: info.name().to_owned(),
            dtype: info.dtype_name().to_owned(),
        }
    }

    /// A tensor by name. Prefer [`Lease::weight`] with a handle that was resolved once.
    ///
    /// # Errors
    /// As [`Lease::weight`].
    pub fn get(&self, tensor: &str) -> Result<Weight<'l>, Error> {
        match self.meta().facts.layout.ordinal(tensor) {
            Some(ordinal) => self.weight(ordinal),
            None => Err(self.no_such_tensor(tensor.to_owned())),
        }
    }

    /// All tensors of this generation by ordinal, readable or not.
    pub fn iter(&self) -> impl Iterator<Item = Result<Weight<'l>, Error>> + use<'l> {
        let this = *self;
        // Not all ordinals: a set keeps those of tensors that only earlier generations had.
        let tensors = this.meta().facts.layout.tensors();
        tensors.map(move |(ordinal, _)| this.weight(ordinal))
    }
}

impl fmt::Debug for LeasedSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedSet")
            .field("name", self.name())
            .field("generation", &self.generation())
            .field("kind", &self.kind())
            .finish()
    }
}

/// One tensor, readable while its lease lives.
#[derive(Clone, Copy)]
pub struct Weight<'l> {
    layout: &'l Layout,
    /// Of a tensor that the layout has, and whose dtype is known.
    ordinal: u32,
    bytes: &'l [u8],
}

impl<'l> Weight<'l> {
    /// Of a tensor that the layout has, and whose dtype is known. What else there is to say of it is
    /// looked up when somebody asks.
    #[inline(always)]
    pub(super) fn new(layout: &'l Layout, ordinal: u32, bytes: &'l [u8]) -> Self {
        Weight {
            layout,
            ordinal,
            bytes,
        }
    }

    /// The tensor's name.
    pub fn name(&self) -> &'l str {
        self.info().name()
    }

    /// Its dtype, named as in safetensors.
    pub fn dtype(&self) -> Dtype {
        match self.info().dtype() {
            Some(dtype) => dtype,
            // Only rows of known dtype are read (`Row::of`), and the long way asks.
            None => unreachable!("a tensor of unknown dtype was read"),
        }
    }

    /// Its shape; empty for a scalar.
    pub fn shape(&self) -> &'l [usize] {
        self.info().shape()
    }

    /// Its bytes: row-major, little-endian, starting at a multiple of 64. Memory that the set's source
    /// brought ([`Foreign`](crate::source::Foreign), mapped files) has its own alignment, or none.
    #[inline]
    pub fn bytes(&self) -> &'l [u8] {
        self.bytes
    }

    /// What part it plays in its set.
    pub fn kind(&self) -> WeightKind {
        self.info().kind()
    }

    /// The table entry.
    pub fn info(&self) -> &'l TensorInfo {
        match self.layout.tensor(self.ordinal) {
            Some(info) => info,
            // A row that is somewhere is of a tensor of its layout (`Extents::of`), and the long way asks.
            None => unreachable!("a tensor that the layout lacks was read"),
        }
    }
}

impl fmt::Debug for Weight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weight")
            .field("name", &self.name())
            .field("dtype", &self.dtype())
            .field("shape", &self.shape())
            .finish_non_exhaustive()
    }
}

/// Lets `safetensors::serialize` write tensors straight out of a lease.
impl safetensors::View for Weight<'_> {
    fn dtype(&self) -> Dtype {
        Weight::dtype(self)
    }

    fn shape(&self) -> &[usize] {
        Weight::shape(self)
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
