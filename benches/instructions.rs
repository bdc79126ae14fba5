//! How many instructions things take: a number that noise does not touch.
//!
//! `cargo bench -p weighbridge-benches --bench instructions`. Each work is done by this very program under valgrind's
//! callgrind, often and more often; the difference, per time, is what one takes. Some have a budget; if one takes more, the exit code
//! is 1. `--test` does every work once, without valgrind.

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use weighbridge::source::{Checkpoint, Streamed};
use weighbridge::{Error, Lease, Order, Parts, Stream, WeightHandle, WeightRegistry, WindowSize};

const SOON: Duration = Duration::from_secs(60);
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny-llama");
const LAYERS: usize = 4;
/// The work is done so often, and so many times more; what takes long by itself, a hundredth of that.
const TIMES: [u64; 2] = [20_000, 220_000];

/// What is counted, what one of it may take at most (0: whatever it takes), and what it is.
const WORKS: [(&str, u64, &str); 9] = [
    ("acquire", 224, "acquire one set, and drop the lease"),
    (
        "array",
        0,
        "an element of a plain array of slices, for comparison",
    ),
    ("weight", 24, "a tensor of a lease, by its handle"),
    ("second weight", 76, "the same of the second set of a lease"),
    (
        "layers leased",
        0,
        "every 8 bytes of all layers, under a lease",
    ),
    (
        "layers streamed",
        0,
        "the same by a stream, with every part in memory",
    ),
    (
        "part",
        112,
        "a part, if every part is in memory, and giving it back",
    ),
    (
        "part in window",
        1_900,
        "a part that is there in a window that has not room for all, and giving it back",
    ),
    ("part weight", 80, "a tensor of a part, by its handle"),
];

struct Bench {
    registry: Arc<WeightRegistry>,
    /// The checkpoint as it is, and streamed with a window of so many layers.
    lease: Lease,
    layers: Vec<Vec<WeightHandle>>,
    streamed: Vec<Vec<WeightHandle>>,
    stream: Stream,
}

impl Bench {
    fn new(window: u32) -> Result<Self, Error> {
        let registry = Arc::new(WeightRegistry::builder().build()?);
        let plain = registry.publish("plain", Checkpoint::open(MODEL)?)?;
        let source = Streamed::new(
            Checkpoint::open(MODEL)?,
            &Parts::layers(),
            WindowSize::Parts(window),
        )?;
        let set = registry.publish("streamed", source)?;
        let handles = |set| {
            let lease = registry.acquire(set)?;
            let of_layer = |layer: usize| {
                let prefix = format!("model.layers.{layer}.");
                let names = lease
                    .set(set)?
                    .layout()
                    .tensors()
                    .map(|(_, info)| info.name().to_owned());
                let names = names
                    .filter(|name| name.starts_with(&prefix))
                    .collect::<Vec<_>>();
                names
                    .iter()
                    .map(|name| registry.weight_handle(set, name))
                    .collect()
            };
            (0..LAYERS)
                .map(of_layer)
                .collect::<Result<Vec<Vec<_>>, Error>>()
        };
        let (layers, streamed) = (handles(plain)?, handles(set)?);
        let order = Order::ring().ahead(if window as usize == LAYERS { 2 } else { 0 });
        let mut stream = registry.stream(&registry.acquire(set)?, set, order)?;
        for layer in 0..LAYERS {
            drop(stream.part(layer, SOON)?);
        }
        Ok(Bench {
            lease: registry.acquire(plain)?,
            registry,
            layers,
            streamed,
            stream,
        })
    }
}

/// Uses a tensor: looks at every 8 bytes of it.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8);
    words.fold(0, |sum, word| {
        sum ^ word.try_into().map_or(0, u64::from_le_bytes)
    })
}

/// Reads a tensor so many times, as an engine does: it wants the bytes.
#[inline(never)]
fn weights(lease: &Lease, weight: WeightHandle, times: u64) -> Result<(), Error> {
    for _ in 0..times {
        black_box(lease.weight(black_box(weight))?.bytes());
    }
    Ok(())
}

/// Does it so many times.
fn work(name: &str, times: u64) -> Result<(), Error> {
    let window = if name == "part in window" {
        2
    } else {
        LAYERS as u32
    };
    let Bench {
        registry,
        lease,
        layers,
        streamed,
        mut stream,
    } = Bench::new(window)?;
    let set = layers[0][0].set();
    let repeat = |one: &mut dyn FnMut() -> Result<(), Error>| (0..times).try_for_each(|_| one());
    match name {
        "acquire" => repeat(&mut || {
            black_box(registry.acquire(set)?);
            Ok(())
        }),
        "array" => {
            let all = layers[0]
                .iter()
                .map(|&weight| Ok(lease.weight(weight)?.bytes()));
            let all: Vec<&[u8]> = all.collect::<Result<_, Error>>()?;
            for _ in 0..times {
                black_box(all[black_box(0)]);
            }
            Ok(())
        }
        "weight" => weights(&lease, layers[0][0], times),
        "second weight" => {
            let two = registry.acquire([streamed[0][0].set(), set])?;
            weights(&two, layers[0][0], times)
        }
        "layers leased" => repeat(&mut || {
            for weight in layers.iter().flatten() {
                black_box(sum(lease.weight(*weight)?.bytes()));
            }
            Ok(())
        }),
        "layers streamed" => repeat(&mut || {
            for (number, layer) in streamed.iter().enumerate() {
                let part = stream.part(number, SOON)?;
                for weight in layer {
                    black_box(sum(part.weight(*weight)?.bytes()));
                }
            }
            Ok(())
        }),
        "part weight" => {
            let part = stream.part(3, SOON)?;
            repeat(&mut || {
                black_box(part.weight(black_box(streamed[3][0]))?.bytes());
                Ok(())
            })
        }
        _ => repeat(&mut || {
            black_box(stream.part(3, SOON)?);
            Ok(())
        }),
    }
}

/// Instructions of the whole process.
fn counted(name: &str, times: u64) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(this).args([name, &times.to_string()]);
    let output = valgrind
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split("Collected : ").nth(1));
    let collected = collected.and_then(|number| number.trim().parse().ok());
    collected.ok_or_else(|| format!("valgrind said: {said}"))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|one| one != "--bench")
        .collect();
    let done = match arguments.as_slice() {
        [] => count_all(),
        [test] if test == "--test" => WORKS
            .iter()
            .try_for_each(|(name, ..)| work(name, 1))
            .map(|()| true)
            .map_err(|error| error.to_string()),
        [name, times] => work(name, times.parse().unwrap_or(1))
            .map(|()| true)
            .map_err(|error| error.to_string()),
        _ => Err("no arguments, or --test".to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::from(2)
        }
    }
}

/// Counts every work, and says whether all are within their budgets.
fn count_all() -> Result<bool, String> {
    let mut within = true;
    let mut taken = Vec::new();
    println!("{:>12} {:>8}  of", "instructions", "at most");
    for (name, budget, about) in WORKS {
        let share = if name.starts_with("layers") { 100 } else { 1 };
        let times = TIMES.map(|times| times / share);
        let [few, more] = times.map(|times| counted(name, times));
        let each = (more? as f64 - few? as f64) / (times[1] - times[0]) as f64;
        let over = budget > 0 && each > budget as f64;
        within &= !over;
        let most = if budget > 0 {
            budget.to_string()
        } else {
            String::new()
        };
        println!(
            "{each:>12.1} {most:>8}  {name}: {about}{}",
            if over { "   TOO MANY" } else { "" }
        );
        taken.push(each);
    }
    let taken = |name: &str| {
        let at = WORKS.iter().position(|(work, ..)| *work == name);
        at.map_or(f64::NAN, |at| taken[at])
    };
    let net = taken("weight") - taken("array");
    println!("a tensor of a lease: {net:.1} over an element of an array (at most 15)");
    let more = taken("layers streamed") / taken("layers leased") - 1.0;
    println!(
        "a pass by a stream with everything in memory: {:+.2} % over leases (at most 1)",
        more * 100.0
    );
    Ok(within && net <= 15.0 && more <= 0.01)
}
