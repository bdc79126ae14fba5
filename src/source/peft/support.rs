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

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::path::Path;

    use super::super::config::Config;

    fn parse(json: &str) -> Result<Config, String> {
        Config::read(Path::new("adapter_config.json"), &json.as_bytes())
            .map_err(|error| error.to_string())
    }

    fn with(option: &str) -> String {
        format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16,{option}}}"#)
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name_and_only_when_it_is_on() {
        for option in [
            "use_dora",
            "lora_bias",
            "fan_in_fan_out",
            "use_qalora",
            "use_bdlora",
            "ensure_weight_tying",
            "an_option_of_the_future",
        ] {
            assert!(
                parse(&with(&format!(r#""{option}":false"#))).is_ok(),
                "{option} off"
            );
            let refused = parse(&with(&format!(r#""{option}":true"#))).unwrap_err();
            assert!(refused.contains(option), "{refused}");
        }
        for option in [
            "layer_replication",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
            "an_option_of_the_future",
        ] {
            for off in ["null", "[]", "{}", "\"\""] {
                let off = with(&format!(r#""{option}":{off}"#));
                assert!(parse(&off).is_ok(), "{off}");
            }
            for (on, shown) in [
                ("[[0,4]]", "[…]"),
                (r#"{"a":[1]}"#, "{…}"),
                (r#""x""#, r#""x""#),
                ("16", "16"),
                ("-0.5", "-0.5"),
            ] {
                let refused = parse(&with(&format!(r#""{option}":{on}"#))).unwrap_err();
                let expected = format!("{option} = {shown} is not supported");
                assert!(refused.contains(&expected), "{refused}");
            }
        }
        for (option, values) in [
            ("bias", &[r#""all""#, r#""lora_only""#, "true"][..]),
            (
                "init_lora_weights",
                &[
                    r#""pissa""#,
                    r#""pissa_niter_4""#,
                    r#""olora""#,
                    r#""corda""#,
                    r#""loftq""#,
                ],
            ),
        ] {
            for value in values {
                let refused = parse(&with(&format!(r#""{option}":{value}"#))).unwrap_err();
                assert!(
                    refused.contains(option) && refused.contains(value),
                    "{refused}"
                );
            }
        }
    }

    /// What only says how it was trained, in every form that PEFT writes.
    #[test]
    fn what_changes_nothing_is_accepted() {
        for option in [
            r#""target_modules":["q_proj","v_proj"]"#,
            r#""target_modules":"all-linear""#,
            r#""target_modules":".*\\.(q|v)_proj$""#,
            r#""target_modules":null"#,
            r#""exclude_modules":["lm_head"]"#,
            // A duplicate, and one that the model does not have.
            r#""modules_to_save":["pre_classifier","classifier","classifier","score"]"#,
            r#""modules_to_save":null"#,
            r#""layers_to_transform":[0,1]"#,
            r#""layers_to_transform":3"#,
            r#""layers_pattern":"layers""#,
            r#""bias":"none""#,
            r#""bias":null"#,
            r#""init_lora_weights":true"#,
            r#""init_lora_weights":"gaussian""#,
            r#""init_lora_weights":"eva""#,
            r#""rank_pattern":{}"#,
            r#""rank_pattern":null"#,
            r#""use_rslora":null"#,
            r#""lora_dropout":0.1"#,
            r#""qalora_group_size":16"#,
            r#""peft_version":"0.20.0""#,
            r#""auto_mapping":{"base_model_class":"X"}"#,
            r#""runtime_config":{"ephemeral_gpu_offload":false}"#,
            r#""loftq_config":{}"#,
            r#""megatron_core":"megatron.core""#,
        ] {
            if let Err(refused) = parse(&with(option)) {
                panic!("{option}: {refused}");
            }
        }
        // As PEFT 0.3 wrote it.
        let old = r#"{"base_model_name_or_path":"gpt2","bias":"none","enable_lora":null,
            "fan_in_fan_out":false,"inference_mode":true,"init_lora_weights":true,"lora_alpha":32,
            "lora_dropout":0.05,"merge_weights":false,"modules_to_save":null,"peft_type":"LORA",
            "r":16,"target_modules":["c_attn"],"task_type":"CAUSAL_LM"}"#;
        assert_eq!(parse(old).unwrap().scale("m").scaling, 2.0);
    }
}
