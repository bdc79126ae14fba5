//! Routes that take turns.
//!
//! What lives here: a [`Route`], the threads that go it for a while, the writer beside them, and the order
//! of the turns. What does not: what becomes of the times (`rows`).
//!
//! One measurement is one route in one round. Its threads are started for it, warm up, meet at a barrier,
//! and then do one batch of operations after the other until a flag is up, which they look at between
//! batches. What an operation takes is the time of a thread on the wall over its operations; of several
//! threads the median counts.
//!
//! With more threads than cores the time includes that for which a thread has no core: at 32 threads on two
//! cores some sixteen times what it would be. Then it is the time of all threads over the operations of all:
//! the median would say who got how many turns from the scheduler, of which there are a few in a round. Rounds
//! are as much longer as threads wait for a core.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::traces::Trace;

/// Operations between two looks at the flag.
const BATCH: usize = 256;
/// Batches before the barrier.
const WARM: usize = 32;
/// A write is due every so often.
const PERIOD: Duration = Duration::from_micros(100);

/// One way to do what a cell is about.
pub struct Route<'a> {
    /// What the table calls it; of ours, the way, or nothing if there is one.
    pub name: String,
    /// The hasher of a map.
    pub hasher: Option<&'static str>,
    /// No peer: what cannot be beaten, or ours under other conditions.
    pub limit: bool,
    /// Published, and not counted in any mean.
    pub extra: bool,
    /// Of ours, it is set beside this way only.
    pub beside: Option<&'static str>,
    batch: usize,
    work: Work<'a>,
    write: Option<Box<dyn Fn(u64) + Sync + 'a>>,
    written: u64,
}

enum Work<'a> {
    Turns(Box<dyn Fn(&mut Turn<'_>) + Sync + 'a>),
    Once(Box<dyn FnMut() -> f64 + 'a>),
}

impl<'a> Route<'a> {
    /// A route that any number of threads go at a time: `work` is called once by each, prepares what the
    /// thread needs, and calls [`Turn::each`].
    pub fn new(name: impl Into<String>, work: impl Fn(&mut Turn<'_>) + Sync + 'a) -> Self {
        Self::by(name, Work::Turns(Box::new(work)))
    }

    /// A route that is gone once a round, by one thread, and says itself what one operation took, in
    /// nanoseconds.
    pub fn once(name: impl Into<String>, work: impl FnMut() -> f64 + 'a) -> Self {
        Self::by(name, Work::Once(Box::new(work)))
    }

    fn by(name: impl Into<String>, work: Work<'a>) -> Self {
        Route {
            name: name.into(),
            hasher: None,
            limit: false,
            extra: false,
            beside: None,
            batch: BATCH,
            work,
            write: None,
            written: 0,
        }
    }

    /// What a writer does every 100 microseconds in cells that have one. It is told how often it has.
    pub fn writing(mut self, write: impl Fn(u64) + Sync + 'a) -> Self {
        self.write = Some(Box::new(write));
        self
    }

    /// The hasher of its map.
    pub fn hashing(mut self, hasher: &'static str) -> Self {
        self.hasher = Some(hasher);
        self
    }

    /// It is a limit.
    pub fn limit(mut self) -> Self {
        self.limit = true;
        self
    }

    /// It does not count.
    pub fn extra(mut self) -> Self {
        self.extra = true;
        self
    }

    /// Only one way of ours does what it does.
    pub fn beside(mut self, way: &'static str) -> Self {
        self.beside = Some(way);
        self
    }

    /// So few operations between two looks at the flag, for what takes long.
    pub fn batch(mut self, operations: usize) -> Self {
        self.batch = operations;
        self
    }
}

/// One thread's part of one measurement.
pub struct Turn<'c> {
    trace: &'c [u32],
    at: usize,
    batch: usize,
    gate: &'c Gate,
    nanos: f64,
    operations: f64,
}

struct Gate {
    /// All threads have warmed up.
    ready: Barrier,
    /// It has begun, and said when.
    begun: Barrier,
    begin: OnceLock<Instant>,
    /// There are more threads than cores.
    crowded: bool,
    over: AtomicBool,
}

impl Gate {
    /// Waits for all others. The answer is when it began: for whoever got a core at once that is now. Where
    /// not all can, the time before counts as well, or who waited longest would look fastest.
    fn pass(&self) -> Instant {
        self.ready.wait();
        self.begun.wait();
        let now = Instant::now();
        self.begin
            .get()
            .filter(|_| self.crowded)
            .map_or(now, |begin| *begin)
    }

    /// Lets all others go.
    fn open(&self) {
        self.ready.wait();
        self.begin.get_or_init(Instant::now);
        self.begun.wait();
    }
}

impl<'c> Turn<'c> {
    /// Does `one` with one index of the trace after the other, until it is over.
    #[inline]
    pub fn each(&mut self, mut one: impl FnMut(usize)) {
        let mut batch = |indices: &[u32]| indices.iter().for_each(|&index| one(index as usize));
        for _ in 0..if self.batch == BATCH { WARM } else { 1 } {
            batch(self.next());
        }
        let started = self.gate.pass();
        let mut operations = 0;
        loop {
            let indices = self.next();
            batch(indices);
            operations += indices.len();
            if self.gate.over.load(Ordering::Relaxed) {
                break;
            }
        }
        self.nanos = started.elapsed().as_nanos() as f64;
        self.operations = operations as f64;
    }

    fn next(&mut self) -> &'c [u32] {
        if self.at + self.batch > self.trace.len() {
            self.at = 0;
        }
        let indices = &self.trace[self.at..self.at + self.batch];
        self.at += self.batch;
        indices
    }
}

/// Under what conditions routes are compared.
#[derive(Clone, Copy)]
pub struct Terms<'c> {
    /// Threads that read.
    pub threads: usize,
    /// One more that writes.
    pub writer: bool,
    /// What is asked for.
    pub trace: &'c Trace,
    /// How long, for one thread or one per core.
    pub time: Duration,
    /// How often.
    pub rounds: usize,
}

/// What one route took, round by round.
#[derive(Clone, Default)]
pub struct Times {
    /// Of one operation, in nanoseconds.
    pub nanos: Vec<f64>,
    /// What the writer got done in a second.
    pub writes: Vec<f64>,
}

/// Has all routes take turns: in the next round another one begins, and every other round goes backwards.
pub fn take_turns(routes: &mut [&mut Route<'_>], terms: Terms<'_>) -> Vec<Times> {
    let mut all = vec![Times::default(); routes.len()];
    for round in 0..terms.rounds {
        for turn in 0..routes.len() {
            let turn = if round % 2 == 0 {
                turn
            } else {
                routes.len() - 1 - turn
            };
            let at = (turn + round) % routes.len();
            let (nanos, writes) = measure(routes[at], terms, round);
            all[at].nanos.push(nanos);
            all[at].writes.extend(writes);
        }
    }
    all
}

fn measure(route: &mut Route<'_>, terms: Terms<'_>, round: usize) -> (f64, Option<f64>) {
    let work = match &mut route.work {
        Work::Once(work) => return (work(), None),
        Work::Turns(work) => &*work,
    };
    let write = route.write.as_ref().filter(|_| terms.writer);
    assert!(write.is_some() || !terms.writer, "it cannot write");
    let (trace, threads) = (&terms.trace.0, terms.threads);
    let running = threads + usize::from(terms.writer);
    let all = running + 1;
    let gate = Gate {
        ready: Barrier::new(all),
        begun: Barrier::new(all),
        begin: OnceLock::new(),
        crowded: running > cores(),
        over: AtomicBool::new(false),
    };
    let (batch, written) = (route.batch, route.written);
    let time = terms.time * running.div_ceil(cores()) as u32;
    let (each, writes) = thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|thread| {
                // Each thread begins elsewhere, and in each round elsewhere, all routes alike.
                let at = (thread * trace.len() / threads + round * 7919) % trace.len();
                let gate = &gate;
                scope.spawn(move || {
                    let mut turn = Turn {
                        trace,
                        at,
                        batch,
                        gate,
                        nanos: 0.0,
                        operations: 0.0,
                    };
                    work(&mut turn);
                    (turn.nanos, turn.operations)
                })
            })
            .collect();
        let writer = write.map(|write| scope.spawn(|| keep_writing(write, written, &gate)));
        gate.open();
        thread::sleep(time);
        gate.over.store(true, Ordering::Relaxed);
        let each: Vec<(f64, f64)> = readers.into_iter().map(|it| it.join().unwrap()).collect();
        (each, writer.map(|it| it.join().unwrap()))
    });
    if let Some((count, _)) = writes {
        route.written = count;
    }
    (
        per_operation(&each, gate.crowded),
        writes.map(|(_, rate)| rate),
    )
}

/// What an operation took, of what each thread took for how many.
fn per_operation(each: &[(f64, f64)], crowded: bool) -> f64 {
    if crowded {
        let (nanos, operations) = each
            .iter()
            .fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        return nanos / operations;
    }
    let mut all: Vec<f64> = each.iter().map(|it| it.0 / it.1).collect();
    all.sort_by(f64::total_cmp);
    // Of an even number the mean of the two in the middle.
    (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0
}

/// Writes whenever it is due. Who is late does not catch up: what came meanwhile is not done.
fn keep_writing(write: &(dyn Fn(u64) + Sync), begin: u64, gate: &Gate) -> (u64, f64) {
    let mut count = begin;
    let started = gate.pass();
    let mut due = started;
    while !gate.over.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < due {
            thread::sleep(due - now);
            continue;
        }
        write(count);
        count += 1;
        due = (due + PERIOD).max(now);
    }
    let rate = (count - begin) as f64 / started.elapsed().as_secs_f64();
    (count, rate)
}

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A thread that panics would be waited for at the barrier for ever: the process ends instead.
pub fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::exit(101);
    }));
}
