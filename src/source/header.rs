//! Safetensors headers, read and checked within bounds.
//!
//! What lives here: from the first bytes of a file to a list of tensors whose extents are proven to
//! tile the file's data exactly. What does not: reading the data (`checkpoint`, `peft`).
//!
//! The format: 8 bytes little-endian length `n`, `n` bytes of JSON, data. Each entry names dtype,
//! shape and `data_offsets` relative to the data.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::file::{SourceFile, malformed};
use super::json::Distinct;
use crate::error::Error;
use crate::plan::PlannedTensor;
use crate::tensor::{DtypeName, byte_len};

/// Largest header that is read. A model with 100,000 tensors needs less than 16 MiB.
pub(super) const HEADER_CAP: u64 = 16 << 20;
/// Most tensors in one file.
const TENSOR_CAP: usize = 250_000;
/// Most dimensions of a tensor.
const RANK_CAP: usize = 8;
/// Longest tensor name in bytes.
const NAME_CAP: usize = 512;
/// The one key that is no tensor.
const METADATA: &str = "__metadata__";

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// A whole header: distinct names, no more than the cap, read in one pass without a tree in between.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut seen, mut entries) = (HashSet::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    let about =
                        |error: A::Error| A::Error::custom(format_args!("{name:?}: {error}"));
                    if name == METADATA {
                        map.next_value::<Distinct<String>>().map_err(about)?;
                    } else {
                        let entry = map.next_value::<Entry>().map_err(about)?;
                        entries.push((name.clone(), entry));
                    }
                    if entries.len() > TENSOR_CAP {
                        let reason = format_args!("more than {TENSOR_CAP} tensors");
                        return Err(A::Error::custom(reason));
                    }
                    if seen.contains(&name) {
                        return Err(A::Error::custom(format_args!("{name:?} is there twice")));
                    }
                    seen.insert(name);
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A tensor and where its bytes are in its file.
#[derive(Debug)]
pub(super) struct FileTensor {
    pub(super) tensor: PlannedTensor,
    /// Absolute offset in the file.
    pub(super) at: u64,
}

/// Reads and checks the header of `file`. Costs the header's length, never more than the cap.
pub(super) fn read_header(file: &SourceFile) -> Result<Vec<FileTensor>, Error> {
    let path = file.path();
    if file.len() < 8 {
        let reason = format!(
            "has {} bytes; a safetensors file has at least 8",
            file.len()
        );
        return Err(malformed(path, reason));
    }
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_CAP {
        let reason =
            format!("claims a header of {length} bytes; at most {HEADER_CAP} bytes are read");
        return Err(malformed(path, reason));
    }
    let data = 8 + length;
    if data > file.len() {
        let reason = format!(
            "claims a header of {length} bytes, but has only {} in all",
            file.len()
        );
        return Err(malformed(path, reason));
    }
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, 8)?;
    parse_header(path, &json, file.len() - data)?
        .into_iter()
        .map(|mut tensor| {
            tensor.at += data;
            Ok(tensor)
        })
        .collect()
}

/// Checks a header against `data_len` bytes of data. Offsets come back relative to the data.
pub(super) fn parse_header(
    path: &Path,
    json: &[u8],
    data_len: u64,
) -> Result<Vec<FileTensor>, Error> {
    let Header(entries) = serde_json::from_slice(json)
        .map_err(|error| malformed(path, format!("header: {error}")))?;
    let mut tensors = entries
        .into_iter()
        .map(|(name, entry)| check_entry(path, name, entry))
        .collect::<Result<Vec<_>, Error>>()?;
    check_tiling(path, &mut tensors, data_len)?;
    Ok(tensors)
}

fn check_entry(path: &Path, name: String, entry: Entry) -> Result<FileTensor, Error> {
    let wrong = |reason: String| Error::Malformed {
        file: path.to_owned(),
        tensor: Some(name.clone()),
        reason,
    };
    if name.is_empty() || name.len() > NAME_CAP || name.chars().any(char::is_control) {
        return Err(wrong(format!(
            "a name has 1 to {NAME_CAP} bytes and no control characters; this has {}",
            name.len()
        )));
    }
    if entry.shape.len() > RANK_CAP {
        return Err(wrong(format!(
            "has {} dimensions, at most {RANK_CAP} are accepted",
            entry.shape.len()
        )));
    }
    let (begin, end) = entry.data_offsets;
    let Some(len) = end.checked_sub(begin) else {
        return Err(wrong(format!("ends at {end}, before it begins at {begin}")));
    };
    let dtype = DtypeName::parse(&entry.dtype);
    if let Some(known) = dtype.dtype() {
        let expected = byte_len(known, &entry.shape).map_err(&wrong)?;
        if expected != len {
            return Err(wrong(format!(
                "{known} x {:?} is {expected} bytes, its offsets {begin}..{end} are {len}",
                entry.shape
            )));
        }
    }
    let tensor = PlannedTensor::new(&name, dtype, entry.shape, len);
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
        if end > data_len {
            return Err(wrong(format!(
                "ends at {end}, but the file has only {data_len} bytes of data: \
                 is it truncated?"
            )));
        }
    }
    if end != data_len {
        let reason = format!("{data_len} bytes of data, but its tensors end at {end}");
        return Err(malformed(path, reason));
    }
    Ok(())
}
