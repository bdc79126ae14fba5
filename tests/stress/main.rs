//! Many threads at everything that two threads can meet in, for the sanitizers: small rooms, started
//! together, every leased byte read and checked.
//!
//! Without the test harness, which ThreadSanitizer does not see through. `run` says what it takes.

mod rooms;
mod run;

#[cfg(weighbridge_tsan)]
mod wrap;

fn main() {
    // crossbeam's default collector, where some other crate uses it, is made by a `Once` that
    // ThreadSanitizer does not see.
    drop(crossbeam_epoch::pin());
    run::enter_rooms();
}
