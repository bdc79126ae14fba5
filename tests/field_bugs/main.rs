//! Bugs that users of other systems reported, told again to this registry: one test for each that can
//! be told, with the report it comes from. docs/FIELD_BUGS.md has them all, with the tests that answer them
//! here or in another file, and why there is none where there is none; `page` keeps it true.
//!
//! A room for each root cause: `counting` (references counted by hand), `agreeing` (the registry says one
//! thing, the engine another), `changing` (bytes change under a name that does not), `accounting` (memory),
//! `tying` (tied weights), `loading` (what a load does to others, and what is known of it).

#[path = "../support/mod.rs"]
mod support;

mod accounting;
mod agreeing;
mod changing;
mod counting;
mod loading;
mod page;
mod tying;

use weighbridge::{Lease, SetHandle, WeightRegistry};

/// The fill of a set of `support::bytes`.
fn first_byte(lease: &Lease, set: SetHandle) -> u8 {
    lease.set(set).unwrap().get("w").unwrap().bytes()[0]
}

/// The fill that new requests get.
fn served(registry: &WeightRegistry, set: SetHandle) -> u8 {
    first_byte(&registry.acquire(set).unwrap(), set)
}
