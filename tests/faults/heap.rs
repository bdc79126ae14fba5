//! An allocator that counts the memory of arenas, and refuses it when it is told to.
//!
//! Arenas are what the library allocates zeroed, with an alignment of 64; nothing else in this process is both. All
//! other memory is never refused: a collection that cannot grow ends the process by Rust's rules, whoever
//! owns it. What has that alignment says in a head of its own which of the two it is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use weighbridge::arena::ALIGNMENT;

struct Heap;

static LIVE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Arenas that this thread may still allocate.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Bytes of arenas that are allocated now.
pub fn arenas() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Runs `f`, in which this thread gets `granted` arenas and no more. Says whether it asked for more.
pub fn refusing<R>(granted: usize, f: impl FnOnce() -> R) -> (R, bool) {
    // The last one granted leaves 1, the first one refused 0.
    LEFT.set(granted + 1);
    let answer = f();
    let refused = LEFT.replace(usize::MAX) == 0;
    (answer, refused)
}

/// Runs `f` with all the memory it needs.
pub fn lifted<R>(f: impl FnOnce() -> R) -> R {
    let left = LEFT.replace(usize::MAX);
    let answer = f();
    LEFT.set(left);
    answer
}

/// May this thread have another arena?
fn granted() -> bool {
    match LEFT.get() {
        usize::MAX => true,
        left => {
            let left = left.saturating_sub(1);
            LEFT.set(left);
            left > 0
        }
    }
}

/// With the head.
fn headed(layout: Layout) -> Layout {
    let size = layout.size() + ALIGNMENT;
    Layout::from_size_align(size, ALIGNMENT).expect("less than there is")
}

/// What is behind a head that says so.
///
/// # Safety
/// `head` is null, or [`headed`] memory.
unsafe fn behind(head: *mut u8, is_arena: bool) -> *mut u8 {
    if head.is_null() {
        return head;
    }
    // SAFETY: the caller's; a head is as long as the alignment.
    unsafe {
        head.write(is_arena.into());
        head.add(ALIGNMENT)
    }
}

// SAFETY: the system's allocator, a counter and heads beside it; a null pointer is a legal answer.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() != ALIGNMENT {
            // SAFETY: the caller's.
            return unsafe { System.alloc(layout) };
        }
        // SAFETY: not empty, because of the head.
        unsafe { behind(System.alloc(headed(layout)), false) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() != ALIGNMENT {
            // SAFETY: the caller's.
            return unsafe { System.alloc_zeroed(layout) };
        }
        if !granted() {
            return ptr::null_mut();
        }
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { behind(System.alloc_zeroed(headed(layout)), true) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if layout.align() != ALIGNMENT {
            // SAFETY: the caller's.
            return unsafe { System.dealloc(place, layout) };
        }
        // SAFETY: all of this alignment has a head (`alloc`, `alloc_zeroed`).
        unsafe {
            let head = place.sub(ALIGNMENT);
            if head.read() != 0 {
                LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
            }
            System.dealloc(head, headed(layout));
        }
    }
}

#[global_allocator]
static HEAP: Heap = Heap;
