//! The arguments of every command.
//!
//! What lives here: names, defaults, help. What does not: what sizes and durations look like (`sizes`),
//! what the commands do.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, ValueParser};
use clap::{Args, Command as Arguments, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::sizes;

/// What is in a checkpoint or an adapter, whether it would load, and what a running server holds.
#[derive(Debug, Parser)]
#[command(name = "weighbridge", version, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// From this process's arguments.
    pub(crate) fn of_process() -> Result<Self, clap::Error> {
        let matches = Self::arguments().try_get_matches()?;
        Self::from_arg_matches(&matches)
    }

    /// Sizes are written alike everywhere, also where another crate says what the arguments are.
    fn arguments() -> Arguments {
        let arguments = Self::command();
        #[cfg(feature = "serve")]
        let arguments = arguments.mut_subcommand("serve", |serve| {
            let size = |arg: clap::Arg| arg.value_parser(ValueParser::from(sizes::parse_bytes));
            serve.mut_arg("limit", size).mut_arg("max_body", |arg| {
                arg.value_parser(|text: &str| {
                    let bytes = sizes::parse_bytes(text)?;
                    usize::try_from(bytes).map_err(|_| "more than there can be".to_owned())
                })
            })
        });
        arguments
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what is in a checkpoint or an adapter, from its headers
    Inspect(Inspect),
    /// Read every byte as a server would, with every check, and tell the identity
    Verify(Verify),
    /// Serve a model and its adapters: OpenAI's completions, vLLM's adapters, a live page
    #[cfg(feature = "serve")]
    Serve(Serve),
    /// Show what a running server holds, and who is in the way of what
    Top(Top),
}

/// Show what is in a checkpoint or an adapter, from its headers.
///
/// Nothing is allocated for weights, and without --hash none is read.
#[derive(Debug, Args)]
#[command(after_help = INSPECT)]
pub(crate) struct Inspect {
    /// A checkpoint directory, a directory of a PEFT adapter, or a .safetensors file
    pub(crate) path: PathBuf,
    /// Would it fit into so many bytes? (2147483648, 2GiB, 1.5GiB, 2GB)
    #[arg(long, value_name = "BYTES", value_parser = sizes::parse_bytes)]
    pub(crate) limit: Option<u64>,
    /// Would this adapter fit this checkpoint? With --limit: both together
    #[arg(long, value_name = "PATH")]
    pub(crate) base: Option<PathBuf>,
    /// Read every byte, and tell the identity
    #[arg(long)]
    pub(crate) hash: bool,
    /// Show every tensor and module on a terminal, too
    #[arg(long)]
    pub(crate) all: bool,
    /// One JSON document on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Read every byte as a server would, with every check, and tell the identity.
///
/// The set is published into a registry of its own, whose limit is what the headers say, to the byte;
/// then it is retired, and the registry's ledger must be at 0. It takes as much memory as the set.
#[derive(Debug, Args)]
#[command(after_help = VERIFY)]
pub(crate) struct Verify {
    /// A checkpoint directory, a directory of a PEFT adapter, or a .safetensors file
    pub(crate) path: PathBuf,
    /// The checkpoint that this adapter must fit; its headers are read
    #[arg(long, value_name = "PATH")]
    pub(crate) base: Option<PathBuf>,
    /// Vouch for the contents with a revision: the bytes are read and checked, but not hashed
    #[arg(long, value_name = "REV", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) declared: Option<String>,
    /// What the identity must be, whole: blake3:... or declared:...
    #[arg(long, value_name = "IDENTITY", value_parser = identity)]
    pub(crate) expect: Option<String>,
    /// One JSON document on stdout, and no progress
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what a running server holds, and who is in the way of what.
///
/// On a terminal the table is drawn again and again until Ctrl-C; while the server does not answer, the
/// last table stays, and it says since when. Elsewhere, and with --once or --json, it is one table.
#[derive(Debug, Args)]
#[command(after_help = TOP)]
pub(crate) struct Top {
    /// Where the server is, such as http://127.0.0.1:8000 (/v1/registry is added)
    pub(crate) url: String,
    /// From one look to the next (500ms, 2s, 1m)
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// How long the server may take to answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = sizes::parse_duration)]
    pub(crate) timeout: Duration,
    /// One table, and the end
    #[arg(long)]
    pub(crate) once: bool,
    /// Sent as "Authorization: Bearer TOKEN". From the environment, other users do not see it
    #[arg(long, env = "WEIGHBRIDGE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// One JSON document on stdout, and the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Serve a model and its adapters: OpenAI's completions, vLLM's adapters, a live page.
///
/// Runs until Ctrl-C or SIGTERM; requests are given time to end then. A second one ends it at once, with exit code 130.
#[cfg(feature = "serve")]
#[derive(Debug, Args)]
#[command(after_help = SERVE)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) options: weighbridge_serve::Options,
    /// What is told on stderr while it runs: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub(crate) log: tracing_subscriber::filter::LevelFilter,
    /// Say where it listens, and why it does not, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// An identity has a kind; a digest has 64 digits. A slip of the hand should not look like other weights.
fn identity(text: &str) -> Result<String, String> {
    let told = || "it begins with blake3:, declared: or declared-part:".to_owned();
    let (kind, rest) = text.split_once(':').ok_or_else(told)?;
    match kind {
        "blake3" => {
            let digits = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            if rest.len() == 64 && rest.chars().all(digits) {
                Ok(text.to_owned())
            } else {
                Err("blake3: is followed by 64 digits of 0-9 and a-f".to_owned())
            }
        }
        "declared" | "declared-part" => Ok(text.to_owned()),
        _ => Err(told()),
    }
}

/// Often enough for people, and no burden for a server.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = sizes::parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}

macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0  good
  1  what was read is bad, does not fit, or is not what was expected
  2  the command line is wrong
  3  it cannot be read: no such file, no permission, no memory, server not reachable
  4  a fault of weighbridge itself"
    };
}

const AFTER: &str = concat!(
    "\
Examples:
  weighbridge inspect models/llama-3-8b --limit 24GiB
  weighbridge verify adapters/pirate --base models/llama-3-8b
  weighbridge serve
  weighbridge top http://127.0.0.1:8000

",
    exit_codes!()
);

const INSPECT: &str = concat!(
    "\
Examples:
  weighbridge inspect models/llama-3-8b
  weighbridge inspect models/llama-3-8b --limit 24GiB && echo it fits
  weighbridge inspect adapters/pirate --base models/llama-3-8b
  weighbridge inspect models/llama-3-8b --json | jq .bytes.charged

",
    exit_codes!()
);

const VERIFY: &str = concat!(
    "\
Examples:
  weighbridge verify models/llama-3-8b
  weighbridge verify adapters/pirate --base models/llama-3-8b
  weighbridge verify models/llama-3-8b --expect \"$(cat models/llama-3-8b.identity)\"
  weighbridge verify models/llama-3-8b --json | jq -r .identity

",
    exit_codes!()
);

#[cfg(feature = "serve")]
const SERVE: &str = concat!(
    "\
Examples:
  weighbridge serve
  curl -s localhost:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"pirate\", \"prompt\": \"A cow says\", \"temperature\": 0}'
  weighbridge serve --model models/SmolLM2 --adapter pirate=adapters/pirate --adapter-root adapters
  WEIGHBRIDGE_ADMIN_TOKEN=... weighbridge serve --listen 0.0.0.0:8000 --limit 24GiB

",
    exit_codes!()
);

const TOP: &str = concat!(
    "\
Examples:
  weighbridge top http://127.0.0.1:8000
  weighbridge top 127.0.0.1:8000 --once
  WEIGHBRIDGE_TOKEN=... weighbridge top http://gpu-7:8000 --interval 500ms
  weighbridge top 127.0.0.1:8000 --json | jq .stats.ledger

",
    exit_codes!()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::arguments().debug_assert();
    }

    #[cfg(feature = "serve")]
    #[test]
    fn sizes_are_written_alike_everywhere() {
        let parse = |words: &[&str]| {
            let matches = Cli::arguments().try_get_matches_from(words)?;
            Cli::from_arg_matches(&matches)
        };
        let words = [
            "weighbridge",
            "serve",
            "--limit",
            "1.5GiB",
            "--max-body",
            "2MB",
        ];
        let Command::Serve(serve) = parse(&words).unwrap().command else {
            panic!("another command");
        };
        assert_eq!(serve.options.limit, Some(3 << 29));
        assert_eq!(serve.options.max_body, 2_000_000);
        let wrong = parse(&["weighbridge", "serve", "--limit", "2G"]).unwrap_err();
        assert!(wrong.to_string().contains("units are"), "{wrong}");
    }

    #[test]
    fn an_identity_with_a_slip_in_it_is_a_mistake_of_the_command_line() {
        let digest = format!("blake3:{}", "0f".repeat(32));
        assert_eq!(identity(&digest), Ok(digest.clone()));
        assert!(identity("declared:step 100").is_ok());
        for wrong in ["", "blake3", "blake3:0f", "0f", "sha256:00", "unread:x"] {
            assert!(identity(wrong).is_err(), "{wrong}");
        }
        assert!(identity(&digest.to_uppercase()).is_err());
    }

    #[test]
    fn an_interval_is_no_flood() {
        assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
        assert!(interval("99ms").is_err());
        assert!(interval("0s").is_err());
    }
}
