//! What is measured: one file for each kind of cell, with our side of it.
//!
//! What lives here: the order of the cells, what any peer must be able to do ([`Contenders`]), and the
//! registries that several cells want. What does not: the usual peers (`usual`).

mod acquire;
mod get;
mod held;
mod lookup;
mod publish;
mod queries;
mod register;
mod tensors;
mod weight;

pub use get::HELD;
pub use queries::{ADAPTERS, OF_EACH, Question};

use std::hint::black_box;

use weighbridge::{Dtype, SetHandle, WeightRegistry, source::InMemory};

use super::rows::Report;
use super::turns::Route;
use crate::{set_name, set_of, tensor_name};

/// Whom we are measured beside. What a peer cannot do is left empty, and the cell is left out.
///
/// Integer keys are small numbers from 0; names are cloned by whoever keeps them.
pub trait Contenders {
    /// From one of `names` to a small value; the writer inserts another and removes it.
    fn lookup<'n>(&self, names: &'n [String]) -> Vec<Route<'n>>;
    /// The same, with another hasher than ours.
    fn lookup_otherwise<'n>(&self, names: &'n [String]) -> Vec<Route<'n>>;
    /// From "adapter/tensor" to a small value; `names` has gaps, which are empty.
    fn tensors<'n>(&self, names: &'n [String]) -> Vec<Route<'n>>;
    /// From a key to the entry, without keeping it.
    fn get(&self, sets: usize) -> Vec<Route<'static>>;
    /// From an adapter and a tensor, packed into an index, to its bytes.
    fn weight(&self, adapters: usize, tensors: usize) -> Vec<Route<'static>>;
    /// Keeping the entries of the first `sets` keys, and letting go; the writer replaces the last of them.
    fn acquire(&self, sets: usize) -> Vec<Route<'static>>;
    /// Replacing the entries of all `names`, so often in a row; the answer is for one time.
    fn publish<'n>(&self, names: &'n [String], times: usize) -> Vec<Route<'n>>;
    /// Making an entry of 16 bytes for all `names`, from nothing; the answer is for one of them.
    fn register<'n>(&self, names: &'n [String]) -> Vec<Route<'n>>;
    /// Something that answers questions about so many tensors, some of which are of adapters.
    fn queries(&self, tensors: usize) -> Vec<Box<dyn Fn(Question) -> Route<'static>>>;
    /// Who holds entries of 16 bytes for all `names`, and the bytes of that, without these 16.
    fn held(&self, names: &[String]) -> Vec<(String, f64)>;
}

/// Measures all cells that are wanted.
pub fn run(report: &mut Report, contenders: &dyn Contenders) {
    lookup::run(report, contenders);
    tensors::run(report, contenders);
    get::run(report, contenders);
    weight::run(report, contenders);
    acquire::run(report, contenders);
    publish::run(report, contenders);
    queries::run(report, contenders);
    register::run(report, contenders);
    held::run(report, contenders);
}

/// Adapters of the larger cells, and the tensors of each.
fn adapters(report: &Report) -> (usize, usize) {
    let scale = report.scale();
    (scale.of(2_000, 50, 2), scale.of(448, 448, 4))
}

/// Draws of a trace.
fn draws(report: &Report) -> usize {
    report.scale().of(1 << 20, 1 << 20, 1 << 14)
}

fn registry() -> WeightRegistry {
    WeightRegistry::builder().build().expect("a registry")
}

/// A registry with a set of `tensors` tensors under each of `names`, all published at one instant.
fn registry_with(names: &[String], tensors: usize) -> (WeightRegistry, Vec<SetHandle>) {
    let registry = registry();
    let mut all = registry.transaction();
    for name in names {
        let staged = all.stage(set_of(tensors)).expect("staged");
        all.publish(name.as_str(), staged).expect("a new name");
    }
    let handles = all.commit().expect("committed").published;
    (registry, handles)
}

/// A set of one tensor from what a peer is given for an entry.
fn set_of_one(payload: &[u8; 16]) -> InMemory {
    InMemory::new()
        .tensor("weight", Dtype::U8, [16], payload.as_slice())
        .expect("a legal tensor")
}

/// What our writer does beside lookups: a new set comes and goes.
fn come_and_go(registry: &WeightRegistry, number: u64) {
    let name = newcomer(number);
    let set = registry
        .publish(name.as_str(), set_of_one(black_box(&[0; 16])))
        .expect("a new name");
    drop(registry.retire(set).expect("current"));
}

/// The name of what comes and goes.
pub fn newcomer(number: u64) -> String {
    format!("newcomer-{:04}-support-adapter-{number:06}", number % 97)
}

/// The names of adapters.
fn set_names(count: usize) -> Vec<String> {
    (0..count).map(set_name).collect()
}

/// The names of tensors.
fn tensor_names(count: usize) -> Vec<String> {
    (0..count).map(tensor_name).collect()
}
