//! The command line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::arguments::number;

pub const HELP: &str = "\
Does everything that a registry can do, at random, on many threads, for as long as you like, and checks
every byte that is read, the ledger, the events, stalls, and that nothing grows.

  cargo run --release --example soak -- [OPTIONS]

  --minutes N          how long                                     [1]
  --seconds S          how long, in seconds
  --threads T          threads that work at the same time           [4]
  --seed S             decides what is drawn; printed at the start  [the clock]
  --only TEXT          only operations with TEXT in their names; may be repeated   [all]
  --plant MISTAKE      makes a mistake on purpose, which must be found:
                       arc (leaks an Arc for each retire), lease (forgets a lease), bytes (one tensor
                       of other bytes), torn (a transaction's sets one by one), byte (one byte in the
                       ledger), stuck (an operation that does not end), time (a number goes back),
                       event (one event is lost), file, thread (one that is left open)
  --help               this text

What is drawn is decided by the seed; how the threads interleave is not. Exit code: 0 if every check
passed, 1 if not, 2 if the command line is wrong.
";

/// A mistake that is made on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    Arc,
    Lease,
    Bytes,
    Torn,
    Byte,
    Stuck,
    Time,
    Event,
    File,
    Thread,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    pub time: Duration,
    pub threads: usize,
    pub seed: u64,
    pub plant: Option<Plant>,
    /// Only operations with one of these in their names.
    pub only: Vec<String>,
}

impl Options {
    /// Parses the arguments after the program's name. `Ok(None)`: help was asked for.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut options = Options {
            time: Duration::from_secs(60),
            threads: 4,
            seed: now.map_or(1, |now| u64::from(now.subsec_nanos())),
            plant: None,
            only: Vec::new(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--minutes" => options.time = Duration::from_secs(60 * number(&arg, &value()?)?),
                "--seconds" => options.time = Duration::from_secs(number(&arg, &value()?)?),
                "--threads" => options.threads = number(&arg, &value()?)? as usize,
                "--seed" => options.seed = number(&arg, &value()?)?,
                "--plant" => options.plant = Some(Plant::of(&value()?)?),
                "--only" => options.only.push(value()?),
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown option {arg}; try --help")),
            }
        }
        Ok(Some(options))
    }
}

impl Plant {
    fn of(name: &str) -> Result<Self, String> {
        Ok(match name {
            "arc" => Plant::Arc,
            "lease" => Plant::Lease,
            "bytes" => Plant::Bytes,
            "torn" => Plant::Torn,
            "byte" => Plant::Byte,
            "stuck" => Plant::Stuck,
            "time" => Plant::Time,
            "event" => Plant::Event,
            "file" => Plant::File,
            "thread" => Plant::Thread,
            _ => return Err(format!("no such mistake: {name}; try --help")),
        })
    }
}
