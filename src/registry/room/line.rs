//! Who looks at the line of those who wait for room.
//!
//! What lives here: the watch. What does not: the line itself (`core::line`), what they wait for (`admit`).
//!
//! A lease of a current generation touches nothing after it has ended, so nobody can tell a waiter that
//! a set is idle by now. Bytes that come back to the ledger ring at once; for the rest the line is looked
//! at from time to time, first after 50 microseconds, then ever less often, down to every 5 milliseconds:
//! whoever waits for memory pays for the wait, and no request does.

use std::sync::Arc;

use crate::core::{Bell, Kept};
use crate::handle::SetHandle;
use crate::ledger::{Ledger, Shortage};

/// What somebody in the line lacks, and for which sets.
pub(super) struct Lack {
    pub(super) short: Shortage,
    pub(super) sets: Arc<[SetHandle]>,
}

impl Lack {
    pub(super) fn of(sets: &[SetHandle], short: &Shortage) -> Self {
        Lack {
            short: short.clone(),
            sets: sets.into(),
        }
    }
}

pub(super) type Line = crate::core::Line<Lack>;

/// How often others may be admitted before the one that waits longest, if what they take is what it lacks.
pub(super) const PASSES: u32 = 16;

/// What the keeper keeps for as long as somebody waits.
pub(super) struct Watch {
    line: Arc<Line>,
    ledger: Ledger,
    /// How often the ledger had eased at the last look.
    eased: u64,
}

impl Watch {
    pub(super) fn new(line: &Arc<Line>, ledger: &Ledger) -> Self {
        Watch {
            line: Arc::clone(line),
            ledger: ledger.clone(),
            eased: ledger.eased(),
        }
    }
}

impl Kept for Watch {
    fn listen(&mut self, bell: &Bell) -> bool {
        self.ledger.tell(Some(bell.clone()));
        // It rings when bytes come back. That a lease ends it does not tell.
        false
    }

    fn may_go(&mut self) -> bool {
        let eased = self.ledger.eased();
        let news = std::mem::replace(&mut self.eased, eased) != eased;
        let alike = |one: &Lack, other: &Lack| {
            let (one, other) = (&one.short, &other.short);
            (one.total > 0) == (other.total > 0) && one.accounts.keys().eq(other.accounts.keys())
        };
        if self.line.look(news, alike) {
            return false;
        }
        self.ledger.tell(None);
        true
    }

    fn broke(&mut self) {
        unreachable!("what is called here does not panic")
    }
}
