//! A directory that a source is read from, and which of its files may be opened.
//!
//! What lives here: following symbolic links, as far as they may lead. What does not: which files a
//! format has (`checkpoint`, `peft`).

use std::io;
use std::path::{Path, PathBuf};

use super::file::{SourceFile, io_error, malformed};
use super::options::OpenOptions;
use crate::error::Error;

/// The directory of the Hugging Face hub's cache under which a repository's revisions are ...
const SNAPSHOTS: &str = "snapshots";
/// ... and the one next to it, where their files are.
const BLOBS: &str = "blobs";

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Folder {
    /// As the caller named it.
    given: PathBuf,
    /// Without links.
    real: PathBuf,
    /// Where the links of its files may lead, without links; itself first.
    within: Vec<PathBuf>,
}

impl Folder {
    pub(super) fn open(dir: &Path, options: &OpenOptions) -> Result<Self, Error> {
        let resolve = |dir: &Path| std::fs::canonicalize(dir).map_err(io_error(dir, "open"));
        let real = resolve(dir)?;
        let mut within = vec![real.clone()];
        within.extend(blobs(&real));
        for dir in &options.linked {
            within.push(resolve(dir)?);
        }
        Ok(Folder {
            given: dir.to_owned(),
            real,
            within,
        })
    }

    /// Its path, as the caller named it.
    pub(super) fn path(&self) -> &Path {
        &self.given
    }

    /// The path of a file in it.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.given.join(name)
    }

    /// Is there something of this name?
    pub(super) fn has(&self, name: &str) -> bool {
        self.real.join(name).symlink_metadata().is_ok()
    }

    /// Opens a file in it; `None` if there is nothing of this name. `name` has no separators.
    pub(super) fn file(&self, name: &str) -> Result<Option<SourceFile>, Error> {
        let shown = self.path_of(name);
        let own = self.real.join(name);
        match own.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error(&shown, "open"))?,
        };
        let real = std::fs::canonicalize(&own).map_err(io_error(&shown, "follow"))?;
        if !self.within.iter().any(|dir| real.starts_with(dir)) {
            let reason = format!(
                "is a link out of its directory, to {}; \
                 if that is meant, admit the directory with OpenOptions::follow_links_into",
                real.display()
            );
            return Err(malformed(&shown, reason));
        }
        SourceFile::open_real(&shown, &real).map(Some)
    }
}

/// The `blobs` of the repository that `real` is a revision of, or a directory in a revision. Not
/// resolved: a `blobs` that is itself a link is none of the hub's.
fn blobs(real: &Path) -> Option<PathBuf> {
    let mut above = real.ancestors().skip(1);
    let snapshots = above.find(|dir| dir.file_name().is_some_and(|name| name == SNAPSHOTS))?;
    Some(snapshots.parent()?.join(BLOBS))
}
