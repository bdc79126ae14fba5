//! A thread of a model that stands still in the middle of something, for the checked build only.
//!
//! What lives here: the place where it stops, counted in its own writes to our atomics. What does not: when
//! it may go on, which is the model's.

use std::cell::RefCell;

use loom::thread::{ThreadId, current};

struct Stop {
    thread: ThreadId,
    writes: usize,
    stand: Box<dyn FnOnce()>,
}

thread_local! {
    // All of a model's threads are coroutines of one system thread. One stop at a time is enough.
    static STOP: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// Has the calling thread run `stand` before the store or swap that comes after `writes` others of its own.
pub fn before_write(writes: usize, stand: impl FnOnce() + 'static) {
    let stop = Stop {
        thread: current().id(),
        writes,
        stand: Box::new(stand),
    };
    STOP.with(|place| *place.borrow_mut() = Some(stop));
}

/// The calling thread is about to write.
pub(super) fn about_to_write() {
    let due = STOP.with(|place| {
        let mut place = place.borrow_mut();
        let stop = place.as_mut()?;
        if stop.thread != current().id() {
            return None;
        }
        if stop.writes == 0 {
            return place.take();
        }
        stop.writes -= 1;
        None
    });
    if let Some(stop) = due {
        (stop.stand)();
    }
}
