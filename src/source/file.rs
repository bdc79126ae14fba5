//! Reading files within bounds, and noticing when they change.
//!
//! What lives here: an opened regular file with the state it had, exact positioned reads, a part of it
//! as a reader. What does not: formats, which files may be opened (`folder`).

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::Error;

/// What must stay the same between the header and the last byte.
///
/// A rewrite in place that takes care of length and mtime still shows in ctime, which no program can
/// set. What cannot be seen is a rewrite in the same tick of the file system's clock in which the file
/// was opened (some milliseconds; none since Linux 6.13, where most file systems tick once per look).
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    len: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: Inode,
}

#[cfg(unix)]
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inode {
    id: (u64, u64),
    changed: (i64, i64),
    links: u64,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        State {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: Inode::of(metadata),
        }
    }

    /// Are the bytes still those of `now`, a later state?
    fn still(&self, now: &Self) -> bool {
        let same = (self.len, self.modified) == (now.len, now.modified);
        #[cfg(unix)]
        let same = same && self.inode.still(&now.inode);
        same
    }
}

#[cfg(unix)]
impl Inode {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Inode {
            id: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
        }
    }

    /// A name more or less explains another ctime: a file that is replaced by a rename, as it should
    /// be, stays what it was for whoever has it open.
    fn still(&self, now: &Self) -> bool {
        self.id == now.id && (self.changed == now.changed || self.links != now.links)
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
    /// Opens the regular file that `path` leads to, wherever that is.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::open_by(path, path, true)
    }

    /// Opens the regular file `real`, a path without links; messages call it `path`.
    pub(super) fn open_real(path: &Path, real: &Path) -> Result<Self, Error> {
        Self::open_by(path, real, false)
    }

    fn open_by(path: &Path, real: &Path, follow: bool) -> Result<Self, Error> {
        // Asked first: to open a device may do something.
        let before = std::fs::metadata(real).map_err(io_error(path, "open"))?;
        let regular = |metadata: &Metadata| {
            let wrong = || malformed(path, "is not a regular file");
            metadata.is_file().then_some(()).ok_or_else(wrong)
        };
        regular(&before)?;
        let file = open_now(real, follow).map_err(io_error(path, "open"))?;
        let metadata = file.metadata().map_err(io_error(path, "look at"))?;
        regular(&metadata)?;
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
            inode:
                Inode {
                    id: (device, inode),
                    changed: (changed, changed_nanos),
                    ..
                },
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
        if self.state.still(&now) {
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

impl Section<'_> {
    /// [`SourceFile::check_unchanged`], of its file.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        self.file.check_unchanged()
    }
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

/// Opens what was a regular file a moment ago. What took its place meanwhile is not waited for (a FIFO
/// without a writer), nor, unless `follow`, followed (a link).
#[cfg(unix)]
fn open_now(path: &Path, follow: bool) -> io::Result<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let mut flags = OFlags::NONBLOCK;
    flags.set(OFlags::NOFOLLOW, !follow);
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits() as i32);
    options.open(path)
}

#[cfg(not(unix))]
fn open_now(path: &Path, _follow: bool) -> io::Result<File> {
    File::open(path)
}

#[cfg(all(test, unix, not(weighbridge_loom)))]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn a_part_is_read_to_its_end_and_no_further() {
        let (_dir, path) = file(b"0123456789");
        let file = SourceFile::open(&path).unwrap();
        let mut text = String::new();
        file.section(2..5).read_to_string(&mut text).unwrap();
        assert_eq!(text, "234");
        assert_eq!(file.section(5..5).read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn a_file_that_became_shorter_has_changed() {
        let (_dir, path) = file(b"0123456789");
        let file = SourceFile::open(&path).unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        other.set_len(4).unwrap();
        let error = file.section(0..10).read(&mut [0; 10]).unwrap_err();
        let error = error.downcast::<Error>().unwrap();
        assert!(matches!(error, Error::SourceChanged { .. }), "{error}");
        assert!(error.to_string().contains("10 bytes"), "{error}");
    }

    #[test]
    fn what_the_system_refuses_to_read_is_its_own_error() {
        let (_dir, path) = file(b"0123456789");
        let mut source = SourceFile::open(&path).unwrap();
        // A descriptor that cannot be read, as a disk that fails.
        source.file = File::options().write(true).open(&path).unwrap();
        let error = source.read_exact_at(&mut [0; 4], 0).unwrap_err();
        assert!(
            error.is_io() && error.to_string().contains("cannot read"),
            "{error}"
        );
        let error = source.section(0..4).read(&mut [0; 4]).unwrap_err();
        assert!(error.downcast::<Error>().unwrap().is_io());
    }

    /// Between the look and the open, something else may take the file's place.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_takes_a_files_place_is_neither_followed_nor_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let (dir, path) = file(b"0123456789");
        let (fifo, link) = (dir.path().join("fifo"), dir.path().join("link"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        // It returns, and is then seen not to be a file.
        for follow in [false, true] {
            let pipe = open_now(&fifo, follow).unwrap();
            assert!(!pipe.metadata().unwrap().is_file());
            assert!(open_now(&path, follow).is_ok());
            assert_eq!(open_now(&link, follow).is_ok(), follow);
        }
    }
}
