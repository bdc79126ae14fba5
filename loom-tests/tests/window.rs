//! The window over the parts of a streamed set: who reads, who uses, what goes, and who is told.
//!
//! Memory is cells that the checker watches: a read that is not ordered with the write that it reads, or with the one
//! that comes after it, is reported.
#![cfg(weighbridge_loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::wait;
use weighbridge::__loom::window::{Answer, Job, Order, Sight, Ticket, Window};
use weighbridge_loom_tests::{model, saw};

const NOBODY: u32 = u32::MAX;

struct Rig {
    window: Window<u32, ()>,
    cells: Vec<UnsafeCell<u32>>,
    /// How often a part was read. The checker does not see it.
    reads: AtomicUsize,
}

// SAFETY: the cells are accessed by the window's rules; that they suffice is what is checked.
unsafe impl Send for Rig {}
// SAFETY: as above.
unsafe impl Sync for Rig {}

impl Rig {
    /// Parts of one cell each.
    fn new(cells: u64, parts: usize) -> Arc<Self> {
        Self::of(cells, vec![1; parts])
    }

    fn of(cells: u64, lens: Vec<u64>) -> Arc<Self> {
        Arc::new(Rig {
            window: Window::new(cells, lens, 1),
            cells: (0..cells).map(|_| UnsafeCell::new(NOBODY)).collect(),
            reads: AtomicUsize::new(0),
        })
    }

    fn stream(&self, order: &[u32], ahead: usize) -> u64 {
        let (id, call) = self
            .window
            .open(Order::new(order.iter().copied(), false), ahead, ());
        self.called(call);
        id
    }

    /// What a thread that is called does.
    fn reads_on(&self) {
        while let Some((job, ())) = self.window.next_job() {
            self.read(job);
        }
    }

    fn called(&self, call: bool) {
        if call {
            self.reads_on();
        }
    }

    fn cells_of(&self, job: &Job) -> &[UnsafeCell<u32>] {
        &self.cells[job.at as usize..(job.at + job.len) as usize]
    }

    fn read(&self, job: Job) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for cell in self.cells_of(&job) {
            // SAFETY: see `Rig`.
            cell.with_mut(|at| unsafe { *at = job.part });
        }
        let call = self.window.landed(job, 1, Ok(()));
        self.called(call);
    }

    /// Gets a part, by a call that waits. The answer is where it is.
    fn get(&self, stream: u64, part: u32) -> Result<u64, u32> {
        self.get_by(stream, part, true)
    }

    /// The same; `reads`: it would read the part itself.
    fn get_by(&self, stream: u64, part: u32, reads: bool) -> Result<u64, u32> {
        let (mut ticket, mut looks) = (Ticket::default(), 0);
        let answer = wait(None, |waker| {
            loop {
                looks += 1;
                let (answer, call) = self.window.ask(stream, part, &mut ticket, waker, reads);
                self.called(call);
                match answer {
                    Answer::Wait => return None,
                    Answer::Here(at) => {
                        saw(if looks > 1 { "waited" } else { "there" });
                        return Some(Ok(at));
                    }
                    Answer::Failed(error) => return Some(Err(error)),
                    Answer::Read(job) => {
                        assert!(reads, "it does not read itself");
                        let (other, at) = (job.part != part, job.at);
                        self.read(job);
                        if other {
                            // It was in the way of this one.
                            saw("read for another");
                            continue;
                        }
                        saw(if looks > 1 { "read later" } else { "read" });
                        return Some(Ok(at));
                    }
                }
            }
        });
        answer.expect("without a deadline there is an answer")
    }

    fn look(&self, part: u32, at: u64) {
        // SAFETY: see `Rig`.
        let there = self.cells[at as usize].with(|at| unsafe { *at });
        assert_eq!(there, part, "another part's bytes");
    }

    /// Gets a part, looks at it, and gives it back.
    fn uses(&self, stream: u64, part: u32) {
        self.uses_by(stream, part, true);
    }

    fn uses_by(&self, stream: u64, part: u32, reads: bool) {
        let at = self.get_by(stream, part, reads).expect("it can be read");
        self.look(part, at);
        let call = self.window.release(part, 1);
        self.called(call);
    }
}

fn on(rig: &Arc<Rig>, act: impl FnOnce(&Rig) + Send + 'static) -> thread::JoinHandle<()> {
    let rig = Arc::clone(rig);
    thread::spawn(move || act(&rig))
}

/// Two parts and room for one: each of two gets its own, sees its bytes and no others, and neither waits for ever. One
/// comes back for its part, which may have gone.
#[test]
fn window_two() {
    model("window_two", &["read", "read later", "there"], || {
        let rig = Rig::new(1, 2);
        let (one, other) = (rig.stream(&[0], 0), rig.stream(&[1], 0));
        let twice = on(&rig, move |rig| (0..2).for_each(|_| rig.uses(one, 0)));
        let once = on(&rig, move |rig| rig.uses(other, 1));
        twice.join().unwrap();
        once.join().unwrap();
    });
}

/// Three parts and room for one, and nobody reads its own: whoever reads for others goes when there is nothing to read, and
/// is called again when there is.
#[test]
fn window_three() {
    model("window_three", &["waited"], || {
        let rig = Rig::new(1, 3);
        let streams = [0, 1, 2].map(|part| (rig.stream(&[part], 0), part));
        let all =
            streams.map(|(stream, part)| on(&rig, move |rig| rig.uses_by(stream, part, false)));
        all.map(|thread| thread.join().unwrap());
    });
}

/// Two want the same part: it is read once.
#[test]
fn window_same() {
    model("window_same", &["read", "there", "waited"], || {
        let rig = Rig::new(1, 2);
        let streams = [0, 1].map(|_| rig.stream(&[0], 0));
        let all = streams.map(|stream| on(&rig, move |rig| rig.uses(stream, 0)));
        all.map(|thread| thread.join().unwrap());
        assert_eq!(rig.reads.load(Ordering::Relaxed), 1, "it was read twice");
    });
}

/// Reading ahead of somebody who uses three parts in order, with room for two. Nothing that is used is overwritten.
#[test]
fn window_ahead() {
    model("window_ahead", &["read", "there"], || {
        let rig = Rig::new(2, 3);
        let (stream, call) = rig.window.open(Order::new(0..3, false), 1, ());
        assert!(call);
        let reader = on(&rig, Rig::reads_on);
        let user = on(&rig, move |rig| {
            (0..3).for_each(|part| rig.uses(stream, part))
        });
        reader.join().unwrap();
        user.join().unwrap();
        assert_eq!(rig.reads.load(Ordering::Relaxed), 3);
    });
}

/// A read that fails while somebody waits for it, or before: told once, and then read anew.
#[test]
fn window_fails() {
    model("window_fails", &["told ahead", "told"], || {
        let rig = Rig::new(1, 1);
        let (stream, call) = rig.window.open(Order::new([0], false), 1, ());
        assert!(call);
        let reader = on(&rig, |rig| {
            if let Some((job, ())) = rig.window.next_job() {
                let call = rig.window.landed(job, 1, Err(7));
                assert!(!call, "nobody is to try again until somebody was told");
                assert_eq!(rig.window.next_job(), None);
            }
        });
        let user = on(&rig, move |rig| {
            let (mut ticket, mut looks) = (Ticket::default(), 0);
            let answer = wait(None, |waker| {
                looks += 1;
                let (answer, call) = rig.window.ask(stream, 0, &mut ticket, waker, false);
                rig.called(call);
                match answer {
                    Answer::Wait => None,
                    Answer::Here(at) => Some(Ok(at)),
                    Answer::Failed(error) => Some(Err(error)),
                    Answer::Read(_) => unreachable!("it does not read itself"),
                }
            });
            match answer.expect("without a deadline there is an answer") {
                Err(error) => {
                    assert_eq!(error, 7);
                    saw(if looks > 1 { "told" } else { "told ahead" });
                    rig.uses(stream, 0);
                }
                Ok(at) => {
                    rig.look(0, at);
                    let call = rig.window.release(0, 1);
                    rig.called(call);
                }
            }
        });
        reader.join().unwrap();
        user.join().unwrap();
    });
}

/// Somebody gives up while its part comes: what was kept for it is free for the next one.
#[test]
fn window_leaves() {
    model("window_leaves", &["kept", "coming"], || {
        let rig = Rig::new(1, 2);
        let stream = rig.stream(&[0, 1], 0);
        let mut ticket = Ticket::default();
        let (answer, call) = rig.window.ask(stream, 0, &mut ticket, Waker::noop(), false);
        assert!(answer == Answer::Wait && call);
        let reader = on(&rig, Rig::reads_on);
        let leaves = on(&rig, move |rig| {
            let there = rig.window.look()[0].0;
            saw(if there == Sight::Coming || there == Sight::Away {
                "coming"
            } else {
                "kept"
            });
            let call = rig.window.leave(&mut ticket);
            rig.called(call);
            rig.uses(stream, 1);
        });
        reader.join().unwrap();
        leaves.join().unwrap();
        for (sight, _) in rig.window.look() {
            assert!(
                matches!(sight, Sight::Away | Sight::Here { holds: 0 }),
                "{sight:?}"
            );
        }
    });
}

/// Somebody gives up while a place becomes free to which it would read its part: the place is free for the next one.
#[test]
fn window_hands_over() {
    model("window_hands_over", &["handed", "not yet"], || {
        let rig = Rig::new(1, 3);
        let stream = rig.stream(&[0, 1, 2], 0);
        rig.get(stream, 0).expect("it can be read");
        let mut ticket = Ticket::default();
        let (answer, call) = rig.window.ask(stream, 1, &mut ticket, Waker::noop(), true);
        assert!(answer == Answer::Wait && !call);
        let releases = on(&rig, |rig| {
            let call = rig.window.release(0, 1);
            rig.called(call);
        });
        let leaves = on(&rig, move |rig| {
            let there = rig.window.look()[1].0;
            saw(if there == Sight::Coming {
                "handed"
            } else {
                "not yet"
            });
            let call = rig.window.leave(&mut ticket);
            rig.called(call);
            rig.uses(stream, 2);
        });
        releases.join().unwrap();
        leaves.join().unwrap();
        assert_eq!(
            rig.reads.load(Ordering::Relaxed),
            2,
            "nobody wants the other one"
        );
    });
}

/// One waits for all of the room, and others have been served so often that they wait for it, too. Then it gives up.
#[test]
fn window_gives_up() {
    model("window_gives_up", &["waited", "there"], || {
        let rig = Rig::of(2, vec![2, 1]);
        let (long, short) = (rig.stream(&[0], 0), rig.stream(&[1], 0));
        let at = rig.get(short, 1).expect("it can be read");
        let mut ticket = Ticket::default();
        let (answer, call) = rig.window.ask(long, 0, &mut ticket, Waker::noop(), true);
        assert!(answer == Answer::Wait && !call);
        // As often as they may pass.
        for _ in 0..2 {
            assert_eq!(rig.get(short, 1), Ok(at));
        }
        let user = on(&rig, move |rig| rig.uses(short, 1));
        let leaves = on(&rig, move |rig| {
            let call = rig.window.leave(&mut ticket);
            rig.called(call);
        });
        user.join().unwrap();
        leaves.join().unwrap();
        assert_eq!(rig.window.look()[1].0, Sight::Here { holds: 3 });
    });
}

/// A stream goes while parts are read ahead for it: they are in nobody's way.
#[test]
fn window_closes() {
    model("window_closes", &["read", "read later"], || {
        let rig = Rig::new(1, 2);
        let other = rig.stream(&[1], 0);
        let (stream, call) = rig.window.open(Order::new([0], false), 1, ());
        assert!(call);
        let reader = on(&rig, Rig::reads_on);
        let closes = on(&rig, move |rig| {
            let call = rig.window.close(stream);
            rig.called(call);
        });
        let user = on(&rig, move |rig| rig.uses(other, 1));
        for thread in [reader, closes, user] {
            thread.join().unwrap();
        }
    });
}

/// One wants all of the room, another uses small parts of it: the long one is not passed for ever, nor read over what is
/// used.
#[test]
fn window_long() {
    model("window_long", &["read", "read later"], || {
        let rig = Rig::of(2, vec![2, 1, 1]);
        let (long, short) = (rig.stream(&[0], 0), rig.stream(&[1, 2], 0));
        let one = on(&rig, move |rig| rig.uses(long, 0));
        let other = on(&rig, move |rig| {
            (1..3).for_each(|part| rig.uses(short, part))
        });
        one.join().unwrap();
        other.join().unwrap();
    });
}

/// Room for both parts: when both are there, whoever knows it reads either without the lock, and holds none.
#[test]
fn window_whole() {
    model("window_whole", &["whole", "not yet"], || {
        let rig = Rig::new(2, 2);
        let (stream, call) = rig.window.open(Order::new(0..2, false), 2, ());
        assert!(call);
        let reader = on(&rig, Rig::reads_on);
        let looks = on(&rig, |rig| {
            for part in 0..2 {
                match rig.window.whole(part) {
                    Some(at) => {
                        saw("whole");
                        rig.look(part, at);
                    }
                    None => saw("not yet"),
                }
            }
        });
        let user = on(&rig, move |rig| {
            (0..2).for_each(|part| rig.uses(stream, part))
        });
        for thread in [reader, looks, user] {
            thread.join().unwrap();
        }
        for part in 0..2 {
            let at = rig.window.whole(part).expect("both are there");
            rig.look(part, at);
        }
    });
}

/// A part behind a fence: whoever wants its place has it when the fence has passed, and not before; others are not held up.
#[test]
fn window_fenced() {
    model(
        "window_fenced",
        &["waited", "read", "read for another"],
        || {
            let rig = Rig::of(2, vec![1, 2, 1]);
            let (one, other) = (rig.stream(&[0, 2], 0), rig.stream(&[1], 0));
            let at = rig.get(one, 0).expect("it can be read");
            let call = rig.window.fence(0, 1);
            rig.called(call);
            let fence = on(&rig, move |rig| {
                // What a device does that was not done before.
                rig.look(0, at);
                let call = rig.window.release_fenced(0);
                rig.called(call);
            });
            let long = on(&rig, move |rig| rig.uses_by(other, 1, false));
            let short = on(&rig, move |rig| (0..3).for_each(|_| rig.uses(one, 2)));
            for thread in [fence, long, short] {
                thread.join().unwrap();
            }
        },
    );
}

/// A part behind a fence that never passes: who wants what does not fit beside it is in nobody's way, however often it is passed.
#[test]
fn window_fenced_for_ever() {
    model("window_fenced_for_ever", &["read", "there"], || {
        let rig = Rig::of(2, vec![1, 2, 1]);
        let (one, other) = (rig.stream(&[0, 2], 0), rig.stream(&[1], 0));
        rig.get(one, 0).expect("it can be read");
        let call = rig.window.fence(0, 1);
        rig.called(call);
        let mut ticket = Ticket::default();
        let (answer, call) = rig.window.ask(other, 1, &mut ticket, Waker::noop(), true);
        assert!(answer == Answer::Wait && !call);
        let both = [(); 2].map(|()| on(&rig, move |rig| (0..3).for_each(|_| rig.uses(one, 2))));
        for thread in both {
            thread.join().unwrap();
        }
        rig.look(
            0,
            rig.window.look()[0]
                .1
                .clone()
                .expect("it has a place")
                .start,
        );
    });
}
