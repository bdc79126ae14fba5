//! What a Llama is built by.
//!
//! What lives here: [`Config`], read from a checkpoint's `config.json` and checked. What does not: what is done
//! with it.

use serde::Deserialize;

use crate::Error;

/// The part of Hugging Face's `LlamaConfig` that is computed here.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// `llama`.
    pub model_type: String,
    /// Numbers per token.
    pub hidden_size: usize,
    /// Numbers per token inside an MLP.
    pub intermediate_size: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads that ask.
    pub num_attention_heads: usize,
    /// Heads that answer. By default as many.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Numbers per head. By default `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Added to a variance.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    #[serde(default = "ten_thousand")]
    pub rope_theta: f64,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// What a prompt begins with.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// What ends an answer: one token, or several.
    #[serde(default)]
    pub eos_token_id: Option<Ends>,
    #[serde(default)]
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    rope_parameters: Option<serde_json::Value>,
    #[serde(default)]
    rope_interleaved: Option<bool>,
    #[serde(default)]
    partial_rotary_factor: Option<f64>,
    #[serde(default)]
    quantization_config: Option<serde_json::Value>,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// One token, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Ends {
    /// One.
    One(u32),
    /// Several.
    Several(Vec<u32>),
}

fn ten_thousand() -> f64 {
    10_000.0
}

impl Config {
    /// Of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is none, or asks for what is not computed here: another `model_type`, `rope_scaling`,
    /// biases, another activation than `silu`.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let config: Config =
            serde_json::from_slice(json).map_err(|error| Error::Config(error.to_string()))?;
        config.check().map_err(Error::Config)?;
        Ok(config)
    }

    /// Also ends an answer where a `generation_config.json` says so. Chat models often have there what ends a turn, and
    /// in `config.json` only what ends a text.
    ///
    /// # Errors
    /// [`Error::Config`] if it is none.
    pub fn also_ends(&mut self, generation_config: &[u8]) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Generation {
            eos_token_id: Option<Ends>,
        }
        let read: Generation = serde_json::from_slice(generation_config)
            .map_err(|error| Error::Config(format!("generation_config.json: {error}")))?;
        let ends = [self.eos_token_id.take(), read.eos_token_id];
        let ends = ends.into_iter().flatten().flat_map(|ends| match ends {
            Ends::One(end) => vec![end],
            Ends::Several(ends) => ends,
        });
        self.eos_token_id = Some(Ends::Several(ends.collect()));
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.model_type != "llama" {
            return Err(format!(
                "model_type is {:?}; only \"llama\" is computed here",
                self.model_type
            ));
        }
        if let Some(scaling) = &self.rope_scaling {
            return Err(format!("rope_scaling {scaling} is not computed here"));
        }
        // Where newer files have the base and the scaling; it is not read here.
        if self.rope_parameters.is_some() {
            return Err("rope_parameters are not read here; rope_theta is".into());
        }
        if self.rope_interleaved == Some(true) {
            return Err("rope_interleaved is not computed here".into());
        }
        if self.partial_rotary_factor.is_some_and(|part| part != 1.0) {
            return Err("partial_rotary_factor is not computed here".into());
        }
        if self.quantization_config.is_some() {
            return Err(
                "quantised weights are not computed here: they would be read without their scales"
                    .into(),
            );
        }
        if self.attention_bias || self.mlp_bias {
            return Err("biases are not computed here".into());
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|&name| name != "silu") {
            return Err(format!(
                "hidden_act is {other:?}; only \"silu\" is computed here"
            ));
        }
        let positive = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, value) in positive {
            // Products of two of these are computed; a file must not make them overflow.
            if value == 0 || value > 1 << 28 {
                return Err(format!("{name} is {value}"));
            }
        }
        // Each position has a row of cosines and one of sines.
        if self.max_position_embeddings > 1 << 20 {
            return Err(format!(
                "max_position_embeddings is {}; more than 1048576 are not computed here",
                self.max_position_embeddings
            ));
        }
        if self.num_hidden_layers > 1 << 16 {
            return Err(format!("num_hidden_layers is {}", self.num_hidden_layers));
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            return Err(format!(
                "{} heads cannot share {} key-value heads evenly",
                self.num_attention_heads,
                self.kv_heads()
            ));
        }
        if !self.head_dim().is_multiple_of(2) {
            return Err(format!(
                "head_dim is {}, which has no halves to rotate",
                self.head_dim()
            ));
        }
        Ok(())
    }

    /// Heads that answer.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Numbers per head.
    pub fn head_dim(&self) -> usize {
        let shared = self.hidden_size.checked_div(self.num_attention_heads);
        self.head_dim.unwrap_or(shared.unwrap_or(0))
    }

    /// Does this token end an answer?
    pub fn ends(&self, token: u32) -> bool {
        match &self.eos_token_id {
            None => false,
            Some(Ends::One(end)) => *end == token,
            Some(Ends::Several(ends)) => ends.contains(&token),
        }
    }

    /// What a sequence's keys and values take per token, in bytes.
    pub fn cache_bytes_per_token(&self) -> u64 {
        let numbers = 2 * self.num_hidden_layers * self.kv_heads() * self.head_dim();
        numbers as u64 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(change: impl FnOnce(&mut serde_json::Value)) -> Result<Config, Error> {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/tiny-llama/config.json"
        );
        let mut json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        change(&mut json);
        Config::from_json(json.to_string().as_bytes())
    }

    #[test]
    fn both_files_say_what_ends_an_answer() {
        let ends = |json: &str| {
            let mut config = tiny(|_| ()).unwrap();
            let read = config.also_ends(json.as_bytes());
            read.map(|()| [127, 128, 129].map(|token| config.ends(token)))
        };
        let own = [false, false, true];
        assert_eq!(ends("{}").unwrap(), own);
        assert_eq!(ends(r#"{"eos_token_id": null}"#).unwrap(), own);
        assert_eq!(
            ends(r#"{"eos_token_id": 128}"#).unwrap(),
            [false, true, true]
        );
        let several = ends(r#"{"eos_token_id": [127, 129], "temperature": 0.7}"#);
        assert_eq!(several.unwrap(), [true, false, true]);
        for wrong in [
            "",
            "[]",
            r#"{"eos_token_id": "</s>"}"#,
            r#"{"eos_token_id": -1}"#,
        ] {
            assert!(ends(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        let config = tiny(|_| ()).unwrap();
        assert_eq!((config.kv_heads(), config.head_dim()), (2, 24));
        assert!(config.ends(129) && !config.ends(128));
        assert_eq!(config.cache_bytes_per_token(), 4 * 2 * 2 * 24 * 4);
        for (name, value) in [
            ("model_type", "\"mistral\""),
            ("rope_scaling", "{\"rope_type\":\"llama3\"}"),
            ("rope_parameters", "{\"rope_theta\":500000.0}"),
            ("rope_interleaved", "true"),
            ("partial_rotary_factor", "0.5"),
            ("quantization_config", "{\"quant_method\":\"fp8\"}"),
            ("attention_bias", "true"),
            ("mlp_bias", "true"),
            ("hidden_act", "\"gelu\""),
            ("num_key_value_heads", "3"),
            ("num_key_value_heads", "0"),
            ("num_attention_heads", "0"),
            ("head_dim", "7"),
            ("hidden_size", "0"),
            ("vocab_size", "1152921504606846976"),
            ("num_hidden_layers", "1152921504606846976"),
            ("num_hidden_layers", "-1"),
            ("max_position_embeddings", "268435456"),
        ] {
            let value: serde_json::Value = serde_json::from_str(value).unwrap();
            let refused = tiny(|json| json[name] = value.clone()).unwrap_err();
            assert!(
                matches!(refused, Error::Config(_)),
                "{name} = {value}: {refused}"
            );
        }
        assert!(matches!(Config::from_json(b"{"), Err(Error::Config(_))));
    }

    #[test]
    fn several_tokens_may_end_an_answer() {
        let config = tiny(|json| json["eos_token_id"] = serde_json::json!([3, 5])).unwrap();
        assert!(config.ends(3) && config.ends(5) && !config.ends(4));
    }
}
