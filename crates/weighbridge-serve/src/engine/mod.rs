//! The thread that computes.
//!
//! What lives here: [`Engine`]: rounds of the scheduler, steps of the model, until it is told to stop. What does not:
//! one request's progress (`request`), what was asked and what is said to whoever asked (`job`).

mod job;
mod request;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use candle_core::Tensor;
use weighbridge_candle::llama::Turn;
use weighbridge_scheduler::Scheduler;

pub(crate) use self::job::{End, Failure, Job, Said};
use self::request::Request;
use crate::counters::Counters;
use crate::world::World;

/// Tokens of a prompt that one step takes: a long prompt must not keep others from their next token for long.
const PIECE: usize = 256;

const PANICKED: &str = "the engine panicked";

/// How long the thread waits at most before it looks at the clock again.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    world: Arc<World>,
    scheduler: Arc<Scheduler<Job>>,
    counters: Arc<Counters>,
    stop: AtomicBool,
}

impl Engine {
    pub(crate) fn start(
        world: Arc<World>,
        scheduler: Arc<Scheduler<Job>>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            world,
            scheduler,
            counters,
            stop: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || own.run())?;
        Ok(Engine {
            shared,
            thread: Some(thread),
        })
    }

    /// Returns when the thread has. Requests that run or wait are cut off, and told so; nobody is admitted any more.
    /// Whoever wants them to end waits before.
    pub(crate) fn stop(&mut self) {
        for (_, job) in self.shared.scheduler.close() {
            Counters::count(&self.shared.counters.failed, 1);
            job.say(Said::End(End::Failed(Failure::Stopping)));
        }
        // Relaxed: it says nothing about other memory. The bell is rung after it.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.scheduler.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic: each round is caught.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        let mut running: Vec<Request> = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            if running.is_empty() {
                self.scheduler.wait(LOOK);
            }
            // Whoever is in the middle of a round that panics is told so as it unwinds; the others go on.
            let _ = catch_unwind(AssertUnwindSafe(|| self.round(&mut running)));
        }
    }

    fn round(&self, running: &mut Vec<Request>) {
        let round = self.scheduler.schedule();
        for failed in round.failed {
            Counters::count(&self.counters.failed, 1);
            let Job { label, model, .. } = &failed.payload;
            tracing::warn!(request = label, model, error = %failed.error, "its weights did not come");
            let failure = Failure::Weights(failed.error);
            failed.payload.say(Said::End(End::Failed(failure)));
        }
        for turn in round.joined {
            running.extend(Request::begin(turn, &self.world, &self.counters));
        }
        running.retain(Request::is_wanted);
        if !running.is_empty() {
            self.step(running);
        }
    }

    /// Each of these sees its next tokens.
    fn step(&self, running: &mut Vec<Request>) {
        let model = &self.world.model;
        let computed = catch_unwind(AssertUnwindSafe(|| {
            let mut turns: Vec<Turn<'_>> = running.iter_mut().map(|one| one.turn(PIECE)).collect();
            model.step(&mut turns)
        }));
        let logits = match computed {
            Ok(Ok(logits)) => logits,
            Ok(Err(error)) => {
                tracing::error!(%error, "a step failed");
                return fail(running, &error.to_string());
            }
            Err(_) => {
                tracing::error!("a step panicked");
                return fail(running, PANICKED);
            }
        };
        let mut spoke = Vec::with_capacity(running.len());
        let mut row = 0;
        running.retain_mut(|one| {
            let own = logits.get(row);
            row += 1;
            let goes_on = catch_unwind(AssertUnwindSafe(|| self.choose(one, own, &mut spoke)));
            goes_on.unwrap_or_else(|_| {
                one.end(End::Failed(Failure::Fault(PANICKED.into())));
                false
            })
        });
        self.counters.step(&spoke);
    }

    fn choose(
        &self,
        one: &mut Request,
        logits: candle_core::Result<Tensor>,
        spoke: &mut Vec<u64>,
    ) -> bool {
        if !one.has_seen(PIECE) {
            return true;
        }
        spoke.push(one.number());
        let chosen = logits
            .map_err(Into::into)
            .and_then(|logits| one.choose(&logits, self.world.model.config()));
        match chosen {
            Ok(None) => true,
            Ok(Some(end)) => {
                one.end(end);
                false
            }
            Err(error) => {
                one.end(End::Failed(Failure::Fault(error.to_string())));
                false
            }
        }
    }
}

/// None of them can go on: a step that fails halfway leaves their caches of no use.
fn fail(running: &mut Vec<Request>, why: &str) {
    for mut one in running.drain(..) {
        one.end(End::Failed(Failure::Fault(why.to_owned())));
    }
}
