//! Configurations of adapters as they are found, and as nobody should write them.

use std::path::Path;

use super::config::Config;

fn parse(json: &str) -> Result<Config, String> {
    Config::read(Path::new("adapter_config.json"), &json.as_bytes())
        .map_err(|error| error.to_string())
}

fn with(option: &str) -> String {
    format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16,{option}}}"#)
}

#[test]
fn patterns_match_whole_names_and_tails_at_a_dot() {
    let config = parse(&with(
        r#""rank_pattern":{"q_proj":2,"layers.3.mlp.down_proj":4},
           "alpha_pattern":{"^model.layers.1.v_proj":6,"layers\\.[02]\\.o_proj":9}"#,
    ))
    .unwrap();
    let rank = |module| config.scale(module).rank;
    assert_eq!(rank("model.layers.0.self_attn.q_proj"), 2);
    assert_eq!(rank("q_proj"), 2);
    assert_eq!(rank("model.layers.0.self_attn.xq_proj"), 8, "not at a dot");
    assert_eq!(rank("model.layers.3.mlp.down_proj"), 4);
    assert_eq!(rank("model.layers.13.mlp.down_proj"), 8, "13 is not 3");
    let alpha = |module| config.scale(module).alpha;
    assert_eq!(alpha("model.layers.2.o_proj"), 9.0);
    assert_eq!(alpha("model.layers.1.o_proj"), 16.0);
}

#[test]
fn the_two_scaling_rules() {
    assert_eq!(
        parse(&with(r#""use_rslora":false"#))
            .unwrap()
            .scale("m")
            .scaling,
        2.0
    );
    let stabilised = parse(&with(r#""use_rslora":true"#))
        .unwrap()
        .scale("m")
        .scaling;
    assert_eq!(stabilised, 16.0 / 8f64.sqrt());
}

#[test]
fn what_is_no_configuration_is_refused_with_the_reason() {
    for (json, words) in [
        // Another kind has other options; its kind is what is wrong.
        (
            r#"{"feedforward_modules":["x"],"peft_type":"IA3","r":1,"lora_alpha":1}"#.to_owned(),
            &["peft_type", "IA3", "Only LORA"][..],
        ),
        (
            r#"{"architectures":["LlamaForCausalLM"]}"#.to_owned(),
            &["no peft_type"],
        ),
        (r#"{"peft_type":null}"#.to_owned(), &["peft_type = null"]),
        (with(r#""r":9"#), &["\"r\"", "twice"]),
        (
            r#"{"peft_type":"LORA","r":0,"lora_alpha":1}"#.to_owned(),
            &["r: ", "rank", "not 0"],
        ),
        (
            r#"{"peft_type":"LORA","r":1.5,"lora_alpha":1}"#.to_owned(),
            &["rank", "1.5"],
        ),
        (
            r#"{"peft_type":"LORA","r":-4,"lora_alpha":1}"#.to_owned(),
            &["rank", "-4"],
        ),
        (
            r#"{"peft_type":"LORA","r":1e99,"lora_alpha":1}"#.to_owned(),
            &["rank"],
        ),
        (
            r#"{"peft_type":"LORA","r":1e999,"lora_alpha":1}"#.to_owned(),
            &["\"r\"", "range"],
        ),
        (
            r#"{"peft_type":"LORA","r":"8","lora_alpha":1}"#.to_owned(),
            &["r must be", "\"8\""],
        ),
        (
            r#"{"peft_type":"LORA","r":4}"#.to_owned(),
            &["lora_alpha", "null"],
        ),
        (with(r#""use_rslora":"yes""#), &["use_rslora", "\"yes\""]),
        (
            with(r#""rank_pattern":{"q":0}"#),
            &["rank_pattern", "\"q\"", "not 0"],
        ),
        (
            with(r#""rank_pattern":{"q":1,"q":2}"#),
            &["rank_pattern", "\"q\"", "twice"],
        ),
        (
            with(r#""rank_pattern":["q"]"#),
            &["rank_pattern", "an object"],
        ),
        (
            with(r#""alpha_pattern":{"(":1}"#),
            &["alpha_pattern", "\"(\""],
        ),
        ("[]".to_owned(), &["configuration", "object"]),
        (String::new(), &["ends before"]),
    ] {
        let refused = parse(&json).expect_err(&json);
        for word in words {
            assert!(refused.contains(word), "{word:?} is missing in: {refused}");
        }
    }
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
