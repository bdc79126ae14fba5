//! Checkpoints in the Hugging Face layout: a directory with `config.json` and one safetensors file or
//! an index with shards, or a single safetensors file.
//!
//! What lives here: which files make a checkpoint, ties, reading the data. What does not: headers
//! (`header`), adapters (`peft`).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::Source;
use super::file::{SourceFile, malformed, read_small};
use super::header::{FileTensor, read_header};
use super::json::Distinct;
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::plan::Plan;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const CONFIG_CAP: u64 = 1 << 20;
const INDEX_CAP: u64 = 64 << 20;
const SHARD_CAP: usize = 4096;
/// Bytes per read.
const CHUNK: usize = 4 << 20;

/// The names of a tied pair in the models of this layout: the head is the embedding.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A checkpoint on disk.
///
/// Opening reads headers and `config.json` only, within bounds; the data is read when the set is
/// staged. If a file changes in between, staging fails with [`Error::SourceChanged`]. Files are
/// read, not mapped: a file that is truncated later cannot hurt a running server.
///
/// # Examples
/// ```
/// use weighbridge::source::{Checkpoint, Source};
///
/// let checkpoint = Checkpoint::open("fixtures/tiny-llama")?;
/// assert_eq!(checkpoint.plan().tensors().len(), 39); // 38 in the file, and the tied head
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) plan: Plan,
    pub(super) files: Vec<OpenFile>,
    pub(super) declared: Option<String>,
}

#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: SourceFile,
    pub(super) tensors: Vec<FileTensor>,
}

impl OpenFile {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = SourceFile::open(path)?;
        let tensors = read_header(&file)?;
        Ok(OpenFile { file, tensors })
    }
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Distinct<String>,
}

impl Checkpoint {
    /// Opens a checkpoint directory, or a single `.safetensors` file.
    ///
    /// Ties: if `config.json` says `tie_word_embeddings`, `lm_head.weight` is
    /// `model.embed_tokens.weight`. Where the file has both they must be equal, and one is kept.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::MissingShard`]: each names the file, and the
    /// tensor if one is to blame.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (files, tied) = if path.is_dir() {
            (open_directory(path)?, is_tied(&path.join(CONFIG))?)
        } else {
            (vec![OpenFile::open(path)?], false)
        };
        let mut checkpoint = Checkpoint {
            plan: empty(path)?,
            files,
            declared: None,
        };
        let ties = if tied { checkpoint.tie()? } else { Vec::new() };
        let dropped = |name: &str| ties.iter().any(|(alias, _)| alias == name);
        let tensors = checkpoint
            .files
            .iter()
            .flat_map(|file| &file.tensors)
            .map(|entry| entry.tensor.clone())
            .filter(|tensor| !dropped(tensor.name()))
            .collect();
        checkpoint.plan = Plan::new(&path.to_string_lossy(), tensors, &ties)?;
        Ok(checkpoint)
    }

    /// Vouches for the contents with a revision of your own (a commit, a digest that was checked
    /// elsewhere). The bytes are then not hashed.
    pub fn declared(mut self, revision: impl Into<String>) -> Self {
        self.declared = Some(revision.into());
        self
    }

    /// Adds a name for a tensor of another set (a head that several models share), see
    /// [`Plan::with_alias`].
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if the name is taken.
    pub fn alias(self, name: &str, target: WeightHandle) -> Result<Self, Error> {
        Ok(Checkpoint {
            plan: self.plan.with_alias(name, target)?,
            ..self
        })
    }

    /// The ties of a model whose configuration declares them.
    fn tie(&self) -> Result<Vec<(String, String)>, Error> {
        let find = |name: &str| {
            let tensors = |file: &'_ OpenFile| {
                file.tensors
                    .iter()
                    .position(|entry| entry.tensor.name() == name)
            };
            self.files
                .iter()
                .find_map(|file| Some((file, &file.tensors[tensors(file)?])))
        };
        let Some(embedding) = find(EMBEDDING) else {
            // A model of another naming: what it ties to what is not known here.
            return Ok(Vec::new());
        };
        if let Some(head) = find(HEAD) {
            same_bytes(head, embedding)?;
        }
        Ok(vec![(HEAD.to_owned(), EMBEDDING.to_owned())])
    }
}

fn empty(path: &Path) -> Result<Plan, Error> {
    Plan::new(&path.to_string_lossy(), Vec::new(), &[])
}

fn is_tied(config: &Path) -> Result<bool, Error> {
    let Some(bytes) = read_small(config, CONFIG_CAP)? else {
        return Ok(false);
    };
    serde_json::from_slice::<Config>(&bytes)
        .map(|config| config.tie_word_embeddings)
        .map_err(|error| malformed(config, error.to_string()))
}

/// Two stored tensors that a configuration ties must not differ.
fn same_bytes(
    head: (&OpenFile, &FileTensor),
    other: (&OpenFile, &FileTensor),
) -> Result<(), Error> {
    let differ = |reason: String| Error::Malformed {
        file: head.0.file.path().to_owned(),
        tensor: Some(HEAD.to_owned()),
        reason: format!("{reason}, although {CONFIG} ties it to {EMBEDDING}"),
    };
    let (a, b) = (&head.1.tensor, &other.1.tensor);
    if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
        return Err(differ(format!(
            "is {} {:?} and not {} {:?}",
            a.dtype().name(),
            a.shape(),
            b.dtype().name(),
            b.shape()
        )));
    }
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut done = 0;
    while done < a.byte_len() {
        let len = (a.byte_len() - done).min(CHUNK as u64) as usize;
        head.0
            .file
            .read_exact_at(&mut left[..len], head.1.at + done)?;
        other
            .0
            .file
            .read_exact_at(&mut right[..len], other.1.at + done)?;
        if left[..len] != right[..len] {
            return Err(differ("has other bytes".to_owned()));
        }
        done += len as u64;
    }
    Ok(())
}

fn open_directory(dir: &Path) -> Result<Vec<OpenFile>, Error> {
    let index = dir.join(INDEX);
    if let Some(bytes) = read_small(&index, INDEX_CAP)? {
        return open_shards(dir, &index, &bytes);
    }
    let single = dir.join(SINGLE);
    if single.exists() {
        return Ok(vec![OpenFile::open(&single)?]);
    }
    let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    let advice = if pickle.iter().any(|name| dir.join(name).exists()) {
        "; pickle files are not read, convert them to safetensors"
    } else {
        ""
    };
    Err(malformed(
        dir,
        format!("has neither {SINGLE} nor {INDEX}{advice}"),
    ))
}

/// Opens every shard that the index names, and checks that index and shards agree on each tensor.
fn open_shards(dir: &Path, index: &Path, bytes: &[u8]) -> Result<Vec<OpenFile>, Error> {
    let Index {
        weight_map: Distinct(map),
    } = serde_json::from_slice(bytes).map_err(|error| malformed(index, error.to_string()))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &map {
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.len() > SHARD_CAP {
        let reason = format!(
            "names {} shards, at most {SHARD_CAP} are read",
            shards.len()
        );
        return Err(malformed(index, reason));
    }
    let mut files = Vec::with_capacity(shards.len());
    for (shard, mapped) in shards {
        let path = dir.join(plain_name(index, shard)?);
        if !path.exists() {
            return Err(Error::MissingShard { file: path });
        }
        let file = OpenFile::open(&path)?;
        let wrong = |tensor: &str, reason: String| Error::Malformed {
            file: path.clone(),
            tensor: Some(tensor.to_owned()),
            reason,
        };
        let mut there: Vec<&str> = file
            .tensors
            .iter()
            .map(|entry| entry.tensor.name())
            .collect();
        there.sort_unstable();
        for tensor in &mapped {
            if there.binary_search(tensor).is_err() {
                return Err(wrong(
                    tensor,
                    format!("{INDEX} says it is here, but it is not"),
                ));
            }
        }
        for tensor in there {
            match map.get(tensor) {
                Some(other) if other == shard => {}
                Some(other) => {
                    return Err(wrong(tensor, format!("is here, but {INDEX} says {other}")));
                }
                None => return Err(wrong(tensor, format!("is here, but not in {INDEX}"))),
            }
        }
        files.push(file);
    }
    Ok(files)
}

/// A shard is a file in the checkpoint's own directory.
fn plain_name(index: &Path, shard: &str) -> Result<PathBuf, Error> {
    let path = Path::new(shard);
    let mut parts = path.components();
    let plain = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) && !shard.contains(['/', '\\', '\0']);
    if plain {
        Ok(path.to_owned())
    } else {
        let reason = format!("names the shard {shard:?}; a shard is a file name without a path");
        Err(malformed(index, reason))
    }
}

/// Reads the data of `tensors` into their planned places, then looks whether the file has changed.
fn read_file(
    file: &SourceFile,
    tensors: &[FileTensor],
    plan: &Plan,
    arena: &mut [u8],
) -> Result<(), Error> {
    for entry in tensors {
        // A stored copy of a tied tensor is not in the plan under its own bytes.
        let planned = plan
            .position(entry.tensor.name())
            .map(|at| &plan.tensors()[at]);
        let Some(planned) = planned.filter(|planned| planned.tie.is_none()) else {
            continue;
        };
        let mut at = entry.at;
        for chunk in arena[planned.range()].chunks_mut(CHUNK) {
            file.read_exact_at(chunk, at)?;
            at += chunk.len() as u64;
        }
    }
    file.check_unchanged()
}

impl Source for Checkpoint {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.files
            .iter()
            .try_for_each(|open| read_file(&open.file, &open.tensors, &self.plan, arena))
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }
}

/// One safetensors file as a whole, for sources that are one file (`peft`).
#[derive(Debug)]
pub(super) struct SingleFile(OpenFile);

impl SingleFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        OpenFile::open(path).map(SingleFile)
    }

    pub(super) fn tensors(&self) -> &[FileTensor] {
        &self.0.tensors
    }

    pub(super) fn read_into(&self, plan: &Plan, arena: &mut [u8]) -> Result<(), Error> {
        read_file(&self.0.file, &self.0.tensors, plan, arena)
    }
}
