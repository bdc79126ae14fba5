//! Heavy work: the registry's, and the same traffic without one.
//!
//! What lives here: the kinds of work, each twice. What does not: who is measured meanwhile (`requests`).
//!
//! The plain side uses the same memory (`Arena` is a mapping, and no more than that), the same files and as
//! many threads. It has no registry: no ledger, no generations, no leases, no reclaimer, no futures.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use weighbridge::arena::Arena;
use weighbridge::source::{Checkpoint, Evictable, Source};
use weighbridge::{AcquireOrLoad, Dtype, Error, Plan, SetHandle, WeightRegistry};

const SOON: Duration = Duration::from_secs(60);
/// In what steps large memory is touched and, by the registry too, given back.
const STEP: usize = 64 << 20;
const PAGE: usize = 4096;
/// As many as a registry's loaders.
const LOADERS: usize = 32;

/// What work is told, and tells.
pub struct Watch {
    started: Instant,
    over: AtomicBool,
    moved: AtomicU64,
    /// Bytes per second that it is not to exceed.
    pace: Option<f64>,
}

impl Watch {
    pub fn begin(pace: Option<f64>) -> Self {
        Watch {
            started: Instant::now(),
            over: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            pace,
        }
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Bytes so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// So many bytes more. Waits until they are allowed.
    fn did(&self, bytes: usize) {
        let total = self.moved.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let Some(pace) = self.pace else { return };
        let until = self.started + Duration::from_secs_f64(total as f64 / pace);
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(5)));
        }
    }
}

/// Something that is done over and over until the watch ends.
pub trait Work: Sync {
    fn run(&self, watch: &Watch);
}

/// Nothing.
pub struct Quiet;

impl Work for Quiet {
    fn run(&self, _: &Watch) {}
}

/// Has every page of it there.
fn touch(memory: &mut [u8], watch: &Watch) {
    for step in memory.chunks_mut(STEP) {
        step.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        watch.did(step.len());
    }
}

/// A thread that gives memory back, as the reclaimer does. Its answers tell that some is back.
fn giving_back<'s>(scope: &'s thread::Scope<'s, '_>) -> (SyncSender<Arena>, Receiver<()>) {
    let (to, arenas) = sync_channel::<Arena>(1);
    let (told, done) = sync_channel(2);
    scope.spawn(move || {
        for arena in arenas {
            arena.free_in_steps(STEP, &mut || {});
            // Nobody listens any more at the end.
            let _ = told.send(());
        }
    });
    (to, done)
}

/// A large set is published and retired: two threads in turns, this one and the reclaimer.
pub struct Retire {
    registry: Arc<WeightRegistry>,
    bytes: usize,
}

impl Retire {
    pub fn of(registry: &Arc<WeightRegistry>, bytes: usize) -> Self {
        Retire {
            registry: Arc::clone(registry),
            bytes,
        }
    }
}

struct Touched<'w> {
    plan: Plan,
    watch: &'w Watch,
}

impl Source for Touched<'_> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        touch(arena, self.watch);
        Ok(())
    }

    fn declared(&self) -> Option<&str> {
        Some("r1")
    }
}

impl Work for Retire {
    fn run(&self, watch: &Watch) {
        while !watch.is_over() {
            let plan = Plan::of("touched", [("w", Dtype::U8, vec![self.bytes])]).unwrap();
            let source = Touched { plan, watch };
            let set = self.registry.publish("large", source).unwrap();
            self.registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        }
    }
}

/// The same memory, mapped, touched and unmapped.
pub struct PlainRetire {
    pub bytes: usize,
}

impl Work for PlainRetire {
    fn run(&self, watch: &Watch) {
        thread::scope(|scope| {
            let (to, done) = giving_back(scope);
            while !watch.is_over() {
                let mut arena = Arena::allocate(self.bytes as u64).unwrap();
                touch(arena.as_mut_slice(), watch);
                to.send(arena).unwrap();
                done.recv().unwrap();
            }
        });
    }
}

/// What a set of many tensors is made of.
pub struct Parts {
    plan: Plan,
    tensors: Vec<Vec<u8>>,
}

impl Parts {
    /// Named like a model's.
    pub fn of(tensors: usize, bytes: usize) -> Self {
        let named = (0..tensors).map(|at| {
            let name = weighbridge_benches::tensor_name(at);
            (name, Dtype::U8, vec![bytes])
        });
        Parts {
            plan: Plan::of("parts", named).unwrap(),
            tensors: (0..tensors).map(|at| vec![at as u8; bytes]).collect(),
        }
    }

    fn copy(&self, arena: &mut [u8]) {
        for (planned, bytes) in self.plan.tensors().iter().zip(&self.tensors) {
            arena[planned.range()].copy_from_slice(bytes);
        }
    }
}

/// A revision of it.
pub struct Revision<'p>(pub &'p Parts, pub String);

impl Source for Revision<'_> {
    fn plan(&self) -> &Plan {
        &self.0.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.0.copy(arena);
        Ok(())
    }

    fn declared(&self) -> Option<&str> {
        Some(&self.1)
    }
}

/// A set is replaced, before the last one's memory is back, though not the one's before that.
pub struct Swap {
    pub registry: Arc<WeightRegistry>,
    pub set: SetHandle,
    pub parts: Arc<Parts>,
}

impl Work for Swap {
    fn run(&self, watch: &Watch) {
        let mut going = None;
        for number in 0_u64.. {
            if watch.is_over() {
                return;
            }
            let source = Revision(&self.parts, format!("{number}"));
            let replaced = self.registry.replace(self.set, source).unwrap();
            if let Some(before) = going.replace(replaced.previous) {
                before.reclaimed(SOON).unwrap();
            }
            watch.did(self.parts.plan.arena_bytes() as usize);
        }
    }
}

/// The same bytes, copied into fresh memory.
pub struct PlainSwap(pub Arc<Parts>);

impl Work for PlainSwap {
    fn run(&self, watch: &Watch) {
        let bytes = self.0.plan.arena_bytes();
        thread::scope(|scope| {
            let (to, done) = giving_back(scope);
            let (mut current, mut going) = (None, false);
            while !watch.is_over() {
                let mut arena = Arena::allocate(bytes).unwrap();
                self.0.copy(arena.as_mut_slice());
                if let Some(previous) = current.replace(arena) {
                    to.send(previous).unwrap();
                    if std::mem::replace(&mut going, true) {
                        done.recv().unwrap();
                    }
                }
                watch.did(bytes as usize);
            }
        });
    }
}

/// Where the tensors of a file begin, and how many bytes they have.
type Span = (File, u64, usize);

/// A checkpoint, and how many bytes it has.
type Measured = (Checkpoint, usize);

/// Files that are in the page cache when they have been read once.
pub struct Files(Vec<Span>);

impl Files {
    /// `count` files of one to four times `unit` bytes, and the same as sources.
    pub fn at(directory: &Path, count: usize, unit: usize) -> (Self, Vec<Measured>) {
        let all = (0..count).map(|number| {
            let bytes = (1 + number % 4) * unit;
            let path = directory.join(format!("weighbridge-tails-{bytes}-{number}.safetensors"));
            let start = write(&path, bytes, number as u8);
            let source = Checkpoint::open(&path).unwrap().declared("r1");
            ((File::open(&path).unwrap(), start, bytes), (source, bytes))
        });
        let (files, sources) = all.unzip();
        (Files(files), sources)
    }
}

/// Writes a file of a few tensors, if it is not there; the answer is where they begin.
fn write(path: &Path, bytes: usize, fill: u8) -> u64 {
    const TENSORS: usize = 8;
    let each = bytes / TENSORS;
    let tensor = |at: usize| {
        let (from, to) = (at * each, (at + 1) * each);
        format!(r#""t{at}":{{"dtype":"U8","shape":[{each}],"data_offsets":[{from},{to}]}}"#)
    };
    let all: Vec<String> = (0..TENSORS).map(tensor).collect();
    let mut header = format!("{{{}}}", all.join(","));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    if !path.exists() {
        let mut contents = (header.len() as u64).to_le_bytes().to_vec();
        contents.extend_from_slice(header.as_bytes());
        contents.resize(contents.len() + bytes, fill);
        let temporary = path.with_extension("part");
        std::fs::write(&temporary, contents).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }
    8 + header.len() as u64
}

/// Sets that are all away, are all wanted at once, and are evicted as soon as they are there.
pub struct Loads {
    registry: Arc<WeightRegistry>,
    sets: Vec<(SetHandle, usize)>,
}

impl Loads {
    /// The files stay open, as on the plain side.
    pub fn of(registry: &Arc<WeightRegistry>, sources: Vec<Measured>) -> Self {
        let publish = |(number, (source, bytes)): (usize, Measured)| {
            let source = Evictable::new(source);
            let set = registry.publish(format!("file-{number}"), source).unwrap();
            registry.evict(set).unwrap();
            (set, bytes)
        };
        Loads {
            registry: Arc::clone(registry),
            sets: sources.into_iter().enumerate().map(publish).collect(),
        }
    }
}

/// Which futures are to be polled, and by whom.
struct Woken {
    thread: Thread,
    places: Mutex<Vec<usize>>,
}

struct Place(Arc<Woken>, usize);

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.0.places.lock().unwrap().push(self.1);
        self.0.thread.unpark();
    }
}

impl Work for Loads {
    fn run(&self, watch: &Watch) {
        let woken = Arc::new(Woken {
            thread: thread::current(),
            places: Mutex::new((0..self.sets.len()).collect()),
        });
        let want = |(set, _): &(SetHandle, usize)| Some(self.registry.acquire_or_load_async(*set));
        let mut futures: Vec<Option<AcquireOrLoad>> = self.sets.iter().map(want).collect();
        let waker = |at| Waker::from(Arc::new(Place(Arc::clone(&woken), at)));
        let wakers: Vec<Waker> = (0..self.sets.len()).map(waker).collect();
        let mut in_flight = self.sets.len();
        // Whoever read one may still be about to let go: it is evicted with the next.
        let mut late = Vec::new();
        let mut ended = vec![false; self.sets.len()];
        while in_flight > 0 {
            let mut places = std::mem::take(&mut *woken.places.lock().unwrap());
            if places.is_empty() {
                thread::park_timeout(Duration::from_millis(if late.is_empty() { 50 } else { 1 }));
            }
            places.append(&mut late);
            for at in places {
                if ended[at] {
                    continue;
                }
                let polled = futures[at]
                    .as_mut()
                    .map(|future| Pin::new(future).poll(&mut Context::from_waker(&wakers[at])));
                match polled {
                    Some(Poll::Pending) => continue,
                    Some(Poll::Ready(answer)) => drop(answer.unwrap()),
                    None => {}
                }
                futures[at] = None;
                let (set, bytes) = self.sets[at];
                match self.registry.evict(set) {
                    Err(Error::Leased(_)) => {
                        late.push(at);
                        continue;
                    }
                    answer => drop(answer.unwrap()),
                }
                watch.did(bytes);
                if watch.is_over() {
                    in_flight -= 1;
                    ended[at] = true;
                } else {
                    futures[at] = want(&self.sets[at]);
                    // Now, as on the plain side, and not in a row with others.
                    let first = futures[at]
                        .as_mut()
                        .map(|future| Pin::new(future).poll(&mut Context::from_waker(&wakers[at])));
                    if let Some(Poll::Ready(answer)) = first {
                        drop(answer.unwrap());
                        futures[at] = None;
                        late.push(at);
                    }
                }
            }
        }
    }
}

/// The same files, read into fresh memory by as many threads, and unmapped by who asked for them.
pub struct PlainLoads(pub Files);

impl Work for PlainLoads {
    fn run(&self, watch: &Watch) {
        use std::os::unix::fs::FileExt;
        let files = &self.0.0;
        let wanted = (Mutex::new((0..files.len()).collect()), Condvar::new());
        let next = |places: &mut VecDeque<usize>| places.is_empty() && !watch.is_over();
        let (told, done) = channel();
        thread::scope(|scope| {
            for _ in 0..LOADERS {
                let (told, wanted) = (told.clone(), &wanted);
                scope.spawn(move || {
                    loop {
                        let places = wanted.0.lock().unwrap();
                        let at = wanted.1.wait_while(places, next).unwrap().pop_front();
                        let Some(at) = at else { return };
                        let (file, start, bytes) = &files[at];
                        let mut arena = Arena::allocate(*bytes as u64).unwrap();
                        file.read_exact_at(arena.as_mut_slice(), *start).unwrap();
                        let _ = told.send((at, arena));
                    }
                });
            }
            drop(told);
            for (at, arena) in &done {
                drop(arena);
                watch.did(files[at].2);
                if watch.is_over() {
                    wanted.0.lock().unwrap().clear();
                    wanted.1.notify_all();
                } else {
                    wanted.0.lock().unwrap().push_back(at);
                    wanted.1.notify_one();
                }
            }
        });
    }
}
