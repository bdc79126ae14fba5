//! The window as its users see it, step by step, and all of its invariants after every step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use super::state::{Outcome, PASSES};
use super::{Answer, Job, Order, Sight, Ticket, Window};

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn noop() -> &'static Waker {
    Waker::noop()
}

/// What an `ask` of somebody who would read itself comes to.
fn ask(window: &Window<u32, ()>, stream: u64, part: u32) -> Answer<u32> {
    window
        .ask(stream, part, &mut Ticket::default(), noop(), true)
        .0
}

fn read(window: &Window<u32, ()>, stream: u64, part: u32) {
    let Answer::Read(job) = ask(window, stream, part) else {
        panic!("{part} is there, or cannot be read")
    };
    let _ = window.landed(job, 1, Ok(()));
}

/// All that is to be read ahead, read.
fn catch_up(window: &Window<u32, ()>) -> Vec<u32> {
    let mut parts = Vec::new();
    window.state.lock().readers += 1;
    while let Some((job, ())) = window.next_job() {
        parts.push(job.part);
        let _ = window.landed(job, 1, Ok(()));
    }
    parts
}

fn there(window: &Window<u32, ()>) -> Vec<u32> {
    let all = (0..).zip(window.look());
    let here = all.filter(|(_, (sight, _))| matches!(sight, Sight::Here { .. }));
    here.map(|(part, _)| part).collect()
}

#[test]
fn so_many_are_read_ahead_and_the_rest_stays() {
    // Room for five of eight: two and the one that is used go round, the other two stay.
    let window = Window::new(50, [10; 8], 1);
    let (stream, _) = window.open(Order::new(0..8, true), 2, ());
    let mut reads = Vec::new();
    for round in 0..4 {
        for part in 0..8 {
            match ask(&window, stream, part) {
                Answer::Here(_) => {}
                Answer::Read(job) => {
                    reads.push((round, part));
                    let _ = window.landed(job, 1, Ok(()));
                }
                other => panic!("{other:?}"),
            }
            reads.extend(catch_up(&window).into_iter().map(|part| (round, part)));
            let _ = window.release(part, 1);
        }
    }
    let of = |round| reads.iter().filter(|(one, _)| *one == round).count();
    // In the first round everything, and what is read for the next one; then what does not stay.
    assert!(of(0) >= 8);
    for round in 1..4 {
        assert!(of(round) <= 6, "{reads:?}");
    }
}

#[test]
fn a_failure_is_told_once_and_then_tried_again() {
    let window = Window::new(20, [10; 4], 1);
    let (stream, call) = window.open(Order::new(0..4, false), 1, ());
    assert!(call);
    let (job, ()) = window.next_job().unwrap();
    let _ = window.landed(job, 1, Err(7));
    assert_eq!(window.look()[0].0, Sight::Failed);
    assert_eq!(window.next_job(), None, "it counts as read ahead");
    assert_eq!(ask(&window, stream, 0), Answer::Failed(7));
    read(&window, stream, 0);
}

/// A disk that is gone for a moment: no more is tried than is read ahead.
#[test]
fn what_fails_counts_as_read_ahead() {
    let window = Window::new(50, [10; 20], 1);
    let (stream, call) = window.open(Order::new(0..20, true), 2, ());
    assert!(call);
    for part in 0..2 {
        let (job, ()) = window.next_job().unwrap();
        assert_eq!(job.part, part);
        let _ = window.landed(job, 1, Err(7));
    }
    assert_eq!(window.next_job(), None);
    assert_eq!(ask(&window, stream, 0), Answer::Failed(7));
    assert_eq!(catch_up(&window), [2], "one has failed, one is ahead");
}

#[test]
fn what_is_held_stays_and_what_is_closed_goes_first() {
    let window = Window::new(20, [10; 4], 1);
    let (one, _) = window.open(Order::new([0, 1], true), 0, ());
    let (other, _) = window.open(Order::new([2, 3], true), 0, ());
    read(&window, one, 0);
    read(&window, other, 2);
    let mut ticket = Ticket::default();
    let (third, _) = window.open(Order::default(), 0, ());
    let (answer, call) = window.ask(third, 1, &mut ticket, noop(), true);
    assert_eq!((answer, call), (Answer::Wait, false), "both are held");
    let _ = window.close(other);
    assert!(
        !window.release(2, 1),
        "its place is free, and it reads itself"
    );
    let answer = window.ask(third, 1, &mut ticket, noop(), true).0;
    let Answer::Read(job) = answer else {
        panic!("{answer:?}")
    };
    let _ = window.landed(job, 1, Ok(()));
    assert_eq!(there(&window), [0, 1]);
    assert_eq!(window.look()[1].0, Sight::Here { holds: 1 });
}

/// Somebody who wants all of it comes to it, though others use what is there without pause.
#[test]
fn who_wants_much_is_not_passed_for_ever() {
    let window = Window::new(20, [10, 10, 20], 1);
    let (many, _) = window.open(Order::new([0, 1], true), 0, ());
    let (one, _) = window.open(Order::default(), 0, ());
    read(&window, many, 0);
    let mut ticket = Ticket::default();
    let (answer, _) = window.ask(one, 2, &mut ticket, noop(), true);
    assert_eq!(answer, Answer::Wait);
    // Two who overlap: one of both parts is always held.
    let mut other = Ticket::default();
    let mut passed = 0;
    let mut held = vec![0];
    loop {
        match window.ask(many, 0, &mut other, noop(), true).0 {
            Answer::Here(_) => held.push(0),
            Answer::Wait => break,
            other => panic!("{other:?}"),
        }
        let _ = window.release(held.pop().unwrap(), 1);
        passed += 1;
        assert!(passed < 1000, "it is passed again and again");
    }
    let _ = window.release(held.pop().unwrap(), 1);
    let answer = window.ask(one, 2, &mut ticket, noop(), true).0;
    assert!(matches!(answer, Answer::Read(Job { part: 2, .. })));
}

/// Somebody who does not read itself, and gives up while a part is kept for it, or its place.
#[test]
fn what_is_kept_for_who_leaves_is_free() {
    let window = Window::new(10, [10; 3], 1);
    let (one, _) = window.open(Order::default(), 0, ());
    read(&window, one, 0);
    for reads in [false, true] {
        let mut tickets = [Ticket::default(), Ticket::default()];
        for (ticket, part) in tickets.iter_mut().zip([1, 2]) {
            let answer = window.ask(one, part, ticket, noop(), reads).0;
            assert_eq!(answer, Answer::Wait);
        }
        let call = window.release(0, 1);
        assert_eq!(call, !reads);
        if let Some((job, ())) = call.then(|| window.next_job().unwrap()) {
            assert!(!window.landed(job, 1, Ok(())), "its place is taken");
            assert_eq!(window.look()[1].0, Sight::Here { holds: 1 });
        } else {
            assert_eq!(window.look()[1].0, Sight::Coming);
        }
        let [mut first, mut second] = tickets;
        let _ = window.leave(&mut first);
        if !reads {
            let (job, ()) = window.next_job().unwrap();
            let _ = window.landed(job, 1, Ok(()));
            assert_eq!(window.next_job(), None);
        }
        match window.ask(one, 2, &mut second, noop(), reads).0 {
            Answer::Here(0) => {}
            Answer::Read(job) => drop(window.landed(job, 1, Ok(()))),
            other => panic!("{other:?}"),
        }
        let _ = window.release(2, 1);
        read(&window, one, 0);
    }
}

/// One who uses parts, as the test drives it.
struct Actor {
    stream: u64,
    doing: Doing,
    woken: Arc<Woken>,
}

enum Doing {
    Nothing,
    Waits(u32, Ticket),
    Reads(Job),
    Holds(u32, u64),
}

struct World {
    window: Window<u32, ()>,
    lens: Vec<u64>,
    /// Whose bytes are where: written when a read lands.
    bytes: Vec<Option<u32>>,
    actors: Vec<Actor>,
    /// Jobs of readers that were called.
    reading: Vec<Job>,
    /// Jobs that somebody who waits does for somebody else.
    favouring: Vec<Job>,
    /// Parts behind fences, and where they are.
    fenced: Vec<(u32, u64)>,
    readers: usize,
    random: u64,
    /// How often somebody had to wait, though others could have been served.
    held_up: usize,
    /// How often somebody read for somebody else.
    favours: usize,
}

impl World {
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn called(&mut self, call: bool) {
        self.readers += usize::from(call);
    }

    fn in_use(&self, at: u64, len: u64) -> bool {
        let meets = |(other, long): (u64, u64)| other < at + len && at < other + long;
        let of = |job: &Job| (job.at, job.len);
        let own = self.actors.iter().filter_map(|actor| match &actor.doing {
            Doing::Holds(part, at) => Some((*at, self.lens[*part as usize])),
            Doing::Reads(job) => Some(of(job)),
            Doing::Nothing | Doing::Waits(..) => None,
        });
        let others = self.reading.iter().chain(&self.favouring);
        let fenced = self.fenced.iter();
        let fenced = fenced.map(|(part, at)| (*at, self.lens[*part as usize]));
        own.chain(others.map(of)).chain(fenced).any(meets)
    }

    fn begins(&mut self, job: &Job) {
        assert!(
            !self.in_use(job.at, job.len),
            "{job:?} is read over what is in use"
        );
        let (at, len) = (job.at as usize, job.len as usize);
        self.bytes[at..at + len].fill(None);
    }

    fn lands(&mut self, job: Job, fails: bool) {
        let (at, len) = (job.at as usize, job.len as usize);
        assert!(self.bytes[at..at + len].iter().all(Option::is_none));
        let result = if fails {
            Err(job.part)
        } else {
            self.bytes[at..at + len].fill(Some(job.part));
            Ok(())
        };
        let ns = self.random(1000) as u64;
        let call = self.window.landed(job, ns, result);
        self.called(call);
    }

    /// A fence passes, if there is one.
    fn passes(&mut self) {
        if !self.fenced.is_empty() {
            let at = self.random(self.fenced.len());
            let (part, at) = self.fenced.swap_remove(at);
            let all = at as usize..(at + self.lens[part as usize]) as usize;
            assert!(self.bytes[all].iter().all(|there| *there == Some(part)));
            let call = self.window.release_fenced(part);
            self.called(call);
        }
    }

    /// A stream goes, with a future that was forgotten or without, and another one comes.
    fn comes_anew(&mut self, actor: usize) {
        let call = self.window.close(self.actors[actor].stream);
        self.called(call);
        let ahead = self.random(4);
        let order = Order::new(0..self.lens.len() as u32, true);
        let (stream, call) = self.window.open(order, ahead, ());
        self.called(call);
        self.actors[actor].stream = stream;
    }

    fn asks(&mut self, actor: usize, part: u32, mut ticket: Ticket) {
        let reads = self.random(2) == 0;
        let waited = ticket != Ticket::default();
        let Actor { stream, woken, .. } = &self.actors[actor];
        let waker = Waker::from(Arc::clone(woken));
        woken.0.store(false, Ordering::Relaxed);
        let (answer, call) = self.window.ask(*stream, part, &mut ticket, &waker, reads);
        self.called(call);
        assert_eq!(answer == Answer::Wait, ticket != Ticket::default());
        self.actors[actor].doing = match answer {
            Answer::Wait => {
                assert!(!waited, "woken for nothing");
                Doing::Waits(part, ticket)
            }
            Answer::Here(at) => {
                let all = at as usize..(at + self.lens[part as usize]) as usize;
                assert!(self.bytes[all].iter().all(|there| *there == Some(part)));
                Doing::Holds(part, at)
            }
            Answer::Failed(error) => {
                assert_eq!(error, part);
                Doing::Nothing
            }
            Answer::Read(job) => {
                assert!(reads || waited);
                self.begins(&job);
                if job.part == part {
                    Doing::Reads(job)
                } else {
                    // It is done for somebody else.
                    self.favouring.push(job);
                    self.favours += 1;
                    Doing::Nothing
                }
            }
        };
    }

    fn acts(&mut self, actor: usize, calm: bool) {
        let doing = std::mem::replace(&mut self.actors[actor].doing, Doing::Nothing);
        match doing {
            Doing::Nothing if calm => {}
            Doing::Nothing => {
                let part = self.random(self.lens.len()) as u32;
                self.asks(actor, part, Ticket::default());
            }
            Doing::Waits(part, mut ticket) => {
                if self.actors[actor].woken.0.load(Ordering::Relaxed) {
                    self.asks(actor, part, ticket);
                } else if !calm && self.random(8) == 0 {
                    let call = self.window.leave(&mut ticket);
                    self.called(call);
                } else if !calm && self.random(16) == 0 {
                    self.comes_anew(actor);
                } else {
                    self.actors[actor].doing = Doing::Waits(part, ticket);
                }
            }
            Doing::Reads(job) => {
                let (part, at) = (job.part, job.at);
                let fails = self.random(6) == 0;
                self.lands(job, fails);
                if !fails {
                    self.actors[actor].doing = Doing::Holds(part, at);
                }
            }
            Doing::Holds(part, at) if !calm && self.random(6) == 0 => {
                let ns = self.random(1000) as u64;
                let call = self.window.fence(part, ns);
                self.called(call);
                self.fenced.push((part, at));
            }
            Doing::Holds(part, _) => {
                let ns = self.random(1000) as u64;
                let call = self.window.release(part, ns);
                self.called(call);
            }
        }
    }

    fn reads(&mut self) {
        if !self.favouring.is_empty() && self.random(2) == 0 {
            let at = self.random(self.favouring.len());
            let job = self.favouring.swap_remove(at);
            let fails = self.random(6) == 0;
            return self.lands(job, fails);
        }
        if self.readers > 0 && self.random(2) == 0 {
            self.readers -= 1;
            if let Some((job, ())) = self.window.next_job() {
                self.begins(&job);
                self.reading.push(job);
            }
        } else if !self.reading.is_empty() {
            let at = self.random(self.reading.len());
            let job = self.reading.swap_remove(at);
            let fails = self.random(6) == 0;
            // Whoever was called reads on.
            self.lands(job, fails);
            self.readers += 1;
        }
    }

    fn check(&mut self) {
        let look = self.window.look();
        let mut places: Vec<_> = look.iter().filter_map(|(_, place)| place.clone()).collect();
        places.sort_by_key(|place| place.start);
        assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(
            places
                .iter()
                .all(|place| place.end <= self.bytes.len() as u64)
        );
        let state = self.window.state.lock();
        let line = state.line().next().is_some();
        self.held_up += usize::from(line && state.passed >= PASSES);
        assert_eq!(state.fenced, self.fenced.len());
        let away = look
            .iter()
            .filter(|(sight, _)| *sight == Sight::Away)
            .count();
        assert_eq!(state.away, away);
        assert_eq!(state.readers, self.readers + self.reading.len());
        assert!(state.readers <= state.most_readers);
        for stream in &state.streams {
            assert!(stream.unused.len() <= stream.ahead);
        }
        let all = look
            .iter()
            .all(|(sight, _)| matches!(sight, Sight::Here { .. }));
        // Once all are there, they stay.
        assert_eq!(self.window.whole(0).is_some(), all);
        for (part, (sight, place)) in (0..).zip(&look) {
            if let Some(at) = self.window.whole(part) {
                assert_eq!(place.as_ref().map(|place| place.start), Some(at));
            }
            let held = |one: &&Actor| matches!(one.doing, Doing::Holds(held, _) if held == part);
            let fenced = self.fenced.iter().filter(|(one, _)| *one == part).count();
            let held = self.actors.iter().filter(held).count() + fenced;
            let granted = state
                .waiting
                .iter()
                .filter(|one| one.part == part && matches!(one.outcome, Some(Outcome::Here(_))))
                .count();
            let holds = match sight {
                Sight::Here { holds } => *holds as usize,
                _ => 0,
            };
            assert_eq!(holds, held + granted, "part {part}");
        }
    }
}

/// A long part, and short ones that are used in turn with it. Room for it and one and a half of the others.
#[test]
fn what_costs_more_than_it_hides_is_not_read_ahead() {
    const LONG: u64 = 8 << 20;
    const SHORT: u64 = 1 << 20;
    // How long a use takes, and a read of 2^20 bytes; is the long one worth to be read again?
    for (use_ns, mib_ns, worth) in [(1_000, 1_000, false), (10_000, 1_000, true)] {
        let lens = [LONG].into_iter().chain([SHORT; 12]);
        let window = Window::<u32, ()>::new(LONG + SHORT * 3 / 2, lens, 1);
        let (stream, call) = window.open(Order::new(0..13, true), 1, ());
        let mut readers = usize::from(call);
        let (mut long, mut ahead) = (0, 0);
        for part in (0..13).cycle().take(4 * 13) {
            let mut ticket = Ticket::default();
            let (answer, call) = window.ask(stream, part, &mut ticket, noop(), true);
            readers += usize::from(call);
            match answer {
                Answer::Here(_) => {}
                Answer::Read(job) => {
                    long += usize::from(part == 0);
                    let ns = job.len / SHORT * mib_ns;
                    readers += usize::from(window.landed(job, ns, Ok(())));
                }
                other => panic!("{other:?}"),
            }
            // While it is used.
            while readers > 0 {
                readers -= 1;
                while let Some((job, ())) = window.next_job() {
                    ahead += 1;
                    long += usize::from(job.part == 0);
                    let ns = job.len / SHORT * mib_ns;
                    readers += usize::from(window.landed(job, ns, Ok(())));
                }
            }
            readers += usize::from(window.release(part, use_ns));
        }
        // With one behind it the long one is read in each of four rounds; otherwise it stays.
        assert_eq!(long > 1, worth, "the long one was read {long} times");
        assert_eq!(ahead > 2 * 13, worth, "{ahead} were read ahead");
    }
}

/// A part behind a fence is in the way of who wants its place, and of nobody else, however long that is.
#[test]
fn nobody_is_held_up_for_what_a_fence_holds() {
    let window = Window::<u32, ()>::new(3, [1, 3, 1, 1], 1);
    let (one, _) = window.open(Order::default(), 0, ());
    let (other, _) = window.open(Order::default(), 0, ());
    read(&window, one, 0);
    let mut ticket = Ticket::default();
    assert!(matches!(
        window.ask(other, 1, &mut ticket, noop(), true).0,
        Answer::Wait
    ));
    for _ in 0..PASSES {
        assert!(matches!(ask(&window, one, 0), Answer::Here(_)));
        let _ = window.release(0, 1);
    }
    let mut held_up = Ticket::default();
    let (answer, _) = window.ask(one, 2, &mut held_up, noop(), true);
    assert_eq!(answer, Answer::Wait, "it is held up");
    let _ = window.leave(&mut held_up);
    let _ = window.fence(0, 1);
    for part in [2, 3, 2, 3, 2, 3] {
        if let Answer::Read(job) = ask(&window, one, part) {
            let _ = window.landed(job, 1, Ok(()));
        }
        let _ = window.release(part, 1);
    }
    assert_eq!(window.look()[0].0, Sight::Here { holds: 1 });
    let _ = window.release_fenced(0);
    let (answer, _) = window.ask(other, 1, &mut ticket, noop(), true);
    assert!(matches!(answer, Answer::Read(_)), "{answer:?}");
}

/// Only who has to wait, or to read, needs a waker; cloning one calls foreign code.
#[test]
fn who_finds_its_part_needs_no_waker() {
    use std::task::{RawWaker, RawWakerVTable};
    static CLONES: AtomicBool = AtomicBool::new(false);
    static TABLE: RawWakerVTable = RawWakerVTable::new(
        |_| {
            CLONES.store(true, Ordering::Relaxed);
            RawWaker::new(std::ptr::null(), &TABLE)
        },
        |_| (),
        |_| (),
        |_| (),
    );
    // SAFETY: it has nothing.
    let waker = unsafe { Waker::new(std::ptr::null(), &TABLE) };
    let window = Window::<u32, ()>::new(1, [1, 1], 1);
    let (stream, _) = window.open(Order::default(), 0, ());
    read(&window, stream, 0);
    let mut ticket = Ticket::default();
    let (answer, _) = window.ask(stream, 0, &mut ticket, &waker, true);
    assert!(matches!(answer, Answer::Here(_)) && !CLONES.load(Ordering::Relaxed));
    let (answer, _) = window.ask(stream, 1, &mut ticket, &waker, true);
    assert!(answer == Answer::Wait && CLONES.load(Ordering::Relaxed));
    let _ = window.leave(&mut ticket);
}

#[test]
fn whatever_happens() {
    let (mut held_up, mut favours, mut whole) = (0, 0, 0);
    for seed in 1..=400u64 {
        let mut world = World {
            window: Window::new(0, [], 0),
            lens: Vec::new(),
            bytes: Vec::new(),
            actors: Vec::new(),
            reading: Vec::new(),
            favouring: Vec::new(),
            fenced: Vec::new(),
            readers: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            held_up: 0,
            favours: 0,
        };
        let parts = 1 + world.random(9);
        world.lens = (0..parts).map(|_| 1 + world.random(4) as u64).collect();
        let longest = world.lens.iter().copied().max().unwrap();
        let capacity = longest + world.random(10) as u64;
        world.bytes = vec![None; capacity as usize];
        let most = 1 + world.random(2);
        world.window = Window::new(capacity, world.lens.iter().copied(), most);
        for _ in 0..1 + world.random(3) {
            let order = match world.random(3) {
                0 => Order::default(),
                way => Order::new(0..parts as u32, way == 1),
            };
            let ahead = world.random(4);
            let (stream, call) = world.window.open(order, ahead, ());
            world.called(call);
            world.actors.push(Actor {
                stream,
                doing: Doing::Nothing,
                woken: Arc::default(),
            });
        }
        for _ in 0..400 {
            match world.random(12) {
                0..4 => world.reads(),
                4 => world.passes(),
                _ => {
                    let actor = world.random(world.actors.len());
                    world.acts(actor, false);
                }
            }
            world.check();
        }
        // Nobody asks any more: everybody gets an answer, and everything comes to rest.
        let mut steps = 0;
        let busy = |world: &World| {
            let rests = |one: &Actor| matches!(one.doing, Doing::Nothing);
            !world.actors.iter().all(rests)
                || world.readers > 0
                || !world.reading.is_empty()
                || !world.favouring.is_empty()
        };
        while busy(&world) {
            world.passes();
            world.reads();
            let actor = world.random(world.actors.len());
            world.acts(actor, true);
            world.check();
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: somebody waits for ever");
        }
        while !world.fenced.is_empty() {
            world.passes();
        }
        let streams: Vec<u64> = world.actors.iter().map(|actor| actor.stream).collect();
        for stream in streams {
            let call = world.window.close(stream);
            world.called(call);
            while world.readers > 0 || !world.reading.is_empty() {
                world.reads();
                world.check();
            }
        }
        assert!(!world.window.close(0), "nobody wants anything");
        whole += usize::from(world.window.whole(0).is_some());
        held_up += world.held_up;
        favours += world.favours;
    }
    assert!(held_up > 100, "passing was never tried: {held_up}");
    assert!(favours > 10, "nobody was in the way: {favours}");
    assert!((20..380).contains(&whole), "{whole} had room for all");
}
