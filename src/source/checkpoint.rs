//! Checkpoints in the Hugging Face layout: a directory with `config.json` and one safetensors file or
//! an index with shards, or a single safetensors file.
//!
//! What lives here: which files make a checkpoint, ties, reading the data. What does not: headers
//! (`header`), adapters (`peft`).

use std::collections::HashSet;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;

use super::Source;
use super::file::{SourceFile, malformed};
use super::folder::Folder;
use super::guard::Refusal;
use super::header::{FileTensor, PICKLE_ADVICE, other_format_error, read_header};
use super::index::Index;
use super::json;
use super::options::OpenOptions;
use super::pieces::{InFiles, Pieces, Places, places};
use super::quantised;
use super::scan::Scan;
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::plan::{Plan, PlannedTensor};
use crate::reading::fill_here;
use crate::tensor::Shard;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Longest configuration in bytes.
pub(super) const CONFIG_CAP: u64 = 1 << 20;
/// Bytes per read of two tensors that are compared.
const COMPARED: usize = 128 << 10;

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
    /// Found when it is read first: a streamed set is read again and again.
    places: OnceLock<Places>,
    pub(super) declared: Option<String>,
}

#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: SourceFile,
    pub(super) tensors: Vec<FileTensor>,
}

impl OpenFile {
    fn open(file: SourceFile, options: &OpenOptions) -> Result<Self, Error> {
        let tensors = read_header(&file, options)?;
        Ok(OpenFile { file, tensors })
    }
}

#[derive(Deserialize, Default)]
struct Config {
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    quantization_config: serde_json::Value,
}

impl Checkpoint {
    /// Opens a checkpoint directory, or a single `.safetensors` file.
    ///
    /// Ties: if `config.json` says `tie_word_embeddings`, `lm_head.weight` is
    /// `model.embed_tokens.weight`. Where the file has both they must be equal, and one is kept.
    ///
    /// A file, or an index, without tensors is legal as the format has it: a set without tensors. Who
    /// expects some looks at the [`Plan`].
    ///
    /// Features of quantised modules, which adapters are checked against, are understood if
    /// `quantization_config` names GPTQ, AWQ, bitsandbytes, compressed-tensors or an FP8 format;
    /// otherwise the modules are unchecked ([`Plan::unchecked_modules`]).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::MissingShard`], [`Error::Unsupported`] for a file
    /// of another format, [`Error::SourceChanged`] for one that is being written: each names the file,
    /// and the tensor if one is to blame.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, &OpenOptions::new())
    }

    /// [`open`](Self::open) within other limits.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let (files, config) = if path.is_dir() {
            let folder = Folder::open(path, options)?;
            (open_directory(&folder, options)?, read_config(&folder)?)
        } else {
            let file = SourceFile::open(path)?;
            (vec![OpenFile::open(file, options)?], Config::default())
        };
        let mut checkpoint = Checkpoint {
            plan: empty(path)?,
            places: OnceLock::new(),
            files,
            declared: None,
        };
        let ties = if config.tie_word_embeddings == Some(true) {
            checkpoint.tie()?
        } else {
            Vec::new()
        };
        let dropped = |name: &str| ties.iter().any(|(alias, _)| alias == name);
        let tensors = checkpoint
            .files
            .iter()
            .flat_map(|file| &file.tensors)
            .map(|entry| entry.tensor.clone())
            .filter(|tensor| !dropped(tensor.name()))
            .collect();
        let stored = checkpoint.files.iter();
        let stored = stored.flat_map(|open| open.tensors.iter().map(|entry| (&open.file, entry)));
        let known = quantised::known(&config.quantization_config, stored)?;
        let plan = Plan::new(&path.to_string_lossy(), tensors, &ties)?;
        checkpoint.plan = plan.with_known(known);
        Ok(checkpoint)
    }

    /// Gives features of linear modules that the files do not tell: [`Plan::modules`].
    pub fn modules<N: AsRef<str>>(
        mut self,
        modules: impl IntoIterator<Item = (N, usize, usize)>,
    ) -> Self {
        self.plan = self.plan.modules(modules);
        self
    }

    /// Says which part of a model spread over devices these files are: [`Plan::shards`].
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there is no such part of a tensor of that shape.
    pub fn shards(
        mut self,
        rule: impl FnMut(&PlannedTensor) -> Option<Shard>,
    ) -> Result<Self, Error> {
        self.plan = self.plan.shards(rule)?;
        Ok(self)
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

fn read_config(folder: &Folder) -> Result<Config, Error> {
    let Some(file) = folder.file(CONFIG)? else {
        return Ok(Config::default());
    };
    let (document, refusal) = (file.small(CONFIG_CAP)?, Refusal::default());
    let config = PhantomData::<Config>;
    json::read(file.path(), &document, &Scan::config(), &refusal, config)
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
    let (mut left, mut right) = (vec![0; COMPARED], vec![0; COMPARED]);
    let mut done = 0;
    while done < a.byte_len() {
        let len = (a.byte_len() - done).min(COMPARED as u64) as usize;
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

fn open_directory(folder: &Folder, options: &OpenOptions) -> Result<Vec<OpenFile>, Error> {
    if let Some(index) = folder.file(INDEX)? {
        return open_shards(folder, &Index::read(&index, options)?, options);
    }
    if let Some(file) = folder.file(SINGLE)? {
        return Ok(vec![OpenFile::open(file, options)?]);
    }
    if let Some(pickle) = PICKLES.into_iter().find(|name| folder.has(name)) {
        let path = folder.path_of(pickle);
        return Err(other_format_error(&path, "pickle", PICKLE_ADVICE));
    }
    Err(malformed(
        folder.path(),
        format!("has neither {SINGLE} nor {INDEX}"),
    ))
}

/// Opens every shard that the index names, and checks that index and shards agree on each tensor.
fn open_shards(
    folder: &Folder,
    index: &Index,
    options: &OpenOptions,
) -> Result<Vec<OpenFile>, Error> {
    let mut files = Vec::with_capacity(index.shards.len());
    // Tensors that were found where the index has them. Names are distinct in a shard, so it is all of
    // them if there are as many.
    let mut found = 0;
    for (name, &number) in &index.shards {
        let Some(file) = folder.file(name)? else {
            let file = folder.path_of(name);
            return Err(Error::MissingShard { file });
        };
        let file = OpenFile::open(file, options)?;
        for FileTensor { tensor, .. } in &file.tensors {
            let reason = match index.tensors.get(tensor.name()) {
                Some(&its) if its == number => {
                    found += 1;
                    continue;
                }
                Some(&its) => {
                    let other = index.shard(its).unwrap_or("another shard");
                    format!("is here, but {INDEX} says {other}")
                }
                None => format!("is here, but not in {INDEX}"),
            };
            return Err(Error::Malformed {
                file: folder.path_of(name),
                tensor: Some(tensor.name().to_owned()),
                reason,
            });
        }
        files.push(file);
    }
    if found < index.tensors.len() {
        return Err(missing(folder, index, &files));
    }
    Ok(files)
}

/// A tensor that the index names, and that is not in its shard.
fn missing(folder: &Folder, index: &Index, files: &[OpenFile]) -> Error {
    let tensors = files.iter().flat_map(|file| &file.tensors);
    let there: HashSet<&str> = tensors.map(|entry| entry.tensor.name()).collect();
    let lost = index.tensors.iter();
    let lost = lost.filter(|(tensor, _)| !there.contains(&***tensor)).min();
    let shard = lost.and_then(|(_, &number)| index.shard(number));
    Error::Malformed {
        file: folder.path_of(shard.unwrap_or(INDEX)),
        tensor: lost.map(|(tensor, _)| tensor.to_string()),
        reason: format!("{INDEX} says it is here, but it is not"),
    }
}

impl Checkpoint {
    fn in_files(&self) -> InFiles<'_> {
        let files = self.files.iter();
        let found = || places(&self.plan, files.clone().map(|open| &*open.tensors));
        let places = Arc::clone(self.places.get_or_init(found));
        InFiles::new(files.map(|open| &open.file), places)
    }
}

impl Source for Checkpoint {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        fill_here(&Pieces::new(&self.plan, self.in_files()), &self.plan, arena)
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        Some(Pieces::new(&self.plan, self.in_files()))
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }
}

/// One safetensors file as a whole, for sources that are one file (`peft`).
#[derive(Debug)]
pub(super) struct SingleFile(OpenFile);

impl SingleFile {
    pub(super) fn open(file: SourceFile, options: &OpenOptions) -> Result<Self, Error> {
        OpenFile::open(file, options).map(SingleFile)
    }

    pub(super) fn tensors(&self) -> &[FileTensor] {
        &self.0.tensors
    }

    pub(super) fn in_files(&self, plan: &Plan) -> InFiles<'_> {
        let places = places(plan, std::iter::once(&*self.0.tensors));
        InFiles::new(std::iter::once(&self.0.file), places)
    }
}
