//! The facade over arc-swap: a shared pointer that is replaced whole.

#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
mod real {
    use std::sync::Arc;

    /// `arc_swap::ArcSwap`.
    #[derive(Debug)]
    pub struct Swap<T>(arc_swap::ArcSwap<T>);

    impl<T> Swap<T> {
        /// Starts with `value`.
        pub fn new(value: Arc<T>) -> Self {
            Swap(arc_swap::ArcSwap::new(value))
        }

        /// Runs `f` with the current value, which stays alive meanwhile.
        #[inline]
        pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
            f(&self.0.load())
        }

        /// A share of the current value.
        pub fn load_full(&self) -> Arc<T> {
            self.0.load_full()
        }

        /// Replaces the value.
        pub fn store(&self, value: Arc<T>) {
            self.0.store(value);
        }
    }
}

#[cfg(weighbridge_loom)]
mod mock {
    use std::sync::Arc;

    use crate::sync::atomic::{AtomicPtr, Ordering};

    /// The contract and no more: a load sees the value of some store that is not older than what
    /// happens before it, and acquires what that store released. Everything ever stored is kept
    /// alive until the end; arc-swap's own reclamation is not what is modelled.
    #[derive(Debug)]
    pub struct Swap<T> {
        current: AtomicPtr<T>,
        // A std lock that is never held across a point where the model checker switches.
        kept: std::sync::Mutex<Vec<Arc<T>>>,
    }

    impl<T> Swap<T> {
        /// Starts with `value`.
        pub fn new(value: Arc<T>) -> Self {
            let current = AtomicPtr::new(Arc::as_ptr(&value).cast_mut());
            Swap {
                current,
                kept: std::sync::Mutex::new(vec![value]),
            }
        }

        /// Runs `f` with the current value.
        pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
            f(&self.load_full())
        }

        /// A share of the current value.
        pub fn load_full(&self) -> Arc<T> {
            // E12, E16: the contract's acquire.
            let current = self.current.load(Ordering::Acquire);
            // SAFETY: every pointer in `current` came from an `Arc` in `kept`, which still holds it.
            unsafe {
                Arc::increment_strong_count(current);
                Arc::from_raw(current)
            }
        }

        /// Replaces the value.
        pub fn store(&self, value: Arc<T>) {
            let next = Arc::as_ptr(&value).cast_mut();
            match self.kept.lock() {
                Ok(mut kept) => kept.push(value),
                Err(poisoned) => poisoned.into_inner().push(value),
            }
            // E12, E16: the contract's release; a swap, as in arc-swap.
            self.current.swap(next, Ordering::Release);
        }
    }
}

#[cfg(weighbridge_shuttle)]
mod stepped {
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use crate::sync::atomic::{AtomicU32, Ordering};

    /// Each call is one step, and a switch point stands before it. What is replaced goes at once, as it
    /// does in arc-swap when nobody looks at it.
    #[derive(Debug)]
    pub struct Swap<T> {
        step: AtomicU32,
        // A std lock that is never held across a switch point.
        current: Mutex<Arc<T>>,
    }

    impl<T> Swap<T> {
        /// Starts with `value`.
        pub fn new(value: Arc<T>) -> Self {
            Swap {
                step: AtomicU32::new(0),
                current: Mutex::new(value),
            }
        }

        /// Runs `f` with the current value, which stays alive meanwhile.
        pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
            f(&self.load_full())
        }

        /// A share of the current value.
        pub fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.step())
        }

        /// Replaces the value.
        pub fn store(&self, value: Arc<T>) {
            let old = std::mem::replace(&mut *self.step(), value);
            drop(old);
        }

        fn step(&self) -> MutexGuard<'_, Arc<T>> {
            self.step.load(Ordering::SeqCst);
            self.current.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(weighbridge_loom)]
pub use mock::Swap;
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
pub use real::Swap;
#[cfg(weighbridge_shuttle)]
pub use stepped::Swap;
