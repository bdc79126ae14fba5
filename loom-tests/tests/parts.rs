//! The parts beside the core: pictures, the ledger, turns at a tensor, layouts that are shared. Names and labels have files of their own.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::Picture;
use weighbridge::__loom::layout_of;
use weighbridge::__loom::sync::atomic::{AtomicU64, Ordering};
use weighbridge::__loom::turns::{Progress, Turns};
use weighbridge::layout::Interner;
use weighbridge::ledger::{Account, Ledger};
use weighbridge::{Dtype, Layout, Plan};
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
                (number, number)
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

/// Bytes go without a commit: no picture that is taken for somebody who knows of it shows them there.
#[test]
fn picture_moves() {
    model("picture_moves", &["there", "gone"], || {
        let gone = Arc::new(AtomicU64::new(0));
        let picture = Arc::new(Picture::new(0u64));
        // As the state word is looked at for a picture.
        let look = |gone: &AtomicU64, picture: &Picture<u64>| {
            let shot = picture.look(1, || (1, gone.load(Ordering::Relaxed)));
            shot.content
        };
        let observer = {
            let (gone, picture) = (Arc::clone(&gone), Arc::clone(&picture));
            thread::spawn(move || {
                let seen = look(&gone, &picture);
                saw(if seen == 0 { "there" } else { "gone" });
            })
        };
        gone.store(1, Ordering::Relaxed);
        picture.moved();
        assert_eq!(look(&gone, &picture), 1, "older than what its caller did");
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

/// One account, filled from two sides: by a reservation in it, and by one that is assigned to it while
/// somebody else assigns it, too. Neither the account nor the total is ever over its limit, and the two
/// who assign count it once.
#[test]
fn ledger_accounts() {
    model("ledger_accounts", &["reserved", "assigned", "both"], || {
        let account = Account::namespace("t");
        let ledger = Ledger::new(9);
        // Room for the assigned charge twice, or for either charge alone.
        ledger.set_limit(&account, Some(8));
        let look = |ledger: &Ledger| {
            let now = ledger.account(&Account::namespace("t"));
            assert!(now.total() <= 8 && now.peak <= 8, "the account is over");
            let total = ledger.snapshot();
            assert!(total.total() <= 9 && total.peak <= 9, "the total is over");
        };
        let other = ledger.clone();
        let reserves = thread::spawn(move || {
            let charge = other.reserve_in(&Account::namespace("t"), 5);
            look(&other);
            charge.is_ok()
        });
        let charge = Arc::new(ledger.reserve(4).unwrap());
        let same = Arc::clone(&charge);
        let again = thread::spawn(move || same.assign("t").is_ok());
        let first = charge.assign("t").is_ok();
        look(&ledger);
        let assigned = again.join().unwrap() || first;
        let reserved = reserves.join().unwrap();
        let counted = ledger.account(&account).total();
        assert_eq!(counted, if assigned { 4 } else { 0 });
        drop(charge);
        saw(match (reserved, assigned) {
            (true, true) => "both",
            (true, false) => "reserved",
            (false, true) => "assigned",
            (false, false) => panic!("both were refused"),
        });
        assert_eq!(ledger.snapshot().total(), 0);
        assert_eq!(ledger.account(&account).total(), 0);
    });
}

/// Two write the same tensor, and a third looks whether all is there: one writes at a time, goes on
/// where the last one stopped, and what is complete can be read.
#[test]
fn filling() {
    struct Tensor {
        turns: Turns,
        bytes: UnsafeCell<Vec<usize>>,
    }
    // SAFETY: what the model is there to find out.
    unsafe impl Sync for Tensor {}
    // SAFETY: as above.
    unsafe impl Send for Tensor {}
    fn write(tensor: &Tensor, who: usize) -> bool {
        let Some(mut turn) = tensor.turns.take(0) else {
            return false;
        };
        tensor.bytes.with_mut(|bytes| {
            // SAFETY: it is our turn; the checker reports who else is at it.
            let bytes = unsafe { &mut *bytes };
            assert_eq!(
                bytes.len(),
                turn.written(),
                "not where the last one stopped"
            );
            bytes.push(who);
        });
        turn.wrote(1);
        true
    }
    model("filling", &["busy", "sealed", "not yet"], || {
        let tensor = Arc::new(Tensor {
            turns: Turns::new(1),
            bytes: UnsafeCell::new(Vec::new()),
        });
        let [first, second] = [1, 2].map(|who| {
            let tensor = Arc::clone(&tensor);
            thread::spawn(move || write(&tensor, who))
        });
        let complete = Progress {
            written: 2,
            taken: false,
        };
        if tensor.turns.progress(0) == complete {
            // SAFETY: all turns are over.
            tensor
                .bytes
                .with(|bytes| assert_eq!(unsafe { &*bytes }.len(), 2));
            saw("sealed");
        } else {
            saw("not yet");
        }
        let wrote = [first, second].map(|writer| usize::from(writer.join().unwrap()));
        if wrote.contains(&0) {
            saw("busy");
        }
        let Progress { written, taken } = tensor.turns.progress(0);
        assert_eq!((written, taken), (wrote.iter().sum(), false));
    });
}

fn layout() -> Layout {
    layout_of(&Plan::of("m", [("w", Dtype::U8, vec![1])]).unwrap())
}

/// Two bring the same layout while a third lets go of it: who has it at one time has the same one, and
/// in the end there is none.
#[test]
fn layouts() {
    model("layouts", &["found", "made anew"], || {
        let interner = Arc::new(Interner::default());
        let first = interner.intern(layout());
        let [one, two] = [1, 2].map(|_| {
            let interner = Arc::clone(&interner);
            thread::spawn(move || interner.intern(layout()))
        });
        let old = Arc::downgrade(&first);
        // A point at which the others may run, before and after it is let go of.
        assert_eq!(interner.len(), 1);
        drop(first);
        let live = interner.len();
        assert!(live <= 1, "the same layout {live} times");
        let (one, two) = (one.join().unwrap(), two.join().unwrap());
        assert!(Arc::ptr_eq(&one, &two), "the same layout twice");
        saw(match old.upgrade() {
            Some(_) => "found",
            None => "made anew",
        });
        assert_eq!(interner.len(), 1);
        drop((one, two));
        assert!(interner.is_empty());
    });
}
