#![doc = include_str!("../README.md")]
//!
//! # Where to go
//!
//! - [`RegistryBackend`]: any candle model from a registry, through `VarBuilder`.
//! - [`LoraLinear`], [`Sites`], [`Fitting`], [`Batch`]: a linear layer that reads A and B through each request's lease.
//! - [`llama`]: a Llama that is built of these, for ragged batches of sequences under different adapters.

mod backend;
mod dtype;
mod error;
pub mod llama;
mod lora;

pub use backend::RegistryBackend;
pub use dtype::{candle_dtype, tensor};
pub use error::Error;
pub use lora::{Batch, Fitting, LoraLinear, Sites};
