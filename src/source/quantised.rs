//! Quantised checkpoints: what `config.json` and small tensors tell of their linear modules.
//!
//! What lives here: `quantization_config`, and the tensors that spell a logical shape out, which is
//! then not in the header. What does not: what shapes mean (`modules`). Nothing here refuses a
//! checkpoint: what is not understood leaves modules unchecked.
//!
//! Two formats spell shapes out. bitsandbytes keeps a 4-bit weight as packed bytes of no telling shape
//! and beside it `weight.quant_state.bitsandbytes__nf4` (or `__fp4`), bytes of a JSON object with the
//! `shape` (`QuantState.as_dict` and `pack_dict_to_tensor` in its `functional.py` and `utils.py`).
//! compressed-tensors keeps `weight_shape` beside `weight_packed` (`pack_quantized.py`). Both are some
//! hundred bytes at most, and are read when the checkpoint is opened, within bounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::file::SourceFile;
use super::header::FileTensor;
use crate::Dtype;
use crate::error::Error;
use crate::modules::{Known, WeightFormat};

/// Longest tensor that is read for the shape in it.
const TENSOR_CAP: u64 = 4 << 10;
/// Most bytes that are read of all of them. What comes after is unchecked.
const ALL_CAP: u64 = 16 << 20;

const WEIGHT_SHAPE: &str = ".weight_shape";
const QUANT_STATES: [&str; 2] = [
    ".weight.quant_state.bitsandbytes__nf4",
    ".weight.quant_state.bitsandbytes__fp4",
];

/// What the modules of a checkpoint are beyond its tensors. `config` is its `quantization_config`.
///
/// # Errors
/// [`Error::Io`], [`Error::SourceChanged`]: a tensor of a header that was checked cannot be read.
pub(super) fn known<'f>(
    config: &Value,
    tensors: impl Iterator<Item = (&'f SourceFile, &'f FileTensor)>,
) -> Result<Known, Error> {
    let written = match text(config, "quant_method").as_deref() {
        Some("bitsandbytes") => read(tensors, &QUANT_STATES, of_json)?,
        Some("compressed-tensors") => read(tensors, &[WEIGHT_SHAPE], of_numbers)?,
        _ => BTreeMap::new(),
    };
    Ok(Known::new(format(config), written))
}

fn text(config: &Value, key: &str) -> Option<String> {
    Some(config.get(key)?.as_str()?.to_ascii_lowercase())
}

/// `quant_method` and what goes with it, as transformers writes them. A `gptq` or `awq` of another
/// packing (`marlin`, `gemv`, ...) has other shapes.
fn format(config: &Value) -> WeightFormat {
    let bits = |key| {
        let bits = config.get(key)?.as_u64()?;
        u32::try_from(bits)
            .ok()
            .filter(|bits| (1..=32).contains(bits))
    };
    let is = |key, known: &[&str]| text(config, key).is_none_or(|text| known.contains(&&*text));
    match text(config, "quant_method").as_deref() {
        Some("gptq") if is("checkpoint_format", &["gptq", "gptq_v2"]) => WeightFormat::Gptq {
            // With `dynamic`, GPTQModel gives modules bits of their own.
            bits: bits("bits").filter(|_| config.get("dynamic").is_none_or(Value::is_null)),
        },
        Some("awq") if is("version", &["gemm"]) => {
            let bits = bits("bits").or_else(|| bits("w_bit"));
            bits.map_or(WeightFormat::Plain, |bits| WeightFormat::Awq { bits })
        }
        Some("bitsandbytes") => WeightFormat::Int8,
        Some("compressed-tensors") if is("format", &["int-quantized"]) => WeightFormat::Int8,
        _ => WeightFormat::Plain,
    }
}

/// The shapes in all tensors whose names end with one of `suffixes`.
fn read<'f>(
    tensors: impl Iterator<Item = (&'f SourceFile, &'f FileTensor)>,
    suffixes: &[&str],
    shape: impl Fn(&FileTensor, &[u8]) -> Option<(usize, usize)>,
) -> Result<BTreeMap<Arc<str>, (usize, usize)>, Error> {
    let mut shapes = BTreeMap::new();
    let mut left = ALL_CAP;
    for (file, entry) in tensors {
        let name = entry.tensor.name();
        let module = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        let len = entry.tensor.byte_len();
        let (Some(module), Some(rest)) = (module, left.checked_sub(len)) else {
            continue;
        };
        if len > TENSOR_CAP {
            continue;
        }
        left = rest;
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, entry.at)?;
        if let Some(shape) = shape(entry, &bytes) {
            shapes.insert(module.into(), shape);
        }
    }
    Ok(shapes)
}

/// bitsandbytes: `{"quant_type": "nf4", "shape": [out, in], ...}`.
fn of_json(_: &FileTensor, bytes: &[u8]) -> Option<(usize, usize)> {
    #[derive(Deserialize)]
    struct State {
        shape: (usize, usize),
    }
    let State { shape } = serde_json::from_slice(bytes).ok()?;
    Some(shape)
}

/// compressed-tensors: two integers.
fn of_numbers(entry: &FileTensor, bytes: &[u8]) -> Option<(usize, usize)> {
    let number = |bytes: &[u8]| match entry.tensor.dtype().dtype()? {
        Dtype::I64 => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
        Dtype::I32 => Some(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        _ => None,
    };
    let size = |bytes: &[u8]| usize::try_from(number(bytes)?).ok();
    match bytes.len() {
        len @ (8 | 16) => Some((size(&bytes[..len / 2])?, size(&bytes[len / 2..])?)),
        _ => None,
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_the_configuration_or_not_at_all() {
        let of = |json: &str| format(&serde_json::from_str(json).unwrap());
        let gptq = |bits| WeightFormat::Gptq { bits };
        for (json, expected) in [
            ("null", WeightFormat::Plain),
            (r#"{"quant_method":7}"#, WeightFormat::Plain),
            (r#"{"quant_method":"fp8"}"#, WeightFormat::Plain),
            (r#"{"quant_method":"gptq","bits":4}"#, gptq(Some(4))),
            (
                r#"{"quant_method":"GPTQ","bits":3,"checkpoint_format":"gptq_v2"}"#,
                gptq(Some(3)),
            ),
            (r#"{"quant_method":"gptq","bits":"4"}"#, gptq(None)),
            (r#"{"quant_method":"gptq","bits":0}"#, gptq(None)),
            (
                r#"{"quant_method":"gptq","bits":4,"dynamic":{"a":{"bits":8}}}"#,
                gptq(None),
            ),
            (
                r#"{"quant_method":"gptq","bits":4,"checkpoint_format":"marlin"}"#,
                WeightFormat::Plain,
            ),
            (
                r#"{"quant_method":"awq","bits":4,"version":"GEMM"}"#,
                WeightFormat::Awq { bits: 4 },
            ),
            (
                r#"{"quant_method":"awq","w_bit":4}"#,
                WeightFormat::Awq { bits: 4 },
            ),
            (
                r#"{"quant_method":"awq","bits":4,"version":"gemv"}"#,
                WeightFormat::Plain,
            ),
            (r#"{"quant_method":"bitsandbytes"}"#, WeightFormat::Int8),
            (
                r#"{"quant_method":"compressed-tensors","format":"float-quantized"}"#,
                WeightFormat::Plain,
            ),
            (
                r#"{"quant_method":"compressed-tensors","format":"int-quantized"}"#,
                WeightFormat::Int8,
            ),
        ] {
            assert_eq!(of(json), expected, "{json}");
        }
    }
}
