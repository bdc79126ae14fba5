//! A future brought to its end on the thread that asks.
//!
//! What lives here: one way to wait for a future, for the tests and, by its path, for the examples; therefore it
//! uses nothing else of `support`. What does not: how the schedules do it (`shuttle-tests`), whose waits must be
//! the scheduler's own.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// A thread, and whether it was woken since it last looked: it may be unparked by others.
struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::Release);
        self.0.unpark();
    }
}

/// What `future` comes to. `None`: `patience` is over, and nobody has woken it.
pub fn block_on<F: Future>(future: F, patience: Duration) -> Option<F::Output> {
    let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    let deadline = Instant::now() + patience;
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(answer);
        }
        while !unpark.1.swap(false, Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            thread::park_timeout(left);
        }
    }
}
