//! Reading files within bounds, and noticing when they change.
//!
//! What lives here: an opened regular file with the state it had, exact positioned reads, a part of it
//! as a reader. What does not: formats, which files may be opened (`folder`).

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::json::Document;
use crate::error::Error;

/// What must stay the same between the header and the last byte.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    len: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        State {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: {
                use std::os::unix::fs::MetadataExt;
                (
                    metadata.dev(),
                    metadata.ino(),
                    metadata.ctime(),
                    metadata.ctime_nsec(),
                )
            },
        }
    }
}

/// A regular file, opened once.
#[derive(Debug)]
pub(super) struct SourceFile {
    file: File,
    path: PathBuf,
    state: State,
}

/// `Error::Io` for something that was tried with `path`.
pub(super) fn io_error(path: &Path, op: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, op, source }
}

/// `Error::Malformed` for `path` as a whole.
pub(super) fn malformed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Malformed {
        file: path.to_owned(),
        tensor: None,
        reason: reason.into(),
    }
}

impl SourceFile {
    /// Opens the regular file that `path` leads to.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let real = std::fs::canonicalize(path).map_err(io_error(path, "open"))?;
        Self::open_real(path, &real)
    }

    /// Opens the regular file `real`, a path without links; messages call it `path`.
    pub(super) fn open_real(path: &Path, real: &Path) -> Result<Self, Error> {
        // Asked first: to open a device may do something.
        let before = std::fs::metadata(real).map_err(io_error(path, "open"))?;
        let regular = |metadata: &Metadata| {
            let wrong = || malformed(path, "is not a regular file");
            metadata.is_file().then_some(()).ok_or_else(wrong)
        };
        regular(&before)?;
        let file = open_now(real).map_err(io_error(path, "open"))?;
        let metadata = file.metadata().map_err(io_error(path, "look at"))?;
        regular(&metadata)?;
        Ok(SourceFile {
            file,
            path: path.to_owned(),
            state: State::of(&metadata),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.state.len
    }

    /// A part of it, from its beginning. The part must lie in the file.
    pub(super) fn section(&self, part: Range<u64>) -> Section<'_> {
        Section {
            file: self,
            left: part,
        }
    }

    /// All of it, if it has at most `cap` bytes.
    pub(super) fn small(&self, cap: u64) -> Result<Section<'_>, Error> {
        if self.len() > cap {
            let reason = format!("has {} bytes, at most {cap} are read", self.len());
            return Err(malformed(&self.path, reason));
        }
        Ok(self.section(0..self.len()))
    }

    /// Reads exactly `bytes.len()` bytes from `offset`.
    pub(super) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        read_exact_at(&self.file, bytes, offset).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                Error::SourceChanged {
                    file: self.path.clone(),
                    what: format!(
                        "it had {} bytes when it was opened and now ends before byte {}",
                        self.state.len,
                        offset + bytes.len() as u64
                    ),
                }
            } else {
                Error::Io {
                    path: self.path.clone(),
                    op: "read",
                    source,
                }
            }
        })
    }

    /// Has the file stayed what it was when it was opened? Asked after the last byte.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        let metadata = self
            .file
            .metadata()
            .map_err(io_error(&self.path, "look at"))?;
        let now = State::of(&metadata);
        if now == self.state {
            return Ok(());
        }
        let what = if now.len == self.state.len {
            "it was written to".to_owned()
        } else {
            format!("it had {} bytes and now has {}", self.state.len, now.len)
        };
        Err(Error::SourceChanged {
            file: self.path.clone(),
            what,
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

/// A part of a file, read front to back. Its errors carry an [`Error`].
#[derive(Debug, Clone)]
pub(super) struct Section<'f> {
    file: &'f SourceFile,
    left: Range<u64>,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.end - self.left.start;
        let len = left.min(buffer.len() as u64) as usize;
        let read = self.file.read_exact_at(&mut buffer[..len], self.left.start);
        read.map_err(io::Error::other)?;
        self.left.start += len as u64;
        Ok(len)
    }
}

impl Document for Section<'_> {
    fn check_unchanged(&self) -> Result<(), Error> {
        self.file.check_unchanged()
    }
}

/// Opens what was a regular file without links a moment ago. What took its place meanwhile is not
/// followed (a link) nor waited for (a FIFO without a writer).
#[cfg(unix)]
fn open_now(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits() as i32);
    options.open(path)
}

#[cfg(not(unix))]
fn open_now(path: &Path) -> io::Result<File> {
    File::open(path)
}
