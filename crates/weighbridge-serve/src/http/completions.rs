//! `POST /v1/completions`, as OpenAI has it.
//!
//! What lives here: what may be asked, and the answer in one piece or as a stream. What does not: how it is computed
//! (`engine`), when (`weighbridge-scheduler`).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use candle_transformers::generation::Sampling;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use weighbridge_scheduler::{Scheduler, Ticket, Why};

use super::App;
use super::body::Body;
use super::refusal::Refusal;
use crate::engine::{End, Job, Said};
use crate::world::now;

/// A stop string is looked for in every piece of text; more and longer ones than this are no use.
const STOPS: usize = 16;
const STOP_BYTES: usize = 1024;

/// Fields that would change the answer and are not done here are refused; others are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    model: String,
    prompt: Prompt,
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
    best_of: Option<u64>,
    echo: Option<bool>,
    logprobs: Option<u64>,
    suffix: Option<String>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<serde_json::Map<String, Value>>,
}

/// One prompt: text, or tokens. Several are refused, with a word of their own.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
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
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Asked {
    /// Nothing is left out quietly.
    fn check(&self) -> Result<(), Refusal> {
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
        )
    }

    fn sampling(&self) -> Sampling {
        let temperature = self.temperature.unwrap_or(1.0);
        match self.top_p {
            // Below this everything but the likeliest vanishes in f32, or becomes no number.
            _ if temperature < 1e-5 => Sampling::ArgMax,
            Some(p) if p < 1.0 => Sampling::TopP { p, temperature },
            _ => Sampling::All { temperature },
        }
    }

    fn stops(&mut self) -> Result<Vec<String>, Refusal> {
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

/// What the answer to one request is headed with, and what is left of it in the scheduler.
struct Asking {
    app: Arc<App>,
    ticket: Ticket,
    id: String,
    model: String,
    created: u64,
    prompt_tokens: usize,
    /// Name and generation of what answers.
    by: String,
    out: UnboundedReceiver<Said>,
}

/// A client that goes takes its request out of the queue; one that runs ends at its next step.
impl Drop for Asking {
    fn drop(&mut self) {
        let scheduler: &Scheduler<Job> = &self.app.scheduler;
        drop(scheduler.cancel(self.ticket));
    }
}

pub(super) async fn completions(
    State(app): State<Arc<App>>,
    Body(mut asked): Body<Asked>,
) -> Result<Response, Refusal> {
    asked.check()?;
    let stop = asked.stops()?;
    let prompt = tokens(&app, &asked)?;
    let most = room(&app, &asked, prompt.len())?;
    let number = app.asked.fetch_add(1, Ordering::Relaxed);
    let id = format!("cmpl-{:x}-{number}", app.world.created);
    let (say, out) = unbounded_channel();
    let prompt_tokens = prompt.len();
    let job = Job {
        label: id.clone(),
        model: asked.model.clone(),
        prompt,
        most,
        sampling: asked.sampling(),
        seed: asked.seed.map_or(number, |seed| seed as u64),
        stop,
        out: say,
    };
    let ticket = admit(&app, &asked.model, &id, job)?;
    let streams = asked.stream == Some(true);
    let with_usage = asked
        .stream_options
        .is_some_and(|options| options.include_usage);
    let asking = Asking {
        app,
        ticket,
        id,
        model: asked.model,
        created: now(),
        prompt_tokens,
        by: String::new(),
        out,
    };
    if streams {
        return Ok(asking.stream(with_usage).into_response());
    }
    Ok(Json(asking.whole().await?).into_response())
}

/// A name that is not there is an error, here and now, and never the model alone.
fn admit(app: &App, model: &str, label: &str, job: Job) -> Result<Ticket, Refusal> {
    let unknown = || Refusal::not_found(format!("The model `{model}` does not exist."));
    let adapter = match model == app.world.name {
        true => None,
        false => Some(app.adapters.find(model)?.ok_or_else(unknown)?),
    };
    let admitted = app.scheduler.admit(app.world.base, adapter, label, job);
    admitted.map_err(|refused| match refused.why {
        Why::Full { .. } => Refusal::too_many(refused.why),
        // It was unloaded between the two.
        Why::Registry(error) if error.is_not_found() => unknown(),
        Why::Registry(error) => error.into(),
        why => Refusal::bad(why),
    })
}

fn tokens(app: &App, asked: &Asked) -> Result<Vec<u32>, Refusal> {
    let vocabulary = app.world.model.config().vocab_size;
    let wrong = |message: String| Refusal::field("prompt", format!("prompt: {message}"));
    let tokens = match &asked.prompt {
        Prompt::Text(text) => encode(app, text).map_err(wrong)?,
        Prompt::Texts(texts) => match texts.as_slice() {
            [text] => encode(app, text).map_err(wrong)?,
            _ => return Err(wrong("one prompt per request is answered here".into())),
        },
        Prompt::Tokens(tokens) => tokens.clone(),
        Prompt::ManyTokens(many) => match many.as_slice() {
            [tokens] => tokens.clone(),
            _ => return Err(wrong("one prompt per request is answered here".into())),
        },
    };
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(wrong(format!(
            "there is no token {token}: the vocabulary has {vocabulary}"
        )));
    }
    if tokens.is_empty() {
        return Err(wrong("it has no token".into()));
    }
    Ok(tokens)
}

fn encode(app: &App, text: &str) -> Result<Vec<u32>, String> {
    let encoded = app.world.tokenizer.encode(text, true);
    let encoded = encoded.map_err(|error| error.to_string())?;
    Ok(encoded.get_ids().to_vec())
}

/// Most tokens of the answer.
fn room(app: &App, asked: &Asked, prompt: usize) -> Result<usize, Refusal> {
    /// OpenAI's.
    const USUAL: usize = 16;
    let longest = app.world.model.config().max_position_embeddings;
    let room = longest.saturating_sub(prompt);
    let most = asked.max_tokens.unwrap_or(USUAL.min(room.max(1)));
    if most > room {
        let message = format!(
            "This model's maximum context length is {longest} tokens. However, you requested {} tokens \
             ({prompt} in the prompt, {most} for the completion).",
            prompt.saturating_add(most)
        );
        return Err(Refusal::field("max_tokens", message));
    }
    Ok(most)
}

/// In a stream: what comes next.
enum Next {
    Said,
    /// The usage, if it was asked for, and then the mark of the end.
    Usage(usize),
    Mark,
    Nothing,
}

impl Asking {
    async fn whole(mut self) -> Result<Value, Refusal> {
        let mut text = String::new();
        while let Some(said) = self.out.recv().await {
            match said {
                Said::Began(by) => self.by = by,
                Said::Text(more) => text += &more,
                Said::End(End::Failed(why)) => return Err(Refusal::internal(why)),
                Said::End(End::Stop(tokens)) => return Ok(self.answer(&text, "stop", tokens)),
                Said::End(End::Length(tokens)) => return Ok(self.answer(&text, "length", tokens)),
            }
        }
        Err(gone())
    }

    fn answer(&self, text: &str, reason: &str, tokens: usize) -> Value {
        let mut answer = self.piece(text, Some(reason));
        answer["usage"] = self.usage(tokens);
        answer
    }

    fn piece(&self, text: &str, reason: Option<&str>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.by,
            "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }],
        })
    }

    fn usage(&self, tokens: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        })
    }

    fn stream(self, with_usage: bool) -> impl IntoResponse {
        let events = stream::unfold((self, Next::Said), move |(mut asking, next)| async move {
            let event = |json: Value| Ok::<_, Infallible>(Event::default().data(json.to_string()));
            let (event, next) = match next {
                Next::Said => asking.next(with_usage).await,
                Next::Usage(tokens) => {
                    let mut last = asking.piece("", None);
                    last["choices"] = json!([]);
                    last["usage"] = asking.usage(tokens);
                    (event(last), Next::Mark)
                }
                Next::Mark => (Ok(Event::default().data("[DONE]")), Next::Nothing),
                Next::Nothing => return None,
            };
            Some((event, (asking, next)))
        });
        Sse::new(events).keep_alive(KeepAlive::default())
    }

    async fn next(&mut self, with_usage: bool) -> (Result<Event, Infallible>, Next) {
        let event = |json: Value| Ok(Event::default().data(json.to_string()));
        loop {
            let (reason, tokens) = match self.out.recv().await {
                Some(Said::Began(by)) => {
                    self.by = by;
                    continue;
                }
                Some(Said::Text(text)) => return (event(self.piece(&text, None)), Next::Said),
                Some(Said::End(End::Failed(why))) => {
                    return (event(Refusal::internal(why).to_json()), Next::Mark);
                }
                None => return (event(gone().to_json()), Next::Mark),
                Some(Said::End(End::Stop(tokens))) => ("stop", tokens),
                Some(Said::End(End::Length(tokens))) => ("length", tokens),
            };
            let next = if with_usage {
                Next::Usage(tokens)
            } else {
                Next::Mark
            };
            return (event(self.piece("", Some(reason))), next);
        }
    }
}

/// The engine has dropped it without a word: the server is stopping.
fn gone() -> Refusal {
    Refusal::internal("the server is stopping")
}
