//! What a window knows, and every step that it takes.
//!
//! What lives here: the states of parts, who waits, who reads, and the steps between them. Each is made while
//! the window's lock is held: it is short, calls nobody and reads nothing. What does not: the lock, and whatever calls
//! foreign code (`mod`); the order of uses (`order`); where in the memory a part goes, and for whom (`place`).
//!
//! Drawn in docs/ordering/streaming.md.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use super::order::Order;
use super::pace::{Ahead, Pace};
use super::place::{Spot, Stay, Tenant, spot};
use super::{Answer, Call, Job, Tally};

/// How often others are served at the cost of the first of those who wait for a place.
pub(super) const PASSES: u32 = if cfg!(any(test, weighbridge_loom)) {
    2
} else {
    32
};

#[derive(Debug)]
pub(super) struct State<E, C> {
    pub(super) capacity: u64,
    pub(super) parts: Box<[Part<E>]>,
    /// Those that have a place, in its order.
    pub(super) placed: Vec<u32>,
    /// How many have none.
    pub(super) away: usize,
    pub(super) streams: Vec<Stream<C>>,
    pub(super) waiting: VecDeque<Waiting<E>>,
    /// How often others were served, and the first of those who wait for a place found none then.
    pub(super) passed: u32,
    /// How many holds, of all parts, end only when a fence has passed.
    pub(super) fenced: usize,
    /// The clock of uses, and the last number that was given to a stream or somebody who waits.
    pub(super) now: u64,
    /// Those who were called and have not gone.
    pub(super) readers: usize,
    pub(super) most_readers: usize,
    pub(super) pace: Pace,
    pub(super) tally: Tally,
}

#[derive(Debug)]
pub(super) struct Part<E> {
    pub(super) len: u64,
    pub(super) standing: Standing<E>,
    pub(super) used: u64,
}

#[derive(Debug)]
pub(super) enum Standing<E> {
    Away,
    /// It could not be read, and nobody was told so far.
    Failed(E),
    Coming {
        at: u64,
    },
    Here {
        at: u64,
        holds: u32,
        /// How many of them end only when a fence has passed.
        fenced: u32,
    },
}

/// Somebody who uses parts in some order.
#[derive(Debug)]
pub(super) struct Stream<C> {
    pub(super) id: u64,
    /// What whoever reads for it needs.
    pub(super) call: C,
    pub(super) order: Order,
    pub(super) at: Option<usize>,
    /// How many parts are read before it uses them.
    pub(super) ahead: usize,
    /// Those that are.
    pub(super) unused: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Waiting<E> {
    pub(super) ticket: u64,
    pub(super) stream: u64,
    pub(super) part: u32,
    pub(super) waker: Arc<Waker>,
    /// It would read the part itself.
    pub(super) reads: bool,
    pub(super) outcome: Option<Outcome<E>>,
}

/// What is kept for somebody who waits.
#[derive(Debug)]
pub(super) enum Outcome<E> {
    /// A hold.
    Here(u64),
    Failed(E),
    /// The duty to read it; or another part, for somebody who does not read and has been passed often enough.
    Read(Job),
}

/// What is to be read, where, and for which of the streams.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) part: u32,
    pub(super) spot: Spot,
    pub(super) stream: usize,
    /// Nobody waits for it.
    pub(super) ahead: bool,
}

impl<E> Part<E> {
    pub(super) fn place(&self) -> Option<u64> {
        match self.standing {
            Standing::Coming { at } | Standing::Here { at, .. } => Some(at),
            Standing::Away | Standing::Failed(_) => None,
        }
    }
}

impl<E: Clone, C> State<E, C> {
    pub(super) fn new(capacity: u64, parts: Box<[Part<E>]>, most_readers: usize) -> Self {
        State {
            capacity,
            away: parts.len(),
            parts,
            placed: Vec::new(),
            streams: Vec::new(),
            waiting: VecDeque::new(),
            passed: 0,
            fenced: 0,
            now: 0,
            readers: 0,
            most_readers,
            pace: Pace::default(),
            tally: Tally::default(),
        }
    }

    /// `stream` is at `part` now.
    pub(super) fn step(&mut self, stream: u64, part: u32) {
        self.now += 1;
        self.parts[part as usize].used = self.now;
        let Some(stream) = self.streams.iter_mut().find(|one| one.id == stream) else {
            return;
        };
        let before = stream.at;
        stream.at = stream.order.step(before, part);
        let next = stream.order.after(before).next().map(|(_, next)| next);
        if stream.at == before || next == Some(part) {
            stream.unused.retain(|one| *one != part);
        } else {
            // It went elsewhere: what was read for what it skipped is not waited for.
            stream.unused.clear();
        }
    }

    /// What somebody finds who asks now. A hold, or the duty to read, is its own.
    pub(super) fn answer(&mut self, part: u32, reads: bool) -> Answer<E> {
        let first = self.unplaced().next();
        let must_wait = first.is_some() && self.passed >= PASSES;
        match &mut self.parts[part as usize].standing {
            Standing::Coming { .. } => Answer::Wait,
            Standing::Here { .. } | Standing::Away if must_wait => Answer::Wait,
            Standing::Here { at, holds, .. } => {
                let at = *at;
                *holds += 1;
                self.count_pass();
                Answer::Here(at)
            }
            Standing::Away if !reads => Answer::Wait,
            Standing::Away => match self.spot(part, None) {
                Some(spot) => Answer::Read(self.begin(part, spot, true)),
                None => Answer::Wait,
            },
            standing @ Standing::Failed(_) => {
                self.away += 1;
                match std::mem::replace(standing, Standing::Away) {
                    Standing::Failed(error) => Answer::Failed(error),
                    _ => unreachable!("looked at above"),
                }
            }
        }
    }

    /// Somebody waits for `part` from now on. Its ticket.
    pub(super) fn enter(&mut self, stream: u64, part: u32, waker: Arc<Waker>, reads: bool) -> u64 {
        self.now += 1;
        let ticket = self.now;
        self.waiting.push_back(Waiting {
            ticket,
            stream,
            part,
            waker,
            reads,
            outcome: None,
        });
        ticket
    }

    /// Somebody was served who was not the first of those who wait for a place: at its cost, if that has none now.
    fn count_pass(&mut self) {
        let first = self.unplaced().next();
        if first.is_some_and(|first| self.spot(first, None).is_none()) {
            self.passed = self.passed.saturating_add(1);
        }
    }

    /// Whoever can go on does, as far as that needs no reader; and is one wanted?
    pub(super) fn settle(&mut self, wakers: &mut Vec<(Arc<Waker>, bool)>) -> Call {
        self.serve(wakers);
        self.hand_out(wakers);
        // Those who were not to pass before.
        self.serve(wakers);
        self.call()
    }

    /// Those who wait for a place, and read themselves, get it as soon as there is one: the first of them, or, but not for
    /// ever, others.
    pub(super) fn hand_out(&mut self, wakers: &mut Vec<(Arc<Waker>, bool)>) {
        while let Some((at, part, spot)) = self.next_to_read() {
            let asked = self.waiting[at].part == part;
            let job = self.begin(part, spot, asked);
            let one = &mut self.waiting[at];
            one.outcome = Some(Outcome::Read(job));
            wakers.push((Arc::clone(&one.waker), true));
        }
    }

    /// Somebody who waits and reads, and what it could read now: its own part, or that of the first one, who does not read
    /// itself and has been passed often enough.
    fn next_to_read(&self) -> Option<(usize, u32, Spot)> {
        let mut first = None;
        for (at, one) in self.waiting.iter().enumerate() {
            let standing = &self.parts[one.part as usize].standing;
            if one.outcome.is_some() || matches!(standing, Standing::Coming { .. }) {
                continue;
            }
            let must_wait = first.filter(|_| self.passed >= PASSES);
            if let Some(part) = must_wait
                && one.reads
            {
                return Some((at, part, self.spot(part, None)?));
            }
            if self.is_in_line(one) {
                first = first.or(Some(one.part));
                if must_wait.is_none()
                    && one.reads
                    && let Some(spot) = self.spot(one.part, None)
                {
                    return Some((at, one.part, spot));
                }
            }
        }
        None
    }

    /// A hold of `part` is one that ends only when a fence has passed.
    pub(super) fn fence(&mut self, part: u32) {
        match &mut self.parts[part as usize].standing {
            Standing::Here { holds, fenced, .. } if *fenced < *holds => *fenced += 1,
            _ => unreachable!("what is held is there"),
        }
        self.fenced += 1;
    }

    /// That fence has passed.
    pub(super) fn unfence(&mut self, part: u32) {
        if let Standing::Here { fenced, .. } = &mut self.parts[part as usize].standing {
            *fenced -= 1;
            self.fenced -= 1;
        }
    }

    /// Somebody does not wait any more. The error that it was not told, if it was to be: foreign code may be in it.
    pub(super) fn dismiss(&mut self, gone: &mut Waiting<E>) -> Option<E> {
        match gone.outcome.take() {
            Some(Outcome::Here(_)) => self.let_go(gone.part),
            // Nobody has begun to read it.
            Some(Outcome::Read(job)) => self.remove(job.part),
            Some(Outcome::Failed(error)) => return Some(error),
            None => {}
        }
        None
    }

    pub(super) fn let_go(&mut self, part: u32) {
        match &mut self.parts[part as usize].standing {
            Standing::Here { holds, .. } if *holds > 0 => *holds -= 1,
            _ => unreachable!("what is held is there"),
        }
    }

    /// Of those who wait in line, the parts.
    fn unplaced(&self) -> impl Iterator<Item = u32> + '_ {
        self.line().map(|one| one.part)
    }

    /// Those who wait for a place.
    pub(super) fn line(&self) -> impl Iterator<Item = &Waiting<E>> {
        self.waiting.iter().filter(|one| self.is_in_line(one))
    }

    /// Does it wait for a place that there will be when all holds have ended but those that are behind fences? These may
    /// never pass: as long as its part does not fit beside them, it is in nobody's way.
    fn is_in_line(&self, one: &Waiting<E>) -> bool {
        let Part { len, standing, .. } = &self.parts[one.part as usize];
        let waits = one.outcome.is_none() && matches!(standing, Standing::Away);
        waits && (self.fenced == 0 || self.fits_beside_fences(*len))
    }

    fn fits_beside_fences(&self, len: u64) -> bool {
        let fenced = |part: &&Part<E>| matches!(part.standing, Standing::Here { fenced: 1.., .. });
        let placed = self.placed.iter().map(|part| &self.parts[*part as usize]);
        let tenants = placed.filter(fenced).filter_map(|part| {
            let (at, len) = (part.place()?, part.len);
            let stay = Stay::Fixed;
            Some(Tenant { at, len, stay })
        });
        spot(self.capacity, len, &tenants.collect::<Vec<_>>(), None).is_some()
    }

    /// Whoever waits for what is there gets it.
    pub(super) fn serve(&mut self, wakers: &mut Vec<(Arc<Waker>, bool)>) {
        for at in 0..self.waiting.len() {
            let one = &self.waiting[at];
            if one.outcome.is_some() {
                continue;
            }
            let mut earlier = self.waiting.range(..at);
            if self.passed >= PASSES && earlier.any(|one| self.is_in_line(one)) {
                continue;
            }
            if let Standing::Here {
                at: place, holds, ..
            } = &mut self.parts[self.waiting[at].part as usize].standing
            {
                *holds += 1;
                let one = &mut self.waiting[at];
                one.outcome = Some(Outcome::Here(*place));
                wakers.push((Arc::clone(&one.waker), true));
                self.count_pass();
            }
        }
    }

    /// Is somebody wanted who reads?
    pub(super) fn call(&mut self) -> Call {
        if self.unplaced().next().is_none() {
            self.passed = 0;
        }
        let wanted = self.readers < self.most_readers && self.choose().is_some();
        self.readers += usize::from(wanted);
        wanted
    }

    /// Is it there for whoever asks now?
    pub(super) fn is_at_hand(&self, part: u32) -> bool {
        let here = matches!(self.parts[part as usize].standing, Standing::Here { .. });
        here && !(self.passed >= PASSES && self.line().next().is_some())
    }

    /// Where each part is, if all of them are there.
    pub(super) fn whole(&self) -> Option<Box<[u64]>> {
        if self.away > 0 {
            return None;
        }
        let here = |part: &Part<E>| match part.standing {
            Standing::Here { at, .. } => Some(at),
            _ => None,
        };
        self.parts.iter().map(here).collect()
    }

    /// What is to be read next.
    pub(super) fn choose(&self) -> Option<Choice> {
        if self.away == 0 {
            return None;
        }
        let mut waiting = self.line().peekable();
        if waiting.peek().is_some() {
            // Whoever waits behind the first one passes it, but not for ever. What is read for later would be
            // in its way.
            let most = if self.passed < PASSES { usize::MAX } else { 1 };
            return waiting.take(most).find_map(|one| {
                let spot = self.spot(one.part, None)?;
                let stream = self
                    .streams
                    .iter()
                    .position(|stream| stream.id == one.stream)?;
                Some(Choice {
                    part: one.part,
                    spot,
                    stream,
                    ahead: false,
                })
            });
        }
        let mut next: Vec<(usize, u32, usize)> = Vec::new();
        for (number, stream) in self.streams.iter().enumerate() {
            // What could not be read counts: a disk that is gone is not asked for everything.
            let mut ahead = stream.unused.len();
            for (far, part) in stream.order.after(stream.at) {
                if ahead >= stream.ahead {
                    break;
                }
                match self.parts[part as usize].standing {
                    Standing::Away => {
                        next.push((far, part, number));
                        break;
                    }
                    Standing::Failed(_) => ahead += 1,
                    Standing::Coming { .. } | Standing::Here { .. } => {}
                }
            }
        }
        next.sort_unstable();
        next.into_iter().find_map(|(far, part, stream)| {
            Some(Choice {
                part,
                spot: self.spot(part, Some(far))?,
                stream,
                ahead: true,
            })
        })
    }

    /// Where a part may go that is used in so many steps; `None`: that somebody waits for.
    fn spot(&self, part: u32, far: Option<usize>) -> Option<Spot> {
        let tenant = |&tenant: &u32| {
            let Part {
                len,
                standing,
                used,
            } = &self.parts[tenant as usize];
            match standing {
                Standing::Here { at, holds: 0, .. } => Some(Tenant {
                    at: *at,
                    len: *len,
                    stay: Stay::Idle {
                        next: self.next_use(tenant),
                        last: *used,
                    },
                }),
                Standing::Here { at, .. } | Standing::Coming { at } => Some(Tenant {
                    at: *at,
                    len: *len,
                    stay: Stay::Fixed,
                }),
                Standing::Away | Standing::Failed(_) => None,
            }
        };
        let tenants: Vec<Tenant> = self.placed.iter().filter_map(tenant).collect();
        let pace = self.pace;
        let ahead = far.map(|far| Ahead { far, pace });
        spot(
            self.capacity,
            self.parts[part as usize].len,
            &tenants,
            ahead,
        )
    }

    /// In how many steps somebody uses it again; `None`: nobody, as far as one knows.
    fn next_use(&self, part: u32) -> Option<usize> {
        let wants = |one: &Waiting<E>| one.part == part && one.outcome.is_none();
        if self.waiting.iter().any(wants) {
            return Some(0);
        }
        let next = |stream: &Stream<C>| stream.order.distance(stream.at, part);
        self.streams.iter().filter_map(next).min()
    }

    /// `part` is going to be read to `spot`; who is there goes.
    pub(super) fn begin(&mut self, part: u32, spot: Spot, asked: bool) -> Job {
        for gone in self.placed.drain(spot.gone.clone()) {
            self.parts[gone as usize].standing = Standing::Away;
            self.away += 1;
            for stream in &mut self.streams {
                stream.unused.retain(|one| *one != gone);
            }
        }
        self.placed.insert(spot.gone.start, part);
        let first = self.unplaced().next();
        self.away -= 1;
        let at = spot.at;
        let one = &mut self.parts[part as usize];
        let len = one.len;
        one.standing = Standing::Coming { at };
        if first == Some(part) {
            self.passed = 0;
        } else {
            self.count_pass();
        }
        Job {
            part,
            at,
            len,
            asked,
        }
    }

    /// `part` has no place any more.
    pub(super) fn remove(&mut self, part: u32) {
        self.placed.retain(|one| *one != part);
        self.parts[part as usize].standing = Standing::Away;
        self.away += 1;
        for stream in &mut self.streams {
            stream.unused.retain(|one| *one != part);
        }
    }
}
