//! Why a command has no answer, and what its exit code is.
//!
//! What lives here: [`Failure`], [`Class`], which error of the library is of which class. What does not:
//! how failures are written (`output`).

use std::process::ExitCode;

use serde::Serialize;
use thiserror::Error;

/// Whose fault it is. The numbers are promised in the help and in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// What was read is bad, does not fit, or is not what was expected.
    Bad,
    /// The command line is wrong.
    Usage,
    /// It cannot be read.
    Unreadable,
    /// This program, or the library, did what it promises not to do.
    Fault,
}

impl Class {
    pub(crate) fn number(self) -> u8 {
        match self {
            Class::Bad => 1,
            Class::Usage => 2,
            Class::Unreadable => 3,
            Class::Fault => 4,
        }
    }
}

impl From<Class> for ExitCode {
    fn from(class: Class) -> Self {
        ExitCode::from(class.number())
    }
}

/// No answer. The message is fit for a terminal.
#[derive(Debug, Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) class: Class,
    /// A word for programs: the `cause` of the library's events, or what else it was.
    pub(crate) kind: &'static str,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure {
            class: Class::Usage,
            kind: "usage",
            message: message.into(),
        }
    }

    pub(crate) fn fault(message: impl Into<String>) -> Self {
        Failure {
            class: Class::Fault,
            kind: "fault",
            message: message.into(),
        }
    }
}

impl From<weighbridge::Error> for Failure {
    fn from(error: weighbridge::Error) -> Self {
        let (class, kind) = classify(&error);
        Failure {
            class,
            kind,
            message: error.to_string(),
        }
    }
}

fn classify(error: &weighbridge::Error) -> (Class, &'static str) {
    if error.is_io() {
        (Class::Unreadable, "io")
    } else if matches!(error, weighbridge::Error::SourceChanged { .. }) {
        // Nothing can be said of files that somebody writes: another try may find them good.
        (Class::Unreadable, "changed")
    } else if error.is_malformed() {
        (Class::Bad, "malformed")
    } else if error.is_unsupported() {
        (Class::Bad, "unsupported")
    } else if matches!(error, weighbridge::Error::OutOfMemory { .. }) {
        (Class::Unreadable, "out_of_memory")
    } else if matches!(error, weighbridge::Error::AdapterWithoutEffect { .. }) {
        (Class::Bad, "malformed")
    } else {
        // The registry is this program's own and used by nobody else: nothing is in the way there.
        (Class::Fault, "fault")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_class_that_the_help_promises() {
        let file = || "f".into();
        let io = weighbridge::Error::Io {
            path: file(),
            op: "open",
            source: std::io::ErrorKind::NotFound.into(),
        };
        let changed = weighbridge::Error::SourceChanged {
            file: file(),
            what: "its length".into(),
        };
        let shard = weighbridge::Error::MissingShard { file: file() };
        let memory = weighbridge::Error::OutOfMemory { bytes: 1 };
        let odd = weighbridge::Error::Spent;
        let of = |error| Failure::from(error).class.number();
        assert_eq!([io, changed, shard, memory, odd].map(of), [3, 3, 1, 3, 4]);
    }
}
