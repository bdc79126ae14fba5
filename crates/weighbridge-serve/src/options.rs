//! What is served, and who may do what.
//!
//! What lives here: [`Options`], which are a command's arguments, too. What does not: what is made of them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::StartError;

/// No client is waited for any longer.
const DAY: Duration = Duration::from_secs(86_400);

/// Everything that can be chosen. The defaults serve the model that is built in, on loopback only; of a model of your
/// own they load adapters from nowhere.
#[derive(Clone, Debug, clap::Args)]
#[non_exhaustive]
pub struct Options {
    /// Directory of the model: Llama architecture, safetensors, tokenizer.json. Without it: a tiny model that is built
    /// in, with its adapters (pirate and robot are loaded; pirate-v1, pirate-v2, ranked, robot and shout may be)
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// The model's name in requests; by default its directory's
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// An adapter to load at the start; may be given several times
    #[arg(long = "adapter", value_name = "NAME=DIR", value_parser = named)]
    pub adapters: Vec<(String, PathBuf)>,

    /// Directory that adapters may be loaded from by requests; may be given several times
    #[arg(long = "adapter-root", value_name = "DIR")]
    pub roots: Vec<PathBuf>,

    /// Where to listen: address and port. Anything but loopback is for networks that you trust, or behind a proxy
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000", value_parser = address)]
    pub listen: SocketAddr,

    /// If set, loading and unloading adapters needs `Authorization: Bearer TOKEN`
    #[arg(
        long,
        value_name = "TOKEN",
        env = "WEIGHBRIDGE_ADMIN_TOKEN",
        hide_env_values = true
    )]
    pub admin_token: Option<Token>,

    /// Bytes of weights that the registry may hold (24GiB); no limit by default
    #[arg(long, value_name = "BYTES")]
    pub limit: Option<u64>,

    /// Requests that run together
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub running: usize,

    /// Adapter generations that run together
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub running_adapters: usize,

    /// Requests that may wait; more are refused
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub waiting: usize,

    /// Adapters that may be loaded
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_adapters: usize,

    /// Seconds that the load of an adapter waits for room that others have
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub room_timeout: u64,

    /// Connections at a time; more wait until one ends
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub connections: usize,

    /// Seconds that a client may let the server wait: for a request, for its body, for room to write to
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub client_timeout: u64,

    /// Largest body of a request, in bytes (1MiB)
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    pub max_body: usize,

    /// Seconds that requests are given when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub grace: u64,
}

/// What whoever may change adapters shows. It is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Token {
    type Err = &'static str;

    /// Without the space around it, which a file's last line or a variable may bring along.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        match given.trim() {
            "" => Err("it is empty: nobody could show it"),
            token => Ok(Token(token.to_owned())),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Options {
    /// The defaults, for this model.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Options {
            model: Some(model.into()),
            ..Self::built_in()
        }
    }

    /// What nobody else looks at.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let most = DAY.as_secs();
        let wrong = |option, reason: &str| {
            let reason = reason.to_owned();
            Err(StartError::Option { option, reason })
        };
        if self.connections == 0 {
            return wrong("--connections", "without any, nobody is answered");
        }
        if !(1..=most).contains(&self.client_timeout) {
            return wrong("--client-timeout", "must be from 1 to 86400 seconds");
        }
        if self.room_timeout > most {
            return wrong("--room-timeout", "must be at most 86400 seconds");
        }
        Ok(())
    }

    /// The defaults, for the tiny model that is built in.
    pub fn built_in() -> Self {
        Options {
            model: None,
            name: None,
            adapters: Vec::new(),
            roots: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            admin_token: None,
            limit: None,
            running: 16,
            running_adapters: 8,
            waiting: 1024,
            max_adapters: 1024,
            room_timeout: 5,
            connections: 1024,
            client_timeout: 30,
            max_body: 1 << 20,
            grace: 30,
        }
    }
}

fn address(given: &str) -> Result<SocketAddr, String> {
    let found = given.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| "expected an address and a port, such as 127.0.0.1:8000".into())
}

fn named(given: &str) -> Result<(String, PathBuf), String> {
    match given.split_once('=') {
        Some((name, directory)) if !name.is_empty() && !directory.is_empty() => {
            Ok((name.to_owned(), directory.into()))
        }
        _ => Err("expected NAME=DIR".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_defaults_are_the_same_from_a_command_and_from_code() {
        let parse = |words: &[&str]| Command::try_parse_from(words).unwrap().options;
        let parsed = [parse(&["serve", "--model", "m"]), parse(&["serve"])];
        let made = [Options::new("m"), Options::built_in()];
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
    }

    #[test]
    fn where_to_listen_is_an_address_or_a_name() {
        assert_eq!(address("127.0.0.1:80"), Ok(([127, 0, 0, 1], 80).into()));
        assert!(address("localhost:80").unwrap().ip().is_loopback());
        for wrong in ["", "80", "127.0.0.1", "127.0.0.1:80800"] {
            assert!(address(wrong).unwrap_err().contains("such as"), "{wrong}");
        }
    }

    #[test]
    fn adapters_are_named() {
        let parse = |given| Command::try_parse_from(["serve", "--model", "m", "--adapter", given]);
        let options = parse("pirate=a=b").unwrap().options;
        assert_eq!(options.adapters, [("pirate".into(), "a=b".into())]);
        for wrong in ["pirate", "=x", "x="] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_something_and_is_not_printed() {
        let token: Token = " s3cret\n".parse().unwrap();
        assert_eq!(
            (token.as_str(), format!("{token:?}").as_str()),
            ("s3cret", "Token")
        );
        assert!("".parse::<Token>().is_err() && " \n".parse::<Token>().is_err());
    }
}
