//! An allocator that overwrites what is freed and keeps it for a while, so that a use after free
//! reads garbage (and fails a check, or crashes) rather than yesterday's right answer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Small blocks only: nodes, parcels, state words.
const KEEP_UP_TO: usize = 4096;
const GRAVES: usize = 4096;

struct Graveyard {
    next: AtomicUsize,
    blocks: [AtomicPtr<u8>; GRAVES],
    sizes: [AtomicUsize; GRAVES],
    aligns: [AtomicUsize; GRAVES],
}

#[global_allocator]
static GRAVEYARD: Graveyard = Graveyard {
    next: AtomicUsize::new(0),
    blocks: [const { AtomicPtr::new(std::ptr::null_mut()) }; GRAVES],
    sizes: [const { AtomicUsize::new(0) }; GRAVES],
    aligns: [const { AtomicUsize::new(1) }; GRAVES],
};

// SAFETY: blocks come from and go back to `System` with their own layouts; in between they lie in
// the ring. The checker runs one system thread; a second one would only mix up who frees what if it
// wrapped the whole ring between two stores.
unsafe impl GlobalAlloc for Graveyard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() > KEEP_UP_TO {
            // SAFETY: the caller's.
            return unsafe { System.dealloc(block, layout) };
        }
        // SAFETY: the block is the caller's to give up.
        unsafe { block.write_bytes(0xDE, layout.size()) };
        let at = self.next.fetch_add(1, Ordering::Relaxed) % GRAVES;
        let old = self.blocks[at].swap(block, Ordering::Relaxed);
        let size = self.sizes[at].swap(layout.size(), Ordering::Relaxed);
        let align = self.aligns[at].swap(layout.align(), Ordering::Relaxed);
        if !old.is_null() {
            // SAFETY: buried with this layout, and long enough ago.
            unsafe { System.dealloc(old, Layout::from_size_align_unchecked(size, align)) };
        }
    }
}
