//! Arenas: one aligned host allocation per set.
//!
//! What lives here: allocating, aligning and giving back memory; how much an arena of a given size
//! is charged. What does not: who may read it when (`core`), what it holds (`plan`).
//!
//! Small arenas come from the allocator. From 1 MiB on they are anonymous mappings of their own, so
//! that giving them back returns the pages; from 4 MiB on they are aligned to 2 MiB and ask for
//! huge pages.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

/// Every tensor starts at a multiple of this.
pub const ALIGNMENT: usize = 64;

/// Address space that the system refused to unmap, in bytes, over the whole process.
static STRANDED: AtomicU64 = AtomicU64::new(0);

/// Bytes of address space that the system refused to take back, in the whole process: it was at its
/// limit of mappings (`vm.max_map_count`). Their pages went back all the same.
pub fn stranded_bytes() -> u64 {
    STRANDED.load(Ordering::Relaxed) // E17
}

const MAP_FROM: usize = 1 << 20;
const HUGE_FROM: usize = 4 << 20;
const HUGE: usize = 2 << 20;
/// Unmapping gigabytes in one go stalls other threads of the process too.
pub(crate) const UNMAP_STEP: usize = 64 << 20;
/// Mappings are made, and charged, in multiples of the largest page size in use (arm64: 64 KiB).
pub(crate) const PAGE: usize = 64 << 10;

/// Zeroed memory, aligned to 64 bytes at least.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    len: usize,
    charged: usize,
    mapped: bool,
    /// Whoever writes to it ends the process.
    protected: bool,
}

// SAFETY: an arena owns its memory, and `&Arena` only reads; whoever writes through `as_ptr` answers
// for it there.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// What an arena of `len` bytes really takes, or `None` if that is not a size.
fn footprint(len: u64) -> Option<(usize, bool)> {
    let len = usize::try_from(len)
        .ok()
        .filter(|&len| len <= isize::MAX as usize - HUGE)?;
    let mapped = cfg!(unix) && len >= MAP_FROM;
    Some((
        len.next_multiple_of(if mapped { PAGE } else { ALIGNMENT }),
        mapped,
    ))
}

impl Arena {
    /// What the ledger is charged for an arena of `len` bytes: exactly what [`allocate`] takes from
    /// the system.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if that is more than an address space.
    ///
    /// [`allocate`]: Self::allocate
    pub fn charge_for(len: u64) -> Result<u64, Error> {
        match footprint(len) {
            Some((charged, _)) => Ok(charged as u64),
            None => Err(Error::OutOfMemory { bytes: len }),
        }
    }

    /// Zeroed memory of `len` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; never aborts.
    pub fn allocate(len: u64) -> Result<Self, Error> {
        let refused = || Error::OutOfMemory { bytes: len };
        let (charged, mapped) = footprint(len).ok_or_else(refused)?;
        let base = match charged {
            0 => NonNull::<Line>::dangling().cast(),
            _ if mapped => map(charged).ok_or_else(refused)?,
            _ => {
                let layout = heap_layout(charged).ok_or_else(refused)?;
                // SAFETY: the size is not zero.
                NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?
            }
        };
        Ok(Arena {
            base,
            len: len as usize,
            charged,
            mapped,
            protected: false,
        })
    }

    /// This memory as an arena of `len` bytes, with whatever is in it: if it takes exactly what such a one
    /// does when what is more has gone back to the system.
    ///
    /// # Errors
    /// The arena as it was: it is too small, or of another kind.
    pub(crate) fn reuse(mut self, len: u64) -> Result<Self, Self> {
        let Some(charged) = self.serves(len) else {
            return Err(self);
        };
        if self.protected && protect(self.base, self.charged, false).is_err() {
            return Err(self);
        }
        self.protected = false;
        self.cut(charged, UNMAP_STEP, &mut || {});
        self.len = len as usize;
        Ok(self)
    }

    /// What an arena of `len` bytes takes, if this memory can be one.
    fn serves(&self, len: u64) -> Option<usize> {
        let (charged, mapped) = footprint(len)?;
        let aligned = charged < HUGE_FROM || self.base.as_ptr().align_offset(HUGE) == 0;
        let fits = if mapped {
            self.charged >= charged && aligned
        } else {
            self.charged == charged
        };
        (self.mapped == mapped && fits).then_some(charged)
    }

    /// Can it be [used again](Self::reuse) for `len` bytes, with at most a quarter of it going back?
    pub(crate) fn is_worth(&self, len: u64) -> bool {
        let served = self.serves(len);
        served.is_some_and(|charged| charged >= self.charged - self.charged / 4)
    }

    /// Is it a mapping of its own?
    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// From here on whoever writes to it ends the process, until it is [used again](Self::reuse). Memory of the
    /// allocator's is left as it is: its pages are others', too.
    ///
    /// # Errors
    /// [`Error::Io`]: the system refuses (it is at its limit of mappings).
    pub(crate) fn protect(&mut self) -> Result<(), Error> {
        if self.mapped {
            protect(self.base, self.charged, true).map_err(|source| Error::Io {
                path: "the memory of a set".into(),
                op: "protect",
                source,
            })?;
        }
        self.protected = self.mapped;
        Ok(())
    }

    /// What this arena is charged.
    pub fn charged(&self) -> u64 {
        self.charged as u64
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `base` is valid for `len` initialised (zeroed) bytes while `self` lives, and
        // nobody writes through `&self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }

    /// Where the bytes are, for a caller that shares them out itself. Before it writes there it must
    /// know that nobody has a slice of that place.
    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Gives the memory back, large mappings in pieces of `step` bytes: unmapping everything at
    /// once stalls other threads of the process that touch their memory maps. Calls `between`
    /// between the pieces.
    pub fn free_in_steps(mut self, step: usize, between: &mut dyn FnMut()) {
        let step = step.next_multiple_of(HUGE).max(HUGE);
        if self.mapped {
            self.cut(self.charged.min(step), step, between);
        }
    }

    /// Gives back what is more than `charged`, which is a multiple of `PAGE`, in pieces of `step` bytes from the end.
    fn cut(&mut self, charged: usize, step: usize, between: &mut dyn FnMut()) {
        while self.charged > charged {
            let step = step.min(self.charged - charged);
            let tail = self.charged - step;
            // SAFETY: the last `step` bytes of our mapping, which the shortened arena no longer
            // covers; both are multiples of `PAGE`.
            unsafe { unmap(self.base.add(tail), step) };
            self.charged = tail;
            self.len = self.len.min(tail);
            between();
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.charged == 0 {
            return;
        }
        if self.mapped {
            self.cut(0, UNMAP_STEP, &mut || {});
        } else if let Some(layout) = heap_layout(self.charged) {
            // SAFETY: allocated in `allocate` with this layout.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

#[repr(align(64))]
struct Line;

fn heap_layout(charged: usize) -> Option<Layout> {
    Layout::from_size_align(charged, ALIGNMENT).ok()
}

#[cfg(unix)]
fn map(len: usize) -> Option<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    let huge = len >= HUGE_FROM;
    let slack = if huge { HUGE } else { 0 };
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let base = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            len + slack,
            protection,
            MapFlags::PRIVATE,
        )
        .ok()?
    };
    let base = NonNull::new(base.cast::<u8>())?;
    if !huge {
        return Some(base);
    }
    let lead = base.as_ptr().align_offset(HUGE);
    // SAFETY: head and tail of the mapping that was just made, outside of what is kept.
    unsafe {
        if lead > 0 {
            unmap(base, lead);
        }
        if slack > lead {
            unmap(base.add(lead + len), slack - lead);
        }
    }
    // SAFETY: inside the mapping: `lead < slack` or both are zero.
    let base = unsafe { base.add(lead) };
    advise_huge(base, len);
    Some(base)
}

#[cfg(target_os = "linux")]
fn advise_huge(base: NonNull<u8>, len: usize) {
    // SAFETY: our own mapping; advice changes no contents. A kernel without huge pages refuses, and
    // the mapping works all the same.
    let _ = unsafe {
        rustix::mm::madvise(base.as_ptr().cast(), len, rustix::mm::Advice::LinuxHugepage)
    };
}

#[cfg(all(unix, not(target_os = "linux")))]
fn advise_huge(_: NonNull<u8>, _: usize) {}

/// Forbids or allows writing to a whole mapping of ours.
#[cfg(unix)]
fn protect(base: NonNull<u8>, len: usize, forbid: bool) -> std::io::Result<()> {
    use rustix::mm::{MprotectFlags, mprotect};
    let allowed = if forbid {
        MprotectFlags::READ
    } else {
        MprotectFlags::READ | MprotectFlags::WRITE
    };
    // SAFETY: a mapping of ours as a whole; it stays readable, and who has it exclusively asks for this.
    unsafe { mprotect(base.as_ptr().cast(), len, allowed) }?;
    Ok(())
}

#[cfg(not(unix))]
fn protect(_: NonNull<u8>, _: usize, _: bool) -> std::io::Result<()> {
    unreachable!("nothing is mapped here")
}

/// The kernel merges neighbouring mappings, and unmapping one in the middle splits them again. At
/// its limit of mappings (`vm.max_map_count`) it refuses that; then at least the pages go back.
///
/// # Safety
/// The range belongs to a mapping of ours and nobody uses it any more.
#[cfg(unix)]
pub(crate) unsafe fn unmap(base: NonNull<u8>, len: usize) {
    // SAFETY: the caller's.
    if unsafe { rustix::mm::munmap(base.as_ptr().cast(), len) }.is_err() {
        // E17: a statistic.
        STRANDED.fetch_add(len as u64, Ordering::Relaxed);
        // SAFETY: the caller's: the contents are nobody's.
        unsafe { empty(base, len) };
    }
}

/// # Safety
/// As [`unmap`].
#[cfg(target_os = "linux")]
unsafe fn empty(base: NonNull<u8>, len: usize) {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the caller's. Refused for locked pages only, and we lock none.
    let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxDontNeed) };
}

/// # Safety
/// As [`unmap`].
#[cfg(all(unix, not(target_os = "linux")))]
unsafe fn empty(_: NonNull<u8>, _: usize) {}

#[cfg(not(unix))]
fn map(_: usize) -> Option<NonNull<u8>> {
    None
}

/// # Safety
/// Never called: nothing is mapped here.
#[cfg(not(unix))]
unsafe fn unmap(_: NonNull<u8>, _: usize) {}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn arenas_of_every_class_are_zeroed_aligned_and_charged_exactly() {
        for len in [
            0,
            1,
            63,
            64,
            65,
            21_504,
            MAP_FROM - 1,
            MAP_FROM,
            HUGE_FROM + 1,
            9 << 20,
        ] {
            let mut arena = Arena::allocate(len as u64).unwrap();
            assert_eq!(arena.as_slice().len(), len);
            assert_eq!(arena.charged(), Arena::charge_for(len as u64).unwrap());
            assert_eq!(arena.as_slice().as_ptr() as usize % ALIGNMENT, 0);
            assert!(arena.as_slice().iter().all(|&byte| byte == 0), "{len}");
            if len >= HUGE_FROM {
                assert_eq!(arena.as_slice().as_ptr() as usize % HUGE, 0);
            }
            arena.as_mut_slice().fill(7);
        }
    }

    #[test]
    fn an_arena_is_used_again_for_what_takes_no_more() {
        let of = |len: usize| Arena::allocate(len as u64).unwrap();
        // From the allocator: of the same size only.
        let arena = of(100).reuse(65).unwrap();
        assert_eq!((arena.as_slice().len(), arena.charged()), (65, 128));
        for other in [64, 129, MAP_FROM] {
            let arena = of(100).reuse(other as u64).unwrap_err();
            assert_eq!((arena.as_slice().len(), arena.charged()), (100, 128));
        }
        // Mapped: the rest goes back.
        let mut arena = of(9 << 20);
        arena.as_mut_slice().fill(7);
        let base = arena.as_slice().as_ptr();
        for len in [(9 << 20) - 1, HUGE_FROM + 1, MAP_FROM + 1] {
            arena = arena.reuse(len as u64).unwrap();
            assert_eq!(arena.as_slice().as_ptr(), base);
            assert_eq!(arena.as_slice().len(), len);
            assert_eq!(arena.charged(), Arena::charge_for(len as u64).unwrap());
            assert!(arena.as_slice().iter().all(|&byte| byte == 7));
        }
        for other in [0, MAP_FROM - 1, MAP_FROM + 1 + PAGE, 9 << 20] {
            arena = arena.reuse(other as u64).unwrap_err();
            assert_eq!(arena.as_slice().len(), MAP_FROM + 1);
        }
        assert!(of(64).reuse(u64::MAX).is_err());
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for bytes in [u64::MAX, isize::MAX as u64, 1 << 62] {
            assert!(matches!(
                Arena::allocate(bytes).unwrap_err(),
                Error::OutOfMemory { bytes: refused } if refused == bytes
            ));
        }
        assert!(
            Arena::charge_for(u64::MAX).is_err(),
            "a ledger without a limit would take it"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn stepwise_freeing_returns_the_whole_mapping() {
        let mut arena = Arena::allocate(32 << 20).unwrap();
        arena.as_mut_slice().fill(1);
        let (first, last) = (arena.as_slice().as_ptr() as usize, (32 << 20) - 1);
        let mapped = |address: usize| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().any(|line| {
                let range = line.split(' ').next().unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let hex = |text| usize::from_str_radix(text, 16).unwrap();
                (hex(from)..hex(to)).contains(&address)
            })
        };
        assert!(mapped(first) && mapped(first + last));
        let mut steps = 0;
        arena.free_in_steps(8 << 20, &mut || {
            steps += 1;
            if steps == 1 {
                assert!(mapped(first), "the head goes last");
            }
        });
        assert_eq!(steps, 3);
    }
}
