//! A value that is set once. std's `OnceLock`; in the checked build, and in the one for ThreadSanitizer, its contract, in the
//! scheduled build with a switch point before each call.
//!
//! What does not live here: `get_or_init`, whose closure may block others. Where it is used, the closure
//! reaches nothing that threads share.

#[cfg(weighbridge_shuttle)]
mod stepped {
    use shuttle::sync::atomic::{AtomicBool, Ordering};

    /// `std::sync::OnceLock`, of which only this is used.
    #[derive(Debug)]
    pub struct OnceLock<T> {
        step: AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        /// Without a value.
        pub fn new() -> Self {
            OnceLock {
                step: AtomicBool::new(false),
                value: std::sync::OnceLock::new(),
            }
        }

        /// The value, if there is one.
        pub fn get(&self) -> Option<&T> {
            self.step.load(Ordering::SeqCst);
            self.value.get()
        }

        /// Sets the value, unless there is one.
        ///
        /// # Errors
        /// The value that is too late.
        pub fn set(&self, value: T) -> Result<(), T> {
            self.step.load(Ordering::SeqCst);
            self.value.set(value)
        }
    }
}

#[cfg(any(weighbridge_loom, weighbridge_tsan))]
mod checked {
    use std::ptr;

    use crate::sync::atomic::{AtomicPtr, Ordering};

    /// The contract of `std::sync::OnceLock` and no more: who finds the value sees what was done before it was
    /// set; who is not ordered after that may find none.
    #[derive(Debug)]
    pub struct OnceLock<T>(AtomicPtr<T>);

    impl<T> OnceLock<T> {
        /// Without a value.
        pub fn new() -> Self {
            OnceLock(AtomicPtr::new(ptr::null_mut()))
        }

        /// The value, if there is one.
        pub fn get(&self) -> Option<&T> {
            // The contract's acquire.
            let value = self.0.load(Ordering::Acquire);
            // SAFETY: made by `set`, and freed by our drop only.
            unsafe { value.as_ref() }
        }

        /// Sets the value, unless there is one.
        ///
        /// # Errors
        /// The value that is too late.
        pub fn set(&self, value: T) -> Result<(), T> {
            let value = Box::into_raw(Box::new(value));
            // The contract's release; who is too late may look.
            let (set, late) = (Ordering::Release, Ordering::Acquire);
            match self.0.compare_exchange(ptr::null_mut(), value, set, late) {
                Ok(_) => Ok(()),
                // SAFETY: made above, and shown to nobody.
                Err(_) => Err(*unsafe { Box::from_raw(value) }),
            }
        }
    }

    impl<T> Drop for OnceLock<T> {
        fn drop(&mut self) {
            // A load: whoever owns us may be a std `Arc`, of whose end the checker sees no edge.
            let value = self.0.load(Ordering::Acquire);
            if !value.is_null() {
                // SAFETY: made by `set`; nobody else has a reference to us.
                drop(unsafe { Box::from_raw(value) });
            }
        }
    }
}

#[cfg(any(weighbridge_loom, weighbridge_tsan))]
pub use checked::OnceLock;
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle, weighbridge_tsan)))]
pub use std::sync::OnceLock;
#[cfg(weighbridge_shuttle)]
pub use stepped::OnceLock;
