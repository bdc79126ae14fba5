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

/// Ends with a word to whoever asked, on every path: see its `Drop`.
pub(super) struct Request {
    number: u64,
    // Before the place: whoever is woken by the place finds the lease ended.
    sequence: Sequence,
    _place: Place,
    job: Job,
    /// What it has not seen yet; at least one token.
    next: Vec<u32>,
    said: usize,
    text: Text,
    chooser: LogitsProcessor,
    counters: Arc<Counters>,
    ended: bool,
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
        Some(Request {
            number,
            sequence,
            _place: place,
            said: 0,
            text: Text::new(
                Arc::clone(&world.tokenizer),
                &next,
                std::mem::take(&mut job.stop),
            ),
            next,
            chooser: LogitsProcessor::from_sampling(job.seed, job.sampling.clone()),
            counters: Arc::clone(counters),
            job,
            ended: false,
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Does anybody listen?
    pub(super) fn is_wanted(&self) -> bool {
        !self.job.out.is_closed()
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
            Added::Text(text) => self.job.say(Said::Text(text)),
            Added::Stop(text) => {
                self.job.say(Said::Text(text));
                return Ok(Some(End::Stop(self.said)));
            }
        }
        let full = self.sequence.len() >= config.max_position_embeddings;
        if self.said >= self.job.most || full {
            return Ok(Some(End::Length(self.said)));
        }
        self.next.push(token);
        Ok(None)
    }

    pub(super) fn end(&mut self, end: End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &end {
            End::Failed(_) => {
                Counters::count(&self.counters.failed, 1);
            }
            End::Stop(_) | End::Length(_) => {
                let rest = self.text.finish();
                if !rest.is_empty() {
                    self.job.say(Said::Text(rest));
                }
            }
        }
        self.job.say(Said::End(end));
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.ended {
            if self.is_wanted() {
                self.end(End::Failed(Failure::Stopping));
            } else {
                Counters::count(&self.counters.cancelled, 1);
            }
        }
        self.counters.ended(self.number);
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
