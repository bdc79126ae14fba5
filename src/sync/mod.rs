//! The facade: one name for every primitive through which threads meet.
//!
//! What lives here: std in the shipping build, the model checker's twins in the checked build
//! (`weighbridge_loom`), and in the build for ThreadSanitizer (`weighbridge_tsan`) twins whose insides
//! it sees. The core, names, labels, ledger and waits use nothing else, so what the models check is what
//! ships. What does not: any logic of ours.

pub mod atomic;
pub mod cell;
#[cfg(any(test, weighbridge_loom))]
pub mod contract;
pub mod epoch;
#[cfg(not(weighbridge_tsan))]
mod lock;
pub mod map;
#[cfg(all(weighbridge_loom, weighbridge_mini))]
mod mini;
#[cfg(weighbridge_tsan)]
mod seen;
pub mod share;
pub mod swap;
pub mod thread;

#[cfg(not(weighbridge_tsan))]
pub use lock::{Condvar, Mutex, MutexGuard};
#[cfg(weighbridge_tsan)]
pub use seen::{Condvar, Mutex, MutexGuard};
