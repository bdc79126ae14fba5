//! Entering in the books what was done.
//!
//! What lives here: [`Books`]. What does not: the tables themselves (`index`), the lock that guards all of
//! it (`registry`, E30).

use std::ops::{Deref, DerefMut};

use super::index::{Entry, Index, Now};
use crate::handle::SetHandle;
use crate::names::SetName;
use crate::registry::WeightRegistry;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Books {
    index: Index,
}

/// A weight that was just published, to be entered.
pub(super) struct Coming<'n> {
    pub(super) set: SetHandle,
    pub(super) name: SetName,
    pub(super) adapter: Option<&'n str>,
}

impl Deref for Books {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

impl DerefMut for Books {
    fn deref_mut(&mut self) -> &mut Index {
        &mut self.index
    }
}

impl Books {
    /// Enters what we published. What somebody retired since is not entered.
    pub(super) fn enter<'n>(
        &mut self,
        registry: &WeightRegistry,
        all: impl IntoIterator<Item = Coming<'n>>,
    ) {
        registry.scope(|scope| {
            for Coming { set, name, adapter } in all {
                let Ok(view) = scope.get(set) else { continue };
                let entry = Entry::new(name, Now::of(&view));
                self.index.insert(set, entry, adapter);
            }
        });
    }

    /// Strikes out what we retired.
    pub(super) fn strike(&mut self, sets: &[SetHandle]) {
        sets.iter().for_each(|&set| self.index.remove(set));
    }
}
