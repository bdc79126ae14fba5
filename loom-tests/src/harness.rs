//! Running a model: counts executions, demands that the outcomes that should be reachable were seen,
//! and never ends early.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

thread_local! {
    // All of a model's threads are coroutines of one system thread.
    static SEEN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Notes that an outcome was reached.
pub fn saw(outcome: impl Into<String>) {
    SEEN.with(|seen| seen.borrow_mut().insert(outcome.into()));
}

/// Something that happens, watched by a flag that the checker does not see: it orders nothing and adds no
/// executions.
#[derive(Clone, Default)]
pub struct Moment(Arc<AtomicBool>);

impl Moment {
    /// It has happened.
    pub fn happened(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Notes as an outcome whether it has happened by now.
    pub fn saw(&self, yes: &str, not_yet: &str) {
        saw(if self.0.load(Ordering::Relaxed) {
            yes
        } else {
            not_yet
        });
    }
}

/// Explores `body` completely within the preemption bound (`LOOM_MAX_PREEMPTIONS`), and fails if it
/// was explored only once or missed one of the `outcomes`. There is no time limit here: the runner
/// kills a model that takes too long, and that counts as a failure.
///
/// # Panics
/// If the model fails.
pub fn model(name: &str, outcomes: &[&str], body: impl Fn() + Send + Sync + 'static) {
    SEEN.with(|seen| seen.borrow_mut().clear());
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    assert!(builder.max_duration.is_none() && builder.max_permutations.is_none());
    builder.max_branches = 20_000;
    let bound = builder.preemption_bound;
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        body();
    });
    let executions = executions.load(Ordering::Relaxed);
    let seen = SEEN.with(|seen| seen.borrow().clone());
    println!("MODEL {name} executions={executions} bound={bound:?} seen={seen:?}");
    for outcome in outcomes {
        assert!(
            seen.contains(*outcome),
            "{name}: outcome {outcome:?} was never reached"
        );
    }
    assert!(
        executions > 1,
        "{name}: explored once, which is a test of nothing"
    );
}

/// All values are those of one commit.
///
/// # Panics
/// If they are mixed.
pub fn old_or_new(values: &[u64]) {
    assert!(
        values.windows(2).all(|pair| pair[0] == pair[1]),
        "mixed: {values:?}"
    );
    saw(if values[0] == 0 { "old" } else { "new" });
}
