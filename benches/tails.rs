//! What requests feel of the registry's heavy work, beside what they feel of the same traffic without one.
//!
//! `cargo bench -p weighbridge-benches --bench tails` has one thread lease sets, 32 requests every 50
//! microseconds, while something heavy goes on in the same registry; and then, on an idle registry, while
//! plain threads move the same bytes in the same time: on both sides a quarter of what the registry can move. Rounds of both take turns, in the order A B B A. With
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
use requests::{OffCore, Reader};
use weighbridge::WeightRegistry;
use weighbridge_benches::{registry_of, tensor_name};

const PERIOD: Duration = Duration::from_micros(50);
/// How much of what the registry can move goes on beside the requests.
const SHARE: f64 = 0.25;
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
    eprintln!("{available} bytes of memory are available: the large set has {less}");
    less
}

fn available() -> Option<usize> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

/// One side of a scenario: who is measured, and what goes on meanwhile.
struct Side {
    reader: Reader,
    work: Box<dyn Work>,
}

impl Side {
    fn round(&self, time: Duration, pace: Option<f64>) -> Round {
        let watch = Watch::begin(pace);
        thread::scope(|scope| {
            scope.spawn(|| self.work.run(&watch));
            // Threads are started, and the first bytes on their way.
            thread::sleep(time / 10);
            let (moved, off) = (watch.moved(), OffCore::so_far());
            let started = Instant::now();
            let samples = self.reader.serve(PERIOD, time);
            let took = started.elapsed().as_secs_f64();
            let rate = (watch.moved() - moved) as f64 / took;
            let off = OffCore::so_far().since(off);
            watch.end();
            Round::of(&samples, rate, off)
        })
    }
}

/// A registry of small sets, and who reads them.
fn small_sets() -> (Arc<WeightRegistry>, Reader) {
    let (registry, sets) = registry_of(SETS);
    let registry = Arc::new(registry);
    let reader = Reader::of(&registry, &sets, &tensor_name(0));
    (registry, reader)
}

/// The registry's side, and the control, each with a registry that is new: where its memory happens to be
/// makes a difference of some per cent, and so each pair of rounds has another, made in another order.
fn sides(name: &str, small: bool, ours_first: bool) -> [Side; 2] {
    let mut made = [small_sets(), small_sets()];
    if !ours_first {
        made.reverse();
    }
    let [(busy, reader), (idle, control)] = made;
    let side = |reader, work: Box<dyn Work>| Side { reader, work };
    match name {
        "quiet" => [
            side(reader, Box::new(Quiet)),
            side(control, Box::new(Quiet)),
        ],
        "retire" => {
            let bytes = large(small);
            [
                side(reader, Box::new(Retire::of(&busy, bytes))),
                side(control, Box::new(PlainRetire { bytes })),
            ]
        }
        "loads" => {
            let directory = std::env::var_os("WEIGHBRIDGE_BENCH_DIR")
                .map_or_else(std::env::temp_dir, PathBuf::from);
            let unit = if small { 64 << 10 } else { 1 << 20 };
            let (files, sources) = Files::at(&directory, 100, unit);
            [
                side(reader, Box::new(Loads::of(&busy, sources))),
                side(control, Box::new(PlainLoads(files))),
            ]
        }
        _ => {
            let bytes = if small { 256 } else { 16 << 10 };
            let parts = Arc::new(Parts::of(TENSORS, bytes));
            let publish = |registry: &WeightRegistry| {
                let first = Revision(&parts, "first".to_owned());
                registry.publish("many", first).unwrap()
            };
            let (set, still) = (publish(&busy), publish(&idle));
            let [reader, control] = if name == "swapped" {
                let tensor = tensor_name(7);
                [
                    Reader::of(&busy, &[set], &tensor),
                    Reader::of(&idle, &[still], &tensor),
                ]
            } else {
                [reader, control]
            };
            let plain = PlainSwap(Arc::clone(&parts));
            let swap = Swap {
                registry: busy,
                set,
                parts,
            };
            [side(reader, Box::new(swap)), side(control, Box::new(plain))]
        }
    }
}

fn measure(name: &'static str, options: &Options) -> Scenario {
    let mut scenario = Scenario {
        name,
        ours: Vec::new(),
        control: Vec::new(),
    };
    // Not as much as goes: then who is slower would have more to do all the time. Both sides do the same in
    // the same time, and have time left.
    let [unpaced, _] = sides(name, options.small, true);
    let most = unpaced.round(options.time, None).rate;
    let pace = (most > 0.0).then_some(most * SHARE);
    drop(unpaced);
    for pair in 0..options.rounds {
        let ours_first = pair % 2 == 0;
        let [ours, control] = sides(name, options.small, ours_first);
        for ours_now in [ours_first, !ours_first] {
            if ours_now {
                scenario.ours.push(ours.round(options.time, pace));
            } else {
                scenario.control.push(control.round(options.time, pace));
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
