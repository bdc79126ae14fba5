//! Loading a checkpoint, side by side with what its bytes cost anyway.
//!
//! `cargo bench -p weighbridge-benches --bench load` writes a file of some 830 MB (once, in the directory
//! that WEIGHBRIDGE_BENCH_DIR names, or the system's for temporary files), has it in the page cache, and
//! loads it by each route in turn, round after round: medians and the whole spread, in GB/s. With `--test` it
//! is a small file and one round.
//!
//! Not criterion's: a round is a second, the routes must be interleaved, and what is compared are ratios.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use memmap2::Mmap;
use weighbridge::arena::Arena;
use weighbridge::source::{Checkpoint, Evictable, Source};
use weighbridge::{SetHandle, WeightRegistry};

const SOON: Duration = Duration::from_secs(60);
const PIECE: usize = 4 << 20;

/// Lengths like those of a model of 0.4 billion parameters in 16 bits.
fn lengths(small: bool) -> Vec<(String, usize)> {
    let (shift, layers) = if small { (6, 2) } else { (0, 24) };
    let mut all = vec![("embed".to_owned(), (96 << 20) >> shift)];
    let layer = [
        2 << 20,
        512 << 10,
        512 << 10,
        2 << 20,
        8 << 20,
        8 << 20,
        8 << 20,
        2048,
        2048,
    ];
    for number in 0..layers {
        for (at, len) in layer.iter().enumerate() {
            all.push((format!("layers.{number:02}.{at}"), (len >> shift).max(64)));
        }
    }
    all
}

fn write(path: &Path, lengths: &[(String, usize)]) {
    let mut header = String::from("{");
    let mut at = 0;
    for (number, (name, len)) in lengths.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let end = at + len;
        header += &format!(
            r#"{comma}"{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{at},{end}]}}"#
        );
        at = end;
    }
    header += "}";
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let temporary = path.with_extension("part");
    let mut file = std::io::BufWriter::with_capacity(PIECE, File::create(&temporary).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..at / 8 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        file.write_all(&seed.to_le_bytes()).unwrap();
    }
    file.write_all(&[0; 8][..at % 8]).unwrap();
    file.into_inner().unwrap().sync_all().unwrap();
    std::fs::rename(temporary, path).unwrap();
}

/// Where the data of a file begins.
fn data_start(file: &File) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut len = [0; 8];
    file.read_exact_at(&mut len, 0).unwrap();
    8 + u64::from_le_bytes(len)
}

/// What a reader does with one piece: its offset, and where it goes.
type OnPiece<'w> = &'w (dyn Fn(u64, &mut [u8]) + Sync);

/// Has `threads` take pieces of `into` one after the other.
fn by_threads(threads: usize, into: &mut [u8], work: OnPiece<'_>) {
    let pieces = into.chunks_mut(PIECE).enumerate();
    let queue = Mutex::new(pieces.map(|(at, piece)| ((at * PIECE) as u64, piece)));
    let run = || {
        loop {
            let next = queue.lock().unwrap().next();
            let Some((at, piece)) = next else { return };
            work(at, piece);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

struct Routes {
    rows: Vec<(&'static str, Vec<f64>)>,
    bytes: f64,
}

impl Routes {
    fn time(&mut self, name: &'static str, route: impl FnOnce()) {
        let started = Instant::now();
        route();
        let rate = self.bytes / started.elapsed().as_secs_f64() / 1e9;
        match self.rows.iter_mut().find(|(known, _)| *known == name) {
            Some((_, rates)) => rates.push(rate),
            None => self.rows.push((name, vec![rate])),
        }
    }

    fn median(&self, name: &str) -> f64 {
        let (_, rates) = self.rows.iter().find(|(known, _)| *known == name).unwrap();
        let mut rates = rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

const MAP_COPY: &str = "map, copy each tensor into a fresh Vec (what users do today)";
const PREAD_FRESH: &str = "pread by as many threads, fresh huge pages";
const PREAD_AGAIN: &str = "pread by as many threads, memory that is there";
const PREAD_HASH: &str = "  and then BLAKE3 by as many threads";
const FRESH: &str = "publish, declared";
const FRESH_HASHED: &str = "publish, hashed";
const AGAIN: &str = "acquire_or_load in place of another, declared";
const POOLED: &str = "publish into memory that a retired set left in the pool, declared";
const PROTECTED: &str = "  the same, write-protected";
const AGAIN_HASHED: &str = "acquire_or_load in place of another, hashed";

/// A registry with room for one, and two sets of the same file: each load takes the other's memory.
struct Pair {
    registry: WeightRegistry,
    sets: [SetHandle; 2],
    next: usize,
}

impl Pair {
    fn new(path: &Path, threads: usize, declared: bool) -> Self {
        let path: PathBuf = path.to_owned();
        let open = move || {
            let checkpoint = Checkpoint::open(&path)?;
            Ok(if declared {
                checkpoint.declared("r1")
            } else {
                checkpoint
            })
        };
        let room = open().unwrap().plan().charged_bytes();
        let builder = WeightRegistry::builder().limit_bytes(room).readers(threads);
        let registry = builder.build().unwrap();
        let sets = ["one", "two"].map(|name| {
            let source = Evictable::opened_by(open.clone()).unwrap();
            let set = registry.publish(name, source).unwrap();
            if name == "one" {
                registry.evict(set).unwrap();
            }
            set
        });
        Pair {
            registry,
            sets,
            next: 0,
        }
    }

    fn swap(&mut self) {
        let set = self.sets[self.next];
        self.next = 1 - self.next;
        drop(self.registry.acquire_or_load(set, SOON).unwrap());
    }
}

/// How long it takes to open, map and publish a file of a thousand tensors, in milliseconds: the median,
/// the least and the most.
fn mapped(directory: &Path, rounds: usize, each: usize) -> [f64; 3] {
    let path = directory.join(format!("weighbridge-load-thousand-{each}.safetensors"));
    if !path.exists() {
        let lengths: Vec<_> = (0..1000).map(|at| (format!("t{at:04}"), each)).collect();
        write(&path, &lengths);
    }
    let registry = WeightRegistry::builder().build().unwrap();
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let started = Instant::now();
            let checkpoint = Checkpoint::open(&path).unwrap();
            // SAFETY: nobody writes to the file.
            let mapped = unsafe { checkpoint.map_files_that_nobody_changes() }.unwrap();
            let set = registry.publish("m", mapped).unwrap();
            let took = started.elapsed();
            registry.retire(set).unwrap().reclaimed(SOON).unwrap();
            took.as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [times[rounds / 2], times[0], times[rounds - 1]]
}

fn main() {
    let small = std::env::args().any(|argument| argument == "--test");
    let rounds = if small { 1 } else { 11 };
    let threads = std::thread::available_parallelism().map_or(1, |there| there.get().min(4));
    let directory =
        std::env::var_os("WEIGHBRIDGE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let name = if small { "small" } else { "large" };
    let path = directory.join(format!("weighbridge-load-{name}.safetensors"));
    let lengths = lengths(small);
    let total: usize = lengths.iter().map(|(_, len)| len).sum();
    if !path.exists() {
        write(&path, &lengths);
    }
    let file = File::open(&path).unwrap();
    let start = data_start(&file);
    let read = |at: u64, piece: &mut [u8]| {
        use std::os::unix::fs::FileExt;
        file.read_exact_at(piece, start + at).unwrap();
    };
    let hash = |at: u64, piece: &mut [u8]| {
        use blake3::hazmat::HasherExt;
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(at);
        hasher.update(piece);
        std::hint::black_box(hasher.finalize_non_root());
    };
    // It is in the page cache, and this memory has its pages.
    let mut there = Arena::allocate(total as u64).unwrap();
    by_threads(threads, there.as_mut_slice(), &read);
    let (mut declared, mut hashed) = (
        Pair::new(&path, threads, true),
        Pair::new(&path, threads, false),
    );
    let builder = || WeightRegistry::builder().readers(threads);
    let fresh = builder().build().unwrap();
    let pooled = |protect| {
        let builder = builder().pool_bytes(u64::MAX).write_protect(protect);
        builder.build().unwrap()
    };
    let [pool, protected] = [false, true].map(pooled);
    let publish = |routes: &mut Routes, registry: &WeightRegistry, name, checkpoint: Checkpoint| {
        let mut set = None;
        let publish = || set = Some(registry.publish("m", checkpoint).unwrap());
        match name {
            Some(name) => routes.time(name, publish),
            None => publish(),
        }
        let gone = registry.retire(set.unwrap()).unwrap();
        gone.reclaimed(SOON).unwrap();
    };
    let checkpoint = || Checkpoint::open(&path).unwrap();
    let mut routes = Routes {
        rows: Vec::new(),
        bytes: total as f64,
    };
    for registry in [&pool, &protected] {
        publish(&mut routes, registry, None, checkpoint().declared("r1"));
    }
    for _ in 0..rounds {
        let mut copies = Vec::new();
        routes.time(MAP_COPY, || {
            // SAFETY: nobody writes to the file.
            let map = unsafe { Mmap::map(&file).unwrap() };
            let mut at = start as usize;
            for (_, len) in &lengths {
                copies.push(map[at..at + len].to_vec());
                at += len;
            }
        });
        drop(copies);
        let mut arena = None;
        routes.time(PREAD_FRESH, || {
            let mut fresh = Arena::allocate(total as u64).unwrap();
            by_threads(threads, fresh.as_mut_slice(), &read);
            arena = Some(fresh);
        });
        drop(arena);
        publish(
            &mut routes,
            &fresh,
            Some(FRESH),
            checkpoint().declared("r1"),
        );
        routes.time(PREAD_AGAIN, || {
            by_threads(threads, there.as_mut_slice(), &read)
        });
        routes.time(AGAIN, || declared.swap());
        for (registry, name) in [(&pool, POOLED), (&protected, PROTECTED)] {
            publish(
                &mut routes,
                registry,
                Some(name),
                checkpoint().declared("r1"),
            );
        }
        publish(&mut routes, &fresh, Some(FRESH_HASHED), checkpoint());
        routes.time(PREAD_HASH, || {
            by_threads(threads, there.as_mut_slice(), &read);
            by_threads(threads, there.as_mut_slice(), &hash);
        });
        routes.time(AGAIN_HASHED, || hashed.swap());
    }
    let mapped = mapped(&directory, rounds, if small { 64 } else { 64 << 10 });
    println!(
        "{total} bytes, warm, {threads} threads, {rounds} rounds, GB/s: median (least - most)"
    );
    for (name, rates) in &routes.rows {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        println!(
            "{name:66} {:6.2}  ({least:.2} - {most:.2})",
            routes.median(name)
        );
    }
    let [median, least, most] = mapped;
    println!(
        "{median:6.2} ms ({least:.2} - {most:.2}, wanted 10): a thousand tensors opened, mapped and published"
    );
    for (ours, theirs, wanted) in [
        (FRESH, MAP_COPY, 3.0),
        (FRESH, PREAD_FRESH, 0.9),
        (AGAIN, MAP_COPY, 5.0),
        (AGAIN, PREAD_AGAIN, 0.9),
        (POOLED, MAP_COPY, 5.0),
        (POOLED, PREAD_AGAIN, 0.9),
        (PROTECTED, PREAD_AGAIN, 0.9),
        (AGAIN_HASHED, PREAD_HASH, 0.9),
    ] {
        let ratio = routes.median(ours) / routes.median(theirs);
        println!(
            "{ratio:6.2}x (wanted {wanted:.1}x)  {} / {}",
            ours.trim(),
            theirs.trim()
        );
    }
}
