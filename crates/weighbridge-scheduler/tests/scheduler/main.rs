//! The scheduler on a real registry, by concern in the files beside.
//!
//! What lives here: small sets, a source that can be held and broken, an engine that runs nothing.

mod admission;
mod endings;
mod loads;
mod property;
mod rounds;
mod threads;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use weighbridge::source::{Evictable, InMemory};
use weighbridge::{Dtype, Error, SetHandle, WeightRegistry};
use weighbridge_scheduler::{Limits, Round, Scheduler, Turn};

/// Long enough for any wait that is going to succeed, on any machine.
const SOON: Duration = Duration::from_secs(60);

fn checkpoint() -> InMemory {
    let weight = vec![0; 16];
    InMemory::new()
        .tensor("q.weight", Dtype::F32, [2, 2], weight)
        .unwrap()
}

fn lora(base: SetHandle, fill: u8) -> InMemory {
    let (a, b) = (vec![fill; 8], vec![fill; 8]);
    InMemory::new()
        .lora("q", Dtype::F32, ([1, 2], a), ([2, 1], b), 1.0)
        .unwrap()
        .on(base)
}

/// A base and some of its adapters, all resident.
struct World {
    registry: Arc<WeightRegistry>,
    base: SetHandle,
    adapters: Vec<SetHandle>,
}

impl World {
    fn new(adapters: u8) -> Self {
        let registry = Arc::new(WeightRegistry::builder().build().unwrap());
        let base = registry.publish("base", checkpoint()).unwrap();
        let publish = |at| {
            let source = Evictable::new(lora(base, at));
            registry.publish(format!("a{at}"), source).unwrap()
        };
        let adapters = (0..adapters).map(publish).collect();
        World {
            registry,
            base,
            adapters,
        }
    }

    fn scheduler<T>(&self, limits: Limits) -> Scheduler<T> {
        Scheduler::new(Arc::clone(&self.registry), limits).unwrap()
    }

    fn replace(&self, at: usize, fill: u8) {
        let source = Evictable::new(lora(self.base, fill));
        self.registry.replace(self.adapters[at], source).unwrap();
    }

    /// Retires everything. All bytes come back if nobody has a lease any more.
    fn end(&self) {
        for &adapter in &self.adapters {
            let _ = self.registry.retire(adapter);
        }
        let base = self.registry.retire(self.base).unwrap();
        base.reclaimed(SOON).unwrap();
        for going in self.registry.retired() {
            going.reclaimed(SOON).unwrap();
        }
        assert_eq!(self.registry.ledger().total(), 0);
    }
}

/// A source that waits until it is let go of, counts how often it was opened, and fails if it is told to.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    broken: bool,
    opened: usize,
}

impl Gate {
    fn open(&self, base: SetHandle) -> Result<InMemory, Error> {
        let mut state = self.state.lock().unwrap();
        state.opened += 1;
        self.changed.notify_all();
        while state.closed {
            state = self.changed.wait(state).unwrap();
        }
        if state.broken {
            return Err(Error::Io {
                path: "adapter".into(),
                op: "open",
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        Ok(lora(base, 9))
    }

    fn set(&self, closed: bool, broken: bool) {
        let mut state = self.state.lock().unwrap();
        state.closed = closed;
        state.broken = broken;
        self.changed.notify_all();
    }

    fn opened(&self) -> usize {
        self.state.lock().unwrap().opened
    }

    /// Waits until somebody reads.
    fn entered(&self, times: usize) {
        let state = self.state.lock().unwrap();
        let waiting = self
            .changed
            .wait_timeout_while(state, SOON, |state| state.opened < times);
        assert!(!waiting.unwrap().1.timed_out(), "nobody reads");
    }
}

/// Publishes an adapter behind a gate, and evicts it.
fn gated(world: &World, name: &str) -> (Arc<Gate>, SetHandle) {
    let gate = Arc::new(Gate::default());
    let (own, base) = (Arc::clone(&gate), world.base);
    let source = Evictable::opened_by(move || own.open(base)).unwrap();
    let set = world.registry.publish(name, source).unwrap();
    world.registry.evict(set).unwrap();
    gate.state.lock().unwrap().opened = 0;
    (gate, set)
}

/// Does rounds until one of them says something.
fn next_round<T>(scheduler: &Scheduler<T>) -> Round<T> {
    let deadline = Instant::now() + SOON;
    loop {
        let round = scheduler.schedule();
        if !round.is_empty() {
            return round;
        }
        assert!(
            scheduler.wait(deadline.saturating_duration_since(Instant::now())),
            "nobody woke the engine: {scheduler:?}"
        );
    }
}

/// What joined brought.
fn payloads<T: Copy>(joined: &[Turn<T>]) -> Vec<T> {
    joined.iter().map(|turn| turn.payload).collect()
}
