//! Mappings of this process: how they are protected, and all that the kernel allows it, used up.

use std::fs::File;
use std::io::{BufRead, BufReader};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

pub const PAGE: usize = 4096;

/// How many mappings a process may have; `None`, and said so, where that is too many to use up.
pub fn limit() -> Option<usize> {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 1 << 20 {
        println!("skipped: this machine allows {limit} mappings, too many to use up");
        return None;
    }
    Some(limit)
}

/// Gives them back when it is dropped.
pub struct UsedUp {
    base: *mut core::ffi::c_void,
    len: usize,
}

impl Drop for UsedUp {
    fn drop(&mut self) {
        // SAFETY: a mapping of its own, which nobody reads or writes.
        unsafe { munmap(self.base, self.len) }.unwrap();
    }
}

/// Splits pages off a mapping until the kernel refuses another one.
pub fn use_up(limit: usize) -> UsedUp {
    let pages = 2 * limit + 2;
    let len = pages * PAGE;
    // SAFETY: a mapping of its own, of which nothing is ever read or written.
    unsafe {
        let base = mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ,
            MapFlags::PRIVATE,
        )
        .unwrap();
        for page in (0..pages).step_by(2) {
            if mprotect(base.byte_add(page * PAGE), PAGE, MprotectFlags::empty()).is_err() {
                return UsedUp { base, len };
            }
        }
    }
    panic!("the kernel allows more mappings than it says");
}

/// The protection of the memory at `address`, as the system tells it.
pub fn protection(address: u64) -> Option<String> {
    // Line by line: there may be many, and no room for a text of them all.
    let maps = BufReader::new(File::open("/proc/self/maps").unwrap());
    maps.lines().find_map(|line| {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let (from, to) = words.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        let here = (hex(from)..hex(to)).contains(&address);
        here.then(|| words.next().unwrap().to_owned())
    })
}
