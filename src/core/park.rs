//! Waiting on a thread for what wakes tasks.
//!
//! What lives here: a waker that is a thread, and the wait. What does not: what is waited for.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::thread::{self, Thread};

const RESTS: u32 = 0;
const WOKEN: u32 = 1;

/// Wakes a thread that waits.
struct Parker {
    thread: Thread,
    state: AtomicU32,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // E78: Relaxed: what the thread is woken for it reads through what it waits for, which has its own
        // edges.
        self.state.swap(WOKEN, Ordering::Relaxed);
        self.thread.unpark();
    }
}

/// Calls `poll` until it has an answer; `None`: it had none when the deadline had passed.
pub fn wait<T>(deadline: Option<Instant>, mut poll: impl FnMut(&Waker) -> Option<T>) -> Option<T> {
    let parker = Arc::new(Parker {
        thread: thread::current(),
        state: AtomicU32::new(RESTS),
    });
    let waker = Waker::from(Arc::clone(&parker));
    let left = || deadline.map(|at| at.saturating_duration_since(Instant::now()));
    loop {
        if let Some(answer) = poll(&waker) {
            return Some(answer);
        }
        // Whoever is woken all the time looks at the clock all the same.
        if left() == Some(Duration::ZERO) {
            return None;
        }
        // E78: Relaxed, as above. Every write is an exchange, so either this one finds WOKEN, or the wake-up
        // comes after it, and so does its unpark.
        while parker.state.swap(RESTS, Ordering::Relaxed) != WOKEN {
            match left() {
                None => thread::park(),
                Some(Duration::ZERO) => break,
                Some(left) => thread::park_for(left),
            }
        }
    }
}
