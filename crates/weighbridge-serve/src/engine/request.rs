//! A request that runs.
//!
//! What lives here: [`Request`]: its sequence, what it sees next, what it has said. What does not: the batch
//! (`mod`).

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use candle_transformers::generation::LogitsProcessor;
use weighbridge_candle::llama::{Config, Sequence, Turn};
use weighbridge_scheduler::{Place, Turn as Joined};

use super::job::{End, Failure, Job, Said};
use crate::counters::{Counters, Running};
use crate::text::{Added, Text};
use crate::world::World;

/// Ends with a word to whoever asked, on every path: see [`Voice`].
pub(super) struct Request {
    // Before the place: whoever is woken by the place finds the lease ended.
    sequence: Sequence,
    _place: Place,
    /// What it has not seen yet; at least one token.
    next: Vec<u32>,
    said: usize,
    text: Text,
    chooser: LogitsProcessor,
    // After both of them: whoever has his answer finds the lease ended and the place free.
    voice: Voice,
}

/// To whoever asked. Its last word is said when it is dropped.
struct Voice {
    number: u64,
    job: Job,
    counters: Arc<Counters>,
    end: Option<End>,
}

impl Request {
    /// `None`: it could not begin, and was told why.
    pub(super) fn begin(
        joined: Joined<Job>,
        world: &World,
        counters: &Arc<Counters>,
    ) -> Option<Self> {
        let adapter = joined.place.adapter();
        let Joined {
            payload: mut job,
            lease,
            place,
            ..
        } = joined;
        let number = Counters::count(&counters.requests, 1);
        let set = adapter.map_or(world.base, |(set, _)| set);
        let generation = match lease.set(set) {
            Ok(set) => set.generation(),
            Err(error) => return fail(&job, counters, &error),
        };
        let sequence = match world.model.sequence(lease, adapter.map(|(set, _)| set)) {
            Ok(sequence) => sequence,
            Err(error) => return fail(&job, counters, &error),
        };
        counters.began(
            number,
            Running {
                label: job.label.clone(),
                model: job.model.clone(),
                generation,
                since: Instant::now(),
                tokens: 0,
            },
        );
        job.say(Said::Began(format!(
            "{}@{}",
            job.model,
            generation.number()
        )));
        let next = std::mem::take(&mut job.prompt);
        Counters::count(&counters.prompt_tokens, next.len() as u64);
        let stop = std::mem::take(&mut job.stop);
        Some(Request {
            sequence,
            _place: place,
            said: 0,
            text: Text::new(Arc::clone(&world.tokenizer), &next, stop),
            next,
            chooser: LogitsProcessor::from_sampling(job.seed, job.sampling.clone()),
            voice: Voice {
                number,
                job,
                counters: Arc::clone(counters),
                end: None,
            },
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.voice.number
    }

    /// Does anybody listen?
    pub(super) fn is_wanted(&self) -> bool {
        self.voice.is_heard()
    }

    /// What it sees in a step.
    pub(super) fn turn(&mut self, piece: usize) -> Turn<'_> {
        let piece = piece.min(self.next.len());
        Turn {
            sequence: &mut self.sequence,
            tokens: &self.next[..piece],
        }
    }

    /// After a step: has it seen all that there was?
    pub(super) fn has_seen(&mut self, piece: usize) -> bool {
        self.next.drain(..piece.min(self.next.len()));
        self.next.is_empty()
    }

    /// The next token of its answer. `Some`: it was the last.
    pub(super) fn choose(
        &mut self,
        logits: &Tensor,
        config: &Config,
    ) -> Result<Option<End>, weighbridge_candle::Error> {
        let logits = numbers(logits)?;
        let token = self.chooser.sample(&logits)?;
        self.said += 1;
        if config.ends(token) {
            return Ok(Some(End::Stop(self.said)));
        }
        let added = self.text.push(token);
        match added.map_err(candle_core::Error::msg)? {
            Added::Text(text) if text.is_empty() => {}
            Added::Text(text) => self.voice.job.say(Said::Text(text)),
            Added::Stop(text) => {
                self.voice.job.say(Said::Text(text));
                return Ok(Some(End::Stop(self.said)));
            }
        }
        let full = self.sequence.len() >= config.max_position_embeddings;
        if self.said >= self.voice.job.most || full {
            return Ok(Some(End::Length(self.said)));
        }
        self.next.push(token);
        Ok(None)
    }

    /// How it ended. It says so when it is dropped, which must follow.
    pub(super) fn end(&mut self, end: End) {
        if let End::Stop(_) | End::Length(_) = end {
            let rest = self.text.finish();
            if !rest.is_empty() {
                self.voice.job.say(Said::Text(rest));
            }
        }
        self.voice.end = Some(end);
    }
}

impl Voice {
    fn is_heard(&self) -> bool {
        !self.job.out.is_closed()
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        let end = match self.end.take() {
            Some(end) => end,
            // Nobody said how: the engine ends.
            None if self.is_heard() => End::Failed(Failure::Stopping),
            None => {
                Counters::count(&self.counters.cancelled, 1);
                self.counters.ended(self.number);
                return;
            }
        };
        if let End::Failed(_) = end {
            Counters::count(&self.counters.failed, 1);
        }
        self.counters.ended(self.number);
        self.job.say(Said::End(end));
    }
}

/// What no token can be drawn from is an error, and not an answer. A weight that is no number makes such.
fn numbers(logits: &Tensor) -> candle_core::Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    if logits
        .to_vec1::<f32>()?
        .iter()
        .all(|logit| logit.is_finite())
    {
        return Ok(logits);
    }
    candle_core::bail!(
        "what the model computed are no numbers: its weights are broken, or the adapter's"
    )
}

fn fail(job: &Job, counters: &Counters, error: &dyn std::fmt::Display) -> Option<Request> {
    Counters::count(&counters.failed, 1);
    let failure = Failure::Fault(error.to_string());
    job.say(Said::End(End::Failed(failure)));
    None
}
