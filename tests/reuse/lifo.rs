//! An allocator that hands the block that was freed last to whoever comes next, whatever it was and
//! whichever thread asks.
//!
//! What lives here: stacks of free blocks by size. What does not: what is allocated. An address that
//! somebody still holds is another tenant's at once, where the system's allocator would let it rest for a
//! while; and what was freed is overwritten, so that whoever reads it sees it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sizes are rounded up to this, so that things of different types get each other's blocks.
const STEP: usize = 64;
/// Of every block: what has a cache line of its own (or two, as processors fetch them) is handed back here, too.
const ALIGN: usize = 128;
/// The largest blocks that are handed back here.
const LARGEST: usize = 4096;
/// What a free block is full of.
const POISON: u8 = 0xE5;

struct Stack {
    locked: AtomicBool,
    /// The block that was freed last; its first word is the one that was freed before it.
    top: UnsafeCell<*mut u8>,
}

// SAFETY: `top` is only touched under `locked`.
unsafe impl Sync for Stack {}

impl Stack {
    const fn empty() -> Self {
        Stack {
            locked: AtomicBool::new(false),
            top: UnsafeCell::new(ptr::null_mut()),
        }
    }

    /// Runs `f` with the top, alone. `f` must not allocate.
    fn with<R>(&self, f: impl FnOnce(&mut *mut u8) -> R) -> R {
        while self.locked.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: we hold the lock.
        let result = f(unsafe { &mut *self.top.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

static STACKS: [Stack; LARGEST / STEP] = [const { Stack::empty() }; LARGEST / STEP];
static REUSED: AtomicU64 = AtomicU64::new(0);

/// How often a block was handed on so far.
pub fn reused() -> u64 {
    REUSED.load(Ordering::Relaxed)
}

/// The stack and the real layout of a block.
fn class(layout: Layout) -> Option<(&'static Stack, Layout)> {
    if layout.align() > ALIGN || layout.size() == 0 || layout.size() > LARGEST {
        return None;
    }
    let steps = layout.size().div_ceil(STEP);
    let real = Layout::from_size_align(steps * STEP, ALIGN).ok()?;
    Some((&STACKS[steps - 1], real))
}

struct Lifo;

// SAFETY: a block is the system's, of the size and alignment of its class at least; it is on a stack, or
// somebody's, never both, since it gets there by `dealloc` and leaves under the stack's lock.
unsafe impl GlobalAlloc for Lifo {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((stack, real)) = class(layout) else {
            // SAFETY: the caller's.
            return unsafe { System.alloc(layout) };
        };
        let block = stack.with(|top| {
            let block = *top;
            if !block.is_null() {
                // SAFETY: a free block: its first word is ours (`dealloc`).
                *top = unsafe { block.cast::<*mut u8>().read() };
            }
            block
        });
        if block.is_null() {
            // SAFETY: the size is not zero (`class`).
            return unsafe { System.alloc(real) };
        }
        REUSED.fetch_add(1, Ordering::Relaxed);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((stack, real)) = class(layout) else {
            // SAFETY: the caller's; not one of ours.
            return unsafe { System.dealloc(block, layout) };
        };
        // SAFETY: the caller gives the block up; it has the size and the alignment of its class.
        unsafe { block.write_bytes(POISON, real.size()) };
        stack.with(|top| {
            // SAFETY: as above.
            unsafe { block.cast::<*mut u8>().write(*top) };
            *top = block;
        });
    }
}

#[global_allocator]
static LIFO: Lifo = Lifo;
