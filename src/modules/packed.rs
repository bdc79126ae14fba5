//! The tensors of one module, and what their shapes tell.
//!
//! What lives here: one rule per format of weights. Sources of the formats are named at
//! [`WeightFormat`] and at `source::quantised`. A rule that two tensors of a module contradict gives
//! nothing: the module is unchecked.

use super::linear::{Linear, Module, Side, WeightFormat};
use crate::Dtype;
use crate::layout::info::TensorInfo;

/// What comes after a weight's name where it is kept in several tensors.
const OF_WEIGHT: &str = ".weight.";

/// The module and the part that a tensor is of it: `absmax` and the like of `m.weight.absmax` are
/// parts of `m`. `None` for a name without a module.
pub(super) fn split(name: &str) -> Option<(&str, &str)> {
    match name.find(OF_WEIGHT) {
        Some(at) => Some((&name[..at], &name[at + 1..])),
        None => name.rsplit_once('.'),
    }
}

/// The tensors of one module that matter here.
#[derive(Debug, Default)]
pub(super) struct Parts<'t> {
    weight: Option<&'t TensorInfo>,
    qweight: Option<&'t TensorInfo>,
    scales: Option<&'t TensorInfo>,
    group_index: Option<&'t TensorInfo>,
    weight_packed: Option<&'t TensorInfo>,
    /// The scales of an I8 weight.
    row_scales: Option<&'t TensorInfo>,
    /// The weight is kept in several tensors: its own shape says nothing.
    in_pieces: bool,
    sharded: bool,
}

impl<'t> Parts<'t> {
    pub(super) fn add(&mut self, part: &str, info: &'t TensorInfo) {
        self.sharded |= info.shard().is_some();
        match part {
            "weight" => self.weight = Some(info),
            "qweight" => self.qweight = Some(info),
            "scales" => self.scales = Some(info),
            "g_idx" => self.group_index = Some(info),
            "weight_packed" => self.weight_packed = Some(info),
            "SCB" | "weight_scale" => self.row_scales = Some(info),
            other => self.in_pieces |= other.starts_with(&OF_WEIGHT[1..]),
        }
    }

    /// What the module is. `written`: (out, in) as a tensor of its own spells them out.
    pub(super) fn module(&self, format: WeightFormat, written: Option<(usize, usize)>) -> Module {
        let linear = match (written, format) {
            (Some(written), _) => self.written(written),
            (None, WeightFormat::Gptq { bits }) if self.qweight.is_some() => self.gptq(bits),
            (None, WeightFormat::Awq { bits }) if self.qweight.is_some() => self.awq(bits),
            _ => return self.plain(format),
        };
        linear.map_or(Module::Unchecked, Module::Linear)
    }

    fn plain(&self, format: WeightFormat) -> Module {
        let Some(weight) = self.weight.filter(|_| !self.in_pieces) else {
            return Module::Unchecked;
        };
        match weight.dtype() {
            Some(
                Dtype::F64
                | Dtype::F32
                | Dtype::F16
                | Dtype::BF16
                | Dtype::F8_E4M3
                | Dtype::F8_E5M2,
            ) => match weight.shape().len() {
                2 => matrix(weight).map_or(Module::Unchecked, Module::Linear),
                _ => Module::NotLinear,
            },
            Some(Dtype::I8) if format == WeightFormat::Int8 && self.row_scales.is_some() => {
                matrix(weight).map_or(Module::Unchecked, Module::Linear)
            }
            _ => Module::Unchecked,
        }
    }

    /// Of a tensor that spells the shape out. It speaks of the whole, and does not say how that was
    /// cut.
    fn written(&self, (outputs, inputs): (usize, usize)) -> Option<Linear> {
        let fits = match (self.weight, self.weight_packed) {
            // bitsandbytes, 4 bits: two weights in a byte.
            (Some(weight), None) => {
                let weights = outputs.checked_mul(inputs)?;
                weight.byte_len() == weights.div_ceil(2) as u64
            }
            // compressed-tensors: rows stay rows.
            (None, Some(packed)) => packed.shape().first() == Some(&outputs),
            _ => false,
        };
        (fits && !self.sharded).then(|| Linear {
            outputs: Side::whole(outputs),
            inputs: Side::whole(inputs),
        })
    }

    fn gptq(&self, bits: Option<u32>) -> Option<Linear> {
        let [rows, outputs] = sides(self.qweight?)?;
        let by_bits = match bits {
            Some(bits) => Some(unpacked(rows, bits)?),
            None => None,
        };
        // A group per input. Says the size also where modules differ in bits.
        let by_groups = match self.group_index {
            Some(index) if index.shape().len() == 1 => Some(Side::of(index, 0)?),
            _ => None,
        };
        let inputs = match (by_bits, by_groups) {
            (Some(a), Some(b)) => (a.size == b.size).then_some(a)?,
            (one, other) => one.or(other)?,
        };
        self.as_scales(Linear { outputs, inputs })
    }

    fn awq(&self, bits: u32) -> Option<Linear> {
        let [inputs, columns] = sides(self.qweight?)?;
        let outputs = unpacked(columns, bits)?;
        self.as_scales(Linear { outputs, inputs })
    }

    /// The scales, `[groups, out]`, agree.
    fn as_scales(&self, linear: Linear) -> Option<Linear> {
        let agree = match self.scales {
            Some(scales) => sides(scales)?[1].size == linear.outputs.size,
            None => true,
        };
        agree.then_some(linear)
    }
}

/// Both dimensions of a matrix.
fn sides(info: &TensorInfo) -> Option<[Side; 2]> {
    match info.shape().len() {
        2 => Some([Side::of(info, 0)?, Side::of(info, 1)?]),
        _ => None,
    }
}

/// A dense `[out, in]`.
fn matrix(info: &TensorInfo) -> Option<Linear> {
    let [outputs, inputs] = sides(info)?;
    Some(Linear { outputs, inputs })
}

/// A dimension that is packed into 32-bit words.
fn unpacked(words: Side, bits: u32) -> Option<Side> {
    let all = words.size.checked_mul(32)?;
    let size = all.checked_div(bits as usize)?;
    all.is_multiple_of(bits as usize)
        .then_some(Side { size, ..words })
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_where_the_module_ends() {
        for (name, expected) in [
            ("a.b.weight", Some(("a.b", "weight"))),
            ("a.b.weight_scale", Some(("a.b", "weight_scale"))),
            ("a.b.weight.absmax", Some(("a.b", "weight.absmax"))),
            (
                "a.weight.quant_state.bitsandbytes__nf4",
                Some(("a", "weight.quant_state.bitsandbytes__nf4")),
            ),
            ("weight", None),
            (".weight", Some(("", "weight"))),
        ] {
            assert_eq!(split(name), expected, "{name}");
        }
    }

    #[test]
    fn words_that_do_not_come_out_even_tell_nothing() {
        let of = |words, bits| unpacked(Side::whole(words), bits).map(|side| side.size);
        assert_eq!(of(8, 4), Some(64));
        assert_eq!(of(6, 3), Some(64));
        assert_eq!(of(8, 3), None);
        assert_eq!(of(8, 0), None);
        assert_eq!(of(usize::MAX, 4), None);
    }
}
