//! A precise model of epoch reclamation, for the checkers only.
//!
//! It frees at the earliest moment that the contract allows: when the last guard that was pinned at
//! the defer is gone. It orders no more than the contract: (1) an unpin comes before the frees that
//! follow it; (2) a pin either holds back what is deferred, or the defer comes before it (a
//! collector that frees as early as this one advances its epoch at the defer; a pin that does not
//! see that is one that it waits for).
//!
//! What is pinned and what waits is kept in plain state: the checker runs all threads as coroutines
//! of one system thread and switches only inside its own operations, none of which is called while
//! that state is borrowed. Its own atomics are there for the edges, and so that pinning and deferring
//! are switch points that depend on each other.

use std::sync::{Arc, Mutex, MutexGuard};

#[cfg(weighbridge_loom)]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(weighbridge_shuttle)]
use shuttle::sync::atomic::{AtomicUsize, Ordering};

type Closure = Box<dyn FnOnce()>;

/// One pinned stretch of one participant.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stretch {
    member: usize,
    number: usize,
}

struct Garbage {
    held_by: Vec<Stretch>,
    closure: Closure,
}

struct Member {
    id: usize,
    state: Mutex<Pins>,
}

#[derive(Default)]
struct Pins {
    depth: usize,
    number: usize,
    /// Its participant is dropped: it leaves with its last guard, which holds garbage back until then.
    orphaned: bool,
}

#[derive(Default)]
struct State {
    members: Vec<Arc<Member>>,
    next: usize,
    garbage: Vec<Garbage>,
}

struct Global {
    /// Edge (1).
    unpinned: AtomicUsize,
    /// Edge (2).
    deferred: AtomicUsize,
    state: Mutex<State>,
}

// SAFETY: closures run on whichever coroutine unpins last; all are one system thread.
unsafe impl Send for Global {}
// SAFETY: as above.
unsafe impl Sync for Global {}

/// Plain state, never borrowed across an operation of the checker, so never contended.
fn borrow<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.try_lock().expect("borrowed across a switch")
}

/// See the module documentation.
#[derive(Clone)]
pub struct Collector(Arc<Global>);

/// A thread's registration.
pub struct Participant {
    global: Arc<Global>,
    member: Arc<Member>,
}

/// A pinned stretch, or one nested in it.
pub struct Guard {
    global: Arc<Global>,
    member: Arc<Member>,
}

impl Collector {
    /// A collector of its own.
    pub fn new() -> Self {
        Collector(Arc::new(Global {
            unpinned: AtomicUsize::new(0),
            deferred: AtomicUsize::new(0),
            state: Mutex::new(State::default()),
        }))
    }

    /// Registers the calling thread.
    pub fn register(&self) -> Participant {
        let mut state = borrow(&self.0.state);
        let id = state.next;
        state.next += 1;
        let member = Arc::new(Member {
            id,
            state: Mutex::default(),
        });
        state.members.push(Arc::clone(&member));
        drop(state);
        Participant {
            global: Arc::clone(&self.0),
            member,
        }
    }
}

impl Participant {
    /// Pins.
    pub fn pin(&self) -> Guard {
        let guard = Guard {
            global: Arc::clone(&self.global),
            member: Arc::clone(&self.member),
        };
        guard.enter();
        guard
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let mut pins = borrow(&self.member.state);
        pins.orphaned = true;
        if pins.depth == 0 {
            drop(pins);
            borrow(&self.global.state).forget(&self.member);
        }
    }
}

impl State {
    fn forget(&mut self, member: &Member) {
        self.members.retain(|other| other.id != member.id);
    }
}

impl Guard {
    /// Is it one of `collector`'s?
    pub fn belongs_to(&self, collector: &Collector) -> bool {
        Arc::ptr_eq(&self.global, &collector.0)
    }

    fn enter(&self) {
        if borrow(&self.member.state).depth == 0 {
            // A switch point that depends on every defer, and edge (2).
            self.global.deferred.fetch_add(1, Ordering::Acquire);
        }
        let mut pins = borrow(&self.member.state);
        pins.number += usize::from(pins.depth == 0);
        pins.depth += 1;
    }

    fn leave(&self) {
        if borrow(&self.member.state).depth > 1 {
            borrow(&self.member.state).depth -= 1;
            return;
        }
        // Edge (1).
        self.global.unpinned.fetch_add(1, Ordering::Release);
        let (stretch, orphaned) = {
            let mut pins = borrow(&self.member.state);
            pins.depth = 0;
            let stretch = Stretch {
                member: self.member.id,
                number: pins.number,
            };
            (stretch, pins.orphaned)
        };
        let ready: Vec<Garbage> = {
            let mut state = borrow(&self.global.state);
            if orphaned {
                state.forget(&self.member);
            }
            for garbage in &mut state.garbage {
                garbage.held_by.retain(|held| *held != stretch);
            }
            let all = std::mem::take(&mut state.garbage);
            let (ready, waiting) = all.into_iter().partition(|g| g.held_by.is_empty());
            state.garbage = waiting;
            ready
        };
        self.global.run(ready);
    }

    /// Runs `f` when every guard that is pinned now is gone.
    ///
    /// # Safety
    /// `f` runs later, on any thread.
    pub unsafe fn defer<F: FnOnce()>(&self, f: F) {
        // A switch point that depends on every pin, and edge (2).
        self.global.deferred.fetch_add(1, Ordering::Release);
        let closure: Box<dyn FnOnce() + '_> = Box::new(f);
        // SAFETY: the caller's: what `f` refers to lives until it has run.
        let closure = unsafe { std::mem::transmute::<Box<dyn FnOnce() + '_>, Closure>(closure) };
        let mut state = borrow(&self.global.state);
        let mut held_by = Vec::new();
        for member in &state.members {
            let pins = borrow(&member.state);
            if pins.depth > 0 {
                held_by.push(Stretch {
                    member: member.id,
                    number: pins.number,
                });
            }
        }
        state.garbage.push(Garbage { held_by, closure });
    }

    /// Nothing to do: garbage never waits for a flush here.
    pub fn flush(&self) {}

    /// Unpins and pins again, if this is the only guard of its participant.
    pub fn repin(&mut self) {
        if borrow(&self.member.state).depth == 1 {
            self.leave();
            self.enter();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Global {
    fn run(&self, ready: Vec<Garbage>) {
        if ready.is_empty() {
            return;
        }
        // Edge (1).
        self.unpinned.fetch_add(1, Ordering::Acquire);
        for garbage in ready {
            (garbage.closure)();
        }
    }
}

impl Drop for Global {
    fn drop(&mut self) {
        let left = std::mem::take(&mut borrow(&self.state).garbage);
        if !std::thread::panicking() {
            self.run(left);
        }
    }
}
