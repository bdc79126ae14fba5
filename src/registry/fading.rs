//! Metadata that was superseded and that some reader may still look at.
//!
//! What lives here: how long ago the oldest of it was superseded, which is how long some scope has been
//! open at least: scopes read no clock, commits do. What does not: letting go (`core`), bytes, which do
//! not wait for scopes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::Vitals;
use crate::sync::Mutex;
use crate::sync::epoch::Participant;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Fading(Mutex<VecDeque<(Instant, Arc<Vitals>)>>);

/// What is still looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lingering {
    pub(super) generations: usize,
    pub(super) oldest: Option<Duration>,
}

impl Fading {
    /// A generation was superseded just now.
    pub(super) fn add(&self, vitals: Arc<Vitals>) {
        let mut fading = self.0.lock(); // E28
        // The epoch lets go more or less in order, so each is looked at here about once.
        while fading
            .front()
            .is_some_and(|(_, one)| one.state().is_let_go())
        {
            fading.pop_front();
        }
        fading.push_back((Instant::now(), vitals));
    }

    /// Moves the epoch as far as readers let it, then counts what is left: that is held by somebody
    /// who reads at this moment, or was superseded a moment ago.
    pub(super) fn look(&self, me: impl FnOnce() -> Participant) -> Lingering {
        let mut left = self.count();
        if left.generations == 0 {
            return left;
        }
        let me = me();
        loop {
            // A bag that is full of closures goes when the epoch has moved twice since it was filled.
            (0..3).for_each(|_| me.pin().flush());
            let now = self.count();
            if now.generations == 0 || now.generations >= left.generations {
                return now;
            }
            left = now;
        }
    }

    fn count(&self) -> Lingering {
        let mut fading = self.0.lock(); // E28
        fading.retain(|(_, one)| !one.state().is_let_go());
        Lingering {
            generations: fading.len(),
            oldest: fading.front().map(|(since, _)| since.elapsed()),
        }
    }
}
