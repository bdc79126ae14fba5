//! What one round of `weighbridge-scheduler` costs the engine's thread, by what waits.
//!
//! What is here: `schedule()` when nobody can join, when one joins, and when adapters are away and there is no room
//! for them; and an admission with its cancellation beside such a queue. What is not: how good the order is (that crate's `examples/traces.rs`).
//!
//! ```console
//! cargo bench -p weighbridge-benches --bench rounds
//! ```

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use weighbridge::source::{Evictable, InMemory};
use weighbridge::{Dtype, SetHandle, WeightRegistry};
use weighbridge_scheduler::{Limits, Scheduler};

const WAITING: [usize; 3] = [16, 128, 1024];

struct Stage {
    registry: Arc<WeightRegistry>,
    base: SetHandle,
    adapters: Vec<SetHandle>,
}

fn bytes() -> Result<InMemory, weighbridge::Error> {
    InMemory::new().tensor("w", Dtype::U8, [4], [1; 4])
}

impl Stage {
    fn new(adapters: usize, limit: u64) -> Self {
        let registry = WeightRegistry::builder().limit_bytes(limit);
        let registry = Arc::new(registry.build().unwrap());
        let base = registry.publish("base", bytes().unwrap()).unwrap();
        let adapters = (0..adapters).map(|at| {
            let open = move || {
                let own = InMemory::new().replacement("w", Dtype::U8, [4], [2; 4])?;
                Ok(own.on(base))
            };
            let source = Evictable::opened_by(open).unwrap();
            let set = registry.publish(format!("lora-{at}"), source).unwrap();
            if limit != u64::MAX {
                registry.evict(set).unwrap();
            }
            set
        });
        let adapters = adapters.collect();
        Stage {
            registry,
            base,
            adapters,
        }
    }

    fn scheduler(&self, limits: Limits) -> Scheduler<usize> {
        let limits = limits.waiting(usize::MAX);
        Scheduler::new(Arc::clone(&self.registry), limits).unwrap()
    }

    /// So many requests, for all adapters in turn.
    fn fill(&self, scheduler: &Scheduler<usize>, requests: usize) {
        for request in 0..requests {
            let adapter = self.adapters[request % self.adapters.len()];
            let admitted = scheduler.admit(self.base, Some(adapter), "request", request);
            admitted.unwrap();
        }
    }
}

fn rounds(criterion: &mut Criterion) {
    let stage = Stage::new(64, u64::MAX);
    let mut group = criterion.benchmark_group("a round of 64 adapters, nobody can join");
    for waiting in WAITING {
        let scheduler = stage.scheduler(Limits::default().running(1));
        stage.fill(&scheduler, waiting + 1);
        let _runs = scheduler.schedule();
        group.bench_function(format!("{waiting} wait"), |bench| {
            bench.iter(|| black_box(scheduler.schedule().joined.len()));
        });
    }
    group.finish();

    let mut group =
        criterion.benchmark_group("a round of 64 adapters, one ends, one joins, one comes");
    for waiting in WAITING {
        let scheduler = stage.scheduler(Limits::default().running(32));
        stage.fill(&scheduler, waiting + 32);
        let mut running: Vec<_> = scheduler.schedule().joined;
        group.bench_function(format!("{waiting} wait"), |bench| {
            bench.iter(|| {
                drop(running.swap_remove(0));
                let adapter = stage.adapters[running.len() % stage.adapters.len()];
                let admitted = scheduler.admit(stage.base, Some(adapter), "request", 0);
                admitted.unwrap();
                running.extend(scheduler.schedule().joined);
            });
        });
    }
    group.finish();

    // For the base and one of them.
    let stage = Stage::new(1024, 128);
    let one = Stage::new(1, u64::MAX);
    let mut group =
        criterion.benchmark_group("a round of adapters that are away, without room for another");
    for waiting in WAITING {
        let scheduler = stage.scheduler(Limits::default().ahead(1).patience(u64::MAX));
        // The room is taken for as long as this is measured.
        let held = stage.registry.acquire_or_load(
            [stage.base, stage.adapters[0]],
            std::time::Duration::from_secs(60),
        );
        let held = held.unwrap();
        for at in 0..waiting {
            let adapter = stage.adapters[1 + at % (stage.adapters.len() - 1)];
            let admitted = scheduler.admit(stage.base, Some(adapter), "request", at);
            admitted.unwrap();
        }
        group.bench_function(format!("{waiting} wait"), |bench| {
            bench.iter(|| black_box(scheduler.schedule().failed.len()));
        });
        drop((scheduler, held));
    }
    group.finish();

    let mut group = criterion.benchmark_group("admitted and cancelled");
    for waiting in WAITING {
        let scheduler = one.scheduler(Limits::default().running(1));
        one.fill(&scheduler, waiting);
        group.bench_function(format!("{waiting} wait"), |bench| {
            bench.iter(|| {
                let ticket = scheduler.admit(one.base, Some(one.adapters[0]), "request", 0);
                black_box(scheduler.cancel(ticket.unwrap()))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rounds);
criterion_main!(benches);
