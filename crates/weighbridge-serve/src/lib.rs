#![doc = include_str!("../README.md")]
//!
//! # Where to go
//!
//! [`Options`]: what is served, and who may do what. [`Server`]: opened, and run until it is told to stop.

mod adapters;
mod built_in;
mod counters;
mod engine;
mod error;
mod http;
mod options;
mod roots;
mod server;
mod text;
mod turns;
mod world;

pub use error::StartError;
pub use options::{Options, Token};
pub use server::Server;
