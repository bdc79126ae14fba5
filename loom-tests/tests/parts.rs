//! The parts beside the core: names, labels, pictures, the ledger.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::thread;
use weighbridge::__loom::labels::Labels;
use weighbridge::__loom::names::{Index, SetName, Taken};
use weighbridge::__loom::sync::atomic::{AtomicU64, Ordering};
use weighbridge::__loom::{Picture, Shot};
use weighbridge::ledger::Ledger;
use weighbridge_loom_tests::{model, saw};

/// Two publishes of one name: exactly one owns it, and the loser is told.
#[test]
fn name_claim() {
    model("name_claim", &["claimed", "live"], || {
        let index = Arc::new(Index::<u32>::new());
        let name = SetName::from("x");
        let other = Arc::clone(&index);
        let contender = {
            let name = name.clone();
            thread::spawn(move || other.claim(&name).map(|claim| claim.settle(2)).err())
        };
        let mine = index.claim(&name).map(|claim| claim.settle(1)).err();
        let theirs = contender.join().unwrap();
        let owner = index.lookup(name.as_ref());
        match (&mine, &theirs) {
            (None, Some(_)) => assert_eq!(owner, Some(1)),
            (Some(_), None) => assert_eq!(owner, Some(2)),
            both => panic!("{both:?}: one must win"),
        }
        saw(match mine.or(theirs) {
            Some(Taken::Claimed) => "claimed",
            _ => "live",
        });
    });
}

/// A claim that is dropped frees the name.
#[test]
fn name_unclaim() {
    model("name_unclaim", &["taken", "free"], || {
        let index = Arc::new(Index::<u32>::new());
        let name = SetName::from("x");
        let other = Arc::clone(&index);
        let gives_up = {
            let name = name.clone();
            thread::spawn(move || drop(other.claim(&name).ok()))
        };
        saw(if index.claim(&name).map(|claim| claim.settle(1)).is_ok() {
            "free"
        } else {
            "taken"
        });
        gives_up.join().unwrap();
        if index.lookup(name.as_ref()).is_none() {
            assert_eq!(index.len(), 0, "the dropped claim kept the name");
            assert!(index.claim(&name).is_ok());
        }
    });
}

/// Two names in one shard, published at once: neither projection is lost. A reader sees a settled
/// name for good.
#[test]
fn name_shard() {
    model("name_shard", &["seen", "not yet"], || {
        let index = Arc::new(Index::<u32>::new());
        let threads = ["a", "b"].map(|name| {
            let index = Arc::clone(&index);
            thread::spawn(move || {
                index.claim(&SetName::from(name)).ok().unwrap().settle(1);
                assert_eq!(index.lookup(name.into()), Some(1), "own name not visible");
            })
        });
        let first = index.lookup("a".into());
        let second = index.lookup("a".into());
        assert!(first.is_none() || second.is_some(), "a name went away");
        saw(if first.is_some() { "seen" } else { "not yet" });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(
            (index.lookup("a".into()), index.lookup("b".into())),
            (Some(1), Some(1))
        );
    });
}

/// A set is retired by somebody who found it before its name was settled. The publisher looks after
/// settling; whoever comes last leaves no name behind.
#[test]
fn name_early_retire() {
    model("name_early_retire", &["done"], || {
        let index = Arc::new(Index::<u32>::new());
        let alive = Arc::new(AtomicU64::new(1));
        let name = SetName::from("x");
        let claim = index.claim(&name).ok().unwrap();
        let retirer = {
            let (index, alive, name) = (Arc::clone(&index), Arc::clone(&alive), name.clone());
            thread::spawn(move || {
                alive.store(0, Ordering::Release);
                index.unlink(&name, |&record| record == 1);
            })
        };
        claim.settle(1);
        if alive.load(Ordering::Acquire) == 0 {
            index.unlink(&name, |&record| record == 1);
        }
        retirer.join().unwrap();
        assert_eq!(
            index.lookup(name.as_ref()),
            None,
            "a retired set kept its name"
        );
        assert!(index.claim(&name).is_ok(), "a retired set kept its claim");
        saw("done");
    });
}

/// A name changes hands: the old record never comes back after the new one was seen.
#[test]
fn name_reuse() {
    model("name_reuse", &["1", "2", "none"], || {
        let index = Arc::new(Index::<u32>::new());
        let name = SetName::from("x");
        index.claim(&name).ok().unwrap().settle(1);
        let writer = {
            let (index, name) = (Arc::clone(&index), name.clone());
            thread::spawn(move || {
                index.unlink(&name, |&record| record == 1);
                index.claim(&name).ok().unwrap().settle(2);
            })
        };
        let (first, second) = (index.lookup(name.as_ref()), index.lookup(name.as_ref()));
        assert!(
            second >= first || second.is_none() && first == Some(1),
            "{first:?} {second:?}"
        );
        for seen in [first, second] {
            saw(seen.map_or("none".to_owned(), |record| record.to_string()));
        }
        writer.join().unwrap();
        assert_eq!(index.lookup(name.as_ref()), Some(2));
    });
}

/// An observer reads whole labels while they come and go, under the right generation.
#[test]
fn label_torn() {
    model("label_torn", &["a", "b", "nobody"], || {
        let labels = Arc::new(Labels::new());
        let first = labels.claim("aaaaaaaa", 1, 1, 11).unwrap();
        let writer = {
            let labels = Arc::clone(&labels);
            thread::spawn(move || {
                labels.release(first);
                let second = labels.claim("bbbbbbbb", 1, 2, 22).unwrap();
                labels.release(second);
            })
        };
        let mut nobody = true;
        for (birth, label, since_ns) in [(1, "aaaaaaaa", 11), (2, "bbbbbbbb", 22)] {
            for entry in labels.holders(1, birth) {
                assert_eq!(
                    (entry.label.as_str(), entry.since_ns),
                    (label, since_ns),
                    "torn"
                );
                saw(&label[..1]);
                nobody = false;
            }
        }
        if nobody {
            saw("nobody");
        }
        writer.join().unwrap();
        assert!(labels.holders(1, 1).is_empty() && labels.holders(1, 2).is_empty());
    });
}

/// Claims and releases race on the free list, in the way that a list without change counts gets
/// wrong: no two leases share an entry, none is lost.
#[test]
fn label_entries() {
    model("label_entries", &["done"], || {
        let labels = Arc::new(Labels::new());
        // All three entries exist and are free.
        let all = [0, 1, 2].map(|slot| labels.claim("x", slot, 0, 0).unwrap());
        all.map(|id| labels.release(id));
        let churn = {
            let labels = Arc::clone(&labels);
            thread::spawn(move || {
                let first = labels.claim("x", 1, 1, 0).unwrap();
                let second = labels.claim("x", 1, 2, 0).unwrap();
                labels.release(first);
                second
            })
        };
        let mine = labels.claim("x", 2, 1, 0).unwrap();
        let theirs = churn.join().unwrap();
        assert_ne!(mine, theirs, "two leases share an entry");
        let third = labels.claim("x", 3, 1, 0).expect("an entry was lost");
        assert!(
            third != mine && third != theirs,
            "two leases share an entry"
        );
        assert!(
            labels.claim("x", 4, 1, 0).is_none(),
            "an entry was made twice"
        );
        saw("done");
    });
}

/// Pictures never go back in time, and each shows at least what was asked for.
#[test]
fn picture() {
    model("picture", &["0", "1", "2"], || {
        let clock = Arc::new(AtomicU64::new(0));
        let picture = Arc::new(Picture::new(0u64));
        let look = |clock: &AtomicU64, picture: &Picture<u64>| {
            let now = clock.load(Ordering::Acquire);
            let shot = picture.look(now, || {
                let number = clock.load(Ordering::Acquire);
                Shot {
                    number,
                    content: number,
                }
            });
            assert_eq!(shot.number, shot.content);
            assert!(shot.number >= now, "older than asked for");
            shot.number
        };
        let observer = {
            let (clock, picture) = (Arc::clone(&clock), Arc::clone(&picture));
            thread::spawn(move || {
                let (first, second) = (look(&clock, &picture), look(&clock, &picture));
                assert!(second >= first, "a picture went back");
                saw(first.to_string());
            })
        };
        for now in 1..=2 {
            clock.store(now, Ordering::Release);
            let mine = look(&clock, &picture);
            assert!(picture.latest().number >= mine, "a picture went back");
        }
        observer.join().unwrap();
    });
}

/// The limit holds at every instant; what was refused was refused for a reason; the end is exact.
#[test]
fn ledger() {
    model("ledger", &["both", "one"], || {
        let ledger = Ledger::new(10);
        let other = ledger.clone();
        let thread = thread::spawn(move || {
            let charge = other.reserve(6);
            assert!(other.snapshot().total() <= 10);
            charge.is_ok()
        });
        let mine = ledger.reserve(6);
        let now = ledger.snapshot();
        assert!(now.total() <= 10 && now.peak <= 10, "over the limit");
        let fits = mine.is_ok();
        drop(mine);
        let theirs = thread.join().unwrap();
        assert!(fits || theirs, "both were refused");
        saw(if fits && theirs { "both" } else { "one" });
        assert_eq!(ledger.snapshot().total(), 0);
    });
}
