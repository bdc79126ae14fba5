//! The fixtures, what transformers and PEFT compute from them, and greedy decoding.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use weighbridge::source::{Checkpoint, PeftAdapter};
use weighbridge::{SetHandle, WeightRegistry};
use weighbridge_candle::RegistryBackend;
use weighbridge_candle::llama::{Config, Llama, Sequence, Turn};

pub const ADAPTERS: [&str; 5] = ["pirate-v1", "pirate-v2", "robot", "shout", "ranked"];

pub fn fixtures(path: &str) -> String {
    format!("{}/../../fixtures/{path}", env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The tiny model, and nothing else.
pub struct Tiny {
    pub registry: WeightRegistry,
    pub base: SetHandle,
    pub model: Llama,
}

impl Tiny {
    pub fn load() -> Self {
        Self::load_from("tiny-llama")
    }

    pub fn load_from(directory: &str) -> Self {
        let registry = WeightRegistry::builder().build().unwrap();
        let directory = fixtures(directory);
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let base = registry.publish("llama", checkpoint).unwrap();
        let model = llama(&registry, base, &directory);
        Tiny {
            registry,
            base,
            model,
        }
    }

    pub fn adapter(&self, directory: &str) -> PeftAdapter {
        PeftAdapter::open(fixtures(&format!("adapters/{directory}")))
            .unwrap()
            .on(self.base)
    }

    pub fn publish(&self, directory: &str) -> SetHandle {
        self.registry
            .publish(directory, self.adapter(directory))
            .unwrap()
    }

    /// On a lease as of now.
    pub fn sequence(&self, adapter: Option<SetHandle>) -> Sequence {
        let sets: Vec<_> = [Some(self.base), adapter].into_iter().flatten().collect();
        self.model
            .sequence(self.registry.acquire(sets).unwrap(), adapter)
            .unwrap()
    }
}

pub fn llama(registry: &WeightRegistry, base: SetHandle, directory: &str) -> Llama {
    let backend = RegistryBackend::new(registry.acquire(base).unwrap(), base).unwrap();
    let config = Config::from_json(&read(&format!("{directory}/config.json"))).unwrap();
    Llama::load(&backend, config, &Device::Cpu).unwrap()
}

/// What transformers and PEFT answer.
pub struct Oracle(Value);

pub struct Case {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
    pub logits: Vec<f64>,
}

impl Oracle {
    pub fn read() -> Self {
        Oracle(serde_json::from_slice(&read(&fixtures("expected.json"))).unwrap())
    }

    /// Under an adapter, or the base.
    pub fn cases(&self, adapter: Option<&str>) -> Vec<Case> {
        let ids = |value: &Value| -> Vec<u32> {
            let each = value.as_array().unwrap().iter();
            each.map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let prompts: HashMap<&str, &Value> = self.0["prompts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|prompt| (prompt["text"].as_str().unwrap(), &prompt["ids"]))
            .collect();
        let cases: Vec<Case> = self.0["cases"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|case| case["adapter"].as_str() == adapter)
            .map(|case| Case {
                prompt: ids(prompts[case["prompt"].as_str().unwrap()]),
                completion: ids(&case["completion_ids"]),
                logits: case["logits"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|logit| logit.as_f64().unwrap())
                    .collect(),
            })
            .collect();
        assert_eq!(cases.len(), 8, "{adapter:?}");
        cases
    }
}

/// A row of logits.
pub fn row(logits: &Tensor, at: usize) -> Vec<f64> {
    let logits = logits.get(at).unwrap().to_dtype(DType::F64).unwrap();
    logits.to_vec1().unwrap()
}

/// The largest difference.
pub fn far(got: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let each = got.iter().zip(wanted);
    each.map(|(got, wanted)| (got - wanted).abs())
        .fold(0.0, f64::max)
}

pub fn best(logits: &[f64]) -> u32 {
    let each = (0..).zip(logits);
    each.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

/// Greedy, at most so many, the end included.
pub fn generate(model: &Llama, sequence: &mut Sequence, prompt: &[u32], most: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    let mut answer = Vec::new();
    while answer.len() < most {
        let turn = Turn {
            sequence: &mut *sequence,
            tokens: &tokens,
        };
        let token = best(&row(&model.step(&mut [turn]).unwrap(), 0));
        answer.push(token);
        if model.config().ends(token) {
            break;
        }
        tokens = vec![token];
    }
    answer
}
