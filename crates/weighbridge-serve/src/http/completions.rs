//! `POST /v1/completions`, as OpenAI has it.
//!
//! What lives here: the way into the scheduler, and the answer in one piece or as a stream. What does not: what may be
//! asked (`asked`), how it is computed (`engine`), when (`weighbridge-scheduler`).

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use weighbridge_scheduler::{Scheduler, Ticket, Why};

use super::App;
use super::asked::{Asked, Prompt};
use super::body::Body;
use super::refusal::Refusal;
use crate::counters::Counters;
use crate::engine::{End, Job, Said};
use crate::world::now;

/// How long a stream may be without its head.
const SILENCE: Duration = Duration::from_secs(5);

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
        if scheduler.cancel(self.ticket).is_some() {
            Counters::count(&self.app.counters.cancelled, 1);
        }
    }
}

pub(super) async fn completions(
    State(app): State<Arc<App>>,
    Body(mut asked): Body<Asked>,
) -> Result<Response, Refusal> {
    asked.check()?;
    let stop = asked.stops()?;
    let prompt = tokens(&app, &mut asked.prompt).await?;
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
        seed: asked.seed.map_or_else(any_seed, |seed| seed as u64),
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
        return Ok(asking.stream(with_usage).await?.into_response());
    }
    Ok(Json(asking.whole().await?).into_response())
}

/// A name that is not there is an error, here and now, and never the model alone.
fn admit(app: &App, model: &str, label: &str, job: Job) -> Result<Ticket, Refusal> {
    let unknown = || Refusal::no_model(model);
    let adapter = match model == app.world.name {
        true => None,
        false => Some(app.adapters.find(model)?.ok_or_else(unknown)?),
    };
    let admitted = app.scheduler.admit(app.world.base, adapter, label, job);
    admitted.map_err(|refused| match refused.why {
        Why::Full { .. } => Refusal::too_many(refused.why),
        Why::Closed => Refusal::stopping(),
        // It was unloaded between the two.
        Why::Registry(error) if error.is_not_found() => unknown(),
        Why::Registry(error) => error.into(),
        why => Refusal::bad(why),
    })
}

/// For a request that says none: two of them, also of two runs of a server, do not draw alike.
fn any_seed() -> u64 {
    // Its keys are random, and a new pair for each.
    RandomState::new().build_hasher().finish()
}

async fn tokens(app: &Arc<App>, prompt: &mut Prompt) -> Result<Vec<u32>, Refusal> {
    let vocabulary = app.world.model.config().vocab_size;
    let wrong = |message: String| Refusal::field("prompt", format!("prompt: {message}"));
    let tokens = match prompt {
        Prompt::Text(text) => app.splitters.split(std::mem::take(text)).await?,
        Prompt::Texts(texts) => match texts.as_mut_slice() {
            [text] => app.splitters.split(std::mem::take(text)).await?,
            _ => return Err(wrong("one prompt per request is answered here".into())),
        },
        Prompt::Tokens(tokens) => std::mem::take(tokens),
        Prompt::ManyTokens(many) => match many.as_mut_slice() {
            [tokens] => std::mem::take(tokens),
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
        let field = match asked.max_tokens {
            Some(_) if prompt < longest => "max_tokens",
            _ => "prompt",
        };
        return Err(Refusal::field(field, message));
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
                Said::End(End::Failed(why)) => return Err(why.into()),
                Said::End(End::Stop(tokens)) => return Ok(self.answer(&text, "stop", tokens)),
                Said::End(End::Length(tokens)) => return Ok(self.answer(&text, "length", tokens)),
            }
        }
        Err(Refusal::stopping())
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

    /// Begins when the request does, so that what fails before has a status of its own; or after a while, so that nobody
    /// on the way takes the connection for dead.
    async fn stream(mut self, with_usage: bool) -> Result<impl IntoResponse, Refusal> {
        match tokio::time::timeout(SILENCE, self.out.recv()).await {
            Err(_) => {}
            Ok(Some(Said::Began(by))) => self.by = by,
            Ok(Some(Said::End(End::Failed(why)))) => return Err(why.into()),
            // A job says that it began, or that it failed, before anything else.
            Ok(_) => return Err(Refusal::stopping()),
        }
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
        Ok(Sse::new(events).keep_alive(KeepAlive::default()))
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
                    return (event(Refusal::from(why).to_json()), Next::Mark);
                }
                // Nobody drops a job without a word. Should it be so, its end is near.
                None => return (event(Refusal::stopping().to_json()), Next::Mark),
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
