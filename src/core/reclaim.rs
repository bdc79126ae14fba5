//! The reclaimer: where what is no longer needed goes, so that frees happen on one thread that
//! serves nobody.
//!
//! What lives here: the errands and the loop that runs them. What does not: the list and its sleep
//! (`queue`), what is freed (`node`: parcels of bytes and nodes), the thread's owner (`registry`).
//!
//! On a closed queue there is no thread any more: whoever pushes frees at once, by itself.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use super::queue::{Hook, Queue};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::Thread;

/// What the queue may do with a link's object. Type-erased, since bytes and nodes share the queue.
pub struct Errand {
    /// Tell whoever waits that the object has arrived here. May lock, must not free.
    pub arrive: unsafe fn(NonNull<Link>),
    /// Free the object. Calls `step` between the pieces of a long job.
    pub finish: unsafe fn(NonNull<Link>, &mut dyn FnMut()),
}

/// The head of every object that can be given to the reclaimer: first field, `#[repr(C)]`, so that
/// a pointer to the object is a pointer to its link, and that one to its hook.
#[repr(C)]
pub struct Link {
    hook: Hook,
    errand: &'static Errand,
}

impl Link {
    /// A link that is not queued.
    pub fn new(errand: &'static Errand) -> Self {
        Link {
            hook: Hook::new(),
            errand,
        }
    }
}

/// The queue. One thread runs [`Reclaimer::run`]; any thread pushes.
pub struct Reclaimer {
    queue: Queue,
    /// Errands that panicked (a foreign destructor). Their other objects were freed all the same.
    panics: AtomicU64,
}

// SAFETY: the links in the queue are owned by it and are objects that their types allow to be sent
// to and freed by another thread (`Node` and `Parcel` require `M: Send + Sync`, `S: Send + Sync`).
// Guarded by the loom models `reclaimer*`.
unsafe impl Send for Reclaimer {}
// SAFETY: as above; all shared access goes through the atomics.
unsafe impl Sync for Reclaimer {}

impl Reclaimer {
    /// An open queue. Its thread must call [`Reclaimer::staff`] before anyone pushes.
    pub fn open() -> Self {
        Reclaimer {
            queue: Queue::open(),
            panics: AtomicU64::new(0),
        }
    }

    /// A queue without a thread: every push frees at once. For tests and models.
    #[cfg(any(test, weighbridge_loom))]
    pub fn closed() -> Self {
        let reclaimer = Self::open();
        reclaimer.queue.close(&mut VecDeque::new());
        reclaimer
    }

    /// Names the thread that pushers wake. Called once, before the first push.
    pub fn staff(&self, thread: Thread) {
        self.queue.staff(thread);
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
        // SAFETY: the caller's; a link begins with its hook.
        if !unsafe { self.queue.push(link.cast()) } {
            self.attend(link);
            self.dispose(link, &mut || {});
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
                self.dispose(link.cast(), &mut || {
                    self.take(&mut waiting);
                });
            } else if !open {
                return;
            } else if !(std::mem::take(&mut worked) && tidy()) {
                self.queue.sleep();
            }
        }
    }

    /// Closes the queue and frees, on the calling thread, what was still in it. From here on every
    /// push frees by itself. The thread that runs the queue wakes up and returns after its last job.
    pub fn close(&self) {
        let mut waiting = VecDeque::new();
        self.queue.close(&mut waiting);
        for &hook in &waiting {
            self.attend(hook.cast());
        }
        for hook in waiting {
            self.dispose(hook.cast(), &mut || {});
        }
    }

    /// Moves everything queued to `waiting`, oldest first, and announces it. `false`: closed.
    fn take(&self, waiting: &mut VecDeque<NonNull<Hook>>) -> bool {
        let first_new = waiting.len();
        let open = self.queue.take(waiting);
        for hook in waiting.range(first_new..) {
            self.attend(hook.cast());
        }
        open
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
