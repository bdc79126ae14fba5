//! What a writer's call shows to whoever watches: refusals as events, and, with the features of these
//! names, `tracing` spans and `metrics`.
//!
//! What lives here: the one place where recorders and subscribers, which are foreign code, are called.
//! None of our locks is held there, what they panic is caught and counted, and nothing on the reading
//! side or on the reclaimer's thread comes here. What does not: the events of commits (`posting`).
//!
//! A call that holds a lock of ours while it calls the registry (the flat registry's, E30) is watched as
//! one, by [`WeightRegistry::observe_whole`]: what it calls tells nobody, and observers hear of all of it
//! when the lock is free again. One that asks the flat registry for its totals finds them.

use std::cell::Cell;
use std::fmt::Display;

use super::WeightRegistry;
use super::event::{Cause, EventKind, Operation};
use crate::error::Error;

#[cfg(feature = "metrics")]
mod metering;
#[cfg(feature = "tracing")]
mod spans;

/// What becomes of what this thread's calls have to tell.
#[derive(Clone, Copy)]
enum Reports {
    /// It is told.
    Told,
    /// A lock of ours is held. The commit that went through, if one did: its number and its changes. All
    /// else the call around it tells.
    Kept(Option<(u64, usize)>),
}

crate::sync::thread_local! {
    // Plain values, without a destructor: it is there as long as its thread runs.
    static REPORTS: Cell<Reports> = const { Cell::new(Reports::Told) };
}

impl Reports {
    fn are_kept() -> bool {
        matches!(REPORTS.with(Cell::get), Reports::Kept(_))
    }

    /// Keeps what `call` has to tell. Its commit comes back with its answer.
    fn keep<T>(call: impl FnOnce() -> T) -> (T, Option<(u64, usize)>) {
        /// On every way out: a thread that never told anything again would be a silent one.
        struct Before(Reports);
        impl Drop for Before {
            fn drop(&mut self) {
                REPORTS.with(|reports| reports.set(self.0));
            }
        }
        let before = Before(REPORTS.with(|reports| reports.replace(Reports::Kept(None))));
        let answer = call();
        let commit = match REPORTS.with(Cell::get) {
            Reports::Kept(commit) => commit,
            Reports::Told => None,
        };
        drop(before);
        (answer, commit)
    }
}

impl WeightRegistry {
    /// Runs a writer's call on `subject`. `blame`: what its error says.
    pub(super) fn observe<T, E>(
        &self,
        operation: Operation,
        subject: impl Display,
        blame: impl FnOnce(&E) -> &Error,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if Reports::are_kept() || self.shared.check_process().is_err() {
            return call();
        }
        self.tell_of(operation, subject, blame, || {
            let result = call();
            let went = result.is_ok();
            (result, went, None)
        })
    }

    /// [`observe`](Self::observe) for a call that takes a lock of ours and calls this registry while it
    /// holds it. It commits at most once, and runs no foreign code: what staged bytes it is left with it
    /// leaves to its caller. Nothing is told before it has returned; one that changed nothing and was not
    /// refused is not told of.
    ///
    /// # Errors
    /// [`Error::Forked`] before the lock is waited for: a thread of the parent's may hold it for ever.
    pub(crate) fn observe_whole<T, E: From<Error>>(
        &self,
        operation: Operation,
        subject: impl Display,
        blame: impl FnOnce(&E) -> &Error,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.shared.check_process()?;
        self.tell_of(operation, subject, blame, || {
            let (result, commit) = Reports::keep(call);
            (result, commit.is_some(), commit)
        })
    }

    /// Is this the process that it was made in? To be asked before a lock is waited for outside of
    /// [`observe_whole`](Self::observe_whole).
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub(crate) fn at_home(&self) -> Result<(), Error> {
        self.shared.check_process()
    }

    /// Tells of a call: of its answer, whether it went through, and of its commit, unless it did that
    /// itself.
    fn tell_of<T, E>(
        &self,
        operation: Operation,
        subject: impl Display,
        blame: impl FnOnce(&E) -> &Error,
        call: impl FnOnce() -> (Result<T, E>, bool, Option<(u64, usize)>),
    ) -> Result<T, E> {
        #[cfg(feature = "tracing")]
        let _span = spans::Entered::new(self, operation, &subject);
        #[cfg(feature = "metrics")]
        let started = std::time::Instant::now();
        #[cfg_attr(
            not(feature = "metrics"),
            allow(unused_variables, reason = "only meters count calls")
        )]
        let (result, went, commit) = call();
        #[cfg(feature = "metrics")]
        let took = started.elapsed();
        if let Some((number, changes)) = commit {
            self.committed(number, changes);
        }
        #[cfg(feature = "metrics")]
        if went {
            metering::done(self, operation, took);
        }
        if let Err(failed) = &result {
            self.note_refusal(operation, subject, blame(failed));
        }
        result
    }

    /// A writer was told no.
    pub(crate) fn note_refusal(&self, operation: Operation, subject: impl Display, error: &Error) {
        if Reports::are_kept() || self.shared.check_process().is_err() {
            // The call around this one tells of it; or nobody will read it, and the fork may have copied
            // a lock that somebody held.
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
    pub(super) fn committed(&self, number: u64, changes: usize) {
        match REPORTS.with(Cell::get) {
            Reports::Kept(_) => {
                REPORTS.with(|reports| reports.set(Reports::Kept(Some((number, changes)))));
            }
            Reports::Told => {
                #[cfg(feature = "tracing")]
                spans::committed(self, number, changes);
                #[cfg(feature = "metrics")]
                metering::committed(self, changes);
            }
        }
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

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::registry::{EventKind, Next};

    fn whole(
        registry: &WeightRegistry,
        call: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        registry.observe_whole(Operation::Retire, "it", |error| error, call)
    }

    /// A call that unwinds under a lock does not leave its thread silent.
    #[test]
    fn reports_are_kept_for_one_call() {
        let registry = WeightRegistry::builder().build().unwrap();
        let call = std::panic::AssertUnwindSafe(|| {
            let _ = whole(&registry, || panic!("on purpose"));
        });
        std::panic::catch_unwind(call).unwrap_err();
        assert!(!Reports::are_kept());
        let mut events = registry.events();
        let refused = whole(&registry, || {
            assert!(Reports::are_kept());
            registry.note_refusal(Operation::Publish, "part of it", &Error::Spent);
            Err(Error::Spent)
        });
        refused.unwrap_err();
        let [Next::Event(told)] = &events.pending().collect::<Vec<_>>()[..] else {
            panic!("it is told once")
        };
        assert!(matches!(&told.kind, EventKind::Refused { subject, .. } if subject == "it"));
    }
}
