//! One load at a time for each set: who reads, who waits for it, and what becomes of failures.
//!
//! What lives here: what a set knows of its loads, and the duty to load one, from the reservation to
//! bytes that can be leased. What does not: whether and when there is room (`room`), who asks
//! (`wanting`), the places of bytes (`core::berth`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::WeightRegistry;
use super::catalog::CatalogEntry;
use super::content::{Body, Bytes, Facts};
use super::event::EventKind;
use super::generation::{Hold, Holds, Node, restore};
use super::lease::Lease;
use super::record::SetRecord;
use super::staged::Vouched;
use crate::arena::Arena;
use crate::core::{Flight, Key, Storage, panics};
use crate::error::Error;
use crate::handle::Generation;
use crate::ledger::Charge;
use crate::memory::Memory;
use crate::names::SetName;
use crate::pool::Pool;
use crate::reading::fill;
use crate::source::Source;
use crate::sync::thread_local;

/// What a load comes to. Everybody who waited for it gets the same.
#[derive(Clone)]
pub(super) enum Outcome {
    /// The set has its bytes, and whoever has this has a lease of them: they cannot go before they were
    /// used.
    Loaded(Lease),
    /// The set got another generation meanwhile, or its bytes from elsewhere: look again.
    Moved,
    /// The same error for all.
    Failed { set: SetName, cause: Arc<Error> },
}

pub(super) type Load = Flight<Outcome>;

/// What a set knows of its loads.
#[derive(Default)]
pub(crate) struct Loads {
    /// The one that is under way, and of which generation: that of an earlier one is nobody's concern.
    flight: Option<(Generation, Arc<Load>)>,
    trouble: Option<Trouble>,
    /// How long the last one took that came to its end.
    took: Option<Duration>,
    /// The newest commit when it did.
    came: u64,
}

/// Loads that failed, one after the other.
struct Trouble {
    generation: Generation,
    failures: u32,
    cause: Arc<Error>,
    /// No request causes another load before; `None`: never.
    until: Option<Instant>,
}

/// How long a set whose load failed is left alone by requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    /// After the first failure. It doubles with each that follows.
    pub(super) first: Duration,
    pub(super) most: Duration,
}

impl Backoff {
    fn after(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1));
        let pause = doubled.and_then(|times| self.first.checked_mul(times));
        pause.unwrap_or(self.most).min(self.most)
    }
}

impl SetRecord {
    /// The load of this generation that is under way.
    pub(super) fn flight(&self, generation: Generation) -> Option<Arc<Load>> {
        let loads = self.loads.lock(); // E73
        let flight = loads.flight.as_ref();
        flight.and_then(|(of, load)| (*of == generation).then(|| Arc::clone(load)))
    }

    /// How long the last load took, and the newest commit when it ended.
    pub(super) fn last_load(&self) -> (Option<Duration>, u64) {
        let loads = self.loads.lock(); // E73
        (loads.took, loads.came)
    }

    /// May a request cause a load of this generation now?
    ///
    /// # Errors
    /// [`Error::BackingOff`].
    pub(super) fn check_backoff(&self, generation: Generation) -> Result<(), Error> {
        let loads = self.loads.lock(); // E73
        let trouble = loads.trouble.as_ref();
        let Some(trouble) = trouble.filter(|trouble| trouble.generation == generation) else {
            return Ok(());
        };
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        let retry_in = trouble.until.map_or(Duration::MAX, left);
        if retry_in.is_zero() {
            return Ok(());
        }
        Err(Error::BackingOff {
            set: self.name.clone(),
            failures: trouble.failures,
            retry_in,
            cause: Arc::clone(&trouble.cause),
        })
    }
}

/// The duty to load a set. Whoever has it has reserved the bytes. Dropped undone, it is a failure.
pub(super) struct Duty {
    pub(super) record: Arc<SetRecord>,
    generation: Generation,
    facts: Facts,
    flight: Arc<Load>,
    /// Memory that it may use. Dropped before the charge: the ledger is told when it is back.
    spare: Option<Arena>,
    charge: Option<Charge>,
    backoff: Backoff,
    readers: usize,
    /// Where its arena goes in the end.
    pool: Pool,
    protect: bool,
    landed: bool,
}

impl Duty {
    /// The load of what `facts` describe begins. Only who admits loads may call this, one at a time, and
    /// only if there is [none](SetRecord::flight).
    pub(super) fn begin(
        record: Arc<SetRecord>,
        (generation, facts): (Generation, Facts),
        charge: Charge,
        registry: &WeightRegistry,
    ) -> Self {
        let flight = Arc::new(Load::new());
        let under_way = (generation, Arc::clone(&flight));
        let before = record.loads.lock().flight.replace(under_way); // E73
        debug_assert!(
            before.is_none_or(|(of, _)| of != generation),
            "a generation is loaded by one at a time"
        );
        Duty {
            record,
            generation,
            facts,
            flight,
            charge: Some(charge),
            spare: None,
            backoff: registry.room.backoff(),
            readers: registry.readers,
            pool: registry.shared.pool.clone(),
            protect: registry.protect,
            landed: false,
        }
    }

    /// Takes the smallest of these that it can use. What is more of it goes back to the system, and the rest
    /// is as it was.
    pub(super) fn use_one(&mut self, memories: &mut Vec<Memory>) {
        let Some(again) = &self.facts.again else {
            return;
        };
        memories.sort_by_key(|memory| std::cmp::Reverse(memory.byte_len()));
        for at in (0..memories.len()).rev() {
            let memory = memories.remove(at);
            let reused = memory
                .into_arena()
                .and_then(|arena| arena.reuse(again.arena_bytes).map_err(Memory::from));
            match reused {
                Ok(arena) => {
                    self.spare = Some(arena);
                    return;
                }
                Err(memory) => memories.insert(at, memory),
            }
        }
    }

    pub(super) fn flight(&self) -> &Arc<Load> {
        &self.flight
    }

    fn end(&mut self, outcome: Outcome, took: Duration) {
        self.landed = true;
        // Dropped after the lock: an error may have foreign code in it.
        let before = {
            let mut loads = self.record.loads.lock(); // E73
            // First: whoever finds no load under way finds the set as this one left it.
            let mine = |(_, load): &mut (Generation, Arc<Load>)| Arc::ptr_eq(load, &self.flight);
            loads.flight.take_if(mine);
            let failures = loads.trouble.as_ref();
            let failures = failures.filter(|trouble| trouble.generation == self.generation);
            let failures = failures.map_or(0, |trouble| trouble.failures);
            let trouble = match &outcome {
                Outcome::Loaded(lease) => {
                    loads.took = Some(took);
                    loads.came = lease.number().0;
                    None
                }
                Outcome::Moved => None,
                Outcome::Failed { cause, .. } => {
                    let failures = failures.saturating_add(1);
                    Some(Trouble {
                        generation: self.generation,
                        failures,
                        cause: Arc::clone(cause),
                        until: Instant::now().checked_add(self.backoff.after(failures)),
                    })
                }
            };
            // A later generation's troubles are none of this one's.
            let later = loads.trouble.as_ref();
            if later.is_some_and(|later| later.generation > self.generation) {
                trouble
            } else {
                std::mem::replace(&mut loads.trouble, trouble)
            }
        };
        let _ = panics(|| drop(before));
        let second = self.flight.land(outcome);
        debug_assert!(second.is_ok(), "only its duty lands it, once");
    }

    /// Reads the set, and lets everybody know. On the thread that this is called on; the source's own
    /// code runs here, and nothing of ours is locked meanwhile.
    pub(super) fn run(mut self, registry: &WeightRegistry) {
        let started = Instant::now();
        let outcome = match self.charge.take() {
            Some(charge) => {
                let spare = self.spare.take();
                self.load(registry, charge, spare)
            }
            None => Outcome::Moved,
        };
        self.end(outcome, started.elapsed());
    }

    fn load(&self, registry: &WeightRegistry, charge: Charge, spare: Option<Arena>) -> Outcome {
        let read = Inside::Source
            .enter()
            .and_then(|_entered| self.read(charge, spare));
        match read {
            Ok(bytes) => match registry.bring_in(&self.record, self.generation, bytes) {
                Some(lease) => Outcome::Loaded(lease),
                None => Outcome::Moved,
            },
            Err(error) => self.failed(error),
        }
    }

    fn failed(&self, error: Error) -> Outcome {
        Outcome::Failed {
            set: self.record.name.clone(),
            cause: Arc::new(error),
        }
    }

    /// Reads what the facts describe once more.
    fn read(&self, charge: Charge, spare: Option<Arena>) -> Result<Bytes, Error> {
        let Duty { record, facts, .. } = self;
        let handle = record.handle;
        let again = facts.again.as_ref().ok_or(Error::NotResident { handle })?;
        // Memory of a set that was evicted for this, if it is of this size.
        let (mut arena, mut stale) = match spare {
            Some(arena) => (arena, true),
            None => (self.pool.allocate(again.arena_bytes)?, false),
        };
        let differs = |now: String| Error::ReloadDiffers {
            set: record.name.clone(),
            generation: self.generation,
            was: facts.identity.to_string(),
            now,
        };
        let nothing = || Err(differs("nothing".to_owned()));
        let mut read = nothing();
        again.reopen(&mut |source: &dyn Source| {
            // Whatever was read before does not count any more.
            read = nothing();
            let stale = std::mem::replace(&mut stale, true);
            let plan = source.plan();
            if !facts.describes(plan) {
                return Err(differs("other tensors".to_owned()));
            }
            let hashed = Vouched::by(source).needs_digests();
            let known = fill(source, arena.as_mut_slice(), stale, hashed, self.readers)?;
            let now = Vouched::by(source).identify(plan, arena.as_slice(), known);
            if now != facts.identity {
                return Err(differs(now.to_string()));
            }
            read = Ok(());
            Ok(())
        })?;
        read?;
        let parts = facts.parts.as_ref().map(|parts| &*parts.planned);
        if self.protect && parts.is_none() {
            arena.protect()?;
        }
        Ok(Bytes::new(Body::new(
            arena,
            charge,
            self.pool.clone(),
            parts,
        )))
    }
}

/// The source panicked, or nobody was left who would have read it.
impl Drop for Duty {
    fn drop(&mut self) {
        if !self.landed {
            let set = self.record.name.clone();
            let undone = self.failed(Error::LoadBroken { set });
            self.end(undone, Duration::ZERO);
        }
    }
}

impl WeightRegistry {
    /// Gives a generation that has no bytes these, and a lease of them. `None`: it is not current any more,
    /// or has some; then these are gone.
    fn bring_in(
        &self,
        record: &Arc<SetRecord>,
        generation: Generation,
        bytes: Bytes,
    ) -> Option<Lease> {
        let key = Key {
            slot: record.handle.slot,
            tag: record.handle.tag,
        };
        let restored = {
            let _writing = record.write();
            // Before it can be leased: afterwards somebody may already have superseded it.
            bytes.own.charge.settle();
            let view = self.view();
            // SAFETY: `_writing` keeps everybody else from committing on, evicting and restoring this set,
            // and the view was opened after it was taken.
            let restored = unsafe { restore(&view, key, generation, bytes) };
            if let Ok(hold) = &restored {
                record.mark.lock().loaded(); // E77
                self.pictures.moved();
                self.tell_loaded(hold);
            }
            restored.map(|hold| Lease::new(Holds::One(hold), view.number()))
        };
        match restored {
            Ok(lease) => Some(lease),
            Err(bytes) => {
                bytes.own.charge.unsettle();
                bytes.dismantle(&mut || {});
                None
            }
        }
    }

    fn tell_loaded(&self, hold: &Hold) {
        let node: &Node = hold.node();
        let now = CatalogEntry::of(hold.meta(), Generation(node.birth()), true);
        self.shared.tell(EventKind::Loaded { now });
    }
}

thread_local! {
    // A plain value, without a destructor: it is there as long as its thread runs.
    static INSIDE: std::cell::Cell<Option<Inside>> = const { std::cell::Cell::new(None) };
}

/// What foreign code this thread runs on behalf of loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// A source that is being read. What that loads itself could wait for this very load.
    Source,
    /// A policy that is being asked, under the room's lock.
    Policy,
}

/// While it lives, that code runs.
pub(super) struct Entered(());

impl Inside {
    /// # Errors
    /// [`Error::LoadInsideLoad`]: it is inside already.
    pub(super) fn enter(self) -> Result<Entered, Error> {
        Self::none()?;
        INSIDE.with(|inside| inside.set(Some(self)));
        Ok(Entered(()))
    }

    /// Neither.
    ///
    /// # Errors
    /// [`Error::LoadInsideLoad`].
    pub(super) fn none() -> Result<(), Error> {
        match INSIDE.with(std::cell::Cell::get) {
            None => Ok(()),
            Some(_) => Err(Error::LoadInsideLoad),
        }
    }

    /// Not what holds the room's lock.
    ///
    /// # Errors
    /// [`Error::LoadInsideLoad`].
    pub(super) fn no_policy() -> Result<(), Error> {
        match INSIDE.with(std::cell::Cell::get) {
            Some(Inside::Policy) => Err(Error::LoadInsideLoad),
            None | Some(Inside::Source) => Ok(()),
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(None));
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_the_longest() {
        let backoff = Backoff {
            first: Duration::from_millis(100),
            most: Duration::from_secs(30),
        };
        let after = |failures| backoff.after(failures).as_millis();
        assert_eq!([1, 2, 3, 9].map(after), [100, 200, 400, 25_600]);
        assert_eq!([10, 33, 34, u32::MAX].map(after), [30_000; 4]);
    }
}
