//! The ledger's promises, without a registry.

use super::*;
use crate::error::Error;

#[test]
fn every_state_counts_and_the_end_is_exact() {
    let ledger = Ledger::new(100);
    let a = ledger.reserve(60).unwrap();
    assert!(matches!(
        ledger.reserve(41).unwrap_err(),
        Error::OverLimit {
            requested: 41,
            in_use: 60,
            limit: 100
        }
    ));
    a.settle();
    let b = ledger.reserve(40).unwrap();
    a.retire();
    let now = ledger.snapshot();
    assert_eq!(
        (now.reserved, now.resident, now.retired, now.peak),
        (40, 0, 60, 100)
    );
    assert!(
        ledger.reserve(1).is_err(),
        "retired bytes count until they are back"
    );
    drop(a);
    drop(b);
    let now = ledger.snapshot();
    assert_eq!((now.total(), now.peak), (0, 100));
}

#[test]
fn the_total_is_all_of_it() {
    let snapshot = LedgerSnapshot {
        reserved: 1,
        resident: 2,
        kept: 4,
        retired: 8,
        pooled: 16,
        limit: 64,
        soft_limit: 64,
        peak: 32,
    };
    assert_eq!(snapshot.total(), 31);
}

/// Only of generations that were current, each once, also where the next one has taken them over.
#[test]
fn what_has_come_back_is_counted_once() {
    let ledger = Ledger::new(100);
    drop(ledger.reserve(50).unwrap());
    let staged = ledger.reserve(40).unwrap();
    staged.settle();
    staged.unsettle();
    drop(staged);
    assert_eq!(ledger.reclaimed(), 0, "never current");
    let current = ledger.reserve(60).unwrap();
    current.settle();
    current.retire();
    assert_eq!(ledger.reclaimed(), 0, "not back yet");
    let next = current.reuse(ledger.reserve(10).unwrap());
    assert_eq!(ledger.reclaimed(), 60);
    drop(next);
    assert_eq!(ledger.reclaimed(), 60, "never current as a whole");
    let last = ledger.reserve(7).unwrap();
    last.settle();
    last.retire();
    drop(last);
    assert_eq!(ledger.reclaimed(), 67);
}

#[test]
fn the_state_is_the_strongest_of_the_uses() {
    let ledger = Ledger::new(100);
    let states = || {
        let now = ledger.snapshot();
        (now.reserved, now.resident, now.kept, now.retired)
    };
    let charge = ledger.reserve(10).unwrap();
    assert_eq!(states(), (10, 0, 0, 0));
    charge.settle();
    charge.unsettle();
    assert_eq!(states(), (10, 0, 0, 0), "refused: a reservation again");
    charge.settle();
    charge.keep();
    charge.retire();
    assert_eq!(states(), (0, 0, 10, 0));
    charge.settle();
    charge.forget();
    assert_eq!(states(), (0, 10, 0, 0), "rolled back to");
    charge.settle();
    charge.retire();
    assert_eq!(states(), (0, 10, 0, 0), "rebound: the new one has them");
    charge.retire();
    assert_eq!(states(), (0, 0, 0, 10));
    charge.settle();
    charge.unsettle();
    assert_eq!(states(), (0, 0, 0, 10), "refused: as it was");
    drop(charge);
    assert_eq!(states(), (0, 0, 0, 0));
}

#[test]
fn a_charge_that_is_used_again_never_lets_go_of_its_bytes() {
    let ledger = Ledger::new(100);
    let old = ledger.reserve(60).unwrap();
    old.settle();
    old.retire();
    let more = ledger.reserve(30).unwrap();
    let both = old.reuse(more);
    let now = ledger.snapshot();
    assert_eq!((now.reserved, now.total(), both.bytes()), (90, 90, 90));
    both.shrink_to(70);
    assert_eq!(ledger.snapshot().total(), 70);
    both.shrink_to(80);
    assert_eq!(both.bytes(), 70, "it only shrinks");
    drop(both);
    assert_eq!((ledger.snapshot().total(), ledger.snapshot().peak), (0, 90));
}

#[test]
fn a_reservation_near_the_end_of_u64_does_not_wrap() {
    let ledger = Ledger::new(u64::MAX);
    let _most = ledger.reserve(u64::MAX - 1).unwrap();
    assert!(ledger.reserve(2).is_err());
    assert!(ledger.reserve(1).is_ok());
}

#[test]
fn racing_reservations_never_pass_the_limit() {
    let ledger = Ledger::new(10);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..2_000u64 {
                    if let Ok(charge) = ledger.reserve(1 + round % 7) {
                        charge.settle();
                        assert!(ledger.snapshot().total() <= 10);
                        charge.retire();
                    }
                }
            });
        }
    });
    let end = ledger.snapshot();
    assert_eq!(end.total(), 0);
    assert!(end.peak <= 10 && end.peak > 0);
}

fn tenant(name: &str) -> Account {
    Account::namespace(name)
}

#[test]
fn an_account_says_whose_it_is() {
    let said = ["", "a\"b"].map(|name| Account::namespace(name).to_string());
    assert_eq!(said, ["the default namespace", "namespace \"a\\\"b\""]);
    let said = Account::foreign("gpu0").to_string();
    assert_eq!(said, "foreign account \"gpu0\"");
}

#[test]
fn an_account_counts_beside_the_total_and_is_asked_first() {
    let ledger = Ledger::new(100);
    ledger.set_limit(&tenant("a"), Some(50));
    let a = ledger.reserve_in(&tenant("a"), 40).unwrap();
    let b = ledger.reserve_in(&tenant("b"), 60).unwrap();
    let totals = || ["a", "b"].map(|name| ledger.account(&tenant(name)).total());
    assert_eq!((totals(), ledger.snapshot().total()), ([40, 60], 100));
    // Both are full: making room elsewhere would not help "a".
    let Err(Error::OverAccountLimit {
        account,
        requested: 11,
        in_use: 40,
        limit: 50,
    }) = ledger.reserve_in(&tenant("a"), 11)
    else {
        panic!("not refused by the account")
    };
    assert_eq!(account, tenant("a"));
    let over = ledger.reserve_in(&tenant("a"), 10).unwrap_err();
    assert!(matches!(over, Error::OverLimit { in_use: 100, .. }));
    assert_eq!((totals(), ledger.snapshot().total()), ([40, 60], 100));
    drop(b);
    drop(a);
    assert_eq!((totals(), ledger.snapshot().total()), ([0, 0], 0));
    let peaks = ["a", "b"].map(|name| ledger.account(&tenant(name)).peak);
    assert_eq!(peaks, [40, 0], "one without limit is forgotten");
    assert_eq!(ledger.accounts().len(), 1);
    ledger.set_limit(&tenant("a"), None);
    assert_eq!(ledger.accounts(), []);
}

#[test]
fn foreign_memory_is_apart_from_the_total() {
    let ledger = Ledger::new(10);
    let gpu = Account::foreign("gpu0");
    ledger.set_limit(&gpu, Some(1000));
    let cache = ledger.reserve_in(&gpu, 900).unwrap();
    assert!(ledger.reserve_in(&gpu, 101).is_err());
    assert_eq!(ledger.snapshot().total(), 0);
    cache.settle();
    cache.retire();
    assert_eq!(ledger.account(&gpu).retired, 900);
    assert!(!cache.assign("a").unwrap(), "no namespace has it");
    assert_eq!(ledger.account(&tenant("a")).total(), 0);
    // A namespace of the same name is another account.
    assert_eq!(ledger.account(&tenant("gpu0")).total(), 0);
    drop(cache);
    assert_eq!(ledger.account(&gpu).total(), 0);
}

#[test]
fn every_state_counts_in_the_account_too() {
    let ledger = Ledger::new(100);
    let states = || {
        let now = ledger.account(&tenant("a"));
        let total = ledger.snapshot();
        assert_eq!((now.limit, total.limit), (u64::MAX, 100));
        let pick = |s: LedgerSnapshot| (s.reserved, s.resident, s.kept, s.retired);
        assert_eq!(pick(now), pick(total));
        pick(now)
    };
    let charge = ledger.reserve_in(&tenant("a"), 10).unwrap();
    assert_eq!(states(), (10, 0, 0, 0));
    charge.settle();
    assert_eq!(states(), (0, 10, 0, 0));
    charge.keep();
    charge.retire();
    assert_eq!(states(), (0, 0, 10, 0));
    charge.forget();
    assert_eq!(states(), (0, 0, 0, 10));
    let more = ledger.reserve_in(&tenant("a"), 5).unwrap();
    let both = charge.reuse(more);
    assert_eq!(states(), (15, 0, 0, 0));
    both.shrink_to(12);
    assert_eq!(states(), (12, 0, 0, 0));
    drop(both);
    assert_eq!(states(), (0, 0, 0, 0));
    assert_eq!(ledger.accounts(), []);
}

#[test]
fn a_charge_is_assigned_once_or_not_at_all() {
    let ledger = Ledger::new(100);
    ledger.set_limit(&tenant("a"), Some(10));
    let charge = ledger.reserve(11).unwrap();
    assert!(matches!(
        charge.assign("a").unwrap_err(),
        Error::OverAccountLimit {
            requested: 11,
            in_use: 0,
            limit: 10,
            ..
        }
    ));
    assert_eq!(charge.account(), None, "refused: as it was");
    assert!(charge.assign("b").unwrap());
    assert!(!charge.assign("b").unwrap(), "it was there already");
    assert_eq!(charge.account(), Some(tenant("b")));
    let Err(Error::ChargedElsewhere {
        charged_to,
        offered_to,
    }) = charge.assign("a")
    else {
        panic!("it moved")
    };
    assert_eq!((charged_to, offered_to), (tenant("b"), tenant("a")));
    assert_eq!(ledger.account(&tenant("b")).reserved, 11);
    charge.unassign();
    charge.unassign();
    assert_eq!(ledger.account(&tenant("b")).total(), 0);
    assert_eq!(ledger.snapshot().total(), 11, "they are still taken");
    assert!(charge.assign("c").unwrap());
    drop(charge);
    assert_eq!(ledger.snapshot().total(), 0);
    assert_eq!(ledger.accounts().len(), 1, "the one with a limit");
}

#[test]
fn a_limit_below_what_is_in_use_takes_nothing_away() {
    let ledger = Ledger::new(100);
    let charge = ledger.reserve_in(&tenant("a"), 10).unwrap();
    ledger.set_limit(&tenant("a"), Some(5));
    charge.settle();
    assert!(ledger.reserve_in(&tenant("a"), 1).is_err());
    assert!(
        ledger.reserve_in(&tenant("a"), 0).is_ok(),
        "nothing always fits"
    );
    assert_eq!(ledger.account(&tenant("a")).resident, 10);
    drop(charge);
    assert!(ledger.reserve_in(&tenant("a"), 5).is_ok());
}

#[test]
fn accounts_near_the_end_of_u64_do_not_wrap() {
    let ledger = Ledger::new(u64::MAX);
    let gpu = Account::foreign("gpu0");
    let _most = ledger.reserve_in(&tenant("a"), u64::MAX - 1).unwrap();
    let _theirs = ledger.reserve_in(&gpu, u64::MAX).unwrap();
    assert!(ledger.reserve_in(&gpu, 1).is_err());
    assert!(ledger.reserve_in(&tenant("a"), 2).is_err());
    assert!(ledger.reserve_in(&tenant("b"), 2).is_err());
    let last = ledger.reserve(1).unwrap();
    assert!(last.assign("a").unwrap());
    ledger.set_limit(&tenant("a"), Some(0));
    assert!(matches!(
        ledger.reserve_in(&tenant("a"), u64::MAX),
        Err(Error::OverAccountLimit {
            in_use: u64::MAX,
            limit: 0,
            ..
        })
    ));
}

#[test]
fn racing_charges_pass_neither_limit() {
    let ledger = Ledger::new(10);
    let limits = [("a", 6u64), ("b", 7)];
    for (name, limit) in limits {
        ledger.set_limit(&tenant(name), Some(limit));
    }
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let ledger = &ledger;
            scope.spawn(move || {
                for round in 0..2_000u64 {
                    let (name, limit) = limits[(thread % 2) as usize];
                    let bytes = 1 + round % 4;
                    let charge = if thread < 4 {
                        ledger.reserve_in(&tenant(name), bytes)
                    } else {
                        let charge = ledger.reserve(bytes);
                        charge.and_then(|charge| charge.assign(name).map(|_| charge))
                    };
                    assert!(ledger.account(&tenant(name)).total() <= limit);
                    assert!(ledger.snapshot().total() <= 10);
                    if let Ok(charge) = charge {
                        charge.settle();
                        charge.retire();
                    }
                }
            });
        }
    });
    assert_eq!(ledger.snapshot().total(), 0);
    assert!(ledger.snapshot().peak <= 10);
    for (name, limit) in limits {
        let end = ledger.account(&tenant(name));
        assert_eq!(end.total(), 0);
        assert!(end.peak <= limit && end.peak > 0);
    }
}

/// Whoever waits for bytes hears of those that come back, of a higher limit, and of nothing else.
#[test]
fn the_bell_rings_for_what_comes_back() {
    use crate::core::{Bell, Keeper, Kept};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::Duration;

    /// Is looked at when it is rung for, and says so.
    struct Listens(Ledger, Sender<()>, Receiver<()>);
    impl Kept for Listens {
        fn listen(&mut self, bell: &Bell) -> bool {
            self.0.tell(Some(bell.clone()));
            true
        }
        fn may_go(&mut self) -> bool {
            let _ = self.1.send(());
            self.2.try_recv().is_ok()
        }
        fn broke(&mut self) {}
    }
    const SOON: Duration = Duration::from_secs(60);
    let ledger = Ledger::new(100);
    let (looked, looks) = channel();
    let (go, goes) = channel();
    let keeper = Arc::new(Keeper::new());
    keeper
        .try_keep(Listens(ledger.clone(), looked, goes))
        .unwrap();
    looks.recv_timeout(SOON).unwrap();
    let quiet = || looks.try_recv().is_err();
    let charge = ledger.reserve(60).unwrap();
    charge.settle();
    charge.retire();
    let nothing = ledger.reserve(0).unwrap();
    drop(nothing);
    assert!(quiet(), "nothing came back");
    charge.shrink_to(50);
    looks.recv_timeout(SOON).unwrap();
    drop(charge);
    looks.recv_timeout(SOON).unwrap();
    ledger.set_limit(&Account::namespace("a"), Some(7));
    looks.recv_timeout(SOON).unwrap();
    go.send(()).unwrap();
    drop(ledger.reserve(1).unwrap());
    let gone = std::iter::repeat_with(|| looks.recv_timeout(SOON)).find_map(Result::err);
    assert_eq!(gone, Some(RecvTimeoutError::Disconnected), "it may go");
}
