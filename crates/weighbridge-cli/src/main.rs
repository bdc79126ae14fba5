//! The command `weighbridge`: what is in a checkpoint or an adapter, whether it would load, and what a
//! running server holds.
//!
//! What lives here: from arguments to an exit code. What does not: the arguments (`cli`), what each
//! command does (a room per command), how answers are written (`output`).

mod cli;
mod escape;
mod failure;
mod fits;
mod headers;
mod inspect;
mod output;
mod paint;
mod reading;
#[cfg(feature = "serve")]
mod serve;
mod sizes;
mod subject;
mod table;
mod top;
mod verify;
mod warnings;

use std::process::ExitCode;

use cli::{Cli, Command};
use output::{Answer, Form};

fn main() -> ExitCode {
    let cli = match Cli::of_process() {
        Ok(cli) => cli,
        Err(told) => return output::of_arguments(&told),
    };
    let (form, outcome) = match cli.command {
        Command::Inspect(args) => run(args.json, |form| inspect::run(&args, form)),
        Command::Verify(args) => run(args.json, |form| verify::run(&args, form)),
        #[cfg(feature = "serve")]
        Command::Serve(args) => run(args.json, |form| serve::run(args, form)),
        Command::Top(args) => run(args.json, |form| top::run(&args, form)),
    };
    output::finish(form, outcome)
}

/// Runs a command in the form that was asked for.
fn run(
    json: bool,
    command: impl FnOnce(Form) -> Result<Answer, failure::Failure>,
) -> (Form, Result<Answer, failure::Failure>) {
    let form = Form::new(json);
    (form, command(form))
}
