//! What one thread does about bytes that go and come back.
//!
//! What lives here: evicting, loading, acquiring what may be away, pins, and how their answers are written
//! down. What does not: everything else that a thread does (`acts`), what an answer may be (`model`).

use weighbridge::SetHandle;

use super::acts::{Actor, Ended, Touched, free, leased, refused};
use super::drive::Planted;
use super::model::Op;
use super::source::unnoted;
use crate::support::SOON;

impl Actor<'_> {
    pub fn evict(&mut self) -> Ended {
        let one = self.any_set();
        free(vec![match self.registry.evict(one.set) {
            Ok(0) => Op::NothingThere(one.set),
            Ok(_) => Op::Evicted(one.set),
            Err(error) => refused(&error, one.set),
        }])
    }

    pub fn load(&mut self) -> Ended {
        let one = self.any_set();
        if self.planted == Planted::OldResidency && self.there.contains(&one.set) {
            return free(vec![Op::There(one.set)]);
        }
        let answer = unnoted(|| self.registry.load(one.set));
        if answer.is_ok() {
            self.there.push(one.set);
        }
        let op = match answer {
            Ok(0) => Op::There(one.set),
            Ok(_) => Op::Loaded(one.set),
            Err(error) => refused(&error, one.set),
        };
        // What came is leased to everybody who waited for it, this one among them.
        (vec![op], leasing(vec![one.set]))
    }

    /// One set, or several at one instant.
    pub fn acquire_or_load(&mut self) -> Ended {
        let (one, other) = (self.any_set(), self.any_set());
        let mut sets = vec![one.set];
        // An adapter goes with its own base.
        for set in [one.base, Some(other.set), other.base] {
            sets.extend(set.filter(|set| !sets.contains(set)));
        }
        let op = match self.registry.acquire_or_load(&sets, SOON) {
            Ok(lease) => {
                let all = sets.iter().map(|&set| leased(&lease, set)).collect();
                Op::LeasedOrLoaded(lease.number().number(), all)
            }
            Err(error) => refused(&error, one.set),
        };
        let touched = Touched {
            loads: true,
            ..leasing(sets)
        };
        (vec![op], touched)
    }

    /// Pins a set, or lets go of its pin.
    pub fn pin(&mut self) -> Ended {
        if let Some((set, pin)) = self.pin.take() {
            drop(pin);
            return free(vec![Op::Unpinned(set)]);
        }
        let one = self.any_set();
        free(vec![match self.registry.pin(one.set, "somebody") {
            Ok(pin) => {
                self.pin = Some((one.set, pin));
                Op::Pinned(one.set)
            }
            Err(error) => refused(&error, one.set),
        }])
    }
}

/// It may lease these meanwhile.
pub fn leasing(leases: Vec<SetHandle>) -> Touched {
    Touched {
        leases,
        ..Touched::default()
    }
}
