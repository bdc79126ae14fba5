//! The slot table: append-only segments of slots that never move.
//!
//! What lives here: finding a slot by index, growing the table, and which slots are free. What does
//! not: what a slot's pointer means (`spine`).

use std::ptr;

use super::Key;
use super::node::Node;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicPtr, AtomicU32, Ordering, WithMut};

/// Log2 of the first segment's length; each further segment is twice as long.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const FIRST_BITS: u32 = 6;
/// One slot in the first segment, so that models reach growth at once.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
const FIRST_BITS: u32 = 0;

/// Enough segments for all `u32` indices.
const SEGMENTS: usize = (32 - FIRST_BITS) as usize;

/// One set's place.
pub(super) struct Slot<M, S> {
    /// The newest generation, committed or (inside a commit, for a moment) about to be.
    pub(super) current: AtomicPtr<Node<M, S>>,
    /// Living sets that are bound to the set in this slot. Only touched under the commit lock.
    pub(super) dependants: AtomicU32,
}

impl<M, S> Slot<M, S> {
    fn empty() -> Self {
        Slot {
            current: AtomicPtr::new(ptr::null_mut()),
            dependants: AtomicU32::new(0),
        }
    }
}

/// How far slots and their tags go. Less than all of them only in tests: nobody waits for 2^32 of
/// either.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Slots there may be.
    pub slots: u32,
    /// The last tag of a slot; the first is 1.
    pub last_tag: u32,
}

impl Bounds {
    /// All that a handle can tell apart.
    pub const FULL: Bounds = Bounds {
        slots: u32::MAX,
        last_tag: u32::MAX,
    };
}

struct Free {
    /// Slots without a tenant, with the tag of their next one.
    keys: Vec<Key>,
    next: u32,
}

/// See the module documentation.
pub(super) struct SlotTable<M, S> {
    segments: [AtomicPtr<Slot<M, S>>; SEGMENTS],
    free: Mutex<Free>,
    bounds: Bounds,
}

/// Which segment, how long it is, and the place in it.
#[inline]
fn locate(index: u32) -> (usize, usize, usize) {
    let shifted = u64::from(index) + (1 << FIRST_BITS);
    let segment = 63 - shifted.leading_zeros() - FIRST_BITS;
    let length = 1usize << (segment + FIRST_BITS);
    (segment as usize, length, (shifted as usize) - length)
}

impl<M, S> SlotTable<M, S> {
    pub(super) fn new(bounds: Bounds) -> Self {
        SlotTable {
            segments: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            free: Mutex::new(Free {
                keys: Vec::new(),
                next: 0,
            }),
            bounds,
        }
    }

    /// The slot with this index, if the table has grown that far.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Slot<M, S>> {
        let (segment, _, offset) = locate(index);
        // E3: Acquire: the segment's slots are initialised.
        let base = self.segments.get(segment)?.load(Ordering::Acquire);
        if base.is_null() {
            return None;
        }
        // SAFETY: a published segment has `length` slots and lives as long as the table; `offset`
        // is below its length by construction (`locate`, test `every_index_has_one_place`).
        Some(unsafe { &*base.add(offset) })
    }

    /// A slot that nobody uses: a recycled one, or the next new one. `None`: all are in use or spent.
    pub(super) fn allocate(&self) -> Option<Key> {
        let mut free = self.free.lock();
        if let Some(key) = free.keys.pop() {
            return Some(key);
        }
        let index = free.next;
        if index >= self.bounds.slots {
            return None;
        }
        let (segment, length, _) = locate(index);
        let place = self.segments.get(segment)?;
        // E3: Relaxed: segments are only published under the lock that we hold.
        if place.load(Ordering::Relaxed).is_null() {
            let slots: Box<[Slot<M, S>]> = (0..length).map(|_| Slot::empty()).collect();
            // E3: Release: publishes the initialised slots.
            place.store(Box::leak(slots).as_mut_ptr(), Ordering::Release);
        }
        free.next = index + 1;
        Some(Key {
            slot: index,
            tag: 1,
        })
    }

    /// Gives a slot back for its next tenant. The caller retired `key`, or never published it. A slot
    /// whose tags are spent is never handed out again.
    pub(super) fn recycle(&self, key: Key) {
        if key.tag < self.bounds.last_tag {
            let tag = key.tag + 1;
            self.free.lock().keys.push(Key { tag, ..key });
        }
    }

    /// One past the highest slot that was ever allocated.
    pub(super) fn end(&self) -> u32 {
        self.free.lock().next
    }
}

impl<M, S> Drop for SlotTable<M, S> {
    fn drop(&mut self) {
        for (bits, segment) in self.segments.iter_mut().enumerate() {
            let base = segment.with_mut(|base| *base);
            if !base.is_null() {
                let length = 1usize << (bits as u32 + FIRST_BITS);
                let slots = ptr::slice_from_raw_parts_mut(base, length);
                // SAFETY: leaked by `allocate` with this length; `&mut self`: nobody looks.
                drop(unsafe { Box::from_raw(slots) });
            }
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_with_the_next_tag_until_they_are_spent() {
        let table = SlotTable::<(), ()>::new(Bounds::FULL);
        let first = table.allocate().unwrap();
        assert_eq!((first.slot, first.tag), (0, 1));
        table.recycle(first);
        let second = table.allocate().unwrap();
        assert_eq!((second.slot, second.tag), (0, 2), "never the same handle");
        table.recycle(Key {
            tag: u32::MAX,
            ..second
        });
        let third = table.allocate().unwrap();
        assert_eq!((third.slot, third.tag), (1, 1), "tags are spent");
    }

    #[test]
    fn every_index_has_one_place() {
        let mut expected = (0usize, 0usize);
        for index in 0..100_000u32 {
            let (segment, length, offset) = locate(index);
            assert_eq!((segment, offset), expected, "index {index}");
            expected = if offset + 1 == length {
                (segment + 1, 0)
            } else {
                (segment, offset + 1)
            };
        }
        let (segment, length, offset) = locate(u32::MAX);
        assert!(segment <= SEGMENTS && offset < length);
    }
}
