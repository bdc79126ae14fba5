//! Weighbridge's public interface, driven through deterministic schedules.
//!
//! What lives here: the harness (`explore`), sets to play with (`stage`). The tests are in `tests/`, one
//! file per part of the interface; `run` runs them, each in a process of its own. What does not: what the
//! loom models explore completely (`loom-tests`): here the whole registry runs, and schedules are drawn.
//!
//! Without the cfg `weighbridge_shuttle` this crate is empty.
#![cfg(weighbridge_shuttle)]

mod harness;
mod stage;

pub use harness::{explore, saw};
pub use shuttle::thread::{JoinHandle, spawn, yield_now};
pub use stage::{
    LINE, LONG, SOON, adapter, all, bytes, empty, ended, filled, registry, start, total, value,
};
