//! Every committed input of the fuzz targets, through the same bodies, without a fuzzer: what was found
//! once stays found. A new input is a new file in `fuzz/corpus/TARGET`.

#[path = "../fuzz/bodies/lib.rs"]
mod bodies;

use std::path::{Path, PathBuf};

/// The inputs of a target, by name.
fn inputs(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries =
        std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

fn replay(target: &str) {
    let found = bodies::TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.expect("a target of this name");
    let inputs = inputs(target);
    assert!(
        inputs.len() >= 12,
        "{target} has lost its corpus: {inputs:?}"
    );
    for input in inputs {
        println!("{}", input.display()); // Shown if the body panics.
        body(&std::fs::read(&input).unwrap());
    }
}

#[test]
fn adapter_config() {
    replay("adapter_config");
}

#[test]
fn header() {
    replay("header");
}

#[test]
fn index() {
    replay("index");
}

#[test]
fn names() {
    replay("names");
}

#[test]
fn operations() {
    replay("operations");
}
