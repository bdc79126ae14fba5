//! Does an adapter fit a base?
//!
//! What lives here: the check of one layout against another, which is all that it takes: an adapter is
//! checked when it is staged, when it is published, and when its base gets a new generation. What does
//! not: what the base's modules are (the table), when to check (`registry::commit`).

use std::fmt::Display;

use super::linear::{Linear, Module, Side};
use crate::error::Error;
use crate::layout::{Layout, ModulePair, TensorInfo};

/// An adapter fits its base: what was found, beside that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fit {
    /// Positions among the adapter's modules.
    unchecked: Box<[u32]>,
    /// In the order of [`Layout::replacements`].
    replacements: Box<[ReplacementFit]>,
}

impl Fit {
    /// The modules that could not be checked, by their position in [`Layout::modules`].
    pub fn unchecked(&self) -> &[u32] {
        &self.unchecked
    }

    /// What each replacement does, in the order of [`Layout::replacements`].
    pub fn replacements(&self) -> &[ReplacementFit] {
        &self.replacements
    }
}

/// What a full tensor that was saved with an adapter does to the base.
///
/// PEFT puts such tensors in place of the model's (`set_peft_model_state_dict`), and there a size that
/// differs is an error: but of the *model*, which its user has made with another number of labels or
/// resized to a longer vocabulary before, not of the base's files. So rows may differ from the base's
/// here, nothing else; the dtype may. What is not what it was is not refused, it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReplacementFit {
    /// It has the shape of the base's tensor.
    SameShape,
    /// It has another number of rows: of labels, of words.
    Resized,
    /// The base has nothing of this name, such as the head of a classifier.
    Added,
    /// The base's shape cannot be known.
    Unchecked,
}

/// What a tensor of the base is for, seen from a replacement of it.
enum Replaced<'b> {
    Tensor(&'b TensorInfo),
    Weight(Module),
    Nothing,
}

/// Does `adapter` fit `base`? Both as wholes: files of adapters hold whole matrices, and engines cut
/// them like the base's when they load them (vLLM slices B for column-parallel layers and A for
/// row-parallel ones in `lora/layers`; PEFT the same in `_maybe_shard_state_dict_for_tp`, and it
/// gathers them before it saves). Only where the adapter's matrices say themselves that they are
/// parts, they must be the base's parts.
///
/// # Errors
/// [`Error::AdapterMismatch`] with both sides.
pub(crate) fn check_fit(origin: &str, adapter: &Layout, base: &Layout) -> Result<Fit, Error> {
    let check = Check {
        origin,
        adapter,
        base,
    };
    let mut unchecked = Vec::new();
    for (position, pair) in (0u32..).zip(adapter.modules()) {
        if !check.module(pair)? {
            unchecked.push(position);
        }
    }
    let replacements = adapter.replacements();
    let replacements = replacements.filter_map(|(replaced, ordinal)| {
        let info = adapter.tensor(ordinal)?;
        Some(check.replacement(replaced, info))
    });
    Ok(Fit {
        unchecked: unchecked.into(),
        replacements: replacements.collect::<Result<_, Error>>()?,
    })
}

struct Check<'c> {
    origin: &'c str,
    adapter: &'c Layout,
    base: &'c Layout,
}

impl Check<'_> {
    fn mismatch(&self, module: &str, reason: impl Display) -> Error {
        Error::AdapterMismatch {
            origin: self.origin.to_owned(),
            module: module.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// `Ok(false)`: nothing speaks against it, but it is not known.
    fn module(&self, pair: &ModulePair) -> Result<bool, Error> {
        let module = pair.module();
        let sides = |ordinal| {
            let info = self.adapter.tensor(ordinal)?;
            Some([Side::of(info, 0)?, Side::of(info, 1)?])
        };
        let (Some([a_rank, inputs]), Some([outputs, b_rank])) = (sides(pair.a()), sides(pair.b()))
        else {
            return Err(self.mismatch(module, "A and B are not two matrices"));
        };
        if let Some(shard) = a_rank.shard.or(b_rank.shard) {
            let reason = format!("its rank is cut ({shard}); only features can be");
            return Err(self.mismatch(module, reason));
        }
        let linear = match self.base_module(module) {
            Some(Module::Linear(linear)) => linear,
            Some(Module::Unchecked) => return Ok(false),
            Some(Module::NotLinear) => {
                let reason =
                    "the base's module of this name is not linear: its weight is no matrix";
                return Err(self.mismatch(module, reason));
            }
            None => {
                let reason = "the base has no tensor of this module; \
                              is this adapter meant for another base?";
                return Err(self.mismatch(module, reason));
            }
        };
        if (inputs.size, outputs.size) != (linear.inputs.size, linear.outputs.size) {
            let reason = format!(
                "A and B map {} features to {}, the base's module maps {} to {}",
                inputs.size, outputs.size, linear.inputs.size, linear.outputs.size
            );
            return Err(self.mismatch(module, reason));
        }
        self.same_part(module, "A", inputs, linear.inputs)?;
        self.same_part(module, "B", outputs, linear.outputs)?;
        Ok(true)
    }

    /// The base's module, with the adapter's own weight in it if it brings one: LoRA on a head that was
    /// resized.
    fn base_module(&self, module: &str) -> Option<Module> {
        if self.adapter.replacements().len() == 0 {
            return self.base.module_table().get(module);
        }
        let own = self
            .adapter
            .replacement_position(&format!("{module}.weight"));
        let own = own.and_then(|at| self.adapter.replacement(at));
        let own = own.and_then(|(_, ordinal)| self.adapter.tensor(ordinal));
        match own.map(|own| (own.shape().len(), Side::of(own, 0), Side::of(own, 1))) {
            Some((2, Some(outputs), Some(inputs))) => {
                Some(Module::Linear(Linear { outputs, inputs }))
            }
            Some(_) => Some(Module::NotLinear),
            None => self.base.module_table().get(module),
        }
    }

    fn same_part(&self, module: &str, matrix: &str, own: Side, base: Side) -> Result<(), Error> {
        if own.shard.is_none() || own.part() == base.part() {
            return Ok(());
        }
        let say = |side: Side| match side.part() {
            Some((rank, world)) => format!("part {rank} of {world}"),
            None => "the whole".to_owned(),
        };
        let reason = format!(
            "{matrix} is {} of its features, the base's module {}",
            say(own),
            say(base)
        );
        Err(self.mismatch(module, reason))
    }

    fn replacement(&self, replaced: &str, own: &TensorInfo) -> Result<ReplacementFit, Error> {
        let (module, part) = replaced.rsplit_once('.').unwrap_or(("", replaced));
        let own_sides = whole(own);
        let base_sides = match self.replaced(module, part, replaced) {
            Replaced::Nothing => return Ok(ReplacementFit::Added),
            Replaced::Weight(Module::Linear(Linear { outputs, inputs })) => {
                Some(vec![outputs.size, inputs.size])
            }
            Replaced::Weight(_) => None,
            Replaced::Tensor(info) => whole(info),
        };
        let (Some(own_sides), Some(base_sides)) = (own_sides, base_sides) else {
            return Ok(ReplacementFit::Unchecked);
        };
        if own_sides == base_sides {
            return Ok(ReplacementFit::SameShape);
        }
        // Rows of a matrix, and the bias that goes with them: no norm is ever resized.
        let rows = own_sides.len() > 1 || part == "bias";
        if rows && own_sides.len() == base_sides.len() && own_sides[1..] == base_sides[1..] {
            return Ok(ReplacementFit::Resized);
        }
        let reason = format!(
            "its {part} is to be replaced by one of shape {own_sides:?}, the base's has \
             {base_sides:?}; only the number of rows may differ"
        );
        Err(self.mismatch(module, reason))
    }

    fn replaced(&self, module: &str, part: &str, replaced: &str) -> Replaced<'_> {
        if part == "weight"
            && let Some(known) = self.base.module_table().get(module)
            && known != Module::NotLinear
        {
            return Replaced::Weight(known);
        }
        let ordinal = self.base.ordinal(replaced);
        let info = ordinal.and_then(|ordinal| self.base.tensor(ordinal));
        info.map_or(Replaced::Nothing, Replaced::Tensor)
    }
}

/// The shape of the whole tensor, if that can be said.
fn whole(info: &TensorInfo) -> Option<Vec<usize>> {
    (0..info.shape().len())
        .map(|dim| Some(Side::of(info, dim)?.size))
        .collect()
}
