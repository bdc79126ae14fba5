//! Reading files within bounds, and noticing when they change.
//!
//! What lives here: an opened regular file with the state it had, exact positioned reads, small
//! whole files. What does not: formats.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
    /// Opens a regular file for reading.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        // Asked first: opening a FIFO would wait for its writer.
        let before = std::fs::metadata(path).map_err(io_error(path, "open"))?;
        if !before.is_file() {
            return Err(malformed(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(io_error(path, "open"))?;
        let metadata = file.metadata().map_err(io_error(path, "look at"))?;
        if !metadata.is_file() {
            return Err(malformed(path, "is not a regular file"));
        }
        Ok(SourceFile {
            file,
            path: path.to_owned(),
            state: State::of(&metadata),
        })
    }

    /// To be mapped.
    #[cfg(unix)]
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// What it was when it was opened, as numbers that change when it does.
    #[cfg(unix)]
    pub(super) fn stamp(&self) -> [u8; 48] {
        let State {
            len,
            modified,
            inode: (device, inode, changed, changed_nanos),
        } = self.state;
        let modified = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        // Before 1970 or unknown: the other numbers must do.
        let modified = modified.map_or(0, |since| since.as_nanos() as u64);
        let (changed, nanos) = (changed as u64, changed_nanos as u64);
        let mut stamp = [0; 48];
        let numbers = [len, modified, device, inode, changed, nanos];
        for (bytes, number) in stamp.chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        stamp
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.state.len
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

/// A small file as a whole; larger than `cap` is an error before anything is read. `None`: there is
/// no such file.
pub(super) fn read_small(path: &Path, cap: u64) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, "open")(error)),
        Ok(_) => {}
    }
    let file = SourceFile::open(path)?;
    if file.len() > cap {
        return Err(malformed(
            path,
            format!("has {} bytes, at most {cap} are read", file.len()),
        ));
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    file.check_unchanged()?;
    Ok(Some(bytes))
}
