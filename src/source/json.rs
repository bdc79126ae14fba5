//! JSON documents, parsed as they are read.
//!
//! What lives here: reading a document twice, first to see that it is within bounds (`scan`), then to
//! parse it. What does not: what the documents mean.
//!
//! Twice, because what a document's first part costs in memory must not be spent before it is known
//! that its last part is not too much.

use std::cell::Cell;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::de::DeserializeSeed;

use super::file::malformed;
use super::scan::{Scan, Scanned};
use crate::error::Error;

/// Bytes per read of a document.
const CHUNK: usize = 64 << 10;

/// Where the typed reason goes when a parse is stopped from within: serde carries only text.
#[derive(Default)]
pub(super) struct Refusal(Cell<Option<Error>>);

impl Refusal {
    /// The first reason stays: later ones follow from it.
    pub(super) fn set(&self, error: Error) {
        let first = self.0.take().unwrap_or(error);
        self.0.set(Some(first));
    }

    /// [`set`](Self::set), and an error for serde.
    pub(super) fn stop<E: serde::de::Error>(&self, error: Error) -> E {
        self.set(error);
        E::custom("refused")
    }
}

/// The bytes of a document, from its beginning. A clone begins there too.
pub(super) trait Document: Read + Clone {
    /// Are they still what they were when the document was opened?
    fn check_unchanged(&self) -> Result<(), Error>;
}

impl Document for &[u8] {
    fn check_unchanged(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Parses a document; messages call it `path`. `refusal` is the one that `seed` uses.
///
/// # Errors
/// Why it was refused, or [`Error::Malformed`] with what serde says. What a writer was in the middle of
/// is not judged: it is [`Error::SourceChanged`].
pub(super) fn read<S: DeserializeSeed<'static>>(
    path: &Path,
    document: &impl Document,
    scan: &Scan,
    refusal: &Refusal,
    seed: S,
) -> Result<S::Value, Error> {
    let scanned = || Scanned {
        bytes: document.clone(),
        scan: scan.clone(),
        path,
        refusal,
    };
    let parse = || {
        let drained = scanned().drain(&mut vec![0; CHUNK]);
        drained.map_err(serde_json::Error::io)?;
        let bytes = BufReader::with_capacity(CHUNK, scanned());
        let mut json = serde_json::Deserializer::from_reader(bytes);
        let value = seed.deserialize(&mut json)?;
        json.end()?;
        Ok(value)
    };
    let parsed = parse();
    document.check_unchanged()?;
    parsed.map_err(|error: serde_json::Error| {
        let reason = || malformed(path, format!("{}: {error}", scan.what()));
        refusal.0.take().unwrap_or_else(reason)
    })
}
