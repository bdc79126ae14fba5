//! Model checks of weighbridge's concurrent protocols, on the code that ships.
//!
//! What lives here: the harness (`model`), a small registry to drive (`rig`), an allocator that makes
//! a use after free visible (`grave`). The models are in `tests/`, one file per protocol; `run` runs
//! them, each in a process of its own, and compares with `MODELS.toml`.
//!
//! Without the cfg `weighbridge_loom` this crate is empty.
#![cfg(weighbridge_loom)]

mod grave;
mod harness;
mod rig;
mod stage;

pub use harness::{Moment, model, old_or_new, saw};
pub use rig::{Load, Meta, Rig, Send2, Tally, bytes, value};
pub use stage::{Act, Gate, act, play};
