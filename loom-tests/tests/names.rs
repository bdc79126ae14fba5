//! Names: one owner, no lost projection, no old record behind a new one.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::names::{Index, NameRef, Projection, Seats, SetName, Taken};
use weighbridge::__loom::sync::atomic::{AtomicU64, Ordering};
use weighbridge::__loom::sync::contract;
use weighbridge_loom_tests::{model, saw};

/// Two publishes of one name: exactly one owns it, and the loser is told.
#[test]
fn name_claim() {
    model("name_claim", &["claimed", "live"], || {
        let index = Arc::new(Index::new());
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

/// Two publishes into a namespace with one seat, one of which gives up: there are never more names
/// than seats, and afterwards the count is exact.
#[test]
fn name_seats() {
    model("name_seats", &["both", "one"], || {
        let index = Arc::new(Index::new());
        let seats = Arc::new(Seats::default());
        seats.set_limit("t", Some(1));
        let gives_up = {
            let (index, seats) = (Arc::clone(&index), Arc::clone(&seats));
            thread::spawn(move || {
                let claim = index.claim(&SetName::from(("t", "a"))).ok().unwrap();
                let seat = seats.take("t");
                assert!(seats.count("t").0 <= 1, "more than its seats");
                drop(claim);
                seat.is_ok()
            })
        };
        let name = SetName::from(("t", "b"));
        let claim = index.claim(&name).ok().unwrap();
        let mine = match seats.take("t") {
            Ok(seat) => {
                seat.keep();
                claim.settle(1);
                true
            }
            Err(full) => {
                assert_eq!((full.taken, full.limit), (1, 1));
                drop(claim);
                false
            }
        };
        assert!(seats.count("t").0 <= 1, "more than its seats");
        let theirs = gives_up.join().unwrap();
        assert!(mine || theirs, "both were refused");
        saw(if mine && theirs { "both" } else { "one" });
        assert_eq!(seats.count("t").0, usize::from(mine));
        assert_eq!(index.len(), usize::from(mine));
        if index.unlink(&name, |record| record == 1) {
            seats.give_back("t");
        }
        assert_eq!((seats.count("t").0, index.len()), (0, 0));
    });
}

/// A claim that is dropped frees the name.
#[test]
fn name_unclaim() {
    model("name_unclaim", &["taken", "free"], || {
        let index = Arc::new(Index::new());
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
        let index = Arc::new(Index::new());
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
    model(
        "name_early_retire",
        &["retired before", "retired after"],
        || {
            let index = Arc::new(Index::new());
            let alive = Arc::new(AtomicU64::new(1));
            let name = SetName::from("x");
            let claim = index.claim(&name).ok().unwrap();
            let retirer = {
                let (index, alive, name) = (Arc::clone(&index), Arc::clone(&alive), name.clone());
                thread::spawn(move || {
                    alive.store(0, Ordering::Release);
                    index.unlink(&name, |record| record == 1);
                })
            };
            claim.settle(1);
            if alive.load(Ordering::Acquire) == 0 {
                index.unlink(&name, |record| record == 1);
                saw("retired before");
            } else {
                saw("retired after");
            }
            retirer.join().unwrap();
            assert_eq!(
                index.lookup(name.as_ref()),
                None,
                "a retired set kept its name"
            );
            assert!(index.claim(&name).is_ok(), "a retired set kept its claim");
        },
    );
}

/// A name changes hands: the old record never comes back after the new one was seen.
#[test]
fn name_reuse() {
    model("name_reuse", &["1", "2", "none"], || {
        let index = Arc::new(Index::new());
        let name = SetName::from("x");
        index.claim(&name).ok().unwrap().settle(1);
        let writer = {
            let (index, name) = (Arc::clone(&index), name.clone());
            thread::spawn(move || {
                index.unlink(&name, |record| record == 1);
                index.claim(&name).ok().unwrap().settle(2);
            })
        };
        let (first, second) = (index.lookup(name.as_ref()), index.lookup(name.as_ref()));
        let legal = [
            [Some(1), Some(1)],
            [Some(1), None],
            [Some(1), Some(2)],
            [None, None],
            [None, Some(2)],
            [Some(2), Some(2)],
        ];
        assert!(legal.contains(&[first, second]), "{first:?} {second:?}");
        for seen in [first, second] {
            saw(seen.map_or("none".to_owned(), |record| record.to_string()));
        }
        writer.join().unwrap();
        assert_eq!(index.lookup(name.as_ref()), Some(2));
    });
}

/// Who gets a name that was just freed finds nothing under it: the projection is emptied before the
/// authority lets go.
#[test]
fn name_handover() {
    model("name_handover", &["taken", "free"], || {
        let index = Arc::new(Index::new());
        let name = SetName::from("x");
        index.claim(&name).ok().unwrap().settle(1);
        let retirer = {
            let (index, name) = (Arc::clone(&index), name.clone());
            thread::spawn(move || index.unlink(&name, |record| record == 1))
        };
        match index.claim(&name) {
            Ok(claim) => {
                assert_eq!(index.lookup(name.as_ref()), None, "the old tenant's record");
                claim.settle(2);
                assert_eq!(index.lookup(name.as_ref()), Some(2));
                saw("free");
            }
            Err(taken) => {
                assert_eq!(taken, Taken::Live(1));
                saw("taken");
            }
        };
        retirer.join().unwrap();
    });
}

/// Who is told that a name means something finds it by lookup: the projection is filled before the
/// authority says so.
#[test]
fn name_told() {
    model("name_told", &["claimed", "live"], || {
        let index = Arc::new(Index::new());
        let name = SetName::from("x");
        let claim = index.claim(&name).ok().unwrap();
        let contender = {
            let (index, name) = (Arc::clone(&index), name.clone());
            thread::spawn(move || match index.claim(&name).err() {
                Some(Taken::Live(record)) => {
                    assert_eq!(index.lookup(name.as_ref()), Some(record), "told, not found");
                    saw("live");
                }
                Some(Taken::Claimed) => saw("claimed"),
                None => panic!("a claimed name was free"),
            })
        };
        claim.settle(1);
        contender.join().unwrap();
    });
}

/// A record that is found is whole: what its publisher wrote before settling is seen.
#[test]
fn name_whole() {
    model("name_whole", &["found", "not yet"], || {
        let index = Arc::new(Index::new());
        let plot = Arc::new(Plot(UnsafeCell::new(0)));
        let name = SetName::from("x");
        let reader = {
            let (index, plot, name) = (Arc::clone(&index), Arc::clone(&plot), name.clone());
            thread::spawn(move || match index.lookup(name.as_ref()) {
                Some(record) => {
                    assert_eq!(record, 1);
                    // SAFETY: written before it was settled; the checker reports it otherwise.
                    assert_eq!(plot.0.with(|at| unsafe { *at }), 7);
                    saw("found");
                }
                None => saw("not yet"),
            })
        };
        let claim = index.claim(&name).ok().unwrap();
        // SAFETY: nobody looks at it before the name is settled.
        plot.0.with_mut(|at| unsafe { *at = 7 });
        claim.settle(1);
        reader.join().unwrap();
    });
}

struct Plot(UnsafeCell<u64>);
// SAFETY: written before it is shared, read afterwards; that this is so is what the model checks.
unsafe impl Send for Plot {}
// SAFETY: as above.
unsafe impl Sync for Plot {}

/// One name goes while another of the same shard comes: neither change is lost.
#[test]
fn name_beside() {
    model("name_beside", &["gone", "there"], || {
        let index = Arc::new(Index::new());
        let (old, new) = (SetName::from("a"), SetName::from("b"));
        index.claim(&old).ok().unwrap().settle(1);
        let retirer = {
            let (index, old) = (Arc::clone(&index), old.clone());
            thread::spawn(move || index.unlink(&old, |record| record == 1))
        };
        index.claim(&new).ok().unwrap().settle(2);
        let seen = index.lookup(old.as_ref());
        saw(if seen.is_some() { "there" } else { "gone" });
        retirer.join().unwrap();
        let found = (index.lookup(old.as_ref()), index.lookup(new.as_ref()));
        assert_eq!(found, (None, Some(2)), "a change was lost");
    });
}

/// Many names are settled at once beside a single one of the same shard: none is lost, and who sees the last of
/// the many sees those before it.
#[test]
fn name_bulk() {
    model("name_bulk", &["all", "none"], || {
        let index = Arc::new(Index::new());
        let single = {
            let index = Arc::clone(&index);
            thread::spawn(move || index.claim(&SetName::from("c")).ok().unwrap().settle(3))
        };
        let many = {
            let index = Arc::clone(&index);
            thread::spawn(move || {
                let claim = |name| index.claim(&SetName::from(name)).ok().unwrap();
                index.settle_many([(claim("a"), 1), (claim("b"), 2)]);
            })
        };
        let (second, first) = (index.lookup("b".into()), index.lookup("a".into()));
        assert!(
            second.is_none() || first == Some(1),
            "one before it is missing"
        );
        saw(if second.is_some() { "all" } else { "none" });
        single.join().unwrap();
        many.join().unwrap();
        let found = ["a", "b", "c"].map(|name| index.lookup(name.into()));
        assert_eq!(found, [Some(1), Some(2), Some(3)]);
        assert_eq!(index.len(), 3);
    });
}

fn insert(projection: &Projection, name: &str, means: u64) {
    // All in one bucket.
    projection.write(1).insert(1, &NameRef::from(name), means);
}

fn remove(projection: &Projection, name: &str) {
    projection.write(1).remove(1, &NameRef::from(name));
}

fn find(projection: &Projection, name: &str) -> Option<u64> {
    projection.find(1, &NameRef::from(name))
}

/// A block is used again while somebody reads it: what it says is one name's, all of it. The two have one hash, or
/// the reader would hardly come that far.
#[test]
fn name_block() {
    model("name_block", &["1", "none"], || {
        let projection = Arc::new(Projection::new());
        insert(&projection, "a", 1);
        let writer = {
            let projection = Arc::clone(&projection);
            thread::spawn(move || {
                remove(&projection, "a");
                insert(&projection, "b", 2);
            })
        };
        let found = find(&projection, "a");
        assert!(matches!(found, None | Some(1)), "{found:?}");
        saw(found.map_or("none".to_owned(), |means| means.to_string()));
        writer.join().unwrap();
        assert_eq!(find(&projection, "a"), None);
        assert_eq!(find(&projection, "b"), Some(2));
    });
}

/// A place gets a block that was made after all that the reader has seen, while it is between the hash and the block.
#[test]
fn name_place() {
    model("name_place", &["1", "none"], || {
        let projection = Arc::new(Projection::new());
        insert(&projection, "a", 1);
        let writer = {
            let projection = Arc::clone(&projection);
            thread::spawn(move || {
                remove(&projection, "a");
                // Two lines: not the block that went, but one of a slab that is made now.
                insert(&projection, &"b".repeat(41), 2);
            })
        };
        let found = find(&projection, "a");
        assert!(matches!(found, None | Some(1)), "{found:?}");
        saw(found.map_or("none".to_owned(), |means| means.to_string()));
        writer.join().unwrap();
        assert_eq!(find(&projection, "a"), None);
    });
}

/// A reader may be in a table that is out of use, while a name that is in it goes and its block is used again.
#[test]
fn name_kept() {
    model("name_kept", &["a", "d", "neither"], || {
        let projection = Arc::new(Projection::new());
        insert(&projection, "a", 1);
        insert(&projection, "b", 2);
        let writer = {
            let projection = Arc::clone(&projection);
            thread::spawn(move || {
                insert(&projection, "c", 3);
                remove(&projection, "a");
                insert(&projection, "d", 4);
            })
        };
        let (a, d) = (find(&projection, "a"), find(&projection, "d"));
        assert!(
            matches!(a, None | Some(1)) && matches!(d, None | Some(4)),
            "{a:?} {d:?}"
        );
        assert_eq!(find(&projection, "b"), Some(2), "a name went away");
        saw(match (a, d) {
            (Some(_), _) => "a",
            (_, Some(_)) => "d",
            _ => "neither",
        });
        writer.join().unwrap();
        let found = ["a", "b", "c", "d"].map(|name| find(&projection, name));
        assert_eq!(found, [None, Some(2), Some(3), Some(4)]);
    });
}

/// The same name comes back into the block that it had: its old record does not come back after its new one was
/// seen, and what was written before it was settled anew is there.
#[test]
fn name_again() {
    model("name_again", &["1", "2", "none"], || {
        let projection = Arc::new(Projection::new());
        let plot = Arc::new(Plot(UnsafeCell::new(0)));
        insert(&projection, "a", 1);
        let writer = {
            let (projection, plot) = (Arc::clone(&projection), Arc::clone(&plot));
            thread::spawn(move || {
                remove(&projection, "a");
                // SAFETY: nobody looks at it before the name means 2.
                plot.0.with_mut(|at| unsafe { *at = 7 });
                insert(&projection, "a", 2);
            })
        };
        let found = [find(&projection, "a"), find(&projection, "a")];
        let illegal = [[Some(2), Some(1)], [Some(2), None], [None, Some(1)]];
        assert!(!illegal.contains(&found), "{found:?}");
        if found.contains(&Some(2)) {
            // SAFETY: written before the name meant 2; the checker reports it otherwise.
            assert_eq!(plot.0.with(|at| unsafe { *at }), 7);
        }
        for means in found {
            saw(means.map_or("none".to_owned(), |means| means.to_string()));
        }
        writer.join().unwrap();
        assert_eq!(find(&projection, "a"), Some(2));
    });
}

/// A name that is there is found while its bucket goes on in another one, and while that gets a longer table: it
/// never goes away in between.
#[test]
fn name_grow() {
    model("name_grow", &["two", "three", "neither"], || {
        let projection = Arc::new(Projection::new());
        insert(&projection, "a", 1);
        let writer = {
            let projection = Arc::clone(&projection);
            thread::spawn(move || {
                insert(&projection, "b", 2);
                insert(&projection, "c", 3);
            })
        };
        let (third, second) = (find(&projection, "c"), find(&projection, "b"));
        assert!(
            third.is_none() || second == Some(2),
            "one before it is missing"
        );
        assert_eq!(find(&projection, "a"), Some(1), "a name went away");
        saw(match (second, third) {
            (None, _) => "neither",
            (_, None) => "two",
            _ => "three",
        });
        writer.join().unwrap();
        let found = ["a", "b", "c"].map(|name| find(&projection, name));
        assert_eq!(found, [Some(1), Some(2), Some(3)]);
    });
}

/// A name behind another one in its bucket is found while that one goes and a third takes its place.
#[test]
fn name_behind() {
    model("name_behind", &["before", "after", "between"], || {
        let projection = Arc::new(Projection::new());
        insert(&projection, "a", 1);
        insert(&projection, "b", 2);
        let writer = {
            let projection = Arc::clone(&projection);
            thread::spawn(move || {
                remove(&projection, "a");
                insert(&projection, "c", 3);
            })
        };
        assert_eq!(find(&projection, "b"), Some(2), "a name went away");
        saw(match (find(&projection, "a"), find(&projection, "c")) {
            (Some(1), _) => "before",
            (None, Some(3)) => "after",
            (None, None) => "between",
            both => panic!("{both:?}"),
        });
        writer.join().unwrap();
        let found = ["a", "b", "c"].map(|name| find(&projection, name));
        assert_eq!(found, [None, Some(2), Some(3)]);
    });
}

/// dashmap's mock keeps the contract that the real one is tested against.
#[test]
fn contract_map() {
    model("contract_map", &["done"], || {
        contract::map_answers();
        contract::map_races();
        saw("done");
    });
}

/// arc-swap's mock keeps the contract that the real one is tested against.
#[test]
fn contract_swap() {
    model("contract_swap", &["done"], || {
        contract::swap_answers();
        contract::swap_races();
        saw("done");
    });
}
