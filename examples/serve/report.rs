//! What people and programs get to read.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;

/// The latest numbers, for the live view.
#[derive(Debug, Default, Clone)]
pub struct Progress {
    pub phase: &'static str,
    pub requests: u64,
    pub mixed: u64,
    pub swaps: u64,
    pub loads: u64,
    pub retires: u64,
    pub bytes: u64,
    pub limit: u64,
    /// One line per adapter: its latest answer.
    pub samples: Vec<String>,
}

/// A table that is redrawn on a terminal, plain lines elsewhere.
pub struct Live {
    redraw: bool,
    drawn: usize,
}

impl Live {
    /// For standard output as it is.
    pub fn new(json: bool) -> Self {
        Live {
            redraw: std::io::stdout().is_terminal() && !json,
            drawn: 0,
        }
    }

    /// How often to show something.
    pub fn every(&self) -> Duration {
        Duration::from_millis(if self.redraw { 200 } else { 1000 })
    }

    /// Shows the numbers.
    pub fn show(&mut self, elapsed: Duration, now: &Progress) {
        let line = format!(
            "{:>5.1} s  {:<8} {:>7} requests  {:>5} swaps  {:>4} loads  {:>4} retires  \
             {:>6} KiB of {} KiB  mixed {}",
            elapsed.as_secs_f64(),
            now.phase,
            now.requests,
            now.swaps,
            now.loads,
            now.retires,
            now.bytes >> 10,
            now.limit >> 10,
            now.mixed,
        );
        let mut out = std::io::stdout().lock();
        if !self.redraw {
            let _ = writeln!(out, "{line}");
            return;
        }
        let mut lines = vec![line];
        lines.extend(
            now.samples
                .iter()
                .map(|sample| format!("         {sample}")),
        );
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        for line in &lines {
            let _ = writeln!(out, "\x1b[2K{line}");
        }
        self.drawn = lines.len();
        let _ = out.flush();
    }
}

/// How the whole run ended.
pub struct Outcome {
    pub requests: u64,
    pub matched: u64,
    pub mixed: u64,
    pub refused: u64,
    pub swaps: u64,
    pub loads: u64,
    pub retires: u64,
    pub ledger_start: u64,
    pub ledger_end: u64,
    pub peak: u64,
    pub limit: u64,
    pub workers: usize,
    /// If that is known.
    pub cores: Option<usize>,
    pub idle: Histogram<u64>,
    pub busy: Histogram<u64>,
    pub samples: Vec<String>,
    pub findings: Vec<String>,
}

fn percentiles(of: &Histogram<u64>) -> [f64; 3] {
    // Recorded in tenths of a nanosecond.
    [0.5, 0.99, 0.999].map(|quantile| of.value_at_quantile(quantile) as f64 / 10.0)
}

impl Outcome {
    /// The checks, by what they promise.
    fn checks(&self) -> [(String, bool); 5] {
        [
            (
                format!(
                    "{} of {} answers match their lease's version",
                    self.matched, self.requests
                ),
                self.matched == self.requests && self.requests > 0,
            ),
            (
                format!(
                    "{} mixed answers (of another version, of several, or of none)",
                    self.mixed
                ),
                self.mixed == 0,
            ),
            (format!("{} swaps under load", self.swaps), self.swaps > 0),
            (
                format!(
                    "ledger: {} bytes before, {} after",
                    self.ledger_start, self.ledger_end
                ),
                self.ledger_start == self.ledger_end,
            ),
            (
                format!("never more than {} of {} bytes", self.peak, self.limit),
                self.peak <= self.limit,
            ),
        ]
    }

    /// Did every check pass?
    pub fn passed(&self) -> bool {
        self.checks().iter().all(|(_, passed)| *passed)
    }

    /// For people.
    pub fn print(&self) {
        println!("\nThe last answer of each version (a swap can be read):");
        for sample in &self.samples {
            println!("  {sample}");
        }
        for finding in &self.findings {
            println!("  WRONG: {finding}");
        }
        println!(
            "\n{} requests were answered; meanwhile {} swaps, {} loads and {} retires of adapters.\n{} \
             more were refused and are not counted: their adapter was not published at that moment.",
            self.requests, self.swaps, self.loads, self.retires, self.refused
        );
        println!(
            "Taking and dropping a lease of two sets, beside the requests, mean of 64 in a row, ns:"
        );
        // While there are swaps the operator has work, too.
        self.print_latency("without swaps", &self.idle, self.workers);
        self.print_latency("with swaps", &self.busy, self.workers + 1);
        println!();
        for (what, passed) in self.checks() {
            println!("{}  {what}", if passed { "PASS" } else { "FAIL" });
        }
    }

    /// Threads that wait for a core are no property of the registry: then there is no tail to show.
    fn print_latency(&self, name: &str, of: &Histogram<u64>, threads: usize) {
        let [p50, p99, p999] = percentiles(of);
        match self.cores {
            Some(cores) if cores < threads => println!(
                "  {name:<14} p50 {p50:>7.1}   the tail is left out: {threads} busy threads on {cores} \
                 core(s) wait for each other"
            ),
            _ => println!("  {name:<14} p50 {p50:>7.1}   p99 {p99:>7.1}   p99.9 {p999:>9.1}"),
        }
    }

    /// For programs: one line.
    pub fn print_json(&self) {
        let nanoseconds = |of: &Histogram<u64>| {
            let [p50, p99, p999] = percentiles(of);
            json!({ "p50": p50, "p99": p99, "p999": p999, "batches": of.len() })
        };
        let line = json!({
            "requests": self.requests,
            "matched": self.matched,
            "mixed_reads": self.mixed,
            "refused": self.refused,
            "swaps": self.swaps,
            "loads": self.loads,
            "retires": self.retires,
            "ledger_start_bytes": self.ledger_start,
            "ledger_end_bytes": self.ledger_end,
            "ledger_peak_bytes": self.peak,
            "ledger_limit_bytes": self.limit,
            "acquire_ns": nanoseconds(&self.busy),
            "acquire_ns_idle": nanoseconds(&self.idle),
            "threads": self.workers,
            "cores": self.cores,
            "passed": self.passed(),
        });
        println!("{line}");
    }
}
