//! Where one generation's tensors are.
//!
//! What lives here: [`Extents`], a row for each ordinal, and what a row says. What does not: what the
//! tensors are (`mod`), the memory that they are in (`memory`), whether the host can read there
//! (`registry::face`).
//!
//! Generations of one layout that have their tensors in the same places share the rows: two thousand
//! adapters that were trained alike have one table, which stays in the cache.

use std::sync::Arc;

use super::{Layout, TensorInfo};
use crate::arena::ALIGNMENT;

/// One tensor's place, packed, and its length.
///
/// From the top: eight bits for whose memory it is in (zero: the generation's own; otherwise a lender,
/// counted from one, or `IN_PART`), one bit that says that the tensor has a dtype which is not known,
/// and the offset. So what lies in the generation's own memory and can be read is what is below
/// `1 << OFFSET_BITS`, and one comparison with the length of the memory tells it from all else.
///
/// One integer, the length above the place, so that both are loaded at once, where the row is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row(u128);

/// Where one generation's tensors are, by ordinal: in its own arena, in one of its parts, or, for an alias, in
/// the arena of another set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extents(Arc<[Row]>);

/// A tensor's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `None`: the generation's own arena. Otherwise which of those that are lent to it.
    pub(crate) lender: Option<u8>,
    /// Where it starts there.
    pub(crate) offset: u64,
}

const NOWHERE: u64 = u64::MAX;
/// Offsets are below these bits: 32 PiB in each arena.
pub(crate) const OFFSET_BITS: u32 = 55;
/// Of a tensor whose dtype is not known.
const UNKNOWN: u64 = 1 << OFFSET_BITS;
/// The lender is above these bits, counted from one.
const LENDER_BITS: u32 = OFFSET_BITS + 1;
/// Most other sets that one set's aliases can be in.
pub(crate) const LENDERS: usize = 254;
/// The bits above of what is in a part. (`NOWHERE` has these, too, and more than any part below them.)
const IN_PART: u64 = 255 << LENDER_BITS;
/// Below them the part is above these bits, and the offset in it, by `ALIGNMENT`, is in them.
const PART_BITS: u32 = 36;
/// Most parts of one set.
pub(crate) const PARTS: usize = (1 << (OFFSET_BITS - PART_BITS)) - 1;
/// A part has fewer bytes.
pub(crate) const PART_BYTES: u64 = (ALIGNMENT as u64) << PART_BITS;

impl Row {
    /// Of what this generation does not have.
    const NOWHERE: Row = Row::new(NOWHERE, 0);

    const fn new(packed: u64, len: u64) -> Self {
        Row(((len as u128) << 64) | packed as u128)
    }

    /// Of the tensor `info`, in part `part` of its set, if it is in one.
    fn of(info: &TensorInfo, part: Option<u32>, offset: u64) -> Self {
        let packed = match part {
            None => offset,
            Some(part) => IN_PART | (u64::from(part) << PART_BITS) | (offset / ALIGNMENT as u64),
        };
        let unknown = if info.dtype().is_none() { UNKNOWN } else { 0 };
        Row::new(packed | unknown, info.byte_len())
    }

    /// Its offset in the generation's own memory, if it is there and can be read. Otherwise more than
    /// any such offset. A tensor of the layout, whose dtype is known, if it is less.
    #[inline(always)]
    pub(crate) fn own(self) -> u64 {
        self.0 as u64
    }

    /// How many bytes it has.
    #[inline(always)]
    pub(crate) fn len(self) -> u64 {
        (self.0 >> 64) as u64
    }

    fn is_nowhere(self) -> bool {
        self.own() == NOWHERE
    }

    /// Its offset in part `part`, if it is there and has a dtype that is known: one comparison of all
    /// that is above the offset. (`NOWHERE` has the bit of a dtype that is not known.)
    #[inline(always)]
    pub(crate) fn in_this_part(self, part: u32) -> Option<u64> {
        let there = (IN_PART >> PART_BITS) | u64::from(part);
        let offset = self.own() & ((1 << PART_BITS) - 1);
        (self.own() >> PART_BITS == there).then_some(offset * ALIGNMENT as u64)
    }

    /// The part that it is in, and its offset there; `None`: it is in none.
    #[inline]
    pub(crate) fn in_part(self) -> Option<(u32, u64)> {
        if self.is_nowhere() || self.own() & IN_PART != IN_PART {
            return None;
        }
        let packed = self.own() & (UNKNOWN - 1);
        let offset = packed & ((1 << PART_BITS) - 1);
        Some(((packed >> PART_BITS) as u32, offset * ALIGNMENT as u64))
    }

    fn place(self) -> Option<Place> {
        (!self.is_nowhere()).then_some(Place {
            lender: ((self.own() >> LENDER_BITS) as u8).checked_sub(1),
            offset: self.own() & (UNKNOWN - 1),
        })
    }
}

impl Extents {
    /// Of the tensors of `layout`: `place` says of each in which part it is, if in one, and from where on
    /// there, a multiple of `ALIGNMENT`, or in its arena. `None`: nowhere so far.
    pub(crate) fn of(layout: &Layout, place: impl Fn(u32) -> Option<(Option<u32>, u64)>) -> Self {
        let row = |ordinal| {
            let (info, (part, offset)) = (layout.tensor(ordinal)?, place(ordinal)?);
            Some(Row::of(info, part, offset))
        };
        let rows = layout.ordinals();
        Extents(
            rows.map(|ordinal| row(ordinal).unwrap_or(Row::NOWHERE))
                .collect(),
        )
    }

    /// An alias of `len` bytes, in the arena of lender `lender`.
    pub(crate) fn lend(&mut self, ordinal: u32, lender: u8, offset: u64, len: u64) {
        // Not seen by those who share the rows.
        let rows = Arc::make_mut(&mut self.0);
        rows[ordinal as usize] = Row::new((u64::from(lender) + 1) << LENDER_BITS | offset, len);
    }

    /// By ordinal.
    #[inline]
    pub(crate) fn rows(&self) -> &Arc<[Row]> {
        &self.0
    }

    /// The part that a tensor is in, and its offset there; `None`: it is in none.
    #[inline]
    pub fn in_part(&self, ordinal: u32) -> Option<(u32, u64)> {
        self.0.get(ordinal as usize)?.in_part()
    }

    /// The place of a tensor, if this generation has it. Of one that is in a part, it is a place where nothing can be
    /// read: beyond all lenders.
    #[inline]
    pub fn place(&self, ordinal: u32) -> Option<Place> {
        self.0.get(ordinal as usize)?.place()
    }

    /// The same places by other ordinals: `moved[old]` is the new one.
    pub(super) fn moved(&self, moved: &[Option<u32>], len: usize) -> Self {
        let mut rows = vec![Row::NOWHERE; len];
        for (&row, new) in self.0.iter().zip(moved) {
            if let Some(new) = *new {
                rows[new as usize] = row;
            }
        }
        Extents(rows.into())
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::layout::Interner;
    use crate::plan::Plan;

    fn plan(lens: [usize; 2]) -> Plan {
        let tensors = [("a", lens[0]), ("b", lens[1])];
        Plan::of(
            "places",
            tensors.map(|(name, len)| (name, Dtype::U8, vec![len])),
        )
        .unwrap()
    }

    fn placed(interner: &Interner, lens: [usize; 2]) -> (Arc<Layout>, Extents) {
        let plan = plan(lens);
        let layout = interner.intern(plan.layout());
        let extents = layout.share(plan.extents(&layout));
        (layout, extents)
    }

    #[test]
    fn generations_of_one_layout_share_the_rows_of_the_same_places() {
        let interner = Interner::default();
        let (layout, first) = placed(&interner, [3, 5]);
        let (_, second) = placed(&interner, [3, 5]);
        assert!(Arc::ptr_eq(&first.0, &second.0));
        // Another layout, and other places of the same one.
        let (_, others) = placed(&interner, [3, 6]);
        assert!(!Arc::ptr_eq(&first.0, &others.0));
        let elsewhere = |ordinal| Some((None, 4096 - 64 * u64::from(ordinal)));
        let elsewhere = layout.share(Extents::of(&layout, elsewhere));
        assert!(!Arc::ptr_eq(&first.0, &elsewhere.0));
        assert_eq!(elsewhere.place(1).unwrap().offset, 4096 - 64);
        assert_eq!(first.place(1).unwrap().offset, 64);
    }

    #[test]
    fn an_alias_is_placed_in_one_generation_and_not_in_those_that_shared_its_rows() {
        let interner = Interner::default();
        let (layout, first) = placed(&interner, [3, 5]);
        let (_, mut second) = placed(&interner, [3, 5]);
        second.lend(1, 253, 7, 5);
        assert_eq!(second.place(1).unwrap().lender, Some(253));
        assert_eq!(second.place(1).unwrap().offset, 7);
        assert!(second.in_part(1).is_none());
        assert!(second.rows()[1].own() >= 1 << OFFSET_BITS);
        assert_eq!(first.place(1).unwrap().lender, None);
        let third = layout.share(second.clone());
        assert!(Arc::ptr_eq(&third.0, &second.0), "its own");
    }

    #[test]
    fn a_row_keeps_what_it_is_told_up_to_its_limits() {
        let known = plan([3, 5]).layout();
        let (far, last) = ((1 << OFFSET_BITS) - 64, PARTS as u32 - 1);
        let deep = PART_BYTES - ALIGNMENT as u64;
        let extents = Extents::of(&known, |ordinal| match ordinal {
            0 => Some((None, far)),
            _ => Some((Some(last), deep)),
        });
        let [own, part] = [0, 1].map(|at| extents.rows()[at]);
        assert_eq!((own.own(), own.len(), own.in_part()), (far, 3, None));
        assert_eq!((part.in_part(), part.len()), (Some((last, deep)), 5));
        assert!(part.own() >= 1 << OFFSET_BITS);
        assert_eq!(part.in_this_part(last), Some(deep));
        let others = [0, last - 1, last + 1, u32::MAX];
        assert!(
            others
                .iter()
                .all(|&other| part.in_this_part(other).is_none())
        );
        for elsewhere in [own, Row::NOWHERE, Row(part.0 | u128::from(UNKNOWN))] {
            let any = [0, 1, last, PARTS as u32].map(|any| elsewhere.in_this_part(any));
            assert_eq!(any, [None; 4]);
        }
        let nowhere = Extents::of(&known, |_| None);
        assert_eq!((nowhere.place(0), nowhere.in_part(0)), (None, None));
        assert_eq!(nowhere.place(2), None);
    }
}
