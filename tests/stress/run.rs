//! Which rooms are entered, how often, with how many threads.
//!
//! What lives here: arguments and environment. What does not: the rooms.
//!
//! Arguments are filters, as other test binaries have them. From the environment:
//!
//! - `WEIGHBRIDGE_STRESS_THREADS`: threads of the kind that a room is about (4).
//! - `WEIGHBRIDGE_STRESS_ROUNDS`: what each writer does (30).
//! - `WEIGHBRIDGE_STRESS_REPEAT`: how often each room is entered (1).

use super::rooms::{CASES, Size};

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Those of `all` that the arguments ask for.
pub fn wanted<T: Copy>(all: &[(&'static str, T)]) -> Vec<(&'static str, T)> {
    let filters = || std::env::args().skip(1).filter(|one| !one.starts_with('-'));
    let is_wanted =
        |name: &str| filters().next().is_none() || filters().any(|part| name.contains(&part));
    all.iter()
        .copied()
        .filter(|(name, _)| is_wanted(name))
        .collect()
}

/// Enters the rooms that the arguments ask for, or lists all of them (`--list`).
pub fn enter_rooms() {
    if std::env::args().any(|argument| argument == "--list") {
        return CASES.iter().for_each(|(name, _)| println!("{name}"));
    }
    let size = Size {
        threads: number("WEIGHBRIDGE_STRESS_THREADS", 4) as usize,
        rounds: number("WEIGHBRIDGE_STRESS_ROUNDS", 30),
    };
    let repeat = number("WEIGHBRIDGE_STRESS_REPEAT", 1);
    assert_ne!(repeat, 0, "nothing would be checked");
    for (name, case) in wanted(CASES) {
        (0..repeat).for_each(|_| case(size));
        println!("test {name} ... ok ({repeat} times, {size:?})");
    }
}
