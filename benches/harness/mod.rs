//! The table: weighbridge beside its peers, all of it in one run.
//!
//! `benches/run` starts it. The cells are in a library because two programs measure them: the bench
//! `table` beside the usual maps, and `benches/seed` beside the crate whose registry this one is to
//! replace, which takes minutes to build and is a package of its own.
//!
//! What lives here: the way from a route to a row. [`options`] says what is wanted, [`turns`] has the
//! routes take turns, [`rows`] makes figures of that, [`targets`] what they were to be, [`traces`] draws
//! what is asked for, [`maps`] and [`usual`] are the peers, [`allocated`] counts bytes, and
//! [`cells`] is what is measured. What does not: the plots and the file of all rows (`table`).

pub mod allocated;
pub mod cells;
pub mod maps;
pub mod options;
pub mod rows;
pub mod targets;
pub mod traces;
pub mod turns;
pub mod usual;
