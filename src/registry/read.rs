//! The reading side: acquiring leases, scopes, readers.
//!
//! What lives here: the three ways in ([`Scope`], [`Reader`], methods of the registry) and the
//! pairing rule for adapters. What does not: the snapshot itself (`core::view`), what a lease can
//! do (`lease`).

use super::generation::{Holds, Meta, Node, View, generation};
use super::lease::Lease;
use super::{WeightRegistry, here};
use crate::core::{Key, Miss};
use crate::error::Error;
use crate::handle::{Generation, SetHandle, SetKind, WeightHandle};
use crate::identity::Identity;
use crate::layout::Layout;
use crate::names::SetName;
use crate::sync::epoch::Participant;

impl AsRef<[SetHandle]> for SetHandle {
    fn as_ref(&self) -> &[SetHandle] {
        std::slice::from_ref(self)
    }
}

/// Is there no code that runs when it is dropped?
#[inline(always)]
fn has_no_end<T>(_: &T) -> bool {
    !std::mem::needs_drop::<T>()
}

/// The core's name for a set whose registry was checked.
#[inline]
fn unchecked(set: SetHandle) -> Key {
    Key {
        slot: set.slot,
        tag: set.tag,
    }
}

impl WeightRegistry {
    pub(super) fn key(&self, set: SetHandle) -> Result<Key, Error> {
        if set.registry == self.id {
            Ok(Key {
                slot: set.slot,
                tag: set.tag,
            })
        } else {
            Err(Error::WrongRegistry {
                handle: set,
                registry: self.id,
            })
        }
    }

    /// All of this registry?
    #[inline]
    fn check(&self, sets: &[SetHandle]) -> Result<(), Error> {
        match sets.iter().find(|set| set.registry != self.id) {
            None => Ok(()),
            Some(&handle) => Err(Error::WrongRegistry {
                handle,
                registry: self.id,
            }),
        }
    }

    /// Out of line: it is many instructions, and not all who want a view are in a hurry.
    #[inline(never)]
    pub(super) fn view(&self) -> View<'_> {
        here::view(self.id, &self.alive, &self.spine)
    }

    /// Leases one generation of each of `sets`, all current at one instant. Bytes can be read
    /// through the lease until it is dropped. A set that is named twice is leased twice: both count, in
    /// [`Retirement::leases`](super::Retirement::leases) for example, until the lease is dropped.
    ///
    /// Progress: lock-free. It retries only when a commit changed one of these very sets meanwhile;
    /// a writer that stops in the middle of a commit makes it see the old, never wait. For up to two
    /// sets it allocates nothing itself; a thread's first call registers it, and while writers are
    /// about, every 128th pin of a thread lets the epoch collector tidy up (a few words per
    /// superseded generation, never their bytes or metadata).
    ///
    /// # Errors
    /// [`Error::WrongRegistry`]; [`Error::StaleHandle`] if a set was retired; [`Error::NotResident`] if
    /// one has no bytes now (it was [evicted](Self::evict), or a
    /// [`replace_drained`](Self::replace_drained) is under way, or failed);
    /// [`Error::WrongBase`] if an adapter is leased together with other bases than its own.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
    ///
    /// let registry = WeightRegistry::builder().limit_bytes(1 << 20).build()?;
    /// let bytes = 1.0f32.to_le_bytes();
    /// let set = registry.publish("one", InMemory::new().tensor("w", Dtype::F32, [1], bytes)?)?;
    /// let w = registry.weight_handle(set, "w")?;
    ///
    /// let lease = registry.acquire(set)?;
    /// assert_eq!(lease.weight(w)?.bytes(), bytes);
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    #[inline]
    pub fn acquire(&self, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        let answer = {
            // The caller's code, before anything is pinned: it may publish what it then names.
            let list = sets.as_ref();
            let mut view = here::view(self.id, &self.alive, &self.spine);
            if has_no_end(&sets) {
                // Made where it is returned.
                return self.lease_from(&mut view, list);
            }
            self.lease_from(&mut view, list)
        };
        // A destructor of the caller's: if it panics, the lease ends. One that is being returned would
        // be lost.
        drop(sets);
        answer
    }

    /// [`acquire`](Self::acquire) with a name that a wait for these generations can report. Costs
    /// one clock read and a few shared writes more.
    ///
    /// Labels longer than 96 bytes are cut. When too many leases are labelled at once (65,472) the
    /// lease is granted without its label, and [`Stats::unlabelled`](super::Stats) counts it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_as(&self, label: &str, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        Ok(self.acquire(sets)?.labelled(label))
    }

    #[inline(always)]
    pub(super) fn lease_from(
        &self,
        view: &mut View<'_>,
        sets: &[SetHandle],
    ) -> Result<Lease, Error> {
        self.check(sets)?;
        if let [one] = sets {
            // Nearly always at the first attempt, and then neither hold nor view leave the registers.
            return match view.acquire_one_here(unchecked(*one)) {
                Ok(hold) => Ok(Lease::new(Holds::One(hold), view.number())),
                Err(Miss::Superseded { .. }) => self.lease_later(*one),
                Err(miss) => self.refuse(miss, sets),
            };
        }
        let holds = view
            .acquire_each(sets.len(), |index| unchecked(sets[index]))
            .map_err(|miss| self.explain(miss, sets))?;
        check_pairs(view, &holds)?;
        Ok(Lease::new(holds, view.number()))
    }

    /// A commit came first: on, by a newer view.
    #[cold]
    fn lease_later(&self, set: SetHandle) -> Result<Lease, Error> {
        let mut view = self.view();
        match view.acquire_one(unchecked(set)) {
            Ok(hold) => Ok(Lease::new(Holds::One(hold), view.number())),
            Err(miss) => self.refuse(miss, &[set]),
        }
    }

    /// Would these be leased together if they were there? Asked before anything is loaded for it.
    pub(super) fn check_pairing(&self, sets: &[SetHandle]) -> Result<(), Error> {
        let view = self.view();
        let metas: Vec<&Meta> = sets
            .iter()
            .filter_map(|&set| view.resolve(self.key(set).ok()?)?.meta())
            .collect();
        check_each(&view, || metas.iter().copied())
    }

    /// Makes the whole answer, so that nothing of it is in the way of the other one.
    #[cold]
    fn refuse(&self, miss: Miss, sets: &[SetHandle]) -> Result<Lease, Error> {
        Err(self.explain(miss, sets))
    }

    #[cold]
    fn explain(&self, miss: Miss, sets: &[SetHandle]) -> Error {
        match miss {
            Miss::Absent { index } => Error::StaleHandle {
                handle: sets[index],
            },
            Miss::NotResident { index } => Error::NotResident {
                handle: sets[index],
            },
            Miss::Superseded { index } => Error::Superseded {
                handle: sets[index],
            },
        }
    }

    /// Resolves a tensor's name once. The handle stays good over every later swap of the set.
    ///
    /// Progress: lock-free, as [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// [`Error::WrongRegistry`], [`Error::StaleHandle`]; [`Error::NoSuchTensor`] if the current
    /// generation lacks the tensor.
    pub fn weight_handle(&self, set: SetHandle, tensor: &str) -> Result<WeightHandle, Error> {
        let view = self.view();
        let node = view
            .resolve(self.key(set)?)
            .ok_or(Error::StaleHandle { handle: set })?;
        weight_handle(node, tensor)
    }

    /// A set's handle by name: `registry.lookup("llama")`, or with a namespace
    /// `registry.lookup(("tenant-7", "llama"))`.
    ///
    /// Progress: wait-free: it takes no lock, writes nothing, pins nothing and allocates nothing. A handle that a
    /// retire overtakes resolves to [`Error::StaleHandle`], never to another set.
    #[inline]
    pub fn lookup<'n>(&self, name: impl Into<crate::names::NameRef<'n>>) -> Option<SetHandle> {
        let packed = self.names.lookup(name.into())?;
        Some(SetHandle::unpacked(self.id, packed))
    }

    /// Runs `f` with a view of the whole registry as of one commit. Under it, resolving any number
    /// of handles costs an array access each; bytes need a lease.
    ///
    /// Keep it short: while a scope is open, superseded metadata (never bytes) is kept.
    #[inline]
    pub fn scope<R>(&self, f: impl FnOnce(&mut Scope<'_>) -> R) -> R {
        let mut own = None;
        let view = here::lasting_view(self.id, &self.alive, &self.spine, &mut own);
        f(&mut Scope {
            registry: self,
            view,
        })
    }

    /// Registers the calling thread for repeated use: cheaper than the registry's own methods,
    /// which look the registration up each time.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            registry: self,
            participant: self.spine.register(),
        }
    }
}

fn weight_handle(node: &Node, tensor: &str) -> Result<WeightHandle, Error> {
    let Some(meta) = node.meta() else {
        unreachable!("views resolve no tombstones")
    };
    match meta.facts.layout.ordinal(tensor) {
        Some(ordinal) => Ok(meta.handle.weight(ordinal)),
        None => Err(Error::NoSuchTensor {
            set: meta.record.name.clone(),
            generation: generation(node),
            tensor: tensor.to_owned(),
        }),
    }
}

/// An adapter answers for its own base only. A lease of adapters alone is allowed; as soon as it
/// holds checkpoints, each adapter's base must be among them.
#[inline]
fn check_pairs(view: &View<'_>, holds: &Holds) -> Result<(), Error> {
    if holds.len() < 2 {
        return Ok(());
    }
    check_each(view, || holds.iter().map(|hold| hold.meta()))
}

#[inline]
fn check_each<'m, I: Iterator<Item = &'m Meta>>(
    view: &View<'_>,
    metas: impl Fn() -> I,
) -> Result<(), Error> {
    let checkpoints = || metas().filter(|m| m.facts.base.is_none());
    for meta in metas() {
        let Some(base) = meta.facts.base else {
            continue;
        };
        if checkpoints().next().is_some() && !checkpoints().any(|m| m.handle == base) {
            return Err(wrong_base(view, meta, base, checkpoints().next()));
        }
    }
    Ok(())
}

#[cold]
fn wrong_base(
    view: &View<'_>,
    adapter: &Meta,
    bound_to: SetHandle,
    leased: Option<&Meta>,
) -> Error {
    let base = view.resolve(unchecked(bound_to)).and_then(Node::meta);
    Error::WrongBase {
        adapter: adapter.record.name.clone(),
        bound_to,
        base: base.map(|base| base.record.name.clone()),
        leased: leased.map(|meta| meta.record.name.clone()),
    }
}

/// A thread's registration with the registry. Long-lived; stays on its thread.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let set = registry.publish("demo", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
///
/// let reader = registry.reader(); // once per thread
/// for _request in 0..3 {
///     let lease = reader.acquire(set)?;
///     assert_eq!(lease.set(set)?.get("w")?.bytes(), [7]);
/// }
/// # Ok::<(), weighbridge::Error>(())
/// ```
/// It stays where it is:
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<weighbridge::Reader<'static>>();
/// ```
/// The twin that compiles, so that the one above fails for the right reason:
/// ```
/// fn send<T: Send>() {}
/// send::<weighbridge::Lease>();
/// ```
pub struct Reader<'r> {
    registry: &'r WeightRegistry,
    participant: Participant,
}

impl Reader<'_> {
    /// As [`WeightRegistry::acquire`], without the look-up of the registration.
    ///
    /// # Errors
    /// As [`WeightRegistry::acquire`].
    #[inline]
    pub fn acquire(&self, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        let answer = {
            let list = sets.as_ref();
            let mut view = self.registry.spine.view(&self.participant);
            if has_no_end(&sets) {
                return self.registry.lease_from(&mut view, list);
            }
            self.registry.lease_from(&mut view, list)
        };
        drop(sets); // As in `WeightRegistry::acquire`.
        answer
    }

    /// As [`WeightRegistry::acquire_as`].
    ///
    /// # Errors
    /// As [`WeightRegistry::acquire`].
    pub fn acquire_as(&self, label: &str, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        Ok(self.acquire(sets)?.labelled(label))
    }

    /// Opens a scope.
    #[inline]
    pub fn scope(&self) -> Scope<'_> {
        Scope {
            registry: self.registry,
            view: self.registry.spine.view(&self.participant),
        }
    }
}

/// The whole registry as of one commit: a pinned guard. One sees metadata, never bytes.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [1], [byte]);
/// let sets = [registry.publish("a", version(1)?)?, registry.publish("b", version(2)?)?];
///
/// registry.scope(|scope| {
///     let mut tensors = 0;
///     for set in sets {
///         tensors += scope.get(set)?.layout().len(); // an array access; metadata
///     }
///     assert_eq!(tensors, 2);
///     let lease = scope.acquire(sets)?; // as of the same commit
///     assert_eq!(lease.number(), scope.number());
///     Ok::<(), weighbridge::Error>(())
/// })?;
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct Scope<'r> {
    registry: &'r WeightRegistry,
    view: View<'r>,
}

impl Scope<'_> {
    /// The commit this scope reads at.
    pub fn number(&self) -> Generation {
        Generation(self.view.number())
    }

    /// The generation of `set` that is current at this scope's commit. Wait-free.
    ///
    /// # Errors
    /// [`Error::WrongRegistry`], [`Error::StaleHandle`].
    #[inline]
    pub fn get(&self, set: SetHandle) -> Result<SetView<'_>, Error> {
        let key = self.registry.key(set)?;
        match self.view.resolve(key) {
            Some(node) => Ok(SetView { node }),
            None => Err(Error::StaleHandle { handle: set }),
        }
    }

    /// Leases `sets` as of exactly this scope's commit.
    ///
    /// # Errors
    /// [`Error::Superseded`] if one of them was replaced or retired since: call
    /// [`refresh`](Self::refresh) and resolve again. Otherwise as [`WeightRegistry::acquire`].
    pub fn acquire(&self, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        let lease = {
            let sets = sets.as_ref();
            self.registry.check(sets)?;
            let holds = self
                .view
                .acquire_here(sets.len(), |index| unchecked(sets[index]))
                .map_err(|miss| self.registry.explain(miss, sets))?;
            check_pairs(&self.view, &holds)?;
            Lease::new(holds, self.view.number())
        };
        drop(sets); // As in `WeightRegistry::acquire`.
        Ok(lease)
    }

    /// Moves the scope to the newest commit.
    pub fn refresh(&mut self) {
        self.view.refresh();
    }
}

/// A generation's metadata, seen through a scope.
#[derive(Clone, Copy)]
pub struct SetView<'a> {
    node: &'a Node,
}

impl<'a> SetView<'a> {
    #[inline]
    fn meta(&self) -> &'a Meta {
        match self.node.meta() {
            Some(meta) => meta,
            None => unreachable!("views resolve no tombstones"),
        }
    }

    /// The set's handle.
    #[inline]
    pub fn handle(&self) -> SetHandle {
        self.meta().handle
    }

    /// The set's name.
    pub fn name(&self) -> &'a SetName {
        &self.meta().record.name
    }

    /// Checkpoint or adapter.
    pub fn kind(&self) -> SetKind {
        self.meta().kind
    }

    /// The generation.
    #[inline]
    pub fn generation(&self) -> Generation {
        generation(self.node)
    }

    /// What it is.
    pub fn identity(&self) -> &'a Identity {
        &self.meta().facts.identity
    }

    /// The table of its tensors.
    pub fn layout(&self) -> &'a Layout {
        &self.meta().facts.layout
    }

    /// Bytes that the ledger is charged for it while it is [resident](Self::is_resident); zero if its
    /// bytes went for good.
    pub fn bytes(&self) -> u64 {
        self.meta().bytes
    }

    /// Can it be leased at this moment? Not while it is [evicted](WeightRegistry::evict), and not while, or
    /// after, a [`replace_drained`](WeightRegistry::replace_drained) has taken its bytes and the next
    /// generation has not come. This is not of the scope's instant: it may change while one looks.
    pub fn is_resident(&self) -> bool {
        !self.node.is_absent()
    }

    /// The base an adapter is bound to.
    pub fn base(&self) -> Option<SetHandle> {
        self.meta().facts.base
    }

    /// The modules of an adapter whose features were not known in the base that it was bound to: they
    /// were not checked. None for a checkpoint.
    pub fn unchecked_modules(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.meta().unchecked_modules()
    }

    /// Leases of this generation right now.
    pub fn leases(&self) -> u64 {
        self.node.vitals().state().holds()
    }

    /// A tensor's handle.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn weight_handle(&self, tensor: &str) -> Result<WeightHandle, Error> {
        weight_handle(self.node, tensor)
    }
}

impl std::fmt::Debug for SetView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetView")
            .field("name", self.name())
            .field("generation", &self.generation())
            .field("kind", &self.kind())
            .finish()
    }
}
