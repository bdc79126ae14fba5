//! What times become: quantiles, medians over rounds, ratios.
//!
//! What lives here: [`Round`], the table of a scenario and its rows as JSON. What does not: measuring
//! (`requests`).

use hdrhistogram::Histogram;

use super::requests::{BATCH, OffCore, Sample};

const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
    ("max", 1.0),
];
/// The quantile that is compared, and what its ratio may be.
const COMPARED: usize = 2;
const WANTED: f64 = 1.5;

/// One round of one side.
pub struct Round {
    /// Of one request, in nanoseconds: a batch's time over its requests.
    service: [f64; QUANTILES.len()],
    /// Of a whole batch from when it was due, in microseconds.
    since_due: [f64; QUANTILES.len()],
    /// Bytes per second of what went on beside it.
    pub rate: f64,
    off: OffCore,
    samples: usize,
}

fn quantiles(values: impl Iterator<Item = u64>, unit: f64) -> [f64; QUANTILES.len()] {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    values.for_each(|value| histogram.record(value.max(1)).unwrap());
    QUANTILES.map(|(_, at)| match at {
        1.0 => histogram.max() as f64 / unit,
        _ => histogram.value_at_quantile(at) as f64 / unit,
    })
}

impl Round {
    pub fn of(samples: &[Sample], rate: f64, off: OffCore) -> Self {
        let service = samples.iter().map(|sample| sample.service);
        let since_due = samples.iter().map(|sample| sample.since_due);
        Round {
            service: quantiles(service, BATCH as f64),
            since_due: quantiles(since_due, 1e3),
            rate,
            off,
            samples: samples.len(),
        }
    }
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    ]
}

/// Rounds of one scenario: the n-th of each side were measured one right after the other.
pub struct Scenario {
    pub name: &'static str,
    pub ours: Vec<Round>,
    pub control: Vec<Round>,
}

/// Which of a round's times.
type Which = fn(&Round) -> &[f64; QUANTILES.len()];

impl Scenario {
    pub fn print(&self) {
        let pairs = self.ours.len();
        println!("\n{}, {pairs} pairs of rounds", self.name);
        println!("  median (least - most)             ours                           control");
        let service: Which = |round| &round.service;
        let since_due: Which = |round| &round.since_due;
        self.table("one request of 32, in ns", service);
        self.table("32 requests, from when they were due, in us", since_due);
        let line = |title: &str, digits: usize, value: fn(&Round) -> f64| {
            let text = |rounds: &[Round]| {
                let [median, least, most] = spread(rounds.iter().map(value).collect());
                format!("{median:.digits$} ({least:.digits$} - {most:.digits$})")
            };
            println!(
                "  {title}\n    {:8} {:>30} {:>30}",
                "",
                text(&self.ours),
                text(&self.control)
            );
        };
        line("its core was taken away, times in a round", 0, |round| {
            round.off.preempted as f64
        });
        line("it waited for something, times in a round", 0, |round| {
            round.off.waited as f64
        });
        line("beside it, in GB/s", 2, |round| round.rate / 1e9);
    }

    fn table(&self, title: &str, which: Which) {
        println!("  {title}");
        for (at, (name, _)) in QUANTILES.iter().enumerate() {
            let all = |rounds: &[Round]| spread(rounds.iter().map(|one| which(one)[at]).collect());
            let text =
                |[median, least, most]: [f64; 3]| format!("{median:.1} ({least:.1} - {most:.1})");
            let (ours, control) = (all(&self.ours), all(&self.control));
            println!("    {name:8} {:>30} {:>30}", text(ours), text(control));
            if at == COMPARED {
                let pairs = self.ours.iter().zip(&self.control);
                let ratios: Vec<f64> = pairs
                    .map(|(ours, control)| which(ours)[at] / which(control)[at])
                    .collect();
                let higher = ratios.iter().filter(|&&ratio| ratio > 1.0).count();
                let [median, least, most] = spread(ratios);
                println!(
                    "      {:.2}x (wanted: {WANTED}x at most); by pairs {median:.2}x ({least:.2} - {most:.2}), ours higher in {higher} of {}",
                    ours[0] / control[0],
                    self.ours.len()
                );
            }
        }
    }

    /// A row for each round.
    pub fn json(&self) -> Vec<String> {
        let times = |times: &[f64; QUANTILES.len()]| {
            let all = QUANTILES.iter().zip(times);
            let all: Vec<String> = all
                .map(|((name, _), time)| format!(r#""{name}":{time:.3}"#))
                .collect();
            all.join(",")
        };
        let mut rows = Vec::new();
        for (side, rounds) in [("ours", &self.ours), ("control", &self.control)] {
            for (pair, round) in rounds.iter().enumerate() {
                rows.push(format!(
                    r#"{{"scenario":"{}","side":"{side}","pair":{pair},"batches":{},"service_ns":{{{}}},"since_due_us":{{{}}},"preempted":{},"waited":{},"bytes_per_second":{:.0}}}"#,
                    self.name,
                    round.samples,
                    times(&round.service),
                    times(&round.since_due),
                    round.off.preempted,
                    round.off.waited,
                    round.rate
                ));
            }
        }
        rows
    }
}
