//! Which of the candidates go: enough of them, and no more than that.
//!
//! What lives here: the arithmetic. What does not: who may go and in which order (`room`), taking them.

use std::collections::BTreeMap;

use crate::ledger::{Account, Shortage};

/// What would come back if one of the candidates went.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) account: Account,
    pub(super) bytes: u64,
}

/// What goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Places in the offers, in their order.
    pub(super) taken: Vec<usize>,
    /// What is still lacking then.
    pub(super) left: Shortage,
}

impl Shortage {
    fn ease(&mut self, offer: &Offer) {
        self.total = self.total.saturating_sub(offer.bytes);
        if let Some(short) = self.accounts.get_mut(&offer.account) {
            *short = short.saturating_sub(offer.bytes);
            if *short == 0 {
                self.accounts.remove(&offer.account);
            }
        }
    }
}

/// By how much more than `short` comes back.
struct Excess<'s> {
    short: &'s Shortage,
    total: u64,
    accounts: BTreeMap<&'s Account, u64>,
}

impl<'s> Excess<'s> {
    fn of(short: &'s Shortage, taken: impl Iterator<Item = &'s Offer>) -> Self {
        let (mut total, mut accounts) = (0_u64, BTreeMap::new());
        for offer in taken {
            total = total.saturating_add(offer.bytes);
            *accounts.entry(&offer.account).or_insert(0_u64) += offer.bytes;
        }
        for (account, bytes) in &mut accounts {
            *bytes -= short.accounts.get(account).copied().unwrap_or(0);
        }
        Excess {
            short,
            total: total - short.total,
            accounts,
        }
    }

    /// Leaves `offer` where it is, if that is possible.
    fn spare(&mut self, offer: &Offer) -> bool {
        let Some(own) = self.accounts.get_mut(&offer.account) else {
            return false;
        };
        let is_short = self.short.accounts.contains_key(&offer.account);
        let spared = offer.bytes <= self.total && (!is_short || offer.bytes <= *own);
        if spared {
            self.total -= offer.bytes;
            *own = own.saturating_sub(offer.bytes);
        }
        spared
    }
}

/// Chooses among `offers`, which are in the order in which they should go. An account that is short is
/// helped by its own only, the total by all. If all together do not suffice, it takes what helps all the same:
/// of accounts that stay short, their own, and nothing for the total, which is not what is lacking. O(offers).
pub(super) fn choose(short: &Shortage, offers: &[Offer]) -> Choice {
    let mut left = short.clone();
    let mut goes = vec![false; offers.len()];
    for (goes, offer) in goes.iter_mut().zip(offers) {
        if left.accounts.contains_key(&offer.account) {
            left.ease(offer);
            *goes = true;
        }
    }
    // While an account is short, nothing else helps.
    let helps = left.accounts.is_empty();
    for (goes, offer) in goes.iter_mut().zip(offers) {
        if helps && left.total > 0 && !*goes {
            left.ease(offer);
            *goes = true;
        }
    }
    if left.is_none() {
        // What came early may have become unnecessary by what had to come after it. The last in the order
        // are spared first.
        let taken = offers.iter().zip(&goes);
        let taken = taken.filter_map(|(offer, goes)| goes.then_some(offer));
        let mut excess = Excess::of(short, taken);
        for (goes, offer) in goes.iter_mut().zip(offers).rev() {
            *goes = *goes && !excess.spare(offer);
        }
    }
    let goes = goes.into_iter().enumerate();
    Choice {
        taken: goes.filter_map(|(at, goes)| goes.then_some(at)).collect(),
        left,
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    fn account(name: &str) -> Account {
        Account::namespace(name)
    }

    fn offers(all: &[(&str, u64)]) -> Vec<Offer> {
        let offer = |&(name, bytes): &(&str, u64)| Offer {
            account: account(name),
            bytes,
        };
        all.iter().map(offer).collect()
    }

    fn short(total: u64, accounts: &[(&str, u64)]) -> Shortage {
        Shortage {
            total,
            accounts: accounts
                .iter()
                .map(|&(name, bytes)| (account(name), bytes))
                .collect(),
        }
    }

    fn taken(short: &Shortage, all: &[(&str, u64)]) -> Vec<usize> {
        let choice = choose(short, &offers(all));
        assert!(choice.left.is_none(), "{choice:?}");
        choice.taken
    }

    #[test]
    fn the_first_go_first_and_no_more_than_needed() {
        let all = [("", 4), ("", 4), ("", 4)];
        assert_eq!(taken(&short(1, &[]), &all), [0]);
        assert_eq!(taken(&short(5, &[]), &all), [0, 1]);
        assert_eq!(taken(&short(0, &[]), &all), [] as [usize; 0]);
        // The small one first, and then the big one makes it unnecessary.
        assert_eq!(taken(&short(8, &[]), &[("", 1), ("", 9)]), [1]);
    }

    #[test]
    fn an_account_is_helped_by_its_own_only() {
        let all = [("a", 4), ("b", 4), ("a", 4), ("b", 4)];
        assert_eq!(taken(&short(0, &[("b", 1)]), &all), [1]);
        assert_eq!(taken(&short(4, &[("b", 4)]), &all), [1]);
        assert_eq!(taken(&short(9, &[("b", 5)]), &all), [0, 1, 3]);
    }

    #[test]
    fn what_does_not_suffice_is_said_and_all_that_helps_is_taken() {
        let all = offers(&[("a", 4), ("b", 4)]);
        let choice = choose(&short(2, &[("b", 9)]), &all);
        assert_eq!(choice.taken, [1]);
        assert_eq!(choice.left, short(0, &[("b", 5)]));
        let choice = choose(&short(20, &[]), &all);
        assert_eq!((choice.taken, choice.left), (vec![0, 1], short(12, &[])));
        // The account stays short, so the total is not what it waits for.
        let choice = choose(&short(9, &[("b", 9)]), &all);
        assert_eq!(
            (choice.taken, choice.left),
            (vec![1], short(5, &[("b", 5)]))
        );
    }
}
