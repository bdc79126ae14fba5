//! Which options of an adapter are used, ignored or refused.
//!
//! What lives here: the list of every option that PEFT 0.11 to 0.20 writes and what is done with it.
//! What does not: the ones that are used (`config`).
//!
//! The rule: implemented ones are used; ones that only describe training or origin are ignored; every
//! other one is refused by name unless its value means "off". That covers options that do not exist
//! yet.

use super::setting::Setting;

/// Options that change nothing about the numbers once the tensors are saved.
const INFORMATIVE: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// What to do about an option that is not implemented and on.
pub(super) fn refused(option: &str, value: &Setting) -> Option<&'static str> {
    let text = match value {
        Setting::Text(text) => Some(&**text),
        _ => None,
    };
    let (fine, advice) = match option {
        "bias" => (
            *value == Setting::Null || text == Some("none"),
            "Trained biases are not implemented.",
        ),
        // The others start from a changed base ("pissa", "olora", "corda", "loftq", ...): on the plain
        // base their A and B mean something else.
        "init_lora_weights" => (
            matches!(value, Setting::Null | Setting::Flag(_))
                || text.is_some_and(|kind| ["gaussian", "eva", "orthogonal"].contains(&kind)),
            "It changes the base; save the adapter converted to plain LoRA.",
        ),
        _ => (
            INFORMATIVE.contains(&option) || value.is_off(),
            "It is not implemented, and ignoring it would give wrong results.",
        ),
    };
    (!fine).then_some(advice)
}
