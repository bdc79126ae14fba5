//! A reader that stops at the first byte too many, and says why.
//!
//! What lives here: [`Scanned`], and [`Refusal`], by which a typed reason gets past serde. What does not:
//! what is too much (`scan`).

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;

use super::file::malformed;
use super::scan::{Fault, Scan};
use crate::error::Error;

/// Where the typed reason goes when a parse is stopped from within: serde carries only text.
#[derive(Default)]
pub(super) struct Refusal(Cell<Option<Error>>);

impl Refusal {
    /// The first reason stays: later ones follow from it.
    pub(super) fn set(&self, error: Error) {
        let first = self.0.take().unwrap_or(error);
        self.0.set(Some(first));
    }

    /// The reason, if there is one.
    pub(super) fn take(&self) -> Option<Error> {
        self.0.take()
    }

    /// [`set`](Self::set), and an error for serde.
    pub(super) fn stop<E: serde::de::Error>(&self, error: Error) -> E {
        self.set(error);
        E::custom("refused")
    }
}

/// A reader that stops at the first byte too many.
pub(super) struct Scanned<'a, R> {
    pub(super) bytes: R,
    pub(super) scan: Scan,
    pub(super) path: &'a Path,
    /// Why it stopped.
    pub(super) refusal: &'a Refusal,
}

impl<R: Read> Scanned<'_, R> {
    fn refuse(&self, fault: Fault) -> io::Error {
        self.refusal
            .set(malformed(self.path, self.scan.reason(fault)));
        io::ErrorKind::InvalidData.into()
    }

    /// Reads all of it, into `buffer` piece by piece.
    pub(super) fn drain(mut self, buffer: &mut [u8]) -> io::Result<()> {
        while self.read(buffer)? != 0 {}
        self.scan.end().map_err(|fault| self.refuse(fault))
    }
}

impl<R: Read> Read for Scanned<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match self.bytes.read(buffer) {
            Ok(len) => len,
            Err(error) => {
                let error = error.downcast::<Error>();
                let path = self.path.to_owned();
                self.refusal.set(error.unwrap_or_else(|source| Error::Io {
                    path,
                    op: "read",
                    source,
                }));
                return Err(io::ErrorKind::Other.into());
            }
        };
        let fed = self.scan.feed(&buffer[..len]);
        fed.map_err(|fault| self.refuse(fault))?;
        Ok(len)
    }
}
