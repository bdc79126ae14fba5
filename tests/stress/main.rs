//! Many threads at everything that two threads can meet in, for the sanitizers: small rooms, started
//! together, every leased byte read and checked.
//!
//! Without the test harness, which ThreadSanitizer does not see through. Takes filters, as other test
//! binaries do, and from the environment:
//!
//! - `WEIGHBRIDGE_STRESS_THREADS`: threads of the kind that a room is about (4).
//! - `WEIGHBRIDGE_STRESS_ROUNDS`: what each writer does (30).
//! - `WEIGHBRIDGE_STRESS_REPEAT`: how often each room is entered (1).

mod rooms;

#[cfg(weighbridge_tsan)]
mod wrap;

use rooms::{CASES, Size};

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn main() {
    // crossbeam's default collector, where some other crate uses it, is made by a `Once` that
    // ThreadSanitizer does not see.
    drop(crossbeam_epoch::pin());
    let size = Size {
        threads: number("WEIGHBRIDGE_STRESS_THREADS", 4) as usize,
        rounds: number("WEIGHBRIDGE_STRESS_ROUNDS", 30),
    };
    let repeat = number("WEIGHBRIDGE_STRESS_REPEAT", 1);
    if std::env::args().any(|argument| argument == "--list") {
        return CASES.iter().for_each(|(name, _)| println!("{name}"));
    }
    let arguments = std::env::args().skip(1);
    let wanted: Vec<String> = arguments.filter(|one| !one.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let mut entered = 0;
    for (name, case) in CASES.iter().filter(|(name, _)| is_wanted(name)) {
        (0..repeat).for_each(|_| case(size));
        println!("test {name} ... ok");
        entered += 1;
    }
    println!("{entered} rooms, {repeat} times each, {size:?}");
}
