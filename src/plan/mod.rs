//! Plans: what a source will be, exactly, known from headers before anything is allocated.
//!
//! What lives here: the tensors of a set in canonical order with their places in the arena, ties,
//! and an adapter's resolved modules. What does not: one tensor (`planned`), groups of them (`parts`), reading headers
//! (`source`), the shared table without places (`layout`).

mod lora;
mod parts;
mod planned;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use lora::{lora_names, lora_rank};
pub use parts::{Parts, PlannedPart, PlannedParts, WindowSize};
pub use planned::PlannedTensor;

use crate::Dtype;
use crate::arena::{ALIGNMENT, Arena};
use crate::error::Error;
use crate::handle::WeightHandle;
use crate::layout::{AdapterInfo, Extents, Layout, ModulePair, ModuleScale, TensorInfo};
use crate::memory::Memory;
use crate::modules::{Fit, Known, check_fit};
use crate::tensor::{Shard, WeightKind, byte_len};

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

/// What a set will be: its tensors, to the byte.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    tensors: Vec<PlannedTensor>,
    arena_bytes: u64,
    /// What memory is charged that is there already: the tensors' places are in that.
    placed: Option<u64>,
    pub(crate) parts: Option<Arc<PlannedParts>>,
    adapter: Option<AdapterPlan>,
    aliases: Vec<PlannedAlias>,
    known: Arc<Known>,
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
        let mut replaced = HashMap::new();
        for tensor in &tensors {
            let Some(target) = &tensor.replaces else {
                continue;
            };
            if let Some(other) = replaced.insert(target, &tensor.name) {
                let reason = format!("replaces {target:?}, and so does {other:?}");
                return Err(wrong(&tensor.name, &reason));
            }
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
            parts: None,
            adapter: None,
            aliases: Vec::new(),
            known: Arc::default(),
            origin: origin.into(),
        })
    }

    /// Says of each tensor which part of the whole it is, where it is a part. A tie is what its
    /// target is.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there is no such part of a tensor of that shape.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{Dtype, Plan, Shard};
    ///
    /// let plan = Plan::of("rank 1", [("up.weight", Dtype::F16, vec![512, 64])])?;
    /// let plan = plan.shards(|_| Some(Shard { dim: 0, rank: 1, world: 4 }))?;
    /// assert_eq!(plan.tensors()[0].shard().unwrap().world, 4);
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn shards(
        mut self,
        mut rule: impl FnMut(&PlannedTensor) -> Option<Shard>,
    ) -> Result<Self, Error> {
        for tensor in self
            .tensors
            .iter_mut()
            .filter(|tensor| tensor.tie.is_none())
        {
            let shard = rule(tensor);
            tensor.cut(shard)?;
        }
        for index in 0..self.tensors.len() {
            if let Some(target) = self.tensors[index].tie {
                self.tensors[index].shard = self.tensors[target].shard;
            }
        }
        Ok(self)
    }

    /// Gives features of linear modules, as (name, out_features, in_features) of the whole module.
    /// What is given here counts, whatever shapes and names say.
    pub fn modules<N: AsRef<str>>(
        mut self,
        modules: impl IntoIterator<Item = (N, usize, usize)>,
    ) -> Self {
        Arc::make_mut(&mut self.known).give(modules);
        self
    }

    /// What its source knows of its modules beyond the tensors.
    pub(crate) fn with_known(mut self, known: Known) -> Self {
        self.known = Arc::new(known);
        self
    }

    /// The modules of this set that hold tensors but whose features are not known, by name: what an
    /// adapter does to them goes unchecked.
    pub fn unchecked_modules(&self) -> Vec<String> {
        let layout = self.layout();
        let unchecked = layout.module_table().unchecked();
        unchecked.into_iter().map(str::to_owned).collect()
    }

    /// Would this adapter fit a base of this layout? That of a [plan](Self::layout), or of a set
    /// ([`SetView::layout`](crate::SetView::layout)).
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] with both sides.
    pub fn check_fit(&self, base: &Layout) -> Result<Fit, Error> {
        check_fit(&self.origin, &self.layout(), base)
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

    /// Does it add to, or take the place of, anything of the base that it stands on?
    pub(crate) fn changes_its_base(&self) -> bool {
        let adds = self
            .adapter
            .as_ref()
            .is_some_and(|adapter| !adapter.is_empty());
        let replaces = |tensor: &PlannedTensor| tensor.kind == WeightKind::Replacement;
        adds || !self.aliases.is_empty() || self.tensors.iter().any(replaces)
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
    /// memory: all of that. If the set is streamed: what stays in memory, and the window.
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

    /// The table of this plan's tensors, with ordinals in the plan's order: what a set that is published from it
    /// has, but for tensors of other sets ([`with_alias`](Self::with_alias)). O(tensors). What can be asked of a layout, such as
    /// whether [an adapter fits](Self::check_fit), can so be asked of headers, before a byte of weights is read.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::source::{Checkpoint, PeftAdapter, Source};
    ///
    /// let base = Checkpoint::open("fixtures/tiny-llama")?;
    /// let shout = PeftAdapter::open("fixtures/adapters/shout")?;
    /// let fit = shout.plan().check_fit(&base.plan().layout())?;
    /// assert!(fit.unchecked().is_empty());
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn layout(&self) -> Layout {
        let info = |tensor: &PlannedTensor| TensorInfo {
            name: Arc::clone(&tensor.name),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            byte_len: tensor.byte_len,
            kind: tensor.kind,
            tie: tensor.tie.map(|target| target as u32),
            shard: tensor.shard,
            replaces: tensor.replaces.clone(),
        };
        let modules = self.adapter.as_ref();
        let modules = modules.map_or(&[][..], |adapter| &adapter.modules);
        let pair = |module: &PlannedModule| ModulePair {
            module: Arc::clone(&module.module),
            a: module.a as u32,
            b: module.b as u32,
        };
        let tensors = self.tensors.iter().map(info).map(Some).collect();
        let modules = modules.iter().map(pair).collect();
        Layout::new(tensors, modules, Arc::clone(&self.known))
    }

    /// The places of this plan's tensors, by the ordinals of `layout`, which is [`layout`](Self::layout), or
    /// that and more.
    pub(crate) fn extents(&self, layout: &Layout) -> Extents {
        Extents::of(layout, |ordinal| {
            let tensor = self.tensors.get(ordinal as usize)?;
            Some((tensor.part, tensor.offset))
        })
    }
}
