//! `adapter_config.json`, in one pass.
//!
//! What lives here: the options that are used, resolved to rank and scale per module. What does not:
//! which others are refused (`support`), the keys of patterns (`patterns`), tensors (`keys`, `peft`).

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::super::file::malformed;
use super::super::guard::Refusal;
use super::super::header::shown;
use super::super::json::{self, Document};
use super::super::scan::Scan;
use super::patterns::{Patterns, Table};
use super::setting::Setting;
use super::support::refused;
use crate::error::Error;
use crate::layout::ModuleScale;

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
    rank_pattern: Option<Table>,
    alpha_pattern: Option<Table>,
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

    /// Is it too much to resolve so many modules, whose names have so many bytes together?
    ///
    /// # Errors
    /// A reason, with both sides.
    pub(super) fn check_work(&self, modules: usize, bytes: usize) -> Result<(), String> {
        let of = |option, work: Result<(), String>| work.map_err(|r| format!("{option}: {r}"));
        of("rank_pattern", self.ranks.check_work(modules, bytes))?;
        of("alpha_pattern", self.alphas.check_work(modules, bytes))
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
            ranks: Patterns::new(self.rank_pattern.unwrap_or_default(), rank_of)
                .map_err(|reason| in_option("rank_pattern", reason))?,
            alphas: Patterns::new(self.alpha_pattern.unwrap_or_default(), Ok)
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
