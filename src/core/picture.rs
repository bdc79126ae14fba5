//! A picture of the registry at one moment, taken by whoever finds the last one out of date.
//!
//! What lives here: publishing pictures through arc-swap so that they never go back in time. What
//! does not: what is in a picture (`registry::catalog`).

use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::swap::Swap;

/// Up to what a picture shows the registry. Both only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The newest commit.
    pub number: u64,
    /// How often bytes had come or gone without a commit.
    pub moves: u64,
}

impl Moment {
    fn is_before(self, other: Moment) -> bool {
        self.number < other.number || self.moves < other.moves
    }
}

/// A picture and what it shows.
#[derive(Debug)]
pub struct Shot<T> {
    /// At least up to here.
    pub moment: Moment,
    /// What there was then.
    pub content: T,
}

/// The newest picture.
pub struct Picture<T> {
    latest: Swap<Shot<T>>,
    camera: Mutex<()>,
}

impl<T: Send + Sync> Picture<T> {
    /// Starts with `content` as the picture of commit 0.
    pub fn new(content: T) -> Self {
        Picture {
            latest: Swap::new(Arc::new(Shot {
                moment: Moment {
                    number: 0,
                    moves: 0,
                },
                content,
            })),
            camera: Mutex::new(()),
        }
    }

    /// The newest picture anyone took, however old. Wait-free.
    pub fn latest(&self) -> Arc<Shot<T>> {
        self.latest.load_full() // E12
    }

    /// A picture that shows at least `now`. If nobody has taken it yet the
    /// caller does, and others who want it wait for it; a picture that is new enough costs one load.
    pub fn look(&self, now: Moment, take: impl FnOnce() -> Shot<T>) -> Arc<Shot<T>> {
        let latest = self.latest();
        if !latest.moment.is_before(now) {
            return latest;
        }
        // E12: one camera: pictures are stored in the order in which they were taken.
        let _camera = self.camera.lock();
        let latest = self.latest();
        if !latest.moment.is_before(now) {
            return latest;
        }
        let shot = Arc::new(take());
        self.latest.store(Arc::clone(&shot)); // E12
        shot
    }
}
