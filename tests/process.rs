//! The process and its ends: what a forked child may do, and thread-locals of the main thread.
//!
//! Without the test harness: `fork` copies the calling thread only, so that no other may hold a lock
//! of the harness; and `main` must be ours to return from. Takes a filter, as other test binaries do.

#[cfg(unix)]
#[path = "support/at_exit.rs"]
mod at_exit;
mod support;

#[cfg(unix)]
mod process {
    pub mod fork;
    pub mod main_exit;
}

fn main() {
    #[cfg(unix)]
    unix();
}

#[cfg(unix)]
fn unix() {
    if process::main_exit::is_child() {
        return process::main_exit::child();
    }
    let cases = process::fork::CASES.iter().chain(process::main_exit::CASES);
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, case) in cases {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            case();
            println!("test {name} ... ok");
        }
    }
}
