//! The entries that one lease has in the slab of labels.
//!
//! What lives here: the container, one place per set of the lease. What does not: the entries
//! themselves (`labels`), who makes and leaves them (`lease`, `fenced`).
//!
//! Nearly all leases have no label, so this is two words that are zero then, and no lease of up to
//! four sets needs the heap for it.

use std::ops::{Deref, DerefMut};

use crate::labels::LabelId;

const FEW: usize = 4;

/// See the module documentation. There may be more places than sets, and those are empty.
pub(super) enum Entries {
    Few([Option<LabelId>; FEW]),
    Many(Box<[Option<LabelId>]>),
}

impl Entries {
    /// Of a lease without a label.
    pub(super) const NONE: Entries = Entries::Few([None; FEW]);

    /// Certainly of a lease without a label.
    #[inline]
    pub(super) fn are_none(&self) -> bool {
        matches!(self, Entries::Few([None, None, None, None]))
    }
}

impl FromIterator<Option<LabelId>> for Entries {
    fn from_iter<I: IntoIterator<Item = Option<LabelId>>>(entries: I) -> Self {
        let mut rest = entries.into_iter();
        let few = std::array::from_fn(|_| rest.next().flatten());
        match rest.next() {
            None => Entries::Few(few),
            Some(next) => Entries::Many(few.into_iter().chain([next]).chain(rest).collect()),
        }
    }
}

impl Deref for Entries {
    type Target = [Option<LabelId>];

    #[inline]
    fn deref(&self) -> &[Option<LabelId>] {
        match self {
            Entries::Few(few) => few,
            Entries::Many(many) => many,
        }
    }
}

impl DerefMut for Entries {
    fn deref_mut(&mut self) -> &mut [Option<LabelId>] {
        match self {
            Entries::Few(few) => few,
            Entries::Many(many) => many,
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::Entries;
    use crate::labels::Labels;

    #[test]
    fn every_set_has_its_place_however_many_there_are() {
        let slab = Labels::new();
        for count in 0..12 {
            let ids: Vec<_> = (0..count)
                .map(|index| (index % 3 != 0).then(|| slab.claim("x", 0, 1, 0).unwrap()))
                .collect();
            let entries: Entries = ids.iter().copied().collect();
            assert_eq!(entries[..count], ids);
            assert!(entries[count..].iter().all(Option::is_none));
        }
    }

    /// Every word of a lease is stored when it is made and loaded when it ends.
    #[test]
    fn a_lease_is_seven_words() {
        assert_eq!(size_of::<Entries>(), 16);
        assert_eq!(size_of::<crate::Lease>(), 56);
    }
}
