//! LoRA adapters as PEFT saves them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What lives here: [`PeftAdapter`], pairing A and B, resolving each module's rank and scale. What
//! does not: the configuration's options (`config`, `support`), the names of tensors (`keys`).

mod config;
mod keys;
mod patterns;
mod setting;
mod support;
#[cfg(all(test, not(weighbridge_loom)))]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use config::Config;
use keys::Role;

use super::Source;
use super::checkpoint::{CONFIG_CAP, SingleFile};
use super::file::malformed;
use super::folder::Folder;
use super::header::{PICKLE_ADVICE, other_format_error};
use super::options::OpenOptions;
use super::pieces::Pieces;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::plan::Plan;
use crate::reading::fill_here;
use crate::tensor::WeightKind;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// A LoRA adapter on disk.
///
/// Opening reads the configuration and the header only. Rank and scale are resolved per module
/// (`rank_pattern`, `alpha_pattern`, `use_rslora`), so nothing is left to interpret when it is
/// used. An option that is not implemented is refused by name if it is set: ignoring it would give
/// wrong results, not an error.
///
/// # Examples
/// ```
/// use weighbridge::source::{PeftAdapter, Source};
///
/// let shout = PeftAdapter::open("fixtures/adapters/shout")?;
/// let (module, scale) = shout.plan().adapter().unwrap().modules().next().unwrap();
/// assert_eq!(module, "model.layers.0.self_attn.q_proj");
/// assert_eq!((scale.rank, scale.alpha, scale.scaling), (4, 8.0, 4.0)); // 8 / sqrt(4): rsLoRA
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug)]
pub struct PeftAdapter {
    plan: Plan,
    file: SingleFile,
    base: Option<SetHandle>,
    declared: Option<String>,
}

impl PeftAdapter {
    /// Opens an adapter directory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::Unsupported`], [`Error::SourceChanged`],
    /// [`Error::AdapterMismatch`] if A and B do not pair up or do not have the configured rank.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(dir, &OpenOptions::new())
    }

    /// [`open`](Self::open) within other limits.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(dir: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, Error> {
        let folder = Folder::open(dir.as_ref(), options)?;
        let absent = |name: &str| malformed(folder.path(), format!("has no {name}"));
        let file = folder.file(CONFIG)?.ok_or_else(|| absent(CONFIG))?;
        let config = Config::read(file.path(), &file.small(CONFIG_CAP)?)?;
        let Some(file) = folder.file(WEIGHTS)? else {
            if folder.has(PICKLE) {
                let path = folder.path_of(PICKLE);
                return Err(other_format_error(&path, "pickle", PICKLE_ADVICE));
            }
            return Err(absent(WEIGHTS));
        };
        let file = SingleFile::open(file, options)?;
        let weights = folder.path_of(WEIGHTS);
        let plan = resolve(folder.path(), &weights, &config, &file)?;
        Ok(PeftAdapter {
            plan,
            file,
            base: None,
            declared: None,
        })
    }

    /// Binds the adapter to its base. Its modules are checked against the base's when it is staged.
    pub fn on(mut self, base: SetHandle) -> Self {
        self.base = Some(base);
        self
    }

    /// Vouches for the contents with a revision of your own; the bytes are then not hashed.
    pub fn declared(mut self, revision: impl Into<String>) -> Self {
        self.declared = Some(revision.into());
        self
    }
}

/// A module's two matrices, by tensor name.
#[derive(Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
}

fn resolve(dir: &Path, weights: &Path, config: &Config, file: &SingleFile) -> Result<Plan, Error> {
    let origin = dir.to_string_lossy();
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    let mut tensors = Vec::new();
    for entry in file.tensors() {
        let name = entry.tensor.name();
        let (module, role) = keys::parse(weights, name)?;
        let pair = || format!("module {module:?} has two tensors for the same matrix");
        let kind = match role {
            Role::Replacement => WeightKind::Replacement,
            Role::A | Role::B => {
                let both = pairs.entry(module.to_owned()).or_default();
                let side = if role == Role::A {
                    &mut both.a
                } else {
                    &mut both.b
                };
                if side.replace(name.to_owned()).is_some() {
                    return Err(Error::Malformed {
                        file: weights.to_owned(),
                        tensor: Some(name.to_owned()),
                        reason: pair(),
                    });
                }
                if role == Role::A {
                    WeightKind::LoraA
                } else {
                    WeightKind::LoraB
                }
            }
        };
        tensors.push(entry.tensor.clone().of_kind(kind));
    }
    if pairs.is_empty() {
        return Err(malformed(weights, "has no LoRA tensors"));
    }
    let work = config.check_work(pairs.len(), pairs.keys().map(String::len).sum());
    work.map_err(|reason| malformed(&dir.join(CONFIG), reason))?;
    let plan = Plan::new(&origin, tensors, &[])?;
    let mut modules = Vec::with_capacity(pairs.len());
    for (module, pair) in pairs {
        let at = |name: &Option<String>| plan.position(name.as_deref()?);
        let (Some(a), Some(b)) = (at(&pair.a), at(&pair.b)) else {
            let (there, missing) = if pair.a.is_some() {
                ("A", "B")
            } else {
                ("B", "A")
            };
            return Err(Error::AdapterMismatch {
                origin: origin.into_owned(),
                module,
                reason: format!("there is a {there} matrix, but no {missing}"),
            });
        };
        let scale = config.scale(&module);
        modules.push((module, a, b, scale));
    }
    plan.with_modules(modules)
}

impl Source for PeftAdapter {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        fill_here(
            &Pieces::new(&self.plan, self.file.in_files(&self.plan)),
            &self.plan,
            arena,
        )
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        Some(Pieces::new(&self.plan, self.file.in_files(&self.plan)))
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }

    fn base(&self) -> Option<SetHandle> {
        self.base
    }
}
