//! The spine of the registry: one commit clock, the slots, and what writers do under the lock.
//!
//! What lives here: installing any number of changes (steps W2-W6), dependants, and the sweep when
//! the registry goes. What does not: what comes before and after (`commit`), what readers do (`view`), the state word (`state`),
//! names, bytes and errors of the public interface (`registry`).
//!
//! Every change of what is current goes through `View::commit`: publish, replace, retire (a
//! tombstone) and transactions are the same code. The protocol and its proof are in
//! docs/MEMORY_ORDERING.md.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::node::{Node, StagedNode, Storage};
use super::reclaim::Reclaimer;
use super::slots::{Bounds, SlotTable};
use super::{Bond, Key};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::epoch::{Collector, Participant};

/// What a change expects to find in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing, or a tombstone.
    Vacant,
    /// Any living generation of this tenant.
    Tenant(u32),
    /// Exactly this generation of this tenant.
    Exactly { tag: u32, birth: u64 },
}

/// What a commit found instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// The tenant.
    pub tag: u32,
    /// The commit that made it current.
    pub birth: u64,
    /// A tombstone?
    pub retired: bool,
}

impl Expect {
    fn is_met_by(self, seen: Option<Sight>) -> bool {
        let alive = seen.filter(|sight| !sight.retired);
        match self {
            Expect::Vacant => alive.is_none(),
            Expect::Tenant(tag) => alive.is_some_and(|sight| sight.tag == tag),
            Expect::Exactly { tag, birth } => {
                alive.is_some_and(|sight| sight.tag == tag && sight.birth == birth)
            }
        }
    }
}

/// One set's part of a commit.
pub struct Change<M: Send + Sync + 'static, S: Storage> {
    pub(super) slot: u32,
    expect: Expect,
    node: Option<StagedNode<M, S>>,
    pub(super) old: *const Node<M, S>,
    /// Sets that were bound to the old generation, and are not, or are to the new one, after this
    /// same commit.
    released: u32,
}

impl<M: Send + Sync + 'static, S: Storage> Change<M, S> {
    /// Make `node` current in `slot` if `expect` is met.
    pub fn new(slot: u32, expect: Expect, node: StagedNode<M, S>) -> Self {
        Change {
            slot,
            expect,
            node: Some(node),
            old: ptr::null(),
            released: 0,
        }
    }

    /// The staged node of a change that was refused. `None` after a commit.
    pub fn into_node(self) -> Option<StagedNode<M, S>> {
        self.node
    }

    /// What is to become current. `None`: a tombstone, or the commit has been.
    pub fn meta(&self) -> Option<&M> {
        self.node.as_ref().and_then(|node| node.node().meta())
    }

    /// Has what is to become current no bytes so far?
    pub fn is_absent(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|node| node.node().is_absent())
    }

    fn binds(&self) -> &[Bond] {
        self.node.as_ref().map_or(&[], |node| node.node().binds())
    }
}

/// Why a commit was refused. Nothing was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Change `index` did not find what it expected.
    Changed { index: usize, seen: Option<Sight> },
    /// Two changes name one slot.
    Twice { index: usize },
    /// Change `index` would supersede a set that `count` living sets are bound to.
    Dependants { index: usize, count: u32 },
    /// Change `index` is bound to a generation that will not be current after this commit.
    BaseGone { index: usize, bond: Bond },
}

/// See the module documentation.
pub struct Spine<M: Send + Sync + 'static, S: Storage> {
    pub(super) clock: CachePadded<AtomicU64>,
    pub(super) slots: SlotTable<M, S>,
    commit: Mutex<()>,
    pub(super) collector: Collector,
    reclaimer: Arc<Reclaimer>,
}

impl<M: Send + Sync + 'static, S: Storage> Spine<M, S> {
    /// An empty spine at commit 0.
    pub fn new(reclaimer: Arc<Reclaimer>) -> Self {
        Self::within(Bounds::FULL, reclaimer)
    }

    /// The same with as many slots and tags as `bounds` says.
    pub fn within(bounds: Bounds, reclaimer: Arc<Reclaimer>) -> Self {
        Spine {
            clock: CachePadded::new(AtomicU64::new(0)),
            slots: SlotTable::new(bounds),
            commit: Mutex::new(()),
            collector: Collector::new(),
            reclaimer,
        }
    }

    /// The reclaimer's queue.
    pub fn reclaimer(&self) -> &Arc<Reclaimer> {
        &self.reclaimer
    }

    /// The epochs, for a thread that only tidies up and must not keep the spine.
    pub fn epochs(&self) -> Collector {
        self.collector.clone()
    }

    /// Makes the calling thread a participant of this spine's epochs.
    pub fn register(&self) -> Participant {
        self.collector.register()
    }

    /// A slot for a new tenant: its index and the tag that its generations must carry. `None`: all
    /// slots or all their tags are spent.
    pub fn allocate(&self) -> Option<Key> {
        self.slots.allocate()
    }

    /// Gives a slot back whose tenant was retired, or never published.
    pub fn recycle(&self, key: Key) {
        self.slots.recycle(key);
    }

    /// W2-W6. On success every change is current and carries the returned number.
    ///
    /// `order`: the slots that are changed, in order, with the index of each one's change. `committed`:
    /// see [`View::commit`](super::View::commit).
    pub(super) fn install(
        &self,
        changes: &mut [Change<M, S>],
        order: &[(u32, usize)],
        committed: impl FnOnce(u64),
    ) -> Result<u64, Refusal> {
        let lock = self.commit.lock(); // E11
        self.check(changes, order)?;
        // Nothing from here to the clock can fail, allocate, panic or call foreign code; a panic
        // would leave generations that the next commit makes current by accident.
        let armed = AbortOnUnwind;
        // E11: Relaxed: only written under the lock.
        let number = self.clock.load(Ordering::Relaxed) + 1;
        for change in &mut *changes {
            self.bind(change);
            if let (Some(slot), Some(node)) = (self.slots.get(change.slot), change.node.take()) {
                let node = node.stamp(number, change.old);
                // E2: Release publishes the node's fields.
                slot.current.store(node, Ordering::Release);
            }
        }
        // E1: the linearisation point of the whole commit: one store makes all of it current.
        self.clock.store(number, Ordering::Release);
        std::mem::forget(armed);
        committed(number);
        drop(lock);
        Ok(number)
    }

    /// W3. Also notes what each change supersedes.
    fn check(&self, changes: &mut [Change<M, S>], order: &[(u32, usize)]) -> Result<(), Refusal> {
        for (index, change) in changes.iter_mut().enumerate() {
            // E11: Relaxed: slots are only written under the lock that we hold.
            let current = self
                .slots
                .get(change.slot)
                .map_or(ptr::null_mut(), |slot| slot.current.load(Ordering::Relaxed)); // E11
            change.old = current;
            change.released = 0;
            let seen = self.old(change).map(Self::sight);
            if !change.expect.is_met_by(seen) {
                return Err(Refusal::Changed { index, seen });
            }
        }
        let at = |slot: u32| {
            let found = order.binary_search_by_key(&slot, |&(slot, _)| slot);
            found
                .ok()
                .and_then(|place| order.get(place))
                .map(|&(_, index)| index)
        };
        for index in 0..changes.len() {
            // Every set that was bound to a set of this commit and is changed itself is looked at
            // below: afterwards it is bound to nothing that leaves.
            let old = changes[index].old;
            // SAFETY: as in `old`. (Not called: it would borrow all of `changes`.)
            for bond in unsafe { old.as_ref() }.map_or(&[][..], Node::binds) {
                if let Some(base) = at(bond.base.slot) {
                    changes[base].released += 1;
                }
            }
        }
        for (index, change) in changes.iter().enumerate() {
            self.check_dependants(index, change)?;
            for &bond in change.binds() {
                let with_us = at(bond.base.slot).map(|base| &changes[base]);
                if !self.will_stand(bond, with_us) {
                    return Err(Refusal::BaseGone { index, bond });
                }
            }
        }
        Ok(())
    }

    /// No set with living dependants is superseded, unless they come along.
    fn check_dependants(&self, index: usize, change: &Change<M, S>) -> Result<(), Refusal> {
        let bound = self.slots.get(change.slot).map_or(0, |slot| {
            slot.dependants.load(Ordering::Relaxed) // E11: only touched under the lock that we hold
        });
        match bound.saturating_sub(change.released) {
            0 => Ok(()),
            count => Err(Refusal::Dependants { index, count }),
        }
    }

    /// Will what `bond` stands on be current after this commit? `with_us` is the commit's own change
    /// of the base, if there is one.
    fn will_stand(&self, bond: Bond, with_us: Option<&Change<M, S>>) -> bool {
        match (bond.birth, with_us) {
            (None, Some(change)) => change.node.as_ref().is_some_and(|node| {
                let node = node.node();
                node.tag() == bond.base.tag && node.meta().is_some()
            }),
            (Some(birth), None) => {
                // E11: Relaxed: under the lock.
                let current = self
                    .slots
                    .get(bond.base.slot)
                    .and_then(|slot| NonNull::new(slot.current.load(Ordering::Relaxed))); // E11
                // SAFETY: current, hence not superseded, hence not freed.
                let sight = current.map(|node| Self::sight(unsafe { node.as_ref() }));
                let tag = bond.base.tag;
                Expect::Exactly { tag, birth }.is_met_by(sight)
            }
            _ => false,
        }
    }

    /// Moves the dependants' counts from what the old generation stands on to what the new one does.
    fn bind(&self, change: &Change<M, S>) {
        // E11: Relaxed, load and store: only touched under the lock that we hold.
        let adjust = |bond: &Bond, by: fn(u32) -> u32| {
            if let Some(slot) = self.slots.get(bond.base.slot) {
                let count = slot.dependants.load(Ordering::Relaxed);
                slot.dependants.store(by(count), Ordering::Relaxed); // E11
            }
        };
        for bond in self.old(change).map_or(&[][..], Node::binds) {
            adjust(bond, |count| count.saturating_sub(1));
        }
        for bond in change.binds() {
            adjust(bond, |count| count.saturating_add(1));
        }
    }

    /// The generation that `change` supersedes. Only inside the commit lock, after `check` set it.
    fn old(&self, change: &Change<M, S>) -> Option<&Node<M, S>> {
        // SAFETY: it is current in its slot, hence not superseded, hence not freed.
        unsafe { change.old.as_ref() }
    }

    fn sight(node: &Node<M, S>) -> Sight {
        Sight {
            tag: node.tag(),
            birth: node.birth(),
            retired: node.meta().is_none(),
        }
    }

    /// How many living sets are bound to the set in this slot. Under the commit lock: for writers.
    pub fn dependants(&self, key: Key) -> u32 {
        let _lock = self.commit.lock(); // E11
        // E11: Relaxed: under the lock.
        self.slots
            .get(key.slot)
            .map_or(0, |slot| slot.dependants.load(Ordering::Relaxed))
    }

    /// The registry's drop: everything current is superseded, without waiting for any epoch.
    /// Unleased bytes go to the reclaimer now; leases that outlive the registry are their takers.
    ///
    /// `&mut self`: no view exists, so no reader can reach a node.
    pub fn sweep(&mut self) {
        for index in 0..self.slots.end() {
            let Some(slot) = self.slots.get(index) else {
                continue;
            };
            // E2: Relaxed: `&mut self` orders everything before us.
            let current = slot.current.swap(ptr::null_mut(), Ordering::Relaxed);
            if let Some(node) = NonNull::new(current) {
                // SAFETY: current until this moment, hence valid until GRACE.
                if unsafe { node.as_ref() }.vitals().state().kill() {
                    // SAFETY: `kill` says that we are the taker.
                    unsafe { Node::take(node) };
                }
                // SAFETY: nobody can reach it (`&mut self`), and GRACE was not set before.
                unsafe { Node::let_go(node) };
            }
        }
    }
}

impl<M: Send + Sync + 'static, S: Storage> Drop for Spine<M, S> {
    fn drop(&mut self) {
        self.sweep();
    }
}

/// Between the first slot store and the clock store there is no way back.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}
