//! A value that is set once. std's `OnceLock`; in the scheduled build with a switch point before each
//! call.
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

#[cfg(not(weighbridge_shuttle))]
pub use std::sync::OnceLock;
#[cfg(weighbridge_shuttle)]
pub use stepped::OnceLock;
