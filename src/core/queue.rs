//! A list that many threads push to and one thread empties, and how that thread sleeps.
//!
//! What lives here: the intrusive lock-free list, sleep, wake-ups and the end. What does not: what is
//! done with what was pushed (`reclaim`: frees it; `keeper`: keeps it until it may go).
//!
//! One word tells everything: a list of hooks, or `SLEEPING` (the thread has parked, wake it), or
//! `RUNG` (nothing was pushed, but look again before you sleep), or `CLOSED` (nobody will ever look
//! again).

use std::collections::VecDeque;
use std::ptr::{self, NonNull};
use std::time::Duration;

use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::cell::Plain;
use crate::sync::thread::{self, Thread};

/// The head of every object that can be queued: first field, `#[repr(C)]`, so that a pointer to the
/// object is a pointer to its hook.
pub struct Hook(Plain<*mut Hook>);

impl Hook {
    /// A hook that is not queued.
    pub fn new() -> Self {
        Hook(Plain::new(ptr::null_mut()))
    }
}

fn sleeping() -> *mut Hook {
    ptr::without_provenance_mut(1)
}

fn closed() -> *mut Hook {
    ptr::without_provenance_mut(2)
}

fn rung() -> *mut Hook {
    ptr::without_provenance_mut(3)
}

/// The list. Any thread pushes and rings; the one thread that was named takes and sleeps.
pub struct Queue {
    head: AtomicPtr<Hook>,
    thread: OnceLock<Thread>,
}

impl Queue {
    /// Open and empty.
    pub fn open() -> Self {
        Queue {
            head: AtomicPtr::new(ptr::null_mut()),
            thread: OnceLock::new(),
        }
    }

    /// Names the thread that pushers wake. Called once, before the first push.
    pub fn staff(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    /// Adds an object. Lock-free, does not allocate. `false`: the queue is closed, and the object
    /// is the caller's again.
    ///
    /// # Safety
    /// The caller owns the object and gives it up. The queue stays alive during the call without
    /// the object's help.
    #[must_use]
    pub unsafe fn push(&self, hook: NonNull<Hook>) -> bool {
        // E7: Relaxed: the value is only compared, or is a sentinel that carries no data.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                return false;
            }
            let next = if head == sleeping() || head == rung() {
                ptr::null_mut()
            } else {
                head
            };
            // SAFETY: the object is ours until the exchange below succeeds.
            unsafe { (*hook.as_ptr()).0.set(next) };
            // E7: Release publishes the object to `take`; later pushes continue the sequence.
            match self.head.compare_exchange_weak(
                head,
                hook.as_ptr(),
                Ordering::Release, // E7
                Ordering::Relaxed, // E7
            ) {
                Ok(_) => {
                    if head == sleeping() {
                        self.wake();
                    }
                    return true;
                }
                Err(now) => head = now,
            }
        }
    }

    /// Makes the thread look once more from here on, asleep or not. Lock-free, does not allocate.
    pub fn ring(&self) {
        // E21: Relaxed: only compared.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // A list is looked at anyway; it is written back so that what the caller did before
            // happens before that look.
            let next = if head.is_null() || head == sleeping() {
                rung()
            } else {
                head
            };
            // E21: Release: what the caller did before is seen by the look that this asks for.
            match self.head.compare_exchange_weak(
                head,
                next,
                Ordering::Release, // E21
                Ordering::Relaxed, // E21
            ) {
                Ok(_) if head == sleeping() => return self.wake(),
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Moves everything queued to the end of `waiting`, oldest first. `false`: closed.
    pub fn take(&self, waiting: &mut VecDeque<NonNull<Hook>>) -> bool {
        // E7: Relaxed: only compared; the exchange below acquires.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                return false;
            }
            if head.is_null() || head == sleeping() {
                return true;
            }
            // A swap would overwrite CLOSED. E7, E21: Acquire: the objects are ours, and what came
            // before a ring is seen.
            match self.head.compare_exchange_weak(
                head,
                ptr::null_mut(),
                Ordering::Acquire, // E7
                Ordering::Relaxed, // E7
            ) {
                Ok(_) => {
                    Self::unchain(head, waiting);
                    return true;
                }
                Err(now) => head = now,
            }
        }
    }

    /// Closes the queue, wakes its thread, and moves what was still in it to `waiting`. From here on
    /// every push is refused.
    pub fn close(&self, waiting: &mut VecDeque<NonNull<Hook>>) {
        // E7: Acquire: what was pushed comes before what we do with it.
        let head = self.head.swap(closed(), Ordering::Acquire);
        if head == sleeping() {
            self.wake();
        } else if head != closed() {
            // The thread is awake: it finds CLOSED at its next look, and cannot sleep over it.
            Self::unchain(head, waiting);
        }
    }

    /// Parks until there is something to do. Only the queue's thread sleeps.
    pub fn sleep(&self) {
        if self.lie_down() {
            // E8: a spurious wake-up finds SLEEPING unchanged and parks again.
            while self.head.load(Ordering::Relaxed) == sleeping() {
                thread::park();
            }
        }
    }

    /// Parks until there is something to do, or for about `most`. Only the queue's thread naps.
    pub fn nap(&self, most: Duration) {
        if self.lie_down() {
            thread::park_for(most);
            // E8: nobody woke us: awake again by ourselves. If it fails, somebody did.
            let _ = self.head.compare_exchange(
                sleeping(),
                ptr::null_mut(),
                Ordering::Relaxed, // E8
                Ordering::Relaxed, // E8
            );
        }
    }

    fn lie_down(&self) -> bool {
        // E8: one word: either the exchange sees the newest push or ring and fails, or that push or
        // ring sees SLEEPING and wakes us. No second variable, so no store-load race.
        let napping = self.head.compare_exchange(
            ptr::null_mut(),
            sleeping(),
            Ordering::Relaxed, // E8
            Ordering::Relaxed, // E8
        );
        napping.is_ok()
    }

    fn unchain(head: *mut Hook, waiting: &mut VecDeque<NonNull<Hook>>) {
        let first_new = waiting.len();
        let mut cursor = if head == rung() {
            ptr::null_mut()
        } else {
            head
        };
        while let Some(hook) = NonNull::new(cursor) {
            // SAFETY: the list was taken out of `head` with Acquire, so its hooks are ours (E7).
            cursor = unsafe { hook.as_ref() }.0.get();
            waiting.push_back(hook);
        }
        // The list is newest first.
        waiting.make_contiguous()[first_new..].reverse();
    }
}
