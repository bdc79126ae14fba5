//! Tensors whose bytes are already in memory.
//!
//! What lives here: [`InMemory`]. The bytes are copied into an arena when the set is staged, so they
//! are aligned, charged and immutable like all others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use super::Source;
use super::header::{parse_header, split_header};
use super::options::OpenOptions;
use crate::Dtype;
use crate::error::Error;
use crate::handle::{SetHandle, WeightHandle};
use crate::layout::ModuleScale;
use crate::plan::{Plan, PlannedTensor, lora_names, lora_rank};
use crate::tensor::{ADAPTER_PREFIX, Shard, WeightKind, given_len};

/// A set built tensor by tensor.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, source::InMemory};
///
/// let bias = [0.5f32; 4].map(f32::to_le_bytes).concat();
/// let source = InMemory::new().tensor("bias", Dtype::F32, [4], bias)?;
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct InMemory {
    /// By name, so that a name is there once.
    tensors: BTreeMap<String, (PlannedTensor, Vec<u8>)>,
    modules: BTreeMap<String, ModuleScale>,
    aliases: BTreeMap<String, WeightHandle>,
    /// Base modules as the engine gave them: (out, in).
    features: BTreeMap<String, (usize, usize)>,
    declared: Option<String>,
    base: Option<SetHandle>,
    /// Made when it is first asked for, forgotten when a tensor is added.
    plan: OnceLock<Plan>,
}

const ORIGIN: &str = "memory";

impl InMemory {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// All tensors of a safetensors file that is in memory.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Unsupported`], as for a file.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_safetensors_with(bytes, &OpenOptions::new())
    }

    /// [`from_safetensors`](Self::from_safetensors) within other limits.
    ///
    /// # Errors
    /// As [`from_safetensors`](Self::from_safetensors).
    pub fn from_safetensors_with(bytes: &[u8], options: &OpenOptions) -> Result<Self, Error> {
        let path = Path::new("safetensors in memory");
        let (header, data) = split_header(path, bytes, options)?;
        let mut set = Self::new();
        for entry in parse_header(path, &header, data.len() as u64, options)? {
            let start = entry.at as usize;
            let bytes = data[start..start + entry.tensor.byte_len() as usize].to_vec();
            set.tensors
                .insert(entry.tensor.name().to_owned(), (entry.tensor, bytes));
        }
        Ok(set)
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if `bytes` is not what dtype and shape demand, or the name is taken.
    pub fn tensor(
        self,
        name: impl AsRef<str>,
        dtype: Dtype,
        shape: impl AsRef<[usize]>,
        bytes: impl Into<Vec<u8>>,
    ) -> Result<Self, Error> {
        self.push(
            WeightKind::Base,
            name.as_ref(),
            dtype,
            shape.as_ref(),
            bytes.into(),
        )
    }

    /// Adds a LoRA module to an adapter: A is `[rank, in_features]`, B is `[out_features, rank]`.
    /// The factor for `B (A x)` is `alpha / rank`.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`], [`Error::AdapterMismatch`].
    pub fn lora(
        self,
        module: impl AsRef<str>,
        dtype: Dtype,
        (a_shape, a): ([usize; 2], impl Into<Vec<u8>>),
        (b_shape, b): ([usize; 2], impl Into<Vec<u8>>),
        alpha: f64,
    ) -> Result<Self, Error> {
        let module = module.as_ref();
        let [a_name, b_name] = lora_names(module);
        let rank = lora_rank(ORIGIN, module, a_shape, b_shape)?;
        let mut set = self
            .push(WeightKind::LoraA, &a_name, dtype, &a_shape, a.into())?
            .push(WeightKind::LoraB, &b_name, dtype, &b_shape, b.into())?;
        set.modules
            .insert(module.to_owned(), ModuleScale::new(rank, alpha, false));
        Ok(set)
    }

    /// Adds a name for a tensor of another set, see [`Plan::with_alias`].
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if the name is taken.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
    ///
    /// let registry = WeightRegistry::builder().build()?;
    /// let version = |byte| InMemory::new().tensor("embed", Dtype::U8, [2], [byte; 2]);
    /// let owner = registry.publish("owner", version(1)?)?;
    /// let embed = registry.weight_handle(owner, "embed")?;
    /// let other = registry.publish("other", InMemory::new().alias("head", embed)?)?;
    /// assert_eq!(registry.ledger().total(), 64); // charged once: 2 bytes in one line of 64
    ///
    /// registry.replace(owner, version(2)?)?; // both change at one instant
    /// let lease = registry.acquire([owner, other])?;
    /// assert_eq!(lease.set(other)?.get("head")?.bytes(), [2, 2]);
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn alias(mut self, name: impl Into<String>, target: WeightHandle) -> Result<Self, Error> {
        let name = name.into();
        if self.tensors.contains_key(&name) || self.aliases.contains_key(&name) {
            return Err(there_already(&name));
        }
        self.aliases.insert(name, target);
        self.plan = OnceLock::new();
        Ok(self)
    }

    /// Adds a full tensor to an adapter, to be used instead of the base's `base_tensor`, or beside its
    /// tensors if it has none of this name.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`].
    pub fn replacement(
        self,
        base_tensor: impl AsRef<str>,
        dtype: Dtype,
        shape: impl AsRef<[usize]>,
        bytes: impl Into<Vec<u8>>,
    ) -> Result<Self, Error> {
        let name = format!("{ADAPTER_PREFIX}{}", base_tensor.as_ref());
        self.push(
            WeightKind::Replacement,
            &name,
            dtype,
            shape.as_ref(),
            bytes.into(),
        )
    }

    /// Gives the features of a linear module, where names and shapes do not tell: [`Plan::modules`].
    pub fn module(mut self, name: impl Into<String>, outputs: usize, inputs: usize) -> Self {
        self.features.insert(name.into(), (outputs, inputs));
        self.plan = OnceLock::new();
        self
    }

    /// Says of each tensor that was added so far which part of the whole it is: [`Plan::shards`].
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there is no such part of a tensor of that shape.
    pub fn shards(
        mut self,
        mut rule: impl FnMut(&PlannedTensor) -> Option<Shard>,
    ) -> Result<Self, Error> {
        for (tensor, _) in self.tensors.values_mut() {
            let shard = rule(tensor);
            tensor.cut(shard)?;
        }
        self.plan = OnceLock::new();
        Ok(self)
    }

    /// Binds an adapter to its base.
    pub fn on(mut self, base: SetHandle) -> Self {
        self.base = Some(base);
        self
    }

    /// Vouches for the contents with a revision; the bytes are then not hashed.
    pub fn declared(mut self, revision: impl Into<String>) -> Self {
        self.declared = Some(revision.into());
        self
    }

    fn push(
        mut self,
        kind: WeightKind,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> Result<Self, Error> {
        let wrong = |reason| Error::InvalidTensor {
            tensor: name.to_owned(),
            reason,
        };
        let len = given_len(dtype, shape, bytes.len()).map_err(wrong)?;
        if self.tensors.contains_key(name) || self.aliases.contains_key(name) {
            return Err(there_already(name));
        }
        let tensor = PlannedTensor::new(name, dtype.into(), shape.to_vec(), len).of_kind(kind);
        let same = |(other, _): &&(PlannedTensor, _)| other.replaces() == tensor.replaces();
        if tensor.replaces().is_some()
            && let Some((other, _)) = self.tensors.values().find(same)
        {
            return Err(wrong(format!("replaces the same as {:?}", other.name())));
        }
        self.tensors.insert(name.to_owned(), (tensor, bytes));
        self.plan = OnceLock::new();
        Ok(self)
    }

    fn make_plan(&self) -> Result<Plan, Error> {
        let tensors = self
            .tensors
            .values()
            .map(|(tensor, _)| tensor.clone())
            .collect();
        let features = self.features.iter();
        let features = features.map(|(name, &(outputs, inputs))| (name, outputs, inputs));
        let mut plan = Plan::new(ORIGIN, tensors, &[])?.modules(features);
        for (name, target) in &self.aliases {
            plan = plan.with_alias(name, *target)?;
        }
        let replaces = |tensor: &PlannedTensor| tensor.kind() == WeightKind::Replacement;
        if self.modules.is_empty() && !plan.tensors().iter().any(replaces) {
            return Ok(plan);
        }
        let modules = self.modules.iter().filter_map(|(module, scale)| {
            let [a, b] = lora_names(module).map(|name| plan.position(&name));
            Some((module.clone(), a?, b?, *scale))
        });
        let modules = modules.collect();
        plan.with_modules(modules)
    }
}

pub(super) fn there_already(name: &str) -> Error {
    Error::InvalidTensor {
        tensor: name.to_owned(),
        reason: "is there already".to_owned(),
    }
}

impl Source for InMemory {
    fn plan(&self) -> &Plan {
        // Names are distinct, sizes are those of real vectors, ranks were checked: nothing is left
        // that could make a plan fail.
        self.plan
            .get_or_init(|| self.make_plan().expect("checked tensor by tensor"))
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        // Both are in order of names.
        for (planned, (_, bytes)) in self.plan().tensors().iter().zip(self.tensors.values()) {
            arena[planned.range()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }

    fn base(&self) -> Option<SetHandle> {
        self.base
    }
}
