//! What making a set current costs the thread that does it, by how many tensors there are. A binary of its own: it
//! counts what each thread gives back to the heap.
#![cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use support::SOON;
use weighbridge::source::InMemory;
use weighbridge::{Dtype, WeightRegistry};

thread_local! {
    /// Blocks that this thread took and gave back.
    static CALLS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: the system's allocator, and counters beside it that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.with(|calls| calls.set((calls.get().0 + 1, calls.get().1)));
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // A thread that ends gives back what its thread-locals had.
        let _ = CALLS.try_with(|calls| calls.set((calls.get().0, calls.get().1 + 1)));
        // SAFETY: the caller's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn set_of(tensors: usize) -> InMemory {
    (0..tensors).fold(InMemory::new(), |set, number| {
        set.tensor(format!("t{number}"), Dtype::U8, [4], [1; 4])
            .unwrap()
    })
}

/// Blocks taken and given back in a replace of a staged set.
fn replace(tensors: usize) -> (usize, usize) {
    let registry = WeightRegistry::builder().build().unwrap();
    let set = registry.publish("set", set_of(tensors)).unwrap();
    // A thread's first commits set this and that up.
    let mut most = (0, 0);
    for round in 0..10 {
        let staged = registry.stage(set_of(tensors)).unwrap();
        let before = CALLS.get();
        let replaced = registry.replace_staged(set, staged).unwrap();
        let after = CALLS.get();
        replaced.previous.reclaimed(SOON).unwrap();
        if round >= 5 {
            most.0 = most.0.max(after.0 - before.0);
            most.1 = most.1.max(after.1 - before.1);
        }
    }
    most
}

/// What is left of a staged set is dropped by the reclaimer, and nothing is made for each tensor.
#[test]
fn a_commit_takes_and_gives_back_as_much_for_a_thousand_tensors_as_for_one() {
    let (one, many) = (replace(1), replace(1_120));
    println!("blocks taken and given back: {one:?} for one tensor, {many:?} for 1,120");
    assert!(many.0 <= one.0 + 8, "taken: {one:?}, {many:?}");
    assert!(many.1 <= one.1 + 8, "given back: {one:?}, {many:?}");
}
