//! Weights that are on their way for those who wait.
//!
//! What lives here: the futures, and which of them were woken. What does not: whose turn it is to be asked for, and
//! what an answer means (`fetch`), reading (the registry's own threads).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use weighbridge::{AcquireOrLoad, Error, Lease, WeightRegistry};

use crate::bell::Bell;
use crate::sync::Mutex;
use crate::wants::Wants;

/// One load for all who want the same.
pub(crate) struct Loads {
    asked: BTreeMap<Wants, Asked>,
    bell: Arc<Bell>,
}

struct Asked {
    future: AcquireOrLoad,
    /// In which round it was asked for.
    round: u64,
    woken: Arc<Woken>,
}

/// Set by the registry's threads, and looked at once a round.
struct Woken {
    news: Mutex<bool>,
    bell: Arc<Bell>,
}

impl Woken {
    fn set(&self, news: bool) -> bool {
        let mut own = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut own, news)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the bell: whoever hears it finds this.
        self.set(true);
        self.bell.ring();
    }
}

impl Loads {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Loads {
            asked: BTreeMap::new(),
            bell,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.asked.len()
    }

    /// In which round this was asked for.
    pub(crate) fn asked_in(&self, wants: Wants) -> Option<u64> {
        self.asked.get(&wants).map(|asked| asked.round)
    }

    /// Forgets what nobody wants any more.
    pub(crate) fn keep(&mut self, wanted: &[Wants]) {
        self.asked.retain(|wants, _| wanted.contains(wants));
    }

    pub(crate) fn ask(&mut self, registry: &Arc<WeightRegistry>, wants: Wants, round: u64) {
        let woken = Arc::new(Woken {
            news: Mutex::new(true),
            bell: Arc::clone(&self.bell),
        });
        let asked = Asked {
            future: wants.load(registry),
            round,
            woken,
        };
        self.asked.insert(wants, asked);
    }

    /// What the load came to. `None`: nothing so far; or it was not asked for.
    pub(crate) fn answer(&mut self, wants: Wants) -> Option<Result<Lease, Error>> {
        let asked = self.asked.get_mut(&wants)?;
        // Cleared first: what wakes it while it is polled counts for the next round.
        if !asked.woken.set(false) {
            return None;
        }
        // Out of the list while foreign code may run: what panics is not polled again.
        let mut asked = self.asked.remove(&wants)?;
        let waker = Waker::from(Arc::clone(&asked.woken));
        let polled = Pin::new(&mut asked.future).poll(&mut Context::from_waker(&waker));
        match polled {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => {
                self.asked.insert(wants, asked);
                None
            }
        }
    }
}
