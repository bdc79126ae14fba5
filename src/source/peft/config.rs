//! `adapter_config.json`: which options mean something here, and which are refused.
//!
//! What lives here: ranks and alphas; the list of every option that PEFT 0.11 to 0.20 writes and what
//! is done with it. What does not: the keys of patterns (`patterns`), tensors (`keys`, `peft`).
//!
//! The rule for options: implemented ones are used; ones that only describe training or origin are
//! ignored; every other one is refused by name unless its value means "off". That covers options
//! that do not exist yet.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::super::file::malformed;
use super::super::header::shown;
use super::super::json::{self, Document, InOrder, Refusal};
use super::super::scan::Scan;
use super::patterns::Patterns;
use crate::error::Error;
use crate::layout::ModuleScale;

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

/// An option's value, as far as it matters.
#[derive(Debug, Clone, PartialEq)]
enum Setting {
    Null,
    Flag(bool),
    Number(f64),
    Text(String),
    /// Is there something in it?
    List(bool),
    Table(bool),
}

impl Setting {
    /// `null`, `false`, nothing in it.
    fn is_off(&self) -> bool {
        match self {
            Setting::Null => true,
            Setting::Flag(flag) => !flag,
            Setting::List(filled) | Setting::Table(filled) => !filled,
            Setting::Text(text) => text.is_empty(),
            Setting::Number(_) => false,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Null => f.write_str("null"),
            Setting::Flag(flag) => flag.fmt(f),
            Setting::Number(number) => number.fmt(f),
            Setting::Text(text) => write!(f, "{:?}", shown(text)),
            Setting::List(filled) => f.write_str(if *filled { "[…]" } else { "[]" }),
            Setting::Table(filled) => f.write_str(if *filled { "{…}" } else { "{}" }),
        }
    }
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Setting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Setting, E> {
                Ok(Setting::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Setting, E> {
                Ok(Setting::Flag(flag))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Setting, E> {
                Ok(Setting::Number(number as f64))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Setting, E> {
                Ok(Setting::Number(number as f64))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Setting, E> {
                Ok(Setting::Number(number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Setting, E> {
                Ok(Setting::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Setting, A::Error> {
                let mut filled = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    filled = true;
                }
                Ok(Setting::List(filled))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Setting, A::Error> {
                let mut filled = false;
                while table.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    filled = true;
                }
                Ok(Setting::Table(filled))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// The resolved options.
#[derive(Debug)]
pub(super) struct Config {
    rank: u32,
    alpha: f64,
    ranks: Patterns<u32>,
    alphas: Patterns<f64>,
    rank_stabilised: bool,
}

/// The options that matter, as the file has them.
#[derive(Default)]
struct Used {
    peft_type: Option<Setting>,
    r: Option<Setting>,
    lora_alpha: Option<Setting>,
    use_rslora: Option<Setting>,
    rank_pattern: Option<InOrder<f64>>,
    alpha_pattern: Option<InOrder<f64>>,
    /// The first option that is not implemented and on, and what to do about it.
    refused: Option<(String, Setting, &'static str)>,
}

impl Config {
    pub(super) fn read(path: &Path, document: &impl Document) -> Result<Self, Error> {
        let (scan, refusal) = (Scan::config(), Refusal::default());
        let used = json::read(path, document, &scan, &refusal, PhantomData::<Used>)?;
        used.check_support(path)?;
        used.resolve().map_err(|reason| malformed(path, reason))
    }

    /// Rank and scale of one module: the first pattern that matches, else the default.
    pub(super) fn scale(&self, module: &str) -> ModuleScale {
        let rank = self.ranks.pick(module).unwrap_or(self.rank);
        let alpha = self.alphas.pick(module).unwrap_or(self.alpha);
        ModuleScale::new(rank, alpha, self.rank_stabilised)
    }

    /// Is it too much to resolve so many modules?
    ///
    /// # Errors
    /// A reason, with both sides.
    pub(super) fn check_work(&self, modules: usize) -> Result<(), String> {
        let of = |option, work: Result<(), String>| work.map_err(|r| format!("{option}: {r}"));
        of("rank_pattern", self.ranks.check_work(modules))?;
        of("alpha_pattern", self.alphas.check_work(modules))
    }
}

impl Used {
    /// Is it an adapter of the kind that is implemented, with nothing that is not?
    fn check_support(&self, path: &Path) -> Result<(), Error> {
        let refuse = |option: &str, value: &Setting, advice| {
            Err(Error::Unsupported {
                file: path.to_owned(),
                option: shown(option),
                value: value.to_string(),
                advice,
            })
        };
        // Asked first: another kind has other options.
        match &self.peft_type {
            Some(Setting::Text(kind)) if kind == "LORA" => {}
            Some(other) => {
                return refuse("peft_type", other, "Only LORA adapters are implemented.");
            }
            None => {
                let reason = "has no peft_type; is it an adapter's configuration?";
                return Err(malformed(path, reason));
            }
        }
        match &self.refused {
            Some((option, value, advice)) => refuse(option, value, advice),
            None => Ok(()),
        }
    }

    fn resolve(self) -> Result<Config, String> {
        let number = |name: &str, setting: Option<Setting>| match setting {
            Some(Setting::Number(number)) => Ok(number),
            other => {
                let found = other.unwrap_or(Setting::Null);
                Err(format!("{name} must be a number, it is {found}"))
            }
        };
        let rank_stabilised = match self.use_rslora {
            None | Some(Setting::Null) => false,
            Some(Setting::Flag(flag)) => flag,
            Some(other) => return Err(format!("use_rslora must be a flag, it is {other}")),
        };
        let in_option = |option: &str, reason: String| format!("{option}: {reason}");
        let rank = number("r", self.r)?;
        Ok(Config {
            rank: rank_of(rank).map_err(|reason| in_option("r", reason))?,
            alpha: number("lora_alpha", self.lora_alpha)?,
            ranks: Patterns::new(self.rank_pattern, rank_of)
                .map_err(|reason| in_option("rank_pattern", reason))?,
            alphas: Patterns::new(self.alpha_pattern, Ok)
                .map_err(|reason| in_option("alpha_pattern", reason))?,
            rank_stabilised,
        })
    }
}

fn rank_of(rank: f64) -> Result<u32, String> {
    if rank >= 1.0 && rank <= f64::from(u32::MAX) && rank.fract() == 0.0 {
        Ok(rank as u32)
    } else {
        Err(format!("a rank is a whole number from 1, not {rank}"))
    }
}

impl<'de> Deserialize<'de> for Used {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Options;

        impl<'de> Visitor<'de> for Options {
            type Value = Used;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of options")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Used, A::Error> {
                let (mut used, mut seen) = (Used::default(), HashSet::new());
                while let Some(option) = map.next_key::<String>()? {
                    let about =
                        |error: A::Error| A::Error::custom(format_args!("{option:?}: {error}"));
                    if seen.contains(&option) {
                        return Err(about(A::Error::custom("is there twice")));
                    }
                    match &*option {
                        "rank_pattern" => used.rank_pattern = map.next_value().map_err(about)?,
                        "alpha_pattern" => used.alpha_pattern = map.next_value().map_err(about)?,
                        _ => used.set(&option, map.next_value().map_err(about)?),
                    }
                    seen.insert(option);
                }
                Ok(used)
            }
        }

        deserializer.deserialize_map(Options)
    }
}

impl Used {
    /// Each option is used, ignored, or found to be refused.
    fn set(&mut self, option: &str, value: Setting) {
        match option {
            "peft_type" => self.peft_type = Some(value),
            "r" => self.r = Some(value),
            "lora_alpha" => self.lora_alpha = Some(value),
            "use_rslora" => self.use_rslora = Some(value),
            _ => {
                if self.refused.is_none()
                    && let Some(advice) = refused(option, &value)
                {
                    self.refused = Some((option.to_owned(), value, advice));
                }
            }
        }
    }
}

/// What to do about an option that is not implemented and on.
fn refused(option: &str, value: &Setting) -> Option<&'static str> {
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
    use super::*;

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
