//! Layers that read adapters while they run.
//!
//! Building a model takes a second, swapping an adapter microseconds. So nothing of an adapter is in the model:
//! a layer reads A and B through the lease of the request whose rows it is given, on each forward. A batch may
//! hold several adapters, and two generations of one.
//!
//! What lives here: where a model reads adapters ([`Sites`]), an adapter fitted to it ([`Fitting`]), whose rows
//! are whose ([`Batch`]), and the layer ([`LoraLinear`]). What does not: models (`llama`).

mod batch;
mod delta;
mod fitting;
mod linear;
mod sites;

pub use batch::Batch;
pub use fitting::Fitting;
pub use linear::LoraLinear;
pub use sites::Sites;
