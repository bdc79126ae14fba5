//! What an adapter costs per token, and what a swap costs beside building a model.
//!
//! What is here: steps of one token per sequence, at three sizes of a batch, in five ways that are run in turn: the base
//! alone; one adapter for all; two adapters in turn; two generations of one in turn; and candle's own Llama, which takes
//! one sequence at a time. Then the ways to have another adapter. What is not: whether the numbers are right (`tests`).
//!
//! ```console
//! cargo run --release -p weighbridge-candle --example tokens -- ../target/smollm2/SmolLM2 ../fixtures/smollm2/adapters/pirate ../fixtures/smollm2/adapters/robot
//! ```
//!
//! Without arguments: the tiny model of the fixtures.

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama as theirs;
use weighbridge::source::{Checkpoint, PeftAdapter};
use weighbridge::{SetHandle, WeightRegistry};
use weighbridge_candle::RegistryBackend;
use weighbridge_candle::llama::{Config, Llama, Sequence, Turn};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PROMPT: usize = 16;
const STEPS: usize = 32;
const ROUNDS: usize = 7;
const BATCHES: [usize; 3] = [1, 4, 16];

struct Stage {
    directory: String,
    registry: WeightRegistry,
    base: SetHandle,
    model: Llama,
    theirs: theirs::Llama,
    config: theirs::Config,
    paths: [String; 2],
    adapters: [SetHandle; 2],
}

impl Stage {
    fn new(directory: String, paths: [String; 2]) -> Outcome<Self> {
        let registry = WeightRegistry::builder().build()?;
        let base = registry.publish("base", Checkpoint::open(&directory)?)?;
        let adapters = [
            registry.publish("first", PeftAdapter::open(&paths[0])?.on(base))?,
            registry.publish("second", PeftAdapter::open(&paths[1])?.on(base))?,
        ];
        let model = model(&registry, base, &directory)?;
        let config = std::fs::read(format!("{directory}/config.json"))?;
        let config: theirs::LlamaConfig = serde_json::from_slice(&config)?;
        let config = config.into_config(false);
        let backend = RegistryBackend::new(registry.acquire(base)?, base)?;
        let vb = backend.var_builder(DType::F32, &Device::Cpu);
        let theirs = theirs::Llama::load(vb, &config)?;
        Ok(Stage {
            directory,
            registry,
            base,
            model,
            theirs,
            config,
            paths,
            adapters,
        })
    }

    fn sequence(&self, adapter: Option<SetHandle>) -> Outcome<Sequence> {
        let sets: Vec<_> = [Some(self.base), adapter].into_iter().flatten().collect();
        Ok(self.model.sequence(self.registry.acquire(sets)?, adapter)?)
    }

    /// Tokens per second of sequences that are there.
    fn ours(&self, mut sequences: Vec<Sequence>) -> Outcome<f64> {
        let prompt: Vec<u32> = (1..=PROMPT as u32).collect();
        let step = |sequences: &mut [Sequence], tokens: &[u32]| {
            let turn = |sequence| Turn { sequence, tokens };
            let mut turns: Vec<Turn<'_>> = sequences.iter_mut().map(turn).collect();
            self.model.step(&mut turns)
        };
        step(&mut sequences, &prompt)?;
        let began = Instant::now();
        for token in 1..=STEPS as u32 {
            // Its numbers are looked at, as a sampler would.
            let logits = step(&mut sequences, &[token])?;
            std::hint::black_box(logits.to_vec2::<f32>()?);
        }
        Ok((STEPS * sequences.len()) as f64 / began.elapsed().as_secs_f64())
    }

    /// The same from candle's Llama, one sequence.
    fn theirs(&self) -> Outcome<f64> {
        let mut cache = theirs::Cache::new(true, DType::F32, &self.config, &Device::Cpu)?;
        let mut step = |tokens: &[u32], seen: usize| {
            let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
            self.theirs.forward(&tokens, seen, &mut cache)
        };
        let prompt: Vec<u32> = (1..=PROMPT as u32).collect();
        step(&prompt, 0)?;
        let began = Instant::now();
        for token in 1..=STEPS as u32 {
            let logits = step(&[token], PROMPT + token as usize - 1)?;
            std::hint::black_box(logits.to_vec2::<f32>()?);
        }
        Ok(STEPS as f64 / began.elapsed().as_secs_f64())
    }

    /// The sequences of each way, `n` of each.
    fn ways(&self, n: usize) -> Outcome<[(&'static str, Vec<Sequence>); 4]> {
        let [first, second] = self.adapters;
        let each = |adapters: [Option<SetHandle>; 2]| {
            let all = (0..n).map(|at| self.sequence(adapters[at % 2]));
            all.collect::<Outcome<Vec<_>>>()
        };
        let old = (0..n.div_ceil(2)).map(|_| self.sequence(Some(first)));
        let mut two = old.collect::<Outcome<Vec<_>>>()?;
        self.swap()?;
        for _ in 0..n / 2 {
            two.push(self.sequence(Some(first))?);
        }
        Ok([
            ("the base alone", each([None, None])?),
            ("one adapter", each([Some(first), Some(first)])?),
            ("two adapters", each([Some(first), Some(second)])?),
            ("two generations of one", two),
        ])
    }

    /// Reads the first adapter again, and has it in place of itself.
    fn swap(&self) -> Outcome<()> {
        let source = PeftAdapter::open(&self.paths[0])?.on(self.base);
        self.registry.replace(self.adapters[0], source)?;
        Ok(())
    }
}

fn model(registry: &WeightRegistry, base: SetHandle, directory: &str) -> Outcome<Llama> {
    let backend = RegistryBackend::new(registry.acquire(base)?, base)?;
    let config = Config::from_json(&std::fs::read(format!("{directory}/config.json"))?)?;
    Ok(Llama::load(&backend, config, &Device::Cpu)?)
}

/// The middle one, and the ends.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    ]
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let stage = match args.as_slice() {
        [] => {
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
            let at = |path| format!("{fixtures}/{path}");
            Stage::new(
                at("tiny-llama"),
                [at("adapters/pirate-v1"), at("adapters/robot")],
            )?
        }
        [model, first, second] => Stage::new(model.clone(), [first.clone(), second.clone()])?,
        _ => return Err("usage: tokens [MODEL ADAPTER ADAPTER]".into()),
    };
    println!(
        "tokens per second, {STEPS} steps after a prompt of {PROMPT}; the middle of {ROUNDS} rounds (least, most)\n"
    );
    println!("| batch | way | tokens/s | of the base alone |\n|---|---|---|---|");
    for n in BATCHES {
        let mut all: Vec<(&str, Vec<f64>)> = Vec::new();
        for round in 0..=ROUNDS {
            let mut done = Vec::new();
            // One sequence has one adapter.
            let ways = if n == 1 { 2 } else { 4 };
            for (way, sequences) in stage.ways(n)?.into_iter().take(ways) {
                done.push((way, stage.ours(sequences)?));
            }
            if n == 1 {
                done.push(("candle's own Llama, the base alone", stage.theirs()?));
            }
            // The first warms up.
            if round == 1 {
                all = done.iter().map(|(way, _)| (*way, Vec::new())).collect();
            }
            for ((_, rates), (_, rate)) in all.iter_mut().zip(done) {
                rates.push(rate);
            }
        }
        let base = all[0].1.clone();
        for (way, rates) in all {
            // Compared within a round, so that a slow moment of the machine counts for both.
            let ratios = rates.iter().zip(&base).map(|(rate, base)| rate / base);
            let [ratio, ..] = spread(ratios.collect());
            let [middle, least, most] = spread(rates);
            println!("| {n} | {way} | {middle:.1} ({least:.1}, {most:.1}) | {ratio:.2} |");
        }
    }

    let (mut build, mut read, mut commit) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        drop(model(&stage.registry, stage.base, &stage.directory)?);
        build.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        let source = PeftAdapter::open(&stage.paths[0])?.on(stage.base);
        let staged = stage.registry.stage(source)?;
        read.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        stage.registry.replace_staged(stage.adapters[0], staged)?;
        commit.push(began.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "\n| to answer with another adapter | ms, the middle of {ROUNDS} (least, most) |\n|---|---|"
    );
    for (what, values) in [
        ("build a model", build),
        ("read the adapter's files, with every check and hash", read),
        ("the swap itself: a commit", commit),
    ] {
        let [middle, least, most] = spread(values);
        println!("| {what} | {middle:.3} ({least:.3}, {most:.3}) |");
    }
    Ok(())
}
