//! Threads: parking and the reclaimer's thread.

use std::io;

#[cfg(weighbridge_loom)]
use loom::thread as primitive;
#[cfg(weighbridge_shuttle)]
use shuttle::thread as primitive;
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
use std::thread as primitive;

pub use primitive::{JoinHandle, Thread, current, park};

/// Parks for at most about `most`.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
pub fn park_for(most: std::time::Duration) {
    primitive::park_timeout(most);
}

/// Sleeps for at least `pause`, whoever unparks meanwhile.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
pub fn sleep(pause: std::time::Duration) {
    primitive::sleep(pause);
}

/// The checkers have no clock: the time is over as soon as the others had their turn.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
pub fn park_for(_: std::time::Duration) {
    primitive::yield_now();
}

/// As [`park_for`].
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
pub fn sleep(_: std::time::Duration) {
    primitive::yield_now();
}

/// Does `work` with each of `all` on a thread of its own, with the first on this one, and returns when all
/// is done. What the system has no thread for is done here, afterwards. `work` does not panic.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
pub fn each_by_itself<T: Send>(all: Vec<T>, work: &(impl Fn(T) + Sync)) {
    let mut all = all.into_iter();
    let Some(first) = all.next() else { return };
    let rest: Vec<std::sync::Mutex<Option<T>>> =
        all.map(|one| std::sync::Mutex::new(Some(one))).collect();
    let take = |one: &std::sync::Mutex<Option<T>>| {
        let one = one
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        one.into_iter().for_each(work);
    };
    primitive::scope(|scope| {
        for one in &rest {
            let named = primitive::Builder::new().name("weighbridge-load".to_owned());
            let _ = named.spawn_scoped(scope, move || take(one));
        }
        work(first);
    });
    rest.iter().for_each(take);
}

/// The model checker has no scoped threads, and the scheduler's wake whoever opened the scope out of
/// other waits.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
pub fn each_by_itself<T: Send>(all: Vec<T>, work: &(impl Fn(T) + Sync)) {
    all.into_iter().for_each(work);
}

/// Starts a named thread.
pub fn spawn_named(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    primitive::Builder::new().name(name.to_owned()).spawn(f)
}
