//! `weighbridge top`: what a running server holds.
//!
//! What lives here: once or again and again. What does not: the address (`address`), asking (`fetch`),
//! what servers say (`document`), tables (`view`), the terminal (`screen`), drawing again (`live`).

mod address;
mod document;
mod fetch;
mod live;
mod screen;
mod view;

use std::io::IsTerminal;

use serde::Serialize;

use crate::cli;
use crate::failure::Failure;
use crate::output::{Answer, Form};
use document::Registry;
use fetch::Server;

/// What a server said, as far as it is known here.
#[derive(Serialize)]
struct Report<'r> {
    command: &'static str,
    url: &'r str,
    #[serde(flatten)]
    registry: &'r Registry,
}

pub(crate) fn run(args: &cli::Top, form: Form) -> Result<Answer, Failure> {
    let url = address::of_registry(&args.url)?;
    let server = Server::new(url, args.timeout, args.token.as_deref())?;
    match form {
        Form::Text(paint) if !args.once && std::io::stdout().is_terminal() => {
            Err(live::run(&server, args.interval, paint))
        }
        form => once(&server, form),
    }
}

fn once(server: &Server, form: Form) -> Result<Answer, Failure> {
    let registry = server.ask()?;
    let report = Report {
        command: "top",
        url: server.url(),
        registry: &registry,
    };
    Ok(Answer::new(form, true, &report, |paint| {
        view::lines(server.url(), &registry, paint, view::Size::PAGE)
    }))
}
