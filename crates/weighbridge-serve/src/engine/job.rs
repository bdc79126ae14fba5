//! What was asked, and what is said to whoever asked.
//!
//! What lives here: [`Job`], which waits in the scheduler, and [`Said`]. What does not: a request that runs
//! (`request`).

use std::sync::Arc;

use candle_transformers::generation::Sampling;
use tokio::sync::mpsc::UnboundedSender;

/// One completion.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) label: String,
    /// The model's name as the client gave it.
    pub(crate) model: String,
    /// At least one token.
    pub(crate) prompt: Vec<u32>,
    /// Most tokens of the answer.
    pub(crate) most: usize,
    pub(crate) sampling: Sampling,
    pub(crate) seed: u64,
    pub(crate) stop: Vec<String>,
    /// Never waits: what an answer can say is bounded by its length, and a client that went closes it.
    pub(crate) out: UnboundedSender<Said>,
}

/// To whoever asked.
#[derive(Debug)]
pub(crate) enum Said {
    /// It runs, on this: the name and generation of what answers.
    Began(String),
    /// Text more.
    Text(String),
    /// Nothing follows.
    End(End),
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The model ended it, or a stop string came. So many tokens.
    Stop(usize),
    /// It is as long as it may be.
    Length(usize),
    /// Why it did not.
    Failed(Failure),
}

/// Why an admitted request has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its weights could not come, or were retired while it waited for them.
    Weights(Arc<weighbridge::Error>),
    /// The server ends.
    Stopping,
    /// What should not be.
    Fault(String),
}

impl Job {
    /// If nobody listens any more, nobody needs to know.
    pub(crate) fn say(&self, said: Said) {
        let _ = self.out.send(said);
    }
}
