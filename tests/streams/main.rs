//! Streams: sets of which only a window is in memory.
//!
//! `layers` is a source whose reads are counted, fail, and take as long as a test says.

#[path = "../support/mod.rs"]
mod support;

mod asking;
mod endings;
mod fenced;
mod layers;
mod passes;
mod whole;
mod wrapped;
