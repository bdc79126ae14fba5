//! Room: what is admitted to memory, and what goes for it.
//!
//! What lives here: the one place where loads are admitted. Whoever wants sets that are away is given the
//! right to read all of them at one instant, with everything reserved that this takes, or nothing, and then
//! it holds nothing while it waits. `admit` decides, `idle` takes bytes from sets, `choice` says how many
//! must go, `line` whose turn it is, `estimate` what would be, `pins` what must stay. What does not: in
//! which order sets go (`policy`), reading (`loading`), who asks (`wanting`).
//!
//! Why nobody waits for ever for somebody who waits for him: who is admitted has all that he needs and
//! waits for no room any more, but for the loads of those who were admitted before him; who is not
//! admitted holds no lease and no byte. One exception, so that nobody starves: what was evicted for the
//! first of the line is kept for whoever is the first of the line. It is in nobody's hand, and was idle.
//!
//! Locks, in this order: the room's (E74), a set's loads (E73), a set's writers (E16), its pins (E77), the
//! pool's (E81), a charge and the ledger (E14). The line's (E76) and a flight's (E75) are taken last, and alone.

mod admit;
mod choice;
mod estimate;
mod idle;
mod line;
mod pins;

use std::sync::Arc;
use std::task::Waker;

pub use estimate::{Demand, Estimate};
#[cfg(all(test, not(weighbridge_loom)))]
pub(super) use idle::MEANWHILE;
pub use pins::Pin;
use pins::Pinned;
pub(crate) use pins::Pins;

use super::WeightRegistry;
use super::lease::Lease;
use super::loading::{Backoff, Duty, Inside, Load};
use crate::core::{Keeper, panics};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::ledger::{Charge, Ledger};
use crate::memory::Memory;
use crate::policy::{Policy, Sieve};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread;
pub(super) use admit::Single;
use admit::{Found, Verdict};
use idle::Spare;
use line::{Lack, Line, PASSES, Watch};

/// See the module documentation.
pub(super) struct Room {
    /// Whoever has it admits loads.
    chooser: Mutex<Chooser>,
    line: Arc<Line>,
    ledger: Ledger,
    keeper: Arc<Keeper<Watch>>,
    pinned: Arc<Pinned>,
    backoff: Backoff,
    /// Loads that were admitted.
    admitted: AtomicU64,
    /// Sets that were evicted for them.
    evicted: AtomicU64,
}

/// What is needed to choose.
struct Chooser {
    /// Foreign code.
    policy: Box<dyn Policy>,
    /// What was evicted for the first of the line, whoever that is.
    spare: Vec<Spare>,
}

/// Somebody who asks for room, from the first time to the last.
#[derive(Default)]
pub(super) struct Waiter {
    ticket: Option<u64>,
}

/// What becomes of who asks.
pub(super) enum Answer {
    /// Everything is there, or on its way.
    Go(Box<Grant>),
    /// The waker is woken when it may ask again.
    Wait,
}

/// See [`Answer::Go`].
pub(super) struct Grant {
    /// Leases of what was there.
    pub(super) held: Vec<Lease>,
    /// The loads of the rest.
    pub(super) flights: Vec<Arc<Load>>,
    /// Those that begin now.
    pub(super) caused: Vec<SetHandle>,
    /// What whoever asked has to do for it. Dropped undone, its loads have failed.
    pub(super) job: Option<Job>,
}

/// How many sets one request reads at once.
const AT_ONCE: usize = 8;

/// Makes the room, and reads what goes there.
pub(super) struct Job {
    /// What may be used again.
    scrap: Vec<Memory>,
    /// Of it, until it is gone.
    rest: Option<Charge>,
    duties: Vec<Duty>,
}

impl Job {
    /// The loads of different sets on different threads, so that none waits for another's source: one on this. No
    /// panic of a source comes out: it is a failure of its load.
    pub(super) fn run(self, registry: &WeightRegistry) {
        let load = |duty: Duty| {
            let _ = panics(|| duty.run(registry));
            // What was loaded can be evicted when its leases end; nobody else would tell.
            registry.room.line.nudge();
        };
        thread::each_by_itself(self.make_room(), AT_ONCE, &load);
    }

    /// The same, by threads of the registry.
    pub(super) fn run_by_loaders(self, registry: &Arc<WeightRegistry>) {
        let owner = Arc::clone(registry);
        registry.loaders.run(move || {
            let mut duties = self.make_room().into_iter();
            let first = duties.next();
            let load = |owner: &WeightRegistry, duty: Duty| {
                let _ = panics(|| duty.run(owner));
                owner.room.line.nudge();
            };
            for duty in duties {
                let other = Arc::clone(&owner);
                owner.loaders.run(move || load(&other, duty));
            }
            first.into_iter().for_each(|duty| load(&owner, duty));
        });
    }

    /// Frees what was given up, but for what the loads use again.
    fn make_room(self) -> Vec<Duty> {
        let Job {
            mut scrap,
            rest,
            mut duties,
        } = self;
        duties.iter_mut().for_each(|duty| duty.use_one(&mut scrap));
        scrap.into_iter().for_each(Memory::give_back_here);
        drop(rest);
        duties
    }
}

impl Room {
    pub(super) fn new(ledger: Ledger, policy: Option<Box<dyn Policy>>, backoff: Backoff) -> Self {
        let policy = policy.unwrap_or_else(|| Box::new(Sieve::new()));
        Room {
            chooser: Mutex::new(Chooser {
                policy,
                spare: Vec::new(),
            }),
            line: Arc::new(Line::new(PASSES)),
            ledger,
            keeper: Arc::new(Keeper::new()),
            pinned: Arc::default(),
            backoff,
            admitted: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    pub(super) fn backoff(&self) -> Backoff {
        self.backoff
    }

    /// The sets that those in the line want, in order, some more than once.
    pub(super) fn wanted(&self) -> Vec<SetHandle> {
        let mut all = Vec::new();
        self.line.for_each(|lack| all.extend(lack.sets.iter()));
        all
    }

    /// Nobody is admitted as long as one has this.
    pub(super) fn close(&self) -> impl Sized + '_ {
        self.chooser.lock() // E74
    }

    /// Loads that were admitted so far, sets that were evicted for them, and how many wait.
    pub(super) fn counts(&self) -> (u64, u64, usize) {
        // E17: statistics.
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.admitted), count(&self.evicted), self.line.len())
    }
}

impl WeightRegistry {
    /// Asks for all of `sets`: leases of what is there, the loads that are under way, and the right to load
    /// the rest.
    ///
    /// # Errors
    /// What is wrong with the sets, or why waiting is of no use. Whoever asked is out of the line then.
    pub(super) fn ask(
        &self,
        sets: &[SetHandle],
        waiter: &mut Waiter,
        waker: &Waker,
    ) -> Result<Answer, Error> {
        self.check_pairing(sets)?;
        let mut found = Found::default();
        let verdict = Inside::Policy.enter().and_then(|_entered| {
            let mut chooser = self.room.chooser.lock(); // E74
            let verdict = self.admit(&mut chooser, sets, waiter.ticket, &mut found);
            if let Ok(Verdict::Short(short)) = &verdict {
                // Before anybody else is admitted: one comes after the other.
                let line = &self.room.line;
                waiter
                    .ticket
                    .get_or_insert_with(|| line.join(Lack::of(sets, short)));
            }
            verdict
        });
        // From here on no lock is held: wakers, sources and destructors are foreign code.
        match verdict {
            Ok(Verdict::Short(short)) => {
                drop(found);
                let lack = Lack::of(sets, &short);
                self.stay(waiter, waker, lack)?;
                Ok(Answer::Wait)
            }
            Ok(Verdict::Granted { job }) => {
                self.give_up(waiter);
                Ok(Answer::Go(Box::new(Grant {
                    held: found.held,
                    flights: found.flights,
                    caused: found.caused,
                    job,
                })))
            }
            Err(error) => {
                self.give_up(waiter);
                Err(error)
            }
        }
    }

    fn stay(&self, waiter: &mut Waiter, waker: &Waker, lack: Lack) -> Result<(), Error> {
        let Room {
            line,
            keeper,
            ledger,
            ..
        } = &self.room;
        let Some(ticket) = waiter.ticket else {
            return Ok(());
        };
        if line.stay(ticket, waker, lack)
            && let Err(source) = keeper.try_keep(Watch::new(line, ledger))
        {
            line.unwatched();
            self.give_up(waiter);
            return Err(Error::Io {
                path: "the thread that looks for room".into(),
                op: "start",
                source,
            });
        }
        Ok(())
    }

    /// Whoever asked does so no more. If nobody does, what was evicted for the first of the line goes back to
    /// where it was.
    pub(super) fn give_up(&self, waiter: &mut Waiter) {
        let last = waiter
            .ticket
            .take()
            .is_some_and(|ticket| self.room.line.leave(ticket));
        // A policy that drops a future has the lock; whoever asks next puts it back.
        if last && Inside::no_policy().is_ok() {
            let mut chooser = self.room.chooser.lock(); // E74
            if self.room.line.is_empty() {
                for spare in std::mem::take(&mut chooser.spare) {
                    self.put_back(spare);
                }
            }
        }
    }
}
