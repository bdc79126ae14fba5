//! Reading parts into their window.
//!
//! What lives here: [`Ward`], a streamed set as those see it who read it and those who use it; the memory of its window;
//! one read, and the thread that reads ahead. What does not: which part goes where and when (`core::window`).

use std::sync::Arc;
use std::time::Instant;

use super::super::WeightRegistry;
use super::super::content::{Body, PartWindow, Parts};
use super::super::generation::{Holds, Meta};
use super::super::lease::{Lease, LeasedSet, Weight};
use super::super::loaders::Loaders;
use super::super::loading::Inside;
use super::super::shared::Streaming;
use super::super::staged::Vouched;
use crate::core::window::{Call, Job};
use crate::core::{Keeper, Kept, panics};
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::names::SetName;
use crate::plan::PlannedParts;
use crate::reading::fill_part;
use crate::source::Source;

/// A streamed set, leased. It is kept by its stream, and by the window as long as the stream is open.
pub(crate) struct Ward {
    pub(super) loaders: Arc<Loaders>,
    /// How many threads read one part at most.
    readers: usize,
    /// Of this set alone.
    lease: Lease,
    /// Its window, at hand.
    pub(super) window: Arc<PartWindow>,
}

/// A part that is in memory, for whoever asked for it.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) part: u32,
    /// Where it is in the window.
    at: u64,
    /// Since when it has a hold there, which is to be released. Without: every part is there, so none goes.
    since: Option<Instant>,
}

impl Held {
    /// The window has given a hold of it.
    pub(super) fn here(part: u32, at: u64) -> Self {
        let since = Some(Instant::now());
        Held { part, at, since }
    }

    /// Since when it has a hold, if it has one.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }
}

impl Ward {
    /// # Errors
    /// [`Error::NotStreamed`].
    pub(super) fn new(registry: &WeightRegistry, lease: Lease) -> Result<Self, Error> {
        let Some(set) = lease.sets().next() else {
            unreachable!("made with one set")
        };
        let window = set.hold.storage().own.window.clone();
        match window.filter(|_| set.meta().facts.parts.is_some()) {
            Some(window) => Ok(Ward {
                loaders: Arc::clone(&registry.loaders),
                readers: registry.readers,
                lease,
                window,
            }),
            None => Err(Error::NotStreamed {
                set: set.name().clone(),
            }),
        }
    }

    pub(super) fn check_process(&self) -> Result<(), Error> {
        self.meta().shared.check_process()
    }

    pub(super) fn streaming(&self) -> &Streaming {
        &self.meta().shared.streaming
    }

    pub(super) fn keeper(&self) -> &Arc<Keeper<Box<dyn Kept>>> {
        &self.meta().shared.keeper
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    #[inline]
    pub(super) fn leased(&self) -> LeasedSet<'_> {
        let Some(set) = self.lease.sets().next() else {
            unreachable!("made with one set")
        };
        set
    }

    fn meta(&self) -> &Meta {
        self.leased().meta()
    }

    #[inline]
    fn body(&self) -> &Body {
        let Holds::One(hold) = &self.lease.holds else {
            unreachable!("made with one set")
        };
        &hold.storage().own
    }

    fn known(&self) -> &Parts {
        let Some(parts) = &self.meta().facts.parts else {
            unreachable!("looked at when this was made")
        };
        parts
    }

    pub(super) fn parts(&self) -> &PlannedParts {
        &self.known().planned
    }

    #[inline]
    pub(super) fn window(&self) -> &Arc<PartWindow> {
        &self.window
    }

    pub(super) fn named(&self, part: u32) -> (SetName, String) {
        let part = self.parts().all().get(part as usize);
        let part = part.map_or_else(String::new, |part| part.name().to_owned());
        (self.meta().record.name.clone(), part)
    }

    pub(super) fn no_such_part(&self, part: usize) -> Error {
        Error::NoSuchPart {
            set: self.meta().record.name.clone(),
            part,
            parts: self.parts().all().len(),
        }
    }

    pub(super) fn part_failed(&self, part: u32, cause: Arc<Error>) -> Error {
        let (set, part) = self.named(part);
        Error::PartFailed { set, part, cause }
    }

    /// A part, if all are in memory. Lock-free, also in a forked child.
    #[inline]
    pub(super) fn whole(&self, part: usize) -> Option<Held> {
        let part = u32::try_from(part).ok()?;
        let at = self.window.whole(part)?;
        let since = None;
        Some(Held { part, at, since })
    }

    /// `len` bytes of the window from `at` on.
    ///
    /// # Safety
    /// They are of a part that the caller has as [`Held`], for as long as it has the answer.
    #[inline]
    unsafe fn held(&self, at: u64, len: usize) -> &[u8] {
        let (base, window) = self.body().memory.window();
        debug_assert!(at as usize + len <= window);
        // SAFETY: in the window, hence in the arena, which lives as long as our lease. Initialised: arenas are zeroed. Nobody
        // writes there: a part that is held is in nobody's way (`State::spot`), and the read that filled it landed before
        // it could be held (E83); when all parts are there, there is nothing to read, and all reads landed before that is known
        // (E84). Guarded by `core::window::tests`, the models `window_*` and `tests/streams`.
        unsafe { std::slice::from_raw_parts(base.as_ptr().add(at as usize), len) }
    }

    /// A tensor: of the part that is held, and where that is, or of what stays.
    ///
    /// # Safety
    /// The caller has it for as long as it has the answer.
    #[inline(always)]
    pub(super) unsafe fn weight(
        &self,
        weight: WeightHandle,
        held: &Held,
    ) -> Result<Weight<'_>, Error> {
        if let Some((row, layout)) = self.lease.face().row(weight)
            && let Some(offset) = row.in_this_part(held.part)
        {
            // SAFETY: the caller's; the tensor lies in its part (`Plan::parted`).
            let bytes = unsafe { self.held(held.at + offset, row.len() as usize) };
            return Ok(Weight::new(layout, weight.ordinal(), bytes));
        }
        self.lease.weight(weight)
    }

    /// Somebody who had a part has used it.
    #[inline]
    pub(super) fn release(&self, held: Held) {
        // In a forked child the lock may be held for ever.
        if let Some(since) = held.since
            && self.check_process().is_ok()
        {
            let call = self.window().release(held.part, nanoseconds(since));
            self.called(call);
        }
    }

    /// Somebody is to read ahead.
    pub(super) fn called(&self, call: Call) {
        if call {
            read_soon(&self.loaders, &self.window);
        }
    }

    /// Reads a part, and lets everybody know.
    pub(super) fn fetch(&self, job: Job) -> Result<(), Arc<Error>> {
        let mut read = Err(Error::LoadBroken {
            set: self.meta().record.name.clone(),
        });
        let started = Instant::now();
        // If the source panics, that is what the load was.
        let _ = panics(|| read = Inside::Source.enter().and_then(|_inside| self.read(&job)));
        let read = read.map_err(Arc::new);
        self.streaming().read(job.len, read.is_ok());
        let call = self
            .window()
            .landed(job, nanoseconds(started), read.clone());
        self.called(call);
        read
    }

    fn read(&self, job: &Job) -> Result<(), Error> {
        let Meta { record, facts, .. } = self.meta();
        let handle = record.handle;
        let again = facts.again.as_ref().ok_or(Error::NotResident { handle })?;
        let part = &self.parts().all()[job.part as usize];
        let (base, window) = self.body().memory.window();
        debug_assert!((job.at + job.len) as usize <= window && part.bytes() == job.len);
        // SAFETY: in the window, hence in the arena, which lives as long as our lease. From the job's beginning to its
        // landing the place is this job's alone (`State::begin`): whoever read what was there before has released it, and
        // that came before (E83). Guarded as `held`.
        let place = unsafe {
            let start = base.as_ptr().add(job.at as usize);
            std::slice::from_raw_parts_mut(start, job.len as usize)
        };
        let differs = |now: String| Error::ReloadDiffers {
            set: record.name.clone(),
            generation: self.leased().generation(),
            was: facts.identity.to_string(),
            now,
        };
        let nothing = || Err(differs("nothing".to_owned()));
        let mut read = nothing();
        again.reopen(&mut |source: &dyn Source| {
            // Whatever was read before does not count any more.
            read = nothing();
            let plan = source.plan();
            // The very plan that was published, or else one that says the same.
            let same = plan.parts.as_ref();
            let same = same.is_some_and(|parts| Arc::ptr_eq(parts, &self.known().planned));
            if !same && !facts.describes(plan) {
                return Err(differs("other tensors".to_owned()));
            }
            let known = self.known().digests.as_deref();
            if known.is_none() {
                let now = Vouched::by(source);
                if now.needs_digests() {
                    return Err(differs("nothing that anybody vouches for".to_owned()));
                }
                let now = now.identify(plan, &[], None);
                if now != facts.identity {
                    return Err(differs(now.to_string()));
                }
            }
            if let Some(tensor) = fill_part(source, part, place, known, self.readers)? {
                let tensor = plan.tensors()[tensor].name();
                return Err(differs(format!("other bytes in {tensor:?}")));
            }
            read = Ok(());
            Ok(())
        })?;
        read
    }
}

/// One of the loaders is called, and reads when its turn comes.
pub(super) fn read_soon(loaders: &Loaders, window: &Arc<PartWindow>) {
    let window = Arc::clone(window);
    loaders.run(move || read_ahead(window));
}

/// Reads one part of those that are wanted, and comes again as long as there is one: in between it is the others' turn. Until then
/// nothing waits with it but the window: no lease.
fn read_ahead(window: Arc<PartWindow>) {
    let Some((job, ward)) = window.next_job() else {
        return;
    };
    let named = ward.lease.clone().labelled("weighbridge reads ahead");
    let read = ward.fetch(job);
    // Whoever asks for it is told. Foreign code may be in it.
    let _ = panics(|| drop(read));
    drop(named);
    ward.loaders.run_again(move || read_ahead(window));
}

pub(super) fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
