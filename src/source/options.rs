//! What a caller may change about how much is read, and from where.
//!
//! What lives here: [`OpenOptions`]. What does not: who keeps to it (`scan`, `folder`).

use std::path::PathBuf;

/// No option admits a longer header.
const HEADER_CAP: u64 = 100_000_000;
/// No option admits more tensors.
const TENSOR_CAP: usize = 1_000_000;

/// Limits for [`Checkpoint::open_with`](super::Checkpoint::open_with),
/// [`PeftAdapter::open_with`](super::PeftAdapter::open_with) and
/// [`InMemory::from_safetensors_with`](super::InMemory::from_safetensors_with).
///
/// The defaults are wide for every model in use: raise them for a file you know.
///
/// # Links
/// A file of a directory may be a symbolic link to another file of that directory, or, in the cache
/// of the Hugging Face hub, from `snapshots/<revision>/` to the same repository's `blobs/`. A link to
/// anywhere else is refused: a checkpoint that was downloaded cannot make a server read its host's
/// files. [`follow_links_into`](Self::follow_links_into) admits more directories. A path that the
/// caller gives is followed wherever it leads.
///
/// # Examples
/// ```
/// use weighbridge::source::{Checkpoint, OpenOptions};
///
/// let options = OpenOptions::new().max_header_bytes(64 << 20).max_tensors(500_000);
/// let checkpoint = Checkpoint::open_with("fixtures/tiny-llama", &options)?;
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    pub(super) header_bytes: u64,
    pub(super) tensors: usize,
    pub(super) linked: Vec<PathBuf>,
}

impl OpenOptions {
    /// The defaults: headers of at most 16 MiB, 250,000 tensors, no more directories for links.
    pub fn new() -> Self {
        OpenOptions {
            header_bytes: 16 << 20,
            tensors: 250_000,
            linked: Vec::new(),
        }
    }

    /// The longest header of a file. More than 100,000,000 is taken as 100,000,000.
    pub fn max_header_bytes(mut self, bytes: u64) -> Self {
        self.header_bytes = bytes.min(HEADER_CAP);
        self
    }

    /// Most tensors of a file, and of an index. More than 1,000,000 is taken as 1,000,000.
    pub fn max_tensors(mut self, tensors: usize) -> Self {
        self.tensors = tensors.min(TENSOR_CAP);
        self
    }

    /// Symbolic links may lead into `dir` as well.
    pub fn follow_links_into(mut self, dir: impl Into<PathBuf>) -> Self {
        self.linked.push(dir.into());
        self
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}
