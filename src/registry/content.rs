//! What a generation is made of: what is known of it, and its bytes.
//!
//! What lives here: [`Facts`], [`Bytes`], and how bytes go. What does not: which generation of which
//! set that is (`generation`), what its aliases are bound to (`alias`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::core::Storage;
use crate::handle::{SetHandle, SetKind};
use crate::identity::{Digest, Identity};
use crate::layout::{AdapterInfo, Extents, Layout, Place};
use crate::ledger::Charge;
use crate::memory::Memory;
use crate::sync::share::Share;

/// What is known of a generation: everything but its bytes, its number and its set.
#[derive(Clone)]
pub(crate) struct Facts {
    /// Where it comes from, for people.
    pub(crate) origin: Arc<str>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) extents: Extents,
    pub(crate) identity: Identity,
    pub(crate) adapter: Option<AdapterInfo>,
    /// The base an adapter is bound to.
    pub(crate) base: Option<SetHandle>,
    /// The tensors that are other sets'.
    pub(crate) aliases: Option<Arc<Aliases>>,
}

impl Facts {
    pub(crate) fn kind(&self) -> SetKind {
        SetKind::of(self.base)
    }
}

/// The aliases of one set, and what they are to its identity.
pub(crate) struct Aliases {
    pub(crate) targets: Targets,
    /// What the set's own tensors are.
    pub(crate) own: Own,
}

/// What a set's aliases are, in the order of their names' ordinals.
#[derive(Default)]
pub(crate) struct Targets(pub(crate) Vec<Target>);

/// What one alias is.
#[derive(Clone)]
pub(crate) struct Target {
    /// Its name in the set that has it.
    pub(crate) name: Arc<str>,
    /// Whose tensor it is. That set owns the bytes.
    pub(crate) set: SetHandle,
    pub(crate) tensor: Arc<str>,
}

/// What the set's own tensors are.
pub(crate) enum Own {
    Digests(HashMap<Arc<str>, Digest>),
    Declared(Identity),
}

/// What a generation is made of. Generations that differ in their number only share the bytes.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) facts: Facts,
    pub(crate) bytes: Bytes,
}

/// Memory, and what the ledger was charged for it.
pub(crate) struct Body {
    // Freed first: the ledger is told only when the pages have gone back.
    pub(crate) memory: Memory,
    pub(crate) charge: Charge,
}

impl Body {
    /// Frees the memory and keeps the charge.
    pub(crate) fn into_charge(self) -> Charge {
        let Body { memory, charge } = self;
        memory.give_back_here();
        charge
    }
}

/// The bytes of a generation (`S` of the core).
///
/// A body is freed with the last generation that has it. Whoever drops one drops its share by
/// [`Storage::dismantle`], on the reclaimer's thread, or in a place that may free (a staged set).
#[derive(Clone)]
pub(crate) struct Bytes {
    /// Its own: charged to it, and shared with the generations that it was rolled back or rebound to.
    pub(crate) own: Share<Body>,
    /// What its aliases are in: charged to the sets that they belong to.
    pub(crate) lent: Box<[Share<Body>]>,
}

impl Bytes {
    pub(crate) fn new(body: Body) -> Self {
        Bytes {
            own: Share::new(body),
            lent: Box::default(),
        }
    }

    /// `len` bytes from `place` on. `None`: they are not there.
    #[inline]
    pub(crate) fn get(&self, place: Place, len: usize) -> Option<&[u8]> {
        let start = place.offset as usize;
        let memory = self.memory(place)?;
        memory.as_slice().get(start..start + len)
    }

    /// What `place` is in.
    #[inline]
    pub(crate) fn memory(&self, place: Place) -> Option<&Memory> {
        let body = match place.lender {
            None => &self.own,
            Some(lender) => self.lent.get(usize::from(lender))?,
        };
        Some(&body.memory)
    }
}

impl Storage for Body {
    fn dismantle(self, step: &mut dyn FnMut()) {
        let Body { memory, charge } = self;
        // If an owner panics, the charge is dropped on the way out.
        memory.give_back(step);
        // The ledger is told only when the pages have gone back.
        drop(charge);
    }
}

impl Storage for Bytes {
    fn dismantle(self, step: &mut dyn FnMut()) {
        let Bytes { own, lent } = self;
        own.dismantle(step);
        for body in lent {
            body.dismantle(step);
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::memory::Owner;

    /// Ends in three pieces.
    struct InPieces;

    impl Owner for InPieces {
        fn byte_len(&self) -> u64 {
            0
        }
        fn address(&self) -> u64 {
            0
        }
        fn give_back(self: Box<Self>, step: &mut dyn FnMut()) {
            (0..3).for_each(|_| step());
        }
    }

    #[test]
    fn the_reclaimer_looks_up_between_the_pieces_of_an_owners_end() {
        let body = Body {
            memory: Memory::of(InPieces).unwrap(),
            charge: Ledger::new(0).reserve(0).unwrap(),
        };
        let mut steps = 0;
        Bytes::new(body).dismantle(&mut || steps += 1);
        assert_eq!(steps, 3);
    }
}
