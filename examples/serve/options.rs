//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::arguments::number;

pub const HELP: &str = "\
Serves prompts from one registry on many threads while adapters are swapped under them, and checks
every answer.

  cargo run --release --example serve -- [OPTIONS]

  --model DIR          checkpoint directory               [fixtures/tiny-llama]
  --adapter NAME=DIR   a PEFT adapter; give a NAME twice to hot-swap between its directories
                       [pirate (two generations), robot, shout, ranked]
  --prompt-ids 1,2,3   a prompt as token ids; may be repeated   [those of expected.json]
  --max-new N          longest answer in tokens           [32, or that of expected.json]
  --threads N          worker threads                     [4]
  --seconds S          how long to serve                  [8]
  --json               end with one line of JSON
  --help               this text
";

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    pub model: PathBuf,
    /// Name and directories, in order.
    pub adapters: Vec<(String, Vec<PathBuf>)>,
    pub prompts: Vec<Vec<u32>>,
    pub max_new: Option<usize>,
    pub threads: usize,
    pub time: Duration,
    pub json: bool,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

impl Options {
    /// Parses the arguments after the program's name. `Ok(None)`: help was asked for.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options {
            model: fixtures().join("tiny-llama"),
            adapters: Vec::new(),
            prompts: Vec::new(),
            max_new: None,
            threads: 4,
            time: Duration::from_secs(8),
            json: false,
        };
        let mut own_model = false;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--model" => {
                    options.model = value()?.into();
                    own_model = true;
                }
                "--adapter" => {
                    let value = value()?;
                    let (name, dir) = value.split_once('=').ok_or("--adapter takes NAME=DIR")?;
                    options.add(name, dir.into());
                }
                "--prompt-ids" => {
                    let ids = value()?;
                    let ids: Result<Vec<u32>, _> =
                        ids.split(',').map(|id| id.trim().parse()).collect();
                    options
                        .prompts
                        .push(ids.map_err(|e| format!("--prompt-ids: {e}"))?);
                }
                "--max-new" => options.max_new = Some(number(&arg, &value()?)? as usize),
                "--threads" => options.threads = number(&arg, &value()?)? as usize,
                "--seconds" => options.time = Duration::from_secs(number(&arg, &value()?)?),
                "--json" => options.json = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown option {arg}; try --help")),
            }
        }
        if options.adapters.is_empty() && !own_model {
            let dir = |name: &str| fixtures().join("adapters").join(name);
            options.add("pirate", dir("pirate-v1"));
            options.add("pirate", dir("pirate-v2"));
            for name in ["robot", "shout", "ranked"] {
                options.add(name, dir(name));
            }
        }
        Ok(Some(options))
    }

    fn add(&mut self, name: &str, dir: PathBuf) {
        match self.adapters.iter_mut().find(|(known, _)| known == name) {
            Some((_, dirs)) => dirs.push(dir),
            None => self.adapters.push((name.to_owned(), vec![dir])),
        }
    }
}
