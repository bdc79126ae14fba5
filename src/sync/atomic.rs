//! Atomics.
//!
//! In the shipping build these are std's. In the checked build every access first touches a
//! companion atomic with a relaxed read-modify-write: loom forgets a thread's load of an atomic when
//! another thread loads the same atomic before it writes it, and then skips interleavings without a
//! word; the touch makes it see every pair of accesses. It carries no ordering by itself; after a fence loom
//! gives it the fence's, and orders a little more than C11 would. In the scheduled build
//! (`weighbridge_shuttle`) every access is a switch point, and all are sequentially consistent.

#[cfg(weighbridge_tsan)]
pub use super::seen::AtomicU64;
#[cfg(weighbridge_shuttle)]
pub use shuttle::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle, weighbridge_tsan)))]
pub use std::sync::atomic::AtomicU64;
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
pub use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

/// `fence(Acquire)`, for what this thread has just read from `word`.
///
/// ThreadSanitizer knows no fences; for it, `word` is read once more with acquire. That is the same edge
/// where, as here, every write of the word is a read-modify-write: one release sequence.
#[inline]
pub fn acquire(word: &AtomicU64) {
    fence(Ordering::Acquire); // The edge is the caller's (E4).
    if cfg!(weighbridge_tsan) {
        word.load(Ordering::Acquire); // As above.
    }
}

#[cfg(not(weighbridge_loom))]
impl<T> WithMut<*mut T> for AtomicPtr<T> {
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut *mut T) -> R) -> R {
        f(self.get_mut())
    }
}

/// Access through `&mut`, spelt the same in all builds.
pub trait WithMut<T> {
    /// Runs `f` with the value.
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R;
}

#[cfg(weighbridge_loom)]
pub use checked::{AtomicPtr, AtomicU32, AtomicU64};
#[cfg(weighbridge_loom)]
pub use loom::sync::atomic::{Ordering, fence};

#[cfg(weighbridge_loom)]
mod checked {
    use loom::sync::atomic::{self, AtomicUsize, Ordering};

    use super::WithMut;
    use crate::sync::stop::about_to_write;

    macro_rules! touched {
        ($name:ident $(<$param:ident>)?, $inner:ty, $value:ty) => {
            /// An atomic whose every access is a switch point that depends on all others.
            #[derive(Debug)]
            pub struct $name $(<$param>)? {
                touched: AtomicUsize,
                inner: $inner,
            }

            impl $(<$param>)? $name $(<$param>)? {
                #[doc = "As std's."]
                pub fn new(value: $value) -> Self {
                    $name { touched: AtomicUsize::new(0), inner: <$inner>::new(value) }
                }

                fn touch(&self) -> &$inner {
                    self.touched.fetch_add(1, Ordering::Relaxed);
                    &self.inner
                }

                #[doc = "As std's."]
                pub fn load(&self, order: Ordering) -> $value {
                    self.touch().load(order)
                }

                #[doc = "As std's."]
                pub fn store(&self, value: $value, order: Ordering) {
                    about_to_write();
                    self.touch().store(value, order);
                }

                #[doc = "As std's."]
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    about_to_write();
                    self.touch().swap(value, order)
                }

                #[doc = "As std's."]
                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.touch().compare_exchange(current, new, success, failure)
                }

                #[doc = "As std's, without spurious failures."]
                pub fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.touch().compare_exchange(current, new, success, failure)
                }
            }

            impl $(<$param>)? WithMut<$value> for $name $(<$param>)? {
                fn with_mut<R>(&mut self, f: impl FnOnce(&mut $value) -> R) -> R {
                    self.inner.with_mut(f)
                }
            }
        };
    }

    macro_rules! counting {
        ($name:ident, $value:ty) => {
            impl $name {
                #[doc = "As std's."]
                pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_add(value, order)
                }

                #[doc = "As std's."]
                pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_sub(value, order)
                }

                #[doc = "As std's."]
                pub fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_max(value, order)
                }

                #[doc = "As std's."]
                pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_and(value, order)
                }

                #[doc = "As std's."]
                pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_or(value, order)
                }
            }
        };
    }

    touched!(AtomicPtr<T>, atomic::AtomicPtr<T>, *mut T);
    touched!(AtomicU64, atomic::AtomicU64, u64);
    touched!(AtomicU32, atomic::AtomicU32, u32);
    counting!(AtomicU64, u64);
    counting!(AtomicU32, u32);
}
