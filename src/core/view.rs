//! A reader's view: a pinned guard and the commit number it reads at.
//!
//! What lives here: steps R0-R4 and S1-S3: resolving sets as of one commit, and leasing any number
//! of them as of one instant. What does not: the writers (`commit`, `spine`).
//!
//! The number belongs to the guard: it is read after the pin, and a new pin means a new number.
//! That is why the two sit in one type and why nothing else makes either.

use std::ptr::NonNull;

use super::Key;
use super::holds::Holds;
use super::node::{Hold, Node, Storage};
use super::spine::Spine;
use super::state::Closed;
use crate::sync::atomic::Ordering;
use crate::sync::epoch::{Guard, Participant};

/// Why an acquire has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Key `index` names nothing at this instant: retired, or never there.
    Absent { index: usize },
    /// Key `index` is current and has no bytes, or refuses leases: it is not resident.
    NotResident { index: usize },
    /// Key `index` was superseded after this view's number (only [`View::acquire_here`]).
    Superseded { index: usize },
}

/// See the module documentation.
pub struct View<'s, M: Send + Sync + 'static, S: Storage> {
    spine: &'s Spine<M, S>,
    guard: Guard,
    number: u64,
}

impl<M: Send + Sync + 'static, S: Storage> Spine<M, S> {
    /// Opens a view: from here on, everything that is or becomes reachable stays valid.
    ///
    /// # Panics
    /// If `participant` belongs to another spine.
    #[inline]
    pub fn view(&self, participant: &Participant) -> View<'_, M, S> {
        self.view_under(participant.pin())
    }

    /// The same under a guard that is pinned already.
    ///
    /// # Panics
    /// If `guard` belongs to another spine.
    #[inline]
    pub fn view_under(&self, guard: Guard) -> View<'_, M, S> {
        assert!(
            guard.belongs_to(&self.collector),
            "a guard of another registry"
        );
        View::open(self, guard)
    }
}

impl<'s, M: Send + Sync + 'static, S: Storage> View<'s, M, S> {
    #[inline]
    pub(super) fn open(spine: &'s Spine<M, S>, guard: Guard) -> Self {
        // E1: R1, after the pin: everything up to this commit is visible, and whatever was freed
        // before the pin was unlinked by a commit that this load sees.
        let number = spine.clock.load(Ordering::Acquire);
        View {
            spine,
            guard,
            number,
        }
    }

    pub(super) fn spine(&self) -> &'s Spine<M, S> {
        self.spine
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The commit this view reads at.
    #[inline]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Pins anew and reads at the newest commit.
    pub fn refresh(&mut self) {
        self.guard.repin();
        // E1: R1 again: a number read before the pin could lead to freed nodes.
        self.number = self.spine.clock.load(Ordering::Acquire);
    }

    /// R2: the generation that is current in `slot` at this view's number, tombstones included.
    #[inline(always)]
    fn current(&self, slot: u32) -> Option<NonNull<Node<M, S>>> {
        // E2: Acquire: the node's fields.
        let mut node = NonNull::new(self.spine.slots.get(slot)?.current.load(Ordering::Acquire))?;
        loop {
            // SAFETY: reachable under our guard: the newest node is not superseded before our
            // number, and `prev` is followed only from nodes younger than our number, whose
            // predecessors are released after a commit that our number does not include.
            let this = unsafe { node.as_ref() };
            if this.birth() <= self.number {
                return Some(node);
            }
            node = NonNull::new(this.prev().cast_mut())?;
        }
    }

    #[inline(always)]
    fn find(&self, key: Key) -> Option<NonNull<Node<M, S>>> {
        let node = self.current(key.slot)?;
        // SAFETY: as in `current`.
        let this = unsafe { node.as_ref() };
        (this.tag() == key.tag && this.meta().is_some()).then_some(node)
    }

    /// The generation of `key` at this view's number: metadata only. Wait-free: at most one step
    /// per commit on this slot since the number was read.
    #[inline]
    pub fn resolve(&self, key: Key) -> Option<&Node<M, S>> {
        // SAFETY: valid while the guard is pinned, and `refresh` needs `&mut self`.
        self.find(key).map(|node| unsafe { node.as_ref() })
    }

    /// Calls `visit` for every set that is current at this view's number.
    pub fn for_each(&self, mut visit: impl FnMut(Key, &Node<M, S>)) {
        for slot in 0..self.spine.slots.end() {
            if let Some(node) = self.current(slot) {
                // SAFETY: as in `resolve`.
                let node = unsafe { node.as_ref() };
                if node.meta().is_some() {
                    visit(
                        Key {
                            slot,
                            tag: node.tag(),
                        },
                        node,
                    );
                }
            }
        }
    }

    /// [`acquire_each`](Self::acquire_each) of a slice. For tests and models.
    #[cfg(any(test, weighbridge_loom))]
    pub fn acquire(&mut self, keys: &[Key]) -> Result<Holds<M, S>, Miss> {
        self.acquire_each(keys.len(), |index| keys[index])
    }

    /// Leases `count` keys as of one instant: this view's number, or a newer one, to which the view
    /// then moves. Lock-free: every retry is paid by a commit on one of these very sets.
    #[inline(always)]
    pub fn acquire_each(
        &mut self,
        count: usize,
        key: impl Fn(usize) -> Key,
    ) -> Result<Holds<M, S>, Miss> {
        loop {
            match self.acquire_here(count, &key) {
                Err(Miss::Superseded { index }) => self.move_on(index)?,
                answer => return answer,
            }
        }
    }

    /// [`acquire_each`](Self::acquire_each) of one key.
    pub fn acquire_one(&mut self, key: Key) -> Result<Hold<M, S>, Miss> {
        loop {
            match self.hold(key, 0) {
                Err(Miss::Superseded { index }) => self.move_on(index)?,
                answer => return answer,
            }
        }
    }

    /// [`acquire_here`](Self::acquire_here) of one key.
    #[inline(always)]
    pub fn acquire_one_here(&self, key: Key) -> Result<Hold<M, S>, Miss> {
        self.hold(key, 0)
    }

    /// S3: the attempt met a dead generation and its leases are given back. On to the newest number;
    /// if there is none, key `index` is not resident.
    #[cold]
    fn move_on(&mut self, index: usize) -> Result<(), Miss> {
        // E1, E5: DEAD was seen with Acquire, so a commit that killed the generation is in the clock.
        let number = self.spine.clock.load(Ordering::Acquire);
        if number == self.number {
            return Err(Miss::NotResident { index });
        }
        // Same guard, newer number: sound, unlike an older number under a newer guard.
        self.number = number;
        Ok(())
    }

    /// Leases `count` keys as of exactly this view's number.
    #[inline(always)]
    pub fn acquire_here(
        &self,
        count: usize,
        key: impl Fn(usize) -> Key,
    ) -> Result<Holds<M, S>, Miss> {
        Holds::collect(count, |index| self.hold(key(index), index))
    }

    /// R3, S2: one lease of `key` as of exactly this view's number.
    #[inline(always)]
    fn hold(&self, key: Key, index: usize) -> Result<Hold<M, S>, Miss> {
        let node = self.find(key).ok_or(Miss::Absent { index })?;
        // SAFETY: as in `current`.
        let this = unsafe { node.as_ref() };
        this.vitals()
            .state()
            .try_hold()
            .map_err(|closed| match closed {
                Closed::Dead => Miss::Superseded { index },
                // An answer: it was evicted, or has never had bytes, while it was current.
                Closed::Absent => Miss::NotResident { index },
            })?;
        // SAFETY: the count that was just taken goes into the hold; `find` found no tombstone.
        Ok(unsafe { Hold::adopt(node) })
    }
}
