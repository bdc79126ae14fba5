//! What a run is asked to do.
//!
//! What lives here: the command line, and how large everything is. What does not: what is done with it.

use std::path::PathBuf;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// All of it.
    Full,
    /// The same code on less: figures that show that it works, not what it takes.
    Quick,
    /// As little as there can be, for CI.
    Test,
}

impl Scale {
    /// How long one thread, or one per core, is measured in a round.
    pub fn round(self) -> Duration {
        Duration::from_micros(match self {
            Scale::Full => 10_000,
            Scale::Quick => 2_000,
            Scale::Test => 100,
        })
    }

    /// `full`, or what is left of that in a shorter run.
    pub fn of(self, full: usize, quick: usize, test: usize) -> usize {
        match self {
            Scale::Full => full,
            Scale::Quick => quick,
            Scale::Test => test,
        }
    }

    /// Numbers of threads.
    pub fn threads(self) -> &'static [usize] {
        match self {
            Scale::Test => &[1, 2],
            _ => &[1, 2, 4, 32],
        }
    }
}

/// The command line.
pub struct Options {
    /// How much is measured.
    pub scale: Scale,
    /// Rounds of each cell but the large ones.
    pub rounds: usize,
    /// Only cells whose name has this.
    pub only: Option<String>,
    /// Where the rows go, if anywhere.
    pub json: Option<PathBuf>,
    /// Files of rows to be put together, instead of measuring.
    pub merge: Vec<PathBuf>,
    /// Where what is put together goes.
    pub out: PathBuf,
    /// Facts that the program does not know by itself: names and values.
    pub facts: Vec<(String, String)>,
}

impl Options {
    /// What the command line says.
    ///
    /// # Panics
    /// If it says something else.
    pub fn read() -> Self {
        let mut options = Options {
            scale: Scale::Full,
            rounds: 0,
            only: None,
            json: None,
            merge: Vec::new(),
            out: PathBuf::from("docs/benchmarks"),
            facts: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word}: what?"));
            match word.as_str() {
                // What cargo says to every bench.
                "--bench" => {}
                "--test" => options.scale = Scale::Test,
                "--quick" => options.scale = Scale::Quick,
                "--rounds" => options.rounds = value().parse().expect("--rounds N"),
                "--only" => options.only = Some(value()),
                "--json" => options.json = Some(value().into()),
                "--merge" => options.merge.push(value().into()),
                "--out" => options.out = value().into(),
                "--fact" => {
                    let fact = value();
                    let (name, value) = fact.split_once('=').expect("--fact NAME=VALUE");
                    options.facts.push((name.to_owned(), value.to_owned()));
                }
                other => panic!(
                    "{other}: --test, --quick, --rounds N, --only SUBSTRING, --json FILE, \
                     --merge FILE, --out DIR, --fact NAME=VALUE"
                ),
            }
        }
        if options.rounds == 0 {
            options.rounds = options.scale.of(11, 3, 1);
        }
        options
    }

    /// Rounds of a cell of which one round takes seconds.
    pub fn few_rounds(&self) -> usize {
        self.rounds.min(3)
    }

    /// Is a cell of this name wanted?
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only))
    }
}
