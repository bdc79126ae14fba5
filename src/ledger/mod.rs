//! The byte accounts.
//!
//! What lives here: reservations, limits, the books that a charge is written in. `account` has one book,
//! `charge` what becomes of bytes that were taken, `exchange` takes some in place of others. What does not: what the bytes are (`arena`), when
//! they are freed (`core::reclaim`).
//!
//! Every byte is in exactly one state: reserved (a load is in flight, or a set is staged), resident
//! (of a current generation), kept (of an earlier one, for a rollback), retired (superseded and still
//! held, or on its way back). A byte counts in the total or, if it is foreign, not; and in at most one
//! account. No sum passes its limit at any instant: all are checked and taken under one lock. The lock
//! is held for a few additions and a look-up by account, on cold paths only; no lease touches it.
//!
//! Bytes may belong to several generations of a set at once (a rollback and a rebind make no new
//! ones). They are charged once, and their state is the strongest of their uses.

pub(crate) mod account;
mod charge;
mod exchange;
#[cfg(all(test, not(weighbridge_loom)))]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use account::{Account, LedgerSnapshot};
pub use charge::Charge;
pub(crate) use exchange::{Exchanged, Need, Shortage};

use crate::core::Bell;
use crate::error::Error;
use crate::sync::{Mutex, MutexGuard};
use account::{Book, State};

/// The accounts of one registry. Clones share them.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Mutex<Books>>);

#[derive(Debug)]
struct Books {
    /// All but foreign memory.
    total: Book,
    /// What the total should be below.
    soft_limit: u64,
    /// Those that have a limit or a charge.
    accounts: BTreeMap<Account, Book>,
    /// Bytes that came back from generations that were current, foreign ones included.
    reclaimed: u64,
    /// How often bytes came back, or a limit was changed: what did not fit may fit by now.
    eased: u64,
    /// Who is told of that.
    bell: Option<Bell>,
}

impl Books {
    /// Would `bytes` fit? The account is asked first: what is over its limit cannot be helped by
    /// making room elsewhere.
    /// `given`: bytes of the total that would go for it.
    fn check(&self, account: Option<&Account>, bytes: u64, given: u64) -> Result<(), Error> {
        if let Some(account) = account {
            self.check_account(account, bytes)?;
        }
        let in_use = self.total.in_use() - given;
        if counts_in_total(account) && bytes > self.total.limit.saturating_sub(in_use) {
            return Err(Error::OverLimit {
                requested: bytes,
                in_use,
                limit: self.total.limit,
            });
        }
        Ok(())
    }

    fn check_account(&self, account: &Account, bytes: u64) -> Result<(), Error> {
        match self.accounts.get(account) {
            Some(book) if !book.fits(bytes) => Err(Error::OverAccountLimit {
                account: account.clone(),
                requested: bytes,
                in_use: book.in_use(),
                limit: book.limit,
            }),
            _ => Ok(()),
        }
    }

    /// The books in which the charges of `account` are written.
    fn each(&mut self, account: Option<&Account>, mut write: impl FnMut(&mut Book)) {
        if counts_in_total(account) {
            write(&mut self.total);
        }
        if let Some(book) = account.and_then(|account| self.accounts.get_mut(account)) {
            write(book);
        }
    }

    /// Enters a reservation that was checked. Returns the name that all charges of its account share.
    fn open(&mut self, account: Option<&Account>, bytes: u64) -> Option<Account> {
        if counts_in_total(account) {
            self.total.open(State::Reserved, bytes);
        }
        account.map(|account| self.open_account(account.clone(), State::Reserved, bytes))
    }

    /// Enters a charge in `account`. Returns the name that all its charges share.
    fn open_account(&mut self, account: Account, state: State, bytes: u64) -> Account {
        let shared = self.accounts.get_key_value(&account);
        let account = shared.map_or(account, |(shared, _)| shared.clone());
        let book = self.accounts.entry(account.clone());
        let book = book.or_insert_with(|| Book::new(u64::MAX));
        book.open(state, bytes);
        account
    }

    /// Deletes a charge in `account`. An account that has neither limit nor charges is forgotten: there
    /// may be as many namespaces as there are tenants.
    fn close_account(&mut self, account: &Account, state: State, bytes: u64) {
        if let Some(book) = self.accounts.get_mut(account) {
            book.close(state, bytes);
            if book.is_idle() {
                self.accounts.remove(account);
            }
        }
    }

    fn close(&mut self, account: Option<&Account>, state: State, bytes: u64) {
        self.eased += u64::from(bytes > 0);
        if counts_in_total(account) {
            self.total.close(state, bytes);
        }
        if let Some(account) = account {
            self.close_account(account, state, bytes);
        }
    }
}

/// Lets go of the lock, and tells who waits for room. Lock-free, does not allocate.
fn ring(books: MutexGuard<'_, Books>) {
    let bell = books.bell.clone();
    drop(books);
    if let Some(bell) = bell {
        bell.ring();
    }
}

fn counts_in_total(account: Option<&Account>) -> bool {
    account.is_none_or(Account::is_host)
}

impl Ledger {
    /// Accounts with a hard limit in bytes for the total.
    pub fn new(limit: u64) -> Self {
        Self::with_soft_limit(limit, u64::MAX)
    }

    /// The same, and what the total should be below.
    pub(crate) fn with_soft_limit(limit: u64, soft_limit: u64) -> Self {
        Ledger(Arc::new(Mutex::new(Books {
            total: Book::new(limit),
            soft_limit,
            accounts: BTreeMap::new(),
            reclaimed: 0,
            eased: 0,
            bell: None,
        })))
    }

    /// Takes `bytes` before any of them is allocated, in nobody's account so far: see
    /// [`Charge::assign`]. Dropping the charge gives them back.
    ///
    /// # Errors
    /// [`Error::OverLimit`] if they do not fit; nothing was taken then.
    pub fn reserve(&self, bytes: u64) -> Result<Charge, Error> {
        self.take(None, bytes)
    }

    /// [`reserve`](Self::reserve), in an account. A namespace's bytes count in the total, too.
    ///
    /// # Errors
    /// [`Error::OverAccountLimit`], [`Error::OverLimit`]; nothing was taken then.
    pub fn reserve_in(&self, account: &Account, bytes: u64) -> Result<Charge, Error> {
        self.take(Some(account), bytes)
    }

    /// Takes `bytes` in an account, or in nobody's.
    pub(crate) fn take(&self, account: Option<&Account>, bytes: u64) -> Result<Charge, Error> {
        let mut books = self.0.lock(); // E14
        books.check(account, bytes, 0)?;
        let account = books.open(account, bytes);
        drop(books);
        Ok(Charge::new(self.clone(), account, bytes))
    }

    /// The limit of an account from here on; `None`: none of its own. One below what is in use refuses
    /// what comes, and takes nothing away.
    pub fn set_limit(&self, account: &Account, limit: Option<u64>) {
        let mut books = self.0.lock(); // E14
        let book = books.accounts.entry(account.clone());
        let book = book.or_insert_with(|| Book::new(u64::MAX));
        book.limit = limit.unwrap_or(u64::MAX);
        if book.is_idle() {
            books.accounts.remove(account);
        }
        books.eased += 1;
        ring(books);
    }

    /// By how many bytes the total passes its soft limit. What is in the pool does not count, for it goes back
    /// when it is in the way; nor does what was given up for room and is on its way back.
    pub(crate) fn over_soft_limit(&self) -> u64 {
        let books = self.0.lock(); // E14
        books.total.lasting().saturating_sub(books.soft_limit)
    }

    /// How often what did not fit may have begun to fit.
    pub(crate) fn eased(&self) -> u64 {
        self.0.lock().eased // E14
    }

    /// Who is rung for whenever [`eased`](Self::eased) goes up; `None`: nobody waits.
    pub(crate) fn tell(&self, bell: Option<Bell>) {
        self.0.lock().bell = bell; // E14
    }

    /// The total at one instant.
    pub fn snapshot(&self) -> LedgerSnapshot {
        let books = self.0.lock(); // E14
        LedgerSnapshot {
            soft_limit: books.soft_limit,
            ..books.total.snapshot()
        }
    }

    /// How many bytes have come back so far, of generations that were current. Each counts once, when
    /// the last generation that has it is gone.
    pub fn reclaimed(&self) -> u64 {
        self.0.lock().reclaimed // E14
    }

    /// One account at one instant. One that has neither limit nor charges is empty.
    pub fn account(&self, account: &Account) -> LedgerSnapshot {
        let books = self.0.lock(); // E14
        let book = books.accounts.get(account);
        book.map_or_else(|| Book::new(u64::MAX).snapshot(), Book::snapshot)
    }

    /// Every account that has a limit or a charge, all at one instant. O(accounts), under the lock.
    pub fn accounts(&self) -> Vec<(Account, LedgerSnapshot)> {
        let books = self.0.lock(); // E14
        let each = books.accounts.iter();
        each.map(|(account, book)| (account.clone(), book.snapshot()))
            .collect()
    }
}
