//! Sets in memory, of which some can be evicted and read again.
//!
//! What lives here: the source. What does not: which tensors a set has (`roles`), evicting (`acts`).

use std::sync::Arc;

use weighbridge::source::{InMemory, Pieces, Reload, Source};
use weighbridge::{Error, Plan, SetHandle};

/// A set in memory. It is read again from there, so nothing is saved by evicting it but in the books.
pub struct Again {
    set: Arc<InMemory>,
    evictable: bool,
}

impl Again {
    pub fn new(set: InMemory, evictable: bool) -> Self {
        Again {
            set: Arc::new(set),
            evictable,
        }
    }
}

impl Source for Again {
    fn plan(&self) -> &Plan {
        self.set.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.set.read_into(arena)
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        self.set.pieces()
    }

    fn declared(&self) -> Option<&str> {
        Source::declared(&*self.set)
    }

    fn base(&self) -> Option<SetHandle> {
        self.set.base()
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        let reload = || Arc::new(Kept(Arc::clone(&self.set))) as Arc<dyn Reload>;
        self.evictable.then(reload)
    }
}

struct Kept(Arc<InMemory>);

impl Reload for Kept {
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        read(&*self.0)
    }
}
