//! Registries that are made and dropped during the run; the mistakes that are made on purpose and are
//! nobody else's.

use std::fs::File;
use std::thread;
use std::time::Duration;

use weighbridge::{Account, WeightRegistry};

use crate::held::{self, Held};
use crate::options::Plant;
use crate::roles;
use crate::worker::{Done, Worker};

pub fn nested(worker: &mut Worker) -> Done {
    let registry = WeightRegistry::builder().limit_bytes(4 << 20).build()?;
    let world = worker.world.clone();
    let mut sets = Vec::new();
    for _ in 0..2 {
        let body = world.body(roles::NESTED);
        let source = worker.source(&body)?;
        sets.push(registry.publish(format!("nested-{}", body.uid), source)?);
    }
    let lease = registry.acquire_as("it outlives its registry", &sets)?;
    if worker.random.once_in(2) {
        registry.retire(sets[0])?;
    }
    let Some(held) = Held::of(lease, &world, "a registry of its own") else {
        return Ok(());
    };
    let held = held::outlive(registry, held);
    if let Some(back) = worker.shelve(held) {
        back.let_go(&world, "a registry of its own");
    }
    Ok(())
}

/// Mistakes on purpose; nothing without `--plant`.
pub fn planted(worker: &mut Worker) -> Done {
    let world = &worker.world;
    if world.plants(Plant::Byte) {
        let account = Account::namespace("nobody");
        std::mem::forget(world.registry.reserve_in(&account, 1)?);
    }
    if world.plants(Plant::Stuck) {
        thread::sleep(Duration::from_secs(3600));
    }
    if world.plants(Plant::File)
        && let Ok(file) = File::open(file!()).or_else(|_| File::open("/dev/null"))
    {
        std::mem::forget(file);
    }
    if world.plants(Plant::Thread) {
        thread::spawn(|| thread::sleep(Duration::from_secs(3600)));
    }
    Ok(())
}
