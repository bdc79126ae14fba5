//! What several bodies stand on: files to open, refusals, and a registry to stage in.
//!
//! What lives here: that. What does not: what is right for one format (the bodies).

use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use weighbridge::source::Source;
use weighbridge::{Error, WeightRegistry};

/// Long enough for any wait that is going to succeed, on any machine.
pub const SOON: Duration = Duration::from_secs(60);

/// More than any body stages here at one time.
const LIMIT: u64 = 1 << 20;
/// Longest message of a refusal. Inputs are short; a name of theirs is shown once or twice, escaped.
const LONGEST: usize = 16 << 10;

static REGISTRY: LazyLock<Mutex<WeightRegistry>> = LazyLock::new(|| {
    let registry = WeightRegistry::builder().limit_bytes(LIMIT).build();
    Mutex::new(registry.expect("a registry"))
});

/// An empty directory, in memory where the system has such a place.
pub fn folder() -> TempDir {
    let shared = Path::new("/dev/shm");
    let made = if shared.is_dir() {
        TempDir::new_in(shared)
    } else {
        TempDir::new()
    };
    made.expect("a directory")
}

pub fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file in a directory of our own");
}

/// A safetensors file.
pub fn file_of(header: &[u8], data: &[u8]) -> Vec<u8> {
    let len = (header.len() as u64).to_le_bytes();
    [&len, header, data].concat()
}

/// A header of tensors of bytes, one after the other, and how long their data is.
pub fn header_of<'n>(tensors: impl IntoIterator<Item = (&'n str, Vec<usize>)>) -> (Vec<u8>, usize) {
    let mut end = 0;
    let mut entry = |(name, shape): (&str, Vec<usize>)| {
        let begin = end;
        end += shape.iter().product::<usize>();
        let name = serde_json::to_string(name).expect("a string");
        format!("{name}:{{\"dtype\":\"U8\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
    };
    let entries: Vec<String> = tensors.into_iter().map(&mut entry).collect();
    (format!("{{{}}}", entries.join(",")).into_bytes(), end)
}

/// Different bytes.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + 1) as u8).collect()
}

/// A refusal blames the input, and says so on one short line. Returns what it says.
pub fn refusal(error: &Error) -> String {
    let text = error.to_string();
    assert!(
        error.is_malformed() || error.is_unsupported(),
        "the input is to blame: {error:?}"
    );
    assert!(text.len() <= LONGEST, "{} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    text
}

/// Stages a source and lets it go: exactly what its plan says is charged meanwhile. No other thread has a
/// part in that, which would be most of the time that an input takes.
pub fn stage_and_leave<S: Source>(source: S) {
    let registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    let charged = source.plan().charged_bytes();
    let staged = registry.stage(source).expect("it was opened");
    assert_eq!(
        (staged.bytes(), registry.ledger().reserved),
        (charged, charged)
    );
    drop(staged);
    assert_eq!(registry.ledger().total(), 0);
}

/// What is in the places of a source's tensors, by name.
pub fn contents<S: Source>(source: &S) -> Vec<(String, Vec<u8>)> {
    let plan = source.plan();
    let mut arena = vec![0; plan.arena_bytes() as usize];
    source.read_into(&mut arena).expect("nobody changes it");
    let tensors = plan.tensors().iter();
    tensors
        .map(|tensor| (tensor.name().to_owned(), arena[tensor.range()].to_vec()))
        .collect()
}
