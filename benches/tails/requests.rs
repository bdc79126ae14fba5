//! Requests that come at fixed times, and how long they take.
//!
//! What lives here: the thread that is measured. What does not: what happens beside it (`beside`), what
//! becomes of its times (`figures`).

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weighbridge::{SetHandle, WeightHandle, WeightRegistry};
use weighbridge_benches::Walk;

/// So many requests are timed together: a clock takes as long as one of them.
pub const BATCH: usize = 32;

/// One batch, in nanoseconds.
#[derive(Clone, Copy, Default)]
pub struct Sample {
    /// From its begin to its end.
    pub service: u64,
    /// From when it was due to its end: who is late pays for that here.
    pub since_due: u64,
}

/// How often this thread was without a core, if the system tells.
#[derive(Clone, Copy, Default)]
pub struct OffCore {
    /// It was somebody else's turn.
    pub preempted: u64,
    /// It waited for something: nothing of what it does is meant to.
    pub waited: u64,
}

impl OffCore {
    pub fn so_far() -> Self {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let count = |name: &str| {
            let count = status.lines().find_map(|line| line.strip_prefix(name));
            count.and_then(|count| count.trim().parse().ok())
        };
        OffCore {
            preempted: count("nonvoluntary_ctxt_switches:").unwrap_or(0),
            waited: count("voluntary_ctxt_switches:").unwrap_or(0),
        }
    }

    pub fn since(self, before: Self) -> Self {
        OffCore {
            preempted: self.preempted - before.preempted,
            waited: self.waited - before.waited,
        }
    }
}

/// What is asked for: one tensor of each of these sets.
pub struct Reader {
    registry: Arc<WeightRegistry>,
    weights: Vec<(SetHandle, WeightHandle)>,
}

impl Reader {
    pub fn of(registry: &Arc<WeightRegistry>, sets: &[SetHandle], tensor: &str) -> Self {
        let weight = |&set: &SetHandle| (set, registry.weight_handle(set, tensor).unwrap());
        Reader {
            registry: Arc::clone(registry),
            weights: sets.iter().map(weight).collect(),
        }
    }

    /// A batch is due every `period`, as long as `time` lasts. It spins in between, as a thread of a server
    /// that has something else to do: it is not woken up for each of them.
    pub fn serve(&self, period: Duration, time: Duration) -> Vec<Sample> {
        let batches = (time.as_nanos() / period.as_nanos()) as u32;
        // Its pages are there before the first is due.
        let mut samples = vec![Sample::default(); batches as usize];
        let mut walk = Walk::over(self.weights.len());
        let begin = Instant::now() + period;
        for (number, sample) in (0..batches).zip(&mut samples) {
            let due = begin + period * number;
            let mut started = Instant::now();
            while started < due {
                spin_loop();
                started = Instant::now();
            }
            for _ in 0..BATCH {
                let (set, weight) = self.weights[walk.step()];
                let lease = self.registry.acquire(set).expect("current");
                black_box(lease.weight(weight).expect("there").bytes()[0]);
            }
            let ended = Instant::now();
            sample.service = (ended - started).as_nanos() as u64;
            sample.since_due = (ended - due).as_nanos() as u64;
        }
        samples
    }
}
