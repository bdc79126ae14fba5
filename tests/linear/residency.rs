//! What one thread does about bytes that go and come back.
//!
//! What lives here: evicting, loading, acquiring what may be away, pins, and how their answers are written
//! down. What does not: everything else that a thread does (`acts`), what an answer may be (`model`).

use std::time::Duration;

use weighbridge::{Error, SetHandle};

use super::acts::{Actor, Ended, Touched, free, leased, refused};
use super::drive::Planted;
use super::model::Op;
use super::source::went;
use crate::support::SOON;

/// As long as somebody waits where there may never be room.
const BRIEFLY: Duration = Duration::from_micros(300);

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
        let answer = self.registry.load(one.set);
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

    /// One set or two. Where there may be too little room it is one, so that what goes for it goes at one
    /// instant, and nothing goes in vain.
    pub fn acquire_or_load(&mut self) -> Ended {
        let one = self.any_set();
        let mut sets = vec![one.set];
        if self.tight {
            if one.base.is_some() {
                return free(Vec::new());
            }
        } else {
            let other = self.any_set();
            // An adapter goes with its own base.
            for set in [one.base, Some(other.set), other.base] {
                sets.extend(set.filter(|set| !sets.contains(set)));
            }
        }
        let from = self.diary.tick();
        let patience = if self.tight { BRIEFLY } else { SOON };
        let answer = self.registry.acquire_or_load(&sets, patience);
        let mut ops: Vec<Op> = went().into_iter().map(Op::Went).collect();
        // Whatever the answer is: one of them may have come, and another one be gone by then.
        for fill in self.diary.read_since(from) {
            ops.extend(sets.iter().map(|&set| Op::Came(set, fill)));
        }
        ops.push(match answer {
            Ok(lease) => {
                let all = sets.iter().map(|&set| leased(&lease, set)).collect();
                Op::LeasedOrLoaded(lease.number().number(), all)
            }
            Err(Error::NotLoaded(_)) => Op::Overdue(one.set),
            Err(error) => refused(&error, one.set),
        });
        (ops, leasing(sets))
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
