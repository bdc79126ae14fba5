//! The facade: one name for every primitive through which threads meet.
//!
//! What lives here: std in the shipping build, the model checker's twins in the checked build
//! (`weighbridge_loom`), the scheduler's in the scheduled build (`weighbridge_shuttle`), and in the build
//! for ThreadSanitizer (`weighbridge_tsan`) twins whose insides it sees. The core, names, labels, ledger and
//! waits use nothing else, so what the models check is what ships. Nothing in the library blocks but
//! through here. What does not: any logic of ours.

pub mod atomic;
pub mod cell;
#[cfg(any(test, weighbridge_loom, weighbridge_shuttle))]
pub mod contract;
pub mod epoch;
#[cfg(not(weighbridge_tsan))]
mod lock;
pub mod map;
#[cfg(any(all(weighbridge_loom, weighbridge_mini), weighbridge_shuttle))]
mod mini;
mod once;
#[cfg(weighbridge_tsan)]
mod seen;
pub mod share;
#[cfg(weighbridge_loom)]
pub mod stop;
pub mod swap;
pub mod thread;

#[cfg(not(weighbridge_tsan))]
pub use lock::{Condvar, Mutex, MutexGuard};
pub use once::OnceLock;
#[cfg(weighbridge_tsan)]
pub use seen::{Condvar, Mutex, MutexGuard};
#[cfg(weighbridge_shuttle)]
pub(crate) use shuttle::thread_local;
#[cfg(not(weighbridge_shuttle))]
pub(crate) use std::thread_local;
