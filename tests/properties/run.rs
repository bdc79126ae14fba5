//! Running cases, and saying what the smallest one is that fails.
//!
//! What lives here: seeds, the number of cases, panics as failures, the report. What does not: what a case
//! is.

use std::cell::Cell;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

thread_local! {
    /// Cases that fail while one is shrunk say nothing.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Is the run the one that is the same everywhere?
pub fn is_fixed() -> bool {
    number("WEIGHBRIDGE_PROPERTIES").is_none()
}

/// Why it panicked, if it did.
pub fn attempt(case: impl FnOnce()) -> Result<(), String> {
    quiet_panics();
    let before = QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(case));
    QUIET.set(before);
    outcome.map_err(|why| match why.downcast::<String>() {
        Ok(text) => *text,
        Err(why) => why
            .downcast_ref::<&str>()
            .map_or("a panic", |text| text)
            .to_owned(),
    })
}

/// Runs `cases` cases of what `strategy` draws, or as many as the environment says. `show`: one that fails,
/// as text that can be pasted.
pub fn cases<S: Strategy>(
    cases: u32,
    strategy: &S,
    show: impl Fn(&S::Value) -> String,
    run: impl Fn(&S::Value),
) where
    S::Value: Debug,
{
    let seed = match number("WEIGHBRIDGE_PROPERTIES_SEED") {
        Some(seed) => seed,
        None if is_fixed() => 1,
        None => std::time::UNIX_EPOCH
            .elapsed()
            .map_or(1, |now| now.as_nanos() as u64),
    };
    let asked = number("WEIGHBRIDGE_PROPERTIES").and_then(|cases| u32::try_from(cases).ok());
    if asked.is_some() {
        println!("WEIGHBRIDGE_PROPERTIES_SEED={seed}");
    }
    let config = Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let ran = Cell::new(0u64);
    let failed_after = Cell::new(None);
    let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |case| {
        ran.set(ran.get() + 1);
        attempt(|| run(&case)).map_err(|why| {
            if failed_after.get().is_none() {
                failed_after.set(Some(ran.get()));
            }
            TestCaseError::fail(why)
        })
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!(
            "case {} of seed {seed}, shrunk in {} runs, fails:\n\n{}\n\n{why}",
            failed_after.get().unwrap_or(0),
            ran.get(),
            show(&case),
        ),
        Err(TestError::Abort(why)) => panic!("no cases: {why}"),
    }
}
