//! JSON documents, parsed as they are read.
//!
//! What lives here: reading a document twice, first to see that it is within bounds (`scan`), then to
//! parse it. What does not: what the documents mean.
//!
//! Twice, because what a document's first part costs in memory must not be spent before it is known
//! that its last part is not too much.

use std::io::{BufReader, Read};
use std::path::Path;

use serde::de::DeserializeSeed;

use super::file::{Section, malformed};
use super::guard::{Refusal, Scanned};
use super::scan::Scan;
use crate::error::Error;

/// Bytes per read of a document.
const CHUNK: usize = 64 << 10;

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

impl Document for Section<'_> {
    fn check_unchanged(&self) -> Result<(), Error> {
        Section::check_unchanged(self)
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
        refusal.take().unwrap_or_else(reason)
    })
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::marker::PhantomData;
    use std::rc::Rc;

    use serde::de::IgnoredAny;

    use super::*;

    /// A document that is another one each time it is read.
    struct Changing {
        versions: Rc<Cell<Vec<Vec<u8>>>>,
        bytes: io::Cursor<Vec<u8>>,
    }

    impl Clone for Changing {
        fn clone(&self) -> Self {
            let mut left = self.versions.take();
            let bytes = io::Cursor::new(left.remove(0));
            self.versions.set(left);
            let versions = Rc::clone(&self.versions);
            Changing { versions, bytes }
        }
    }

    impl Read for Changing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.bytes.read(buffer)
        }
    }

    impl Document for Changing {
        fn check_unchanged(&self) -> Result<(), Error> {
            Ok(())
        }
    }

    /// What was seen to be within bounds is not believed to be so the second time.
    #[test]
    fn a_document_is_guarded_both_times_it_is_read() {
        let long = format!(r#"{{"{}":0}}"#, "x".repeat(1 << 20));
        for (versions, words) in [
            ([long.as_str(), "{}"], "16384 bytes"),
            (["{}", &long], "16384 bytes"),
            (["{}", "{"], "EOF"),
            (["{}", "[]"], "JSON object"),
        ] {
            let versions = versions.map(|text| text.as_bytes().to_vec()).to_vec();
            let document = Changing {
                versions: Rc::new(Cell::new(versions)),
                bytes: io::Cursor::default(),
            };
            let (scan, refusal) = (Scan::config(), Refusal::default());
            let seed = PhantomData::<IgnoredAny>;
            let error = read(Path::new("f"), &document, &scan, &refusal, seed).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
