//! The keeper: holds on to what may not go yet, and lets it go when it may.
//!
//! What lives here: the thread that waits for conditions that others make true, and how it looks:
//! when a bell rings, or from time to time where nobody promised to ring. What does not: the list and
//! its sleep (`queue`), what is kept and for what (`registry::fenced`: a lease for a fence).
//!
//! A thread of its own, and not the reclaimer: conditions are foreign code, and one that blocks must
//! not stop frees. The thread is started by the first thing to keep. Whatever is kept keeps the
//! keeper, so the queue is closed only when nothing is left, and nothing ever comes too late.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::queue::{Hook, Queue};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::thread;

/// The first pause between two looks at what does not ring.
const SHORTEST: Duration = Duration::from_micros(50);
/// Pauses double up to this one.
const LONGEST: Duration = Duration::from_millis(5);

/// Something to keep. Dropping it lets it go.
pub trait Kept: Send + 'static {
    /// Called once, before the first look. `true`: the bell will be rung when it may go. Foreign
    /// code; a panic breaks it.
    fn listen(&mut self, bell: &Bell) -> bool;
    /// May it go? Foreign code; a panic breaks it.
    fn may_go(&mut self) -> bool;
    /// Foreign code panicked: it is asked nothing again, and kept for ever.
    fn broke(&mut self);
}

impl Kept for Box<dyn Kept> {
    fn listen(&mut self, bell: &Bell) -> bool {
        (**self).listen(bell)
    }

    fn may_go(&mut self) -> bool {
        (**self).may_go()
    }

    fn broke(&mut self) {
        (**self).broke();
    }
}

/// What the thread, the bells and the owner share.
struct Board {
    queue: Queue,
    kept: AtomicU64,
    panics: AtomicU64,
}

/// Makes the keeper look at once. Cheap to clone; ringing is lock-free and does not allocate.
#[derive(Clone)]
pub struct Bell(Arc<Board>);

impl Bell {
    /// Whatever may go now will be seen.
    pub fn ring(&self) {
        self.0.queue.ring();
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Look from time to time.
    Poll,
    /// Look when somebody rings.
    Listen,
    /// Never look again.
    Broken,
}

#[repr(C)]
struct Entry<K: Kept> {
    hook: Hook,
    watch: Watch,
    kept: K,
    /// Last, and so dropped last: closes the queue when nothing else is kept and nobody else can
    /// give us anything.
    _keeper: Arc<Keeper<K>>,
}

/// See the module documentation.
pub struct Keeper<K> {
    board: Arc<Board>,
    /// 1: the thread runs, and its queue knows it.
    started: AtomicU32,
    starting: Mutex<()>,
    kept: std::marker::PhantomData<fn(K)>,
}

impl<K: Kept> Keeper<K> {
    /// Without a thread, so far.
    pub fn new() -> Self {
        Keeper {
            board: Arc::new(Board {
                queue: Queue::open(),
                kept: AtomicU64::new(0),
                panics: AtomicU64::new(0),
            }),
            started: AtomicU32::new(0),
            starting: Mutex::new(()),
            kept: std::marker::PhantomData,
        }
    }

    /// How many things are kept.
    pub fn kept(&self) -> u64 {
        // E23: a statistic; nothing is read through it.
        self.board.kept.load(Ordering::Relaxed)
    }

    /// How often foreign code panicked.
    pub fn panics(&self) -> u64 {
        // E23: a statistic.
        self.board.panics.load(Ordering::Relaxed)
    }

    /// Runs foreign code. `None`: it panicked, which is counted.
    pub fn guarded<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        self.board.guarded(f)
    }

    /// Keeps `kept` until it may go. The first call starts the thread, under a lock; all others are
    /// lock-free. Only if the system has no thread for us, this waits on the calling one.
    pub fn keep(self: &Arc<Self>, kept: K) {
        if self.is_staffed().is_err() {
            // E23: a statistic.
            self.board.kept.fetch_add(1, Ordering::Relaxed);
            return self.wait_here(kept);
        }
        self.queue(kept);
    }

    /// [`keep`](Self::keep), where a wait on the calling thread is of no use.
    ///
    /// # Errors
    /// The system has no thread for us. `kept` is dropped then.
    pub fn try_keep(self: &Arc<Self>, kept: K) -> std::io::Result<()> {
        self.is_staffed()?;
        self.queue(kept);
        Ok(())
    }

    fn is_staffed(&self) -> std::io::Result<()> {
        // E20: Acquire: the thread is named.
        match self.started.load(Ordering::Acquire) {
            0 => self.start(),
            _ => Ok(()),
        }
    }

    fn queue(self: &Arc<Self>, kept: K) {
        // E23: a statistic.
        self.board.kept.fetch_add(1, Ordering::Relaxed);
        let entry = Box::leak(Box::new(Entry {
            hook: Hook::new(),
            watch: Watch::Poll,
            kept,
            _keeper: Arc::clone(self),
        }));
        let entry = NonNull::from(entry);
        // SAFETY: the entry is given up here, and may be used and dropped on the keeper's thread
        // (`Kept: Send`); `self` holds the queue. Models `fence_*`.
        let queued = unsafe { self.board.queue.push(entry.cast()) };
        // Only `Drop` closes it, and we are here.
        debug_assert!(queued, "the keeper's queue was closed while it was held");
    }

    /// Keeps `kept` on the calling thread: never earlier than it may go, whatever that costs here.
    pub(super) fn wait_here(&self, mut kept: K) {
        let mut pause = SHORTEST;
        let waited = self.board.guarded(|| {
            while !kept.may_go() {
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST);
            }
        });
        if waited.is_some() {
            self.board.let_go(kept);
        } else {
            self.board.guarded(|| kept.broke());
            std::mem::forget(kept);
        }
    }

    #[cold]
    fn start(&self) -> std::io::Result<()> {
        let _starting = self.starting.lock(); // E20
        // E20: Relaxed: only written under the lock.
        if self.started.load(Ordering::Relaxed) != 0 {
            return Ok(());
        }
        let board = Arc::clone(&self.board);
        // Not joined: it ends when nothing is kept and nobody can give it anything.
        let thread = thread::spawn_named("weighbridge-keeper", move || Self::run(&board))?;
        self.board.queue.staff(thread.thread().clone());
        // E20: Release: whoever sees this may push, and can wake the thread.
        self.started.store(1, Ordering::Release);
        Ok(())
    }

    /// The thread's life.
    fn run(board: &Arc<Board>) {
        let bell = Bell(Arc::clone(board));
        let mut arrived = VecDeque::new();
        let mut entries: Vec<Box<Entry<K>>> = Vec::new();
        let mut pause = SHORTEST;
        while board.queue.take(&mut arrived) {
            let known = entries.len();
            for hook in arrived.drain(..) {
                // SAFETY: `keep` queued it: an entry of this type, ours since `take` (E7).
                let mut entry = unsafe { Box::from_raw(hook.cast::<Entry<K>>().as_ptr()) };
                let watch = board.foreign(&mut entry, |kept| {
                    if kept.listen(&bell) {
                        Watch::Listen
                    } else {
                        Watch::Poll
                    }
                });
                entry.watch = watch.unwrap_or(Watch::Broken);
                entries.push(entry);
            }
            let moved = board.look(&mut entries) || entries.len() != known;
            if moved {
                pause = SHORTEST;
            }
            if entries.iter().any(|entry| entry.watch == Watch::Poll) {
                board.queue.nap(pause);
                pause = (pause * 2).min(LONGEST);
            } else {
                board.queue.sleep();
            }
        }
        debug_assert!(entries.is_empty(), "what is kept keeps the queue open");
    }
}

impl Board {
    /// Lets go of all that may go. Did anything?
    fn look<K: Kept>(&self, entries: &mut Vec<Box<Entry<K>>>) -> bool {
        let before = entries.len();
        let mut at = 0;
        while let Some(entry) = entries.get_mut(at) {
            let may_go =
                entry.watch != Watch::Broken && self.foreign(entry, Kept::may_go).unwrap_or(false);
            if may_go {
                self.let_go(entries.swap_remove(at));
            } else {
                at += 1;
            }
        }
        entries.len() != before
    }

    fn let_go<T>(&self, kept: T) {
        self.guarded(move || drop(kept));
        // E23: a statistic.
        self.kept.fetch_sub(1, Ordering::Relaxed);
    }

    /// Asks what is kept. `None`: it panicked, and is broken from here on.
    fn foreign<K: Kept, R>(
        &self,
        entry: &mut Entry<K>,
        ask: impl FnOnce(&mut K) -> R,
    ) -> Option<R> {
        let answer = self.guarded(|| ask(&mut entry.kept));
        if answer.is_none() {
            entry.watch = Watch::Broken;
            self.guarded(|| entry.kept.broke());
        }
        answer
    }

    fn guarded<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(f)) {
            Ok(answer) => Some(answer),
            Err(payload) => {
                // A payload may be anything, and its destructor may panic, too.
                if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                    std::mem::forget(another);
                }
                // E23: a statistic.
                self.panics.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

impl<K> Drop for Keeper<K> {
    fn drop(&mut self) {
        let mut left = VecDeque::new();
        self.board.queue.close(&mut left);
        debug_assert!(left.is_empty(), "what is kept keeps the keeper");
    }
}
