//! The process that something was made in, and whether this is it.
//!
//! What lives here: [`Home`]. What does not: what a child of a fork is told, and that it waits for nothing
//! (`registry`).
//!
//! Every call of a writer asks, and the number of the process is a system call. On Linux there is a page that
//! the kernel empties in a child (`MADV_WIPEONFORK`): what is still in it tells that this is no child.

/// See the module documentation.
pub(crate) struct Home {
    process: u32,
    /// `None`: the system has no such pages, or gives none.
    page: Option<Page>,
}

impl Home {
    /// This process.
    pub(crate) fn here() -> Self {
        Home {
            process: std::process::id(),
            page: Page::new(),
        }
    }

    /// Its number.
    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Is this the process?
    ///
    /// # Errors
    /// It is the one of this number.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), u32> {
        if self.page.as_ref().is_some_and(Page::is_kept) {
            return Ok(());
        }
        let now = std::process::id();
        if now == self.process {
            Ok(())
        } else {
            Err(now)
        }
    }
}

/// A page that says so as long as it is not a child's.
#[cfg(target_os = "linux")]
struct Page(std::ptr::NonNull<u8>);

// SAFETY: nobody writes to it once it is made, and it is unmapped by whoever has it alone.
#[cfg(target_os = "linux")]
unsafe impl Send for Page {}
// SAFETY: as above.
#[cfg(target_os = "linux")]
unsafe impl Sync for Page {}

#[cfg(target_os = "linux")]
impl Page {
    /// The kernel rounds up to its own page size.
    const LEN: usize = 1;

    fn new() -> Option<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), Self::LEN, protection, flags) };
        let page = Page(std::ptr::NonNull::new(base.ok()?.cast())?);
        // SAFETY: our own mapping, and nobody has read anything of it.
        unsafe { madvise(page.0.as_ptr().cast(), Self::LEN, Advice::LinuxWipeOnFork) }.ok()?;
        // SAFETY: the same, and it is writable.
        unsafe { page.0.write(1) };
        Some(page)
    }

    #[inline]
    fn is_kept(&self) -> bool {
        // SAFETY: mapped as long as we are. Volatile: a fork empties it, which no code of ours does.
        unsafe { self.0.read_volatile() != 0 }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, and nobody uses it any more. If the system is at its limit of mappings, one
        // page stays.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), Self::LEN) };
    }
}

#[cfg(not(target_os = "linux"))]
struct Page;

#[cfg(not(target_os = "linux"))]
impl Page {
    fn new() -> Option<Self> {
        None
    }

    fn is_kept(&self) -> bool {
        false
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    /// That a child's is empty is seen by `tests/process`.
    #[test]
    fn a_home_is_where_it_was_made() {
        let home = Home::here();
        assert_eq!((home.process(), home.check()), (std::process::id(), Ok(())));
        let elsewhere = Home {
            process: 0,
            page: None,
        };
        assert_eq!(elsewhere.check(), Err(std::process::id()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn there_is_a_page() {
        assert!(Home::here().page.is_some_and(|page| page.is_kept()));
    }
}
