//! Streams: using the parts of a set one after the other, while the next ones are read.
//!
//! What lives here: [`Stream`], asking for a part, by a call that waits and as a future. What does not: a part that is
//! there (`part`), reading (`reader`), orders for users (`order`), which parts are where (`core::window`).

mod fenced;
mod order;
mod part;
mod reader;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use order::Order;
pub use part::Part;
use reader::Held;
pub(crate) use reader::Ward;

use super::WeightRegistry;
use super::generation::Holds;
use super::lease::{Lease, Weight};
use super::loading::Inside;
use crate::core::window::{Answer, Sight, Tally, Ticket};
use crate::core::{panics, wait};
use crate::error::Error;
use crate::handle::{SetHandle, WeightHandle};

/// Somebody who uses the parts of a leased set, one at a time, in an order that it has declared.
///
/// [`part`](Self::part) gives a part as soon as it is in memory, and lets the next ones be read meanwhile: so many of
/// those that are missing as the order says ([`Order::ahead`]). What is needed furthest in the future goes for them (of what
/// differs in size: what takes the fewest bytes per step to read again), so of a ring that does not fit a front stays, and only the rest is read in each round. All streams of one generation
/// share its window, whatever their positions.
///
/// A stream is at the part that it asked for last. Asking for the same part again is no step; one that comes later is a
/// jump, and what was read for those in between stays as long as nobody needs its place; one that came before is a step
/// back; one that is not in the order is given like any other, and the stream is where it was. Dropping the stream at
/// any time leaves nothing behind but parts that others may use, and those that were given away behind a
/// [fence](Part::release_after). Whoever is reading ahead for it at that moment keeps a lease, labelled
/// `weighbridge reads ahead`, until it has read that part.
///
/// A part is read ahead only if that does not cost more than it hides: one that another, longer one would have to be read again
/// for is left to whoever asks for it, unless reading is so fast, by what was measured so far, that both go behind the uses between.
/// When all parts are in memory, none goes any more: then parts come and go without a lock, and are not counted.
///
/// It keeps a lease: the version is the same from the first part to the last, whatever is published meanwhile. It does not keep the
/// registry: a stream goes on when that is gone.
///
/// # Examples
/// See [`Streamed`](crate::source::Streamed).
pub struct Stream {
    ward: Arc<Ward>,
    id: u64,
    /// The part that it has [entered](Stream::enter).
    entered: Option<Held>,
}

/// A part, as a [`Stream::window`] shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartInWindow {
    /// Its name.
    pub name: Arc<str>,
    /// What it is doing.
    pub state: PartState,
    /// Where it is in the window, in bytes, if it has a place.
    pub place: Option<Range<u64>>,
}

/// What a part is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartState {
    /// It is not in memory.
    Away,
    /// It could not be read, and nobody who asked was told so far.
    Failed,
    /// It is being read.
    Coming,
    /// It is in memory, and so many have it.
    Here {
        /// How many. Whoever came when all parts were in memory is not among them.
        holds: u32,
    },
}

/// What was done in a window so far, by all streams of its generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamTally {
    /// Parts that were in memory when they were asked for, as long as not all of them were: then none is counted any more.
    pub hits: u64,
    /// Parts that whoever asked had to wait for, or to read; who read another one first, because that was in its way,
    /// asked twice.
    pub misses: u64,
    /// Parts that were read.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Reads that failed.
    pub failures: u64,
}

impl WeightRegistry {
    /// A stream over the parts of a leased set, which was published as
    /// [`Streamed`](crate::source::Streamed). What comes first in `order` begins to be read.
    ///
    /// # Errors
    /// [`Error::NotInLease`], [`Error::NotStreamed`], [`Error::NoSuchPart`] if the order names one that is not there;
    /// [`Error::WrongRegistry`], [`Error::Forked`].
    pub fn stream(&self, lease: &Lease, set: SetHandle, order: Order) -> Result<Stream, Error> {
        self.shared.check_process()?;
        self.key(set)?;
        let hold = lease.set(set)?.hold.clone();
        let lease = Lease::new(Holds::One(hold), lease.number().0);
        let ward = Arc::new(Ward::new(self, lease)?);
        let parts = ward.parts().all().len();
        let (steps, ahead) = order.steps(parts);
        if let Some(part) = steps.largest().filter(|part| *part as usize >= parts) {
            return Err(ward.no_such_part(part as usize));
        }
        let (id, call) = ward.window().open(steps, ahead, Arc::clone(&ward));
        ward.called(call);
        ward.streaming().begun();
        Ok(Stream {
            ward,
            id,
            entered: None,
        })
    }
}

impl Stream {
    /// How many parts the set has.
    pub fn len(&self) -> usize {
        self.ward.parts().all().len()
    }

    /// None at all? There is always one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of a part; `None`: there is none of this number.
    pub fn name(&self, part: usize) -> Option<&str> {
        self.ward.parts().all().get(part).map(|part| part.name())
    }

    /// The part that a tensor is in; `None`: it stays in memory, and [`Lease::weight`] reads it.
    ///
    /// # Errors
    /// [`Error::NotInLease`], [`Error::NoSuchTensor`].
    pub fn part_of(&self, weight: WeightHandle) -> Result<Option<usize>, Error> {
        let set = self.lease().set(weight.set())?;
        let facts = &set.meta().facts;
        if facts.layout.tensor(weight.ordinal()).is_none() {
            let tensor = set.meta().record.tensor_name(weight.ordinal());
            return Err(set.no_such_tensor(tensor));
        }
        let part = facts.extents.in_part(weight.ordinal());
        Ok(part.map(|(part, _)| part as usize))
    }

    /// The lease that it keeps.
    pub fn lease(&self) -> &Lease {
        self.ward.lease()
    }

    /// Goes on in another order, from its beginning: what a router predicts, for example. What comes first in it begins
    /// to be read. How many are read ahead stays what it was.
    ///
    /// # Errors
    /// [`Error::NoSuchPart`], [`Error::Forked`]. The order is what it was then.
    pub fn expect(&mut self, order: Order) -> Result<(), Error> {
        self.ward.check_process()?;
        let (steps, _) = order.steps(self.len());
        if let Some(part) = steps.largest().filter(|part| *part as usize >= self.len()) {
            return Err(self.ward.no_such_part(part as usize));
        }
        let call = self.ward.window().reorder(self.id, steps);
        self.ward.called(call);
        Ok(())
    }

    /// What each part is doing now, and where it is.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn window(&self) -> Result<Vec<PartInWindow>, Error> {
        self.ward.check_process()?;
        let named = self.ward.parts().all().iter();
        let look = self.ward.window().look();
        let show = |(part, (sight, place)): (&crate::plan::PlannedPart, (Sight, _))| PartInWindow {
            name: Arc::clone(&part.name),
            state: match sight {
                Sight::Away => PartState::Away,
                Sight::Failed => PartState::Failed,
                Sight::Coming => PartState::Coming,
                Sight::Here { holds } => PartState::Here { holds },
            },
            place,
        };
        Ok(named.zip(look).map(show).collect())
    }

    /// What was done in this window so far.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn tally(&self) -> Result<StreamTally, Error> {
        self.ward.check_process()?;
        let Tally {
            hits,
            misses,
            reads,
            bytes,
            failures,
        } = self.ward.window().tally();
        Ok(StreamTally {
            hits,
            misses,
            reads,
            read_bytes: bytes,
            failures,
        })
    }

    /// A part, as soon as it is in memory. If nobody reads it, this thread does, as soon as there is a place for it.
    ///
    /// A stream has one part at a time, so whoever waits here has none, and those who have one go on: whatever the
    /// window holds, and however many streams share it, they do not block each other. A thread that has a part of
    /// *another* stream while it waits can be in its own way, until `patience` is over; and so can a task that waits for two
    /// of them at once, or a future that has been polled and is then neither polled nor dropped.
    ///
    /// # Errors
    /// [`Error::PartFailed`]: it could not be read when it was tried last, for this call or ahead of it. Each failure is
    /// told once, to all who wait for it or to the next who asks; after that it is tried again.
    /// [`Error::PartNotLoaded`] when `patience` is over; a read that this thread has begun is brought to its end first. [`Error::NoSuchPart`],
    /// [`Error::LoadInsideLoad`], [`Error::Forked`], neither of them when all parts are in memory.
    pub fn part(&mut self, part: usize, patience: Duration) -> Result<Part<'_>, Error> {
        self.leave();
        let held = self.wait_for(part, patience)?;
        Ok(Part::new(self, held))
    }

    /// [`part`](Self::part), and the stream itself has it until it goes on: for engines that keep the stream in the
    /// same place as what reads from it. Whatever it had before is given back first.
    ///
    /// # Errors
    /// As [`part`](Self::part). The stream has no part then.
    ///
    /// # Examples
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use weighbridge::{Order, Parts, WeightRegistry, WindowSize, source::{Checkpoint, Streamed}};
    /// # let registry = Arc::new(WeightRegistry::builder().build()?);
    /// # let checkpoint = Checkpoint::open("fixtures/tiny-llama")?;
    /// # let streamed = Streamed::new(checkpoint, &Parts::layers(), WindowSize::Parts(2))?;
    /// # let set = registry.publish("tiny", streamed)?;
    /// # let lease = registry.acquire(set)?;
    /// let up = registry.weight_handle(set, "model.layers.1.mlp.up_proj.weight")?;
    /// let mut stream = registry.stream(&lease, set, Order::ring())?;
    /// stream.enter(1, Duration::from_secs(5))?;
    /// assert_eq!(stream.weight(up)?.shape(), [256, 96]);
    /// stream.enter(2, Duration::from_secs(5))?; // it has left layer 1
    /// assert!(stream.weight(up).is_err());
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn enter(&mut self, part: usize, patience: Duration) -> Result<(), Error> {
        self.leave();
        self.entered = Some(self.wait_for(part, patience)?);
        Ok(())
    }

    /// Gives the part back that it has entered, if there is one.
    #[inline]
    pub fn leave(&mut self) {
        if let Some(held) = self.entered.take() {
            self.ward.release(held);
        }
    }

    /// One tensor, of the part that it has [entered](Self::enter) or of what stays in memory. An array access: no lock, no
    /// atomic write, no name.
    ///
    /// # Errors
    /// [`Error::InPart`] if it is in another part; [`Error::NotInLease`], [`Error::NoSuchTensor`],
    /// [`Error::UnreadableTensor`].
    #[inline]
    pub fn weight(&self, weight: WeightHandle) -> Result<Weight<'_>, Error> {
        match &self.entered {
            // SAFETY: it is held until `leave`, which needs the stream that the answer borrows from.
            Some(held) => unsafe { self.ward.weight(weight, held) },
            None => self.lease().weight(weight),
        }
    }

    /// A part, as soon as it is there.
    #[inline]
    fn wait_for(&self, part: usize, patience: Duration) -> Result<Held, Error> {
        if let Some(held) = self.ward.whole(part) {
            return Ok(held);
        }
        self.ask_for(part, patience)
    }

    #[cold]
    fn ask_for(&self, part: usize, patience: Duration) -> Result<Held, Error> {
        let number = self.number(part)?;
        let started = Instant::now();
        let mut asking = Asking {
            stream: self,
            part: number,
            ticket: Ticket::default(),
        };
        let answer = wait(started.checked_add(patience), |waker| {
            asking.ask(waker, true)
        });
        match answer {
            Some(answer) => answer,
            None => {
                // It may have come just now.
                if let Some(answer) = asking.ask(Waker::noop(), true) {
                    return answer;
                }
                let (reading, held) = asking.in_the_way();
                drop(asking);
                let (set, part) = self.ward.named(number);
                let waited = started.elapsed();
                Err(Error::PartNotLoaded {
                    set,
                    part,
                    waited,
                    reading,
                    held,
                })
            }
        }
    }

    /// [`part`](Self::part) as a future, for any executor: no poll of it reads a file or waits for a read. It is read by
    /// threads of the registry ([`Builder::loaders`](crate::Builder::loaders)). Dropping it is harmless at any time. Its
    /// patience is yours: wrap it into a time-out.
    ///
    /// # Errors
    /// As [`part`](Self::part), without [`Error::PartNotLoaded`].
    pub fn part_async(&mut self, part: usize) -> PartSoon<'_> {
        self.leave();
        PartSoon(Some(Asking {
            part: u32::try_from(part).unwrap_or(u32::MAX),
            stream: self,
            ticket: Ticket::default(),
        }))
    }

    fn number(&self, part: usize) -> Result<u32, Error> {
        self.ward.check_process()?;
        Inside::none()?;
        let known = u32::try_from(part).ok().filter(|_| part < self.len());
        known.ok_or_else(|| self.ward.no_such_part(part))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.leave();
        self.ward.streaming().ended();
        if self.ward.check_process().is_ok() {
            let call = self.ward.window().close(self.id);
            self.ward.called(call);
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("lease", self.lease())
            .field("parts", &self.len())
            .finish_non_exhaustive()
    }
}

/// A part is wanted.
struct Asking<'s> {
    /// Borrowed for as long as its part: a stream has one at a time.
    stream: &'s Stream,
    part: u32,
    ticket: Ticket,
}

impl Asking<'_> {
    /// It, if it is there; `None`: the waker will be woken.
    fn ask(&mut self, waker: &Waker, reads: bool) -> Option<Result<Held, Error>> {
        let Stream { ward, id, .. } = self.stream;
        let window = ward.window();
        loop {
            let (answer, call) = window.ask(*id, self.part, &mut self.ticket, waker, reads);
            ward.called(call);
            let failed = |cause| Some(Err(ward.part_failed(self.part, cause)));
            match answer {
                Answer::Wait => return None,
                Answer::Here(at) => return Some(Ok(Held::here(self.part, at))),
                Answer::Failed(cause) => return failed(cause),
                Answer::Read(job) => {
                    let (part, at) = (job.part, job.at);
                    let read = ward.fetch(job);
                    if part == self.part {
                        return read.map_or_else(failed, |()| Some(Ok(Held::here(part, at))));
                    }
                    // It was in the way of this one. Whoever wants it is told.
                    let _ = panics(|| drop(read));
                }
            }
        }
    }

    /// Is the part being read, and how many parts are held?
    fn in_the_way(&self) -> (bool, usize) {
        let look = self.stream.ward.window().look();
        let mine = look.get(self.part as usize).map(|(sight, _)| *sight);
        let held = |(sight, _): &&(Sight, _)| matches!(sight, Sight::Here { holds: 1.. });
        (
            mine == Some(Sight::Coming),
            look.iter().filter(held).count(),
        )
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let ward = &self.stream.ward;
        if ward.check_process().is_ok() {
            let call = ward.window().leave(&mut self.ticket);
            ward.called(call);
        }
    }
}

/// See [`Stream::part_async`].
#[must_use = "it does nothing until it is polled"]
pub struct PartSoon<'s>(Option<Asking<'s>>);

impl<'s> Future for PartSoon<'s> {
    type Output = Result<Part<'s>, Error>;

    /// # Panics
    /// If it has answered already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(asking) = &mut self.0 else {
            panic!("polled after it had answered")
        };
        let part = asking.part as usize;
        let answer = match asking.stream.ward.whole(part) {
            Some(held) => Some(Ok(held)),
            None => match asking.stream.number(part) {
                Ok(_) => asking.ask(cx.waker(), false),
                Err(error) => Some(Err(error)),
            },
        };
        let Some(answer) = answer else {
            return Poll::Pending;
        };
        let Some(asking) = self.0.take() else {
            unreachable!("looked at above")
        };
        Poll::Ready(answer.map(|held| Part::new(asking.stream, held)))
    }
}

impl fmt::Debug for PartSoon<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = self.0.as_ref().map(|asking| asking.part);
        f.debug_struct("PartSoon")
            .field("part", &part)
            .finish_non_exhaustive()
    }
}
