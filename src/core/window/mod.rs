//! A window over the parts of something that does not fit: which of them are in memory, who holds them, what is read
//! next and what goes for it.
//!
//! What lives here: the states of parts, and every step between them. What does not: the memory and
//! reading (`registry::stream`), how parts are named; the order of uses (`order`); where in the memory a part goes, and for whom (`place`).
//!
//! All of it happens under one lock, in steps that are short, call nobody and read nothing. Wakers are foreign
//! code: they are cloned, woken and dropped while the lock is not held.
//!
//! The states and steps are drawn in docs/ordering/streaming.md.

mod order;
mod place;
#[cfg(all(test, not(weighbridge_loom)))]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

pub use order::Order;
use place::{Spot, Stay, Tenant, spot};

use super::panics;
use crate::sync::Mutex;

/// How often others are served at the cost of the first of those who wait for a place.
const PASSES: u32 = if cfg!(any(test, weighbridge_loom)) {
    2
} else {
    32
};

/// See the module documentation. `E`: why a part could not be read.
#[derive(Debug)]
pub struct Window<E>(Mutex<State<E>>);

#[derive(Debug)]
struct State<E> {
    capacity: u64,
    parts: Box<[Part<E>]>,
    /// Those that have a place, in its order.
    placed: Vec<u32>,
    /// How many have none.
    away: usize,
    streams: Vec<Stream>,
    waiting: VecDeque<Waiting<E>>,
    /// How often others were served, and the first of those who wait for a place found none then.
    passed: u32,
    /// The clock of uses, and the last number that was given to a stream or somebody who waits.
    now: u64,
    readers: usize,
    most_readers: usize,
    tally: Tally,
}

#[derive(Debug)]
struct Part<E> {
    len: u64,
    standing: Standing<E>,
    used: u64,
}

#[derive(Debug)]
enum Standing<E> {
    Away,
    /// It could not be read, and nobody was told so far.
    Failed(E),
    Coming {
        at: u64,
    },
    Here {
        at: u64,
        holds: u32,
    },
}

/// Somebody who uses parts in some order.
#[derive(Debug)]
struct Stream {
    id: u64,
    order: Order,
    at: Option<usize>,
    /// How many parts are read before it uses them.
    ahead: usize,
    /// Those that are.
    unused: Vec<u32>,
}

#[derive(Debug)]
struct Waiting<E> {
    ticket: u64,
    part: u32,
    waker: Arc<Waker>,
    /// It would read the part itself.
    reads: bool,
    outcome: Option<Outcome<E>>,
}

/// What is kept for somebody who waits.
#[derive(Debug)]
enum Outcome<E> {
    /// A hold.
    Here(u64),
    Failed(E),
    /// The duty to read it; or another part, for somebody who does not read and has been passed often enough.
    Read(Job),
}

/// Where a part is to somebody who asks for it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<E> {
    /// It is there, from this place on, and stays until it is [released](Window::release).
    Here(u64),
    /// Nobody reads it: whoever asked is to. Then it is [landed](Window::landed). If it is another part than it asked for,
    /// that was in its way, and it asks again.
    Read(Job),
    /// It could not be read.
    Failed(E),
    /// The waker will be woken.
    Wait,
}

/// A part that is to be read, and where to. Its place is nobody else's until it is [landed](Window::landed).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "until it is landed, whoever wants the part waits"]
pub struct Job {
    pub part: u32,
    pub at: u64,
    pub len: u64,
    /// Whoever reads it is the one who asked for it.
    asked: bool,
}

/// Somebody's place among those who wait; `None`: it does not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ticket(Option<u64>);

/// Is somebody wanted who calls [`Window::next_job`] until there is none?
pub type Call = bool;

/// What was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Parts that were there when they were asked for.
    pub hits: u64,
    /// Parts that whoever asked had to wait for, or to read.
    pub misses: u64,
    /// Parts that were read, and how many bytes that was.
    pub reads: u64,
    pub bytes: u64,
    /// Reads that failed.
    pub failures: u64,
}

/// What a part is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    Away,
    Failed,
    Coming,
    Here { holds: u32 },
}

impl<E> Part<E> {
    fn place(&self) -> Option<u64> {
        match self.standing {
            Standing::Coming { at } | Standing::Here { at, .. } => Some(at),
            Standing::Away | Standing::Failed(_) => None,
        }
    }
}

impl<E: Clone> Window<E> {
    /// Parts of these lengths in a region of `capacity` bytes, none of them there. At most so many readers are
    /// called at a time.
    pub fn new(capacity: u64, lens: impl IntoIterator<Item = u64>, most_readers: usize) -> Self {
        let part = |len| Part {
            len,
            standing: Standing::Away,
            used: 0,
        };
        let parts: Box<[_]> = lens.into_iter().map(part).collect();
        Window(Mutex::new(State {
            capacity,
            away: parts.len(),
            parts,
            placed: Vec::new(),
            streams: Vec::new(),
            waiting: VecDeque::new(),
            passed: 0,
            now: 0,
            readers: 0,
            most_readers,
            tally: Tally::default(),
        }))
    }

    /// Somebody who is going to use parts in this order, and has `ahead` of them read before it does.
    pub fn open(&self, order: Order, ahead: usize) -> (u64, Call) {
        let mut state = self.0.lock(); // E83
        state.now += 1;
        let id = state.now;
        state.streams.push(Stream {
            id,
            order,
            at: None,
            ahead,
            unused: Vec::new(),
        });
        let call = state.call();
        (id, call)
    }

    /// It goes on in another order.
    pub fn reorder(&self, stream: u64, order: Order) -> Call {
        let mut order = order;
        let mut state = self.0.lock(); // E83
        if let Some(stream) = state.streams.iter_mut().find(|one| one.id == stream) {
            // What it was goes when the lock is not held.
            std::mem::swap(&mut stream.order, &mut order);
            stream.at = None;
            stream.unused.clear();
        }
        state.call()
    }

    /// It uses nothing any more.
    pub fn close(&self, stream: u64) -> Call {
        let mut state = self.0.lock(); // E83
        let at = state.streams.iter().position(|one| one.id == stream);
        let _gone = at.map(|at| state.streams.swap_remove(at));
        state.call()
    }

    /// `stream` uses `part` now. Whoever was told to wait asks again with the same ticket. `reads`: it would read the
    /// part itself.
    pub fn ask(
        &self,
        stream: u64,
        part: u32,
        ticket: &mut Ticket,
        waker: &Waker,
        reads: bool,
    ) -> (Answer<E>, Call) {
        let mut waker = Arc::new(waker.clone());
        let mut wakers = Vec::new();
        let mut state = self.0.lock(); // E83
        let answer = match ticket.0 {
            Some(number) => {
                let at = state.waiting.iter().position(|one| one.ticket == number);
                let Some(at) = at else {
                    unreachable!("whoever waits leaves by its ticket")
                };
                // What it had before is dropped below.
                std::mem::swap(&mut state.waiting[at].waker, &mut waker);
                match state.waiting[at].outcome.take() {
                    None => Answer::Wait,
                    Some(outcome) => {
                        ticket.0 = None;
                        wakers.extend(state.waiting.remove(at).map(|one| (one.waker, false)));
                        match outcome {
                            Outcome::Here(at) => Answer::Here(at),
                            Outcome::Failed(error) => Answer::Failed(error),
                            Outcome::Read(job) => Answer::Read(job),
                        }
                    }
                }
            }
            None => {
                state.step(stream, part);
                let answer = state.answer(part, reads);
                match answer {
                    Answer::Here(_) => state.tally.hits += 1,
                    Answer::Read(_) | Answer::Wait => state.tally.misses += 1,
                    Answer::Failed(_) => {}
                }
                if matches!(answer, Answer::Wait) {
                    state.now += 1;
                    ticket.0 = Some(state.now);
                    let ticket = state.now;
                    let waker = Arc::clone(&waker);
                    state.waiting.push_back(Waiting {
                        ticket,
                        part,
                        waker,
                        reads,
                        outcome: None,
                    });
                }
                answer
            }
        };
        let call = state.settle(&mut wakers);
        drop(state);
        wakers.push((waker, false));
        wake(wakers);
        (answer, call)
    }

    /// Who had this ticket does not wait any more.
    pub fn leave(&self, ticket: &mut Ticket) -> Call {
        let Some(number) = ticket.0.take() else {
            return false;
        };
        let mut wakers = Vec::new();
        let mut state = self.0.lock(); // E83
        let at = state.waiting.iter().position(|one| one.ticket == number);
        let mut failed = None;
        if let Some(gone) = at.and_then(|at| state.waiting.remove(at)) {
            wakers.push((gone.waker, false));
            match gone.outcome {
                Some(Outcome::Here(_)) => state.let_go(gone.part),
                // Nobody has begun to read it.
                Some(Outcome::Read(job)) => state.remove(job.part),
                Some(Outcome::Failed(error)) => failed = Some(error),
                None => {}
            }
        }
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        // Foreign code may be in it.
        let _ = panics(|| drop(failed));
        call
    }

    /// Somebody who had a part has used it.
    pub fn release(&self, part: u32) -> Call {
        let mut wakers = Vec::new();
        let mut state = self.0.lock(); // E83
        state.let_go(part);
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        call
    }

    /// What is to be read next. `None`: nothing, and whoever was called need not stay.
    pub fn next_job(&self) -> Option<Job> {
        let mut wakers = Vec::new();
        let mut state = self.0.lock(); // E83
        let job = match state.choose() {
            Some((part, spot, stream)) => {
                let job = state.begin(part, spot, false);
                if let Some(stream) = stream {
                    state.streams[stream].unused.push(part);
                }
                // Those who were not to pass any more.
                state.hand_out(&mut wakers);
                state.serve(&mut wakers);
                Some(job)
            }
            None => {
                state.readers -= 1;
                None
            }
        };
        drop(state);
        wake(wakers);
        job
    }

    /// It was read, or not. If whoever asked for it has read it, it has it now.
    pub fn landed(&self, job: Job, result: Result<(), E>) -> Call {
        let Job {
            part, at, asked, ..
        } = job;
        let (mut wakers, mut spare) = (Vec::new(), None);
        let mut state = self.0.lock(); // E83
        match result {
            Ok(()) => {
                state.tally.reads += 1;
                state.tally.bytes += state.parts[part as usize].len;
                let holds = u32::from(asked);
                state.parts[part as usize].standing = Standing::Here { at, holds };
            }
            Err(error) => {
                state.tally.failures += 1;
                state.remove(part);
                let mut told = asked;
                for one in &mut state.waiting {
                    if one.part == part && one.outcome.is_none() {
                        one.outcome = Some(Outcome::Failed(error.clone()));
                        wakers.push((Arc::clone(&one.waker), true));
                        told = true;
                    }
                }
                if told {
                    spare = Some(error);
                } else {
                    state.away -= 1;
                    state.parts[part as usize].standing = Standing::Failed(error);
                }
            }
        }
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        // Foreign code may be in it.
        let _ = panics(|| drop(spare));
        call
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        self.0.lock().tally // E83
    }

    /// What each part is doing, and where it is.
    pub fn look(&self) -> Vec<(Sight, Option<Range<u64>>)> {
        let state = self.0.lock(); // E83
        let sight = |part: &Part<E>| {
            let sight = match part.standing {
                Standing::Away => Sight::Away,
                Standing::Failed(_) => Sight::Failed,
                Standing::Coming { .. } => Sight::Coming,
                Standing::Here { holds, .. } => Sight::Here { holds },
            };
            (sight, part.place().map(|at| at..at + part.len))
        };
        state.parts.iter().map(sight).collect()
    }
}

impl<E: Clone> State<E> {
    /// `stream` is at `part` now.
    fn step(&mut self, stream: u64, part: u32) {
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
    fn answer(&mut self, part: u32, reads: bool) -> Answer<E> {
        let first = self.unplaced().next();
        let must_wait = first.is_some() && self.passed >= PASSES;
        match &mut self.parts[part as usize].standing {
            Standing::Coming { .. } => Answer::Wait,
            Standing::Here { .. } | Standing::Away if must_wait => Answer::Wait,
            Standing::Here { at, holds } => {
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

    /// Somebody was served who was not the first of those who wait for a place: at its cost, if that has none now.
    fn count_pass(&mut self) {
        let first = self.unplaced().next();
        if first.is_some_and(|first| self.spot(first, None).is_none()) {
            self.passed += 1;
        }
    }

    /// Whoever can go on does, as far as that needs no reader; and is one wanted?
    fn settle(&mut self, wakers: &mut Vec<(Arc<Waker>, bool)>) -> Call {
        self.serve(wakers);
        self.hand_out(wakers);
        // Those who were not to pass before.
        self.serve(wakers);
        self.call()
    }

    /// Those who wait for a place, and read themselves, get it as soon as there is one: the first of them, or, but not for
    /// ever, others.
    fn hand_out(&mut self, wakers: &mut Vec<(Arc<Waker>, bool)>) {
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
            if matches!(standing, Standing::Away) {
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

    fn let_go(&mut self, part: u32) {
        match &mut self.parts[part as usize].standing {
            Standing::Here { holds, .. } if *holds > 0 => *holds -= 1,
            _ => unreachable!("what is held is there"),
        }
    }

    /// Of those who wait, the parts that have no place.
    fn unplaced(&self) -> impl Iterator<Item = u32> + '_ {
        let waiting = self.waiting.iter().filter(|one| one.outcome.is_none());
        let parts = waiting.map(|one| one.part);
        parts.filter(|part| matches!(self.parts[*part as usize].standing, Standing::Away))
    }

    /// Whoever waits for what is there gets it.
    fn serve(&mut self, wakers: &mut Vec<(Arc<Waker>, bool)>) {
        for at in 0..self.waiting.len() {
            let one = &self.waiting[at];
            if one.outcome.is_some() {
                continue;
            }
            let earlier = |one: &Waiting<E>| {
                let standing = &self.parts[one.part as usize].standing;
                one.outcome.is_none() && matches!(standing, Standing::Away)
            };
            if self.passed >= PASSES && self.waiting.range(..at).any(earlier) {
                continue;
            }
            if let Standing::Here { at: place, holds } =
                &mut self.parts[self.waiting[at].part as usize].standing
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
    fn call(&mut self) -> Call {
        if self.unplaced().next().is_none() {
            self.passed = 0;
        }
        let wanted = self.readers < self.most_readers && self.choose().is_some();
        self.readers += usize::from(wanted);
        wanted
    }

    /// What is to be read next, where, and for which stream (`None`: somebody waits for it).
    fn choose(&self) -> Option<(u32, Spot, Option<usize>)> {
        if self.away == 0 {
            return None;
        }
        let mut unplaced = self.unplaced();
        if let Some(first) = unplaced.next() {
            let mut parts = std::iter::once(first).chain(unplaced);
            // Whoever waits behind the first one passes it, but not for ever. What is read for later would be
            // in its way.
            let most = if self.passed < PASSES { usize::MAX } else { 1 };
            return parts
                .by_ref()
                .take(most)
                .find_map(|part| Some((part, self.spot(part, None)?, None)));
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
        let spot = |(far, part, stream)| Some((part, self.spot(part, Some(far))?, Some(stream)));
        next.into_iter().find_map(spot)
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
                Standing::Here { at, holds: 0 } => Some(Tenant {
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
        spot(self.capacity, self.parts[part as usize].len, &tenants, far)
    }

    /// In how many steps somebody uses it again; `None`: nobody, as far as one knows.
    fn next_use(&self, part: u32) -> Option<usize> {
        let wants = |one: &Waiting<E>| one.part == part && one.outcome.is_none();
        if self.waiting.iter().any(wants) {
            return Some(0);
        }
        let next = |stream: &Stream| stream.order.distance(stream.at, part);
        self.streams.iter().filter_map(next).min()
    }

    /// `part` is going to be read to `spot`; who is there goes.
    fn begin(&mut self, part: u32, spot: Spot, asked: bool) -> Job {
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
    fn remove(&mut self, part: u32) {
        self.placed.retain(|one| *one != part);
        self.parts[part as usize].standing = Standing::Away;
        self.away += 1;
        for stream in &mut self.streams {
            stream.unused.retain(|one| *one != part);
        }
    }
}

/// Wakes those who are to be woken, and drops what is left of the others. Foreign code, and no lock of ours is held. Each by
/// itself: one that panics must not keep the others asleep.
fn wake(wakers: Vec<(Arc<Waker>, bool)>) {
    for (waker, wakes) in wakers {
        let _ = panics(|| {
            if wakes {
                waker.wake_by_ref();
            }
        });
        let _ = panics(move || drop(waker));
    }
}
