//! What observers are given as JSON: the frame of a document, and how single values are written.
//!
//! What lives here: what no derive says. What does not: the fields (with their types), the schema's
//! description and promise (docs/JSON.md).

use std::time::Duration;

use serde::{Serialize, Serializer};

/// Raised when a field changes its meaning or goes. New fields may come at any time.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'b, B> {
    schema: u32,
    #[serde(flatten)]
    body: &'b B,
}

/// `body` with the number of its schema, on one line.
pub(crate) fn document(body: &impl Serialize) -> String {
    let schema = SCHEMA;
    match serde_json::to_string(&Document { schema, body }) {
        Ok(json) => json,
        // It writes to memory, keys are strings, and no implementation of ours fails.
        Err(_) => unreachable!("JSON that cannot be written"),
    }
}

/// A limit; `null` if there is none. The number that stands for none is more than what most readers
/// of JSON can hold.
pub(crate) fn limit<S: Serializer>(limit: &u64, to: S) -> Result<S::Ok, S::Error> {
    (*limit != u64::MAX).then_some(limit).serialize(to)
}

/// A duration in seconds.
pub(crate) fn seconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    duration.as_secs_f64().serialize(to)
}

/// The same if there is one.
pub(crate) fn maybe_seconds<S: Serializer>(
    duration: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    duration
        .map(|duration| duration.as_secs_f64())
        .serialize(to)
}
