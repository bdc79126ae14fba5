//! The parts of the linearizability test.

pub mod acts;
pub mod checker;
pub mod drive;
pub mod model;
pub mod residency;
pub mod source;
