//! Plans: what a source will be, exactly, known from headers before anything is allocated.
//!
//! What lives here: the tensors of a set in canonical order with their places in the arena, ties,
//! and an adapter's resolved modules. What does not: reading headers (`source`), the shared table
//! without places (`layout`).

use std::sync::Arc;

use crate::Dtype;
use crate::arena::{ALIGNMENT, Arena};
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::layout::{AdapterInfo, Extents, Layout, ModulePair, ModuleScale, TensorInfo};
use crate::memory::Memory;
use crate::tensor::{DtypeName, WeightKind, byte_len};

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    pub(crate) name: Arc<str>,
    pub(crate) dtype: DtypeName,
    pub(crate) shape: Box<[usize]>,
    pub(crate) byte_len: u64,
    pub(crate) kind: WeightKind,
    /// Index of the tensor whose bytes these are.
    pub(crate) tie: Option<usize>,
    /// Place in the arena; a tie has its target's.
    pub(crate) offset: u64,
}

impl PlannedTensor {
    /// A tensor before it has a place. `byte_len` is what its header says.
    pub(crate) fn new(name: &str, dtype: DtypeName, shape: Vec<usize>, byte_len: u64) -> Self {
        PlannedTensor {
            name: name.into(),
            dtype,
            shape: shape.into(),
            byte_len,
            kind: WeightKind::Base,
            tie: None,
            offset: 0,
        }
    }

    pub(crate) fn of_kind(mut self, kind: WeightKind) -> Self {
        self.kind = kind;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dtype.
    pub fn dtype(&self) -> &DtypeName {
        &self.dtype
    }

    /// Its shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// What part it plays.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Where it starts in the arena: a multiple of 64. In memory that a source brings: where it is.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its place in the arena: what a source fills.
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start + self.byte_len as usize
    }
}

/// One LoRA module, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedModule {
    pub(crate) module: Arc<str>,
    /// Index of its A.
    pub(crate) a: usize,
    /// Index of its B.
    pub(crate) b: usize,
    pub(crate) scale: ModuleScale,
}

/// The LoRA modules of a plan, by module name.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPlan {
    pub(crate) modules: Vec<PlannedModule>,
}

impl AdapterPlan {
    /// How many modules.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Module name, rank, alpha and scaling, by module name.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = (&str, ModuleScale)> {
        self.modules
            .iter()
            .map(|module| (&*module.module, module.scale))
    }

    /// What the generation keeps of it. `layout` was built from the same plan.
    pub(crate) fn info(&self) -> AdapterInfo {
        AdapterInfo::new(self.modules.iter().map(|module| module.scale).collect())
    }
}

/// Does every LoRA module of `adapter` fit the base's module of that name?
pub(crate) fn check_fit(origin: &str, adapter: &Layout, base: &Layout) -> Result<(), Error> {
    for pair in adapter.modules() {
        let mismatch = |reason| Error::AdapterMismatch {
            origin: origin.to_owned(),
            module: pair.module().to_owned(),
            reason,
        };
        let Some((base_outputs, base_inputs)) = base.module_features(pair.module()) else {
            return Err(mismatch(
                "the base has no dense weight for this module; \
                 is this adapter meant for another base?"
                    .to_owned(),
            ));
        };
        let shape = |ordinal| adapter.tensor(ordinal).map_or(&[][..], |info| info.shape());
        let (a, b) = (shape(pair.a()), shape(pair.b()));
        if let (&[_, inputs], &[outputs, _]) = (a, b)
            && (inputs, outputs) != (base_inputs, base_outputs)
        {
            return Err(mismatch(format!(
                "A and B map {inputs} features to {outputs}, \
                 the base's module maps {base_inputs} to {base_outputs}"
            )));
        }
    }
    Ok(())
}

/// What a set will be: its tensors, to the byte.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    tensors: Vec<PlannedTensor>,
    arena_bytes: u64,
    /// What memory is charged that is there already: the tensors' places are in that.
    placed: Option<u64>,
    adapter: Option<AdapterPlan>,
    aliases: Vec<PlannedAlias>,
    origin: Arc<str>,
}

/// A tensor that is another set's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedAlias {
    pub(crate) name: Arc<str>,
    pub(crate) target: WeightHandle,
}

impl PlannedAlias {
    /// Its name in this set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn target(&self) -> WeightHandle {
        self.target
    }
}

impl Plan {
    /// The plan of a source of your own: names, dtypes, shapes.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for a name that is there twice, or sizes that overflow.
    pub fn of<N: AsRef<str>>(
        origin: &str,
        tensors: impl IntoIterator<Item = (N, Dtype, Vec<usize>)>,
    ) -> Result<Self, Error> {
        let plan = |(name, dtype, shape): (N, Dtype, Vec<usize>)| {
            let len = byte_len(dtype, &shape).map_err(|reason| Error::InvalidTensor {
                tensor: name.as_ref().to_owned(),
                reason,
            })?;
            Ok(PlannedTensor::new(name.as_ref(), dtype.into(), shape, len))
        };
        let tensors = tensors
            .into_iter()
            .map(plan)
            .collect::<Result<_, Error>>()?;
        Self::new(origin, tensors, &[])
    }

    /// Puts tensors in canonical order and gives each a place. `ties` are (alias, target) names.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for a duplicate name or sizes that overflow.
    pub(crate) fn new(
        origin: &str,
        mut tensors: Vec<PlannedTensor>,
        ties: &[(String, String)],
    ) -> Result<Self, Error> {
        let wrong = |tensor: &str, reason: &str| Error::InvalidTensor {
            tensor: tensor.to_owned(),
            reason: reason.to_owned(),
        };
        for (alias, target) in ties {
            let Some(of) = tensors.iter().find(|tensor| *tensor.name == **target) else {
                return Err(wrong(
                    alias,
                    &format!("is tied to {target:?}, which is not there"),
                ));
            };
            let mut tie = of.clone().of_kind(WeightKind::TiedAlias);
            tie.name = alias.as_str().into();
            tensors.push(tie);
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(wrong(&pair[0].name, "is there twice"));
        }
        for (alias, target) in ties {
            let at = |name: &str| tensors.binary_search_by(|tensor| (*tensor.name).cmp(name));
            if let (Ok(alias), Ok(target)) = (at(alias), at(target)) {
                tensors[alias].tie = Some(target);
            }
        }
        let mut end = 0u64;
        for tensor in tensors.iter_mut().filter(|tensor| tensor.tie.is_none()) {
            tensor.offset = end;
            end = end
                .checked_add(tensor.byte_len)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT as u64))
                .ok_or_else(|| wrong(&tensor.name, "makes the set larger than 2^64 bytes"))?;
        }
        for index in 0..tensors.len() {
            if let Some(target) = tensors[index].tie {
                tensors[index].offset = tensors[target].offset;
            }
        }
        Ok(Plan {
            tensors,
            arena_bytes: end,
            placed: None,
            adapter: None,
            aliases: Vec::new(),
            origin: origin.into(),
        })
    }

    /// The same tensors, each where `place` says, in memory that is there already. A tie is where its
    /// target is. `place` has been checked: in `memory`, and no two overlap.
    pub(crate) fn placed(mut self, memory: &Memory, place: impl Fn(&str) -> u64) -> Self {
        for index in 0..self.tensors.len() {
            let target = self.tensors[index].tie.unwrap_or(index);
            self.tensors[index].offset = place(&self.tensors[target].name);
        }
        self.arena_bytes = memory.byte_len();
        self.placed = Some(memory.charged_bytes());
        self
    }

    /// Are the places in memory that its source brings?
    pub(crate) fn is_placed(&self) -> bool {
        self.placed.is_some()
    }

    /// Makes this the plan of an adapter. `modules` are (module, index of A, index of B, scale).
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] if A and B are not two matrices of the resolved rank.
    pub(crate) fn with_modules(
        mut self,
        mut modules: Vec<(String, usize, usize, ModuleScale)>,
    ) -> Result<Self, Error> {
        modules.sort_by(|a, b| a.0.cmp(&b.0));
        for (module, a, b, scale) in &modules {
            let rank = scale.rank as usize;
            match (&*self.tensors[*a].shape, &*self.tensors[*b].shape) {
                (&[a_rank, _], &[_, b_rank]) if a_rank == rank && b_rank == rank => {}
                (a_shape, b_shape) => {
                    return Err(Error::AdapterMismatch {
                        origin: self.origin.to_string(),
                        module: module.clone(),
                        reason: format!(
                            "rank {rank} by the configuration, but A has shape {a_shape:?} \
                             ([rank, in] expected) and B {b_shape:?} ([out, rank] expected)"
                        ),
                    });
                }
            }
        }
        let modules = modules
            .into_iter()
            .map(|(module, a, b, scale)| PlannedModule {
                module: module.into(),
                a,
                b,
                scale,
            })
            .collect();
        self.adapter = Some(AdapterPlan { modules });
        Ok(self)
    }

    /// The same, with one more name, for a tensor of another set: same bytes, charged once, to the
    /// other set. It has the dtype and shape of its target, which is bound when the set is published
    /// (its current generation then) and bound again in the commit that replaces the target.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if the name is taken.
    pub fn with_alias(mut self, name: &str, target: WeightHandle) -> Result<Self, Error> {
        let taken = self.aliases.iter().any(|alias| *alias.name == *name);
        if taken || self.position(name).is_some() {
            return Err(Error::InvalidTensor {
                tensor: name.to_owned(),
                reason: "is there twice".to_owned(),
            });
        }
        self.aliases.push(PlannedAlias {
            name: name.into(),
            target,
        });
        Ok(self)
    }

    /// The names that stand for tensors of other sets.
    pub fn aliases(&self) -> &[PlannedAlias] {
        &self.aliases
    }

    /// The tensors in canonical order: by name, bytewise.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// The index of a tensor.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.tensors
            .binary_search_by(|tensor| (*tensor.name).cmp(name))
            .ok()
    }

    /// Bytes of the arena: all tensors, each at a multiple of 64, ties once. If the source brings its
    /// memory: all of that.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// What the ledger will be charged: what the arena really takes, or what the source says of memory
    /// that it brings. `u64::MAX` if no address space has that much.
    pub fn charged_bytes(&self) -> u64 {
        self.placed
            .unwrap_or_else(|| Arena::charge_for(self.arena_bytes).unwrap_or(u64::MAX))
    }

    /// The modules, if this is an adapter.
    pub fn adapter(&self) -> Option<&AdapterPlan> {
        self.adapter.as_ref()
    }

    /// Where it comes from, for people.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The table of this plan's tensors, with ordinals in the plan's order.
    pub(crate) fn layout(&self) -> Layout {
        let info = |tensor: &PlannedTensor| TensorInfo {
            name: Arc::clone(&tensor.name),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            byte_len: tensor.byte_len,
            kind: tensor.kind,
            tie: tensor.tie.map(|target| target as u32),
        };
        let modules = self.adapter.as_ref();
        let modules = modules.map_or(&[][..], |adapter| &adapter.modules);
        let pair = |module: &PlannedModule| ModulePair {
            module: Arc::clone(&module.module),
            a: module.a as u32,
            b: module.b as u32,
        };
        let tensors = self.tensors.iter().map(info).map(Some).collect();
        Layout::new(tensors, modules.iter().map(pair).collect())
    }

    /// The places of this plan's tensors, by the ordinals of [`layout`](Self::layout); `len` of them.
    pub(crate) fn extents(&self, len: usize) -> Extents {
        let mut extents = Extents::none(len);
        for (ordinal, tensor) in (0..).zip(&self.tensors) {
            extents.set(ordinal, tensor.offset);
        }
        extents
    }
}
