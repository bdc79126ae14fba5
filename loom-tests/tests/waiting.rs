//! Waiting for others: an outcome that comes once, and the line of those for whom there is no room.
#![cfg(weighbridge_loom)]

use std::sync::Arc;
use std::task::Waker;

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::{Bell, Flight, Keeper, Kept, Line, Place, wait};
use weighbridge_loom_tests::{model, saw};

/// Memory that is written before it is told of, and read by whoever is told.
struct Told(UnsafeCell<u64>);

// SAFETY: written before, read after; that these are ordered is what is checked.
unsafe impl Send for Told {}
// SAFETY: as above.
unsafe impl Sync for Told {}

impl Told {
    fn write(&self) {
        // SAFETY: see `Told`.
        self.0.with_mut(|at| unsafe { *at = 7 });
    }

    fn read(&self) {
        // SAFETY: see `Told`.
        assert_eq!(self.0.with(|at| unsafe { *at }), 7);
    }
}

fn told() -> Arc<(Flight<u64>, Told)> {
    Arc::new((Flight::new(), Told(UnsafeCell::new(0))))
}

/// Waits for the outcome, and says whether it slept.
fn waits(flight: &Flight<u64>) -> bool {
    let (mut place, mut looks) = (Place::default(), 0);
    let answer = wait(None, |waker| {
        looks += 1;
        flight.poll(&mut place, waker)
    });
    assert_eq!(answer, Some(7));
    looks > 1
}

/// Two wait for what a third brings: no wake-up is lost, and what was done before it came has happened.
#[test]
fn flight_waits() {
    model("flight_waits", &["at once", "later"], || {
        let shared = told();
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                waits(&shared.0);
                shared.1.read();
            })
        };
        let brings = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.1.write();
                assert!(shared.0.land(7).is_ok());
                assert_eq!(shared.0.land(8), Err(8), "it comes once");
            })
        };
        saw(if waits(&shared.0) { "later" } else { "at once" });
        shared.1.read();
        other.join().unwrap();
        brings.join().unwrap();
    });
}

/// One gives up while the outcome comes: the other is woken all the same.
#[test]
fn flight_leaves() {
    model("flight_leaves", &["at once", "later"], || {
        let shared = told();
        let mut place = Place::default();
        assert_eq!(shared.0.poll(&mut place, Waker::noop()), None);
        let leaves = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.0.leave(&mut place))
        };
        let brings = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || assert!(shared.0.land(7).is_ok()))
        };
        saw(if waits(&shared.0) { "later" } else { "at once" });
        leaves.join().unwrap();
        brings.join().unwrap();
    });
}

/// Wakes all of a line for as long as anybody is in it.
struct Watch(Arc<Line<()>>);

impl Kept for Watch {
    fn listen(&mut self, _: &Bell) -> bool {
        false
    }

    fn may_go(&mut self) -> bool {
        !self.0.look(true, |(), ()| true)
    }

    fn broke(&mut self) {}
}

/// In the line until it has been woken once.
fn stands(line: &Arc<Line<()>>, keeper: &Arc<Keeper<Watch>>) {
    let ticket = line.join(());
    let mut woken = false;
    let answer = wait(None, |waker| {
        if std::mem::replace(&mut woken, true) {
            return Some(());
        }
        if line.stay(ticket, waker, ()) {
            saw("watched anew");
            keeper.try_keep(Watch(Arc::clone(line))).unwrap();
        } else {
            saw("watched already");
        }
        None
    });
    assert!(answer.is_some());
    line.leave(ticket);
}

/// One comes to the line while another goes, and with it whoever looked at the line: nobody is left in it
/// that nobody looks after.
#[test]
fn line_watch() {
    model("line_watch", &["watched anew", "watched already"], || {
        let line = Arc::new(Line::new(1));
        let keeper = Arc::new(Keeper::new());
        // Not on this thread: a wake-up that comes late must not meet it in a join, which the checker
        // does not allow.
        let both = [(); 2].map(|()| {
            let (line, keeper) = (Arc::clone(&line), Arc::clone(&keeper));
            thread::spawn(move || stands(&line, &keeper))
        });
        both.into_iter().for_each(|one| one.join().unwrap());
        assert_eq!(line.len(), 0);
    });
}
