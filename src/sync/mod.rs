//! The facade over std: one name for every primitive that other threads can see.

pub mod map;
pub mod swap;
pub mod atomic {
    pub use std::sync::atomic::*;
    /// Access through `&mut`.
    pub trait WithMut<T> {
        /// Runs `f` with the value.
        fn with_mut<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R;
    }
    impl<T> WithMut<*mut T> for AtomicPtr<T> {
        fn with_mut<R>(&mut self, f: impl FnOnce(&mut *mut T) -> R) -> R {
            f(self.get_mut())
        }
    }
}
mod lock {
    use std::sync;
    use std::time::Instant;
    #[derive(Debug, Default)]
    pub struct Mutex<T>(sync::Mutex<T>);
    impl<T> Mutex<T> {
        pub fn new(t: T) -> Self {
            Mutex(sync::Mutex::new(t))
        }
        pub fn lock(&self) -> sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|e| e.into_inner())
        }
    }
    #[derive(Debug, Default)]
    pub struct Condvar(sync::Condvar);
    impl Condvar {
        pub fn notify_all(&self) {
            self.0.notify_all()
        }
        pub fn wait_deadline<'a, T>(
            &self,
            g: sync::MutexGuard<'a, T>,
            d: Option<Instant>,
        ) -> (sync::MutexGuard<'a, T>, bool) {
            match d {
                None => (self.0.wait(g).unwrap_or_else(|e| e.into_inner()), false),
                Some(d) => {
                    let (g, t) = self
                        .0
                        .wait_timeout(g, d.saturating_duration_since(Instant::now()))
                        .unwrap_or_else(|e| e.into_inner());
                    (g, t.timed_out())
                }
            }
        }
    }
}
pub use lock::*;
pub mod thread {
    pub use std::thread::{JoinHandle, Thread, current, park, yield_now};
    pub fn spawn_named(
        name: &str,
        f: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.into()).spawn(f)
    }
}
pub mod cell {
    #[derive(Debug)]
    pub struct Plain<T>(T);
    impl<T: Copy> Plain<T> {
        pub fn new(t: T) -> Self {
            Plain(t)
        }
        pub fn set(&mut self, t: T) {
            self.0 = t
        }
        #[inline]
        pub fn get(&self) -> T {
            self.0
        }
    }
}
pub mod epoch {
    #[derive(Clone)]
    pub struct Collector(crossbeam_epoch::Collector);
    pub struct Participant(crossbeam_epoch::LocalHandle);
    pub struct Guard(crossbeam_epoch::Guard);
    impl Collector {
        pub fn new() -> Self {
            Collector(crossbeam_epoch::Collector::new())
        }
        pub fn register(&self) -> Participant {
            Participant(self.0.register())
        }
    }
    impl Participant {
        #[inline]
        pub fn pin(&self) -> Guard {
            Guard(self.0.pin())
        }
        #[inline]
        pub fn belongs_to(&self, c: &Collector) -> bool {
            *self.0.collector() == c.0
        }
    }
    impl Guard {
        pub unsafe fn defer<F: FnOnce()>(&self, f: F) {
            unsafe { self.0.defer_unchecked(f) }
        }
        pub fn flush(&self) {
            self.0.flush()
        }
        pub fn repin(&mut self) {
            self.0.repin()
        }
    }
}
