//! What the integration tests share: paths of the fixtures, small sets in memory.
#![allow(dead_code, reason = "each test binary uses some of it")]

pub mod device;

use std::path::PathBuf;
use std::time::Duration;

use weighbridge::source::{Checkpoint, InMemory, PeftAdapter};
use weighbridge::{Dtype, SetHandle, WeightRegistry};

/// Long enough for any wait that is going to succeed, on any machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A file or directory in `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

pub fn tiny() -> Checkpoint {
    Checkpoint::open(fixture("tiny-llama")).expect("the fixture")
}

pub fn adapter(name: &str, base: SetHandle) -> PeftAdapter {
    PeftAdapter::open(fixture("adapters").join(name))
        .expect("the fixture")
        .on(base)
}

/// A set of one tensor, `w`, of `len` bytes `fill`.
pub fn bytes(len: usize, fill: u8) -> InMemory {
    InMemory::new()
        .tensor("w", Dtype::U8, [len], vec![fill; len])
        .expect("a legal tensor")
}

pub fn registry() -> WeightRegistry {
    WeightRegistry::builder()
        .limit_bytes(64 << 20)
        .build()
        .expect("a registry")
}
