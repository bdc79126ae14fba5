//! A picture of the registry, taken by whoever finds the last one out of date.
//!
//! What lives here: publishing pictures through arc-swap so that they never go back in time, and what
//! makes them out of date: a commit, or bytes that came or went without one. What does not: what is in a
//! picture (`registry::catalog`).

use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::swap::Swap;

/// A picture and what it shows, at least.
#[derive(Debug)]
pub struct Shot<T> {
    /// The newest commit.
    pub number: u64,
    /// How often bytes had come or gone.
    moves: u64,
    /// What there was then.
    pub content: T,
}

impl<T> Shot<T> {
    fn shows(&self, number: u64, moves: u64) -> bool {
        self.number >= number && self.moves >= moves
    }
}

/// The newest picture.
pub struct Picture<T> {
    latest: Swap<Shot<T>>,
    camera: Mutex<()>,
    /// How often bytes came or went without a commit.
    moves: AtomicU64,
}

impl<T: Send + Sync> Picture<T> {
    /// Starts with `content` as the picture of commit 0.
    pub fn new(content: T) -> Self {
        let first = Shot {
            number: 0,
            moves: 0,
            content,
        };
        Picture {
            latest: Swap::new(Arc::new(first)),
            camera: Mutex::new(()),
            moves: AtomicU64::new(0),
        }
    }

    /// Bytes came or went: pictures that were taken before this are out of date.
    pub fn moved(&self) {
        // E72: Release: whoever takes a picture that counts this move sees what moved.
        self.moves.fetch_add(1, Ordering::Release);
    }

    /// The newest picture anyone took, however old. Wait-free.
    pub fn latest(&self) -> Arc<Shot<T>> {
        self.latest.load_full() // E12
    }

    /// A picture that shows at least commit `number`, and what moved before this call. If nobody has
    /// taken it yet the caller does, by `take`, which returns the commit it saw and what there was, and
    /// others who want it wait for it; a picture that is new enough costs two loads.
    pub fn look(&self, number: u64, take: impl FnOnce() -> (u64, T)) -> Arc<Shot<T>> {
        // E72: Relaxed: which moves must be shown; `take` comes after a load that acquires.
        let moves = self.moves.load(Ordering::Relaxed);
        let latest = self.latest();
        if latest.shows(number, moves) {
            return latest;
        }
        // E12: one camera: pictures are stored in the order in which they were taken.
        let _camera = self.camera.lock();
        let latest = self.latest();
        if latest.shows(number, moves) {
            return latest;
        }
        // E72: Acquire, before anything is looked at: what moved by then is in the picture.
        let moves = self.moves.load(Ordering::Acquire);
        let (number, content) = take();
        let shot = Arc::new(Shot {
            number,
            moves,
            content,
        });
        self.latest.store(Arc::clone(&shot)); // E12
        shot
    }
}
