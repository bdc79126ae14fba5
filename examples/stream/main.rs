//! A model that is larger than its memory: its layers go through a window, pass after pass.
//!
//! `cargo run --release --example stream` streams the tiny checkpoint of this repository; `--model DIR` any other one.
//! What a pass does with a layer stands for a forward pass: it looks at every byte. `--generate N` computes
//! tokens instead (Llama architecture), from the streamed model and from a resident one (`generate`).

#[path = "../common/arguments.rs"]
mod arguments;
mod generate;
#[path = "../serve/llama.rs"]
#[allow(dead_code, reason = "the other example uses all of it")]
mod llama;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arguments::number;
use generate::Way;
use weighbridge::source::{Checkpoint, Source, Streamed};
use weighbridge::{Error, Order, PartState, Parts, Stream, WeightRegistry, WindowSize};

const HELP: &str = "\
Streams the layers of a checkpoint through a window, pass after pass, and shows the window.

  cargo run --release --example stream -- [OPTIONS]

  --model DIR     a checkpoint                                       [fixtures/tiny-llama]
  --window N      room for so many layers, of the largest one's size [2]
  --share N       instead: the set gets one N-th of its bytes
  --ahead N       layers that are read ahead                         [1]
  --passes N      how often all layers are used                      [3]
  --rest          embeddings, norms and the head are streamed, too
  --generate N    computes N tokens in each of these ways, in turn, and compares
  --ways L        of --generate: resident, mapped (the system pages), streamed,
                  none-ahead                      [resident,streamed,none-ahead]
  --prompt-ids L  of the prompt, such as 1,2,3                       [1]
  --rounds N      of --generate: how often, in turn                  [3]
  --json          one object, and no picture
  --help          this text

Exit code: 0 if every pass saw the same bytes within the budget, 1 if not, 2 if the command line is wrong.
";

/// A disk may be slow; nothing here waits for anything else.
const PATIENCE: Duration = Duration::from_secs(600);
/// A picture has so many lines at most.
const LINES: usize = 60;

struct Options {
    model: PathBuf,
    window: u32,
    share: Option<u64>,
    ahead: usize,
    passes: usize,
    rest: bool,
    generate: Option<usize>,
    ways: Vec<Way>,
    prompt: Vec<u32>,
    rounds: usize,
    json: bool,
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options {
        model: PathBuf::from("fixtures/tiny-llama"),
        window: 2,
        share: None,
        ahead: 1,
        passes: 3,
        rest: false,
        generate: None,
        ways: vec![Way::Resident, Way::Streamed, Way::Unread],
        prompt: vec![1],
        rounds: 3,
        json: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or(format!("{word} needs a value; see --help"))
        };
        match word.as_str() {
            "--model" => options.model = value()?.into(),
            "--window" => options.window = small(&word, &value()?)?,
            "--share" => options.share = Some(number(&word, &value()?)?),
            "--ahead" => {
                let value = value()?;
                options.ahead = value
                    .parse()
                    .map_err(|_| format!("--ahead takes a whole number, not {value:?}"))?;
            }
            "--passes" => options.passes = small(&word, &value()?)?,
            "--rest" => options.rest = true,
            "--generate" => options.generate = Some(small(&word, &value()?)?),
            "--ways" => {
                let of = |name: &str| {
                    let known = Way::ALL.map(|(name, _)| name).join(", ");
                    Way::of(name).ok_or(format!("--ways takes {known}, not {name:?}"))
                };
                options.ways = value()?.split(',').map(of).collect::<Result<_, _>>()?;
            }
            "--rounds" => options.rounds = small(&word, &value()?)?,
            "--prompt-ids" => {
                let ids: Result<_, _> = value()?.split(',').map(str::parse).collect();
                options.prompt = ids.map_err(|wrong| format!("--prompt-ids: {wrong}"))?;
            }
            "--json" => options.json = true,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("{other:?} is unknown; see --help")),
        }
    }
    Ok(Some(options))
}

/// A whole number from 1 that is not too large for this.
fn small<N: TryFrom<u64>>(option: &str, value: &str) -> Result<N, String> {
    let number = number(option, value)?;
    number
        .try_into()
        .map_err(|_| format!("{option} {number} is too many"))
}

/// One character for each part: here and used, here, on its way, away.
fn picture(stream: &Stream) -> Result<String, Error> {
    let show = |state| match state {
        PartState::Here { holds: 1.. } => '#',
        PartState::Here { .. } => '=',
        PartState::Coming => '~',
        PartState::Failed => '!',
        _ => '.',
    };
    Ok(stream
        .window()?
        .into_iter()
        .map(|part| show(part.state))
        .collect())
}

/// The model as it is streamed, and how many bytes it would have in memory.
fn streamed(options: &Options) -> Result<(Streamed<Checkpoint>, u64), Error> {
    let checkpoint = Checkpoint::open(&options.model)?;
    let whole = checkpoint.plan().charged_bytes();
    let layers = Parts::layers();
    let parts = if options.rest {
        layers.and_the_rest()
    } else {
        layers
    };
    let window = match options.share {
        Some(share) => WindowSize::Within(whole / share.max(1)),
        None => WindowSize::Parts(options.window),
    };
    // Nobody hashes what is read again and again: the files are watched instead.
    let streamed = Streamed::new(checkpoint.declared("as it is"), &parts, window)?;
    Ok((streamed, whole))
}

fn run(options: &Options) -> Result<bool, Error> {
    let (streamed, whole) = streamed(options)?;
    let budget = streamed.plan().charged_bytes();
    let registry = Arc::new(WeightRegistry::builder().limit_bytes(budget).build()?);
    let set = registry.publish("model", streamed)?;
    let lease = registry.acquire(set)?;
    let order = Order::ring().ahead(options.ahead);
    let mut stream = registry.stream(&lease, set, order)?;
    // Whoever looks on uses nothing.
    let watch = registry.stream(&lease, set, Order::unknown())?;
    if !options.json {
        println!(
            "{}: {whole} bytes, {} parts, streamed in {budget} bytes",
            options.model.display(),
            stream.len()
        );
        println!("# used   = in memory   ~ being read   . away\n");
    }

    let (mut sums, mut lines) = (Vec::new(), 0);
    let started = Instant::now();
    for pass in 0..options.passes {
        let mut sum = 0u64;
        for layer in 0..stream.len() {
            let part = stream.part(layer, PATIENCE)?;
            for weight in part.iter() {
                let bytes = weight?.bytes().chunks(8);
                let words = bytes.map(|word| {
                    word.iter()
                        .fold(0, |word, byte| word << 8 | u64::from(*byte))
                });
                sum = words.fold(sum, |sum, word| sum.rotate_left(5) ^ word);
            }
            if !options.json && lines < LINES {
                lines += 1;
                println!("pass {pass} {:<24} {}", part.name(), picture(&watch)?);
            }
        }
        sums.push(sum);
    }
    let (took, tally) = (started.elapsed(), stream.tally()?);
    let peak = registry.ledger().peak;
    let fine = peak <= budget && sums.windows(2).all(|pair| pair[0] == pair[1]);
    if options.json {
        println!(
            "{{\"model_bytes\": {whole}, \"budget_bytes\": {budget}, \"peak_bytes\": {peak}, \"parts\": {}, \"passes\": {}, \
             \"seconds\": {:.6}, \"hits\": {}, \"misses\": {}, \"reads\": {}, \"read_bytes\": {}, \"same_bytes\": {fine}}}",
            stream.len(),
            options.passes,
            took.as_secs_f64(),
            tally.hits,
            tally.misses,
            tally.reads,
            tally.read_bytes
        );
    } else {
        println!(
            "\n{} passes in {took:.2?}: {} parts were in memory when they were asked for, {} were not; {} reads, {} bytes",
            options.passes, tally.hits, tally.misses, tally.reads, tally.read_bytes
        );
        println!(
            "peak {peak} of {budget} bytes, of a model of {whole}: {}",
            if fine { "ok" } else { "WRONG" }
        );
    }
    Ok(fine)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    let outcome = match options.generate {
        Some(tokens) => generate::compare(&options, tokens),
        None => run(&options).map_err(|error| error.to_string()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
