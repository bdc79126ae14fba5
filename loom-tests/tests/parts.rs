//! The parts beside the core: pictures, the ledger. Names and labels have files of their own.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::thread;
use weighbridge::__loom::sync::atomic::{AtomicU64, Ordering};
use weighbridge::__loom::{Picture, Shot};
use weighbridge::ledger::Ledger;
use weighbridge_loom_tests::{model, saw};

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
