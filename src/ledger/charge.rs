//! Charges: the right to some bytes, and what they are used for.
//!
//! What lives here: [`Charge`] and its states. What does not: the books that it is written in, and the
//! limits (`ledger`, `account`).

use super::account::State;
use super::{Account, Books, Ledger};
use crate::error::Error;
use crate::sync::Mutex;

/// Bytes that are accounted for. They are given back exactly once, when the charge is dropped,
/// whichever state it is in.
#[derive(Debug)]
pub struct Charge {
    ledger: Ledger,
    /// Always locked before the ledger.
    standing: Mutex<Standing>,
}

#[derive(Debug)]
struct Standing {
    account: Option<Account>,
    uses: Uses,
}

/// How many bytes, and what they are used for.
#[derive(Debug, Clone, Copy, Default)]
struct Uses {
    bytes: u64,
    /// Current generations that have them.
    current: u32,
    /// Earlier generations that are kept and have them.
    kept: u32,
    /// A generation that had them was current, and is not any more.
    superseded: bool,
    /// They were taken from the current generation that had them.
    evicted: bool,
    /// Nobody can have them again: they are on their way back.
    going: bool,
    /// Nobody uses them.
    pooled: bool,
}

impl Uses {
    fn state(&self) -> State {
        match self {
            Uses { current: 1.., .. } => State::Resident,
            Uses { kept: 1.., .. } => State::Kept,
            Uses {
                superseded: true, ..
            } => State::Retired,
            Uses { going: true, .. } => State::Going,
            Uses { evicted: true, .. } => State::Retired,
            Uses { pooled: true, .. } => State::Pooled,
            _ => State::Reserved,
        }
    }

    /// How many bytes of generations that were current come back when these uses end.
    fn returned(&self) -> u64 {
        if self.superseded { self.bytes } else { 0 }
    }

    fn entry(&self) -> (State, u64) {
        (self.state(), self.bytes)
    }
}

impl Charge {
    /// Of bytes that were taken a moment ago.
    pub(super) fn new(ledger: Ledger, account: Option<Account>, bytes: u64) -> Self {
        let uses = Uses {
            bytes,
            ..Uses::default()
        };
        Self::of(ledger, account, uses)
    }

    /// Of bytes that are on their way back.
    pub(super) fn going(ledger: Ledger, bytes: u64) -> Self {
        let uses = Uses {
            bytes,
            going: true,
            ..Uses::default()
        };
        Self::of(ledger, None, uses)
    }

    fn of(ledger: Ledger, account: Option<Account>, uses: Uses) -> Self {
        let standing = Mutex::new(Standing { account, uses });
        Charge { ledger, standing }
    }

    /// How many.
    pub fn bytes(&self) -> u64 {
        self.standing.lock().uses.bytes // E14
    }

    /// Whose they are. `None`: nobody's in particular; they count in the total only.
    pub fn account(&self) -> Option<Account> {
        self.standing.lock().account.clone() // E14
    }

    /// They turn out to be for a namespace, and count there from here on, too. `false`: they did so
    /// already, or they are foreign memory, which no namespace has.
    ///
    /// # Errors
    /// [`Error::OverAccountLimit`] if they do not fit there, [`Error::ChargedElsewhere`] if they are
    /// another namespace's. Nothing is changed then.
    pub fn assign(&self, namespace: &str) -> Result<bool, Error> {
        let account = Account::namespace(namespace);
        let mut standing = self.standing.lock(); // E14
        match &standing.account {
            None => {}
            Some(Account::Foreign(_)) => return Ok(false),
            Some(own) if *own == account => return Ok(false),
            Some(own) => {
                return Err(Error::ChargedElsewhere {
                    charged_to: own.clone(),
                    offered_to: account,
                });
            }
        }
        let (state, bytes) = standing.uses.entry();
        let mut books = self.ledger.0.lock(); // E14
        books.check_account(&account, bytes)?;
        standing.account = Some(books.open_account(account, state, bytes));
        Ok(true)
    }

    /// They were not for the namespace after all.
    pub(crate) fn unassign(&self) {
        let mut standing = self.standing.lock(); // E14
        if let Some(account) = standing.account.take() {
            let (state, bytes) = standing.uses.entry();
            self.ledger.0.lock().close_account(&account, state, bytes); // E14
        }
    }

    /// A generation that has them becomes current.
    pub(crate) fn settle(&self) {
        self.turn(|now| now.current += 1);
    }

    /// It did not after all.
    pub(crate) fn unsettle(&self) {
        self.turn(|now| now.current -= 1);
    }

    /// A generation that has them is no longer current.
    pub(crate) fn retire(&self) {
        self.turn(|now| {
            now.current -= 1;
            now.superseded = true;
        });
    }

    /// They are taken from the current generation that has them, and go.
    pub(crate) fn evict(&self) {
        self.turn(|now| {
            now.current -= 1;
            // That an earlier number had them is over: they go because the current one gave them up.
            now.superseded = false;
            now.evicted = true;
        });
    }

    /// They did not go after all: that generation has them again.
    pub(crate) fn put_back(&self) {
        self.turn(|now| {
            now.current += 1;
            now.evicted = false;
        });
    }

    /// What was evicted is given back, for nobody in particular.
    pub(crate) fn let_go(&self) {
        self.turn(|now| now.going = true);
    }

    /// Nobody uses them any more, and the memory behind them stays for whoever comes next. They are nobody's in
    /// particular from here on.
    pub(crate) fn pool(&self) {
        self.write(|standing, books| {
            let before = standing.uses;
            let (state, bytes) = before.entry();
            if let Some(account) = standing.account.take() {
                books.close_account(&account, state, bytes);
            }
            books.reclaimed = books.reclaimed.saturating_add(before.returned());
            books.eased += u64::from(bytes > 0);
            standing.uses = Uses {
                bytes,
                pooled: true,
                ..Uses::default()
            };
            books.total.turn((state, bytes), standing.uses.entry());
        });
    }

    /// The memory behind them does not stay there after all.
    pub(crate) fn unpool(&self) {
        self.turn(|now| {
            now.pooled = false;
            now.going = true;
        });
    }

    /// An earlier generation that has them is kept.
    pub(crate) fn keep(&self) {
        self.turn(|now| now.kept += 1);
    }

    /// It is no longer.
    pub(crate) fn forget(&self) {
        self.turn(|now| now.kept -= 1);
    }

    /// The memory behind it was given back: from here on it is a reservation for something else,
    /// together with `more` of the same account. At no instant can anybody else have any of these bytes.
    pub(crate) fn reuse(self, more: Charge) -> Charge {
        let (account, more) = {
            let mut more = more.standing.lock(); // E14: nobody else has it
            // Without a charge for the moment, but still in the books: it is a reservation, and so is
            // what they become a part of below.
            (more.account.clone(), std::mem::take(&mut more.uses.bytes))
        };
        self.write(|standing, books| {
            debug_assert_eq!(
                standing.account, account,
                "bytes would change their account"
            );
            let before = standing.uses;
            books.reclaimed = books.reclaimed.saturating_add(before.returned());
            standing.uses = Uses {
                bytes: before.bytes + more,
                ..Uses::default()
            };
            books.each(standing.account.as_ref(), |book| {
                book.turn(before.entry(), (State::Reserved, before.bytes));
            });
        });
        self
    }

    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink_to(&self, bytes: u64) {
        self.turn(|now| now.bytes = now.bytes.min(bytes));
    }

    fn turn(&self, change: impl FnOnce(&mut Uses)) {
        self.write(|standing, books| {
            let before = standing.uses.entry();
            change(&mut standing.uses);
            let after = standing.uses.entry();
            books.eased += u64::from(after.1 < before.1);
            books.each(standing.account.as_ref(), |book| book.turn(before, after));
        });
    }

    fn write(&self, change: impl FnOnce(&mut Standing, &mut Books)) {
        let mut standing = self.standing.lock(); // E14
        let mut books = self.ledger.0.lock(); // E14
        let before = books.eased;
        change(&mut standing, &mut books);
        if books.eased != before {
            super::ring(books);
        }
    }

    /// Whose they are, what they are used for and how many.
    pub(super) fn entry(&self) -> (Option<Account>, State, u64) {
        let standing = self.standing.lock(); // E14
        let (state, bytes) = standing.uses.entry();
        (standing.account.clone(), state, bytes)
    }

    /// They are others' by now: the books have been told. What is dropped is a charge of no bytes.
    pub(super) fn empty(&self) {
        self.standing.lock().uses.bytes = 0; // E14
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.write(|standing, books| {
            let (state, bytes) = standing.uses.entry();
            books.close(standing.account.as_ref(), state, bytes);
            books.reclaimed = books.reclaimed.saturating_add(standing.uses.returned());
        });
    }
}
