//! Threads that start together.
//!
//! What lives here: the gate, leaders and followers, and a shelf on which threads leave things for
//! each other. What does not: what they do.

use std::panic::resume_unwind;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

#[derive(Default)]
struct Gate {
    arrived: AtomicUsize,
    open: AtomicBool,
    /// Leaders that are not done.
    leading: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while !self.open.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

/// A leader that panics is done, too.
struct Leading(Arc<Gate>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.leading.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Threads that nobody has let go yet.
#[derive(Default)]
pub struct Crew {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub fn new() -> Self {
        Self::default()
    }

    fn hire(&mut self, work: impl FnOnce() + Send + 'static) {
        let gate = Arc::clone(&self.gate);
        self.threads.push(thread::spawn(move || {
            gate.pass();
            drop(gate);
            work();
        }));
    }

    /// Does `work` once.
    pub fn lead(&mut self, work: impl FnOnce() + Send + 'static) {
        self.gate.leading.fetch_add(1, Ordering::Relaxed);
        let leading = Leading(Arc::clone(&self.gate));
        self.hire(move || {
            let _leading = leading;
            work();
        });
    }

    /// Does `work` once, and again until all leaders are done.
    pub fn follow(&mut self, mut work: impl FnMut() + Send + 'static) {
        let gate = Arc::clone(&self.gate);
        self.hire(move || {
            loop {
                work();
                // Relaxed: only an end, which must not order what the two sides do.
                if gate.leading.load(Ordering::Relaxed) == 0 {
                    return;
                }
            }
        });
    }

    /// Opens the gate when everybody is there, and waits until everybody is done.
    pub fn work(self) {
        while self.gate.arrived.load(Ordering::Acquire) < self.threads.len() {
            thread::yield_now();
        }
        self.gate.open.store(true, Ordering::Release);
        let ends: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        for end in ends {
            end.unwrap_or_else(|panic| resume_unwind(panic));
        }
    }
}

/// Places where threads leave things for each other, one thing each.
pub struct Shelf<T>(Box<[AtomicPtr<T>]>);

impl<T: Send> Shelf<T> {
    pub fn new(places: usize) -> Self {
        Shelf((0..places).map(|_| AtomicPtr::default()).collect())
    }

    /// Leaves `thing` at a place, and takes what was there.
    pub fn swap(&self, place: usize, thing: Option<T>) -> Option<T> {
        let new = thing.map_or(ptr::null_mut(), |thing| Box::into_raw(Box::new(thing)));
        let old = self.0[place % self.0.len()].swap(new, Ordering::AcqRel);
        // SAFETY: made by `Box::into_raw` above, and taken out by exactly one swap.
        (!old.is_null()).then(|| *unsafe { Box::from_raw(old) })
    }
}

impl<T> Drop for Shelf<T> {
    fn drop(&mut self) {
        for place in &mut self.0 {
            let left = *place.get_mut();
            if !left.is_null() {
                // SAFETY: made by `Box::into_raw` in `swap`; nobody else is here.
                drop(unsafe { Box::from_raw(left) });
            }
        }
    }
}
