//! The parts of the linearizability test.

pub mod checker;
pub mod drive;
pub mod model;
