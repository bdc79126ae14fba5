//! Interning: one layout for all sets that have the same.
//!
//! What lives here: [`Interner`]. What does not: when two layouts are the same (`layout`).

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};

use super::Layout;
use crate::sync::Mutex;

/// Finds the layout that is already there. Holds none of them alive.
#[derive(Debug, Default)]
pub struct Interner {
    hasher: RandomState,
    known: Mutex<Known>,
}

/// Layouts by hash, and the size at which the dead ones are next swept out.
#[derive(Debug, Default)]
struct Known {
    layouts: HashMap<u64, Vec<Weak<Layout>>>,
    sweep_at: usize,
}

impl Known {
    fn sweep(&mut self) {
        self.layouts.retain(|_, same| {
            same.retain(|other| other.strong_count() != 0);
            !same.is_empty()
        });
        self.sweep_at = 2 * self.layouts.len() + 16;
    }
}

impl Interner {
    /// The shared layout that equals `layout`.
    pub fn intern(&self, layout: Layout) -> Arc<Layout> {
        let hash = self.hasher.hash_one(&layout);
        let mut known = self.known.lock(); // E15
        if known.layouts.len() >= known.sweep_at {
            known.sweep();
        }
        let same = known.layouts.entry(hash).or_default();
        // One that comes and goes again and again would leave one behind each time: a sweep is due by
        // how many different ones there are. Equal hashes are few.
        same.retain(|other| other.strong_count() != 0);
        if let Some(found) = same
            .iter()
            .filter_map(Weak::upgrade)
            .find(|other| **other == layout)
        {
            return found;
        }
        let layout = Arc::new(layout);
        same.push(Arc::downgrade(&layout));
        layout
    }

    /// How many layouts are in use.
    pub fn len(&self) -> usize {
        let mut known = self.known.lock(); // E15
        known.sweep();
        known.layouts.values().map(Vec::len).sum()
    }

    /// None in use?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::plan::Plan;

    /// Whoever publishes and retires one set again and again has one layout, and one dead one at most.
    #[test]
    fn a_layout_that_comes_and_goes_leaves_nothing() {
        let interner = Interner::default();
        for _ in 0..1_000 {
            let plan = Plan::of("again", [("w", Dtype::U8, vec![1])]).unwrap();
            drop(interner.intern(plan.layout()));
        }
        let known = interner.known.lock();
        let kept: usize = known.layouts.values().map(Vec::len).sum();
        assert!(kept <= 1, "{kept} dead layouts are kept");
    }
}
