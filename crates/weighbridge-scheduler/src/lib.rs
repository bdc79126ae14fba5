#![doc = include_str!("../README.md")]
//!
//! # Where to go
//!
//! - [`Scheduler`]: what the engine and those who admit call. [`Limits`]: what it keeps to.
//! - [`Round`], [`Turn`], [`Place`], [`Failed`]: what a round says. [`Refused`], [`Why`]: what admission says.
//! - Counts: [`Stats`].
#![forbid(unsafe_code)]

mod admission;
mod batch;
mod bell;
mod desk;
mod fetch;
mod limits;
mod loads;
mod order;
mod place;
mod queue;
mod refused;
mod round;
mod scheduler;
mod stats;
mod sync;
mod wants;

pub use limits::{LimitError, Limits};
pub use place::Place;
pub use refused::{Refused, Why};
pub use round::{Failed, Round, Ticket, Turn};
pub use scheduler::Scheduler;
pub use stats::Stats;
