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

/// Does `work` with each of `all`, each on a thread of its own as long as they are no more than `most`, one
/// of them on this one, and returns when all is done. `work` does not panic.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
pub fn each_by_itself<T: Send>(all: Vec<T>, most: usize, work: &(impl Fn(T) + Sync)) {
    let threads = all.len().min(most);
    let queue = super::Mutex::new(all.into_iter());
    let run = || {
        loop {
            let next = queue.lock().next(); // E80
            let Some(next) = next else { return };
            work(next);
        }
    };
    primitive::scope(|scope| {
        for _ in 1..threads {
            // What the system has no thread for is done by the others.
            let named = primitive::Builder::new().name("weighbridge-load".to_owned());
            let _ = named.spawn_scoped(scope, run);
        }
        run();
    });
}

/// The model checker has no scoped threads, and the scheduler's wake whoever opened the scope out of
/// other waits.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
pub fn each_by_itself<T: Send>(all: Vec<T>, _: usize, work: &(impl Fn(T) + Sync)) {
    all.into_iter().for_each(work);
}

/// Starts a named thread.
pub fn spawn_named(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    primitive::Builder::new().name(name.to_owned()).spawn(f)
}
