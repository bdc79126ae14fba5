//! `adapter_config.json`: which options mean something here, and which are refused.
//!
//! What lives here: ranks, alphas and their patterns; the list of every option that PEFT 0.11 to
//! 0.20 writes and what is done with it. What does not: tensors (`keys`, `peft`).
//!
//! The rule for options: implemented ones are used; ones that only describe training or origin are
//! ignored; every other one is refused by name unless its value means "off". That covers options
//! that do not exist yet.

use std::collections::BTreeMap;
use std::path::Path;

use regex_lite::Regex;
use serde_json::Value;

use super::super::file::malformed;
use super::super::json::{Distinct, InOrder};
use crate::error::Error;
use crate::layout::ModuleScale;

/// Options that change nothing about the numbers once the tensors are saved.
const INFORMATIVE: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Options that are read.
const USED: &[&str] = &[
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
];

/// The resolved options.
#[derive(Debug)]
pub(super) struct Config {
    rank: u32,
    alpha: f64,
    ranks: Vec<(Regex, u32)>,
    alphas: Vec<(Regex, f64)>,
    rank_stabilised: bool,
}

impl Config {
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let Distinct(options) = serde_json::from_slice::<Distinct<Value>>(bytes)
            .map_err(|error| malformed(path, error.to_string()))?;
        refuse_unknown(path, &options)?;
        let number = |name: &str| -> Result<f64, Error> {
            match options.get(name).and_then(Value::as_f64) {
                Some(number) if number.is_finite() => Ok(number),
                _ => {
                    let found = options.get(name).unwrap_or(&Value::Null);
                    Err(malformed(
                        path,
                        format!("{name} must be a number, it is {found}"),
                    ))
                }
            }
        };
        let rank = rank_of(path, "r", number("r")?)?;
        let tables: Patterns =
            serde_json::from_slice(bytes).map_err(|error| malformed(path, error.to_string()))?;
        let ranks = compile(path, "rank_pattern", tables.rank_pattern)?
            .into_iter()
            .map(|(regex, rank)| Ok((regex, rank_of(path, "rank_pattern", rank)?)))
            .collect::<Result<_, Error>>()?;
        let rank_stabilised = match options.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                return Err(malformed(
                    path,
                    format!("use_rslora must be a flag, it is {other}"),
                ));
            }
        };
        Ok(Config {
            rank,
            alpha: number("lora_alpha")?,
            ranks,
            alphas: compile(path, "alpha_pattern", tables.alpha_pattern)?,
            rank_stabilised,
        })
    }

    /// Rank and scale of one module: the first pattern that matches, else the default.
    pub(super) fn scale(&self, module: &str) -> ModuleScale {
        fn pick<T: Copy>(patterns: &[(Regex, T)], module: &str, default: T) -> T {
            let hit = patterns.iter().find(|(regex, _)| regex.is_match(module));
            hit.map_or(default, |&(_, value)| value)
        }
        let rank = pick(&self.ranks, module, self.rank);
        let alpha = pick(&self.alphas, module, self.alpha);
        ModuleScale::new(rank, alpha, self.rank_stabilised)
    }
}

fn rank_of(path: &Path, option: &str, rank: f64) -> Result<u32, Error> {
    if rank >= 1.0 && rank <= f64::from(u32::MAX) && rank.fract() == 0.0 {
        Ok(rank as u32)
    } else {
        Err(malformed(
            path,
            format!("{option}: a rank is a whole number from 1, not {rank}"),
        ))
    }
}

/// The two pattern tables, read once more by themselves, because order matters in them.
#[derive(serde::Deserialize)]
struct Patterns {
    rank_pattern: Option<InOrder<f64>>,
    alpha_pattern: Option<InOrder<f64>>,
}

/// A `rank_pattern` or `alpha_pattern` in the file's order: PEFT takes the first key that matches.
///
/// A key matches a module if it matches its whole name or the part after some dot, as in PEFT:
/// `re.match(rf"(.*\.)?({key})$", module)`.
fn compile(
    path: &Path,
    option: &str,
    table: Option<InOrder<f64>>,
) -> Result<Vec<(Regex, f64)>, Error> {
    let entries = table.map_or_else(Vec::new, |InOrder(entries)| entries);
    let compile = |(key, value): (String, f64)| {
        let regex = Regex::new(&format!(r"^(.*\.)?({key})$"))
            .map_err(|error| malformed(path, format!("{option}[{key:?}]: {error}")))?;
        Ok((regex, value))
    };
    entries.into_iter().map(compile).collect()
}

fn refuse_unknown(path: &Path, options: &BTreeMap<String, Value>) -> Result<(), Error> {
    let refuse = |option: &str, value: &Value, advice| {
        Err(Error::Unsupported {
            file: path.to_owned(),
            option: option.to_owned(),
            value: value.to_string(),
            advice,
        })
    };
    match options.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(other) => return refuse("peft_type", other, "Only LORA adapters are implemented."),
        None => {
            return Err(malformed(
                path,
                "has no peft_type; is it an adapter's configuration?",
            ));
        }
    }
    match options.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "none" => {}
        Some(other) => return refuse("bias", other, "Trained biases are not implemented."),
    }
    // These start from a changed base ("pissa", "olora", "corda", "loftq", ...): on the plain base
    // their A and B mean something else.
    match options.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(kind)) if ["gaussian", "eva", "orthogonal"].contains(&kind.as_str()) => {
        }
        Some(other) => {
            let advice = "It changes the base; save the adapter converted to plain LoRA.";
            return refuse("init_lora_weights", other, advice);
        }
    }
    for (option, value) in options {
        if USED.contains(&option.as_str()) || INFORMATIVE.contains(&option.as_str()) {
            continue;
        }
        if !is_off(value) {
            let advice = "It is not implemented, and ignoring it would give wrong results.";
            return refuse(option, value, advice);
        }
    }
    Ok(())
}

/// `null`, `false`, nothing in it.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Config, String> {
        Config::parse(Path::new("adapter_config.json"), json.as_bytes())
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
            r#""layer_replication":[[0,4]]"#,
            r#""target_parameters":["x"]"#,
            r#""trainable_token_indices":[1]"#,
            r#""alora_invocation_tokens":[1]"#,
            r#""bias":"all""#,
            r#""init_lora_weights":"pissa""#,
        ] {
            let name = option.split('"').nth(1).unwrap();
            assert!(parse(&with(option)).unwrap_err().contains(name), "{option}");
        }
        assert!(
            parse(r#"{"peft_type":"IA3","r":1,"lora_alpha":1}"#)
                .unwrap_err()
                .contains("IA3")
        );
        assert!(parse(&with(r#""r":9"#)).unwrap_err().contains("twice"));
        assert!(
            parse(r#"{"peft_type":"LORA","r":0,"lora_alpha":1}"#)
                .unwrap_err()
                .contains("rank")
        );
        assert!(
            parse(r#"{"peft_type":"LORA","r":4}"#)
                .unwrap_err()
                .contains("lora_alpha")
        );
    }
}
