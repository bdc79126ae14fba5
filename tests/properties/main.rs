//! Random cases against simple models, shrunk to the few operations that matter.
//!
//! What lives here: running cases, by a fixed seed and longer; reporting one that fails as text that can be
//! pasted into `regressions`; and the check that every kind of answer was seen. What does not: operations
//! (`ops`), the model (`model`, `asks`, `reads`, `books`), the registry beside it (`world`, `drive`, `look`),
//! properties with a formula as their oracle (`formulas`), the flat registry (`flat`).
//!
//! `WEIGHBRIDGE_PROPERTIES=20000 cargo test --test properties` runs so many cases by a seed that is drawn,
//! and prints it; `WEIGHBRIDGE_PROPERTIES_SEED` sets it. `WEIGHBRIDGE_PROPERTIES_SEEN=1` prints how often
//! each kind of answer was given.

mod asks;
mod books;
mod content;
mod drive;
mod drive_rooms;
mod drive_tx;
mod flat;
mod formulas;
mod look;
mod model;
mod ops;
mod reads;
mod registry;
mod rooms;
mod run;
mod said;
#[path = "../support/mod.rs"]
mod support;
mod world;
