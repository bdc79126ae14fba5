//! What threads meet through.
//!
//! What lives here: std's locks in the shipping build, and in the scheduled build (`weighbridge_shuttle`) their twins, so
//! that `shuttle-tests` can draw every order in which threads take them. What does not: any logic of ours.

#[cfg(weighbridge_shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(weighbridge_shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
