//! A generation's node, the parcel of bytes that hangs on it, and the two ways they end.
//!
//! What lives here: the node's fields, the staged (still private) node, the lease's raw hold, and
//! the taker's steps S6 and S7. What does not: the state word's transitions (`state`), which nodes
//! are reachable (`spine`), the thread that frees (`reclaim`).
//!
//! The PARCEL goes to the reclaimer as soon as the generation is dead and unleased, whatever any
//! guard does. The NODE goes there when the taker and the epoch are both done with it.

use std::ptr::NonNull;
use std::sync::Arc;

use super::Bond;
use super::reclaim::{Errand, Link, Reclaimer};
use super::vitals::Vitals;
use crate::sync::cell::{Berth, Plain};

/// The bytes of a generation, as the reclaimer sees them.
pub trait Storage: Send + Sync + 'static {
    /// Gives the bytes back; long jobs call `step` between their pieces.
    fn dismantle(self, step: &mut dyn FnMut());
}

/// Bytes on their way out, or not yet. Owned by the node's generation until its taker pushes it. It may
/// be empty: the bytes are elsewhere for the time being.
#[repr(C)]
struct Parcel<S> {
    link: Link,
    vitals: Arc<Vitals>,
    storage: Berth<Option<S>>,
}

impl<S: Storage> Parcel<S> {
    const ERRAND: &'static Errand = &Errand {
        arrive: Self::arrive,
        finish: Self::finish,
    };

    fn pack(storage: Option<S>, vitals: Arc<Vitals>) -> NonNull<Self> {
        NonNull::from(Box::leak(Box::new(Parcel {
            link: Link::new(Self::ERRAND),
            vitals,
            storage: Berth::new(storage),
        })))
    }

    /// What is in it.
    ///
    /// # Safety
    /// Made by [`pack`](Self::pack), and the caller's alone.
    unsafe fn unpack(parcel: NonNull<Self>) -> Option<S> {
        // SAFETY: the caller's.
        let parcel = unsafe { Box::from_raw(parcel.as_ptr()) };
        parcel.storage.into_inner()
    }

    unsafe fn arrive(link: NonNull<Link>) {
        // SAFETY: this errand is only put into links of parcels (`pack`), and the queue owns the
        // parcel now.
        let parcel = unsafe { link.cast::<Self>().as_ref() };
        parcel.vitals.announce();
    }

    unsafe fn finish(link: NonNull<Link>, step: &mut dyn FnMut()) {
        /// Says "reclaimed" even if the storage's own destructor panicked: it was dropped.
        struct Announce(Arc<Vitals>);
        impl Drop for Announce {
            fn drop(&mut self) {
                self.0.set_reclaimed();
            }
        }
        // SAFETY: as in `arrive`; made by `pack`, freed only here.
        let parcel = unsafe { Box::from_raw(link.cast::<Self>().as_ptr()) };
        let Parcel {
            vitals, storage, ..
        } = *parcel;
        let _announce = Announce(vitals);
        if let Some(storage) = storage.into_inner() {
            storage.dismantle(step);
        }
    }
}

/// Frees storage that no node has, where all frees happen, and says so through `vitals`.
pub fn discard<S: Storage>(queue: &Reclaimer, storage: S, vitals: Arc<Vitals>) {
    let parcel = Parcel::pack(Some(storage), vitals);
    // SAFETY: the parcel was just made and is given up; `queue` is borrowed for the call.
    unsafe { queue.push(parcel.cast()) };
}

/// Storage that nobody waits for, on its way out.
#[repr(C)]
struct Rest<S> {
    link: Link,
    storage: S,
}

impl<S: Storage> Rest<S> {
    const ERRAND: &'static Errand = &Errand {
        arrive: |_| (),
        finish: Self::finish,
    };

    unsafe fn finish(link: NonNull<Link>, step: &mut dyn FnMut()) {
        // SAFETY: this errand is only put into links of rests (`clear_away`), which are made there as
        // boxes; the queue owned it, and this is its last use.
        let Rest { storage, .. } = *unsafe { Box::from_raw(link.cast::<Self>().as_ptr()) };
        storage.dismantle(step);
    }
}

/// Frees storage that nobody waits for, where all frees happen. It is work like any other: the queue's thread
/// tidies up once more from here on.
pub fn clear_away<S: Storage>(queue: &Reclaimer, storage: S) {
    let rest = Rest {
        link: Link::new(Rest::<S>::ERRAND),
        storage,
    };
    let rest = NonNull::from(Box::leak(Box::new(rest)));
    // SAFETY: the rest was just made and is given up; `queue` is borrowed for the call.
    unsafe { queue.push(rest.cast()) };
}

/// One generation of one set, or a tombstone. Immutable once published, except the state word.
#[repr(C)]
pub struct Node<M, S> {
    link: Link,
    birth: Plain<u64>,
    prev: Plain<*const Node<M, S>>,
    tag: u32,
    binds: Box<[Bond]>,
    meta: Option<M>,
    parcel: Option<NonNull<Parcel<S>>>,
    vitals: Arc<Vitals>,
    reclaimer: Arc<Reclaimer>,
}

// SAFETY: a published node is read by many threads and freed by any: `M` and the storage must allow
// both. `prev` is followed only under a guard (docs/MEMORY_ORDERING.md, "prev never dangles").
unsafe impl<M: Send + Sync, S: Send + Sync> Send for Node<M, S> {}
// SAFETY: as above; all fields are immutable after publication or atomics.
unsafe impl<M: Send + Sync, S: Send + Sync> Sync for Node<M, S> {}

impl<M, S> Node<M, S> {
    /// The commit that made this generation current.
    #[inline]
    pub fn birth(&self) -> u64 {
        self.birth.get()
    }

    #[inline]
    pub(super) fn prev(&self) -> *const Self {
        self.prev.get()
    }

    /// Which tenant of the slot this is.
    #[inline]
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// The sets this one is bound to (an adapter's base, what an alias names), each once.
    pub fn binds(&self) -> &[Bond] {
        &self.binds
    }

    /// `None`: a tombstone.
    #[inline]
    pub fn meta(&self) -> Option<&M> {
        self.meta.as_ref()
    }

    /// No bytes at this moment, hence no leases. A tombstone never has any.
    #[inline]
    pub fn is_absent(&self) -> bool {
        self.vitals.state().is_absent()
    }

    /// The state word and the waits.
    #[inline]
    pub fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }
}

impl<M: Send + Sync + 'static, S: Storage> Node<M, S> {
    const ERRAND: &'static Errand = &Errand {
        arrive: Self::arrive,
        finish: Self::finish,
    };

    unsafe fn arrive(_: NonNull<Link>) {}

    unsafe fn finish(link: NonNull<Link>, _: &mut dyn FnMut()) {
        // SAFETY: this errand is only put into links of nodes; the node was pushed by the later of
        // TAKEN and GRACE (E6), so nobody else can reach it. Made by `Box::into_raw`.
        drop(unsafe { Box::from_raw(link.cast::<Self>().as_ptr()) });
    }

    /// Bytes, while somebody holds a lease or owns the node.
    ///
    /// # Safety
    /// The caller holds a lease of this node, or the node was never published, or the caller may write
    /// the set and the generation is not killed yet.
    #[inline]
    pub(super) unsafe fn storage(&self) -> Option<&S> {
        // SAFETY: the parcel is freed only after {DEAD, 0} (E4), which the caller excludes; and its
        // storage comes and goes only by who may write the set, and not while it is leased (E70, E71).
        self.parcel
            .and_then(|parcel| unsafe { parcel.as_ref().storage.get().as_ref() })
    }

    /// Changes what bytes it has.
    ///
    /// # Safety
    /// The caller may write the set, and the generation is absent, not killed and not a tombstone.
    pub(super) unsafe fn swap_storage(&self, storage: Option<S>) -> Option<S> {
        // SAFETY: the parcel is freed only after {DEAD, 0} (E4). Nobody looks at the storage of what is
        // absent: an acquire is refused (E70, E71), and others who may write the set are excluded.
        self.parcel
            .and_then(|parcel| unsafe { parcel.as_ref().storage.swap(storage) })
    }

    /// S6 and S7, the taker's steps: the bytes go to the reclaimer, then the node is let go. Out of line:
    /// the end of a lease that is not the last one saves no registers for it.
    ///
    /// # Safety
    /// The caller made `{DEAD, 0}` of this node, and calls this once.
    #[inline(never)]
    pub(super) unsafe fn take(node: NonNull<Self>) {
        // SAFETY: without TAKEN nobody frees the node (E6).
        let this = unsafe { node.as_ref() };
        // Kept by ourselves, because after S7 the node may be gone. Cold: once per generation.
        let reclaimer = Arc::clone(&this.reclaimer);
        if let Some(parcel) = this.parcel {
            if this.is_absent() {
                // SAFETY: {DEAD, 0} is entered once and is final, so the parcel is ours alone (E4). It
                // was made by `pack` and is empty.
                drop(unsafe { Parcel::unpack(parcel) });
                // Who is absent has no lease, so the taker is a writer, who may lock.
                this.vitals.set_reclaimed();
            } else {
                // SAFETY: ours alone, as above; the queue is held by `reclaimer`.
                unsafe { reclaimer.push(parcel.cast()) };
            }
        }
        if this.vitals.state().taken() {
            // SAFETY: the epoch was first, we are second: nobody can reach the node (E6).
            unsafe { reclaimer.push(node.cast()) };
        }
    }

    /// S9: the epoch, or the registry's drop, is done with the node.
    ///
    /// # Safety
    /// No reader can reach the node any more; called once, after `kill`.
    pub(super) unsafe fn let_go(node: NonNull<Self>) {
        // SAFETY: without GRACE nobody frees the node (E6).
        let this = unsafe { node.as_ref() };
        let reclaimer = Arc::clone(&this.reclaimer);
        if this.vitals.state().grace() {
            // SAFETY: the taker was first, we are second (E6).
            unsafe { reclaimer.push(node.cast()) };
        }
    }
}

/// A node that no reader can see yet. Dropping it gives its bytes back at once.
pub struct StagedNode<M: Send + Sync + 'static, S: Storage>(Option<Box<Node<M, S>>>);

impl<M: Send + Sync + 'static, S: Storage> StagedNode<M, S> {
    /// A generation. Everything is allocated here: publishing cannot fail for want of memory.
    pub fn new(tag: u32, binds: Vec<Bond>, meta: M, storage: S, reclaimer: Arc<Reclaimer>) -> Self {
        let vitals = Arc::new(Vitals::new());
        let parcel = Some(Parcel::pack(Some(storage), Arc::clone(&vitals)));
        Self::assemble(tag, binds, Some(meta), parcel, vitals, reclaimer)
    }

    /// A generation that is there and has no bytes so far: it can be resolved and not leased.
    pub fn absent(tag: u32, binds: Vec<Bond>, meta: M, reclaimer: Arc<Reclaimer>) -> Self {
        let vitals = Arc::new(Vitals::absent());
        let parcel = Some(Parcel::pack(None, Arc::clone(&vitals)));
        Self::assemble(tag, binds, Some(meta), parcel, vitals, reclaimer)
    }

    /// The generation that says "retired": no bytes, no metadata.
    pub fn tombstone(tag: u32, reclaimer: Arc<Reclaimer>) -> Self {
        let vitals = Arc::new(Vitals::new());
        Self::assemble(tag, Vec::new(), None, None, vitals, reclaimer)
    }

    fn assemble(
        tag: u32,
        binds: Vec<Bond>,
        meta: Option<M>,
        parcel: Option<NonNull<Parcel<S>>>,
        vitals: Arc<Vitals>,
        reclaimer: Arc<Reclaimer>,
    ) -> Self {
        StagedNode(Some(Box::new(Node {
            link: Link::new(Node::<M, S>::ERRAND),
            birth: Plain::new(0),
            prev: Plain::new(std::ptr::null()),
            tag,
            binds: binds.into(),
            meta,
            parcel,
            vitals,
            reclaimer,
        })))
    }

    pub(super) fn node(&self) -> &Node<M, S> {
        self.0
            .as_deref()
            .expect("a staged node is whole until it is published")
    }

    /// Takes metadata and storage apart again: a publish that failed returns them.
    pub fn dismantle(mut self) -> Option<(M, S)> {
        let mut node = self.0.take()?;
        let parcel = node.parcel.take()?;
        // SAFETY: never published, so nobody else knows the parcel; made by `Parcel::pack`.
        let storage = unsafe { Parcel::unpack(parcel) }?;
        Some((node.meta.take()?, storage))
    }

    /// W4: stamps the node and hands it over as a raw pointer, to be stored in a slot.
    pub(super) fn stamp(mut self, birth: u64, prev: *const Node<M, S>) -> *mut Node<M, S> {
        match self.0.take() {
            Some(mut node) => {
                node.birth.set(birth);
                node.prev.set(prev);
                Box::into_raw(node)
            }
            None => std::process::abort(),
        }
    }
}

impl<M: Send + Sync + 'static, S: Storage> Drop for StagedNode<M, S> {
    fn drop(&mut self) {
        if let Some(parcel) = self.0.as_mut().and_then(|node| node.parcel.take()) {
            // SAFETY: never published, so nobody else knows the parcel; made by `Parcel::pack`.
            if let Some(storage) = unsafe { Parcel::unpack(parcel) } {
                storage.dismantle(&mut || {});
            }
        }
    }
}

/// One lease of one generation, as a raw pointer. Exactly one release: by `Drop`.
pub struct Hold<M: Send + Sync + 'static, S: Storage>(NonNull<Node<M, S>>);

// SAFETY: a hold is a share of a node that is Send + Sync itself; the release may run anywhere.
unsafe impl<M: Send + Sync + 'static, S: Storage> Send for Hold<M, S> {}
// SAFETY: as above; a hold only hands out shared references.
unsafe impl<M: Send + Sync + 'static, S: Storage> Sync for Hold<M, S> {}

impl<M: Send + Sync + 'static, S: Storage> Hold<M, S> {
    /// Wraps a count that `try_hold` or `hold_again` has just taken.
    ///
    /// # Safety
    /// The caller owns that one count and gives it to the hold; the node is valid and no tombstone.
    pub(super) unsafe fn adopt(node: NonNull<Node<M, S>>) -> Self {
        Hold(node)
    }

    /// The generation. Valid while the hold lives: its count keeps TAKEN away (E6).
    #[inline]
    pub fn node(&self) -> &Node<M, S> {
        // SAFETY: our count is in the state word, so there is no taker and the node is not freed.
        unsafe { self.0.as_ref() }
    }

    /// The metadata; a tombstone is never held.
    #[inline]
    pub fn meta(&self) -> &M {
        let meta = self.node().meta();
        debug_assert!(meta.is_some(), "a tombstone was leased");
        // SAFETY: `adopt`'s callers have looked (`View::find`, of which all come, passes over
        // tombstones), and a node's metadata stays what it is. Guarded by `a_tombstone_is_never_held` in
        // `core::tests`.
        unsafe { meta.unwrap_unchecked() }
    }

    /// The bytes.
    #[inline]
    pub fn storage(&self) -> &S {
        // SAFETY: we hold a lease.
        match unsafe { self.node().storage() } {
            Some(storage) => storage,
            None => unreachable!("a tombstone was leased"),
        }
    }
}

impl<M: Send + Sync + 'static, S: Storage> Clone for Hold<M, S> {
    fn clone(&self) -> Self {
        self.node().vitals.state().hold_again();
        Hold(self.0)
    }
}

impl<M: Send + Sync + 'static, S: Storage> Drop for Hold<M, S> {
    #[inline]
    fn drop(&mut self) {
        let last = self.node().vitals.state().release();
        if last {
            // SAFETY: `release` says that we are the taker of this node.
            unsafe { Node::take(self.0) };
        }
    }
}
