//! The main job: many inference threads serve from one registry while adapters are loaded,
//! hot-swapped, retired and awaited under them, and every answer is checked.
//!
//! `cargo run --release --example serve` needs no model of yours: it serves the tiny real
//! model in `fixtures/`. See `--help` for a model of your own.

#[path = "../common/arguments.rs"]
mod arguments;
mod llama;
mod operator;
mod options;
mod oracle;
mod report;
mod worker;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use weighbridge::source::{Checkpoint, PeftAdapter, Source};
use weighbridge::{Error, SetHandle, WeightRegistry};

use llama::{Config, Model};
use operator::{Deeds, Operator};
use options::Options;
use oracle::{Expected, Oracle, Prompt, Verdict};
use report::{Live, Outcome, Progress};

/// Acquires per clock reading: one reading costs more than one acquire.
const BATCH: u32 = 64;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("serve: {message}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(outcome) => {
            outcome.print();
            if options.json {
                outcome.print_json();
            }
            if outcome.passed() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that the worker threads share.
struct Job<'a> {
    registry: &'a WeightRegistry,
    model: &'a Model,
    base: SetHandle,
    names: &'a [String],
    prompts: &'a [Prompt],
    max_new: usize,
    oracle: &'a Oracle,
    swapping: AtomicBool,
    stop: AtomicBool,
    requests: AtomicU64,
    matched: AtomicU64,
    mixed: AtomicU64,
    refused: AtomicU64,
    /// By version: its latest answer.
    samples: Mutex<Vec<String>>,
    findings: Mutex<Vec<String>>,
}

fn run(options: &Options) -> Result<Outcome, Box<dyn std::error::Error>> {
    let config = Config::read(&options.model)?;
    let checkpoint = Checkpoint::open(&options.model)?;
    // Room for the base, every adapter, and one swap in flight: tight on purpose.
    let mut limit = checkpoint.plan().charged_bytes();
    let mut largest = 0;
    for dir in options.adapters.iter().flat_map(|(_, dirs)| dirs) {
        let bytes = PeftAdapter::open(dir)?.plan().charged_bytes();
        limit += bytes;
        largest = largest.max(bytes);
    }
    limit += largest;
    let registry = WeightRegistry::builder().limit_bytes(limit).build()?;
    let ledger_start = registry.ledger().total();
    let base = registry.publish("base", checkpoint)?;
    let model = Model::resolve(&registry, base, config)?;

    let expected = Expected::beside(&options.model).filter(|_| options.prompts.is_empty());
    let prompts = match &expected {
        Some(expected) => expected.prompts.clone(),
        None if options.prompts.is_empty() => {
            return Err("there is no expected.json beside the model: give --prompt-ids".into());
        }
        None => options
            .prompts
            .iter()
            .map(|ids| Prompt {
                text: String::new(),
                ids: ids.clone(),
            })
            .collect(),
    };
    let max_new = options
        .max_new
        .or(expected.as_ref().map(|e| e.max_new))
        .unwrap_or(32);
    println!(
        "{}: {} layers, {} bytes; {} adapter(s); {} worker thread(s) for {:?}",
        options.model.display(),
        model.config.layers,
        registry.ledger().total(),
        options.adapters.len(),
        options.threads,
        options.time
    );
    let oracle = foresee(
        &registry,
        base,
        &model,
        options,
        &prompts,
        max_new,
        expected.as_ref(),
    )?;

    let names: Vec<String> = options
        .adapters
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    let job = Job {
        registry: &registry,
        model: &model,
        base,
        names: &names,
        prompts: &prompts,
        max_new,
        oracle: &oracle,
        swapping: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        requests: AtomicU64::new(0),
        matched: AtomicU64::new(0),
        mixed: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        samples: Mutex::new(vec![String::new(); oracle.versions.len()]),
        findings: Mutex::new(Vec::new()),
    };
    println!("a request reads through one lease, of the base or of the base and an adapter; it is");
    println!("\"mixed\" if its answer is not that of the version that was leased");
    let deeds = Deeds::default();
    let mut operator = Operator::start(&registry, base, &options.adapters)?;
    let (idle, busy) = shift(&job, &mut operator, &deeds, options)?;

    operator.finish()?;
    let end = registry.ledger();
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let samples = job.samples.into_inner().unwrap_or_default();
    Ok(Outcome {
        requests: count(&job.requests),
        matched: count(&job.matched),
        mixed: count(&job.mixed),
        refused: count(&job.refused),
        swaps: count(&deeds.swaps),
        loads: count(&deeds.loads),
        retires: count(&deeds.retires),
        ledger_start,
        ledger_end: end.total(),
        peak: end.peak,
        limit,
        workers: options.threads,
        cores: std::thread::available_parallelism().map(usize::from).ok(),
        idle,
        busy,
        samples: samples
            .into_iter()
            .filter(|sample| !sample.is_empty())
            .collect(),
        findings: job.findings.into_inner().unwrap_or_default(),
    })
}

/// A quarter of the time without swaps, the rest with them. Returns the latencies of both.
fn shift(
    job: &Job<'_>,
    operator: &mut Operator<'_>,
    deeds: &Deeds,
    options: &Options,
) -> Result<(Histogram<u64>, Histogram<u64>), Box<dyn std::error::Error>> {
    // Somebody who fails rings; the error itself comes with the join.
    let (bell, rung) = mpsc::channel::<()>();
    let started = Instant::now();
    let mut live = Live::new(options.json);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|number| {
                let bell = bell.clone();
                scope.spawn(move || work(job, number).inspect_err(|_| ring(&bell)))
            })
            .collect();
        let mut watch = |until: Duration, phase| {
            loop {
                let elapsed = started.elapsed();
                live.show(elapsed, &progress(job, deeds, phase));
                let left = until.saturating_sub(elapsed);
                if left.is_zero() || rung.recv_timeout(left.min(live.every())).is_ok() {
                    return;
                }
            }
        };
        watch(options.time / 4, "no swaps");
        job.swapping.store(true, Ordering::Relaxed);
        let hands = {
            let bell = bell.clone();
            scope.spawn(move || operator.work(&job.stop, deeds).inspect_err(|_| ring(&bell)))
        };
        watch(options.time, "swapping");
        job.stop.store(true, Ordering::Relaxed);
        hands.join().map_err(|_| "the operator panicked")??;
        let (mut idle, mut busy) = (histogram(), histogram());
        for worker in workers {
            let (without, with) = worker.join().map_err(|_| "a worker panicked")??;
            idle.add(without)?;
            busy.add(with)?;
        }
        Ok((idle, busy))
    })
}

/// Nobody listens any more once the shift is over.
fn ring(bell: &mpsc::Sender<()>) {
    let _ = bell.send(());
}

/// From a tenth of a nanosecond to ten seconds, three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("legal bounds")
}

/// One worker's life: requests in turn, each checked, and between them a batch of acquires.
fn work(job: &Job<'_>, number: usize) -> Result<(Histogram<u64>, Histogram<u64>), Error> {
    let reader = job.registry.reader();
    let (mut idle, mut busy) = (histogram(), histogram());
    let mut turn = number;
    while !job.stop.load(Ordering::Relaxed) {
        turn += 1;
        let prompt = turn % job.prompts.len();
        // Every so many requests the base alone.
        let name = (turn / job.prompts.len()) % (job.names.len() + 1);
        let name = name.checked_sub(1).map(|at| &job.names[at]);
        let adapter = match name {
            None => None,
            Some(name) => match job.registry.lookup(name.as_str()) {
                Some(adapter) => Some(adapter),
                None => {
                    // Never answered by the base instead.
                    job.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            },
        };
        let ids = &job.prompts[prompt].ids;
        let served = worker::serve(job.registry, job.model, job.base, adapter, ids, job.max_new);
        match served {
            Ok(answer) => judge(job, prompt, name, &answer),
            Err(Error::StaleHandle { .. }) => {
                // Retired between lookup and acquire: an answer too, and the right one.
                job.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Err(error) => return Err(error),
        }
        let Some(hot) = job
            .names
            .first()
            .and_then(|name| job.registry.lookup(name.as_str()))
        else {
            continue;
        };
        let swapping = job.swapping.load(Ordering::Relaxed);
        let clock = Instant::now();
        for _ in 0..BATCH {
            drop(std::hint::black_box(reader.acquire([job.base, hot])?));
        }
        let tenths = clock.elapsed().as_nanos() as u64 * 10 / u64::from(BATCH);
        // Counted as busy only if it was busy all the time.
        if swapping {
            busy.saturating_record(tenths);
        } else if !job.swapping.load(Ordering::Relaxed) {
            idle.saturating_record(tenths);
        }
    }
    Ok((idle, busy))
}

fn judge(job: &Job<'_>, prompt: usize, name: Option<&String>, answer: &worker::Answer) {
    job.requests.fetch_add(1, Ordering::Relaxed);
    let question = &job.prompts[prompt];
    let line = || {
        let who = match (name, answer.generation) {
            (Some(name), Some(generation)) => format!("{name} (generation {generation})"),
            _ => "base".to_owned(),
        };
        format!(
            "{who:<26} {}",
            spell(question, &answer.ids, &job.model.config.eos)
        )
    };
    match job.oracle.judge(prompt, answer) {
        Verdict::Match => {
            job.matched.fetch_add(1, Ordering::Relaxed);
            let version = job
                .oracle
                .versions
                .iter()
                .position(|version| version.identity == answer.adapter);
            if let (Some(version), Ok(mut samples)) = (version, job.samples.lock()) {
                samples[version] = line();
            }
        }
        Verdict::Mixed { leased, answers_of } => {
            job.mixed.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut findings) = job.findings.lock()
                && findings.len() < 20
            {
                findings.push(format!(
                    "leased {leased}, answers of {answers_of:?}: {}",
                    line()
                ));
            }
        }
    }
}

/// Prompt and answer as text, if the prompt has one (then a token is a byte), else as ids.
fn spell(prompt: &Prompt, ids: &[u32], eos: &[u32]) -> String {
    let new = ids.iter().filter(|id| !eos.contains(id));
    if prompt.text.is_empty() {
        return format!("{:?} -> {:?}", prompt.ids, new.collect::<Vec<_>>());
    }
    let text: String = new.map(|&id| char::from_u32(id).unwrap_or('?')).collect();
    format!("{} ->{text}", prompt.text)
}

fn progress(job: &Job<'_>, deeds: &Deeds, phase: &'static str) -> Progress {
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let ledger = job.registry.ledger();
    let samples = job
        .samples
        .lock()
        .map(|samples| samples.clone())
        .unwrap_or_default();
    Progress {
        phase,
        requests: count(&job.requests),
        mixed: count(&job.mixed),
        swaps: count(&deeds.swaps),
        loads: count(&deeds.loads),
        retires: count(&deeds.retires),
        bytes: ledger.total(),
        limit: ledger.limit,
        samples,
    }
}

/// What every version answers to every prompt: from `expected.json`, or from this very worker alone,
/// version by version, before anything else runs.
fn foresee(
    registry: &WeightRegistry,
    base: SetHandle,
    model: &Model,
    options: &Options,
    prompts: &[Prompt],
    max_new: usize,
    expected: Option<&Expected>,
) -> Result<Oracle, Box<dyn std::error::Error>> {
    let mut oracle = Oracle::default();
    let dirs = options.adapters.iter().flat_map(|(_, dirs)| dirs);
    let mut computed = 0;
    for dir in std::iter::once(None).chain(dirs.map(Some)) {
        let set = match dir {
            None => None,
            Some(dir) => Some(registry.publish("oracle", PeftAdapter::open(dir)?.on(base))?),
        };
        let name = dir.map(|dir| dir.file_name().unwrap_or_default().to_string_lossy());
        let identity = match set {
            None => None,
            Some(set) => Some(registry.acquire(set)?.set(set)?.identity().clone()),
        };
        let known = oracle.versions.iter().any(|v| v.identity == identity);
        let version = oracle.version(name.as_deref().unwrap_or("base"), identity);
        match expected.and_then(|expected| expected.cases(name.as_deref())) {
            _ if known => return Err(format!("{name:?} is there twice").into()),
            Some(cases) => {
                for (prompt, ids, logits) in cases {
                    oracle.case(version, prompt, ids, logits);
                }
            }
            None => {
                computed += 1;
                for (at, prompt) in prompts.iter().enumerate() {
                    let answer = worker::serve(registry, model, base, set, &prompt.ids, max_new)?;
                    oracle.case(version, at, answer.ids, answer.logits);
                }
            }
        }
        if let Some(set) = set {
            registry.retire(set)?.reclaimed(Duration::from_secs(30))?;
        }
    }
    println!(
        "oracle: {} versions x {} prompts, {}",
        oracle.versions.len(),
        prompts.len(),
        if computed == 0 {
            "computed by transformers and PEFT (expected.json)".to_owned()
        } else {
            format!("{computed} of them computed by this worker alone, before the start")
        }
    );
    Ok(oracle)
}
