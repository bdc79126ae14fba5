//! What streaming costs: a pass over a model of four times its budget, beside its compute alone and its reading alone.
//!
//! `cargo bench -p weighbridge-benches --bench streams -- --rounds 11`. Compute is a thread that works for so long per
//! layer; reading is a disk of so many bytes per second, which reads one thing at a time. Both are deterministic, so
//! what is left is what the stream adds. `--test` is one round of a small model; `--json PATH` writes a row of each round.
//!
//! Per ratio of reading to compute there are: compute alone (everything is in memory, read under a plain lease), reading
//! alone (every layer once, no compute), and the same pass streamed: the first one, into an empty window, and one of a
//! ring that has been round before; each with two layers read ahead, and with none.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weighbridge::source::{Pieces, ReadPieces, Source, Streamed};
use weighbridge::{
    Dtype, Error, Order, Parts, Plan, SetHandle, WeightHandle, WeightRegistry, WindowSize,
};

const LAYER: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// Reading to compute.
const RATIOS: [f64; 3] = [0.25, 1.0, 4.0];

/// Reads one thing at a time, at so many bytes per second.
struct Disk {
    free: Mutex<Instant>,
    /// Of a byte, in nanoseconds. Zero: it takes no time.
    nanos: Mutex<f64>,
}

impl Disk {
    fn new() -> Arc<Self> {
        Arc::new(Disk {
            free: Mutex::new(Instant::now()),
            nanos: Mutex::new(0.0),
        })
    }

    fn per_layer(&self, time: Duration) {
        *self.nanos.lock().unwrap() = time.as_nanos() as f64 / LAYER as f64;
    }

    /// Returns when `bytes` more have been read.
    fn read(&self, bytes: usize) {
        let done = {
            let mut free = self.free.lock().unwrap();
            let nanos = *self.nanos.lock().unwrap() * bytes as f64;
            *free = (*free).max(Instant::now()) + Duration::from_nanos(nanos as u64);
            *free
        };
        std::thread::sleep(done.saturating_duration_since(Instant::now()));
    }
}

struct Model {
    plan: Plan,
    disk: Arc<Disk>,
}

impl Model {
    fn new(layers: usize, disk: &Arc<Disk>) -> Self {
        let names = (0..layers).map(|layer| format!("layers.{layer}.w"));
        let tensors = names.map(|name| (name, Dtype::U8, vec![LAYER]));
        Model {
            plan: Plan::of("a model", tensors).expect("a legal plan"),
            disk: Arc::clone(disk),
        }
    }
}

impl ReadPieces for Model {
    fn read(&self, tensor: usize, _: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.disk.read(bytes.len());
        let name = self.plan.tensors()[tensor].name();
        let layer = name.split('.').nth(1).and_then(|layer| layer.parse().ok());
        bytes.fill(layer.expect("named like that"));
        Ok(())
    }
}

impl Source for Model {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        unreachable!("it has pieces")
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        Some(Pieces::of(&self.plan, self))
    }

    fn declared(&self) -> Option<&str> {
        Some("r1")
    }
}

/// Works for `time`, and looks at the layer.
fn compute(layer: &[u8], time: Duration) {
    let until = Instant::now() + time;
    std::hint::black_box(layer[layer.len() / 2]);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

struct Bench {
    registry: Arc<WeightRegistry>,
    disk: Arc<Disk>,
    layers: usize,
    plain: SetHandle,
    streamed: SetHandle,
    work: Duration,
}

#[derive(Clone, Copy)]
struct Round {
    compute: Duration,
    reading: Duration,
    first: Duration,
    ring: Duration,
    first_unread: Duration,
    ring_unread: Duration,
}

fn timed(act: impl FnOnce()) -> Duration {
    let started = Instant::now();
    act();
    started.elapsed()
}

impl Bench {
    fn new(layers: usize, work: Duration) -> Self {
        let disk = Disk::new();
        let registry = Arc::new(WeightRegistry::builder().build().expect("a registry"));
        let plain = registry
            .publish("plain", Model::new(layers, &disk))
            .expect("published");
        let window = WindowSize::Bytes((layers * LAYER / 4) as u64);
        let model = Model::new(layers, &disk);
        let streamed = Streamed::new(model, &Parts::layers(), window).expect("it fits");
        let streamed = registry.publish("streamed", streamed).expect("published");
        Bench {
            registry,
            disk,
            layers,
            plain,
            streamed,
            work,
        }
    }

    fn handles(&self, set: SetHandle) -> Vec<WeightHandle> {
        let handle = |layer| {
            let name = format!("layers.{layer}.w");
            self.registry
                .weight_handle(set, &name)
                .expect("it is there")
        };
        (0..self.layers).map(handle).collect()
    }

    fn compute_alone(&self) -> Duration {
        let handles = self.handles(self.plain);
        let lease = self.registry.acquire(self.plain).expect("leased");
        timed(|| {
            for handle in handles {
                compute(
                    lease.weight(handle).expect("it is there").bytes(),
                    self.work,
                );
            }
        })
    }

    fn reading_alone(&self) -> Duration {
        let mut layer = vec![0; LAYER];
        timed(|| {
            for number in 0..self.layers {
                self.disk.read(LAYER);
                layer.fill(number as u8);
            }
        })
    }

    /// The first pass of a stream into an empty window, and one when it has been round twice.
    fn stream(&self, ahead: usize) -> (Duration, Duration) {
        // Evicted and loaded: nothing is in the window. What reads ahead for the last stream ends first.
        while matches!(self.registry.evict(self.streamed), Err(Error::Leased(_))) {
            std::thread::yield_now();
        }
        self.registry.load(self.streamed).expect("loaded");
        let handles = self.handles(self.streamed);
        let lease = self.registry.acquire(self.streamed).expect("leased");
        let order = Order::ring().ahead(ahead);
        let mut stream = None;
        let mut times = (0..3).map(|_| {
            timed(|| {
                let stream = stream.get_or_insert_with(|| {
                    let stream = self.registry.stream(&lease, self.streamed, order.clone());
                    stream.expect("a stream")
                });
                for (layer, &handle) in handles.iter().enumerate() {
                    let part = stream.part(layer, SOON).expect("it is read");
                    let bytes = part.weight(handle).expect("it is there").bytes();
                    assert_eq!(bytes[LAYER - 1], layer as u8);
                    compute(bytes, self.work);
                }
            })
        });
        let first = times.next().expect("three");
        (first, times.last().expect("three"))
    }

    fn round(&self) -> Round {
        let (compute, reading) = (self.compute_alone(), self.reading_alone());
        let (first, ring) = self.stream(2);
        let (first_unread, ring_unread) = self.stream(0);
        Round {
            compute,
            reading,
            first,
            ring,
            first_unread,
            ring_unread,
        }
    }
}

fn median(mut of: Vec<f64>) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    (of[0], of[of.len() / 2], of[of.len() - 1])
}

struct Options {
    rounds: usize,
    small: bool,
    json: Option<PathBuf>,
}

impl Options {
    fn read() -> Self {
        let mut options = Options {
            rounds: 11,
            small: false,
            json: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--bench" => {}
                "--test" => (options.small, options.rounds) = (true, 1),
                "--rounds" => {
                    let rounds = words.next().and_then(|word| word.parse().ok());
                    options.rounds = rounds.expect("--rounds N");
                }
                "--json" => options.json = words.next().map(PathBuf::from),
                other => panic!("{other}: --rounds N, --json PATH, --test"),
            }
        }
        options
    }
}

fn main() {
    let options = Options::read();
    let (layers, work) = match options.small {
        true => (8, Duration::from_micros(200)),
        false => (32, Duration::from_millis(2)),
    };
    println!(
        "{layers} layers of 1 MiB, a window of a quarter, {work:?} of compute for each, {} rounds",
        options.rounds
    );
    println!(
        "a pass, over the longer of compute alone and reading alone: median (least to most)\n"
    );
    println!(
        "{:>8} {:>9} {:>9}   {:^22} {:^22} {:^22} {:^22}",
        "reading",
        "compute",
        "reading",
        "first pass",
        "ring",
        "first, none ahead",
        "ring, none ahead"
    );
    let mut rows = Vec::new();
    let benches = RATIOS.map(|ratio| (ratio, Bench::new(layers, work)));
    let mut all = RATIOS.map(|_| Vec::new());
    for round in 0..options.rounds {
        for ((ratio, bench), rounds) in benches.iter().zip(&mut all) {
            bench.disk.per_layer(work.mul_f64(*ratio));
            let took = bench.round();
            bench.disk.per_layer(Duration::ZERO);
            rounds.push(took);
            rows.push(format!(
                "  {{\"round\": {round}, \"ratio\": {ratio}, \"compute_us\": {}, \"reading_us\": {}, \"first_us\": {}, \
                 \"ring_us\": {}, \"first_none_ahead_us\": {}, \"ring_none_ahead_us\": {}}}",
                took.compute.as_micros(),
                took.reading.as_micros(),
                took.first.as_micros(),
                took.ring.as_micros(),
                took.first_unread.as_micros(),
                took.ring_unread.as_micros()
            ));
        }
    }
    for ((ratio, _), rounds) in benches.iter().zip(&all) {
        let of = |which: fn(&Round) -> Duration| {
            let over = |round: &Round| {
                let least = round.compute.max(round.reading);
                which(round).as_secs_f64() / least.as_secs_f64()
            };
            let (least, middle, most) = median(rounds.iter().map(over).collect());
            format!("{middle:.3} ({least:.3} to {most:.3})")
        };
        let millis = |which: fn(&Round) -> Duration| {
            median(
                rounds
                    .iter()
                    .map(|round| which(round).as_secs_f64() * 1e3)
                    .collect(),
            )
            .1
        };
        println!(
            "{ratio:>7}x {:>6.1} ms {:>6.1} ms   {:^22} {:^22} {:^22} {:^22}",
            millis(|round| round.compute),
            millis(|round| round.reading),
            of(|round| round.first),
            of(|round| round.ring),
            of(|round| round.first_unread),
            of(|round| round.ring_unread)
        );
    }
    if let Some(path) = &options.json {
        std::fs::write(path, format!("[\n{}\n]\n", rows.join(",\n"))).expect("written");
    }
}
