//! The oracle: what each version of the weights must answer to each prompt, and the judge.
//!
//! What lives here: answers known beforehand (from `expected.json`, or computed by this very worker
//! alone before the start), and the comparison. What does not: computing answers (`worker`).

use std::path::Path;

use serde_json::Value;
use weighbridge::Identity;

use crate::worker::Answer;

/// Largest difference of a logit that is still the same answer.
pub const TOLERANCE: f32 = 1e-4;

/// A prompt.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// For people; empty if only ids are known.
    pub text: String,
    /// What the model is given.
    pub ids: Vec<u32>,
}

/// What one version of the weights answers to one prompt.
#[derive(Debug, Clone)]
struct Case {
    version: usize,
    prompt: usize,
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// A version of the weights that requests may be served with.
#[derive(Debug, Clone)]
pub struct Version {
    /// Its name: the adapter's directory, or "base".
    pub name: String,
    /// What a lease of it reports; `None` for the base alone.
    pub identity: Option<Identity>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Oracle {
    pub versions: Vec<Version>,
    cases: Vec<Case>,
}

/// The judge's verdict on one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the answer of exactly the version that the lease reported.
    Match,
    /// It is the answer of another version, of several, or of none.
    Mixed {
        /// What the lease reported.
        leased: String,
        /// Whose answer it is.
        answers_of: Vec<String>,
    },
}

impl Oracle {
    /// Adds a version.
    pub fn version(&mut self, name: &str, identity: Option<Identity>) -> usize {
        self.versions.push(Version {
            name: name.to_owned(),
            identity,
        });
        self.versions.len() - 1
    }

    /// Adds what a version answers.
    pub fn case(&mut self, version: usize, prompt: usize, ids: Vec<u32>, logits: Vec<f32>) {
        self.cases.push(Case {
            version,
            prompt,
            ids,
            logits,
        });
    }

    /// Compares an answer with those of all versions.
    pub fn judge(&self, prompt: usize, answer: &Answer) -> Verdict {
        let same = |case: &&Case| {
            case.prompt == prompt
                && case.ids == answer.ids
                && case.logits.len() == answer.logits.len()
                && case
                    .logits
                    .iter()
                    .zip(&answer.logits)
                    .all(|(a, b)| (a - b).abs() <= TOLERANCE)
        };
        let answers_of: Vec<usize> = self
            .cases
            .iter()
            .filter(same)
            .map(|case| case.version)
            .collect();
        let leased = self
            .versions
            .iter()
            .position(|v| v.identity == answer.adapter);
        if leased.is_some_and(|leased| answers_of == [leased]) {
            return Verdict::Match;
        }
        let name = |at: usize| self.versions[at].name.clone();
        Verdict::Mixed {
            leased: leased.map_or_else(|| "an unknown version".to_owned(), name),
            answers_of: answers_of.into_iter().map(name).collect(),
        }
    }
}

/// A known answer: prompt, ids, first-token logits.
pub type Foreseen = (usize, Vec<u32>, Vec<f32>);

/// The parts of `expected.json` that are used here.
pub struct Expected {
    pub prompts: Vec<Prompt>,
    pub max_new: usize,
    json: Value,
}

impl Expected {
    /// The file beside a model, if there is one in the fixtures' format.
    pub fn beside(model: &Path) -> Option<Self> {
        let beside = [Some(model), model.parent()];
        let path = beside
            .into_iter()
            .flatten()
            .map(|dir| dir.join("expected.json"));
        let text = path.filter_map(|path| std::fs::read(path).ok()).next()?;
        let json: Value = serde_json::from_slice(&text).ok()?;
        let ids = |value: &Value| -> Option<Vec<u32>> {
            value
                .as_array()?
                .iter()
                .map(|id| Some(id.as_u64()? as u32))
                .collect()
        };
        let prompts = json["prompts"].as_array()?.iter();
        let prompts = prompts.map(|prompt| {
            Some(Prompt {
                text: prompt["text"].as_str()?.to_owned(),
                ids: ids(&prompt["ids"])?,
            })
        });
        let prompts: Vec<Prompt> = prompts.collect::<Option<_>>()?;
        json["cases"].as_array()?.first()?["logits"].as_array()?;
        let max_new = json["max_new_tokens"].as_u64()? as usize;
        Some(Expected {
            prompts,
            max_new,
            json,
        })
    }

    /// What `version` (a directory name; `None` for the base) answers: per prompt, ids and logits.
    pub fn cases(&self, version: Option<&str>) -> Option<Vec<Foreseen>> {
        let of_version = |case: &&Value| case["adapter"].as_str() == version;
        let mut found = Vec::new();
        for case in self.json["cases"].as_array()?.iter().filter(of_version) {
            let text = case["prompt"].as_str()?;
            let prompt = self.prompts.iter().position(|prompt| prompt.text == text)?;
            let ids = case["completion_ids"].as_array()?.iter();
            let ids: Option<Vec<u32>> = ids.map(|id| Some(id.as_u64()? as u32)).collect();
            let logits = case["logits"].as_array()?.iter();
            let logits: Option<Vec<f32>> = logits.map(|l| Some(l.as_f64()? as f32)).collect();
            found.push((prompt, ids?, logits?));
        }
        (!found.is_empty()).then_some(found)
    }
}
