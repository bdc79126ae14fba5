//! How often a set has to be loaded, by policy: SIEVE beside LRU, on the same traces.
//!
//! `cargo bench -p weighbridge-benches --bench policies` has a registry for each trace, size of its memory
//! and policy, with 2,000 sets that can be evicted, and asks it for one after the other with
//! `acquire_or_load`. What is counted is what the registry loads: nothing here is a matter of time, and the
//! figures are the same on every run. With `--test` it is a small registry and few requests.
//!
//! Beside them are the same policies as textbooks have them, told of every request at once, which the
//! registry's are not; and, where all sets are of one size, the best that a policy could do that knew the
//! future.
//!
//! What lives here: the registry's side, and the tables. What does not: what is wanted (`traces`), the
//! textbooks' policies (`reference`).

#[path = "policies/reference.rs"]
mod reference;
#[path = "policies/traces.rs"]
mod traces;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reference::{Best, Cache, ExactLru, ExactSieve};
use traces::{Kind, Random};
use weighbridge::policy::{Lru, Policy, Sieve};
use weighbridge::source::{Evictable, Source};
use weighbridge::{Dtype, Error, Plan, SetHandle, WeightRegistry};

const SEED: u64 = 0x0005_E70F_5E75;
const SOON: Duration = Duration::from_secs(60);
/// Bytes of a set for each rank of its adapter: as few as the ledger tells apart.
const BYTES_PER_RANK: usize = 64;

/// Bytes that cost next to nothing, and are counted.
struct Counted {
    plan: Plan,
    read: Arc<AtomicU64>,
}

impl Source for Counted {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.read.fetch_add(arena.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn declared(&self) -> Option<&str> {
        Some("r1")
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Sizes {
    Equal,
    Mixed,
}

impl Sizes {
    fn name(self) -> &'static str {
        match self {
            Sizes::Equal => "all sets of rank 16",
            Sizes::Mixed => "a third each of rank 8, 16 and 64",
        }
    }
}

/// The rank of each set, whatever its popularity.
fn ranks(sizes: Sizes, sets: usize) -> Vec<usize> {
    let mut random = Random::seeded(SEED ^ 1);
    let mut rank = || match sizes {
        Sizes::Equal => 16,
        Sizes::Mixed => [8, 16, 64][random.below(3)],
    };
    (0..sets).map(|_| rank()).collect()
}

/// What one policy did with one trace, after it had warmed up.
#[derive(Clone, Copy, PartialEq)]
struct Did {
    loads: u64,
    bytes: u64,
}

type Figure = fn(&Did) -> u64;

/// One line of the table.
struct Cell {
    kind: Kind,
    sizes: Sizes,
    /// The share of all sets that fits, in per cent.
    percent: usize,
}

struct Line {
    cell: Cell,
    /// Requests that were counted.
    counted: usize,
    sieve: Did,
    lru: Did,
    exact_sieve: Did,
    exact_lru: Did,
    /// `None`: nobody knows.
    best: Option<Did>,
}

/// A trace, and what it is played to.
struct Play {
    trace: Vec<usize>,
    ranks: Vec<usize>,
    room: u64,
    /// So many requests are not counted.
    warm: usize,
}

impl Play {
    fn bytes(&self, set: usize) -> u64 {
        (self.ranks[set] * BYTES_PER_RANK) as u64
    }

    fn by_registry(&self, policy: impl Policy) -> Did {
        let registry = WeightRegistry::builder()
            .limit_bytes(self.room)
            .policy(policy)
            .build()
            .unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let publish = |(at, rank): (usize, &usize)| -> SetHandle {
            let shape = vec![rank * BYTES_PER_RANK];
            let plan = Plan::of("an adapter", [("w", Dtype::U8, shape)]).unwrap();
            assert_eq!(plan.charged_bytes(), self.bytes(at));
            let read = Arc::clone(&read);
            let source = Evictable::new(Counted { plan, read });
            let set = registry.publish(format!("s{at:05}"), source).unwrap();
            registry.evict(set).unwrap();
            set
        };
        let sets: Vec<SetHandle> = self.ranks.iter().enumerate().map(publish).collect();
        let now = || Did {
            loads: registry.stats().loads,
            bytes: read.load(Ordering::Relaxed),
        };
        let mut before = now();
        for (at, &set) in self.trace.iter().enumerate() {
            if at == self.warm {
                before = now();
            }
            drop(registry.acquire_or_load(sets[set], SOON).unwrap());
        }
        let after = now();
        Did {
            loads: after.loads - before.loads,
            bytes: after.bytes - before.bytes,
        }
    }

    fn by_textbook(&self, mut cache: impl Cache) -> Did {
        let mut did = Did { loads: 0, bytes: 0 };
        for (at, &set) in self.trace.iter().enumerate() {
            let bytes = self.bytes(set);
            if !cache.wants(set, bytes) && at >= self.warm {
                did.loads += 1;
                did.bytes += bytes;
            }
        }
        did
    }
}

fn play(cell: Cell, sets: usize, requests: usize) -> Line {
    let population = cell.kind.population(sets);
    let ranks = ranks(cell.sizes, population);
    let all: usize = ranks[..sets].iter().map(|rank| rank * BYTES_PER_RANK).sum();
    let largest = 64 * BYTES_PER_RANK;
    let play = Play {
        trace: cell.kind.draw(sets, requests, SEED),
        room: (all * cell.percent / 100).max(largest) as u64,
        ranks,
        warm: requests / 5,
    };
    Line {
        counted: requests - play.warm,
        sieve: play.by_registry(Sieve::new()),
        lru: play.by_registry(Lru::new()),
        exact_sieve: play.by_textbook(ExactSieve::of(play.room)),
        exact_lru: play.by_textbook(ExactLru::of(play.room)),
        best: (cell.sizes == Sizes::Equal)
            .then(|| play.by_textbook(Best::of(play.room, &play.trace))),
        cell,
    }
}

fn cells() -> Vec<Cell> {
    let zipf = [0.6, 0.8, 1.0, 1.2].map(Kind::Zipf);
    let others = [
        Kind::Uniform,
        Kind::Shifts,
        Kind::Drifts,
        Kind::OneTime,
        Kind::Sweeps,
    ];
    let mut cells = Vec::new();
    for sizes in [Sizes::Equal, Sizes::Mixed] {
        for kind in zipf.into_iter().chain(others) {
            for percent in [1, 5, 10, 25] {
                cells.push(Cell {
                    kind,
                    sizes,
                    percent,
                });
            }
        }
    }
    cells
}

fn print(lines: &[Line], sizes: Sizes) {
    println!("\nLoads per request, {}; MB loaded\n", sizes.name());
    println!(
        "| trace | fits | SIEVE | LRU | SIEVE / LRU | textbook SIEVE | textbook LRU | best | SIEVE, MB | LRU, MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for line in lines.iter().filter(|line| line.cell.sizes == sizes) {
        let rate = |did: Did| format!("{:.3}", did.loads as f64 / line.counted as f64);
        let megabytes = |did: Did| format!("{:.1}", did.bytes as f64 / 1e6);
        println!(
            "| {} | {} % | {} | {} | {:.2} | {} | {} | {} | {} | {} |",
            line.cell.kind.name(),
            line.cell.percent,
            rate(line.sieve),
            rate(line.lru),
            line.sieve.loads as f64 / line.lru.loads as f64,
            rate(line.exact_sieve),
            rate(line.exact_lru),
            line.best.map_or_else(|| "-".to_owned(), rate),
            megabytes(line.sieve),
            megabytes(line.lru),
        );
    }
}

fn main() {
    let small = std::env::args().any(|argument| argument == "--test");
    let (sets, requests) = if small { (40, 400) } else { (2_000, 100_000) };
    let threads = std::thread::available_parallelism().map_or(1, |there| there.get());
    let cells = cells();
    let lines: Vec<Mutex<Option<Line>>> = cells.iter().map(|_| Mutex::new(None)).collect();
    let queue = Mutex::new(cells.into_iter().zip(&lines));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((cell, line)) = next else { return };
                    *line.lock().unwrap() = Some(play(cell, sets, requests));
                }
            });
        }
    });
    let lines: Vec<Line> = lines
        .into_iter()
        .filter_map(|line| line.into_inner().unwrap())
        .collect();
    println!(
        "{sets} sets, {requests} requests, of which the first {} only warm up",
        requests / 5
    );
    for sizes in [Sizes::Equal, Sizes::Mixed] {
        print(&lines, sizes);
    }
    let (loads, bytes): (Figure, Figure) = (|did| did.loads, |did| did.bytes);
    for (what, figure) in [("loads more often", loads), ("loads more bytes", bytes)] {
        println!("\nSIEVE {what} than LRU:");
        for line in &lines {
            let (sieve, lru) = (figure(&line.sieve), figure(&line.lru));
            if sieve > lru {
                println!(
                    "- {}, {} %, {}: {sieve} instead of {lru}",
                    line.cell.kind.name(),
                    line.cell.percent,
                    line.cell.sizes.name()
                );
            }
        }
    }
}
