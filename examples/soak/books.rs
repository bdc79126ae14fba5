//! What the ledger must say: the sum over bodies that are known to be there.
//!
//! Arithmetic only; who is asked, and when, is in `meeting`.

use std::collections::HashMap;

use weighbridge::{Identity, LedgerSnapshot, SetHandle};

use crate::check::{Charged, Facts};

/// A number may be at two places: a flat weight that is unregistered and registered again while somebody
/// holds it. But not in one set, and no place has two numbers.
type Key = (u64, usize);

/// Every body that is there, once, with the strongest reason why.
#[derive(Debug, Default)]
pub struct Books {
    reasons: HashMap<Key, (Reason, u64)>,
    identities: HashMap<Identity, Key>,
    /// Kept, and neither current nor leased: known by what they are only.
    kept: HashMap<Identity, u64>,
    /// Where a set has a body, and what a place has.
    of_sets: HashMap<(SetHandle, u64), Charged>,
    at_places: HashMap<usize, Charged>,
    /// The first two that cannot both be.
    wrong: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Leased,
    Kept,
    Current,
}

impl Books {
    fn enter(&mut self, key: Key, bytes: u64, reason: Reason) {
        let entry = self.reasons.entry(key).or_insert((reason, bytes));
        entry.0 = entry.0.max(reason);
    }

    fn enter_set(&mut self, facts: &Facts, reason: Reason) {
        let own = facts.own;
        if own.bytes > 0 {
            let before = *self.of_sets.entry((facts.handle, own.uid)).or_insert(own);
            self.compare(before, own, "one set has the same bytes twice");
        }
        for body in [Some(own), facts.shared].into_iter().flatten() {
            if body.bytes > 0 {
                let before = *self.at_places.entry(body.place).or_insert(body);
                self.compare(before, body, "one place has two bodies");
                self.enter((body.uid, body.place), body.bytes, reason);
            }
        }
        self.identities
            .insert(facts.identity.clone(), (own.uid, own.place));
    }

    fn compare(&mut self, before: Charged, now: Charged, wrong: &str) {
        if before != now && self.wrong.is_none() {
            self.wrong = Some(format!("{wrong}: {before:?} and {now:?}"));
        }
    }

    /// A set that is current.
    pub fn current(&mut self, facts: &Facts) {
        self.enter_set(facts, Reason::Current);
    }

    /// A set that somebody leased. Enter these and the current ones before what is kept.
    pub fn leased(&mut self, facts: &Facts) {
        self.enter_set(facts, Reason::Leased);
    }

    /// A generation that is kept for a rollback.
    pub fn kept(&mut self, identity: &Identity, bytes: u64) {
        match self.identities.get(identity) {
            Some(&key) => self.enter(key, bytes, Reason::Kept),
            None => {
                self.kept.insert(identity.clone(), bytes);
            }
        }
    }

    fn sum(&self, reason: Reason) -> u64 {
        let bodies = self.reasons.values();
        bodies.filter(|body| body.0 == reason).map(|it| it.1).sum()
    }

    /// Resident, kept, retired.
    pub fn totals(&self) -> [u64; 3] {
        let kept = self.sum(Reason::Kept) + self.kept.values().sum::<u64>();
        [self.sum(Reason::Current), kept, self.sum(Reason::Leased)]
    }

    /// What the ledger says and the books do not, or what cannot be at all.
    pub fn disagree(&self, ledger: &LedgerSnapshot) -> Option<String> {
        if let Some(wrong) = &self.wrong {
            return Some(wrong.clone());
        }
        let said = [ledger.resident, ledger.kept, ledger.retired];
        let known = self.totals();
        (said != known || ledger.reserved != 0).then(|| {
            format!(
                "resident, kept, retired are {known:?} by what is there and {said:?} in the ledger, \
                 which has {} reserved",
                ledger.reserved
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighbridge::source::InMemory;
    use weighbridge::{Dtype, WeightRegistry};

    fn at(place: usize, bytes: u64) -> Charged {
        let uid = place as u64;
        Charged { uid, place, bytes }
    }

    fn facts(uid: u64, bytes: u64, shared: Option<Charged>) -> Facts {
        let registry = WeightRegistry::builder().build().unwrap();
        let tensor = InMemory::new().tensor("t0", Dtype::U8, [1], [1]).unwrap();
        Facts {
            role: 0,
            handle: registry.publish("any", tensor).unwrap(),
            generation: uid,
            identity: Identity::Declared(format!("{uid}").into()),
            base: None,
            stamp: 0,
            own: at(uid as usize, bytes),
            shared,
        }
    }

    #[test]
    fn each_body_counts_once_and_for_its_strongest_reason() {
        let mut books = Books::default();
        let lent = facts(1, 64, None);
        books.current(&lent);
        books.leased(&lent);
        books.leased(&facts(2, 128, None));
        books.leased(&facts(2, 128, None));
        books.leased(&facts(3, 256, Some(lent.own)));
        books.leased(&facts(4, 512, Some(at(9, 32))));
        assert_eq!(books.totals(), [64, 0, 128 + 256 + 512 + 32]);
    }

    #[test]
    fn bytes_that_are_there_twice_count_twice() {
        let mut books = Books::default();
        let (again, mut first) = (facts(1, 64, None), facts(2, 64, None));
        first.own.uid = again.own.uid;
        first.identity = again.identity.clone();
        books.current(&again);
        books.leased(&first);
        assert_eq!((books.totals(), &books.wrong), ([64, 0, 64], &None));
    }

    #[test]
    fn two_that_cannot_both_be_are_seen() {
        let now = facts(1, 64, None);
        let mut copied = now.clone();
        copied.generation += 1;
        copied.own.place += 1;
        let mut gone = facts(2, 64, None);
        gone.own.place = now.own.place;
        for (leased, what) in [(copied, "one set"), (gone, "one place")] {
            let mut books = Books::default();
            books.current(&now);
            books.leased(&leased);
            let wrong = books.wrong.expect(what);
            assert!(wrong.starts_with(what), "{wrong}");
        }
    }

    #[test]
    fn what_is_kept_is_not_what_is_current_and_takes_what_is_leased() {
        let mut books = Books::default();
        let (now, old) = (facts(1, 64, None), facts(2, 128, None));
        books.current(&now);
        books.leased(&old);
        books.kept(&now.identity, 64);
        books.kept(&old.identity, 128);
        books.kept(&Identity::Declared("older".into()), 256);
        books.kept(&Identity::Declared("older".into()), 256);
        assert_eq!(books.totals(), [64, 128 + 256, 0]);
    }

    #[test]
    fn a_byte_more_or_a_reservation_is_seen() {
        let mut books = Books::default();
        books.current(&facts(1, 64, None));
        let registry = WeightRegistry::builder().build().unwrap();
        let tensor = InMemory::new().tensor("t0", Dtype::U8, [1], [1]).unwrap();
        registry.publish("one", tensor).unwrap();
        assert_eq!(books.disagree(&registry.ledger()), None);
        let account = weighbridge::Account::namespace("somebody");
        let byte = registry.reserve_in(&account, 1).unwrap();
        assert!(books.disagree(&registry.ledger()).is_some());
        drop(byte);
        assert_eq!(books.disagree(&registry.ledger()), None);
    }
}
