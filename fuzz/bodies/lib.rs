//! What the fuzz targets do with their input. A body panics if it finds something, and only then.
//!
//! What lives here: one module for each target, and what they stand on. What does not: libFuzzer
//! (`fuzz_targets`), the committed inputs (`corpus`). The library's own `tests/corpora.rs` has these
//! modules, too, and runs them over every committed input, without fuzzer and on any toolchain; so they
//! name each other by `super`, and need nothing that the library's tests do not have.

pub mod adapter_config;
pub mod ground;
pub mod header;
pub mod index;
pub mod names;
pub mod operations;
pub mod ordered;

/// What is done with one input. It panics if something is wrong.
pub type Body = fn(&[u8]);

/// Each target by its name.
pub const TARGETS: [(&str, Body); 5] = [
    ("adapter_config", adapter_config::run),
    ("header", header::run),
    ("index", index::run),
    ("names", names::run),
    ("operations", operations::run),
];
