//! `tracing`: a span around each writer's call, an event for each commit and each refusal, all with the
//! target `weighbridge`.
//!
//! What lives here: their names and fields. Text from outside is escaped before it gets here.

use std::fmt::Display;

use tracing::Span;

use super::super::WeightRegistry;
use super::super::event::{Cause, Operation};

/// A span from here to its drop. Unlike tracing's own guard it calls a subscriber once at a time under
/// a shield, so that one that panics twice does not take the process down.
pub(super) struct Entered<'r> {
    registry: &'r WeightRegistry,
    span: Option<Span>,
}

impl<'r> Entered<'r> {
    pub(super) fn new(
        registry: &'r WeightRegistry,
        operation: Operation,
        subject: &dyn Display,
    ) -> Self {
        let span = registry.shielded(|| open(registry.id, operation, subject));
        if let Some(span) = &span {
            registry.shielded(|| span.with_subscriber(|(id, to)| to.enter(id)));
        }
        Entered { registry, span }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(span) = self.span.take() {
            let left = || span.with_subscriber(|(id, to)| to.exit(id));
            self.registry.shielded(left);
            self.registry.shielded(|| drop(span));
        }
    }
}

fn open(registry: u32, operation: Operation, subject: &dyn Display) -> Span {
    macro_rules! span {
        ($name:literal) => {
            tracing::info_span!(target: "weighbridge", $name, registry, subject = %subject)
        };
    }
    match operation {
        Operation::Stage => span!("stage"),
        Operation::Publish => span!("publish"),
        Operation::Replace => span!("replace"),
        Operation::Retire => span!("retire"),
        Operation::Transaction => span!("transaction"),
        Operation::Rollback => span!("rollback"),
        Operation::Rebind => span!("rebind"),
        Operation::Evict => span!("evict"),
        Operation::Load => span!("load"),
    }
}

pub(super) fn refused(registry: &WeightRegistry, operation: Operation, cause: Cause, reason: &str) {
    registry.shielded(|| {
        tracing::warn!(
            target: "weighbridge",
            registry = registry.id,
            operation = operation.as_str(),
            cause = cause.as_str(),
            "refused: {reason}"
        );
    });
}

pub(super) fn committed(registry: &WeightRegistry, commit: u64, changes: usize) {
    registry.shielded(|| {
        tracing::info!(target: "weighbridge", registry = registry.id, commit, changes, "committed");
    });
}
