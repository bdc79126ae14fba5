//! The facade: one name for every primitive through which threads meet.
//!
//! What lives here: std in the shipping build, the model checker's twins in the checked build
//! (`weighbridge_loom`). The core, names, labels, ledger and waits use nothing else, so what the
//! models check is what ships. What does not: any logic of ours.

pub mod atomic;
pub mod cell;
#[cfg(any(test, weighbridge_loom))]
pub mod contract;
pub mod epoch;
mod lock;
pub mod map;
#[cfg(all(weighbridge_loom, weighbridge_mini))]
mod mini;
pub mod share;
#[cfg(weighbridge_loom)]
pub mod stop;
pub mod swap;
pub mod thread;

pub use lock::{Condvar, Mutex, MutexGuard};
