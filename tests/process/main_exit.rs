//! The main thread's end: its thread-locals are dropped while the process exits, with the reclaimer
//! still at work and statics that are never dropped.

use std::process::Command;
use std::sync::OnceLock;

use weighbridge::WeightRegistry;

use crate::at_exit::{BOTH, Made, at_exit, last_words};
use crate::support::{bytes, registry};

pub const CASES: &[(&str, fn())] = &[(
    "the_main_threads_destructors_may_do_everything",
    the_main_threads_destructors_may_do_everything,
)];

const CASE: &str = "WEIGHBRIDGE_TEST_MAIN_EXIT";
const DONE: &str = "the destructor came to its end";

/// Is this the process whose main thread is to end?
pub fn is_child() -> bool {
    std::env::var_os(CASE).is_some()
}

/// Leaves a destructor behind and returns from `main`.
pub fn child() {
    static REGISTRY: OnceLock<WeightRegistry> = OnceLock::new();
    // SAFETY: no memory is involved. A process that hangs is ended by the signal.
    unsafe { libc::alarm(60) };
    let made = match std::env::var(CASE).as_deref() {
        Ok("Before") => Made::Before,
        _ => Made::After,
    };
    let registry = REGISTRY.get_or_init(registry);
    // Not in the main thread: it must not meet the registry before its time.
    let leased = std::thread::spawn(move || {
        let set = registry.publish("leased", bytes(64, 7)).unwrap();
        (set, registry.acquire_as("in a thread-local", set).unwrap())
    });
    let (set, lease) = leased.join().unwrap();
    at_exit(
        made,
        || drop(registry.acquire(set).unwrap()),
        move || last_words(registry, set, lease, "at exit"),
        |well| {
            if well {
                eprintln!("{DONE}");
            }
        },
    );
}

fn the_main_threads_destructors_may_do_everything() {
    for made in BOTH {
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this)
            .env(CASE, format!("{made:?}"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{made:?}: {}: {said}",
            output.status
        );
        assert!(said.contains(DONE), "{made:?}: it was not run: {said}");
    }
}
