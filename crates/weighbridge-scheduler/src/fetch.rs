//! Weights for those who wait without.
//!
//! What lives here: for whom loads are asked, oldest first, and what becomes of the answers. What does not: the
//! futures (`loads`), who joins with what came (`order`).
//!
//! # When memory is short
//!
//! A lease keeps its sets in memory. If every request for a busy adapter was leased as it comes, an adapter
//! that needs that room would never be loaded: requests for the busy one would keep it leased for ever. So
//! a load that has stood in the registry's line for room for more than `patience` rounds *presses*: from then on
//! nobody behind it is given a lease of something that it does not want itself, unless it was asked for before. Those who
//! have their leases run and end, and nothing renews what they hold.
//!
//! No circle: whoever has weights never waits for one who has none.

use std::sync::Arc;

use weighbridge::Error;

use crate::loads::Loads;
use crate::queue::Weights;
use crate::round::{Failed, Ticket};
use crate::scheduler::Scheduler;
use crate::wants::Wants;

impl<T> Scheduler<T> {
    /// Gives leases to those who can have them, and asks for loads for the oldest of the others.
    pub(crate) fn fetch(&self, loads: &mut Loads, round: u64) {
        let away = self.desk.lock().queue.away();
        loads.keep(&away);
        let mut pressed = None;
        for wants in away {
            if loads.asked_in(wants).is_none() {
                let held_back = pressed.is_some_and(|first| !wants.is_within(first));
                if held_back || !self.hand_out(wants) || loads.len() >= self.limits.ahead {
                    continue;
                }
                loads.ask(&self.registry, wants, round);
                self.desk.lock().counts.loads += 1;
            }
            match loads.answer(wants) {
                None if pressed.is_none() && self.presses(loads, wants, round) => {
                    pressed = Some(wants);
                }
                None => {}
                Some(Ok(lease)) => {
                    let away = self.hand_out(wants);
                    // Kept until they had theirs, so that nothing went in between.
                    drop(lease);
                    if away {
                        // A swap has its place again. Whoever sleeps would not hear of it.
                        self.bell.ring();
                    }
                }
                Some(Err(error)) => self.fail(wants, error),
            }
        }
        let mut desk = self.desk.lock();
        desk.pressed = pressed;
        desk.counts.pressed += u64::from(pressed.is_some());
    }

    /// Has it waited for too long, and for room?
    fn presses(&self, loads: &Loads, wants: Wants, round: u64) -> bool {
        let asked = loads.asked_in(wants);
        // Somebody who reads slowly is in nobody's way, and nobody in his: only a line for room is.
        asked.is_some_and(|asked| round - asked > self.limits.patience)
            && self.registry.stats().waiting > 0
    }

    /// A lease for each who waits for this. Is there somebody who has none, because it is away?
    fn hand_out(&self, wants: Wants) -> bool {
        for (ticket, label) in self.waiting_for(wants) {
            match wants.acquire(&self.registry, &label) {
                Ok(lease) => {
                    let key = wants.key(&lease);
                    let given = self.desk.lock().queue.give(ticket, Weights { lease, key });
                    // It was cancelled meanwhile. The lease ends where no lock is held.
                    drop(given);
                }
                Err(Error::NotResident { .. }) => return true,
                Err(error) => {
                    self.fail(wants, error);
                    return false;
                }
            }
        }
        false
    }

    /// Ends all who wait for this without a lease.
    fn fail(&self, wants: Wants, error: Error) {
        let error = Arc::new(error);
        let mut desk = self.desk.lock();
        for (ticket, _) in desk.queue.waiting_for(wants) {
            if let Some(one) = desk.queue.take(ticket) {
                desk.failed.push(Failed {
                    ticket: Ticket(ticket),
                    payload: one.payload,
                    error: Arc::clone(&error),
                });
                desk.counts.failed += 1;
            }
        }
    }
}
