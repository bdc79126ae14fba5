//! Soak: everything that a registry can do, at random, on many threads, for as long as one likes; every
//! byte that is read is checked, every sum, every wait, and that nothing grows.
//!
//! `cargo run --release --example soak -- --minutes 60`. See `--help`.

mod acts;
mod again;
#[path = "../common/arguments.rs"]
mod arguments;
mod books;
mod check;
#[path = "../../tests/support/counting.rs"]
mod counting;
mod held;
mod meeting;
mod mirror;
mod options;
mod pattern;
mod process;
mod random;
mod report;
mod roles;
mod run;
mod slope;
mod warm;
mod watchdog;
mod worker;
mod world;

use std::process::ExitCode;

use options::Options;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("soak: {message}");
            return ExitCode::from(2);
        }
    };
    match run::run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}
