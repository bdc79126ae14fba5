//! What a lease says about itself: whether it is still wanted, and what it held.
//!
//! What lives here: revoked, superseded, and making a record. What does not: the record
//! (`provenance`), asking holders to let go (`retirement`).

use super::lease::{Lease, LeasedSet};
use crate::core::Bond;
use crate::handle::Generation;
use crate::provenance::{BaseProvenance, Provenance, SetProvenance};

impl Lease {
    /// Was the holder asked to end this lease ([`Retirement::revoke`](super::Retirement::revoke)),
    /// on account of any of its sets? The lease stays good. Wait-free, one load for each set.
    pub fn is_revoked(&self) -> bool {
        self.sets().any(|set| set.is_revoked())
    }

    /// Is any of its sets no longer what it was, because it was replaced or retired? Turns true a
    /// moment after that commit, and stays true. The lease stays good. Wait-free, one load for each
    /// set.
    pub fn is_superseded(&self) -> bool {
        self.sets().any(|set| set.is_superseded())
    }

    /// What this lease holds, as a record for an audit log.
    pub fn provenance(&self) -> Provenance {
        Provenance {
            number: self.number(),
            cache_key: self.cache_key(),
            sets: self.sets().map(|set| self.provenance_of(set)).collect(),
        }
    }

    fn provenance_of(&self, set: LeasedSet<'_>) -> SetProvenance {
        let bond = set.base().and_then(|base| {
            let is_base = |bond: &&Bond| (bond.base.slot, bond.base.tag) == (base.slot, base.tag);
            Some((base, set.hold.node().binds().iter().find(is_base)?))
        });
        SetProvenance {
            name: set.name().clone(),
            handle: set.handle(),
            kind: set.kind(),
            generation: set.generation(),
            identity: set.identity().clone(),
            base: bond.map(|(handle, bond)| BaseProvenance {
                handle,
                // Bound to what the same commit made current: it has the same number.
                generation: bond.birth.map_or(set.generation(), Generation),
                name: self.set(handle).ok().map(|base| base.name().clone()),
            }),
        }
    }
}

impl LeasedSet<'_> {
    /// As [`Lease::is_revoked`], for this set.
    pub fn is_revoked(&self) -> bool {
        self.hold.node().vitals().is_revoked()
    }

    /// As [`Lease::is_superseded`], for this set.
    pub fn is_superseded(&self) -> bool {
        self.hold.node().vitals().state().is_dead()
    }
}
