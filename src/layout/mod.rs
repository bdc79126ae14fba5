//! Layouts: the immutable table of a set's tensors, shared by all sets that have the same.
//!
//! What lives here: tensor entries (`info`) by ordinal, the name table, an adapter's pairs and
//! replacements. What does not: sharing (`intern`), where tensors are (`places`), bytes (`arena`), what
//! the shapes mean for adapters (`modules`).

pub(crate) mod info;
mod intern;
mod places;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

pub use info::TensorInfo;
pub use intern::Interner;
pub use places::{Extents, Place};
pub(crate) use places::{LENDERS, OFFSET_BITS, PART_BYTES, PARTS, Row};

use crate::modules::Module;
use crate::modules::table::{Known, ModuleTable};
use crate::sync;

/// A LoRA module of a layout: which tensors are its A and B.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModulePair {
    pub(crate) module: Arc<str>,
    pub(crate) a: u32,
    pub(crate) b: u32,
}

impl ModulePair {
    /// The base module's name.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The ordinal of A.
    pub fn a(&self) -> u32 {
        self.a
    }

    /// The ordinal of B.
    pub fn b(&self) -> u32 {
        self.b
    }
}

/// Rank and scale of one LoRA module in one generation.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ModuleScale {
    /// Rank `r`.
    pub rank: u32,
    /// Alpha.
    pub alpha: f64,
    /// The factor for `B (A x)`.
    pub scaling: f64,
}

impl ModuleScale {
    /// With the factor that PEFT applies: `alpha / r`, or `alpha / sqrt(r)` if rank-stabilised
    /// ("A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
    pub fn new(rank: u32, alpha: f64, rank_stabilised: bool) -> Self {
        let rank_term = if rank_stabilised {
            f64::from(rank).sqrt()
        } else {
            f64::from(rank)
        };
        ModuleScale {
            rank,
            alpha,
            scaling: alpha / rank_term,
        }
    }
}

/// What one generation of an adapter has beside its layout: the scales, in the order of
/// [`Layout::modules`].
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo(Box<[ModuleScale]>);

impl AdapterInfo {
    pub(crate) fn new(scales: Box<[ModuleScale]>) -> Self {
        AdapterInfo(scales)
    }

    /// The scales.
    pub fn scales(&self) -> &[ModuleScale] {
        &self.0
    }
}

/// Name to ordinal for one set, over all its generations: append-only, so an ordinal never means
/// another tensor.
#[derive(Debug, Clone)]
pub struct OrdinalTable {
    /// Of the first generation: its own order is the set's. Most sets never have another.
    first: Arc<Layout>,
    /// Names that came with later generations; their ordinals go on where the first's end.
    later: Vec<Arc<str>>,
    ordinals: HashMap<Arc<str>, u32>,
}

impl OrdinalTable {
    /// Of a set whose first generation has the layout `first`, which [`Plan::layout`](crate::plan::Plan::layout) made.
    pub(crate) fn new(first: Arc<Layout>) -> Self {
        OrdinalTable {
            first,
            later: Vec::new(),
            ordinals: HashMap::new(),
        }
    }

    /// The tensor that an ordinal stands for, whichever generation has it. For messages.
    pub(crate) fn name(&self, ordinal: u32) -> Option<&str> {
        self.first.tensor(ordinal).map_or_else(
            || {
                let later = (ordinal as usize).checked_sub(self.first.len())?;
                self.later.get(later).map(|name| &**name)
            },
            |info| Some(info.name()),
        )
    }

    /// Does `own`, whose ordinals follow its plan, fit this set as it is?
    pub(crate) fn is_first(&self, own: &Arc<Layout>) -> bool {
        Arc::ptr_eq(&self.first, own)
    }

    /// The ordinal of a name, a new one if the set never had it.
    pub(crate) fn assign(&mut self, name: &Arc<str>) -> u32 {
        let known = self.first.ordinal(name);
        known.unwrap_or_else(|| {
            let next = (self.first.len() + self.later.len()) as u32;
            *self.ordinals.entry(Arc::clone(name)).or_insert_with(|| {
                self.later.push(Arc::clone(name));
                next
            })
        })
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Layout {
    tensors: Box<[Option<TensorInfo>]>,
    modules: Box<[ModulePair]>,
    known: Arc<Known>,
    by_name: HashMap<Arc<str>, u32>,
    /// (base's tensor, ordinal of what replaces it), by name.
    replacements: Box<[(Arc<str>, u32)]>,
    sharded: bool,
    /// Made when an adapter is first bound to it.
    table: OnceLock<ModuleTable>,
    /// Where the first generation that had this layout has its tensors.
    places: sync::OnceLock<Extents>,
}

/// A copy that nobody shares places with yet.
impl Clone for Layout {
    fn clone(&self) -> Self {
        Layout {
            tensors: self.tensors.clone(),
            modules: self.modules.clone(),
            known: Arc::clone(&self.known),
            by_name: self.by_name.clone(),
            replacements: self.replacements.clone(),
            sharded: self.sharded,
            table: self.table.clone(),
            places: sync::OnceLock::new(),
        }
    }
}

impl PartialEq for Layout {
    fn eq(&self, other: &Self) -> bool {
        // All else follows from these.
        self.tensors == other.tensors && self.modules == other.modules && self.known == other.known
    }
}

impl Eq for Layout {}

impl Hash for Layout {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.tensors.hash(state);
        self.modules.hash(state);
        self.known.hash(state);
    }
}

impl Layout {
    /// Of tensors by ordinal, modules by name, and what their source knows beyond them.
    pub(crate) fn new(
        tensors: Vec<Option<TensorInfo>>,
        modules: Vec<ModulePair>,
        known: Arc<Known>,
    ) -> Self {
        let there = || {
            (0u32..)
                .zip(&tensors)
                .filter_map(|(ordinal, info)| Some((ordinal, info.as_ref()?)))
        };
        let mut replacements: Vec<_> = there()
            .filter_map(|(ordinal, info)| Some((Arc::clone(info.replaces.as_ref()?), ordinal)))
            .collect();
        replacements.sort_unstable();
        Layout {
            by_name: there()
                .map(|(ordinal, info)| (Arc::clone(&info.name), ordinal))
                .collect(),
            replacements: replacements.into(),
            sharded: there().any(|(_, info)| info.shard.is_some()),
            tensors: tensors.into(),
            modules: modules.into(),
            known,
            table: OnceLock::new(),
            places: sync::OnceLock::new(),
        }
    }

    /// The same with further tensors, whose ordinals go on where these end.
    pub(crate) fn and(self, more: impl IntoIterator<Item = TensorInfo>) -> Self {
        let mut tensors = self.tensors.into_vec();
        tensors.extend(more.into_iter().map(Some));
        Layout::new(tensors, self.modules.into_vec(), self.known)
    }

    /// The same tensors with the ordinals of a set that had other ones before, and their places.
    pub(crate) fn after(
        &self,
        ordinals: &mut OrdinalTable,
        extents: &Extents,
    ) -> (Layout, Extents) {
        let moved: Vec<Option<u32>> = self
            .tensors
            .iter()
            .map(|info| Some(ordinals.assign(&info.as_ref()?.name)))
            .collect();
        let to = |old: u32| moved[old as usize].unwrap_or(old);
        let end = moved
            .iter()
            .flatten()
            .max()
            .map_or(0, |&last| last as usize + 1);
        let mut tensors = vec![None; end];
        for (info, new) in self.tensors.iter().zip(&moved) {
            if let (Some(info), Some(new)) = (info, *new) {
                tensors[new as usize] = Some(TensorInfo {
                    tie: info.tie.map(to),
                    ..info.clone()
                });
            }
        }
        let pair = |pair: &ModulePair| ModulePair {
            module: Arc::clone(&pair.module),
            a: to(pair.a),
            b: to(pair.b),
        };
        let modules = self.modules.iter().map(pair).collect();
        let layout = Layout::new(tensors, modules, Arc::clone(&self.known));
        (layout, extents.moved(&moved, end))
    }

    /// `places` of tensors of this layout: the very ones of its first generation, if they are the same.
    pub(crate) fn share(&self, places: Extents) -> Extents {
        match self.places.get() {
            Some(first) if *first == places => first.clone(),
            Some(_) => places,
            None => {
                // Somebody else may be first: then these are this generation's own.
                let _ = self.places.set(places.clone());
                places
            }
        }
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// All ordinals that the set had used when this generation was made. Some may have no tensor.
    pub fn ordinals(&self) -> Range<u32> {
        0..self.tensors.len() as u32
    }

    /// The tensor with this ordinal, if this generation has it.
    #[inline]
    pub fn tensor(&self, ordinal: u32) -> Option<&TensorInfo> {
        self.tensors.get(ordinal as usize)?.as_ref()
    }

    /// The tensors, by ordinal.
    pub fn tensors(&self) -> impl Iterator<Item = (u32, &TensorInfo)> {
        (0u32..)
            .zip(&self.tensors)
            .filter_map(|(ordinal, info)| Some((ordinal, info.as_ref()?)))
    }

    /// The ordinal of a name.
    pub fn ordinal(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The LoRA modules, by module name.
    pub fn modules(&self) -> &[ModulePair] {
        &self.modules
    }

    /// Where a LoRA module is among them.
    pub fn module_position(&self, module: &str) -> Option<usize> {
        self.modules
            .binary_search_by(|pair| pair.module().cmp(module))
            .ok()
    }

    /// The base's tensors that this adapter replaces, by name, each with the ordinal of what takes
    /// its place.
    pub fn replacements(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        self.replacements
            .iter()
            .map(|(replaced, ordinal)| (&**replaced, *ordinal))
    }

    /// One of them.
    pub fn replacement(&self, position: usize) -> Option<(&str, u32)> {
        let (replaced, ordinal) = self.replacements.get(position)?;
        Some((replaced, *ordinal))
    }

    /// Where the replacement of a base's tensor is among them.
    pub fn replacement_position(&self, base_tensor: &str) -> Option<usize> {
        self.replacements
            .binary_search_by(|(replaced, _)| (**replaced).cmp(base_tensor))
            .ok()
    }

    /// What the modules of this set are to an adapter.
    pub fn module_table(&self) -> &ModuleTable {
        self.table
            .get_or_init(|| ModuleTable::new(self.tensors().map(|(_, info)| info), &self.known))
    }

    /// `(out_features, in_features)` of a linear module, if they are known: of the whole module,
    /// where this is a part of it.
    pub fn module_features(&self, module: &str) -> Option<(usize, usize)> {
        match self.module_table().get(module)? {
            Module::Linear(linear) => Some((linear.outputs(), linear.inputs())),
            Module::NotLinear | Module::Unchecked => None,
        }
    }

    /// A tensor that both have, and that is another part of the whole in `next`.
    pub(crate) fn other_shard<'l>(
        &'l self,
        next: &'l Layout,
    ) -> Option<(&'l TensorInfo, &'l TensorInfo)> {
        if !self.sharded && !next.sharded {
            return None;
        }
        self.tensors().find_map(|(_, ours)| {
            let theirs = next.tensor(next.ordinal(ours.name())?)?;
            (ours.shard != theirs.shard).then_some((ours, theirs))
        })
    }
}
