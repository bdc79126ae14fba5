//! A window over the parts of something that does not fit: which of them are in memory, who holds them, what is read
//! next and what goes for it.
//!
//! What lives here: the lock, who is told what, and reading without the lock when everything is there. What does not: the states
//! and the steps between them (`state`), the memory and reading (`registry::stream`), how parts are named.
//!
//! Wakers are foreign code, and so may be what is in an error or in what a stream was opened with: wakers are cloned and woken,
//! and all of these are dropped, while the lock is not held.
//!
//! The states and steps are drawn in docs/ordering/streaming.md.

mod order;
mod pace;
mod place;
mod state;
#[cfg(all(test, not(weighbridge_loom)))]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

pub use order::Order;
use state::{Outcome, Part, Standing, State, Stream};

use super::panics;
use crate::sync::{Mutex, OnceLock};

/// See the module documentation. `E`: why a part could not be read. `C`: what whoever reads for a stream needs; it is kept as
/// long as the stream is open.
#[derive(Debug)]
pub struct Window<E, C> {
    state: Mutex<State<E, C>>,
    /// Where each part is, from when all of them are there. Then there is nothing to read, so nothing goes, ever.
    whole: OnceLock<Box<[u64]>>,
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

impl<E: Clone, C: Clone> Window<E, C> {
    /// Parts of these lengths in a region of `capacity` bytes, none of them there. At most so many readers are
    /// called at a time.
    pub fn new(capacity: u64, lens: impl IntoIterator<Item = u64>, most_readers: usize) -> Self {
        let part = |len| Part {
            len,
            standing: Standing::Away,
            used: 0,
        };
        let parts: Box<[_]> = lens.into_iter().map(part).collect();
        Window {
            state: Mutex::new(State::new(capacity, parts, most_readers)),
            whole: OnceLock::new(),
        }
    }

    /// Where a part is, if every part is there: from then on none goes, and nobody need hold any. Lock-free.
    #[inline]
    pub fn whole(&self, part: u32) -> Option<u64> {
        let places = self.whole.get()?; // E84
        places.get(part as usize).copied()
    }

    /// Somebody who is going to use parts in this order, and has `ahead` of them read before it does. `call` is for whoever
    /// reads for it; cloning it calls nobody.
    pub fn open(&self, order: Order, ahead: usize, call: C) -> (u64, Call) {
        let mut state = self.state.lock(); // E83
        state.now += 1;
        let id = state.now;
        state.streams.push(Stream {
            id,
            call,
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
        let mut state = self.state.lock(); // E83
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
        let (mut wakers, mut failed) = (Vec::new(), Vec::new());
        let mut state = self.state.lock(); // E83
        let at = state.streams.iter().position(|one| one.id == stream);
        let _gone = at.map(|at| state.streams.swap_remove(at));
        // Whoever still waits for it was forgotten: nobody would ever ask with its ticket.
        while let Some(at) = state.waiting.iter().position(|one| one.stream == stream) {
            if let Some(mut gone) = state.waiting.remove(at) {
                failed.extend(state.dismiss(&mut gone));
                wakers.push((gone.waker, false));
            }
        }
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        let _ = panics(|| drop(failed));
        call
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
        let mut wakers = Vec::new();
        let Some(number) = ticket.0 else {
            return self.ask_first(stream, part, ticket, waker, reads);
        };
        let mut waker = Arc::new(waker.clone());
        let mut state = self.state.lock(); // E83
        let at = state.waiting.iter().position(|one| one.ticket == number);
        let Some(at) = at else {
            unreachable!("whoever waits leaves by its ticket")
        };
        // What it had before is dropped below.
        std::mem::swap(&mut state.waiting[at].waker, &mut waker);
        let answer = match state.waiting[at].outcome.take() {
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
        };
        let call = state.settle(&mut wakers);
        drop(state);
        wakers.push((waker, false));
        wake(wakers);
        (answer, call)
    }

    /// [`ask`](Self::ask), without a ticket.
    fn ask_first(
        &self,
        stream: u64,
        part: u32,
        ticket: &mut Ticket,
        waker: &Waker,
        reads: bool,
    ) -> (Answer<E>, Call) {
        let mut wakers = Vec::new();
        // Who finds it there needs no waker, and cloning one calls foreign code.
        let mut mine = None;
        let mut state = loop {
            let state = self.state.lock(); // E83
            if mine.is_some() || state.is_at_hand(part) {
                break state;
            }
            drop(state);
            mine = Some(Arc::new(waker.clone()));
        };
        state.step(stream, part);
        let answer = match (state.answer(part, reads), &mine) {
            (Answer::Wait, Some(waker)) => {
                ticket.0 = Some(state.enter(stream, part, Arc::clone(waker), reads));
                Answer::Wait
            }
            (answer, _) => answer,
        };
        match answer {
            Answer::Here(_) => state.tally.hits += 1,
            Answer::Read(_) | Answer::Wait => state.tally.misses += 1,
            Answer::Failed(_) => {}
        }
        let call = state.settle(&mut wakers);
        drop(state);
        wakers.extend(mine.map(|waker| (waker, false)));
        wake(wakers);
        (answer, call)
    }

    /// Who had this ticket does not wait any more.
    pub fn leave(&self, ticket: &mut Ticket) -> Call {
        let Some(number) = ticket.0.take() else {
            return false;
        };
        let mut wakers = Vec::new();
        let mut state = self.state.lock(); // E83
        let at = state.waiting.iter().position(|one| one.ticket == number);
        let mut failed = None;
        if let Some(mut gone) = at.and_then(|at| state.waiting.remove(at)) {
            failed = state.dismiss(&mut gone);
            wakers.push((gone.waker, false));
        }
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        // Foreign code may be in it.
        let _ = panics(|| drop(failed));
        call
    }

    /// Somebody who had a part has used it, for so many nanoseconds.
    pub fn release(&self, part: u32, used_ns: u64) -> Call {
        self.let_go(part, |state| state.pace.used(used_ns))
    }

    /// Somebody who had a part has used it; something else still does, until a fence has passed. Then
    /// [`release_fenced`](Self::release_fenced).
    pub fn fence(&self, part: u32, used_ns: u64) -> Call {
        let mut wakers = Vec::new();
        let mut state = self.state.lock(); // E83
        state.pace.used(used_ns);
        state.fence(part);
        // Those who were held up for what does not fit beside it are not any more.
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        call
    }

    /// The fence has passed.
    pub fn release_fenced(&self, part: u32) -> Call {
        self.let_go(part, |state| state.unfence(part))
    }

    fn let_go(&self, part: u32, and: impl FnOnce(&mut State<E, C>)) -> Call {
        let mut wakers = Vec::new();
        let mut state = self.state.lock(); // E83
        and(&mut state);
        state.let_go(part);
        let call = state.settle(&mut wakers);
        drop(state);
        wake(wakers);
        call
    }

    /// What is to be read next, and what its stream was opened with. `None`: nothing, and whoever was called need not
    /// stay.
    pub fn next_job(&self) -> Option<(Job, C)> {
        let mut wakers = Vec::new();
        let mut state = self.state.lock(); // E83
        let job = match state.choose() {
            Some(choice) => {
                let job = state.begin(choice.part, choice.spot, false);
                let stream = &mut state.streams[choice.stream];
                if choice.ahead {
                    stream.unused.push(choice.part);
                }
                let call = stream.call.clone();
                // Those who were not to pass any more.
                state.hand_out(&mut wakers);
                state.serve(&mut wakers);
                Some((job, call))
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

    /// It was read in so many nanoseconds, or not. If whoever asked for it has read it, it has it now.
    pub fn landed(&self, job: Job, read_ns: u64, result: Result<(), E>) -> Call {
        let Job {
            part, at, asked, ..
        } = job;
        let (mut wakers, mut spare) = (Vec::new(), None);
        let mut state = self.state.lock(); // E83
        match result {
            Ok(()) => {
                let len = state.parts[part as usize].len;
                state.tally.reads += 1;
                state.tally.bytes += len;
                state.pace.read(len, read_ns);
                let holds = u32::from(asked);
                let fenced = 0;
                state.parts[part as usize].standing = Standing::Here { at, holds, fenced };
                if let Some(places) = state.whole() {
                    let _ = self.whole.set(places); // E84
                }
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
        self.state.lock().tally // E83
    }

    /// What each part is doing, and where it is.
    pub fn look(&self) -> Vec<(Sight, Option<Range<u64>>)> {
        let state = self.state.lock(); // E83
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
