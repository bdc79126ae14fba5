//! What sets are read from.
//!
//! What lives here: small sources of which some can be read again, and the diary of when that happened.
//! What does not: who asks for what (`acts`, `residency`).

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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

    /// What was read again, and when that began.
    pub fn read_again(&self) -> Vec<(u64, Fill)> {
        self.read_again.lock().unwrap().clone()
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
        if !UNNOTED.get() {
            let now = self.diary.tick();
            let mut read_again = self.diary.read_again.lock().unwrap();
            read_again.push((now, self.fill));
        }
        read(&*self.set)
    }
}

thread_local! {
    static UNNOTED: Cell<bool> = const { Cell::new(false) };
}

/// Whoever loads a set by hand says so; what it reads is not noted.
pub fn unnoted<T>(load: impl FnOnce() -> T) -> T {
    UNNOTED.set(true);
    let answer = load();
    UNNOTED.set(false);
    answer
}
