//! Checkpoints whose files are mapped and not read.
//!
//! What lives here: [`Mapped`], the mapping of several files as one piece of memory, its fingerprint.
//! What does not: which files and tensors (`checkpoint`), what becomes of memory (`memory`).

use std::collections::HashMap;
use std::fs::File;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::Source;
use super::checkpoint::Checkpoint;
use super::file::{SourceFile, io_error};
use crate::arena::{PAGE, UNMAP_STEP, unmap};
use crate::error::Error;
use crate::memory::{Memory, Owner};
use crate::plan::Plan;

/// A checkpoint whose files are mapped: nothing is read or copied before somebody reads a weight.
///
/// It is published in the time that its headers take, and processes of one host share the page cache's
/// copy. What that costs: see [`Checkpoint::map_files_that_nobody_changes`].
///
/// Its identity is [`Unread`](crate::Identity::Unread), with a fingerprint of each file's device,
/// inode, length and times and of the names of the tensors; or what you [declare](Self::declared). The
/// ledger is charged the mapped length, although the system may have less of it in memory. Tensors
/// start where the file has them: at no particular alignment.
#[derive(Debug)]
pub struct Mapped {
    plan: Plan,
    memory: Option<Memory>,
    fingerprint: String,
    declared: Option<String>,
}

impl Checkpoint {
    /// Maps the files in place of reading them.
    ///
    /// A tied pair of which the files have both tensors was compared when the checkpoint was opened,
    /// as always: that reads these two.
    ///
    /// # Safety
    /// From here on, until the last lease of the last generation of it has ended, nobody changes the
    /// files: no process, and no other host if the file system is shared. Otherwise
    ///
    /// - a file that is truncated kills this process: reading a lost page is `SIGBUS`, which Rust
    ///   cannot catch and which ends every request of the server;
    /// - a file that is written in place changes weights under a lease: what a Rust slice promises
    ///   cannot happen, and mixed weights where there were none;
    /// - a network file system that loses its server, or a disk that fails, is `SIGBUS` too, although
    ///   nobody changed anything. There is no way to promise that. Map local files only.
    ///
    /// Writing a new file and renaming it over the old one is safe: the mapping keeps the old one. So
    /// are files whose names are their digests, which nobody ever rewrites.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses, [`Error::SourceChanged`] if a file changed since it was
    /// opened, [`Error::OutOfMemory`] for more than an address space.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{WeightRegistry, source::Checkpoint};
    ///
    /// let checkpoint = Checkpoint::open("fixtures/tiny-llama")?;
    /// // SAFETY: the fixtures belong to the repository, and nobody writes them while this runs.
    /// let mapped = unsafe { checkpoint.map_files_that_nobody_changes() }?;
    /// let registry = WeightRegistry::builder().build()?;
    /// let set = registry.publish("tiny", mapped)?;
    /// assert!(!registry.catalog().get("tiny").unwrap().identity.is_portable());
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub unsafe fn map_files_that_nobody_changes(self) -> Result<Mapped, Error> {
        let mut starts = Vec::with_capacity(self.files.len());
        let mut end = 0;
        for open in &self.files {
            starts.push(end);
            end = room_after(end, &open.file)?;
        }
        let mapping = Mapping::reserve(end)?;
        for (open, &start) in self.files.iter().zip(&starts) {
            // SAFETY: the caller's.
            unsafe { mapping.put(&open.file, start) }?;
            open.file.check_unchanged()?;
        }
        let memory = Memory::of(mapping)?;
        let places: HashMap<&str, u64> = self
            .files
            .iter()
            .zip(&starts)
            .flat_map(|(open, &start)| {
                let place = move |at: u64| start as u64 + at;
                let each = open.tensors.iter();
                each.map(move |entry| (entry.tensor.name(), place(entry.at)))
            })
            .collect();
        // A tensor of the plan that is no tie is in one of the files.
        let plan = self.plan.placed(&memory, |name| places[name]);
        Ok(Mapped {
            fingerprint: fingerprint(self.files.iter().map(|open| &open.file), &plan),
            plan,
            memory: Some(memory),
            declared: self.declared,
        })
    }
}

impl Mapped {
    /// Vouches for the contents with a revision of your own.
    pub fn declared(mut self, revision: impl Into<String>) -> Self {
        self.declared = Some(revision.into());
        self
    }
}

impl Source for Mapped {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn bring(&mut self) -> Option<Memory> {
        self.memory.take()
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err(super::not_to_be_read(self.plan.origin()))
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }

    fn unread(&self) -> Option<&str> {
        Some(&self.fingerprint)
    }
}

/// What changes when a file is replaced or written to, or when another set is made of the same files.
fn fingerprint<'f>(files: impl Iterator<Item = &'f SourceFile>, plan: &Plan) -> String {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(&file.stamp());
    }
    for tensor in plan.tensors() {
        let tie = tensor.tie.map_or(u64::MAX, |target| target as u64);
        hasher.update(&(tensor.name().len() as u64).to_le_bytes());
        hasher.update(tensor.name().as_bytes());
        hasher.update(&tie.to_le_bytes());
    }
    format!("files:{}", hasher.finalize().to_hex())
}

/// Where the next file begins, after `file` at `start`.
fn room_after(start: usize, file: &SourceFile) -> Result<usize, Error> {
    let end = usize::try_from(file.len())
        .ok()
        .and_then(|len| start.checked_add(len)?.checked_next_multiple_of(PAGE))
        .filter(|&end| end <= isize::MAX as usize);
    end.ok_or(Error::OutOfMemory { bytes: file.len() })
}

/// Files side by side in one range of addresses, each from a page of its own on. What no file covers is
/// zero.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the range is ours, and is only read once its files are in place.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A range that is readable and takes no memory.
    fn reserve(len: usize) -> Result<Self, Error> {
        // A range of no bytes cannot be reserved; a checkpoint without files has none.
        let len = len.max(PAGE);
        let refused = Error::OutOfMemory { bytes: len as u64 };
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
            )
        };
        match base.ok().and_then(|base| NonNull::new(base.cast())) {
            Some(base) => Ok(Mapping { base, len }),
            None => Err(refused),
        }
    }

    /// Puts `file` at `start`, which is a multiple of `PAGE` with room for it.
    ///
    /// # Safety
    /// Nobody changes the file while the mapping lives.
    unsafe fn put(&self, file: &SourceFile, start: usize) -> Result<(), Error> {
        let opened: &File = file.file();
        let len = file.len() as usize;
        debug_assert!(start.is_multiple_of(PAGE) && start + len <= self.len);
        // SAFETY: `start..start + len` is in our range (`room_after`), so what is replaced there is
        // our own reservation, and nobody has a slice of it before it is a `Memory`. That the bytes
        // stay readable and unchanged is the caller's promise.
        let mapped = unsafe {
            mmap(
                self.base.add(start).as_ptr().cast(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::FIXED,
                opened,
                0,
            )
        };
        mapped
            .map(|_| ())
            .map_err(|errno| io_error(file.path(), "map")(errno.into()))
    }
}

impl Owner for Mapping {
    fn byte_len(&self) -> u64 {
        self.len as u64
    }

    fn address(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    fn as_host(&self) -> Option<&[u8]> {
        // SAFETY: all of the range is mapped and readable while `self` lives, initialised by files or
        // zeroes, and written by nobody: we never do, and for the files whoever had them mapped
        // promised. Guarded by `tests/mapped.rs`.
        Some(unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) })
    }

    fn charged_bytes(&self) -> u64 {
        self.len as u64
    }

    fn give_back(mut self: Box<Self>, step: &mut dyn FnMut()) {
        while self.len > UNMAP_STEP {
            self.len -= UNMAP_STEP;
            // SAFETY: the tail of our range, which the shortened mapping no longer covers; nobody has
            // a slice of it, because the owner is given up. Both are multiples of `PAGE`.
            unsafe { unmap(self.base.add(self.len), UNMAP_STEP) };
            step();
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what is left of our range; the owner is gone.
        unsafe { unmap(self.base, self.len) };
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_large_mapping_ends_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let len = 2 * UNMAP_STEP + 1;
        let header =
            format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
        let mut file = File::create(&path).unwrap();
        let header_len = header.len() as u64;
        file.write_all(&header_len.to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(8 + header_len + len as u64).unwrap();
        // SAFETY: nobody else knows the file.
        let mapped = unsafe {
            Checkpoint::open(&path)
                .unwrap()
                .map_files_that_nobody_changes()
        };
        let mut steps = 0;
        let memory = mapped.unwrap().bring().unwrap();
        memory.give_back(&mut || steps += 1);
        assert_eq!(steps, 2);
    }
}
