//! What the integration tests share: paths of the fixtures, small sets in memory.
#![allow(dead_code, reason = "each test binary uses some of it")]

mod block_on;
pub mod device;
#[cfg(target_os = "linux")]
pub mod mappings;
pub mod theirs;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use weighbridge::source::{Checkpoint, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, SetHandle, WeightRegistry};

/// Long enough for any wait that is going to succeed, on any machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Runs `f` on a thread of its own. It must end.
pub fn ends(what: &str, f: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        f();
        let _ = done.send(());
    });
    match wait.recv_timeout(SOON) {
        Err(RecvTimeoutError::Timeout) => panic!("{what}: it hangs"),
        // Ended, well or with a panic of its own.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().unwrap(),
    }
}

/// What a future comes to. Somebody must wake it.
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    block_on::block_on(future, SOON).expect("nobody woke it")
}

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

/// An adapter on `base` with one tensor more, of `len` bytes `fill`.
pub fn addition(len: usize, fill: u8, base: SetHandle) -> InMemory {
    InMemory::new()
        .replacement("more", Dtype::U8, [len], vec![fill; len])
        .expect("a legal tensor")
        .on(base)
}

pub fn registry() -> WeightRegistry {
    WeightRegistry::builder()
        .limit_bytes(64 << 20)
        .build()
        .expect("a registry")
}

/// A safetensors file: `header`, then `data` bytes.
pub fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 7);
    file
}

/// A copy of a fixture directory that a test may damage.
pub fn copy(fixture_dir: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_into(fixture_dir, dir.path());
    dir
}

pub fn copy_into(fixture_dir: &str, dir: &Path) {
    for entry in std::fs::read_dir(fixture(fixture_dir)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
}

/// Replaces the first `from` in a file.
pub fn rewrite(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Opens a source in `dir` and publishes it, which must fail with every one of `words`; the registry
/// must hold nothing afterwards, nor the process a file of `dir`.
#[track_caller]
pub fn refused<S: Source>(
    dir: &Path,
    words: &[&str],
    open: impl FnOnce() -> Result<S, Error>,
) -> Error {
    let registry = registry();
    let published = open().and_then(|source| Ok(registry.publish("refused", source)?));
    let error = published.expect_err("it was accepted");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert_eq!(registry.ledger().total(), 0, "{text}");
    assert_eq!(registry.lookup("refused"), None, "{text}");
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        let dir = dir.canonicalize().unwrap();
        let held = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let held: Vec<PathBuf> = held.filter(|target| target.starts_with(&dir)).collect();
        assert!(held.is_empty(), "{held:?} after: {text}");
    }
    error
}
