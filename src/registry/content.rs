//! What a generation is made of: what is known of it, and its bytes.
//!
//! What lives here: [`Facts`], [`Bytes`], and how bytes go. What does not: which generation of which
//! set that is (`generation`), what its aliases are bound to (`alias`).

use std::collections::HashMap;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use super::stream::Ward;
use crate::arena::Arena;
use crate::core::window::Window;
use crate::core::{Storage, panics};
use crate::error::Error;
use crate::handle::{SetHandle, SetKind};
use crate::identity::{Digest, Identity};
use crate::layout::{AdapterInfo, Extents, Layout, Place, TensorInfo};
use crate::ledger::Charge;
use crate::memory::Memory;
use crate::plan::{Plan, PlannedPart, PlannedParts, PlannedTensor};
use crate::pool::{Pool, Supply};
use crate::source::{Reload, Source};
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
    /// How its bytes are read again.
    pub(crate) again: Option<Again>,
    /// The groups in which its tensors are in memory in turn, if it is streamed.
    pub(crate) parts: Option<Parts>,
}

/// What is known of the parts of a set that is streamed.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) planned: Arc<PlannedParts>,
    /// What each tensor of the plan is, if they were hashed.
    pub(crate) digests: Option<Arc<[Digest]>>,
}

/// How bytes that were taken away are read again.
#[derive(Clone)]
pub(crate) struct Again {
    /// `None` only while it is being dropped.
    from: Option<Arc<dyn Reload>>,
    /// How long their arena is.
    pub(crate) arena_bytes: u64,
    /// What that is charged.
    pub(crate) charged: u64,
}

impl Again {
    /// Of a set with this plan, whose bytes are in an arena.
    pub(crate) fn new(from: Arc<dyn Reload>, plan: &Plan) -> Self {
        Again {
            from: Some(from),
            arena_bytes: plan.arena_bytes(),
            charged: plan.charged_bytes(),
        }
    }

    /// [`Reload::reopen`].
    pub(crate) fn reopen(
        &self,
        read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.from.as_ref().map_or(Ok(()), |from| from.reopen(read))
    }
}

// Foreign code that only `load` calls, on its caller's thread: what a panic leaves there is the source's
// own, and everything else that has this never looks at it.
impl UnwindSafe for Again {}
impl RefUnwindSafe for Again {}

/// Foreign code: metadata may go while a lock of ours is held, or while another panic is on its way.
impl Drop for Again {
    fn drop(&mut self) {
        let from = self.from.take();
        let _ = panics(|| drop(from));
    }
}

impl Facts {
    pub(crate) fn kind(&self) -> SetKind {
        SetKind::of(self.base)
    }

    /// What its bytes are charged when they are there, as far as they can come back.
    pub(crate) fn charged_again(&self) -> u64 {
        self.again.as_ref().map_or(0, |again| again.charged)
    }

    /// Is `plan` one of these very tensors, each in the same place?
    pub(crate) fn describes(&self, plan: &Plan) -> bool {
        let same = |tensor: &PlannedTensor| {
            let ordinal = self.layout.ordinal(tensor.name())?;
            let (info, place) = (self.layout.tensor(ordinal)?, self.extents.place(ordinal)?);
            let part = self.extents.in_part(ordinal);
            let offset = part.map_or(place.offset, |(_, offset)| offset);
            let part = part.map(|(part, _)| part);
            let tie = info.tie().and_then(|tie| self.layout.tensor(tie));
            let target = tensor.tie.map(|tie| plan.tensors()[tie].name());
            if tie.map(TensorInfo::name) != target {
                return Some(false);
            }
            let ours = (info.dtype_name(), info.shape(), part, offset);
            let theirs = (
                tensor.dtype().name(),
                tensor.shape(),
                tensor.part,
                tensor.offset(),
            );
            Some(ours == theirs)
        };
        plan.tensors().len() == self.layout.len()
            && plan
                .tensors()
                .iter()
                .all(|tensor| same(tensor) == Some(true))
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

/// How many parts of one set are read ahead at a time, each by as many threads as a set is.
const READERS: usize = 1;

/// A window over the parts of a generation. An open stream's [`Ward`] is in it, hence a lease of the generation.
pub(crate) type PartWindow = Window<Arc<Error>, Arc<Ward>>;

/// Memory, and what the ledger was charged for it.
pub(crate) struct Body {
    // Freed first: the ledger is told only when the pages have gone back.
    pub(crate) memory: Memory,
    pub(crate) charge: Charge,
    /// Where its arena goes in the end, if it is to stay.
    pub(crate) pool: Pool,
    /// What of its parts is where, if it is streamed.
    pub(crate) window: Option<Arc<PartWindow>>,
}

impl Body {
    /// An arena for what `plan` describes, filled or not, that is charged.
    pub(crate) fn new(
        arena: Arena,
        charge: Charge,
        pool: Pool,
        parts: Option<&PlannedParts>,
    ) -> Self {
        let window = parts.map(|parts| {
            let lens = parts.all().iter().map(PlannedPart::bytes);
            Arc::new(Window::new(parts.window_bytes(), lens, READERS))
        });
        let memory = match parts {
            Some(parts) => Memory::windowed(arena, parts.resident_bytes() as usize),
            None => arena.into(),
        };
        Body {
            memory,
            charge,
            pool,
            window,
        }
    }

    /// The charge, and the memory for whoever uses it next, if it is an arena.
    pub(crate) fn into_supply(self) -> Supply {
        let Body {
            memory,
            charge,
            window,
            ..
        } = self;
        let _ = panics(|| drop(window));
        let arena = memory.into_arena();
        Supply {
            arena: arena.map_err(Memory::give_back_here).ok(),
            charge,
        }
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
        let Body {
            memory,
            charge,
            pool,
            window,
        } = self;
        // There may be foreign code in it: why a part could not be read, a waker of somebody who is gone.
        let _ = panics(|| drop(window));
        let (memory, charge) = match memory.into_arena() {
            Ok(arena) => match pool.keep(arena, charge, step) {
                Ok(()) => return,
                Err((arena, charge)) => (arena.into(), charge),
            },
            Err(memory) => (memory, charge),
        };
        // If an owner panics, the charge is dropped on the way out.
        memory.give_back(step);
        // The ledger is told only when the pages have gone back.
        drop(charge);
    }
}

/// What is known goes with the bytes: it may have what a source left, which is foreign code.
impl Storage for Content {
    fn dismantle(self, step: &mut dyn FnMut()) {
        let Content { facts, bytes } = self;
        bytes.dismantle(step);
        drop(facts);
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
        let ledger = Ledger::new(0);
        let body = Body {
            memory: Memory::of(InPieces).unwrap(),
            charge: ledger.reserve(0).unwrap(),
            pool: Pool::new(ledger, 0),
            window: None,
        };
        let mut steps = 0;
        Bytes::new(body).dismantle(&mut || steps += 1);
        assert_eq!(steps, 3);
    }
}
