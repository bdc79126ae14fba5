//! How much may run, wait and be fetched.
//!
//! What lives here: [`Limits`], and which of them make no sense. What does not: keeping to them (`batch`,
//! `order`, `loads`).

/// What a [`Scheduler`](crate::Scheduler) keeps to.
///
/// # Examples
/// ```
/// use weighbridge_scheduler::Limits;
///
/// let limits = Limits::default().running(16).adapters(4);
/// assert_eq!((limits.running, limits.adapters), (16, 4));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Requests that run together.
    pub running: usize,
    /// Adapter generations that run together. Requests for the base alone need no place of this kind.
    pub adapters: usize,
    /// Requests that wait, with weights or without.
    pub waiting: usize,
    /// Rounds in which a request may be passed over before it is overdue. Zero: everybody is overdue at once,
    /// which is first come first served.
    pub patience: u64,
    /// Pairs of base and adapter that are not resident, and whose loads are asked for at one time.
    pub ahead: usize,
}

impl Default for Limits {
    /// 32 requests of 8 adapter generations run, 1,024 wait, for 64 rounds until they are overdue; 4 loads ahead.
    fn default() -> Self {
        Limits {
            running: 32,
            adapters: 8,
            waiting: 1024,
            patience: 64,
            ahead: 4,
        }
    }
}

impl Limits {
    /// Sets [`running`](Self::running).
    #[must_use]
    pub fn running(mut self, requests: usize) -> Self {
        self.running = requests;
        self
    }

    /// Sets [`adapters`](Self::adapters).
    #[must_use]
    pub fn adapters(mut self, generations: usize) -> Self {
        self.adapters = generations;
        self
    }

    /// Sets [`waiting`](Self::waiting).
    #[must_use]
    pub fn waiting(mut self, requests: usize) -> Self {
        self.waiting = requests;
        self
    }

    /// Sets [`patience`](Self::patience).
    #[must_use]
    pub fn patience(mut self, rounds: u64) -> Self {
        self.patience = rounds;
        self
    }

    /// Sets [`ahead`](Self::ahead).
    #[must_use]
    pub fn ahead(mut self, loads: usize) -> Self {
        self.ahead = loads;
        self
    }

    pub(crate) fn check(&self) -> Result<(), LimitError> {
        let counts = [
            ("running", self.running),
            ("adapters", self.adapters),
            ("waiting", self.waiting),
            ("ahead", self.ahead),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            None => Ok(()),
            Some((limit, _)) => Err(LimitError { limit }),
        }
    }
}

/// Under this limit some request would wait for ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit {limit:?} is zero, so some requests would wait for ever; it must be at least one"
)]
#[non_exhaustive]
pub struct LimitError {
    /// The field of [`Limits`].
    pub limit: &'static str,
}
