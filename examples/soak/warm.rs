//! What grows up to a bound and stays there, by design, is brought to its bound before the run, so that
//! whatever grows during the run has no bound.
//!
//! Each of the registry's tables keeps the room of the most that was ever in it at one time: the shards
//! of names, the slots, the labels, the lists of what is going and of what is still looked at, and
//! arc-swap's nodes, one for each thread that was there at one time.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use weighbridge::{Error, WeightRegistry};

use crate::random::Random;
use crate::roles;
use crate::world::World;

/// Enough for every one of the shards of names to have had one.
const NAMES: usize = 16 << 10;
/// More leases than the run holds at one time.
const LEASES: usize = 1 << 10;
/// More commits than are made while one thread looks.
const COMMITS: usize = 16 << 10;
const SOON: Duration = Duration::from_secs(60);

/// Brings the run's registry to its bounds; nothing is in it before and after.
pub fn warm(world: &World) -> Result<(), Error> {
    let registry = &world.registry;
    let mut random = Random::of(1, 1);
    let mut next = || roles::checkpoint(&world.body(roles::GROUP.start), &mut random);
    for at in 0..NAMES {
        let set = registry.publish(format!("warm-{at}"), next()?)?;
        registry.retire(set)?;
    }
    let set = registry.publish(roles::name(roles::GROUP.start), next()?)?;
    let mut leases = Vec::with_capacity(LEASES);
    for _ in 0..LEASES {
        leases.push(registry.acquire_as("warm", set)?);
        registry.replace(set, next()?)?;
    }
    drop(leases);
    registry.scope(|_| {
        for _ in 0..COMMITS {
            registry.replace(set, next()?)?;
        }
        Ok::<(), Error>(())
    })?;
    threads(registry, 8 * world.options.threads);
    registry.retire(set)?.reclaimed(SOON)
}

/// As many threads at one time as the run never has.
fn threads(registry: &WeightRegistry, count: usize) {
    let all_there = Barrier::new(count);
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                registry.scope(|_| ());
                std::hint::black_box(registry.lookup("warm"));
                all_there.wait();
            });
        }
    });
}
