//! The calling thread's own participants, so that every thread may call the registry's methods
//! without carrying a [`Reader`](super::Reader).
//!
//! What lives here: one thread-local table, registry id to participant. What does not: pinning.
//!
//! A participant of a dropped registry is pruned when its thread next meets a new registry, and at
//! the latest when the thread exits.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use super::generation::{Spine, View};
use crate::sync::epoch::Participant;

struct Entry {
    registry: u32,
    alive: Weak<()>,
    participant: Participant,
}

crate::sync::thread_local! {
    static HERE: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

/// Opens a view through the calling thread's participant of this registry. Not to be refreshed.
#[inline(always)]
pub(super) fn view<'s>(registry: u32, alive: &Arc<()>, spine: &'s Spine) -> View<'s> {
    match known(registry, alive, spine) {
        Some(view) => view,
        // A participant for this one view. Its guard keeps it registered until the view is dropped.
        None => spine.view(&spine.register()),
    }
}

/// The same for a view that may be refreshed. A guard is pinned anew through its participant only;
/// if that is one of its own, it is kept in `own`.
#[inline]
pub(super) fn lasting_view<'s>(
    registry: u32,
    alive: &Arc<()>,
    spine: &'s Spine,
    own: &mut Option<Participant>,
) -> View<'s> {
    match known(registry, alive, spine) {
        Some(view) => view,
        None => spine.view(own.insert(spine.register())),
    }
}

/// `None`: the thread is ending, or a destructor in `retain` came back here.
#[inline(always)]
fn known<'s>(registry: u32, alive: &Arc<()>, spine: &'s Spine) -> Option<View<'s>> {
    // What comes out of the closure is two words, which go through registers. A view is three.
    let found = HERE.try_with(|here| {
        let here = here.try_borrow().ok()?;
        let entry = here.iter().find(|entry| entry.registry == registry)?;
        Some(entry.participant.pin())
    });
    match found {
        Ok(Some(guard)) => Some(spine.view_under(guard)),
        _ => enter(registry, alive, spine),
    }
}

/// The thread's first call.
#[cold]
fn enter<'s>(registry: u32, alive: &Arc<()>, spine: &'s Spine) -> Option<View<'s>> {
    let entered = HERE.try_with(|here| {
        let mut here = here.try_borrow_mut().ok()?;
        here.retain(|entry| entry.alive.strong_count() != 0);
        let participant = spine.register();
        let view = spine.view(&participant);
        here.push(Entry {
            registry,
            alive: Arc::downgrade(alive),
            participant,
        });
        Some(view)
    });
    entered.ok().flatten()
}

/// Hands over what the calling thread's participants have to let go of, so that other threads can do
/// it. A participant keeps up to 64 of them for itself, which for a thread that pins now and then is
/// for ever: what it collects on the way is nodes of the collector's queue, 2 KiB each. Handing over collects, too: up to
/// eight nodes are left.
#[cold]
pub(super) fn hand_over() {
    // An ending thread's participants hand over all they have.
    let _ = HERE.try_with(|here| {
        if let Ok(here) = here.try_borrow() {
            here.iter()
                .for_each(|entry| entry.participant.pin().flush());
        }
    });
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::HERE;
    use crate::WeightRegistry;

    #[test]
    fn participants_of_dropped_registries_are_pruned() {
        let known = || HERE.with(|here| here.borrow().len());
        std::thread::spawn(move || {
            let first = WeightRegistry::builder().build().unwrap();
            first.scope(|_| ());
            first.scope(|_| ());
            assert_eq!(known(), 1);
            drop(first);
            let second = WeightRegistry::builder().build().unwrap();
            second.scope(|_| assert_eq!(known(), 1, "the first one's was kept"));
        })
        .join()
        .unwrap();
    }
}
