//! What a leased adapter changes: the modules it adds to, the tensors it replaces.
//!
//! What lives here: [`AdapterView`] and what it yields. What does not: the tensors themselves
//! (`lease`), whether they fit (`modules`).

use super::lease::{LeasedSet, Weight};
use crate::error::Error;
use crate::layout::ModuleScale;
use crate::modules::ReplacementFit;

/// The LoRA modules of a leased adapter, resolved: no pattern is left to interpret.
#[derive(Clone, Copy, Debug)]
pub struct AdapterView<'l> {
    set: LeasedSet<'l>,
}

impl<'l> LeasedSet<'l> {
    /// The adapter's modules; `None` for a checkpoint.
    pub fn adapter(&self) -> Option<AdapterView<'l>> {
        self.meta()
            .facts
            .adapter
            .as_ref()
            .map(|_| AdapterView { set: *self })
    }
}

impl<'l> AdapterView<'l> {
    /// Rank and scale of module `index`, wherever its matrices are.
    pub fn scale(&self, index: usize) -> Option<ModuleScale> {
        let adapter = self.set.meta().facts.adapter.as_ref()?;
        adapter.scales().get(index).copied()
    }

    /// How many modules the adapter changes.
    pub fn len(&self) -> usize {
        self.set.meta().facts.layout.modules().len()
    }

    /// No module at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Module `index`, in the order of module names.
    ///
    /// # Errors
    /// As [`Lease::weight`](super::Lease::weight); [`Error::NoSuchTensor`] if `index` is out of range.
    pub fn module(&self, index: usize) -> Result<AdapterModule<'l>, Error> {
        let meta = self.set.meta();
        let pair = meta.facts.layout.modules().get(index);
        let scale = meta
            .facts
            .adapter
            .as_ref()
            .and_then(|adapter| adapter.scales().get(index));
        let (Some(pair), Some(scale)) = (pair, scale) else {
            return Err(self.set.no_such_tensor(format!("module {index}")));
        };
        Ok(AdapterModule {
            module: pair.module(),
            rank: scale.rank,
            alpha: scale.alpha,
            scaling: scale.scaling,
            a: self.set.weight(pair.a())?,
            b: self.set.weight(pair.b())?,
        })
    }

    /// All modules, in the order of their names.
    pub fn modules(&self) -> impl Iterator<Item = Result<AdapterModule<'l>, Error>> + use<'l> {
        let this = *self;
        (0..self.len()).map(move |index| this.module(index))
    }

    /// Where `module` is in that order. Resolve it once per generation, not per layer.
    pub fn position(&self, module: &str) -> Option<usize> {
        self.set.meta().facts.layout.module_position(module)
    }

    /// The modules whose features were not known in the base that the adapter was bound to: they were
    /// not checked.
    pub fn unchecked_modules(&self) -> impl Iterator<Item = &'l str> + use<'l> {
        self.set.meta().unchecked_modules()
    }

    /// The full tensors that are to be used instead of the base's, in the order of the base's names.
    pub fn replacements(
        &self,
    ) -> impl Iterator<Item = Result<AdapterReplacement<'l>, Error>> + use<'l> {
        let this = *self;
        let count = this.set.meta().facts.layout.replacements().len();
        (0..count).filter_map(move |at| this.replacement_at(at))
    }

    /// What is to be used instead of the base's tensor `base_tensor`, if the adapter brings anything.
    ///
    /// # Errors
    /// As [`Lease::weight`](super::Lease::weight).
    pub fn replacement(&self, base_tensor: &str) -> Result<Option<AdapterReplacement<'l>>, Error> {
        let at = self
            .set
            .meta()
            .facts
            .layout
            .replacement_position(base_tensor);
        at.and_then(|at| self.replacement_at(at)).transpose()
    }

    fn replacement_at(&self, at: usize) -> Option<Result<AdapterReplacement<'l>, Error>> {
        let meta = self.set.meta();
        let (base_tensor, ordinal) = meta.facts.layout.replacement(at)?;
        let fit = meta.fit.replacements().get(at).copied();
        let fit = fit.unwrap_or(ReplacementFit::Unchecked);
        let weight = self.set.weight(ordinal);
        Some(weight.map(|weight| AdapterReplacement {
            base_tensor,
            fit,
            weight,
        }))
    }
}

/// One LoRA module: `y = W x + scaling * B (A x)`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AdapterModule<'l> {
    /// The base module, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: &'l str,
    /// Rank `r`: rows of A, columns of B.
    pub rank: u32,
    /// Alpha as configured for this module.
    pub alpha: f64,
    /// The factor to apply: `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised LoRA.
    pub scaling: f64,
    /// A, shape `[rank, in_features]`.
    pub a: Weight<'l>,
    /// B, shape `[out_features, rank]`.
    pub b: Weight<'l>,
}

/// A full tensor that was saved with an adapter.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AdapterReplacement<'l> {
    /// The base's tensor that it stands for, e.g. `score.weight`.
    pub base_tensor: &'l str,
    /// What it does to the base that the adapter was bound to.
    pub fit: ReplacementFit,
    /// The tensor. Its dtype may be another than the base's.
    pub weight: Weight<'l>,
}
