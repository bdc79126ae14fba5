//! Into the queue, and out of it again before the turn came.
//!
//! What lives here: admission by handle and by name, and cancelling. What does not: what becomes of who waits
//! (`fetch`, `order`).

use std::sync::{Arc, Mutex, PoisonError};

use weighbridge::{Error, NameRef, SetHandle};

use crate::queue::{Waiting, Weights};
use crate::refused::{Refused, Why};
use crate::round::Ticket;
use crate::scheduler::Scheduler;
use crate::wants::Wants;

/// How many were given out by all schedulers of this process, so that a ticket of one cancels nothing in another.
/// std's in every build: it is not of one schedule, and nobody else's turn comes while it is held.
static TICKETS: Mutex<u64> = Mutex::new(0);

/// Greater than all before it.
fn next_ticket() -> u64 {
    let mut tickets = TICKETS.lock().unwrap_or_else(PoisonError::into_inner);
    *tickets += 1;
    *tickets
}

impl<T> Scheduler<T> {
    /// Admits a request for `base`, with `adapter` if it wants one. From any thread.
    ///
    /// If both are resident it is given its lease now, under `label`: its generations are fixed, and whatever is
    /// replaced, retired or unloaded later does not concern it. If they are not, it waits without a lease, the
    /// load is asked for by the rounds ([`Limits::ahead`](crate::Limits::ahead)), and what is fixed is what
    /// came. The same if a load has waited for room for too long: see the [crate](crate#when-memory-is-short).
    ///
    /// Progress: two short locks, which a round holds while it goes through the queue once. It loads nothing, and
    /// waits for no load.
    ///
    /// # Errors
    /// [`Refused`], with the payload. [`Why::Full`]; [`Why::NotAnAdapter`]; [`Why::Registry`] with
    /// [`StaleHandle`](Error::StaleHandle) if one of them was retired, [`WrongBase`](Error::WrongBase),
    /// [`NotABase`](Error::NotABase), [`WrongRegistry`](Error::WrongRegistry).
    pub fn admit(
        &self,
        base: SetHandle,
        adapter: Option<SetHandle>,
        label: &str,
        payload: T,
    ) -> Result<Ticket, Refused<T>> {
        self.admit_wanting(Ok(Wants { base, adapter }), label, payload)
    }

    /// [`admit`](Self::admit) by name. A name is looked up here and never again: whatever is published under it
    /// later is not this request's.
    ///
    /// # Errors
    /// As [`admit`](Self::admit); [`Why::Unknown`] if there is no set of that name (any more).
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use weighbridge::{Dtype, WeightRegistry, source::InMemory};
    /// use weighbridge_scheduler::{Limits, Scheduler, Why};
    ///
    /// # let registry = Arc::new(WeightRegistry::builder().build()?);
    /// # registry.publish("llama", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
    /// let scheduler = Scheduler::new(Arc::clone(&registry), Limits::default())?;
    /// scheduler.admit_by_name("llama", None, "request-1", "hello")?;
    ///
    /// let refused = scheduler.admit_by_name("llama", Some("pirate".into()), "request-2", "ahoy");
    /// let refused = refused.unwrap_err(); // not answered by the base
    /// assert!(matches!(refused.why, Why::Unknown { .. }));
    /// assert_eq!(refused.payload, "ahoy");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn admit_by_name<'n>(
        &self,
        base: impl Into<NameRef<'n>>,
        adapter: Option<NameRef<'n>>,
        label: &str,
        payload: T,
    ) -> Result<Ticket, Refused<T>> {
        let known = |name: NameRef<'n>| {
            self.registry.lookup(name).ok_or_else(|| Why::Unknown {
                name: name.to_string(),
            })
        };
        let wants = known(base.into()).and_then(|base| {
            let adapter = adapter.map(known).transpose()?;
            Ok(Wants { base, adapter })
        });
        self.admit_wanting(wants, label, payload)
    }

    fn admit_wanting(
        &self,
        wants: Result<Wants, Why>,
        label: &str,
        payload: T,
    ) -> Result<Ticket, Refused<T>> {
        let admitted = wants.and_then(|wants| Ok((wants, self.weights_of(wants, label)?)));
        let (wants, weights) = match admitted {
            Ok(admitted) => admitted,
            Err(why) => return Err(self.refuse(payload, why)),
        };
        let why = {
            let mut desk = self.desk.lock();
            let room = desk.has_room(&self.limits);
            if room.is_ok() {
                // Under the lock, so that tickets are in the order of admission.
                let ticket = next_ticket();
                let waiting = Waiting {
                    payload,
                    label: label.into(),
                    wants,
                    since: desk.round,
                    weights,
                };
                desk.queue.push(ticket, waiting);
                desk.counts.admitted += 1;
                drop(desk);
                self.bell.ring();
                return Ok(Ticket(ticket));
            }
            room
        };
        // Here no lock is held, and the lease ends.
        drop(weights);
        match why {
            Err(why) => Err(self.refuse(payload, why)),
            Ok(()) => unreachable!("who has room was admitted"),
        }
    }

    /// What it runs with, if it is there and may be leased now.
    fn weights_of(&self, wants: Wants, label: &str) -> Result<Option<Weights>, Why> {
        let held_back = {
            let desk = self.desk.lock();
            // Asked again where it counts. Here it saves those who come in vain the lease.
            desk.has_room(&self.limits)?;
            desk.pressed.is_some_and(|first| !wants.is_within(first))
        };
        wants.check(&self.registry)?;
        if held_back {
            return Ok(None);
        }
        match wants.acquire(&self.registry, label) {
            Ok(lease) => {
                let key = wants.key(&lease);
                Ok(Some(Weights { lease, key }))
            }
            Err(Error::NotResident { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn refuse(&self, payload: T, why: Why) -> Refused<T> {
        self.desk.lock().counts.refused += 1;
        Refused::new(payload, why)
    }

    /// Takes a request out that waits, and gives its payload back; its lease, if it had one, ends. A load that was
    /// asked for only for it is given up by the next round.
    ///
    /// `None`: it does not wait. It joined, failed, was cancelled before, or is of another scheduler. Whoever
    /// joined is ended by dropping what the round gave.
    pub fn cancel(&self, ticket: Ticket) -> Option<T> {
        let taken = {
            let mut desk = self.desk.lock();
            let taken = desk.queue.take(ticket.0)?;
            desk.counts.cancelled += 1;
            taken
        };
        let Waiting {
            payload, weights, ..
        } = taken;
        drop(weights);
        // Others may have waited for it to go first.
        self.bell.ring();
        Some(payload)
    }

    /// Admits nobody any more, and takes all out that wait: their payloads, oldest first. Their leases end, and loads
    /// that were asked for only for them are given up. Those that run, and those that a round gave as failed, are
    /// as they were; rounds go on, and give back what is left of failures.
    ///
    /// For a server that ends: whoever is taken out here can be told so.
    pub fn close(&self) -> Vec<(Ticket, T)> {
        let taken = {
            let mut desk = self.desk.lock();
            desk.closed = true;
            let taken = desk.queue.take_all();
            desk.counts.cancelled += taken.len() as u64;
            taken
        };
        // Here no lock is held, and the leases end.
        let payloads = taken.into_iter();
        let payloads = payloads
            .map(|(ticket, one)| (Ticket(ticket), one.payload))
            .collect();
        self.bell.ring();
        payloads
    }

    /// The label as the queue keeps it.
    pub(crate) fn waiting_for(&self, wants: Wants) -> Vec<(u64, Arc<str>)> {
        self.desk.lock().queue.waiting_for(wants)
    }
}
