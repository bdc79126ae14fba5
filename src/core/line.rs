//! Who waits for something that there is not enough of, in the order in which they came.
//!
//! What lives here: the line, whose turn it is, how those who wait are woken, and that somebody looks at
//! the line as long as anybody is in it. What does not: what they wait for (`S` says what each lacks),
//! whether it is there, who looks (`registry::room`).
//!
//! Wakers are foreign code: they are cloned, woken and dropped while no lock of ours is held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::panics;
use crate::sync::Mutex;

/// Whoever was woken so long ago and has not tried since is not waited for: a task that nobody polls.
const PATIENCE: Duration = Duration::from_millis(250);
/// How many at the head of the line are woken when there may be something for several.
const FEW: usize = 8;
/// How many kinds are told apart.
const KINDS: usize = 64;

/// See the module documentation.
pub struct Line<S> {
    state: Mutex<State<S>>,
    /// How often others may have something before the one that waits longest, if what they take is what it
    /// lacks.
    passes: u32,
}

struct State<S> {
    waiting: VecDeque<Waiting<S>>,
    next: u64,
    /// Who was passed last, and how often.
    passed: (u64, u32),
    /// Whether somebody looks at the line.
    watched: bool,
    /// Who else is woken by a look: those behind the first one take turns.
    turn: usize,
}

struct Waiting<S> {
    ticket: u64,
    /// `None`: it is looking itself.
    waker: Option<Arc<Waker>>,
    /// What it lacked when it tried last.
    short: S,
    /// When it was woken first since then.
    woken: Option<Instant>,
}

impl<S> Waiting<S> {
    fn tries(&self, now: Instant) -> bool {
        let idle = |at: Instant| now.saturating_duration_since(at);
        self.woken.is_none_or(|at| idle(at) < PATIENCE)
    }

    fn wake(&mut self, now: Instant) -> Option<Arc<Waker>> {
        if self.waker.is_some() {
            self.woken.get_or_insert(now);
        }
        self.waker.clone()
    }
}

impl<S> State<S> {
    /// The first of those who try.
    fn first(&self) -> Option<&Waiting<S>> {
        let now = Instant::now();
        self.waiting.iter().find(|one| one.tries(now))
    }
}

/// Where somebody is in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nobody came before who still tries.
    First,
    /// Others did, and what is taken now is not what the first of them lacks, or that can wait.
    MayPass,
    /// What is taken now is what the first one lacks, and it has been passed often enough.
    MustWait,
}

impl<S> Line<S> {
    /// Nobody is in it.
    pub fn new(passes: u32) -> Self {
        Line {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                next: 0,
                passed: (0, 0),
                watched: false,
                turn: 0,
            }),
            passes,
        }
    }

    /// A place at the end, of somebody who lacks `short`.
    pub fn join(&self, short: S) -> u64 {
        let mut state = self.state.lock(); // E76
        state.next += 1;
        let ticket = state.next;
        state.waiting.push_back(Waiting {
            ticket,
            waker: None,
            short,
            woken: None,
        });
        ticket
    }

    /// Whose turn it is to take something for which `conflicts` says whether the first one lacks it.
    pub fn turn(&self, ticket: Option<u64>, conflicts: impl Fn(&S) -> bool) -> Turn {
        let state = self.state.lock(); // E76
        match state.first() {
            None => Turn::First,
            // Tickets rise. Whoever was not waited for any more is before the first, too, when it is back.
            Some(first) if ticket.is_some_and(|mine| mine <= first.ticket) => Turn::First,
            Some(first) => {
                let (who, times) = state.passed;
                let often = who == first.ticket && times >= self.passes;
                if often && conflicts(&first.short) {
                    Turn::MustWait
                } else {
                    Turn::MayPass
                }
            }
        }
    }

    /// Somebody who was not first got what it wanted. `conflicts`: was it what the first one lacks?
    pub fn passed(&self, conflicts: impl Fn(&S) -> bool) {
        let mut state = self.state.lock(); // E76
        let first = state.first().filter(|first| conflicts(&first.short));
        if let Some(first) = first.map(|first| first.ticket) {
            let (who, times) = state.passed;
            let times = if who == first { times } else { 0 };
            state.passed = (first, times.saturating_add(1));
        }
    }

    /// `ticket` got nothing, and is woken when it may try again. `true`: nobody looks at the line; it is up
    /// to the caller that somebody [does](Self::look) until nobody is in it, or to say that
    /// [nobody does](Self::unwatched).
    #[must_use]
    pub fn stay(&self, ticket: u64, waker: &Waker, short: S) -> bool {
        let waker = Arc::new(waker.clone());
        let mut state = self.state.lock(); // E76
        let mine = state.waiting.iter_mut().find(|one| one.ticket == ticket);
        // What it had before is dropped when the lock is not held any more.
        let _before = mine.map(|mine| {
            mine.woken = None;
            let short = std::mem::replace(&mut mine.short, short);
            (short, mine.waker.replace(waker))
        });
        let unwatched = !std::mem::replace(&mut state.watched, true);
        drop(state);
        unwatched
    }

    /// Whoever was to look at the line cannot.
    pub fn unwatched(&self) {
        self.state.lock().watched = false; // E76
    }

    /// `ticket` waits no longer, whether it got anything or not. Whoever is next may try. `true`: nobody
    /// is left.
    pub fn leave(&self, ticket: u64) -> bool {
        let (gone, next, empty) = {
            let mut state = self.state.lock(); // E76
            let Some(at) = state.waiting.iter().position(|one| one.ticket == ticket) else {
                return false;
            };
            let gone = state.waiting.remove(at);
            let next = state.first().and_then(|one| one.waker.clone());
            (gone, next, state.waiting.is_empty())
        };
        drop(gone);
        wake(next);
        empty
    }

    /// Something changed that nobody else would tell.
    pub fn nudge(&self) {
        let first = {
            let state = self.state.lock(); // E76
            state.first().and_then(|one| one.waker.clone())
        };
        wake(first);
    }

    /// What `ticket` lacked when it tried last.
    pub fn lacks<R>(&self, ticket: u64, read: impl FnOnce(&S) -> R) -> Option<R> {
        let state = self.state.lock(); // E76
        let mine = state.waiting.iter().find(|one| one.ticket == ticket);
        mine.map(|one| read(&one.short))
    }

    /// What each lacked when it tried last, in order. `visit` is quick and calls nobody.
    pub fn for_each(&self, mut visit: impl FnMut(&S)) {
        let state = self.state.lock(); // E76
        state.waiting.iter().for_each(|one| visit(&one.short));
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.state.lock().waiting.len() // E76
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Wakes the first of each kind (`alike`: they lack the same), and one other in turn; if there may be
    /// `news` for several, the next few, too. `false`: nobody waits, and whoever looked does so no more.
    pub fn look(&self, news: bool, alike: impl Fn(&S, &S) -> bool) -> bool {
        let few = if news { FEW } else { 1 };
        let wakers: Vec<Arc<Waker>> = {
            let mut state = self.state.lock(); // E76
            let len = state.waiting.len();
            if len == 0 {
                state.watched = false;
                return false;
            }
            state.turn = state.turn.wrapping_add(1);
            let (other, now) = (state.turn % len, Instant::now());
            let mut kinds: Vec<usize> = Vec::new();
            let mut woken = Vec::new();
            for at in 0..len {
                let one = &state.waiting[at];
                let known = |&kind: &usize| alike(&state.waiting[kind].short, &one.short);
                let tries = one.tries(now) && kinds.len() < KINDS;
                let leads = tries && !kinds.iter().any(known);
                if leads {
                    kinds.push(at);
                }
                if leads || at < few || at == other {
                    woken.extend(state.waiting[at].wake(now));
                }
            }
            woken
        };
        wake(wakers);
        true
    }
}

/// Foreign code, and none of our locks is held. Each by itself: one that panics must not keep the others
/// asleep.
fn wake(wakers: impl IntoIterator<Item = Arc<Waker>>) {
    for waker in wakers {
        let _ = panics(move || waker.wake_by_ref());
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Woken {
        fn times(&self) -> usize {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    fn stand(line: &Line<char>, short: char) -> (u64, Arc<Woken>) {
        let woken = Arc::new(Woken::default());
        let ticket = line.join(short);
        let _ = line.stay(ticket, &Waker::from(Arc::clone(&woken)), short);
        (ticket, woken)
    }

    fn same(one: &char, other: &char) -> bool {
        one == other
    }

    #[test]
    fn the_first_is_passed_so_often_and_no_more() {
        let line = Line::new(16);
        assert_eq!(line.turn(None, |_| true), Turn::First);
        let (first, _) = stand(&line, 'a');
        let (second, _) = stand(&line, 'b');
        let wants_a = |short: &char| *short == 'a';
        for _ in 0..16 {
            assert_eq!(line.turn(Some(second), wants_a), Turn::MayPass);
            line.passed(wants_a);
            line.passed(|short| *short == 'b');
        }
        assert_eq!(line.turn(Some(second), wants_a), Turn::MustWait);
        assert_eq!(line.turn(None, wants_a), Turn::MustWait);
        assert_eq!(
            line.turn(None, |_| false),
            Turn::MayPass,
            "it lacks something else"
        );
        assert_eq!(line.turn(Some(first), wants_a), Turn::First);
        assert!(!line.leave(first));
        assert_eq!(line.turn(Some(second), wants_a), Turn::First);
        assert_eq!(
            line.turn(None, |_| true),
            Turn::MayPass,
            "it was not passed yet"
        );
        assert!(line.leave(second) && line.is_empty() && !line.leave(second));
    }

    /// A task that nobody polls is not waited for, until it is back.
    #[test]
    fn whoever_does_not_try_is_not_waited_for() {
        let line = Line::new(0);
        let (first, _) = stand(&line, 'a');
        let (second, _) = stand(&line, 'a');
        assert_eq!(line.turn(Some(second), |_| true), Turn::MayPass);
        line.passed(|_| true);
        assert_eq!(line.turn(Some(second), |_| true), Turn::MustWait);
        let started = Instant::now();
        while line.turn(Some(second), |_| true) != Turn::First {
            assert!(started.elapsed() < Duration::from_secs(60));
            assert!(line.look(false, same));
            let _ = line.stay(second, Waker::noop(), 'a');
        }
        assert!(started.elapsed() >= PATIENCE);
        assert_eq!(
            line.turn(Some(first), |_| true),
            Turn::First,
            "it tries again"
        );
        let _ = line.stay(first, Waker::noop(), 'a');
        assert_ne!(line.turn(Some(second), |_| true), Turn::First);
    }

    #[test]
    fn each_kind_is_looked_after() {
        let line = Line::new(1);
        let all: Vec<_> = "aaaaaaaaaaaab"
            .chars()
            .map(|short| stand(&line, short))
            .collect();
        assert!(line.look(false, same));
        let times: Vec<usize> = all.iter().map(|(_, woken)| woken.times()).collect();
        assert_eq!((times[0], times[12]), (1, 1), "the first of each kind");
        assert_eq!(times.iter().sum::<usize>(), 3, "and one other");
        assert!(line.look(true, same));
        let times: Vec<usize> = all.iter().map(|(_, woken)| woken.times()).collect();
        assert!(times[..FEW].iter().all(|times| *times == 1) && times[12] == 1);
        // In turn everybody is looked after.
        for _ in 0..all.len() {
            line.look(false, same);
        }
        assert!(all.iter().all(|(_, woken)| woken.times() > 0));
        line.nudge();
        assert_eq!(all[0].1.times(), 1);
        for (ticket, _) in &all {
            line.leave(*ticket);
        }
        assert!(!line.look(true, same), "nobody is left");
    }
}
