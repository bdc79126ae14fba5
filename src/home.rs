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
        match &self.page {
            Some(page) if page.is_kept() => Ok(()),
            // Nobody empties it but a fork. (In a process namespace of its own a child may have its parent's number.)
            Some(_) => Err(std::process::id()),
            None => match std::process::id() {
                now if now == self.process => Ok(()),
                now => Err(now),
            },
        }
    }
}

/// A page that says so as long as it is not a child's. (Miri knows no such pages.)
#[cfg(all(target_os = "linux", not(miri)))]
struct Page(std::ptr::NonNull<u8>);

// SAFETY: nobody writes to it once it is made, and it is unmapped by whoever has it alone.
#[cfg(all(target_os = "linux", not(miri)))]
unsafe impl Send for Page {}
// SAFETY: as above.
#[cfg(all(target_os = "linux", not(miri)))]
unsafe impl Sync for Page {}

#[cfg(all(target_os = "linux", not(miri)))]
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

#[cfg(all(target_os = "linux", not(miri)))]
impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, and nobody uses it any more. If the system is at its limit of mappings, one
        // page stays.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), Self::LEN) };
    }
}

#[cfg(any(not(target_os = "linux"), miri))]
struct Page;

#[cfg(any(not(target_os = "linux"), miri))]
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

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn there_is_a_page() {
        assert!(Home::here().page.is_some_and(|page| page.is_kept()));
    }
}
