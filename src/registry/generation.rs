//! What one generation carries: metadata that a scope may read, bytes that only a lease may.
//!
//! What lives here: the two payload types of the core, and what they are made of. What does not: what
//! a set's generations share (`record`), how they are made (`commit`) and read (`lease`).

use std::sync::Arc;

use super::alias::Aliases;
use super::record::SetRecord;
use super::shared::Shared;
use crate::core::Storage;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::identity::Identity;
use crate::layout::{AdapterInfo, Extents, Layout, Place};
use crate::ledger::Charge;
use crate::memory::Memory;
use crate::modules::Fit;
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

/// What a generation is made of. Generations that differ in their number only share the bytes.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) facts: Facts,
    pub(crate) bytes: Bytes,
}

/// The metadata of a generation (`M` of the core).
pub(crate) struct Meta {
    pub(crate) handle: SetHandle,
    pub(crate) kind: SetKind,
    pub(crate) record: Arc<SetRecord>,
    pub(crate) facts: Facts,
    /// How an adapter fits its base, as of the generation it was bound to.
    pub(crate) fit: Fit,
    pub(crate) bytes: u64,
    /// The account core: labels, ledger. One `Arc` per generation, none per lease.
    pub(crate) shared: Arc<Shared>,
}

impl Meta {
    /// The modules of an adapter that were not checked against its base.
    pub(crate) fn unchecked_modules(&self) -> impl Iterator<Item = &str> {
        let modules = self.facts.layout.modules();
        let unchecked = self.fit.unchecked().iter();
        unchecked.filter_map(|&position| Some(modules.get(position as usize)?.module()))
    }
}

/// Memory, and what the ledger was charged for it.
pub(crate) struct Body {
    // Freed first: the ledger is told only when the pages have gone back.
    pub(crate) memory: Memory,
    pub(crate) charge: Charge,
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

impl Body {
    /// Frees the memory and keeps the charge.
    pub(crate) fn into_charge(self) -> Charge {
        let Body { memory, charge } = self;
        memory.give_back_here();
        charge
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

pub(crate) type Node = crate::core::Node<Meta, Bytes>;
pub(crate) type Hold = crate::core::Hold<Meta, Bytes>;
pub(crate) type Holds = crate::core::Holds<Meta, Bytes>;
pub(crate) type Spine = crate::core::Spine<Meta, Bytes>;
pub(crate) type View<'s> = crate::core::View<'s, Meta, Bytes>;
pub(crate) type Change = crate::core::Change<Meta, Bytes>;
pub(crate) type StagedNode = crate::core::StagedNode<Meta, Bytes>;

/// The number of a node that was published.
pub(crate) fn generation(node: &Node) -> Generation {
    Generation(node.birth())
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
