//! What has been done so far, and what is being done.
//!
//! What lives here: [`Counters`], written by the engine, read by whoever watches. What does not: the registry's own
//! figures.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weighbridge::Generation;

/// Tokens per second are of this long.
const WINDOW: Duration = Duration::from_secs(5);

/// Statistics: each number is exact, two of them may be of different moments. So all is Relaxed.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    recent: Mutex<VecDeque<(Instant, u64)>>,
    running: Mutex<BTreeMap<u64, Running>>,
}

/// A request that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) label: String,
    pub(crate) model: String,
    pub(crate) generation: Generation,
    pub(crate) since: Instant,
    pub(crate) tokens: u64,
}

impl Counters {
    /// Returns how many there are now.
    pub(crate) fn count(counter: &AtomicU64, more: u64) -> u64 {
        counter.fetch_add(more, Ordering::Relaxed) + more
    }

    pub(crate) fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// A step made so many tokens, one for each of these requests.
    pub(crate) fn step(&self, requests: &[u64]) {
        let more = requests.len() as u64;
        Self::count(&self.tokens, more);
        {
            let mut running = lock(&self.running);
            for request in requests {
                if let Some(one) = running.get_mut(request) {
                    one.tokens += 1;
                }
            }
        }
        let mut recent = lock(&self.recent);
        forget(&mut recent);
        recent.push_back((Instant::now(), more));
    }

    pub(crate) fn began(&self, request: u64, running: Running) {
        lock(&self.running).insert(request, running);
    }

    pub(crate) fn ended(&self, request: u64) {
        lock(&self.running).remove(&request);
    }

    /// Those that run, oldest first.
    pub(crate) fn running(&self) -> Vec<Running> {
        lock(&self.running).values().cloned().collect()
    }

    /// Over the last five seconds.
    pub(crate) fn tokens_per_second(&self) -> f64 {
        let mut recent = lock(&self.recent);
        forget(&mut recent);
        let tokens: u64 = recent.iter().map(|(_, tokens)| tokens).sum();
        tokens as f64 / WINDOW.as_secs_f64()
    }
}

fn forget(recent: &mut VecDeque<(Instant, u64)>) {
    while recent.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
        recent.pop_front();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
