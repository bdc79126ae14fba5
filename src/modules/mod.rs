//! Modules: what the tensors of a base are to the adapters that are put on it.
//!
//! What lives here: the table module -> (out_features, in_features) (`table`), from dense weights, from
//! the companions of quantised ones (`packed`), or from the engine; whether an adapter fits (`fit`).
//! What does not: reading configurations and small tensors (`source::quantised`).
//!
//! The rule: a module that is known not to fit is refused, one that cannot be known is not; it is
//! *unchecked*, and named wherever an adapter on it is looked at.

mod fit;
mod linear;
mod packed;
pub(crate) mod table;

pub(crate) use fit::check_fit;
pub use fit::{Fit, ReplacementFit};
pub(crate) use linear::WeightFormat;
pub use linear::{Linear, Module};
pub(crate) use table::Known;
pub use table::ModuleTable;
