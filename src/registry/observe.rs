//! What a writer's call shows to whoever watches: refusals as events, and, with the features of these
//! names, `tracing` spans and `metrics`.
//!
//! What lives here: the one place where recorders and subscribers, which are foreign code, are called.
//! None of our locks is held there, what they panic is caught and counted, and nothing on the reading
//! side or on the reclaimer's thread comes here. What does not: the events of commits (`posting`).

use std::fmt::Display;

use super::WeightRegistry;
use super::event::{Cause, EventKind, Operation};
use crate::error::Error;

#[cfg(feature = "metrics")]
mod metering;
#[cfg(feature = "tracing")]
mod spans;

impl WeightRegistry {
    /// Runs a writer's call on `subject`. `blame`: what its error says.
    pub(super) fn observe<T, E>(
        &self,
        operation: Operation,
        subject: impl Display,
        blame: impl FnOnce(&E) -> &Error,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.shared.check_process().is_err() {
            return call();
        }
        #[cfg(feature = "tracing")]
        let _span = spans::Entered::new(self, operation, &subject);
        #[cfg(feature = "metrics")]
        let started = std::time::Instant::now();
        let result = call();
        #[cfg(feature = "metrics")]
        if result.is_ok() {
            metering::done(self, operation, started.elapsed());
        }
        if let Err(failed) = &result {
            self.note_refusal(operation, subject, blame(failed));
        }
        result
    }

    /// A writer was told no.
    pub(super) fn note_refusal(&self, operation: Operation, subject: impl Display, error: &Error) {
        if self.shared.check_process().is_err() {
            // Nobody will read it, and the fork may have copied a lock that somebody held.
            return;
        }
        let (cause, reason) = (Cause::from(error), short(error));
        #[cfg(feature = "tracing")]
        spans::refused(self, operation, cause, &reason);
        #[cfg(feature = "metrics")]
        metering::refused(self, operation, cause);
        self.shared.tell(EventKind::Refused {
            operation,
            subject: short(subject),
            cause,
            reason,
        });
    }

    /// A commit of so many changes went through: its locks are released, its names are settled.
    #[cfg_attr(
        not(all(feature = "metrics", feature = "tracing")),
        allow(unused_variables, reason = "each observer takes some of it")
    )]
    pub(super) fn committed(&self, number: u64, changes: usize) {
        #[cfg(feature = "tracing")]
        spans::committed(self, number, changes);
        #[cfg(feature = "metrics")]
        metering::committed(self, changes);
    }

    /// Calls foreign code of an observer.
    #[cfg(any(feature = "metrics", feature = "tracing"))]
    fn shielded<T>(&self, call: impl FnOnce() -> T) -> Option<T> {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
            Ok(answer) => Some(answer),
            Err(payload) => {
                // Its destructor is foreign, too.
                std::mem::forget(payload);
                // E17: a statistic.
                let relaxed = crate::sync::atomic::Ordering::Relaxed;
                self.shared.observer_panics.fetch_add(1, relaxed);
                None
            }
        }
    }
}

/// The blame of what fails with an [`Error`].
pub(super) fn itself(error: &Error) -> &Error {
    error
}

/// Text of an event: what callers can make long is cut, because the stream is bounded in bytes, too.
fn short(text: impl Display) -> String {
    const CAP: usize = 1024;
    let mut text = text.to_string();
    if text.len() > CAP {
        text.truncate(text.floor_char_boundary(CAP));
        text.push('…');
    }
    text
}
