//! What sets are read from.
//!
//! What lives here: small sources of which some can be read again, the diary of when that happened, and
//! which sets went to make room. What does not: who asks for what (`acts`, `residency`).

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use weighbridge::policy::{Candidate, Policy, Sieve};
use weighbridge::source::{InMemory, Reload, Source};
use weighbridge::{Error, Plan, SetHandle};

use super::model::{Fill, can_be_read_again};
use crate::support::{addition, bytes};

/// The clock of a history, and what was read again by it.
#[derive(Debug, Default)]
pub struct Diary {
    clock: AtomicU64,
    read_again: Mutex<Vec<(u64, Fill)>>,
}

impl Diary {
    pub fn tick(&self) -> u64 {
        // The strongest order, so that the clock adds none that the library lacks but its own.
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// What was begun to be read again since `from`.
    pub fn read_since(&self, from: u64) -> Vec<Fill> {
        let all = self.read_again.lock().unwrap();
        let since = all.iter().filter(|one| one.0 > from);
        since.map(|one| one.1).collect()
    }
}

/// Eight bytes that are all the same.
pub struct Eight {
    set: Arc<InMemory>,
    fill: Fill,
    diary: Arc<Diary>,
}

impl Eight {
    pub fn new(fill: Fill, base: Option<SetHandle>, diary: &Arc<Diary>) -> Self {
        let set = match base {
            Some(base) => addition(8, fill, base),
            None => bytes(8, fill),
        };
        Eight {
            set: Arc::new(set),
            fill,
            diary: Arc::clone(diary),
        }
    }
}

impl Source for Eight {
    fn plan(&self) -> &Plan {
        self.set.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.set.read_into(arena)
    }

    fn base(&self) -> Option<SetHandle> {
        self.set.base()
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        can_be_read_again(self.fill).then(|| -> Arc<dyn Reload> {
            Arc::new(Again {
                set: Arc::clone(&self.set),
                fill: self.fill,
                diary: Arc::clone(&self.diary),
            })
        })
    }
}

struct Again {
    set: Arc<InMemory>,
    fill: Fill,
    diary: Arc<Diary>,
}

impl Reload for Again {
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        let now = self.diary.tick();
        self.diary.read_again.lock().unwrap().push((now, self.fill));
        read(&*self.set)
    }
}

thread_local! {
    static WENT: RefCell<Vec<SetHandle>> = const { RefCell::new(Vec::new()) };
}

/// SIEVE, and whoever's request had sets evicted knows which.
#[derive(Default)]
pub struct Telling(Sieve);

impl Policy for Telling {
    fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
        self.0.rank(candidates)
    }

    fn went(&mut self, sets: &[SetHandle]) {
        WENT.with_borrow_mut(|went| went.extend(sets));
        self.0.went(sets);
    }
}

/// What went for requests of this thread since it asked last.
pub fn went() -> Vec<SetHandle> {
    WENT.take()
}
