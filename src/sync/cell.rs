//! Fields that are not atomic: those that are written before they are shared ([`Plain`]), and those
//! that come and go while nobody looks ([`Berth`]).
//!
//! In the checked build every read and write is reported if it is not ordered.

#[cfg(not(weighbridge_loom))]
mod real {
    use std::cell::UnsafeCell;
    use std::panic::RefUnwindSafe;

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

    /// A place for a value that is changed while nobody reads it.
    pub struct Berth<T>(UnsafeCell<T>);

    // A panic cannot come between: a swap moves a value and runs nothing.
    impl<T: RefUnwindSafe> RefUnwindSafe for Berth<T> {}

    impl<T> Berth<T> {
        /// With a first value.
        pub fn new(value: T) -> Self {
            Berth(UnsafeCell::new(value))
        }

        /// What is there.
        ///
        /// # Safety
        /// Nobody changes it while the reference lives.
        #[inline]
        pub unsafe fn get(&self) -> &T {
            // SAFETY: the caller's.
            unsafe { &*self.0.get() }
        }

        /// Puts `value` there, and returns what was there before.
        ///
        /// # Safety
        /// Nobody looks at it meanwhile.
        pub unsafe fn swap(&self, value: T) -> T {
            // SAFETY: the caller's.
            unsafe { std::mem::replace(&mut *self.0.get(), value) }
        }

        /// Takes what is there, with the place.
        pub fn into_inner(self) -> T {
            self.0.into_inner()
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

    /// A place for a value that is changed while nobody reads it.
    pub struct Berth<T>(UnsafeCell<T>);

    impl<T> Berth<T> {
        /// With a first value.
        pub fn new(value: T) -> Self {
            Berth(UnsafeCell::new(value))
        }

        /// What is there.
        ///
        /// # Safety
        /// Nobody changes it while the reference lives.
        pub unsafe fn get(&self) -> &T {
            // SAFETY: the caller's; loom reports a look that is not ordered with a change.
            self.0.with(|at| unsafe { &*at })
        }

        /// Puts `value` there, and returns what was there before.
        ///
        /// # Safety
        /// Nobody looks at it meanwhile.
        pub unsafe fn swap(&self, value: T) -> T {
            // SAFETY: the caller's; loom reports a change that is not ordered with a look.
            self.0
                .with_mut(|at| unsafe { std::mem::replace(&mut *at, value) })
        }

        /// Takes what is there, with the place.
        pub fn into_inner(self) -> T {
            self.0.into_inner()
        }
    }
}

#[cfg(weighbridge_loom)]
pub use checked::{Berth, Plain};
#[cfg(not(weighbridge_loom))]
pub use real::{Berth, Plain};
