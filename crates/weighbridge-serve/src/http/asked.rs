//! What a completion may be asked for.
//!
//! What lives here: [`Asked`], and what of it is refused. What does not: what is done with it (`completions`).

use candle_transformers::generation::Sampling;
use serde::Deserialize;
use serde_json::Value;

use super::refusal::Refusal;

/// A stop string is looked for in every piece of text; more and longer ones than this are no use.
const STOPS: usize = 16;
const STOP_BYTES: usize = 1024;

/// Fields that would change the answer and are not done here are refused, OpenAI's and vLLM's; what is in neither is
/// passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) prompt: Prompt,
    pub(super) max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    pub(super) seed: Option<i64>,
    stop: Option<Stop>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    n: Option<u64>,
    best_of: Option<u64>,
    echo: Option<bool>,
    logprobs: Option<u64>,
    suffix: Option<String>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<serde_json::Map<String, Value>>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

/// vLLM's own, which are not done here, each with the values that ask for nothing. `null` does so for all.
const THEIRS: [(&str, &[&str]); 31] = [
    ("top_k", &["0", "-1"]),
    ("min_p", &["0", "0.0"]),
    ("repetition_penalty", &["1", "1.0"]),
    ("length_penalty", &["1", "1.0"]),
    ("ignore_eos", &["false"]),
    ("min_tokens", &["0"]),
    ("stop_token_ids", &["[]"]),
    ("bad_words", &["[]"]),
    ("include_stop_str_in_output", &["false"]),
    ("skip_special_tokens", &["true"]),
    ("add_special_tokens", &["true"]),
    ("truncate_prompt_tokens", &[]),
    ("prompt_logprobs", &[]),
    ("prompt_embeds", &[]),
    ("allowed_token_ids", &[]),
    ("use_beam_search", &["false"]),
    ("logits_processors", &["[]"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_whitespace_pattern", &[]),
    // That of chats, in place of `max_tokens`.
    ("max_completion_tokens", &[]),
    ("structural_tag", &[]),
    ("return_token_ids", &["false"]),
    ("logprob_token_ids", &["[]"]),
    ("spaces_between_special_tokens", &["true"]),
    ("vllm_xargs", &["{}"]),
];

/// One prompt: text, or tokens. Several are refused, with a word of their own.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
    #[serde(default)]
    continuous_usage_stats: bool,
}

impl Asked {
    /// Nothing is left out quietly.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let is = |there: bool, name, what: &str| match there {
            true => Err(Refusal::field(name, format!("{name}: {what}"))),
            false => Ok(()),
        };
        let nonzero = |value: Option<f64>| value.is_some_and(|value| value != 0.0);
        is(
            self.n.is_some_and(|n| n != 1),
            "n",
            "one answer per request is computed here",
        )?;
        is(
            self.best_of.is_some_and(|n| n != 1),
            "best_of",
            "one answer per request is computed here",
        )?;
        is(
            self.echo == Some(true),
            "echo",
            "the prompt is not repeated here",
        )?;
        is(
            self.logprobs.is_some(),
            "logprobs",
            "they are not given here",
        )?;
        is(self.suffix.is_some(), "suffix", "nothing is inserted here")?;
        is(
            nonzero(self.presence_penalty),
            "presence_penalty",
            "there are no penalties here",
        )?;
        is(
            nonzero(self.frequency_penalty),
            "frequency_penalty",
            "there are no penalties here",
        )?;
        is(
            self.logit_bias
                .as_ref()
                .is_some_and(|bias| !bias.is_empty()),
            "logit_bias",
            "logits are taken as they are here",
        )?;
        let within =
            |value: Option<f64>, most| value.is_none_or(|value| (0.0..=most).contains(&value));
        is(
            !within(self.temperature, 2.0),
            "temperature",
            "must be between 0 and 2",
        )?;
        // Where the sampler would take none for all.
        let none = self.top_p.is_some_and(|p| p as f32 <= 0.0);
        is(
            none || !within(self.top_p, 1.0),
            "top_p",
            "must be above 0, and at most 1",
        )?;
        is(
            self.max_tokens == Some(0),
            "max_tokens",
            "must be at least 1",
        )?;
        let options = self.stream_options.as_ref();
        is(
            options.is_some() && self.stream != Some(true),
            "stream_options",
            "only a stream has some",
        )?;
        is(
            options.is_some_and(|options| options.continuous_usage_stats),
            "stream_options",
            "usage comes once, at the end",
        )?;
        for (name, neutral) in THEIRS {
            let asked = self.others.get(name).filter(|asked| !asked.is_null());
            let asked = asked.is_some_and(|asked| !neutral.contains(&asked.to_string().as_str()));
            is(asked, name, "this is not done here")?;
        }
        Ok(())
    }

    pub(super) fn sampling(&self) -> Sampling {
        let temperature = self.temperature.unwrap_or(1.0);
        match self.top_p {
            // Below this everything but the likeliest vanishes in f32, or becomes no number.
            _ if temperature < 1e-5 => Sampling::ArgMax,
            Some(p) if p < 1.0 => Sampling::TopP { p, temperature },
            _ => Sampling::All { temperature },
        }
    }

    pub(super) fn stops(&mut self) -> Result<Vec<String>, Refusal> {
        let stops = match self.stop.take() {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Several(stops)) => stops,
        };
        if stops.len() > STOPS || stops.iter().any(|stop| stop.len() > STOP_BYTES) {
            let message = format!("stop: at most {STOPS} strings of at most {STOP_BYTES} bytes");
            return Err(Refusal::field("stop", message));
        }
        Ok(stops)
    }
}
