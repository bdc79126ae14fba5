//! What requests feel of the registry's heavy work, beside what they feel of the same traffic without one.
//!
//! `cargo bench -p weighbridge-benches --bench tails` has one thread lease sets, 32 requests every 50
//! microseconds, while something heavy goes on in the same registry; and then, while that is idle and plain
//! threads move the same bytes, no faster. Rounds of both take turns, in the order A B B A. With
//! `--test` it is little work and one short pair.
//!
//! Options: `--only NAME` (quiet, retire, loads, swap, swapped), `--rounds N`, `--seconds S` of a round,
//! `--json PATH` for a row of each round. Files go where WEIGHBRIDGE_BENCH_DIR says, or to the system's
//! directory for temporary ones: 250 MB.
//!
//! What lives here: the scenarios, and who is on turn. What does not: the thread that is measured
//! (`requests`), the work beside it (`beside`), the tables (`figures`).

#[path = "tails/beside.rs"]
mod beside;
#[path = "tails/figures.rs"]
mod figures;
#[path = "tails/requests.rs"]
mod requests;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use beside::{
    Files, Loads, Parts, PlainLoads, PlainRetire, PlainSwap, Quiet, Retire, Revision, Swap, Watch,
    Work,
};
use figures::{Round, Scenario};
use requests::Reader;
use weighbridge_benches::{registry_of, tensor_name};

const PERIOD: Duration = Duration::from_micros(50);
const SETS: usize = 64;
const TENSORS: usize = 1120;
const NAMES: [&str; 5] = ["quiet", "retire", "loads", "swap", "swapped"];

struct Options {
    small: bool,
    only: Option<String>,
    rounds: usize,
    time: Duration,
    json: Option<PathBuf>,
}

impl Options {
    fn read() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(at + 1).expect("a value").clone())
        };
        let small = arguments.iter().any(|argument| argument == "--test");
        let seconds = value("--seconds").map(|value| value.parse().expect("seconds"));
        let rounds = value("--rounds").map(|value| value.parse().expect("a number"));
        let only = value("--only");
        if let Some(only) = &only {
            assert!(NAMES.contains(&only.as_str()), "one of {NAMES:?}");
        }
        Options {
            small,
            only,
            rounds: rounds.unwrap_or(if small { 1 } else { 11 }),
            time: Duration::from_secs_f64(seconds.unwrap_or(if small { 0.02 } else { 1.0 })),
            json: value("--json").map(PathBuf::from),
        }
    }
}

/// Bytes of the large set: 1 GiB, or less if there is too little memory.
fn large(small: bool) -> usize {
    let wanted = if small { 8 << 20 } else { 1 << 30 };
    // There is never more than one, and what the kernel has not zeroed yet.
    let Some(available) = available() else {
        return wanted;
    };
    if available / 2 >= wanted {
        return wanted;
    }
    let less = (available / 4).next_multiple_of(64 << 20);
    println!("{available} bytes of memory are available: the large set has {less}");
    less
}

fn available() -> Option<usize> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

/// Who is measured, and what goes on meanwhile: the registry's work, and the control. The same reader of the
/// same registry in both: where its memory happens to be makes more of a difference than what goes on.
struct Scene {
    reader: Reader,
    ours: Box<dyn Work>,
    control: Box<dyn Work>,
}

impl Scene {
    fn round(&self, work: &dyn Work, time: Duration, pace: Option<f64>) -> Round {
        let watch = Watch::begin(pace);
        thread::scope(|scope| {
            scope.spawn(|| work.run(&watch));
            // Threads are started, and the first bytes on their way.
            thread::sleep(time / 10);
            let (moved, preempted) = (watch.moved(), preempted());
            let started = Instant::now();
            let samples = self.reader.serve(PERIOD, time);
            let took = started.elapsed().as_secs_f64();
            let rate = (watch.moved() - moved) as f64 / took;
            let preempted = self::preempted() - preempted;
            watch.end();
            Round::of(&samples, rate, preempted)
        })
    }
}

/// How often the system has taken this thread's core away so far, if it tells.
fn preempted() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

fn scene(name: &str, small: bool) -> Scene {
    let (registry, sets) = registry_of(SETS);
    let registry = Arc::new(registry);
    let reader = Reader::of(&registry, &sets, &tensor_name(0));
    let scene = |reader, ours: Box<dyn Work>, control: Box<dyn Work>| Scene {
        reader,
        ours,
        control,
    };
    match name {
        "quiet" => scene(reader, Box::new(Quiet), Box::new(Quiet)),
        "retire" => {
            let bytes = large(small);
            let ours = Retire::of(&registry, bytes);
            scene(reader, Box::new(ours), Box::new(PlainRetire { bytes }))
        }
        "loads" => {
            let directory = std::env::var_os("WEIGHBRIDGE_BENCH_DIR")
                .map_or_else(std::env::temp_dir, PathBuf::from);
            let unit = if small { 64 << 10 } else { 1 << 20 };
            let (files, sources) = Files::at(&directory, 100, unit);
            let ours = Loads::of(&registry, sources);
            scene(reader, Box::new(ours), Box::new(PlainLoads(files)))
        }
        _ => {
            let bytes = if small { 256 } else { 16 << 10 };
            let parts = Arc::new(Parts::of(TENSORS, bytes));
            let first = Revision(&parts, "first".to_owned());
            let set = registry.publish("many", first).unwrap();
            let reader = if name == "swapped" {
                Reader::of(&registry, &[set], &tensor_name(7))
            } else {
                reader
            };
            let control = PlainSwap(Arc::clone(&parts));
            let ours = Swap {
                registry,
                set,
                parts,
            };
            scene(reader, Box::new(ours), Box::new(control))
        }
    }
}

fn measure(name: &'static str, options: &Options) -> Scenario {
    let scene = scene(name, options.small);
    let mut scenario = Scenario {
        name,
        ours: Vec::new(),
        control: Vec::new(),
    };
    for pair in 0..options.rounds {
        for ours_now in [pair % 2 == 0, pair % 2 == 1] {
            if ours_now {
                let round = scene.round(&*scene.ours, options.time, None);
                scenario.ours.push(round);
            } else {
                // The first of all is ours.
                let pace = scenario.ours.last().map(|round| round.rate);
                let pace = pace.filter(|&pace| pace > 0.0);
                let round = scene.round(&*scene.control, options.time, pace);
                scenario.control.push(round);
            }
        }
    }
    scenario
}

fn main() {
    let options = Options::read();
    println!(
        "32 requests are due every {PERIOD:?}; a round takes {:?}",
        options.time
    );
    let mut rows = Vec::new();
    for name in NAMES {
        if options.only.as_deref().is_none_or(|only| only == name) {
            let scenario = measure(name, &options);
            scenario.print();
            rows.extend(scenario.json());
        }
    }
    if let Some(path) = &options.json {
        std::fs::write(path, format!("[\n{}\n]\n", rows.join(",\n"))).expect("written");
    }
}
