//! Three ways to schedule the same requests, counted in rounds.
//!
//! What is here: random traces (seeded, the same on every machine), the scheduler of this crate on a real registry,
//! and two others for comparison. A round is one step of the model, in which every request that runs makes
//! one token; a swap costs no time here, it is counted. Everything is resident.
//!
//! ```console
//! cargo run --release -p weighbridge-scheduler --example traces
//! ```

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;

use weighbridge::source::InMemory;
use weighbridge::{Dtype, SetHandle, WeightRegistry};
use weighbridge_scheduler::{Limits, Scheduler, Turn};

const RUNNING: usize = 32;
const ADAPTERS: usize = 8;
const REQUESTS: usize = 4_000;
/// Mean rounds that a request runs.
const LENGTH: f64 = 20.0;

/// One request of a trace.
#[derive(Clone, Copy)]
struct Request {
    comes: u64,
    adapter: usize,
    runs: u64,
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How a trace is drawn.
#[derive(Clone, Copy)]
struct Kind {
    adapters: usize,
    /// Zipf's; 0: all adapters alike.
    exponent: f64,
    /// Geometric lengths; otherwise all requests run equally long.
    geometric: bool,
    /// Requests per round, of the most that `RUNNING` places could serve.
    load: f64,
}

fn trace(kind: Kind) -> Vec<Request> {
    let mut random = Random(2026);
    let weights = (1..=kind.adapters).map(|rank| (rank as f64).powf(-kind.exponent));
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let all = sums[kind.adapters - 1];
    let rate = kind.load * RUNNING as f64 / LENGTH;
    let mut now = 0.0;
    (0..REQUESTS)
        .map(|_| {
            // A Poisson process.
            now -= (1.0 - random.next()).ln() / rate;
            let drawn = random.next() * all;
            let adapter = sums.partition_point(|&sum| sum <= drawn);
            let geometric = (1.0 - random.next()).ln() / (1.0 - 1.0 / LENGTH).ln();
            Request {
                comes: now as u64,
                adapter: adapter.min(kind.adapters - 1),
                runs: if kind.geometric {
                    geometric.ceil().max(1.0) as u64
                } else {
                    LENGTH as u64
                },
            }
        })
        .collect()
}

/// What a policy came to.
struct Outcome {
    swaps: u64,
    waited: Vec<u64>,
    rounds: u64,
}

impl Outcome {
    fn new() -> Self {
        Outcome {
            swaps: 0,
            waited: Vec::new(),
            rounds: 0,
        }
    }

    /// Swaps per thousand requests; rounds waited, median, 99 of 100, the longest; requests served per round.
    fn figures(mut self) -> [String; 5] {
        self.waited.sort_unstable();
        let count = self.waited.len();
        let waited = |part: f64| self.waited[((count - 1) as f64 * part) as usize].to_string();
        [
            format!("{:.0}", self.swaps as f64 * 1000.0 / count as f64),
            waited(0.5),
            waited(0.99),
            waited(1.0),
            format!("{:.2}", count as f64 / self.rounds as f64),
        ]
    }
}

/// One row: the trace, and each figure of all policies side by side.
fn row(kind: Kind, outcomes: Vec<Outcome>) {
    let figures: Vec<[String; 5]> = outcomes.into_iter().map(Outcome::figures).collect();
    let cells: Vec<String> = (0..5)
        .map(|at| {
            let cell: Vec<&str> = figures.iter().map(|of| of[at].as_str()).collect();
            cell.join(" / ")
        })
        .collect();
    println!(
        "| {} | {} | {} | {} | {} |",
        kind.adapters,
        kind.exponent,
        if kind.geometric { "geometric" } else { "fixed" },
        kind.load,
        cells.join(" | "),
    );
}

const HEAD: &str = "| adapters | Zipf | lengths | load | swaps per 1000 | waited, p50 | p99 | longest | served per round |
|---|---|---|---|---|---|---|---|---|";

/// Requests that run: until when, and of which adapter.
#[derive(Default)]
struct Batch(Vec<(u64, usize)>);

impl Batch {
    fn adapters(&self) -> usize {
        let mut all: Vec<usize> = self.0.iter().map(|one| one.1).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    fn has(&self, adapter: usize) -> bool {
        self.0.iter().any(|one| one.1 == adapter)
    }
}

/// What a simple policy lets join: the first of those that wait, as often as it says so.
fn in_turn(requests: &[Request], may: impl Fn(&Batch, usize) -> bool) -> Outcome {
    let (mut batch, mut queue) = (Batch::default(), VecDeque::new());
    let mut outcome = Outcome::new();
    let mut coming = requests.iter().peekable();
    while coming.peek().is_some() || !queue.is_empty() || !batch.0.is_empty() {
        let round = outcome.rounds;
        batch.0.retain(|one| one.0 > round);
        while let Some(request) = coming.next_if(|request| request.comes <= round) {
            queue.push_back(request);
        }
        while let Some(request) = queue.front().filter(|one| may(&batch, one.adapter)) {
            outcome.swaps += u64::from(!batch.has(request.adapter));
            outcome.waited.push(round - request.comes);
            batch.0.push((round + request.runs, request.adapter));
            queue.pop_front();
        }
        outcome.rounds += 1;
    }
    outcome
}

/// First come first served, with the limits that ours has.
fn fifo(requests: &[Request]) -> Outcome {
    in_turn(requests, |batch, adapter| {
        let place = batch.has(adapter) || batch.adapters() < ADAPTERS;
        batch.0.len() < RUNNING && place
    })
}

/// By the published rules of rlx-runtime 0.2.19 (`LoraScheduler::drain_batch`): the head of the queue and those
/// directly behind it for the same adapter are one batch, which runs to its end before the next begins.
fn adjacent(requests: &[Request]) -> Outcome {
    let mut outcome = Outcome::new();
    let (mut coming, mut queue) = (requests.iter().peekable(), VecDeque::new());
    let mut loaded = None;
    while coming.peek().is_some() || !queue.is_empty() {
        let round = outcome.rounds;
        while let Some(request) = coming.next_if(|request| request.comes <= round) {
            queue.push_back(request);
        }
        let Some(&head) = queue.front() else {
            outcome.rounds += 1;
            continue;
        };
        let mut longest = 0;
        for _ in 0..RUNNING {
            let Some(next) = queue.pop_front_if(|next| next.adapter == head.adapter) else {
                break;
            };
            longest = longest.max(next.runs);
            outcome.waited.push(round - next.comes);
        }
        // What is loaded already is no swap.
        outcome.swaps += u64::from(loaded.replace(head.adapter) != Some(head.adapter));
        outcome.rounds += longest;
    }
    outcome
}

/// The scheduler of this crate.
fn ours(world: &World, requests: &[Request], patience: u64) -> Result<Outcome, Box<dyn Error>> {
    let limits = Limits::default().running(RUNNING).adapters(ADAPTERS);
    let limits = limits.waiting(REQUESTS).patience(patience);
    let scheduler = Scheduler::new(Arc::clone(&world.registry), limits)?;
    let mut batch: Vec<(u64, Turn<Request>)> = Vec::new();
    let mut waited = Vec::new();
    let mut rounds = 0;
    let mut coming = requests.iter().peekable();
    while coming.peek().is_some() || scheduler.waiting() > 0 || !batch.is_empty() {
        batch.retain(|one| one.0 > rounds);
        while let Some(request) = coming.next_if(|request| request.comes <= rounds) {
            let adapter = Some(world.adapters[request.adapter]);
            scheduler.admit(world.base, adapter, "trace", *request)?;
        }
        for turn in scheduler.schedule().joined {
            waited.push(rounds - turn.payload.comes);
            batch.push((rounds + turn.payload.runs, turn));
        }
        rounds += 1;
    }
    Ok(Outcome {
        swaps: scheduler.stats().swaps,
        waited,
        rounds,
    })
}

struct World {
    registry: Arc<WeightRegistry>,
    base: SetHandle,
    adapters: Vec<SetHandle>,
}

fn world(adapters: usize) -> Result<World, Box<dyn Error>> {
    let registry = Arc::new(WeightRegistry::builder().build()?);
    let checkpoint = InMemory::new().tensor("q.weight", Dtype::F32, [2, 2], vec![0; 16])?;
    let base = registry.publish("base", checkpoint)?;
    let publish = |at: usize| -> Result<SetHandle, Box<dyn Error>> {
        let (a, b) = (vec![at as u8; 8], vec![at as u8; 8]);
        let lora = InMemory::new().lora("q", Dtype::F32, ([1, 2], a), ([2, 1], b), 1.0)?;
        Ok(registry.publish(format!("adapter-{at}"), lora.on(base))?)
    };
    let adapters = (0..adapters).map(publish).collect::<Result<_, _>>()?;
    Ok(World {
        registry,
        base,
        adapters,
    })
}

const LOADS: [(bool, f64); 4] = [(true, 0.2), (true, 0.6), (true, 0.95), (false, 0.6)];

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "{REQUESTS} requests of {LENGTH} rounds (mean); {RUNNING} run at once, of {ADAPTERS} adapters. Load: of the {} \
         requests per round that {RUNNING} places could serve.\n",
        RUNNING as f64 / LENGTH
    );
    println!(
        "adjacent only / first come first served / ours with a patience of 64 rounds\n\n{HEAD}"
    );
    let worlds = [(64, world(64)?), (1000, world(1000)?)];
    let kinds = worlds.iter().flat_map(|(adapters, world)| {
        let exponents = [0.0, 0.9, 1.2].into_iter();
        exponents.flat_map(move |exponent| {
            LOADS.map(|(geometric, load)| {
                let adapters = *adapters;
                let kind = Kind {
                    adapters,
                    exponent,
                    geometric,
                    load,
                };
                (world, kind)
            })
        })
    });
    for (world, kind) in kinds.clone() {
        let requests = trace(kind);
        let ours = ours(world, &requests, 64)?;
        row(kind, vec![adjacent(&requests), fifo(&requests), ours]);
    }
    println!("\nours with a patience of 0 / 16 / 64 / 256 / 1024 rounds\n\n{HEAD}");
    for (world, kind) in kinds.filter(|(_, kind)| kind.exponent == 0.9) {
        let requests = trace(kind);
        let all = [0, 16, 64, 256, 1024].map(|patience| ours(world, &requests, patience));
        row(kind, all.into_iter().collect::<Result<_, _>>()?);
    }
    Ok(())
}
