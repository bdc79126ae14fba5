//! The names of tensors in `adapter_model.safetensors`.
//!
//! What lives here: from a key to the base module and the part the tensor plays. The grammar (PEFT
//! 0.11 to 0.20): `base_model.model.<module>.lora_A.weight`, `...lora_B.weight`, and, for modules
//! that were saved whole, `base_model.model.<module>.weight` or `.bias`; if LoRA was put on such a module,
//! too, `base_model.model.<module>.base_layer.weight` or `.bias`.

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

/// What a name must not contain, and why.
const REFUSED: &[(&str, &str)] = &[
    (".lora_embedding_", "LoRA on embeddings is not implemented."),
    (".lora_magnitude_vector", "DoRA is not implemented."),
    (
        ".lora_",
        "Only lora_A.weight and lora_B.weight are implemented.",
    ),
    (
        ".trainable_tokens_",
        "Trained single tokens are not implemented.",
    ),
    // PEFT takes these out of the names when it saves, except for the weight and bias that are right
    // inside a `base_layer`.
    (".modules_to_save.", ADVICE_WRAPPER),
    (".original_module.", ADVICE_WRAPPER),
    (".base_layer.", ADVICE_WRAPPER),
];

const ADVICE_WRAPPER: &str =
    "It is named inside a wrapper of PEFT's; save the adapter with save_pretrained.";

/// The module and the role of `key`.
pub(super) fn parse<'k>(file: &Path, key: &'k str) -> Result<(&'k str, Role), Error> {
    let unsupported = |option: &str, advice| Error::Unsupported {
        file: file.to_owned(),
        option: option.to_owned(),
        value: format!("{key:?}"),
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
        // The whole embedding or head that LoRA was put on.
        (".base_layer.weight", Role::Replacement),
        (".base_layer.bias", Role::Replacement),
        (".weight", Role::Replacement),
        (".bias", Role::Replacement),
    ] {
        let Some(module) = rest.strip_suffix(suffix) else {
            continue;
        };
        // A module named `x.lora_A`, say, is none.
        let wrapped = format!(".{module}.");
        let refused = REFUSED.iter().find(|(part, _)| wrapped.contains(part));
        return match refused {
            Some((_, advice)) => Err(unsupported("tensor", advice)),
            None if module.is_empty() || module.starts_with('.') || module.ends_with('.') => {
                Err(unsupported("tensor", "It names no module."))
            }
            None => Ok((module, role)),
        };
    }
    let refused = REFUSED.iter().find(|(part, _)| rest.contains(part));
    let advice = refused.map_or(
        "Only LoRA matrices and saved weights are implemented.",
        |(_, advice)| advice,
    );
    Err(unsupported("tensor", advice))
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn keys_of_real_adapters_are_understood_or_refused_by_name() {
        const Q: &str = "model.layers.0.self_attn.q_proj";
        for (key, expected) in [
            (
                "model.layers.0.self_attn.q_proj.lora_A.weight",
                Ok((Q, Role::A)),
            ),
            (
                "model.layers.0.self_attn.q_proj.lora_B.weight",
                Ok((Q, Role::B)),
            ),
            ("m.lora_A.default.weight", Ok(("m", Role::A))),
            ("m.lora_B.default.weight", Ok(("m", Role::B))),
            // GPT-2, DistilBERT.
            (
                "transformer.h.0.attn.c_attn.lora_A.weight",
                Ok(("transformer.h.0.attn.c_attn", Role::A)),
            ),
            // Saved whole.
            ("score.weight", Ok(("score", Role::Replacement))),
            (
                "pre_classifier.bias",
                Ok(("pre_classifier", Role::Replacement)),
            ),
            (
                "model.embed_tokens.weight",
                Ok(("model.embed_tokens", Role::Replacement)),
            ),
            (
                "lm_head.base_layer.weight",
                Ok(("lm_head", Role::Replacement)),
            ),
            (
                "m.embed.base_layer.bias",
                Ok(("m.embed", Role::Replacement)),
            ),
            // Refused, with the word that says why.
            ("m.lora_magnitude_vector", Err("DoRA")),
            ("m.lora_magnitude_vector.weight", Err("DoRA")),
            ("m.lora_magnitude_vector.default.weight", Err("DoRA")),
            ("m.lora_embedding_A", Err("embeddings")),
            ("m.lora_embedding_B.default", Err("embeddings")),
            ("m.lora_A.bias", Err("lora_A.weight")),
            ("m.lora_B.bias", Err("lora_A.weight")),
            ("m.lora_A.other.weight", Err("lora_A.weight")),
            ("m.lora_C.weight", Err("lora_A.weight")),
            ("m.lora_A", Err("lora_A.weight")),
            ("m.trainable_tokens_delta", Err("tokens")),
            ("m.token_adapter.trainable_tokens_delta", Err("tokens")),
            ("lm_head.modules_to_save.weight", Err("wrapper")),
            ("lm_head.modules_to_save.default.weight", Err("wrapper")),
            ("lm_head.original_module.weight", Err("wrapper")),
            ("m.base_layer.base_layer.weight", Err("wrapper")),
            ("m.base_layer.n.weight", Err("wrapper")),
            ("m.base_layer.default.weight", Err("wrapper")),
            ("m.modules_to_save.base_layer.weight", Err("wrapper")),
            ("m.base_layer.running_mean", Err("wrapper")),
            ("base_layer.weight", Err("wrapper")),
            (".base_layer.weight", Err("no module")),
            ("m.base_layer.lora_A.weight", Err("wrapper")),
            ("m.running_mean", Err("saved weights")),
            ("weight", Err("saved weights")),
            (".weight", Err("no module")),
            ("lora_A.weight", Err("lora_A.weight")),
            (".lora_A.weight", Err("no module")),
            ("a..lora_A.weight", Err("no module")),
            ("", Err("saved weights")),
        ] {
            let key = format!("{ADAPTER_PREFIX}{key}");
            match (parse(Path::new("f"), &key), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{key}"),
                (Err(refused), Err(word)) => {
                    assert!(refused.is_unsupported());
                    let text = refused.to_string();
                    assert!(text.contains(word) && text.contains(&key), "{text}");
                }
                (found, _) => panic!("{key}: {found:?}"),
            }
        }
        for key in [
            "model.m.lora_A.weight",
            "base_model.m.lora_A.weight",
            "lora_A",
            "",
        ] {
            let refused = parse(Path::new("f"), key).unwrap_err().to_string();
            assert!(refused.contains(ADAPTER_PREFIX), "{refused}");
        }
    }
}
