//! One thread's work: operations in turn, and what the thread has seen so far.
//!
//! What lives here: [`Worker`], its memory, the choice of the next operation. What does not: the
//! operations (`acts`), when threads start and end (`run`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weighbridge::{Error, Lease, Pin, SetHandle, Subscription};

use crate::again::Again;
use crate::check::Facts;
use crate::held::{self, Held};
use crate::options::Plant;
use crate::pattern::Body;
use crate::random::Random;
use crate::roles::{self, ROLES, Role};
use crate::world::{SHELF, World, bump, lock};

/// The most leases that a worker holds.
const HOLDS: usize = 12;
/// The most pins.
pub const PINS: usize = 2;
/// Longest that an operation may take which waits for nobody, on a machine with other work.
pub const BOUNDED: Duration = Duration::from_secs(10);

/// What an operation comes to.
pub type Done = Result<(), Error>;

/// A worker, which goes from thread to thread.
pub struct Worker {
    pub seat: usize,
    pub world: Arc<World>,
    pub random: Random,
    pub held: Vec<Held>,
    pub pins: Vec<Pin>,
    /// A subscriber that reads when it likes.
    pub slow: Option<(Subscription, u64)>,
    /// The number of the last lease or scope.
    number: u64,
    /// By role: the latest generation that was seen.
    generations: Vec<u64>,
    /// By role: a handle that worked once.
    handles: Vec<Option<SetHandle>>,
}

impl Worker {
    pub fn new(seat: usize, world: Arc<World>) -> Self {
        Worker {
            seat,
            random: Random::of(world.options.seed, seat as u64),
            world,
            held: Vec::with_capacity(HOLDS),
            pins: Vec::with_capacity(PINS),
            slow: None,
            number: 0,
            generations: vec![0; ROLES],
            handles: vec![None; ROLES],
        }
    }

    /// A thread's life: this many operations, or until the run says stop.
    pub fn live(&mut self) {
        let turns = self.random.of_range(50..4000);
        for _ in 0..turns {
            if self.world.stop.load(Ordering::Relaxed) {
                return;
            }
            self.turn();
        }
    }

    fn turn(&mut self) {
        let drawn = self.random.below(self.world.acts.len());
        let act = self.world.acts[drawn];
        let world = Arc::clone(&self.world);
        world.doing[self.seat].begin(act.name, act.waits + BOUNDED);
        if let Err(error) = (act.run)(self) {
            world.refused(act.name, &error);
        }
        if self.random.once_in(4) && !self.held.is_empty() {
            let at = self.random.below(self.held.len());
            self.held.swap_remove(at).let_go(&world, act.name);
        }
        world.doing[self.seat].end();
        bump(&world.counts.operations);
    }

    /// A set by its name, or by the handle that it had once.
    pub fn handle(&mut self, role: Role) -> Option<SetHandle> {
        if self.random.once_in(2)
            && let Some(known) = self.handles[role]
        {
            return Some(known);
        }
        let found = self.world.registry.lookup(&roles::name(role));
        self.handles[role] = found;
        found
    }

    /// The source of a new generation of `role`, which stands on nothing.
    pub fn next(&mut self, role: Role) -> Result<Again, Error> {
        let body = self.world.body(role);
        self.source(&body)
    }

    /// The source of this body. Most can be read again.
    pub fn source(&mut self, body: &Body) -> Result<Again, Error> {
        let mut source = roles::checkpoint(body, &mut self.random)?;
        // Again and again, for such a set may be refused.
        let planted = self.world.options.plant == Some(Plant::Bytes) && self.random.once_in(20);
        if roles::PLAIN.contains(&body.role) && planted {
            let other = Body {
                uid: body.uid + 1,
                ..*body
            };
            let bytes = other.bytes(19, 64);
            source = source.tensor("t9", weighbridge::Dtype::U8, [64], bytes)?;
        }
        Ok(Again::new(source, !self.random.once_in(4)))
    }

    /// This thread's own commit made `generation` current: what it sees from now on is not older.
    pub fn committed(&mut self, role: Role, generation: u64) {
        bump(&self.world.counts.commits);
        self.saw(role, generation);
    }

    fn saw(&mut self, role: Role, generation: u64) {
        let seen = &mut self.generations[role];
        let before = *seen;
        *seen = before.max(generation);
        self.world.demand(generation >= before, || {
            format!("set-{role} went back from generation {before} to {generation}")
        });
    }

    /// The commit as of which this thread sees things.
    pub fn saw_number(&mut self, number: u64) {
        let before = self.number;
        self.number = before.max(number);
        if self.world.plants(Plant::Time) {
            self.number += 1_000_000;
        }
        self.world.demand(number >= before, || {
            format!("time went back from {before} to {number}")
        });
    }

    /// Looks at what was just leased. `None`: it was wrong, and that is written down.
    pub fn look(&mut self, lease: Lease, doing: &str) -> Option<Held> {
        self.saw_number(lease.number().number());
        let held = Held::of(lease, &self.world, doing)?;
        for Facts {
            role,
            handle,
            generation,
            ..
        } in &held.facts
        {
            if *role < roles::FLAT.start {
                self.saw(*role, *generation);
                self.handles[*role] = Some(*handle);
            }
        }
        bump(&self.world.counts.reads);
        Some(held)
    }

    /// Looks, and holds or hands on what was leased, or lets it go.
    pub fn keep(&mut self, lease: Lease, doing: &str) {
        let Some(held) = self.look(lease, doing) else {
            return;
        };
        if self.world.plants(Plant::Lease) {
            std::mem::forget(held.lease.clone());
        }
        let left = match self.random.below(8) {
            0 | 1 if self.held.len() < HOLDS => {
                self.held.push(held);
                None
            }
            2 => held::until_the_end(held, &self.world),
            3 => self.shelve(held),
            _ => Some(held),
        };
        if let Some(held) = left {
            held.let_go(&self.world, doing);
        }
    }

    /// Lays it where any thread may take it, if there is room.
    pub fn shelve(&self, held: Held) -> Option<Held> {
        let mut shelf = lock(&self.world.shelf);
        if shelf.len() >= SHELF {
            return Some(held);
        }
        shelf.push(held);
        None
    }
}
