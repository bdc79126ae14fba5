//! How an answer, or its absence, leaves the program.
//!
//! What lives here: text or JSON, which stream, exit codes, readers that have gone. What does not: what
//! is in an answer.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::{Class, Failure};
use crate::paint::Paint;

/// Raised when a field goes, or changes its meaning or type.
pub(crate) const SCHEMA: u32 = 1;

/// What the caller wants to see.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    Text(Paint),
    Json,
}

impl Form {
    pub(crate) fn new(json: bool) -> Self {
        if json {
            Form::Json
        } else {
            Form::Text(Paint::for_stdout())
        }
    }
}

/// What a command found.
#[derive(Debug)]
pub(crate) struct Answer {
    body: String,
    /// `Some`: it is an answer, and not a good one.
    class: Option<Class>,
}

impl Answer {
    /// In the form that was asked for: of `text`, its lines.
    pub(crate) fn new(
        form: Form,
        good: bool,
        document: &impl Serialize,
        text: impl FnOnce(Paint) -> Vec<String>,
    ) -> Self {
        let body = match form {
            Form::Json => json(document),
            Form::Text(paint) => text(paint).join("\n"),
        };
        Answer {
            body,
            class: (!good).then_some(Class::Bad),
        }
    }
}

#[cfg(feature = "serve")]
impl Answer {
    /// A good one, which was given while it ran.
    pub(crate) fn given() -> Self {
        Answer {
            body: String::new(),
            class: None,
        }
    }
}

#[derive(Serialize)]
struct Document<'b, B> {
    schema: u32,
    #[serde(flatten)]
    body: &'b B,
}

/// One document. It is ASCII, so that nothing in it can steer a terminal: outside of strings JSON has
/// nothing else, and inside every character may be written as an escape.
fn json(body: &impl Serialize) -> String {
    let schema = SCHEMA;
    let document = match serde_json::to_string_pretty(&Document { schema, body }) {
        Ok(document) => document,
        // It writes to memory, and keys are strings.
        Err(_) => unreachable!("JSON that cannot be written"),
    };
    let mut ascii = String::with_capacity(document.len());
    for c in document.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            ascii.push(c);
        } else {
            let units = &mut [0; 2];
            for unit in c.encode_utf16(units) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

/// Writes what a command found, or why it found nothing.
pub(crate) fn finish(form: Form, outcome: Result<Answer, Failure>) -> ExitCode {
    match outcome {
        Ok(Answer { body, class }) => {
            let code = class.map_or(ExitCode::SUCCESS, ExitCode::from);
            if body.is_empty() {
                return code;
            }
            written(&body).map_or_else(|class| class.into(), |()| code)
        }
        Err(failure) => refused(matches!(form, Form::Json), &failure),
    }
}

fn refused(as_json: bool, failure: &Failure) -> ExitCode {
    if as_json {
        #[derive(Serialize)]
        struct Refused<'f> {
            error: Told<'f>,
        }
        #[derive(Serialize)]
        struct Told<'f> {
            class: Class,
            kind: &'f str,
            exit: u8,
            message: &'f str,
        }
        let error = Told {
            class: failure.class,
            kind: failure.kind,
            exit: failure.class.number(),
            message: &failure.message,
        };
        if let Err(class) = written(&json(&Refused { error })) {
            return class.into();
        }
    } else {
        let label = Paint::for_stderr().bad("error:");
        // There is nobody left to tell.
        let _ = writeln!(io::stderr(), "{label} {failure}");
    }
    failure.class.into()
}

/// Help, the version, or what is wrong with the arguments.
pub(crate) fn of_arguments(told: &clap::Error) -> ExitCode {
    if !told.use_stderr() {
        // A reader that has gone has seen enough.
        let _ = told.print();
        return ExitCode::SUCCESS;
    }
    // Nothing was parsed: whether JSON was wanted is only in the words themselves.
    if std::env::args_os().any(|word| word == "--json") {
        let text = told.render().to_string();
        let message = text.trim_end();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        return refused(true, &Failure::usage(message));
    }
    let _ = told.print();
    Class::Usage.into()
}

/// To stdout. That a reader has gone (`| head`) is no failure.
fn written(body: &str) -> Result<(), Class> {
    let mut stdout = io::stdout().lock();
    let done = writeln!(stdout, "{body}").and_then(|()| stdout.flush());
    match done {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "error: cannot write to stdout: {error}");
            Err(Class::Unreadable)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_ascii_and_means_the_same() {
        #[derive(Serialize)]
        struct Named {
            name: &'static str,
        }
        let name = "\u{1b}[2J\u{9b}\u{202e}\u{7f}漢🦙\"\\";
        let text = json(&Named { name });
        assert!(
            text.bytes()
                .all(|byte| (b' '..0x7f).contains(&byte) || byte == b'\n')
        );
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["name"], name);
        assert_eq!(back["schema"], 1);
    }
}
