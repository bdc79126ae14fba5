//! Making events: of a commit, of bytes that are back, of refusals.
//!
//! What lives here: what a commit tells of itself, whatever becomes of its caller's thread. What does
//! not: the ring that keeps the order (`events`).

use std::sync::Arc;

use super::catalog::CatalogEntry;
use super::event::{EventKind, Former};
use super::generation::{Change, Node, charged, generation};
use super::shared::Shared;
use crate::events::Ring;
use crate::handle::Generation;
use crate::sync::atomic::Ordering;

/// The events of one commit.
///
/// They are made before the commit, get their places inside it and are posted when this is dropped:
/// a commit that went through always posts, also when its thread unwinds, and one that did not posts
/// nothing.
pub(super) struct Posting<'r> {
    ring: &'r Ring<EventKind>,
    pub(super) places: Places<'r>,
    pub(super) changes: Changed,
}

/// Where a commit's events go.
pub(super) struct Places<'r> {
    ring: &'r Ring<EventKind>,
    count: u64,
    /// The commit and its first place.
    taken: Option<(Generation, u64)>,
}

/// What each change of a commit made current, and what was before.
pub(super) struct Changed {
    /// Those before are not told of: the stream would have come round before anybody read that.
    first: usize,
    told: Vec<(Option<CatalogEntry>, Option<Former>)>,
}

impl<'r> Posting<'r> {
    pub(super) fn new(shared: &'r Shared, changes: &[Change]) -> Self {
        let ring = &shared.events;
        // The generation is known later.
        let entry = |change: &Change| {
            let resident = !change.is_absent();
            Some(CatalogEntry::of(change.meta()?, Generation(0), resident))
        };
        let first = changes.len().saturating_sub(ring.capacity());
        Posting {
            ring,
            places: Places {
                ring,
                count: changes.len() as u64,
                taken: None,
            },
            changes: Changed {
                first,
                told: changes[first..]
                    .iter()
                    .map(|change| (entry(change), None))
                    .collect(),
            },
        }
    }
}

impl Places<'_> {
    /// The commit went through. Under the commit lock: commits get their places in their order, after
    /// the clock shows them. Neither allocates nor panics.
    pub(super) fn take(&mut self, number: u64) {
        let first = self.ring.reserve(self.count);
        self.taken = first.map(|first| (Generation(number), first));
    }
}

impl Changed {
    /// Notes what change `index` superseded, and has it told when its bytes are back. That gets its
    /// place after the commit's, since nobody can take the bytes before this returns.
    pub(super) fn superseded(&mut self, index: usize, node: &Node, shared: &Arc<Shared>) {
        let Some(meta) = node.meta() else {
            return;
        };
        let former = Former {
            name: meta.record.name.clone(),
            handle: meta.handle,
            generation: generation(node),
            bytes: charged(node),
        };
        let (shared, gone) = (Arc::clone(shared), former.clone());
        node.vitals().on_reclaimed(Box::new(move || {
            let former = gone.clone();
            shared.reclaimed(former);
        }));
        if let Some(told) = index.checked_sub(self.first) {
            self.told[told].1 = Some(former);
        }
    }
}

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        let Some((commit, first)) = self.places.taken else {
            return;
        };
        let changes = std::mem::take(&mut self.changes.told);
        let first = first + self.changes.first as u64;
        let last = first + changes.len() as u64 - 1;
        let events = (first..)
            .zip(changes)
            .filter_map(|(place, (now, previous))| {
                let more = (last - place) as usize;
                let now = now.map(|now| CatalogEntry {
                    generation: commit,
                    ..now
                });
                let event = match (now, previous) {
                    (Some(now), None) => EventKind::Published { commit, more, now },
                    (Some(now), Some(previous)) => EventKind::Replaced {
                        commit,
                        more,
                        now,
                        previous,
                    },
                    (None, Some(previous)) => EventKind::Retired {
                        commit,
                        more,
                        previous,
                    },
                    // A retired set whose last generation was not noted: this thread unwinds. Readers
                    // get past the place when the stream has come round, and are told of a gap.
                    (None, None) => return None,
                };
                Some((place, event))
            });
        self.ring.post(events);
    }
}

impl Shared {
    /// One event that belongs to no commit. Comes after everything that happened before the call.
    pub(super) fn tell(&self, event: EventKind) {
        if let Some(place) = self.events.reserve(1) {
            self.events.post([(place, event)]);
        }
    }

    /// Bytes are back. On the thread that freed them.
    fn reclaimed(&self, former: Former) {
        self.reclaimed.fetch_add(1, Ordering::Relaxed); // E17
        self.tell(EventKind::Reclaimed { former });
    }
}
