//! Pressure: more sets than fit, wanted by many threads at once, from sources that fail.
//!
//! `cargo run --release --example pressure -- --minutes 2 --threads 32`. Every byte that is leased is
//! checked; the ledger's peak is compared with the limit; whoever waits too long is told; at the end
//! everything is evicted, and every byte must be back, in the ledger and from the allocator.

#[path = "../common/arguments.rs"]
mod arguments;
#[path = "../../tests/support/block_on.rs"]
mod block_on;
#[path = "../../tests/support/counting.rs"]
mod counting;
#[path = "../soak/random.rs"]
mod random;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arguments::number;
use block_on::block_on;
use hdrhistogram::Histogram;
use random::Random;
use weighbridge::policy::Lru;
use weighbridge::source::{Evictable, Source};
use weighbridge::{Dtype, Error, Plan, SetHandle, WeightRegistry};

const HELP: &str = "\
Wants more sets than there is room for, on many threads at once, from sources that fail now and then, and
checks every byte, the limit, and that nobody is stuck.

  cargo run --release --example pressure -- [OPTIONS]

  --minutes N     how long                                  [1]
  --seconds S     how long, in seconds
  --threads T     threads that want sets at the same time   [32]
  --sets N        how many sets there are                   [90]
  --share N       the limit is one N-th of them             [3]
  --seed S        decides what is drawn                     [1]
  --lru           evicts by LRU; without it, by SIEVE
  --pool          sets are eight times as large, memory is kept for the next load, a
                  quarter of the limit, and a soft limit lies a tenth below the hard one
  --help          this text

Exit code: 0 if every check passed, 1 if not, 2 if the command line is wrong.
";

/// Nobody may wait so long: whoever does is stuck.
const STUCK: Duration = Duration::from_secs(60);
/// One read in so many fails, and one panics.
const FAILS: usize = 40;

struct Options {
    time: Duration,
    threads: u64,
    sets: u64,
    share: u64,
    seed: u64,
    lru: bool,
    pool: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        time: Duration::from_secs(60),
        threads: 32,
        sets: 90,
        share: 3,
        seed: 1,
        lru: false,
        pool: false,
    };
    while let Some(option) = args.next() {
        match option.as_str() {
            "--help" => return Ok(None),
            "--lru" => {
                options.lru = true;
                continue;
            }
            "--pool" => {
                options.pool = true;
                continue;
            }
            _ => {}
        }
        let value = args.next().ok_or(format!("{option} takes a value"))?;
        let value = number(&option, &value)?;
        match option.as_str() {
            "--minutes" => options.time = Duration::from_secs(60 * value),
            "--seconds" => options.time = Duration::from_secs(value),
            "--threads" => options.threads = value,
            "--sets" => options.sets = value,
            "--share" => options.share = value,
            "--seed" => options.seed = value,
            _ => return Err(format!("there is no {option}; see --help")),
        }
    }
    Ok(Some(options))
}

/// Of what a set is made: of its number, over and over, in one to sixty-four tensors.
struct Made {
    plan: Plan,
    number: u64,
    fails: bool,
}

/// The same for a set whenever it is opened.
fn plan(number: u64, options: &Options) -> Plan {
    let mut random = Random::of(options.seed, number);
    let times = if options.pool { 8 } else { 1 };
    let tensors = (0..random.of_range(1..65)).map(|at| {
        let len = times * random.of_range(1..2001);
        (format!("t{at:02}"), Dtype::U64, vec![len])
    });
    let tensors: Vec<_> = tensors.collect();
    Plan::of("made", tensors).expect("it is legal")
}

impl Source for Made {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        for word in arena.chunks_exact_mut(8) {
            word.copy_from_slice(&self.number.to_le_bytes());
        }
        if self.fails {
            return Err(Error::Io {
                path: "made".into(),
                op: "read",
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        Ok(())
    }

    fn declared(&self) -> Option<&str> {
        Some("made")
    }
}

#[derive(Default)]
struct Sums {
    served: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    faults: AtomicU64,
}

fn count(of: &AtomicU64) {
    of.fetch_add(1, Ordering::Relaxed);
}

/// Of nanoseconds, up to two minutes.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("legal bounds")
}

/// What one thread does until the time is over.
fn work(
    registry: &Arc<WeightRegistry>,
    sets: &[SetHandle],
    sums: &Sums,
    mut random: Random,
    end: Instant,
) -> Histogram<u64> {
    let mut waits = histogram();
    while Instant::now() < end {
        // The lower its number, the more often a set is wanted.
        let some: Vec<usize> = (0..1 + random.below(3))
            .map(|_| random.below(sets.len()).min(random.below(sets.len())))
            .collect();
        let wanted: Vec<SetHandle> = some.iter().map(|&at| sets[at]).collect();
        let hurried = random.once_in(8);
        let started = Instant::now();
        let lease = if random.once_in(4) {
            let Some(answer) = block_on(registry.acquire_or_load_async(&wanted), STUCK) else {
                count(&sums.faults);
                eprintln!("stuck: nobody woke a future");
                continue;
            };
            answer
        } else if hurried {
            let patience = Duration::from_micros(random.below(5000) as u64);
            registry.acquire_or_load(&wanted, patience)
        } else {
            registry.acquire_or_load(&wanted, STUCK)
        };
        let took = started.elapsed();
        match lease {
            Ok(lease) => {
                count(&sums.served);
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                waits.saturating_record(nanos);
                for (at, set) in some.iter().zip(lease.sets()) {
                    let right = (*at as u64).to_le_bytes();
                    let clean = set.iter().all(|weight| {
                        let bytes = weight.expect("it is readable").bytes();
                        bytes.chunks_exact(8).all(|word| word == right)
                    });
                    if !clean {
                        count(&sums.faults);
                        eprintln!("set {at} has other bytes than its own");
                    }
                }
            }
            Err(Error::LoadFailed { .. } | Error::BackingOff { .. }) => count(&sums.failed),
            Err(Error::NotLoaded(overdue)) => {
                count(&sums.late);
                if !hurried {
                    count(&sums.faults);
                    eprintln!("stuck: {overdue}");
                }
            }
            Err(other) => {
                count(&sums.faults);
                eprintln!("{other}");
            }
        }
        if random.once_in(50) {
            let _ = registry.evict(sets[random.below(sets.len())]);
        }
    }
    waits
}

fn run(options: &Options) -> Result<bool, Error> {
    let plans: Vec<Plan> = (0..options.sets).map(|at| plan(at, options)).collect();
    let all: u64 = plans.iter().map(Plan::charged_bytes).sum();
    let limit = all / options.share;
    let builder = WeightRegistry::builder()
        .limit_bytes(limit)
        .load_backoff(Duration::from_micros(200), Duration::from_millis(5));
    let builder = if options.lru {
        builder.policy(Lru::new())
    } else {
        builder
    };
    let builder = if options.pool {
        let builder = builder.soft_limit_bytes(limit / 10 * 9);
        builder.pool_bytes(limit / 4)
    } else {
        builder
    };
    let registry = Arc::new(builder.build()?);
    let failing = Arc::new(AtomicBool::new(false));
    let drawn = Arc::new(Mutex::new(Random::of(options.seed, u64::MAX)));
    let mut sets = Vec::new();
    for (number, plan) in (0..).zip(plans) {
        let (failing, drawn) = (Arc::clone(&failing), Arc::clone(&drawn));
        let open = move || {
            let draw = failing.load(Ordering::Relaxed).then(|| {
                let mut drawn = drawn
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                drawn.below(FAILS)
            });
            assert!(draw != Some(1), "on purpose: a source that panics");
            Ok(Made {
                plan: plan.clone(),
                number,
                fails: draw == Some(0),
            })
        };
        let set = registry
            .publish(format!("s{number}"), Evictable::opened_by(open)?)
            .map_err(Error::from)?;
        registry.evict(set)?;
        sets.push(set);
    }
    println!(
        "{} sets of {all} bytes together, a limit of {limit}, {} threads, {:?}, {}{}",
        options.sets,
        options.threads,
        options.time,
        if options.lru { "LRU" } else { "SIEVE" },
        if options.pool { ", a pool" } else { "" },
    );
    // Panics of sources are part of it.
    std::panic::set_hook(Box::new(|_| ()));
    failing.store(true, Ordering::Relaxed);
    let (sums, end) = (Sums::default(), Instant::now() + options.time);
    let mut waits = histogram();
    thread::scope(|threads| {
        let start = |number| {
            let random = Random::of(options.seed, number);
            let (registry, sets, sums) = (&registry, &sets, &sums);
            threads.spawn(move || work(registry, sets, sums, random, end))
        };
        let started: Vec<_> = (0..options.threads).map(start).collect();
        for thread in started {
            match thread.join() {
                Ok(its) => waits.add(its).expect("the same range"),
                Err(_) => count(&sums.faults),
            }
        }
    });
    let stats = registry.stats();
    // Loads that nobody waits for any more may be under way.
    let patience = Instant::now() + STUCK;
    while registry.ledger().reserved > 0 && Instant::now() < patience {
        thread::yield_now();
    }
    for &set in &sets {
        while registry.evict(set).is_err() && Instant::now() < patience {
            thread::yield_now();
        }
    }
    // What went for the soft limit is freed by another thread.
    while registry.ledger().retired > 0 && Instant::now() < patience {
        thread::yield_now();
    }
    let ledger = registry.ledger();
    let [served, failed, late, faults] = [&sums.served, &sums.failed, &sums.late, &sums.faults]
        .map(|sum| sum.load(Ordering::Relaxed));
    let micros = |quantile: f64| waits.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{served} requests served, {failed} told of a failure, {late} too hurried; {} loads, {} evictions",
        stats.loads, stats.evictions
    );
    println!(
        "waited (us): median {:.1}, 99 % {:.0}, 99.9 % {:.0}, most {:.0}",
        micros(0.5),
        micros(0.99),
        micros(0.999),
        waits.max() as f64 / 1e3
    );
    let checks = [
        (
            ledger.peak <= limit,
            "the limit was never passed",
            format!("peak {}", ledger.peak),
        ),
        (
            ledger.total() == ledger.pooled && registry.empty_pool()? == ledger.pooled,
            "every byte is back",
            format!(
                "{} bytes are left, {} were in the pool",
                registry.ledger().total(),
                ledger.pooled
            ),
        ),
        (
            stats.waiting == 0,
            "nobody is left in the line",
            stats.waiting.to_string(),
        ),
        (
            faults == 0,
            "every byte was the right one, and nobody was stuck",
            faults.to_string(),
        ),
        (
            served > 0 && failed > 0 && stats.evictions > 0,
            "it was under pressure",
            String::new(),
        ),
    ];
    for (passed, what, figure) in &checks {
        println!(
            "{}  {what}  {figure}",
            if *passed { "PASS" } else { "FAIL" }
        );
    }
    Ok(checks.iter().all(|(passed, ..)| *passed))
}

/// Anonymous memory of this process that is in memory, in bytes; zero where the system does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("pressure: {message}");
            return ExitCode::from(2);
        }
    };
    let (before, mapped) = (counting::live(), resident());
    match run(&options) {
        Ok(passed) => {
            // What this thread keeps for a registry that is gone, the entries of threads that are gone among
            // it, goes when it uses another one.
            if let Ok(another) = WeightRegistry::builder().build() {
                another.scope(|_| ());
            }
            // What the standard library keeps for its threads and the panic hook is small.
            let left = counting::live().saturating_sub(before);
            let gone = left < 256 << 10;
            println!(
                "{}  memory is back  {left} bytes more than at the start",
                if gone { "PASS" } else { "FAIL" }
            );
            // Arenas of a mebibyte and more are mappings, which no allocator counts. The allocator itself keeps tens of
            // megabytes for threads that are gone; with --pool every second of lost mappings would be gigabytes.
            let more = resident().saturating_sub(mapped);
            let back = more < 256 << 20;
            println!(
                "{}  mappings are back  {more} bytes more in memory than at the start",
                if back { "PASS" } else { "FAIL" }
            );
            if passed && gone && back {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("pressure: {error}");
            ExitCode::FAILURE
        }
    }
}
