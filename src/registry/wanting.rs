//! Acquiring sets that may have to be loaded first.
//!
//! What lives here: `acquire_or_load`, as a call that waits and as a future, and `load`. What does not: who
//! is admitted (`room`), reading (`loading`), the threads that read for futures (`loaders`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::WeightRegistry;
use super::event::Operation;
use super::lease::Lease;
use super::loading::{Inside, Load, Outcome};
use super::observe::itself;
use super::room::{Answer, Grant, Job, Single, Waiter};
use crate::core::{Place, wait};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::holdup::Overdue;

/// Sets that somebody wants to lease, all as of one instant, and that may be away.
struct Wanting {
    sets: Box<[SetHandle]>,
    waiter: Waiter,
    /// `None`: not admitted, so far.
    coming: Option<Coming>,
}

/// Everything is there, or on its way.
struct Coming {
    /// So that what is there stays until the rest is.
    held: Vec<Lease>,
    loads: Vec<(Arc<Load>, Place)>,
    /// The loads among them that this has caused.
    caused: Vec<SetHandle>,
}

impl Wanting {
    fn new(sets: &[SetHandle]) -> Self {
        Wanting {
            sets: sets.into(),
            waiter: Waiter::default(),
            coming: None,
        }
    }

    /// `None`: the waker is woken when it is time to look again. `run` is given what is to be done for
    /// this; it may do it later, elsewhere, but not never.
    fn poll(
        &mut self,
        registry: &WeightRegistry,
        waker: &Waker,
        run: &mut dyn FnMut(Job),
    ) -> Option<Result<Lease, Error>> {
        loop {
            let Some(coming) = &mut self.coming else {
                match registry.ask(&self.sets, &mut self.waiter, waker) {
                    Ok(Answer::Wait) => return None,
                    Ok(Answer::Go(grant)) => {
                        let Grant {
                            held,
                            flights,
                            caused,
                            job,
                        } = *grant;
                        let loads = flights.into_iter();
                        self.coming = Some(Coming {
                            held,
                            loads: loads.map(|load| (load, Place::default())).collect(),
                            caused,
                        });
                        if let Some(job) = job {
                            run(job);
                        }
                        continue;
                    }
                    Err(error) => return Some(Err(error)),
                }
            };
            match coming.poll(waker) {
                None => return None,
                Some(Err(error)) => {
                    // What was there is leased by nobody who is told this.
                    self.coming = None;
                    return Some(Err(error));
                }
                Some(Ok(())) => {}
            }
            // Every set is leased, so each has its bytes, unless it got another generation meanwhile: of one
            // that is away again, for which this begins anew.
            let lease = registry.acquire(&self.sets);
            let caused = self.coming.take();
            let caused = caused.map(|mut coming| std::mem::take(&mut coming.caused));
            match lease {
                Err(Error::NotResident { .. }) => {}
                Ok(lease) => {
                    // What came for this request has not been used again, so far.
                    lease.unmark(&caused.unwrap_or_default());
                    return Some(Ok(lease));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// It is wanted no more. Loads that have begun go on: others may wait for them.
    fn give_up(&mut self, registry: &WeightRegistry) {
        if registry.shared.check_process().is_err() {
            // Locks may be held by threads that stayed in the parent.
            std::mem::forget((std::mem::take(&mut self.waiter), self.coming.take()));
            return;
        }
        self.coming = None;
        registry.give_up(&mut self.waiter);
    }
}

/// Whoever is in no flight any more is not woken by it.
impl Drop for Coming {
    fn drop(&mut self) {
        for (load, place) in &mut self.loads {
            load.leave(place);
        }
    }
}

impl Coming {
    /// Some: all are there, or one failed.
    fn poll(&mut self, waker: &Waker) -> Option<Result<(), Error>> {
        let mut failed = None;
        let held = &mut self.held;
        self.loads
            .retain_mut(|(load, place)| match load.poll(place, waker) {
                None => true,
                Some(Outcome::Loaded(lease)) => {
                    held.push(lease);
                    false
                }
                Some(Outcome::Moved) => false,
                Some(Outcome::Failed { set, cause }) => {
                    failed = Some(Error::LoadFailed { set, cause });
                    false
                }
            });
        match failed {
            Some(error) => Some(Err(error)),
            None => self.loads.is_empty().then_some(Ok(())),
        }
    }
}

impl WeightRegistry {
    /// [`acquire`](Self::acquire), and loads what is away. Waits for that as long as `patience` lasts.
    ///
    /// If all sets are there it is as fast as `acquire`, and never waits. Otherwise it is given the right to
    /// load all that is missing at one instant, in place of what is free, or what idle sets give up
    /// for it ([`Builder::policy`](super::Builder::policy)); as long as this is not possible it waits in a line,
    /// and holds no lease and no byte meanwhile, so that requests for several sets cannot block each other. It
    /// reads on this thread, and several sets on others, too: eight at a time. What somebody else is loading
    /// already it waits for, whoever that is: a set is read once. Whatever was loaded cannot be evicted before
    /// it was leased here, so no load is in vain.
    ///
    /// What is loaded again is in other memory than before, under the same generation: addresses from earlier
    /// leases are not its own. Whoever waits for a read goes on when that has ended, and no sooner if a replace
    /// has given the set other bytes meanwhile.
    ///
    /// A lease that this thread holds while it waits is in the way of others, and can be in its own.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); [`Error::NotResident`] only for a set whose bytes are not to come
    /// back. [`Error::LoadFailed`], the same for all who waited for that load; after it
    /// [`Error::BackingOff`] for a while, which grows with each failure. [`Error::NeverFits`], at once;
    /// [`Error::NotLoaded`] when `patience` is over, with what is in the way: a load that this thread has
    /// begun is brought to its end first. [`Error::LoadInsideLoad`], [`Error::Forked`], [`Error::Io`] if there
    /// is no thread that could look after those who wait.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use weighbridge::source::{Checkpoint, Evictable, Source};
    /// use weighbridge::{Error, WeightRegistry};
    ///
    /// let open = || Checkpoint::open("fixtures/tiny-llama");
    /// let room = open()?.plan().charged_bytes(); // for one of them
    /// let registry = WeightRegistry::builder().limit_bytes(room).build()?;
    /// let one = registry.publish("one", Evictable::opened_by(open)?)?;
    /// registry.evict(one)?;
    /// let two = registry.publish("two", Evictable::opened_by(open)?)?;
    ///
    /// let patience = Duration::from_secs(5);
    /// let lease = registry.acquire_or_load(one, patience)?; // `two` goes, `one` comes
    /// assert!(registry.acquire(two).is_err());
    /// drop(lease);
    /// registry.acquire_or_load(two, patience)?; // and the other way round
    /// # Ok::<(), Error>(())
    /// ```
    pub fn acquire_or_load(
        &self,
        sets: impl AsRef<[SetHandle]>,
        patience: Duration,
    ) -> Result<Lease, Error> {
        let lease = self.there_or_loaded(sets.as_ref(), patience)?;
        drop(sets); // As in `acquire`.
        Ok(lease)
    }

    /// [`acquire_or_load`](Self::acquire_or_load) of a slice.
    pub(super) fn there_or_loaded(
        &self,
        sets: &[SetHandle],
        patience: Duration,
    ) -> Result<Lease, Error> {
        match self.acquire(sets) {
            Err(Error::NotResident { .. }) => self.load_and_acquire(sets, patience),
            answer => answer,
        }
    }

    /// [`acquire_or_load`](Self::acquire_or_load) with a label, as
    /// [`acquire_as`](Self::acquire_as).
    ///
    /// # Errors
    /// As [`acquire_or_load`](Self::acquire_or_load).
    pub fn acquire_or_load_as(
        &self,
        label: &str,
        sets: impl AsRef<[SetHandle]>,
        patience: Duration,
    ) -> Result<Lease, Error> {
        Ok(self.acquire_or_load(sets, patience)?.labelled(label))
    }

    #[cold]
    fn load_and_acquire(&self, sets: &[SetHandle], patience: Duration) -> Result<Lease, Error> {
        let subject = Several(sets);
        self.observe(Operation::Load, subject, itself, || {
            self.shared.check_process()?;
            let started = Instant::now();
            let mut wanting = Giving {
                registry: self,
                wanting: Wanting::new(sets),
            };
            let deadline = started.checked_add(patience);
            let answer = wait(deadline, |waker| {
                wanting.wanting.poll(self, waker, &mut |job| job.run(self))
            });
            answer.unwrap_or_else(|| Err(self.overdue(&wanting.wanting.waiter, started)))
        })
    }

    #[cold]
    fn overdue(&self, waiter: &Waiter, started: Instant) -> Error {
        let (missing, waiting, leased) = self.in_the_way(waiter);
        let view = self.view();
        let holdup = |set: SetHandle| {
            let node = view.resolve(self.key(set).ok()?)?;
            Some(*self.holdup(&node.meta()?.record, node))
        };
        Error::NotLoaded(Box::new(Overdue {
            waited: started.elapsed(),
            missing,
            waiting,
            leased: leased.into_iter().filter_map(holdup).collect(),
        }))
    }

    /// Reads the bytes of a set again that was [evicted](Self::evict); the answer is what the ledger is
    /// charged for them. Zero: they were there, or somebody else was reading them already and this waited
    /// for that.
    ///
    /// It evicts nothing and waits for no room: what does not fit is refused. A load that failed a moment ago
    /// is tried again all the same. The bytes are reserved before any is allocated, and must be what
    /// they were: the same contents where the registry had hashed them; the same revision where the caller
    /// vouches, or the same fingerprint where nobody does, and then it is their word that counts. They are in
    /// other memory than before: addresses from earlier leases are not theirs.
    ///
    /// # Errors
    /// [`Error::OverLimit`], [`Error::OverAccountLimit`]; [`Error::LoadFailed`] with what is wrong, such as
    /// [`Error::ReloadDiffers`], the same for all who waited for it; [`Error::NotResident`] if its bytes are
    /// not to come back (a [`replace_drained`](Self::replace_drained) has its place);
    /// [`Error::LoadInsideLoad`]; [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::Forked`]. The
    /// set stays without bytes then, and nothing is left behind.
    pub fn load(&self, set: SetHandle) -> Result<u64, Error> {
        self.observe(Operation::Load, set, itself, || {
            self.shared.check_process()?;
            if let Err(inside) = Inside::none() {
                return if self.is_there(set)? {
                    Ok(0)
                } else {
                    Err(inside)
                };
            }
            loop {
                let Some(Single { load, job, bytes }) = self.load_now(set)? else {
                    return Ok(0);
                };
                if let Some(job) = job {
                    job.run(self);
                }
                let mut place = Place::default();
                match wait(None, |waker| load.poll(&mut place, waker)) {
                    Some(Outcome::Loaded(_)) => return Ok(bytes),
                    Some(Outcome::Failed { set, cause }) => {
                        return Err(Error::LoadFailed { set, cause });
                    }
                    Some(Outcome::Moved) => {}
                    None => unreachable!("without a deadline there is an answer"),
                }
            }
        })
    }

    /// [`acquire_or_load`](Self::acquire_or_load) as a future, for any executor: no poll of it reads a file or
    /// waits for a read. What is to be read is read by threads of the registry
    /// ([`Builder::loaders`](super::Builder::loaders)).
    ///
    /// Dropping it is harmless at any time: a load that has begun goes on, for others who wait for it or for
    /// the next request. Its patience is yours: wrap it into a time-out. With a
    /// pool ([`Builder::pool_bytes`](crate::Builder::pool_bytes)) a poll may wait while others give memory of it back.
    ///
    /// # Errors
    /// As [`acquire_or_load`](Self::acquire_or_load), without [`Error::NotLoaded`]; [`Error::Forked`] also for sets
    /// that are there.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// use weighbridge::source::{Checkpoint, Evictable};
    /// use weighbridge::{Error, WeightRegistry};
    ///
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     struct Unpark(std::thread::Thread);
    /// #     impl std::task::Wake for Unpark {
    /// #         fn wake(self: Arc<Self>) { self.0.unpark() }
    /// #     }
    /// #     let waker = Arc::new(Unpark(std::thread::current())).into();
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
    /// #             std::task::Poll::Ready(answer) => return answer,
    /// #             std::task::Poll::Pending => std::thread::park(),
    /// #         }
    /// #     }
    /// # }
    /// let registry = Arc::new(WeightRegistry::builder().build()?);
    /// let source = Evictable::opened_by(|| Checkpoint::open("fixtures/tiny-llama"))?;
    /// let set = registry.publish("tiny", source)?;
    /// registry.evict(set)?;
    ///
    /// let lease = block_on(registry.acquire_or_load_async(set))?;
    /// assert_eq!(lease.sets().len(), 1);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn acquire_or_load_async(self: &Arc<Self>, sets: impl AsRef<[SetHandle]>) -> AcquireOrLoad {
        AcquireOrLoad {
            registry: Arc::clone(self),
            wanting: Wanting::new(sets.as_ref()),
            label: None,
            done: false,
        }
    }
}

/// Gives up on every way out.
struct Giving<'r> {
    registry: &'r WeightRegistry,
    wanting: Wanting,
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        self.wanting.give_up(self.registry);
    }
}

/// See [`WeightRegistry::acquire_or_load_async`].
#[must_use = "it does nothing until it is polled"]
pub struct AcquireOrLoad {
    registry: Arc<WeightRegistry>,
    wanting: Wanting,
    label: Option<Box<str>>,
    done: bool,
}

impl AcquireOrLoad {
    /// With a label, as [`acquire_as`](WeightRegistry::acquire_as).
    pub fn labelled(mut self, label: &str) -> Self {
        self.label = Some(label.into());
        self
    }

    fn look(&mut self, waker: &Waker) -> Option<Result<Lease, Error>> {
        let AcquireOrLoad {
            registry, wanting, ..
        } = self;
        if let Err(error) = registry.shared.check_process() {
            return Some(Err(error));
        }
        if wanting.coming.is_none() {
            match registry.acquire(&wanting.sets) {
                Err(Error::NotResident { .. }) => {}
                answer => return Some(answer),
            }
        }
        wanting.poll(registry, waker, &mut |job| job.run_by_loaders(registry))
    }
}

impl Future for AcquireOrLoad {
    type Output = Result<Lease, Error>;

    /// # Panics
    /// If it has answered already.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.done, "polled after it had answered");
        let Some(answer) = self.look(cx.waker()) else {
            return Poll::Pending;
        };
        self.done = true;
        let this = &mut *self;
        this.wanting.give_up(&this.registry);
        if let Err(error) = &answer {
            this.registry
                .note_refusal(Operation::Load, Several(&this.wanting.sets), error);
        }
        Poll::Ready(answer.map(|lease| match &this.label {
            Some(label) => lease.labelled(label),
            None => lease,
        }))
    }
}

impl Drop for AcquireOrLoad {
    fn drop(&mut self) {
        self.wanting.give_up(&self.registry);
    }
}

impl std::fmt::Debug for AcquireOrLoad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcquireOrLoad")
            .field("sets", &self.wanting.sets)
            .finish_non_exhaustive()
    }
}

/// Handles, one after the other.
struct Several<'s>(&'s [SetHandle]);

impl std::fmt::Display for Several<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, set) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            set.fmt(f)?;
        }
        Ok(())
    }
}
