//! A commit: what a writer does around `install`.
//!
//! What lives here: W1's check, the install, and W7: superseding what was current (S8, S9). What does
//! not: the steps under the lock (`spine`).

use std::ptr::NonNull;

use smallvec::SmallVec;

use super::node::{Node, Storage};
use super::spine::{Change, Refusal};
use super::view::View;

impl<'s, M: Send + Sync + 'static, S: Storage> View<'s, M, S> {
    /// Makes all `changes` current at one instant, or none.
    ///
    /// `committed` learns the number while the commit lock is still held, so its calls come in the
    /// order of commits; it must be short and must not panic. `superseded` sees each generation that
    /// was current before, with its change's index, after the commit and before the generation
    /// refuses leases.
    pub fn commit(
        &self,
        changes: &mut [Change<M, S>],
        committed: impl FnOnce(u64),
        mut superseded: impl FnMut(usize, &Node<M, S>, Option<&S>),
    ) -> Result<u64, Refusal> {
        // W1: a slot named twice would be its own predecessor.
        let mut order: SmallVec<[(u32, usize); 2]> = changes
            .iter()
            .enumerate()
            .map(|(index, change)| (change.slot, index))
            .collect();
        order.sort_unstable();
        if let Some(pair) = order.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Refusal::Twice { index: pair[1].1 });
        }
        let number = self.spine().install(changes, &order, committed)?;
        let mut any = false;
        for (index, change) in changes.iter().enumerate() {
            let Some(old) = NonNull::new(change.old.cast_mut()) else {
                continue;
            };
            any = true;
            // SAFETY: valid: only we superseded it, and GRACE is deferred below.
            let node = unsafe { old.as_ref() };
            // SAFETY: superseded and not killed yet, so its bytes are still there.
            superseded(index, node, unsafe { node.storage() });
            // S8: after the clock (E5).
            if node.vitals().state().kill() {
                // SAFETY: `kill` says that we are the taker.
                unsafe { Node::take(old) };
            }
            // SAFETY: S9: the node was unlinked by the clock store before this; who pins later
            // reads a clock that does not lead to it (docs/MEMORY_ORDERING.md). The closure uses no
            // thread-local and does not allocate.
            unsafe { self.guard().defer(move || Node::let_go(old)) };
        }
        if any {
            // An unfinished bag of garbage would wait for its thread's next hundred pins.
            self.guard().flush();
        }
        Ok(number)
    }
}
