//! Taking bytes in place of others.
//!
//! What lives here: several reservations at one instant, against charges that are given up for them, and
//! by how much they do not fit. What does not: what is given up (`registry::room`).

use std::collections::BTreeMap;

use super::account::{Book, State};
use super::{Account, Books, Charge, Ledger, counts_in_total};
use crate::error::Error;

/// Bytes that are wanted in an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) account: Account,
    pub(crate) bytes: u64,
}

/// By how many bytes something does not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// Of the total.
    pub(crate) total: u64,
    /// Of accounts, those that are short.
    pub(crate) accounts: BTreeMap<Account, u64>,
}

impl Shortage {
    pub(crate) fn is_none(&self) -> bool {
        self.total == 0 && self.accounts.is_empty()
    }
}

/// What was taken: one reservation for each need, and what is left of what was given up.
#[derive(Debug)]
pub(crate) struct Exchanged {
    pub(crate) charges: Vec<Charge>,
    /// To be dropped when the memory of what was given up is back.
    pub(crate) rest: Option<Charge>,
}

/// What is given up, by book.
#[derive(Default)]
struct Given {
    total: u64,
    accounts: BTreeMap<Account, u64>,
}

impl Given {
    fn add(&mut self, account: Option<Account>, bytes: u64) {
        if counts_in_total(account.as_ref()) {
            self.total = self.total.saturating_add(bytes);
        }
        if let Some(account) = account {
            let sum = self.accounts.entry(account).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
}

/// What charges stand for that are given up. Nobody else has them, so they stay what they are until the
/// lock is taken.
struct Going {
    entries: Vec<(Option<Account>, State, u64)>,
    sums: Given,
}

impl Going {
    fn of(charges: &[&Charge]) -> Self {
        let entries: Vec<_> = charges.iter().map(|charge| charge.entry()).collect();
        let mut sums = Given::default();
        for (account, _, bytes) in &entries {
            sums.add(account.clone(), *bytes);
        }
        Going { entries, sums }
    }
}

impl Books {
    fn give_up(&mut self, going: &Going) {
        for (account, state, bytes) in &going.entries {
            self.each(account.as_ref(), |book| {
                book.turn((*state, *bytes), (*state, 0));
            });
        }
    }

    /// What is more in `going` than was taken for it stays.
    fn hold_back(&mut self, going: &Going, taken: u64) -> u64 {
        let more = going.sums.total.saturating_sub(taken);
        if more > 0 {
            self.total.open(State::Going, more);
        }
        more
    }

    fn shortage(&self, needs: &[Need], given: &Given) -> Shortage {
        let mut wanted = Given::default();
        for need in needs {
            wanted.add(Some(need.account.clone()), need.bytes);
        }
        let missing = |book: Option<&Book>, wanted: u64, given: u64| {
            let (limit, in_use) =
                book.map_or((u64::MAX, 0), |book| (book.limit, book.in_use() - given));
            // Of a limit that was set below what is in use, all of that has to go as well.
            let over = wanted.saturating_add(in_use).saturating_sub(limit);
            if wanted > 0 { over } else { 0 }
        };
        let accounts = wanted.accounts.into_iter().filter_map(|(account, wanted)| {
            let given = given.accounts.get(&account).copied().unwrap_or(0);
            let missing = missing(self.accounts.get(&account), wanted, given);
            (missing > 0).then_some((account, missing))
        });
        Shortage {
            accounts: accounts.collect(),
            total: missing(Some(&self.total), wanted.total, given.total),
        }
    }
}

impl Ledger {
    /// By how much `needs` would not fit if `given` were not there.
    pub(crate) fn shortage<'c>(
        &self,
        needs: &[Need],
        given: impl IntoIterator<Item = &'c Charge>,
    ) -> Shortage {
        let mut sums = Given::default();
        for charge in given {
            let (account, _, bytes) = charge.entry();
            sums.add(account, bytes);
        }
        self.0.lock().shortage(needs, &sums) // E14
    }

    /// Takes all of `needs` at one instant, and gives `old` up for them. At no instant can anybody else
    /// have what these were, and no sum is less than what is in memory: what is more in `old` than in
    /// `needs` stays charged until the rest is dropped.
    ///
    /// # Errors
    /// By how much they do not fit. Nothing is changed then.
    pub(crate) fn exchange(&self, old: &[&Charge], needs: &[Need]) -> Result<Exchanged, Shortage> {
        let going = Going::of(old);
        let mut books = self.0.lock(); // E14
        let short = books.shortage(needs, &going.sums);
        if !short.is_none() {
            return Err(short);
        }
        books.give_up(&going);
        let mut wanted = 0;
        let mut opened = Vec::with_capacity(needs.len());
        for Need { account, bytes } in needs {
            if counts_in_total(Some(account)) {
                wanted += bytes;
            }
            opened.push((books.open(Some(account), *bytes), *bytes));
        }
        let more = books.hold_back(&going, wanted);
        drop(books);
        old.iter().for_each(|charge| charge.empty());
        let charges = opened.into_iter();
        Ok(Exchanged {
            charges: charges
                .map(|(account, bytes)| Charge::new(self.clone(), account, bytes))
                .collect(),
            rest: self.rest(more),
        })
    }

    /// [`take`](Self::take), in place of `old`, which are in nobody's account. With what is left of these, as in
    /// [`exchange`](Self::exchange).
    ///
    /// # Errors
    /// As [`take`](Self::take); nothing is changed then. What is given as in use is what there is besides `old`.
    pub(crate) fn take_in_place(
        &self,
        old: &[&Charge],
        account: Option<&Account>,
        bytes: u64,
    ) -> Result<(Charge, Option<Charge>), Error> {
        let going = Going::of(old);
        let mut books = self.0.lock(); // E14
        books.check(account, bytes, going.sums.total)?;
        books.give_up(&going);
        let wanted = if counts_in_total(account) { bytes } else { 0 };
        let account = books.open(account, bytes);
        let more = books.hold_back(&going, wanted);
        drop(books);
        old.iter().for_each(|charge| charge.empty());
        Ok((Charge::new(self.clone(), account, bytes), self.rest(more)))
    }

    fn rest(&self, bytes: u64) -> Option<Charge> {
        (bytes > 0).then(|| Charge::going(self.clone(), bytes))
    }
}
