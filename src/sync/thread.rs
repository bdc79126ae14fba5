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

/// Starts a named thread.
pub fn spawn_named(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    primitive::Builder::new().name(name.to_owned()).spawn(f)
}
