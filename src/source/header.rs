//! Safetensors headers, read and checked within bounds.
//!
//! What lives here: from the first bytes of a file to a list of tensors whose extents are proven to
//! tile the file's data exactly. What does not: reading the data (`checkpoint`, `peft`).
//!
//! The format: 8 bytes little-endian length `n`, `n` bytes of JSON, data. Each entry names dtype,
//! shape and `data_offsets` relative to the data.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::file::{SourceFile, malformed};
use super::guard::Refusal;
use super::json::{self, Document};
use super::options::OpenOptions;
use super::scan::{METADATA, Scan};
use crate::error::Error;
use crate::plan::PlannedTensor;
use crate::tensor::{DtypeName, byte_len};

/// Most dimensions of a tensor.
const RANK_CAP: usize = 8;
/// Longest tensor name in bytes.
pub(super) const NAME_CAP: usize = 512;
/// Longest name of a dtype in bytes.
const DTYPE_CAP: usize = 64;

/// A tensor and where its bytes are in its file.
#[derive(Debug)]
pub(super) struct FileTensor {
    pub(super) tensor: PlannedTensor,
    /// Absolute offset in the file.
    pub(super) at: u64,
}

/// Reads and checks the header of `file`. A header that is refused costs what was read of it, at most
/// twice, and the memory of the tensors that were right.
pub(super) fn read_header(
    file: &SourceFile,
    options: &OpenOptions,
) -> Result<Vec<FileTensor>, Error> {
    let path = file.path();
    check_len(path, file.len())?;
    let mut first = [0; 8];
    file.read_exact_at(&mut first, 0)?;
    let part = header_part(path, first, file.len(), options)?;
    let data = part.end;
    let header = file.section(part);
    let mut tensors = parse_header(path, &header, file.len() - data, options)?;
    for tensor in &mut tensors {
        tensor.at += data;
    }
    Ok(tensors)
}

/// Header and data of a file in memory.
pub(super) fn split_header<'b>(
    path: &Path,
    bytes: &'b [u8],
    options: &OpenOptions,
) -> Result<(&'b [u8], &'b [u8]), Error> {
    let len = bytes.len() as u64;
    check_len(path, len)?;
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    let part = header_part(path, first, len, options)?;
    Ok(bytes[8..].split_at((part.end - part.start) as usize))
}

fn check_len(path: &Path, len: u64) -> Result<(), Error> {
    if len >= 8 {
        return Ok(());
    }
    let reason = format!("has {len} bytes; a safetensors file has at least 8");
    Err(malformed(path, reason))
}

/// Where the header of a file with these first 8 bytes is.
fn header_part(
    path: &Path,
    first: [u8; 8],
    file_len: u64,
    options: &OpenOptions,
) -> Result<Range<u64>, Error> {
    let length = u64::from_le_bytes(first);
    let cap = options.header_bytes;
    if length > cap {
        if let Some(refused) = other_format(path, first) {
            return Err(refused);
        }
        let reason = format!("claims a header of {length} bytes; at most {cap} bytes are read");
        return Err(malformed(path, reason));
    }
    // No overflow: the cap is far below.
    let part = 8..8 + length;
    if part.end > file_len {
        let reason = format!("claims a header of {length} bytes, but has only {file_len} in all");
        return Err(malformed(path, reason));
    }
    Ok(part)
}

/// Formats that are mistaken for this one. Read as a length, their first bytes are enormous.
fn other_format(path: &Path, first: [u8; 8]) -> Option<Error> {
    let (format, advice) = match first {
        // torch.save: a zip archive, and before 2020 a bare pickle of protocol 2.
        [b'P', b'K', 3, 4, ..] | [0x80, 2, 0x8a, 10, ..] => ("pickle", PICKLE_ADVICE),
        [b'G', b'G', b'U', b'F', ..] => ("GGUF", "Convert the file to safetensors."),
        _ => return None,
    };
    Some(other_format_error(path, format, advice))
}

/// What to do with a pickle.
pub(super) const PICKLE_ADVICE: &str =
    "A pickle can run code. Save the model with safe_serialization=True.";

pub(super) fn other_format_error(path: &Path, format: &str, advice: &'static str) -> Error {
    Error::Unsupported {
        file: path.to_owned(),
        option: "format".to_owned(),
        value: format.to_owned(),
        advice,
    }
}

/// Checks a header against `data_len` bytes of data. Offsets come back relative to the data.
pub(super) fn parse_header(
    path: &Path,
    header: &impl Document,
    data_len: u64,
    options: &OpenOptions,
) -> Result<Vec<FileTensor>, Error> {
    let refusal = Refusal::default();
    let entries = Entries {
        path,
        data_len,
        refusal: &refusal,
    };
    let scan = Scan::header(options.tensors);
    let mut tensors = json::read(path, header, &scan, &refusal, entries)?;
    check_tiling(path, &mut tensors, data_len)?;
    Ok(tensors)
}

/// What is wrong with a name, if something is.
pub(super) fn check_name(name: &str, cap: usize) -> Result<(), String> {
    if !name.is_empty() && name.len() <= cap && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!(
        "a name has 1 to {cap} bytes and no control characters; this has {} bytes",
        name.len()
    ))
}

/// As much of a name as a message shows, also of one that is far too long.
pub(super) fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(NAME_CAP).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}

/// A whole header. Every tensor is checked before the next one is read.
struct Entries<'a> {
    path: &'a Path,
    data_len: u64,
    refusal: &'a Refusal,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<usize>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Vec<FileTensor>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<FileTensor>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::<FileTensor>::new();
        let mut seen = HashSet::<Arc<str>>::new();
        let (mut dtypes, mut sum) = (Dtypes::default(), 0u64);
        while let Some(name) = map.next_key::<String>()? {
            let stop = |reason: String| {
                self.refusal.stop(Error::Malformed {
                    file: self.path.to_owned(),
                    tensor: Some(shown(&name)),
                    reason,
                })
            };
            if seen.contains(&*name) {
                return Err(stop("is there twice".to_owned()));
            }
            if name == METADATA {
                // Nothing is read from it. That it is an object of strings, and there once, was seen by
                // the scan (unless its key is written with escapes; then it is as good as not there).
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            check_name(&name, NAME_CAP).map_err(stop)?;
            let entry = map.next_value::<Entry>();
            let entry = entry.map_err(|error| stop(error.to_string()))?;
            let tensor = check_entry(&name, entry, &mut dtypes, self.data_len).map_err(stop)?;
            sum = sum.saturating_add(tensor.tensor.byte_len());
            if sum > self.data_len {
                let reason = format!(
                    "overlaps another tensor: up to it they have {sum} bytes, \
                     the file has {} bytes of data",
                    self.data_len
                );
                return Err(stop(reason));
            }
            seen.insert(Arc::clone(&tensor.tensor.name));
            tensors.push(tensor);
        }
        Ok(tensors)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;

        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    shape.push(dim);
                    if shape.len() > RANK_CAP {
                        let reason = format_args!(
                            "has {} dimensions or more, at most {RANK_CAP} are accepted",
                            shape.len()
                        );
                        return Err(A::Error::custom(reason));
                    }
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Dimensions)
    }
}

/// The names of dtypes of one file, each kept once. A file has a few.
#[derive(Default)]
struct Dtypes(Vec<DtypeName>);

impl Dtypes {
    const KEPT: usize = 16;

    fn get(&mut self, name: &str) -> DtypeName {
        if let Some(known) = self.0.iter().find(|known| known.name() == name) {
            return known.clone();
        }
        let new = DtypeName::parse(name);
        if self.0.len() < Self::KEPT {
            self.0.push(new.clone());
        }
        new
    }
}

fn check_entry(
    name: &str,
    entry: Entry,
    dtypes: &mut Dtypes,
    data_len: u64,
) -> Result<FileTensor, String> {
    check_name(&entry.dtype, DTYPE_CAP).map_err(|reason| format!("dtype: {reason}"))?;
    let Shape(shape) = entry.shape;
    let (begin, end) = entry.data_offsets;
    let Some(len) = end.checked_sub(begin) else {
        return Err(format!("ends at {end}, before it begins at {begin}"));
    };
    let dtype = dtypes.get(&entry.dtype);
    if let Some(known) = dtype.dtype() {
        let expected = byte_len(known, &shape)?;
        if expected != len {
            return Err(format!(
                "{known} x {shape:?} is {expected} bytes, its offsets {begin}..{end} are {len}"
            ));
        }
    }
    if end > data_len {
        return Err(format!(
            "ends at {end}, but the file has only {data_len} bytes of data: is it truncated?"
        ));
    }
    let tensor = PlannedTensor::new(name, dtype, shape, len);
    Ok(FileTensor { tensor, at: begin })
}

/// The extents follow each other without hole or overlap and end where the file ends.
fn check_tiling(path: &Path, tensors: &mut [FileTensor], data_len: u64) -> Result<(), Error> {
    tensors.sort_by(|a, b| {
        let key = |t: &FileTensor| (t.at, t.tensor.byte_len());
        key(a)
            .cmp(&key(b))
            .then_with(|| a.tensor.name().cmp(b.tensor.name()))
    });
    let mut end = 0u64;
    for FileTensor { tensor, at } in &*tensors {
        let wrong = |reason: String| Error::Malformed {
            file: path.to_owned(),
            tensor: Some(tensor.name().to_owned()),
            reason,
        };
        if *at != end {
            let what = if *at > end {
                "leaves a hole"
            } else {
                "overlaps the tensor before it"
            };
            return Err(wrong(format!(
                "begins at {at} where {end} is expected: it {what}"
            )));
        }
        end = at + tensor.byte_len();
    }
    if end != data_len {
        let reason = format!("{data_len} bytes of data, but its tensors end at {end}");
        return Err(malformed(path, reason));
    }
    Ok(())
}
