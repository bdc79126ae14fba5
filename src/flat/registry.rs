//! The writing side: registering, tying, unregistering.
//!
//! What lives here: [`FlatRegistry`] and everything that changes it. What does not: reading it
//! (`read`), adapters that are put together from slices (`group`), what others change (`books`).
//!
//! One lock orders the changes and keeps the books equal to what was committed. It is held over a
//! commit, never over reading, hashing or freeing bytes; lookups and pins never take it (E30). No foreign
//! code runs under it: whoever watches is told when it is free again
//! ([`observe_whole`](WeightRegistry::observe_whole)), and what was staged for nothing is freed after that.

use std::fmt;
use std::sync::Arc;

use super::address::{Address, FlatHandle, Registered};
use super::books::{Books, Coming};
use super::index::{Entry, Index};
use super::offer::{self, Offer};
use super::one::{One, Slice};
use crate::Dtype;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::identity::{Identity, content_identity};
use crate::names::SetName;
use crate::plan::Plan;
use crate::registry::{Operation, Retirement, Staged, WeightRegistry};
use crate::source::{InMemory, Source};
use crate::sync::{Mutex, MutexGuard};

/// A registry of single weights: register by name, look up, pin, unregister.
///
/// Share it by reference or in an `Arc`; every method takes `&self`. It stands on a
/// [`WeightRegistry`], which may hold checkpoints and adapters beside it: one ledger, one limit.
/// Its weights have names in its own namespace; leave those, and the namespaces of its adapters
/// (`namespace/adapter`), to it, and make one `FlatRegistry` per namespace.
///
/// What is retired or replaced in the registry underneath is retired or replaced here: nothing is
/// counted that the registry no longer has, and what was replaced counts with the bytes that it has now.
///
/// What is [evicted](WeightRegistry::evict) underneath, or emptied by a drained swap, stays registered and counts
/// as before, with the bytes that it is described to have. It cannot be pinned meanwhile
/// ([`Error::NotResident`]), and to register the same again gives its handle, and no bytes:
/// [`load`](WeightRegistry::load) brings back what was evicted.
///
/// Progress: looking up and pinning are lock-free. Changes wait for each other, for as long as a
/// commit takes; never for a reader, never for bytes that are read, hashed or freed, and never for an
/// observer. Questions about the books wait for a change, and before both the books catch up with what
/// others committed in the registry underneath: O(what they changed), each change once; if more happened
/// than its event stream holds ([`event_capacity`](crate::Builder::event_capacity)), once a look at every
/// weight.
///
/// In a child process after a `fork`, changes are refused ([`Error::Forked`]); a question about the books
/// may wait there for a lock that a thread of the parent's holds, for ever.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use weighbridge::flat::{FlatRegistry, Registered};
/// use weighbridge::{Dtype, WeightRegistry};
///
/// let flat = FlatRegistry::new(Arc::new(WeightRegistry::builder().limit_bytes(1 << 20).build()?));
/// let embed = flat.register("embed", Dtype::U8, [2, 2], &[1, 2, 3, 4])?.handle();
/// let head = flat.alias("lm_head", embed, Dtype::U8, [2, 2])?.handle();
///
/// // The same again is the same; anything else under this name is refused, with both sides.
/// assert_eq!(flat.register("embed", Dtype::U8, [2, 2], &[1, 2, 3, 4])?, Registered::Reused(embed));
/// let refused = flat.register("embed", Dtype::U8, [4], &[1, 2, 3, 4]).unwrap_err();
/// assert!(refused.to_string().contains("U8 [2, 2]") && refused.to_string().contains("U8 [4]"));
///
/// let pinned = flat.get(head)?; // holds the embedding
/// assert_eq!(pinned.bytes(), [1, 2, 3, 4]);
/// assert_eq!((flat.total_bytes(), flat.len()), (4, 1));
/// assert!(flat.unregister(embed).unwrap_err().to_string().contains("lm_head"));
/// flat.unregister_cascade(embed)?;
/// assert_eq!(pinned.bytes(), [1, 2, 3, 4]); // until it is dropped
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct FlatRegistry {
    registry: Arc<WeightRegistry>,
    namespace: Box<str>,
    books: Mutex<Books>,
}

impl FlatRegistry {
    /// In the namespace `flat` of `registry`.
    pub fn new(registry: Arc<WeightRegistry>) -> Self {
        Self::unchecked(registry, "flat")
    }

    /// In a namespace of your choice, one per model: the same tensor names in two of them are two
    /// different weights.
    ///
    /// # Errors
    /// [`Error::InvalidName`] if it is empty, longer than 512 bytes, or has control characters.
    pub fn within(registry: Arc<WeightRegistry>, namespace: &str) -> Result<Self, Error> {
        SetName::from(namespace).validate()?;
        Ok(Self::unchecked(registry, namespace))
    }

    fn unchecked(registry: Arc<WeightRegistry>, namespace: &str) -> Self {
        FlatRegistry {
            books: Mutex::new(Books::new(&registry)),
            registry,
            namespace: namespace.into(),
        }
    }

    /// The registry underneath.
    pub fn registry(&self) -> &Arc<WeightRegistry> {
        &self.registry
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The books, as of now: whoever has them orders every change that is made here.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        let mut books = self.books.lock(); // E30
        books.catch_up(&self.registry);
        books
    }

    /// Registers a weight: its bytes are copied once, into memory that was reserved in the ledger
    /// before. What was registered already, byte for byte, is not copied, reserved or changed, nor brought back
    /// if it is evicted.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if `bytes` is not what dtype and shape demand;
    /// [`Error::AlreadyRegistered`] with both sides if the name means another weight,
    /// [`Error::AlreadyPublished`] if it means what somebody else published under it;
    /// [`Error::InvalidName`], [`Error::OverLimit`], [`Error::OutOfMemory`], [`Error::Spent`],
    /// [`Error::Forked`]. Nothing is changed then.
    pub fn register<'n>(
        &self,
        address: impl Into<Address<'n>>,
        dtype: Dtype,
        shape: impl AsRef<[usize]>,
        bytes: &[u8],
    ) -> Result<Registered, Error> {
        let address = address.into();
        let slice = Slice::new(address.name, dtype, shape.as_ref(), bytes)?;
        self.register_source(address, slice, |plan| Some(content_identity(plan, bytes)))
    }

    /// [`register`](Self::register), of a source that describes one tensor: its bytes are read
    /// straight into their place. What was registered already is not changed; to know that, it is
    /// read and hashed first, unless the source declares its revision.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if the source describes more than one tensor, one whose dtype is not
    /// known, or one that is to stay in memory which it brings: a weight is copied; whatever is wrong with
    /// the source; otherwise as [`register`](Self::register).
    pub fn register_from<'n>(
        &self,
        address: impl Into<Address<'n>>,
        source: impl Source,
    ) -> Result<Registered, Error> {
        let address = address.into();
        let one = One::new(address.name, source)?;
        let declared = one.declared().map(|it| Identity::declared(one.plan(), it));
        self.register_source(address, one, |_| declared)
    }

    /// Registers `source`, whose identity may be known before it is read.
    fn register_source(
        &self,
        address: Address<'_>,
        source: impl Source,
        identity: impl FnOnce(&Plan) -> Option<Identity>,
    ) -> Result<Registered, Error> {
        self.registry.at_home()?;
        let name = self.name_of(address)?;
        if let Some(there) = self.there(&name, source.plan(), identity) {
            return there;
        }
        let staged = self.registry.stage(source)?;
        self.admit(name, address.adapter, staged, None)
    }

    /// Registers a second name for a weight. It has no bytes of its own: to get it is to get the
    /// target, to pin it pins the target. An alias of an alias is one of the same target, so chains
    /// and circles cannot be made; and while it is there, its target cannot be unregistered alone.
    ///
    /// Dtype and shape are what the caller believes the target to be.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if dtype and shape are not the target's; [`Error::StaleHandle`],
    /// [`Error::WrongRegistry`], [`Error::OtherNamespace`] for the target, [`Error::NoSuchTensor`] if
    /// somebody replaced it by what is no weight; otherwise as [`register`](Self::register).
    pub fn alias<'n>(
        &self,
        address: impl Into<Address<'n>>,
        target: FlatHandle,
        dtype: Dtype,
        shape: impl AsRef<[usize]>,
    ) -> Result<Registered, Error> {
        let address = address.into();
        let name = self.name_of(address)?;
        let root = self.root(target)?;
        let of = self.entry(FlatHandle(root))?;
        let shape = shape.as_ref();
        if (of.dtype, &*of.shape) != (dtype, shape) {
            return Err(Error::InvalidTensor {
                tensor: address.name.to_owned(),
                reason: format!(
                    "is to be an alias of {}, which is {} {:?} and not {dtype} {shape:?}",
                    of.name, of.dtype, of.shape
                ),
            });
        }
        let staged = self.registry.stage(InMemory::new().on(root));
        staged
            .and_then(|staged| self.admit(name, address.adapter, staged, Some(root)))
            .map_err(|error| match error {
                // The target went since we looked.
                Error::BaseNotCurrent { .. } | Error::StaleHandle { .. } => {
                    Error::StaleHandle { handle: target.0 }
                }
                other => other,
            })
    }

    /// Unregisters a weight, now: new calls get [`Error::StaleHandle`], guards keep the bytes, which
    /// come back with the last of them. Never waits for a guard and never fails because of one; wait
    /// for them with [`Retirement::drained`] if you want to.
    ///
    /// # Errors
    /// [`Error::WeightTied`] with the names of its aliases; [`Error::WeightBound`] if sets of the registry
    /// underneath stand on it; [`Error::StaleHandle`], [`Error::WrongRegistry`],
    /// [`Error::OtherNamespace`], [`Error::Forked`]. Nothing is changed then.
    pub fn unregister(&self, weight: FlatHandle) -> Result<Retirement, Error> {
        let gone = self.retire_all(Operation::Retire, weight.0, |index| {
            self.own(index, weight.0)?;
            let sets = vec![weight.0];
            index.aliased(&sets).map_or(Ok(sets), Err)
        })?;
        let first = gone.into_iter().next();
        first.ok_or(Error::StaleHandle { handle: weight.0 })
    }

    /// Unregisters a weight and all its aliases at one instant. The weight comes first in the
    /// answer.
    ///
    /// # Errors
    /// As [`unregister`](Self::unregister), but for its aliases.
    pub fn unregister_cascade(&self, weight: FlatHandle) -> Result<Vec<Retirement>, Error> {
        let subject = format!("{} and its aliases", weight.0);
        self.retire_all(Operation::Transaction, subject, |index| {
            let mut sets = vec![weight.0];
            sets.extend_from_slice(self.own(index, weight.0)?.aliases());
            Ok(sets)
        })
    }

    /// Unregisters everything that is registered for an adapter at one instant. Nothing is there:
    /// nothing happens.
    ///
    /// # Errors
    /// [`Error::WeightTied`] if something outside of the adapter is an alias of a slice;
    /// [`Error::WeightBound`], [`Error::Forked`]. Nothing is changed then.
    pub fn unregister_adapter(&self, adapter: &str) -> Result<Vec<Retirement>, Error> {
        let subject = self.all_of(adapter);
        self.retire_all(Operation::Transaction, subject, |index| {
            let sets = index.members(adapter);
            index.aliased(&sets).map_or(Ok(sets), Err)
        })
    }

    /// Retires all that `which` says, at one instant, and strikes it out.
    fn retire_all(
        &self,
        operation: Operation,
        subject: impl fmt::Display,
        which: impl Fn(&Index) -> Result<Vec<SetHandle>, Error>,
    ) -> Result<Vec<Retirement>, Error> {
        self.registry
            .observe_whole(operation, subject, offer::itself, || {
                let mut books = self.books();
                loop {
                    let sets = which(&books)?;
                    if sets.is_empty() {
                        return Ok(Vec::new());
                    }
                    let mut all = self.registry.transaction();
                    let added = sets.iter().try_for_each(|&set| all.retire(set));
                    match added.and_then(|()| Ok(all.commit()?)) {
                        Ok(done) => {
                            books.strike(&self.registry, done.generation, &sets);
                            return Ok(done.previous);
                        }
                        // Somebody retired one underneath since the books caught up. They do again, and then
                        // do not have it: this ends.
                        Err(Error::StaleHandle { .. }) => books.catch_up(&self.registry),
                        Err(refused) => return Err(bound(refused)),
                    }
                }
            })
    }

    /// The full name of an address.
    pub(super) fn name_of(&self, address: Address<'_>) -> Result<SetName, Error> {
        let name = match address.adapter {
            None => SetName::from((&*self.namespace, address.name)),
            Some("") => {
                return Err(Error::InvalidName {
                    name: format!("{:?}", address.name.chars().take(80).collect::<String>()),
                    reason: "its adapter has no name",
                });
            }
            Some(adapter) => {
                let namespace = self.adapter_namespace(adapter);
                SetName::from((&*namespace, address.name))
            }
        };
        name.validate()?;
        Ok(name)
    }

    pub(super) fn adapter_namespace(&self, adapter: &str) -> String {
        format!("{}/{adapter}", self.namespace)
    }

    /// Everything that is registered for an adapter, to whoever watches.
    pub(super) fn all_of(&self, adapter: &str) -> SetName {
        SetName::from((&*self.adapter_namespace(adapter), "*"))
    }

    /// The books' entry of a set; if there is none, why.
    pub(super) fn own<'i>(&self, index: &'i Index, set: SetHandle) -> Result<&'i Entry, Error> {
        match index.get(set) {
            Some(entry) => Ok(entry),
            None => Err(self.registry.scope(|scope| match scope.get(set) {
                Ok(view) => self.not_ours(view.name()),
                Err(gone) => gone,
            })),
        }
    }

    /// Is this a name in the namespaces of this registry?
    pub(super) fn ours(&self, name: &SetName) -> Result<(), Error> {
        match name.namespace().strip_prefix(&*self.namespace) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(()),
            _ => Err(self.not_ours(name)),
        }
    }

    #[cold]
    fn not_ours(&self, name: &SetName) -> Error {
        Error::OtherNamespace {
            set: name.clone(),
            namespace: self.namespace.to_string(),
        }
    }

    /// Publishes what is staged, if nothing stands there.
    fn admit(
        &self,
        name: SetName,
        adapter: Option<&str>,
        staged: Staged,
        target: Option<SetHandle>,
    ) -> Result<Registered, Error> {
        // What was staged for nothing is freed when the lock is free again.
        let mut left = None;
        let (registry, subject) = (&*self.registry, name.clone());
        let answer = registry.observe_whole(Operation::Publish, subject, offer::itself, || {
            let mut books = self.books();
            match registry.publish_staged(name.clone(), staged) {
                Ok(set) => {
                    books.enter(registry, None, [Coming { set, name, adapter }]);
                    Ok(Registered::Created(FlatHandle(set)))
                }
                Err(failed) => {
                    let (error, staged) = failed.into_parts();
                    let offer = staged.as_ref().map(|staged| Offer::of(staged, target));
                    let known = offer.and_then(|offer| self.known(&books, &name, &offer));
                    left = staged;
                    known.unwrap_or(Err(error))
                }
            }
        });
        drop(left);
        answer
    }

    /// What stands under `name`, compared with what is described before it is read. `None`: nothing,
    /// or its identity is not known yet.
    pub(super) fn there(
        &self,
        name: &SetName,
        plan: &Plan,
        identity: impl FnOnce(&Plan) -> Option<Identity>,
    ) -> Option<Result<Registered, Error>> {
        self.registry.lookup(name)?;
        let offer = Offer {
            identity: &identity(plan)?,
            base: None,
            plan,
        };
        let known = self.known(&self.books(), name, &offer)?;
        // The lock is free.
        Some(known.inspect_err(|refused| {
            self.registry
                .note_refusal(Operation::Publish, name, refused);
        }))
    }

    /// What stands under `name`, compared with what is offered. `None`: nothing.
    pub(super) fn known(
        &self,
        index: &Index,
        name: &SetName,
        offer: &Offer<'_>,
    ) -> Option<Result<Registered, Error>> {
        let answer = self.compare(index, name, offer, false)?;
        Some(answer.map(|set| Registered::Reused(FlatHandle(set))))
    }

    /// The set that `name` means, if it is what is offered, and a weight of ours or else `any` will do;
    /// otherwise the conflict with both sides. `None`: the name means nothing.
    pub(super) fn compare(
        &self,
        index: &Index,
        name: &SetName,
        offer: &Offer<'_>,
        any: bool,
    ) -> Option<Result<SetHandle, Error>> {
        let set = self.registry.lookup(name)?;
        let ours = index.get(set).is_some();
        self.registry.scope(|scope| {
            let there = scope.get(set).ok()?;
            let same = offer.is(&there);
            if same && (ours || any) {
                return Some(Ok(set));
            }
            let base = |base: Option<SetHandle>| Some(scope.get(base?).ok()?.name().to_string());
            let (name, current) = (name.clone(), there.generation());
            let mut identity = offer::standing(&there, base(there.base()));
            let offered = offer.described(base(offer.base));
            if ours {
                return Some(Err(Error::AlreadyRegistered {
                    name,
                    current,
                    identity,
                    offered,
                }));
            }
            if same {
                identity.push_str(", not registered here");
            }
            Some(Err(Error::AlreadyPublished {
                name,
                current,
                identity,
                offered,
            }))
        })
    }
}

/// Who stands on a weight, in the words of this registry: those of the one underneath name calls that it
/// does not have.
pub(super) fn bound(refused: Error) -> Error {
    match refused {
        Error::Dependants {
            set: weight,
            dependants: sets,
        }
        | Error::AliasedBy {
            set: weight,
            aliases: sets,
        } => Error::WeightBound { weight, sets },
        other => other,
    }
}

impl fmt::Debug for FlatRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlatRegistry")
            .field("namespace", &self.namespace)
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, unix, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::error::Error;

    /// A child that was forked while somebody had the books.
    #[test]
    fn a_child_is_refused_before_it_waits_for_the_lock() {
        let flat = FlatRegistry::new(Arc::new(WeightRegistry::builder().build().unwrap()));
        let w = flat.register("w", Dtype::U8, [1], &[1]).unwrap().handle();
        let held = flat.books.lock();
        let forked = |refused: Result<(), Error>| matches!(refused, Err(Error::Forked { .. }));
        // SAFETY: the child uses what `fork` keeps whole: its own thread, and the allocator, which the C
        // library makes safe. It never returns into the parent's code.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: no memory is involved. A child that hangs is ended by the signal.
            unsafe { libc::alarm(30) };
            let batch = [(Address::from("w"), Dtype::U8, &[1][..], &[1][..])];
            let refused = [
                flat.register("w", Dtype::U8, [1], &[1]).map(drop),
                flat.register_all(batch).map(drop),
                flat.alias("tied", w, Dtype::U8, [1]).map(drop),
                flat.unregister(w).map(drop),
                flat.unregister_cascade(w).map(drop),
                flat.unregister_adapter("pirate").map(drop),
                flat.load("w", InMemory::new().declared("r")).map(drop),
                flat.entry(w).map(drop),
            ]
            .map(forked);
            let reads = flat.get(w).is_ok() && flat.lookup("w") == Some(w);
            let right = reads && refused.iter().all(|&refused| refused);
            // SAFETY: ends this process; nothing of the parent's is run.
            unsafe { libc::_exit(i32::from(!right)) }
        }
        drop(held);
        let mut status = 0;
        // SAFETY: our own child, and a place for its status.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!((waited, status), (pid, 0), "it hung, or was not refused");
    }
}
