//! `weighbridge serve`: a server, until it is told to stop.
//!
//! What lives here: signals, the log, and what is said at the start and at the end. What does not: the server
//! (`weighbridge-serve`).

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use serde::Serialize;
use tokio::sync::oneshot;
use weighbridge_serve::{Server, StartError};

use crate::cli::Serve;
use crate::escape::clean;
use crate::failure::{Class, Failure};
use crate::output::{Answer, Form, SCHEMA};

/// For programs that wait until it listens.
#[derive(Serialize)]
struct Listening<'a> {
    schema: u32,
    command: &'static str,
    url: &'a str,
    model: &'a str,
}

pub(crate) fn run(args: Serve, form: Form) -> Result<Answer, Failure> {
    // Before anything is opened: a signal that comes meanwhile ends it as soon as it is.
    let (stop, stopped) = oneshot::channel::<()>();
    // The first signal stops it; whoever sends a second does not want to wait.
    let stop = Mutex::new(Some(stop));
    ctrlc::set_handler(move || {
        let first = stop.lock().ok().and_then(|mut stop| stop.take());
        match first {
            Some(stop) => drop(stop.send(())),
            None => std::process::exit(130),
        }
    })
    .map_err(|error| Failure::fault(format!("no handler for signals: {error}")))?;
    tracing_subscriber::fmt()
        .with_max_level(args.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    raise_files();
    let server = Server::open(args.options)?;
    let url = format!("http://{}", server.address());
    // Nobody who has gone keeps a server from serving: what cannot be said is not said.
    let mut out = std::io::stdout();
    let _ = match form {
        Form::Json => {
            let listening = Listening {
                schema: SCHEMA,
                command: "serve",
                url: &url,
                model: server.model(),
            };
            let json = serde_json::to_string(&listening);
            writeln!(out, "{}", json.unwrap_or_default())
        }
        Form::Text(_) => writeln!(
            out,
            "{} at {url}\nthe page is there, too; weighbridge top {url} shows the same; Ctrl-C ends it",
            clean(server.model()),
        ),
    };
    let _ = out.flush();
    server.run(async {
        let _ = stopped.await;
    })?;
    Ok(Answer::given())
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let (class, kind) = match &error {
            StartError::File { .. } => (Class::Unreadable, "io"),
            StartError::Address { .. } => (Class::Unreadable, "address"),
            StartError::System(_) => (Class::Unreadable, "system"),
            StartError::Option { .. } => (Class::Usage, "usage"),
            _ => (Class::Bad, "malformed"),
        };
        Failure {
            class,
            kind,
            message: clean(&error.to_string()),
        }
    }
}

/// As many open files as the system lets this process have: shells give it fewer, for programs that count them in bits.
fn raise_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let most = Rlimit {
            current: maximum,
            maximum,
        };
        // What it has is enough for a while.
        let _ = setrlimit(Resource::Nofile, most);
    }
}
