//! How big a JSON document may be in each direction, checked while it is read and before it is
//! parsed.
//!
//! What lives here: the lexer that counts members, bytes and depth. What does not: stopping the reader
//! (`guard`), the meaning of the document (`header`, `index`, `peft`), its syntax (serde_json).
//!
//! Why: a parser keeps a string in memory before anybody can say that it is too long. Here nothing
//! is kept, so a document that is refused costs what was read of it, and no memory. Strings, braces
//! and commas are told apart exactly as JSON does, so up to the first syntax error the two agree, and
//! after it nothing is parsed.

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

/// Where in the outermost object the lexer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a colon.
    Key,
    /// After the colon of `__metadata__`, in a header.
    Metadata,
    /// After the colon of `weight_map`, in an index.
    Table,
    /// After another colon.
    Value,
}

/// What is too much, or what a document of its kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Begins(u8),
    Ends,
    After,
    Misplaced(u8),
    TooDeep,
    TooMany,
    TooLong,
    Metadata,
    MetadataTwice,
    NotUtf8,
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
    place: Place,
    /// `__metadata__` was seen.
    metadata: bool,
    /// The last key of the outermost object: its length, and its beginning.
    key_len: usize,
    key: [u8; KEY_SHOWN],
    /// A character that is cut by the end of the bytes so far.
    cut_len: usize,
    cut: [u8; 4],
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
            place: Place::Key,
            metadata: false,
            key_len: 0,
            key: [0; KEY_SHOWN],
            cut_len: 0,
            cut: [0; 4],
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

    /// The next bytes of the document.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let (start, mut taken) = (self.at, 0);
        while let Some(&byte) = bytes.get(taken) {
            if self.quoted {
                taken += self.text(&bytes[taken..]);
            } else {
                self.at = start + taken as u64;
                self.mark(byte)?;
                taken += 1;
            }
        }
        self.at = start + taken as u64;
        self.check_item()?;
        self.check_text(bytes)
    }

    /// Is it UTF-8? Asked here because nobody else looks at strings that are not kept.
    fn check_text(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        while let (cut @ 1.., Some((&byte, after))) = (self.cut_len, rest.split_first()) {
            self.cut[cut] = byte;
            rest = after;
            self.cut_len = match std::str::from_utf8(&self.cut[..=cut]) {
                Ok(_) => 0,
                Err(error) if error.error_len().is_none() => cut + 1,
                Err(_) => return Err(Fault::NotUtf8),
            };
        }
        match std::str::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                let cut = &rest[error.valid_up_to()..];
                self.cut[..cut.len()].copy_from_slice(cut);
                self.cut_len = cut.len();
                Ok(())
            }
            Err(_) => Err(Fault::NotUtf8),
        }
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
        if self.depth != 1 || self.place != Place::Key {
            return;
        }
        let from = self.key_len.min(KEY_SHOWN);
        let kept = text.len().min(KEY_SHOWN - from);
        self.key[from..from + kept].copy_from_slice(&text[..kept]);
        self.key_len += text.len();
    }

    /// Takes a byte that is not in a string.
    #[inline]
    fn mark(&mut self, byte: u8) -> Result<(), Fault> {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return Ok(());
        }
        if self.depth == 0 && (self.closed || byte != b'{') {
            return Err(if self.closed {
                Fault::After
            } else {
                Fault::Begins(byte)
            });
        }
        if self.place == Place::Metadata && !self.fits_metadata(byte) {
            return Err(Fault::Metadata);
        }
        match byte {
            b'"' => {
                self.quoted = true;
                if self.depth == 1 && self.place == Place::Key {
                    self.key_len = 0;
                }
            }
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > DEPTH_CAP {
                    return Err(Fault::TooDeep);
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
    fn colon(&mut self) -> Result<(), Fault> {
        if self.depth == 1 {
            if self.place != Place::Key {
                return Err(Fault::Misplaced(b':'));
            }
            self.place = match self.kind {
                Kind::Header if self.under(METADATA) => Place::Metadata,
                Kind::Index if self.under(WEIGHT_MAP) => Place::Table,
                _ => Place::Value,
            };
            if self.place == Place::Metadata && std::mem::replace(&mut self.metadata, true) {
                return Err(Fault::MetadataTwice);
            }
        }
        let counted = match self.kind {
            Kind::Header => self.depth == 1 && self.place == Place::Value,
            Kind::Index => self.depth == 2 && self.place == Place::Table,
            Kind::Config => self.depth == 1,
        };
        self.members += usize::from(counted);
        if self.members > self.most {
            return Err(Fault::TooMany);
        }
        Ok(())
    }

    /// An item is complete. In an index, what is around the table is one item with its neighbour.
    fn comma(&mut self) -> Result<(), Fault> {
        let ends = match self.kind {
            Kind::Header => self.depth == 1,
            Kind::Index => self.depth == 2 && self.place == Place::Table,
            Kind::Config => true,
        };
        if ends {
            self.check_item()?;
            self.item = self.at;
        }
        if self.depth == 1 {
            if self.place == Place::Key {
                return Err(Fault::Misplaced(b','));
            }
            self.place = Place::Key;
        }
        Ok(())
    }

    fn item_cap(&self) -> u64 {
        if self.place == Place::Metadata {
            METADATA_CAP
        } else {
            ITEM_CAP
        }
    }

    #[inline]
    fn check_item(&self) -> Result<(), Fault> {
        // What follows the document is padding.
        if self.closed || self.at - self.item <= self.item_cap() {
            Ok(())
        } else {
            Err(Fault::TooLong)
        }
    }

    pub(super) fn end(&self) -> Result<(), Fault> {
        // What is closed has only white space after it: no character is cut.
        if self.closed {
            Ok(())
        } else {
            Err(Fault::Ends)
        }
    }

    /// For people.
    #[cold]
    pub(super) fn reason(&self, fault: Fault) -> String {
        let what = self.what();
        match fault {
            Fault::Begins(byte) => format!(
                "{what}: it begins with {:?} where a JSON object is expected",
                char::from(byte)
            ),
            Fault::Ends => format!("{what}: it ends before its object does"),
            Fault::After => format!("{what}: it goes on after the end of its object"),
            Fault::Misplaced(byte) => format!(
                "{what}: there is a {:?} out of place after {}",
                char::from(byte),
                self.last_key()
            ),
            Fault::TooDeep => format!("{what}: it is nested more than {DEPTH_CAP} deep"),
            Fault::TooMany => {
                let members = if self.kind == Kind::Config {
                    "options"
                } else {
                    "tensors"
                };
                format!("{what}: it has more than {} {members}", self.most)
            }
            Fault::TooLong => format!(
                "{what}: what it has under {} takes more than {} bytes",
                self.last_key(),
                self.item_cap()
            ),
            Fault::Metadata => format!("{what}: {METADATA} must be an object of strings"),
            Fault::MetadataTwice => format!("{what}: {METADATA} is there twice"),
            Fault::NotUtf8 => format!("{what}: it is not UTF-8, after {}", self.last_key()),
        }
    }

    fn last_key(&self) -> String {
        let shown = String::from_utf8_lossy(&self.key[..self.key_len.min(KEY_SHOWN)]);
        let more = if self.key_len > KEY_SHOWN { "…" } else { "" };
        format!("{shown:?}{more}")
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests;
