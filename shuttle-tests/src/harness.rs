//! Drawing schedules: how many, by which scheduler, which outcomes must be seen, and how a failure is
//! told and replayed.
//!
//! What a run is to do comes from the environment, set by `shuttle-tests/run`:
//! `WEIGHBRIDGE_SCHEDULES` (how many per scheduler), `WEIGHBRIDGE_SECONDS` (how long per scheduler,
//! instead), `WEIGHBRIDGE_SEED`, `WEIGHBRIDGE_FAILED` (where the schedule of a failure goes),
//! `WEIGHBRIDGE_REPLAY` (such a file: that schedule and no other).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, Scheduler,
    UncontrolledNondeterminismCheckScheduler,
};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Changes of priority per schedule.
const PCT_DEPTH: usize = 3;

/// A schedule that takes so many steps does not end.
const STEPS: usize = 200_000;

/// Of each schedule so many are run twice, to see that the second run takes the same way: only then can
/// a failure be replayed.
const TWICE: usize = 5;

thread_local! {
    // All threads of a schedule are coroutines of one system thread.
    static SEEN: RefCell<BTreeMap<String, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// Notes that an outcome was reached.
pub fn saw(outcome: impl Into<String>) {
    SEEN.with(|seen| *seen.borrow_mut().entry(outcome.into()).or_default() += 1);
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text:?}")),
    )
}

/// Draws schedules of `body`, half of them at random and half by PCT, and fails if one fails, hangs or does
/// not end, or if one of the `outcomes` was never seen.
///
/// # Panics
/// If the test fails.
pub fn explore(name: &str, outcomes: &[&str], body: impl Fn() + Send + Sync + 'static) {
    let body = Arc::new(body);
    if let Ok(file) = env::var("WEIGHBRIDGE_REPLAY") {
        let scheduler =
            ReplayScheduler::new_from_file(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        draw(name, "replay", scheduler, &body);
        return;
    }
    let seed = number("WEIGHBRIDGE_SEED").unwrap_or(1);
    let most = match number("WEIGHBRIDGE_SECONDS") {
        Some(_) => usize::MAX,
        None => number("WEIGHBRIDGE_SCHEDULES").unwrap_or(300) as usize,
    };
    SEEN.with(|seen| seen.borrow_mut().clear());
    let random = RandomScheduler::new_from_seed(seed, most);
    let random = draw(name, "random", random, &body);
    let pct = PctScheduler::new_from_seed(seed, PCT_DEPTH, most);
    let pct = draw(name, "pct", pct, &body);
    let seen = SEEN.with(|seen| seen.borrow().clone());
    let again = RandomScheduler::new_from_seed(seed, TWICE);
    let again = UncontrolledNondeterminismCheckScheduler::new(again);
    draw(name, "twice", again, &body);
    println!("SCHEDULES {name} random={random} pct={pct} seen={seen:?}");
    for outcome in outcomes {
        assert!(
            seen.contains_key(*outcome),
            "{name}: outcome {outcome:?} was never reached"
        );
    }
}

/// One scheduler's share. Returns how many schedules it drew.
fn draw<S: Scheduler + 'static>(
    name: &str,
    by: &'static str,
    scheduler: S,
    body: &Arc<impl Fn() + Send + Sync + 'static>,
) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, body) = (Arc::clone(&count), Arc::clone(body));
    let mut config = Config::new();
    config.silence_warnings = true;
    config.stack_size = 1 << 18;
    config.max_steps = MaxSteps::FailAfter(STEPS);
    config.max_time = number("WEIGHBRIDGE_SECONDS").map(Duration::from_secs);
    config.failure_persistence = match env::var_os("WEIGHBRIDGE_FAILED") {
        Some(folder) => FailurePersistence::File(Some(folder.into())),
        None => FailurePersistence::Print,
    };
    tell_when_it_fails(name, by, &count);
    Runner::new(scheduler, config).run(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        body();
    });
    count.load(Ordering::Relaxed)
}

/// A failure may end the process before anything returns here, so it is told by the panic hook.
fn tell_when_it_fails(name: &str, by: &'static str, count: &Arc<AtomicUsize>) {
    thread_local! {
        static NOW: RefCell<Option<(String, &'static str, Arc<AtomicUsize>)>> =
            const { RefCell::new(None) };
    }
    NOW.set(Some((name.to_owned(), by, Arc::clone(count))));
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            NOW.with_borrow(|now| {
                if let Some((name, by, count)) = now {
                    let count = count.load(Ordering::Relaxed);
                    eprintln!("FAILED {name} by={by} schedule={count}");
                }
            });
            before(info);
        }));
    });
}
