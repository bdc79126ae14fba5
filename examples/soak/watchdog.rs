//! Notices what does not end.

use std::process;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::worker::BOUNDED;
use crate::world::World;

const LOOK: Duration = Duration::from_secs(1);

pub struct Watchdog {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

impl Watchdog {
    pub fn start(world: Arc<World>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut suspects = vec![None; world.doing.len()];
            loop {
                let before = Instant::now();
                if stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                // A machine that stood still is no stall of ours.
                if before.elapsed() < 3 * LOOK {
                    look(&world, &mut suspects);
                }
            }
        });
        Watchdog { thread, stop }
    }

    pub fn end(self) -> bool {
        drop(self.stop);
        self.thread.join().is_ok()
    }
}

/// A stall is what is overdue at two looks.
fn look(world: &World, suspects: &mut [Option<(Instant, bool)>]) {
    for (seat, (doing, suspect)) in world.doing.iter().zip(suspects).enumerate() {
        let Some((what, since)) = doing.overdue() else {
            *suspect = None;
            continue;
        };
        let taken = since.elapsed();
        match suspect {
            Some((known, told)) if *known == since => {
                if !*told {
                    let ledger = world.registry.ledger();
                    world.fail(format!(
                        "STALL: thread {seat} is at \"{what}\" for {taken:.1?}; {ledger:?}"
                    ));
                    *told = true;
                }
            }
            _ => *suspect = Some((since, false)),
        }
        if taken > 3 * BOUNDED + Duration::from_secs(60)
            || suspect.is_some_and(|it| it.1) && taken > 2 * BOUNDED
        {
            eprintln!("soak: \"{what}\" does not end, so nothing else can: giving up");
            println!("FAIL  no operation takes longer than it may");
            process::exit(1);
        }
    }
}
