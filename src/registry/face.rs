//! What reading a tensor looks at: seven words in its generation's node.
//!
//! What lives here: [`Face`]: whose tensors they are, their rows, and what of their memory the host can
//! read. What does not: what is said where that has no answer (`lease`), the rows (`layout::places`),
//! who may bring memory back (`core::berth`).
//!
//! Nearly every tensor is in its set's own memory, which the host can read. For those a read is: the
//! handle is one of this set, the row is there, it is below the end of what can be read. All else
//! (tensors of other sets, of parts, of unknown dtype, in memory of a device) has a row that is not below
//! that end, and goes the long way.

use std::ptr::NonNull;
use std::sync::{Arc, LazyLock};

use super::content::{Bytes, Facts};
use super::lease::Weight;
use crate::handle::{SetHandle, WeightHandle};
use crate::layout::{Layout, OFFSET_BITS, Row};
use crate::sync::cell::Berth;

/// See the module documentation. Not aligned to a cache line: it begins where an acquire has just looked
/// (`Meta`), and 64 is what arenas are told by (`tests/faults/heap.rs`).
#[repr(C)]
pub(crate) struct Face {
    /// The handle of the set's first tensor.
    first: WeightHandle,
    rows: Arc<[Row]>,
    sight: Berth<Sight>,
    layout: Arc<Layout>,
}

/// What of a generation's own memory the host can read, as far as its rows keep to it: a row that begins
/// below `end` ends there at the latest.
#[derive(Clone, Copy)]
struct Sight {
    end: u64,
    base: NonNull<u8>,
}

// SAFETY: `base` is only read from, by whoever keeps the memory that it points to (`Face::weight`), and
// that memory is `Send + Sync`.
unsafe impl Send for Face {}
// SAFETY: as above; `sight` is written only while nobody looks (`Face::look_at`).
unsafe impl Sync for Face {}

impl Sight {
    const NONE: Sight = Sight {
        end: 0,
        base: NonNull::dangling(),
    };

    /// Of `memory`, whose tensors are in `rows`. Nothing, if some row begins in it and ends beyond:
    /// whoever reads that one looks for itself. The only place where an end comes from.
    fn of(rows: &[Row], memory: &[u8]) -> Self {
        // What is further up is no offset, see `Row`.
        let end = (memory.len() as u64).min(1 << OFFSET_BITS);
        let keeps_to_it = |row: &Row| {
            row.own() >= end || row.own().checked_add(row.len()).is_some_and(|to| to <= end)
        };
        if !rows.iter().all(keeps_to_it) {
            return Sight::NONE;
        }
        let base = NonNull::from(memory).cast();
        Sight { end, base }
    }

    fn of_bytes(rows: &[Row], bytes: Option<&Bytes>) -> Self {
        bytes.map_or(Sight::NONE, |bytes| {
            Sight::of(rows, bytes.own.memory.as_slice())
        })
    }
}

impl Face {
    /// Of a generation of `set` that is made of these; `None`: its bytes are away.
    pub(crate) fn new(set: SetHandle, facts: &Facts, bytes: Option<&Bytes>) -> Self {
        let rows = Arc::clone(facts.extents.rows());
        Face {
            first: set.weight(0),
            sight: Berth::new(Sight::of_bytes(&rows, bytes)),
            rows,
            layout: Arc::clone(&facts.layout),
        }
    }

    /// Of no set: no tensor is found.
    pub(super) fn of_none() -> &'static Face {
        static NONE: LazyLock<Face> = LazyLock::new(|| Face {
            first: SetHandle {
                registry: u32::MAX,
                slot: u32::MAX,
                tag: u32::MAX,
            }
            .weight(0),
            rows: Arc::default(),
            sight: Berth::new(Sight::NONE),
            layout: Arc::new(Layout::new(Vec::new(), Vec::new(), Arc::default())),
        });
        &NONE
    }

    /// The bytes are back, and where they are now.
    ///
    /// # Safety
    /// Nobody else is in [`weight`](Self::weight), [`at`](Self::at) or this.
    pub(super) unsafe fn look_at(&self, bytes: &Bytes) {
        // SAFETY: the caller's.
        unsafe { self.sight.swap(Sight::of_bytes(&self.rows, Some(bytes))) };
    }

    /// The tensor of this handle, if it is of this set and in its own memory, where the host can read it.
    ///
    /// # Safety
    /// The memory that this was made of, or last [looked at](Self::look_at), is there as long as the
    /// answer: the caller has a lease of the generation.
    #[inline(always)]
    pub(super) unsafe fn weight(&self, weight: WeightHandle) -> Option<Weight<'_>> {
        let ordinal = weight.beyond(self.first)?;
        // SAFETY: the caller's.
        unsafe { self.at(ordinal) }
    }

    /// The tensor with this ordinal, on the same terms.
    ///
    /// # Safety
    /// As [`weight`](Self::weight).
    #[inline(always)]
    pub(super) unsafe fn at(&self, ordinal: u64) -> Option<Weight<'_>> {
        let row = *self.rows.get(usize::try_from(ordinal).ok()?)?;
        // SAFETY: it changes only while there is no lease (E70, E71), and the caller has one. Guarded by
        // the models `restore_acq` and `evict_restore`.
        let sight = unsafe { self.sight.get() };
        if row.own() >= sight.end {
            return None;
        }
        // SAFETY: the row begins below `end`, so it ends there at the latest, and all of that is memory
        // that the host can read (`Sight::of`, guarded by the tests below); it is there by the caller's
        // lease (E4, E71), and nobody writes to it: it was filled before anybody could lease it. Guarded
        // by the models `evict_rel` and `two_rel`, and `tests/foreign.rs` under AddressSanitizer.
        let bytes = unsafe {
            let start = sight.base.as_ptr().add(row.own() as usize);
            std::slice::from_raw_parts(start, row.len() as usize)
        };
        // Less than the number of rows, which is that of the layout's ordinals.
        Some(Weight::new(&self.layout, ordinal as u32, bytes))
    }

    /// The row of a tensor by its handle, if it is of this set, and its layout.
    #[inline(always)]
    pub(super) fn row(&self, weight: WeightHandle) -> Option<(Row, &Layout)> {
        let ordinal = usize::try_from(weight.beyond(self.first)?).ok()?;
        Some((*self.rows.get(ordinal)?, &self.layout))
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::layout::Extents;
    use crate::plan::Plan;

    const SET: SetHandle = SetHandle {
        registry: 1,
        slot: 2,
        tag: 3,
    };

    fn layout(lens: &[usize]) -> Layout {
        let tensors = lens.iter().enumerate();
        let tensors = tensors.map(|(at, &len)| (format!("{at}"), Dtype::U8, vec![len]));
        Plan::of("face", tensors).unwrap().layout()
    }

    /// Tensors of so many bytes, from there on in `memory`.
    fn face(tensors: &[(u64, usize)], memory: &[u8]) -> Face {
        let lens: Vec<usize> = tensors.iter().map(|(_, len)| *len).collect();
        let layout = layout(&lens);
        let places = |ordinal| Some((None, tensors[ordinal as usize].0));
        let rows = Arc::clone(Extents::of(&layout, places).rows());
        Face {
            first: SET.weight(0),
            sight: Berth::new(Sight::of(&rows, memory)),
            rows,
            layout: Arc::new(layout),
        }
    }

    fn read(face: &Face, ordinal: u32) -> Option<&[u8]> {
        // SAFETY: the tests keep their memory.
        unsafe { face.weight(SET.weight(ordinal)) }.map(|weight| weight.bytes())
    }

    #[test]
    fn it_is_seven_words_right_behind_what_an_acquire_looks_at() {
        assert_eq!(size_of::<Face>(), 56);
        assert_eq!(
            std::mem::offset_of!(super::super::generation::Meta, face),
            0
        );
    }

    #[test]
    fn what_keeps_to_the_memory_is_read_up_to_its_last_byte() {
        let memory: Vec<u8> = (0..8).collect();
        let face = face(&[(0, 3), (3, 5), (7, 1), (2, 0)], &memory);
        assert_eq!(read(&face, 0).unwrap(), [0, 1, 2]);
        assert_eq!(read(&face, 1).unwrap(), [3, 4, 5, 6, 7]);
        assert_eq!(read(&face, 2).unwrap(), [7]);
        assert!(read(&face, 3).unwrap().is_empty());
        for ordinal in [4, 5, u32::MAX] {
            assert!(read(&face, ordinal).is_none());
        }
    }

    #[test]
    fn a_row_that_ends_beyond_the_memory_is_never_read() {
        let memory = [0; 8];
        let huge = (1 << OFFSET_BITS) - 1;
        for beyond in [(0, 9), (7, 2), (1, 1 << 40), (0, 1 << 50)] {
            let face = face(&[(0, 1), beyond], &memory);
            assert!(read(&face, 1).is_none(), "{beyond:?}");
            // Nor does anything else of that memory go this way.
            assert!(read(&face, 0).is_none(), "{beyond:?}");
        }
        // Beyond from its first byte on: that one alone.
        for beyond in [(8, 1), (8, 0), (9, 3), (huge, 1)] {
            let face = face(&[(0, 1), beyond], &memory);
            assert!(read(&face, 1).is_none(), "{beyond:?}");
            assert_eq!(read(&face, 0), Some(&[0][..]), "{beyond:?}");
        }
    }

    #[test]
    fn memory_that_is_not_there_is_not_read() {
        let face = face(&[(0, 1), (0, 0)], &[]);
        assert!(read(&face, 0).is_none() && read(&face, 1).is_none());
    }

    #[test]
    fn what_is_in_parts_elsewhere_or_unknown_is_not_read() {
        let layout = layout(&[1, 1, 1]);
        let mut extents = Extents::of(&layout, |ordinal| match ordinal {
            0 => Some((Some(0), 0)),
            _ => None,
        });
        extents.lend(1, 0, 0, 1);
        let rows = Arc::clone(extents.rows());
        let memory = [0; 64];
        let sight = Sight::of(&rows, &memory);
        assert_eq!(sight.end, 64);
        assert!(rows.iter().all(|row| row.own() >= 1 << OFFSET_BITS));
    }

    #[test]
    fn handles_of_other_sets_find_nothing() {
        let memory = [0; 8];
        let face = face(&[(0, 8)], &memory);
        let others = [
            SetHandle { registry: 2, ..SET },
            SetHandle { slot: 3, ..SET },
            SetHandle { tag: 2, ..SET },
            SetHandle { tag: 4, ..SET },
        ];
        for other in others {
            // SAFETY: the memory is kept.
            assert!(unsafe { face.weight(other.weight(0)) }.is_none());
            assert!(face.row(other.weight(0)).is_none());
            // SAFETY: as above.
            assert!(unsafe { Face::of_none().weight(other.weight(0)) }.is_none());
        }
    }
}
