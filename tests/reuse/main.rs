//! Everything again where every address comes back at once: scripts on one thread, and the rooms of the
//! stress test. A pointer that is kept too long leads to its successor here, not to memory that happens to
//! look as it did.
//!
//! A binary of its own, and without the test harness: the allocator is the whole process's. Takes
//! filters; the environment is that of the stress test.

mod lifo;
#[path = "../stress/rooms/mod.rs"]
mod rooms;
#[path = "../stress/run.rs"]
mod run;
mod scripts;

fn main() {
    for (name, script) in run::wanted(scripts::SCRIPTS) {
        script();
        println!("test {name} ... ok");
    }
    run::enter_rooms();
    assert!(
        lifo::reused() > 0,
        "no block was handed on: this tests nothing"
    );
    println!("{} blocks were handed on", lifo::reused());
}
