//! What all generations of a set share, from publish to retire.
//!
//! What lives here: the set's name, its ordinals, its earlier generations: those that somebody may
//! still hold, and those that are kept for a rollback. What does not: the generations themselves
//! (`generation`), who decides what becomes of them (`commit`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::content::{Body, Bytes, Content, Facts};
use super::loading::Loads;
use super::room::Pins;
use super::swept::Swept;
use crate::core::{Reclaimer, Vitals, discard};
use crate::handle::{Generation, SetHandle};
use crate::layout::{Extents, Layout, OrdinalTable};
use crate::names::SetName;
use crate::sync::swap::Swap;
use crate::sync::{Mutex, MutexGuard};

/// See the module documentation.
pub(crate) struct SetRecord {
    pub(crate) name: SetName,
    pub(crate) handle: SetHandle,
    /// Name to ordinal, append-only. Readers need it for messages only, and never wait for a writer.
    ordinals: Swap<OrdinalTable>,
    /// Held by writers of this set while they commit, so that a retire knows all generations before
    /// its own.
    history: Mutex<History>,
    /// Who reads its bytes once more, and what became of that.
    pub(super) loads: Mutex<Loads>,
    /// Who wants its bytes to stay.
    pub(super) pins: Mutex<Pins>,
    /// What a policy is to know of its use.
    pub(super) mark: Mutex<Mark>,
}

/// How a set was used, as far as samples tell.
#[derive(Default)]
pub(crate) struct Mark {
    /// When it was last seen to have been used, or came.
    last: Option<Instant>,
    /// It was used since a policy was asked.
    used: bool,
}

impl Mark {
    /// Its bytes came.
    pub(super) fn loaded(&mut self) {
        *self = Mark {
            last: Some(Instant::now()),
            used: false,
        };
    }

    /// It was used since the last sample, or not. Was it used since a policy was asked, and how long is it
    /// idle?
    pub(super) fn sample(&mut self, used: bool, now: Instant) -> (bool, Option<Duration>) {
        if used {
            self.last = Some(now);
            self.used = true;
        }
        let idle = self.last.map(|at| now.saturating_duration_since(at));
        (self.used, idle)
    }

    /// A policy was asked.
    pub(super) fn told(&mut self) {
        self.used = false;
    }
}

/// The generations that are no longer current.
pub(crate) struct History {
    /// Those that may still be held.
    going: Swept<Going>,
    /// Those that can become current again, oldest first.
    pub(crate) kept: VecDeque<Kept>,
    /// How many of them at most.
    pub(crate) keep: usize,
    /// The one whose place is empty until the next generation comes.
    pub(crate) vacated: Option<Kept>,
}

/// A generation that is no longer current.
#[derive(Clone)]
pub(crate) struct Going {
    pub(crate) generation: Generation,
    pub(crate) bytes: u64,
    pub(crate) vitals: Arc<Vitals>,
}

impl Going {
    fn is_gone(&self) -> bool {
        self.vitals.is_reclaimed()
    }
}

/// A generation that can become current again. Its charge says "kept" while it is here.
pub(crate) struct Kept {
    generation: Generation,
    /// `None` only while it is being discarded.
    content: Option<Box<Content>>,
}

/// Where kept generations go that a set lets go of: their bytes to the reclaimer, and here what is left of
/// them, for whoever lists what is not back yet.
pub(crate) struct Bin<'q> {
    queue: &'q Reclaimer,
    pub(crate) gone: Vec<Going>,
}

impl<'q> Bin<'q> {
    pub(crate) fn new(queue: &'q Reclaimer) -> Self {
        Bin {
            queue,
            gone: Vec::new(),
        }
    }
}

/// The right to give a set its next generation. Other writers of this set wait; readers and other
/// sets do not care.
pub(crate) struct Writing<'r> {
    pub(crate) record: &'r Arc<SetRecord>,
    pub(crate) history: MutexGuard<'r, History>,
}

impl SetRecord {
    /// Of a set whose first generation has the layout `first`, and which keeps `keep` earlier ones.
    pub(crate) fn new(name: SetName, handle: SetHandle, first: Arc<Layout>, keep: usize) -> Self {
        SetRecord {
            name,
            handle,
            ordinals: Swap::new(Arc::new(OrdinalTable::new(first))),
            history: Mutex::new(History {
                // There is one for each set: the last one only.
                going: Swept::new(1),
                kept: VecDeque::new(),
                keep,
                vacated: None,
            }),
            loads: Mutex::default(),
            pins: Mutex::default(),
            mark: Mutex::default(),
        }
    }

    /// The tensor an ordinal of this set stands for. Takes no lock.
    pub(crate) fn tensor_name(&self, ordinal: u32) -> String {
        self.ordinals.with(|table| match table.name(ordinal) {
            Some(name) => name.to_owned(),
            None => format!("ordinal {ordinal}"),
        }) // E16
    }

    /// Waits for other writers of this set.
    pub(crate) fn write(self: &Arc<Self>) -> Writing<'_> {
        Writing {
            record: self,
            history: self.history.lock(), // E16
        }
    }

    /// [`write`](Self::write), if nobody else does.
    pub(crate) fn try_write(self: &Arc<Self>) -> Option<Writing<'_>> {
        Some(Writing {
            record: self,
            history: self.history.try_lock()?, // E16
        })
    }
}

impl Writing<'_> {
    /// `own` with the ordinals of this set, the places with it, and the names that come with it.
    /// `None`: `own` as it is, and no new name.
    pub(crate) fn layout_for(
        &self,
        own: &Arc<Layout>,
        extents: &Extents,
    ) -> Option<(Layout, Extents, OrdinalTable)> {
        let ordinals = self.record.ordinals.load_full(); // E16
        (!ordinals.is_first(own)).then(|| {
            let mut table = OrdinalTable::clone(&ordinals);
            let (layout, extents) = own.after(&mut table, extents);
            (layout, extents, table)
        })
    }

    /// The generation went through: its new names are the set's.
    pub(crate) fn keep_names(&self, ordinals: Arc<OrdinalTable>) {
        self.record.ordinals.store(ordinals); // E16
    }
}

impl History {
    /// A generation was superseded.
    pub(crate) fn note(&mut self, superseded: Going) {
        // They are counts and numbers: nothing foreign is dropped under our lock.
        drop(self.going.add(superseded, Going::is_gone));
    }

    /// Forgets those that nobody holds any more.
    pub(crate) fn sweep(&mut self) {
        drop(self.going.sweep(Going::is_gone)); // As above.
    }

    /// Those that may still be held, and some that were until the last [sweep](Self::sweep), oldest first.
    pub(crate) fn going(&self) -> &[Going] {
        self.going.all()
    }

    /// Keeps a superseded generation, and lets go of those that are too many.
    pub(crate) fn extend(&mut self, kept: Option<Kept>, bin: &mut Bin<'_>) {
        self.kept.extend(kept);
        self.trim(bin);
    }

    /// Lets go of the oldest until there are no more than [`keep`](Self::keep).
    pub(crate) fn trim(&mut self, bin: &mut Bin<'_>) {
        while self.kept.len() > self.keep {
            if let Some(oldest) = self.kept.pop_front() {
                self.discard(oldest, bin);
            }
        }
    }

    /// One of them: the latest, or the one with this number.
    pub(crate) fn find(&self, generation: Option<Generation>) -> Option<&Kept> {
        let vacated = self.vacated.iter();
        let mut kept = self.kept.iter().chain(vacated).rev();
        kept.find(|kept| generation.is_none_or(|number| kept.generation == number))
    }

    /// Lets go of one of them: it is current again, under another number.
    pub(crate) fn remove(&mut self, generation: Generation, bin: &mut Bin<'_>) {
        let is_it = |kept: &Kept| kept.generation == generation;
        let position = self.kept.iter().position(is_it);
        let kept = position.and_then(|position| self.kept.remove(position));
        if let Some(kept) = kept.or_else(|| self.vacated.take_if(|kept| is_it(kept))) {
            self.discard(kept, bin);
        }
    }

    /// The next generation is here: lets go of the one whose place was empty.
    pub(crate) fn fill_place(&mut self, bin: &mut Bin<'_>) {
        if let Some(vacated) = self.vacated.take() {
            self.discard(vacated, bin);
        }
    }

    /// Lets go of all of them.
    pub(crate) fn clear(&mut self, bin: &mut Bin<'_>) {
        while let Some(kept) = self.kept.pop_front().or_else(|| self.vacated.take()) {
            self.discard(kept, bin);
        }
    }

    /// Whoever waits for this set's bytes waits for these, too.
    fn discard(&mut self, kept: Kept, bin: &mut Bin<'_>) {
        let going = kept.discard(bin.queue);
        self.note(going.clone());
        bin.gone.push(going);
    }
}

impl Kept {
    pub(crate) fn new(generation: Generation, content: Content) -> Self {
        content.bytes.own.charge.keep();
        Kept {
            generation,
            content: Some(Box::new(content)),
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn content(&self) -> Option<&Content> {
        self.content.as_deref()
    }

    /// The memory itself, if nobody else has it, and what was known of it, to be dropped when the set is no
    /// longer written.
    pub(crate) fn into_body(mut self) -> Result<(Body, Facts), Self> {
        let generation = self.generation;
        let Some(content) = self.content.take() else {
            return Err(self);
        };
        let Content { facts, bytes } = *content;
        let Bytes { own, lent } = bytes;
        own.charge.forget();
        match own.sole() {
            Ok(body) => Ok((body, facts)),
            Err(own) => {
                let bytes = Bytes { own, lent };
                Err(Kept::new(generation, Content { facts, bytes }))
            }
        }
    }

    /// Hands the bytes to the reclaimer, who frees them if nobody else has them.
    fn discard(mut self, queue: &Reclaimer) -> Going {
        let vitals = Arc::new(Vitals::new());
        // Nobody can lease what has no node: it is drained from the start.
        let _ = vitals.state().kill();
        let mut bytes = 0;
        match self.content.take() {
            Some(content) => {
                content.bytes.own.charge.forget();
                bytes = content.bytes.own.charge.bytes();
                discard(queue, *content, Arc::clone(&vitals));
            }
            None => vitals.set_reclaimed(),
        }
        Going {
            generation: self.generation,
            bytes,
            vitals,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The registry is gone, and with it the set: the last generation's drop ends here.
        if let Some(content) = self.content.take() {
            content.bytes.own.charge.forget();
        }
    }
}
