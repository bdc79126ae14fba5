//! What a path is: a checkpoint or an adapter, opened, and the files that it is read from.
//!
//! What lives here: telling the two apart, and the names and lengths of weight files, which the library
//! does not tell. What does not: headers, which the library reads and checks.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use weighbridge::source::{Checkpoint, PeftAdapter, Source};
use weighbridge::{Error, Plan};

use crate::escape::clean;
use crate::failure::Failure;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_PICKLE: &str = "adapter_model.bin";
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The library takes no longer documents.
const INDEX_CAP: u64 = 64 << 20;
const CONFIG_CAP: u64 = 1 << 20;

/// One or the other. Opened: its headers are read and checked.
#[derive(Debug)]
pub(crate) enum Subject {
    Checkpoint(Checkpoint),
    Adapter(PeftAdapter),
}

/// A file of weights.
#[derive(Debug, Serialize)]
pub(crate) struct WeightFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl Subject {
    /// What is at `path`. A directory with an `adapter_config.json` is an adapter, as it is to
    /// transformers; so is one that has an adapter's weights and no checkpoint's, so that the message is
    /// about what is missing of it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let weights = has(path, ADAPTER) || has(path, ADAPTER_PICKLE);
        if has(path, ADAPTER_CONFIG) || (weights && !is_checkpoint_too(path)) {
            Ok(Subject::Adapter(PeftAdapter::open(path)?))
        } else {
            Ok(Subject::Checkpoint(Checkpoint::open(path)?))
        }
    }

    /// Opens what `--base` names, a checkpoint. Only adapters have one.
    pub(crate) fn base(&self, path: Option<&Path>) -> Result<Option<Checkpoint>, Failure> {
        let Some(path) = path else {
            return Ok(None);
        };
        if let Subject::Checkpoint(own) = self {
            return Err(Failure::usage(format!(
                "--base: {} is a checkpoint, and only an adapter has a base",
                clean(own.plan().origin())
            )));
        }
        match Subject::open(path)? {
            Subject::Checkpoint(base) => Ok(Some(base)),
            Subject::Adapter(adapter) => Err(Failure::usage(format!(
                "--base: {} is an adapter; give the checkpoint that it is for",
                clean(adapter.plan().origin())
            ))),
        }
    }

    pub(crate) fn plan(&self) -> &Plan {
        match self {
            Subject::Checkpoint(checkpoint) => checkpoint.plan(),
            Subject::Adapter(adapter) => adapter.plan(),
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Subject::Checkpoint(_) => "checkpoint",
            Subject::Adapter(_) => "adapter",
        }
    }

    /// The files of weights of what was opened at `path`.
    pub(crate) fn files(&self, path: &Path) -> Result<Vec<WeightFile>, Failure> {
        let names: Vec<String> = match self {
            Subject::Adapter(_) => vec![ADAPTER.to_owned()],
            Subject::Checkpoint(_) if !path.is_dir() => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                return Ok(vec![weight_file(path.to_owned(), &name.to_string_lossy())?]);
            }
            Subject::Checkpoint(_) if has(path, INDEX) => {
                shards(&path.join(INDEX))?.into_iter().collect()
            }
            Subject::Checkpoint(_) => vec![SINGLE.to_owned()],
        };
        let files = names.iter();
        files
            .map(|name| weight_file(path.join(name), name))
            .collect()
    }
}

fn weight_file(path: PathBuf, name: &str) -> Result<WeightFile, Failure> {
    let metadata = std::fs::metadata(&path).map_err(io_error(&path, "open"))?;
    Ok(WeightFile {
        name: name.to_owned(),
        bytes: metadata.len(),
    })
}

/// As the library says it.
fn io_error(path: &Path, op: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Error::Io { path, op, source }.into()
}

/// The names of the shards. The library has checked this file a moment ago.
fn shards(path: &Path) -> Result<BTreeSet<String>, Failure> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Shards,
    }
    let file = File::open(path).map_err(io_error(path, "open"))?;
    let index: Result<Index, _> = serde_json::from_reader(BufReader::new(file.take(INDEX_CAP)));
    let index = index.map_err(|error| Error::Malformed {
        file: path.to_owned(),
        tensor: None,
        reason: error.to_string(),
    })?;
    Ok(index.weight_map.0)
}

/// Of tensor to shard, the shards: there may be a quarter of a million tensors.
struct Shards(BTreeSet<String>);

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Shards;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shards, A::Error> {
                let mut names = BTreeSet::new();
                while let Some((_, name)) = map.next_entry::<IgnoredAny, String>()? {
                    names.insert(name);
                }
                Ok(Shards(names))
            }
        }
        from.deserialize_map(Each)
    }
}

/// What the adapter at `path` says that it was made for: a name for people, which proves nothing.
pub(crate) fn made_for(path: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        base_model_name_or_path: Option<String>,
    }
    let file = File::open(path.join(ADAPTER_CONFIG)).ok()?;
    let config = BufReader::new(file.take(CONFIG_CAP));
    let config: Config = serde_json::from_reader(config).ok()?;
    config
        .base_model_name_or_path
        .filter(|name| !name.is_empty())
}

/// Is `path` the weights of an adapter, taken without their configuration?
pub(crate) fn is_lone_adapter_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == ADAPTER)
}

/// Has the directory of an adapter the weights of a checkpoint, too?
pub(crate) fn is_checkpoint_too(path: &Path) -> bool {
    has(path, SINGLE) || has(path, INDEX)
}

/// Something of this name, whatever it is.
fn has(directory: &Path, name: &str) -> bool {
    directory.join(name).symlink_metadata().is_ok()
}
