//! How big a JSON document may be in each direction, checked while it is read and before it is
//! parsed.
//!
//! What lives here: the lexer that counts members, bytes and depth; the reader that stops at the
//! first byte too many. What does not: the meaning of the document (`header`, `index`, `peft`), its
//! syntax (serde_json).
//!
//! Why: a parser keeps a string in memory before anybody can say that it is too long. Here nothing
//! is kept, so a document that is refused costs what was read of it, and no memory. Strings, braces
//! and commas are told apart exactly as JSON does, so up to the first syntax error the two agree, and
//! after it nothing is parsed.

use std::io::{self, Read};
use std::path::Path;

use super::file::malformed;
use super::json::Refusal;
use crate::error::Error;

/// The one key of a header that is no tensor.
pub(super) const METADATA: &str = "__metadata__";
/// The object of an index that is its table.
pub(super) const WEIGHT_MAP: &str = "weight_map";
/// Longest `__metadata__` in bytes.
const METADATA_CAP: u64 = 1 << 20;
/// Longest of everything else between two commas, in bytes: the longest legal entry of a tensor, all
/// of it escaped, takes less than a fourth of that.
const ITEM_CAP: u64 = 16 << 10;
/// Most options of a configuration. PEFT has some 40.
const OPTION_CAP: usize = 1024;
/// Deepest nesting. Headers need 3.
const DEPTH_CAP: u32 = 32;
/// As much of a key as is shown, and more than is needed to know the ones above.
const KEY_SHOWN: usize = 48;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Header,
    Index,
    Config,
}

/// A lexer's state after some bytes of a document.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    kind: Kind,
    /// Most members that are counted, and how many were seen.
    most: usize,
    members: usize,
    /// Bytes so far, and where the last comma was.
    at: u64,
    item: u64,
    depth: u32,
    /// The last bracket of the document was seen.
    closed: bool,
    quoted: bool,
    escaped: bool,
    /// The key of the outermost object that is being read, or was last: its length, and its beginning.
    /// `key_next` until its colon.
    key_next: bool,
    key_len: usize,
    key: [u8; KEY_SHOWN],
}

impl Scan {
    /// Of a safetensors header: tensors are counted.
    pub(super) fn header(tensors: usize) -> Self {
        Self::new(Kind::Header, tensors)
    }

    /// Of an index of shards: the tensors of its `weight_map` are counted.
    pub(super) fn index(tensors: usize) -> Self {
        Self::new(Kind::Index, tensors)
    }

    /// Of a configuration: options are counted.
    pub(super) fn config() -> Self {
        Self::new(Kind::Config, OPTION_CAP)
    }

    fn new(kind: Kind, most: usize) -> Self {
        Scan {
            kind,
            most,
            members: 0,
            at: 0,
            item: 0,
            depth: 0,
            closed: false,
            quoted: false,
            escaped: false,
            key_next: true,
            key_len: 0,
            key: [0; KEY_SHOWN],
        }
    }

    /// What messages call it.
    pub(super) fn what(&self) -> &'static str {
        match self.kind {
            Kind::Header => "header",
            Kind::Index => "index",
            Kind::Config => "configuration",
        }
    }

    fn under(&self, key: &str) -> bool {
        self.key_len == key.len() && self.key.starts_with(key.as_bytes())
    }

    fn in_metadata(&self) -> bool {
        self.kind == Kind::Header && !self.key_next && self.under(METADATA)
    }

    /// The next bytes of the document.
    ///
    /// # Errors
    /// What is too much, or what a document of this kind does not have.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let taken = if self.quoted {
                self.text(rest)
            } else {
                self.mark(byte)?;
                1
            };
            self.at += taken as u64;
            rest = &rest[taken..];
        }
        self.check_item()
    }

    /// Takes a part of a string, up to and with the next quote or backslash; at least one byte.
    fn text(&mut self, rest: &[u8]) -> usize {
        let taken = if std::mem::take(&mut self.escaped) {
            1
        } else {
            match rest.iter().position(|&byte| byte == b'"' || byte == b'\\') {
                Some(at) if rest[at] == b'"' => {
                    self.quoted = false;
                    self.keep_key(&rest[..at]);
                    return at + 1;
                }
                Some(at) => {
                    self.escaped = true;
                    at + 1
                }
                None => rest.len(),
            }
        };
        self.keep_key(&rest[..taken]);
        taken
    }

    /// Remembers a part of a string, if it is a key of the outermost object.
    fn keep_key(&mut self, text: &[u8]) {
        if self.depth != 1 || !self.key_next {
            return;
        }
        let from = self.key_len.min(KEY_SHOWN);
        let kept = text.len().min(KEY_SHOWN - from);
        self.key[from..from + kept].copy_from_slice(&text[..kept]);
        self.key_len += text.len();
    }

    /// Takes a byte that is not in a string.
    fn mark(&mut self, byte: u8) -> Result<(), String> {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return Ok(());
        }
        if self.closed {
            return Err("it goes on after the end of its object".to_owned());
        }
        if self.depth == 0 && byte != b'{' {
            let found = char::from(byte);
            return Err(format!(
                "it begins with {found:?} where a JSON object is expected"
            ));
        }
        if self.in_metadata() && !self.fits_metadata(byte) {
            return Err(format!("{METADATA} must be an object of strings"));
        }
        match byte {
            b'"' => {
                self.quoted = true;
                if self.depth == 1 && self.key_next {
                    self.key_len = 0;
                }
            }
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > DEPTH_CAP {
                    return Err(format!("it is nested more than {DEPTH_CAP} deep"));
                }
            }
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.check_item()?;
                    self.closed = true;
                }
            }
            b':' => self.colon()?,
            b',' => self.comma()?,
            _ => {}
        }
        Ok(())
    }

    /// What may follow the colon of `__metadata__`, so that it need not be parsed: it may be long, and
    /// nothing reads it.
    fn fits_metadata(&self, byte: u8) -> bool {
        match byte {
            b'{' => self.depth == 1,
            b'"' | b':' => self.depth == 2,
            b'}' | b',' => true,
            _ => false,
        }
    }

    /// A member has a key.
    fn colon(&mut self) -> Result<(), String> {
        let counted = match self.kind {
            Kind::Header => self.depth == 1 && !self.under(METADATA),
            Kind::Index => self.depth == 2 && self.under(WEIGHT_MAP),
            Kind::Config => self.depth == 1,
        };
        self.key_next &= self.depth != 1;
        self.members += usize::from(counted);
        if self.members > self.most {
            let what = if self.kind == Kind::Config {
                "options"
            } else {
                "tensors"
            };
            return Err(format!("it has more than {} {what}", self.most));
        }
        Ok(())
    }

    /// An item is complete. In an index, what is around the table is one item with its neighbour.
    fn comma(&mut self) -> Result<(), String> {
        let ends = match self.kind {
            Kind::Header => self.depth == 1,
            Kind::Index => self.depth == 2 && self.under(WEIGHT_MAP),
            Kind::Config => true,
        };
        if ends {
            self.check_item()?;
            self.item = self.at;
        }
        self.key_next |= self.depth == 1;
        Ok(())
    }

    fn check_item(&self) -> Result<(), String> {
        let cap = if self.in_metadata() {
            METADATA_CAP
        } else {
            ITEM_CAP
        };
        // What follows the document is padding.
        if self.closed || self.at - self.item <= cap {
            return Ok(());
        }
        let shown = &self.key[..self.key_len.min(KEY_SHOWN)];
        let shown = String::from_utf8_lossy(shown);
        let more = if self.key_len > KEY_SHOWN { "…" } else { "" };
        Err(format!(
            "what it has under {shown:?}{more} takes more than {cap} bytes"
        ))
    }

    fn end(&self) -> Result<(), String> {
        if self.closed {
            Ok(())
        } else {
            Err("it ends before its object does".to_owned())
        }
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
    fn refuse(&self, reason: &str) -> io::Error {
        let reason = format!("{}: {reason}", self.scan.what());
        self.refusal.set(malformed(self.path, reason));
        io::ErrorKind::InvalidData.into()
    }

    /// Reads all of it, into `buffer` piece by piece.
    pub(super) fn drain(mut self, buffer: &mut [u8]) -> io::Result<()> {
        while self.read(buffer)? != 0 {}
        self.scan.end().map_err(|reason| self.refuse(&reason))
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
        fed.map_err(|reason| self.refuse(&reason))?;
        Ok(len)
    }
}
