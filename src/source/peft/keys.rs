//! The names of tensors in `adapter_model.safetensors`.
//!
//! What lives here: from a key to the base module and the part the tensor plays. The grammar (PEFT
//! 0.11 to 0.20): `base_model.model.<module>.lora_A.weight`, `...lora_B.weight`, and, for modules
//! that were saved whole, `base_model.model.<module>.weight` or `.bias`.

use std::path::Path;

use crate::error::Error;
use crate::tensor::ADAPTER_PREFIX;

/// What part a tensor plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    A,
    B,
    Replacement,
}

/// The module and the role of `key`.
pub(super) fn parse<'k>(file: &Path, key: &'k str) -> Result<(&'k str, Role), Error> {
    let unsupported = |option: &str, advice| Error::Unsupported {
        file: file.to_owned(),
        option: option.to_owned(),
        value: key.to_owned(),
        advice,
    };
    let Some(rest) = key.strip_prefix(ADAPTER_PREFIX) else {
        return Err(unsupported(
            "tensor name",
            "Names are expected to begin with base_model.model., as PEFT saves them.",
        ));
    };
    for (suffix, role) in [
        (".lora_A.weight", Role::A),
        (".lora_B.weight", Role::B),
        // Saved with an adapter name, by tools that do not strip it.
        (".lora_A.default.weight", Role::A),
        (".lora_B.default.weight", Role::B),
    ] {
        if let Some(module) = rest.strip_suffix(suffix) {
            return Ok((module, role));
        }
    }
    for (part, advice) in [
        (".lora_embedding_", "LoRA on embeddings is not implemented."),
        (".lora_magnitude_vector", "DoRA is not implemented."),
        (
            ".lora_A.",
            "Only lora_A.weight and lora_B.weight are implemented.",
        ),
        (
            ".lora_B.",
            "Only lora_A.weight and lora_B.weight are implemented.",
        ),
        (
            ".lora_",
            "Only lora_A.weight and lora_B.weight are implemented.",
        ),
    ] {
        if rest.contains(part) {
            return Err(unsupported("tensor", advice));
        }
    }
    match rest.rsplit_once('.') {
        Some((module, "weight" | "bias")) => Ok((module, Role::Replacement)),
        _ => Err(unsupported(
            "tensor",
            "Only LoRA matrices and saved weights are implemented.",
        )),
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn keys_of_real_adapters_are_understood_or_refused_by_name() {
        let of = |key| parse(Path::new("f"), key).map_err(|error| error.to_string());
        assert_eq!(
            of("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
            Ok(("model.layers.0.self_attn.q_proj", Role::A))
        );
        assert_eq!(
            of("base_model.model.m.lora_B.default.weight"),
            Ok(("m", Role::B))
        );
        assert_eq!(
            of("base_model.model.score.weight"),
            Ok(("score", Role::Replacement))
        );
        for (key, word) in [
            ("base_model.model.m.lora_magnitude_vector", "DoRA"),
            ("base_model.model.m.lora_embedding_A", "embeddings"),
            ("base_model.model.m.lora_A.bias", "lora_A.weight"),
            ("model.m.lora_A.weight", "base_model.model."),
        ] {
            let refused = of(key).unwrap_err();
            assert!(refused.contains(word) && refused.contains(key), "{refused}");
        }
    }
}
