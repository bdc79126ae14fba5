//! A counted share of something that is ended by hand: std's `Arc`, of which only `clone` and
//! `into_inner` are used, or its twin for the checkers.
//!
//! What lives here: the count. What does not: what is done with the last share (`core::share`).
//!
//! The contract of [`Share::end`], which std documents for `Arc::into_inner`: of all who end their
//! share, exactly one gets the value, and everything that the others did with it came before. The twin
//! is written out with the orderings that this needs and no stronger; both pass the same conformance
//! test (`contract`).

#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
mod real {
    use std::ops::Deref;
    use std::sync::Arc;

    /// See the module documentation.
    #[derive(Debug)]
    pub struct Share<T>(Arc<T>);

    impl<T> Share<T> {
        /// The first share.
        pub fn new(value: T) -> Self {
            Share(Arc::new(value))
        }

        /// Ends this share. The value, if it was the last one.
        pub fn end(self) -> Option<T> {
            Arc::into_inner(self.0)
        }

        /// The value, if there is no other share.
        ///
        /// # Errors
        /// The share, if there is.
        pub fn sole(self) -> Result<T, Self> {
            Arc::try_unwrap(self.0).map_err(Share)
        }

        /// Is there no other share at this moment? A hint, unless nobody can add one meanwhile.
        pub fn is_sole(&self) -> bool {
            Arc::strong_count(&self.0) == 1
        }
    }

    impl<T> Clone for Share<T> {
        fn clone(&self) -> Self {
            Share(Arc::clone(&self.0))
        }
    }

    impl<T> Deref for Share<T> {
        type Target = T;

        #[inline]
        fn deref(&self) -> &T {
            &self.0
        }
    }
}

#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
mod real {
    use std::mem::ManuallyDrop;
    use std::ops::Deref;
    use std::ptr::NonNull;

    use super::super::atomic::{AtomicU64, Ordering, fence};

    struct Counted<T> {
        count: AtomicU64,
        value: T,
    }

    /// See the module documentation.
    #[derive(Debug)]
    pub struct Share<T>(NonNull<Counted<T>>);

    // SAFETY: as `Arc`: shares are references to one value that any thread may end up owning.
    unsafe impl<T: Send + Sync> Send for Share<T> {}
    // SAFETY: as above.
    unsafe impl<T: Send + Sync> Sync for Share<T> {}

    impl<T> Share<T> {
        pub fn new(value: T) -> Self {
            let count = AtomicU64::new(1);
            Share(NonNull::from(Box::leak(Box::new(Counted { count, value }))))
        }

        pub fn end(self) -> Option<T> {
            // Not dropped: this is the drop.
            let this = ManuallyDrop::new(self);
            // SAFETY: our share is in the count until this very step.
            let counted = unsafe { this.0.as_ref() };
            // E19: Release: what we did with the value comes before the last one's.
            if counted.count.fetch_sub(1, Ordering::Release) != 1 {
                return None;
            }
            // E19: Acquire: with all of theirs.
            fence(Ordering::Acquire);
            // SAFETY: ours was the last share; made by `Box::leak` in `new`.
            Some(unsafe { Box::from_raw(this.0.as_ptr()) }.value)
        }

        pub fn sole(self) -> Result<T, Self> {
            // SAFETY: our share keeps it alive.
            let counted = unsafe { self.0.as_ref() };
            // E19: Relaxed: `end` acquires; nobody can add a share when ours is the only one.
            if counted.count.load(Ordering::Relaxed) != 1 {
                return Err(self);
            }
            match self.end() {
                Some(value) => Ok(value),
                None => unreachable!("ours was the only one"),
            }
        }
    }

    impl<T> Share<T> {
        pub fn is_sole(&self) -> bool {
            // SAFETY: our share keeps it alive.
            let counted = unsafe { self.0.as_ref() };
            // E19: Relaxed: a hint, after which `sole` decides.
            counted.count.load(Ordering::Relaxed) == 1
        }
    }

    impl<T> Clone for Share<T> {
        fn clone(&self) -> Self {
            // SAFETY: our share keeps it alive.
            let counted = unsafe { self.0.as_ref() };
            // E19: Relaxed, as in `Arc`: a share comes from one that is there.
            counted.count.fetch_add(1, Ordering::Relaxed);
            Share(self.0)
        }
    }

    impl<T> Deref for Share<T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: our share keeps it alive.
            &unsafe { self.0.as_ref() }.value
        }
    }

    impl<T> Drop for Share<T> {
        fn drop(&mut self) {
            drop(Share(self.0).end());
        }
    }
}

pub use real::Share;
