//! The reclaimer's queue: where what is no longer needed goes, so that frees happen on one thread
//! that serves nobody.
//!
//! What lives here: an intrusive lock-free list, its sleep and shutdown protocol, and the loop that
//! empties it. What does not: what is freed (`node`: parcels of bytes and nodes), the thread's
//! owner (`registry`).
//!
//! One word tells everything: a list of links, or `SLEEPING` (the thread has parked, wake it), or
//! `CLOSED` (there is no thread any more: whoever pushes frees at once, by itself).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::sync::cell::Plain;
use crate::sync::thread::{self, Thread};

/// What the queue may do with a link's object. Type-erased, since bytes and nodes share the queue.
pub struct Errand {
    /// Tell whoever waits that the object has arrived here. May lock, must not free.
    pub arrive: unsafe fn(NonNull<Link>),
    /// Free the object. Calls `step` between the pieces of a long job.
    pub finish: unsafe fn(NonNull<Link>, &mut dyn FnMut()),
}

/// The head of every object that can be queued: first field, `#[repr(C)]`, so that a pointer to the
/// object is a pointer to its link.
pub struct Link {
    next: Plain<*mut Link>,
    errand: &'static Errand,
}

impl Link {
    /// A link that is not queued.
    pub fn new(errand: &'static Errand) -> Self {
        Link {
            next: Plain::new(ptr::null_mut()),
            errand,
        }
    }
}

fn sleeping() -> *mut Link {
    ptr::without_provenance_mut(1)
}

fn closed() -> *mut Link {
    ptr::without_provenance_mut(2)
}

/// The queue. One thread runs [`Reclaimer::run`]; any thread pushes.
pub struct Reclaimer {
    head: AtomicPtr<Link>,
    thread: OnceLock<Thread>,
    /// Errands that panicked (a foreign destructor). Their other objects were freed all the same.
    panics: AtomicU64,
}

// SAFETY: the links in `head` are owned by the queue and are objects that their types allow to be
// sent to and freed by another thread (`Node` and `Parcel` require `M: Send + Sync`, `S: Send +
// Sync`). Guarded by the loom models `reclaimer_*`.
unsafe impl Send for Reclaimer {}
// SAFETY: as above; all shared access goes through the atomics.
unsafe impl Sync for Reclaimer {}

impl Reclaimer {
    /// An open queue. Its thread must call [`Reclaimer::staff`] before anyone pushes.
    pub fn open() -> Self {
        Reclaimer {
            head: AtomicPtr::new(ptr::null_mut()),
            thread: OnceLock::new(),
            panics: AtomicU64::new(0),
        }
    }

    /// A queue without a thread: every push frees at once. For tests and models.
    #[cfg(any(test, weighbridge_loom))]
    pub fn closed() -> Self {
        let queue = Self::open();
        // E7: nothing was pushed yet.
        queue.head.store(closed(), Ordering::Relaxed);
        queue
    }

    /// Names the thread that pushers wake. Called once, before the first push.
    pub fn staff(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    /// Errands that panicked so far.
    pub fn panics(&self) -> u64 {
        // E7: a statistic; nothing is read through it.
        self.panics.load(Ordering::Relaxed)
    }

    /// Hands `link`'s object to the queue. Lock-free, does not allocate; on a closed queue it frees
    /// the object here and now.
    ///
    /// # Safety
    /// The caller owns the object and gives it up. The queue stays alive during the call without
    /// the object's help.
    pub unsafe fn push(&self, link: NonNull<Link>) {
        // E7: Relaxed: the value is only compared, or is a sentinel that carries no data.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                self.attend(link);
                self.dispose(link, &mut || {});
                return;
            }
            let next = if head == sleeping() {
                ptr::null_mut()
            } else {
                head
            };
            // SAFETY: `link` is ours until the exchange below succeeds.
            unsafe { (*link.as_ptr()).next.set(next) };
            // E7: Release publishes the object to `take`; later pushes continue the sequence.
            match self.head.compare_exchange_weak(
                head,
                link.as_ptr(),
                Ordering::Release, // E7
                Ordering::Relaxed, // E7
            ) {
                Ok(_) => {
                    if head == sleeping() {
                        self.wake();
                    }
                    return;
                }
                Err(now) => head = now,
            }
        }
    }

    /// Gives the queue work that is none, so that its thread tidies up once more from here on.
    pub fn nudge(&self) {
        const ERRAND: &Errand = &Errand {
            arrive: |_| (),
            // SAFETY: this errand is only put into the links made below.
            finish: |link, _| drop(unsafe { Box::from_raw(link.as_ptr()) }),
        };
        let link = NonNull::from(Box::leak(Box::new(Link::new(ERRAND))));
        // SAFETY: the link is its own object, and given up here; we hold the queue.
        unsafe { self.push(link) };
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The reclaimer thread's life: returns when the queue is closed. Before it sleeps, and after
    /// there was work, it calls `tidy`, which says whether to look for work again.
    pub fn run(&self, mut tidy: impl FnMut() -> bool) {
        let mut worked = false;
        let mut waiting = VecDeque::new();
        loop {
            let open = self.take(&mut waiting);
            if let Some(link) = waiting.pop_front() {
                worked = true;
                // A long job looks up between its pieces, so that a drain that others wait for is
                // announced while gigabytes are being unmapped.
                self.dispose(link, &mut || {
                    self.take(&mut waiting);
                });
            } else if !open {
                return;
            } else if !(std::mem::take(&mut worked) && tidy()) {
                self.sleep();
            }
        }
    }

    /// Closes the queue and frees, on the calling thread, what was still in it. From here on every
    /// push frees by itself. The thread that runs the queue wakes up and returns after its last job.
    pub fn close(&self) {
        // E7: Acquire: what was pushed comes before what we do with it.
        let head = self.head.swap(closed(), Ordering::Acquire);
        if head == sleeping() {
            self.wake();
        } else if head != closed() {
            // The thread is awake: it finds CLOSED at its next look, and cannot nap over it.
            let mut waiting = VecDeque::new();
            self.unchain(head, &mut waiting);
            for link in waiting {
                self.dispose(link, &mut || {});
            }
        }
    }

    /// Parks until there is something to do. Only the reclaimer thread sleeps.
    fn sleep(&self) {
        // E8: one word: either the exchange sees the newest push and fails, or the push sees
        // SLEEPING and wakes us. No second variable, so no store-load race.
        let napping = self.head.compare_exchange(
            ptr::null_mut(),
            sleeping(),
            Ordering::Relaxed, // E8
            Ordering::Relaxed, // E8
        );
        if napping.is_ok() {
            // E8: a spurious wake-up finds SLEEPING unchanged and parks again.
            while self.head.load(Ordering::Relaxed) == sleeping() {
                thread::park();
            }
        }
    }

    /// Moves everything queued to `waiting`, oldest first, and announces it. `false`: closed.
    fn take(&self, waiting: &mut VecDeque<NonNull<Link>>) -> bool {
        // E7: Relaxed: only compared; the exchange below acquires.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                return false;
            }
            if head.is_null() || head == sleeping() {
                return true;
            }
            // A swap would overwrite CLOSED. E7: Acquire: the objects are ours to read and free.
            match self.head.compare_exchange_weak(
                head,
                ptr::null_mut(),
                Ordering::Acquire, // E7
                Ordering::Relaxed, // E7
            ) {
                Ok(_) => {
                    self.unchain(head, waiting);
                    return true;
                }
                Err(now) => head = now,
            }
        }
    }

    fn unchain(&self, head: *mut Link, waiting: &mut VecDeque<NonNull<Link>>) {
        let first_new = waiting.len();
        let mut cursor = head;
        while let Some(link) = NonNull::new(cursor) {
            // SAFETY: the list was taken out of `head` with Acquire, so its links are ours (E7).
            cursor = unsafe { link.as_ref() }.next.get();
            self.attend(link);
            waiting.push_back(link);
        }
        // The list is newest first.
        waiting.make_contiguous()[first_new..].reverse();
    }

    fn attend(&self, link: NonNull<Link>) {
        // SAFETY: the object is alive and ours; its errand was made for its type (`Link::new`).
        self.count(panics(|| unsafe { (link.as_ref().errand.arrive)(link) }));
    }

    fn dispose(&self, link: NonNull<Link>, step: &mut dyn FnMut()) {
        // SAFETY: as in `attend`; this is the last use of the object.
        self.count(panics(|| unsafe {
            (link.as_ref().errand.finish)(link, step);
        }));
    }

    fn count(&self, panicked: bool) {
        if panicked {
            // E7: a statistic.
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs a job that may be somebody else's code, and says whether it panicked. The panic stays inside,
/// and so does that of its payload's destructor, which is foreign, too.
pub(crate) fn panics(job: impl FnOnce()) -> bool {
    let Err(payload) = catch_unwind(AssertUnwindSafe(job)) else {
        return false;
    };
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // There must be an end to it: that one's destructor does not run.
        std::mem::forget(again);
    }
    true
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        // Nobody pushes and nobody runs any more. Normally closed long ago.
        self.close();
    }
}
