//! Threads: parking and the reclaimer's thread.

use std::io;

#[cfg(weighbridge_loom)]
use loom::thread as primitive;
#[cfg(not(weighbridge_loom))]
use std::thread as primitive;

pub use primitive::{JoinHandle, Thread, current, park};

/// Starts a named thread.
pub fn spawn_named(name: &str, f: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    primitive::Builder::new().name(name.to_owned()).spawn(f)
}
