//! The epoch collector: pin and defer, nothing else of it is used.
//!
//! In the shipping build, and in one of the two checked builds, this is crossbeam-epoch. In the other
//! checked build (`weighbridge_mini`) and in the scheduled build it is a precise model of its contract.

#[cfg(not(any(all(weighbridge_loom, weighbridge_mini), weighbridge_shuttle)))]
mod crossbeam {
    /// One registry's collector.
    #[derive(Debug, Clone, Default)]
    pub struct Collector(crossbeam_epoch::Collector);

    /// A thread's registration with a collector.
    #[derive(Debug)]
    pub struct Participant(crossbeam_epoch::LocalHandle);

    /// While it lives, nothing is freed that was reachable when it was made.
    #[derive(Debug)]
    pub struct Guard(crossbeam_epoch::Guard);

    impl Collector {
        /// A collector of its own.
        pub fn new() -> Self {
            Self::default()
        }

        /// Registers the calling thread.
        pub fn register(&self) -> Participant {
            Participant(self.0.register())
        }
    }

    impl Participant {
        /// Pins.
        #[inline]
        pub fn pin(&self) -> Guard {
            Guard(self.0.pin())
        }
    }

    impl Guard {
        /// Is it one of `collector`'s?
        #[inline]
        pub fn belongs_to(&self, collector: &Collector) -> bool {
            self.0.collector() == Some(&collector.0)
        }

        /// Runs `f` when every guard that is pinned now is gone, on any thread.
        ///
        /// # Safety
        /// As `crossbeam_epoch::Guard::defer_unchecked`: `f` may run on another thread, and late.
        pub unsafe fn defer(&self, f: impl FnOnce()) {
            // SAFETY: the caller's.
            unsafe { self.0.defer_unchecked(f) }
        }

        /// Hands this thread's garbage over and collects some.
        pub fn flush(&self) {
            self.0.flush();
        }

        /// Unpins and pins again.
        ///
        /// Not crossbeam's `repin`: that moves the local epoch without a fence, so that a load after
        /// it may still return what was current before, while what that leads to is freed. The model
        /// `scope` finds it on crossbeam's own code. `repin_after` pins in full.
        pub fn repin(&mut self) {
            self.0.repin_after(|| ());
        }
    }
}

#[cfg(any(all(weighbridge_loom, weighbridge_mini), weighbridge_shuttle))]
pub use super::mini::{Collector, Guard, Participant};
#[cfg(not(any(all(weighbridge_loom, weighbridge_mini), weighbridge_shuttle)))]
pub use crossbeam::{Collector, Guard, Participant};
