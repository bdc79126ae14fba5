//! Plain fields that are written before they are shared and read afterwards.
//!
//! In the shipping build a [`Plain`] is its value. In the checked build every read and write is
//! reported if it is not ordered.

#[cfg(not(weighbridge_loom))]
mod real {
    /// A field of a value that is immutable once it is shared.
    #[derive(Debug)]
    pub struct Plain<T>(T);

    impl<T: Copy> Plain<T> {
        /// With a first value.
        pub fn new(value: T) -> Self {
            Plain(value)
        }

        /// Sets it, while the owner is alone.
        #[inline]
        pub fn set(&mut self, value: T) {
            self.0 = value;
        }

        /// Reads it.
        #[inline]
        pub fn get(&self) -> T {
            self.0
        }
    }
}

#[cfg(weighbridge_loom)]
mod checked {
    use loom::cell::UnsafeCell;

    /// A field of a value that is immutable once it is shared.
    #[derive(Debug)]
    pub struct Plain<T>(UnsafeCell<T>);

    impl<T: Copy> Plain<T> {
        /// With a first value.
        pub fn new(value: T) -> Self {
            Plain(UnsafeCell::new(value))
        }

        /// Sets it, while the owner is alone.
        pub fn set(&mut self, value: T) {
            // SAFETY: `&mut self`; loom reports a write that is not ordered with some read.
            self.0.with_mut(|at| unsafe { *at = value });
        }

        /// Reads it.
        pub fn get(&self) -> T {
            // SAFETY: nobody writes through `&self`; loom reports a read that is not ordered.
            self.0.with(|at| unsafe { *at })
        }
    }
}

#[cfg(weighbridge_loom)]
pub use checked::Plain;
#[cfg(not(weighbridge_loom))]
pub use real::Plain;
