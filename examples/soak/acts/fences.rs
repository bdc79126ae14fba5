//! Leases that end when something else has passed: a signal that another thread sets, a step of the
//! device, a query that says no a few times.

use std::sync::atomic::Ordering;

use weighbridge::fence::{self, named};
use weighbridge::{Lease, SetHandle};

use crate::check::Facts;
use crate::roles;
use crate::worker::{Done, Worker};
use crate::world::{Fenced, SHELF, lock};

fn some_lease(
    worker: &mut Worker,
) -> Result<Option<(SetHandle, Lease, Vec<Facts>)>, weighbridge::Error> {
    let role = worker.random.of_range(roles::PLAIN);
    let Some(set) = worker.handle(role) else {
        return Ok(None);
    };
    let lease = worker.world.registry.acquire_as("work for a device", set)?;
    let held = worker.look(lease, "lease until a fence");
    Ok(held.map(|held| (set, held.lease, held.facts)))
}

/// Lays the signal where any thread may set it, or sets it if there is no room.
fn lay(worker: &Worker, signal: fence::Signal, facts: Vec<Facts>) {
    let mut fenced = lock(&worker.world.fenced);
    if fenced.len() < SHELF {
        fenced.push(Fenced { signal, facts });
    } else {
        signal.set();
    }
}

pub fn give(worker: &mut Worker) -> Done {
    let Some((_, lease, facts)) = some_lease(worker)? else {
        return Ok(());
    };
    match worker.random.below(3) {
        0 => {
            let (signal, fence) = fence::signal("a callback");
            lease.release_after(fence);
            lay(worker, signal, facts);
        }
        1 => {
            let ahead = worker.random.below(5) as u64;
            let step = worker.world.step.load(Ordering::Relaxed) + ahead;
            lease.release_after(worker.world.steps.after(step));
        }
        _ => {
            let mut looks = worker.random.below(4);
            let query = move || {
                looks = looks.saturating_sub(1);
                looks == 0
            };
            lease.release_after(named("a query", query));
        }
    }
    Ok(())
}

pub fn retire(worker: &mut Worker) -> Done {
    let Some((set, lease, facts)) = some_lease(worker)? else {
        return Ok(());
    };
    let current = lease.set(set)?.generation();
    drop(lease);
    let (signal, fence) = fence::signal("after the last kernel");
    worker.world.registry.retire_after_if(set, current, fence)?;
    lay(worker, signal, facts);
    Ok(())
}

pub fn signal(worker: &mut Worker) -> Done {
    let world = &worker.world;
    world
        .steps
        .complete(world.step.fetch_add(1, Ordering::Relaxed));
    let mut fenced = lock(&world.fenced);
    if !fenced.is_empty() {
        let at = worker.random.below(fenced.len());
        let one = fenced.swap_remove(at);
        drop(fenced);
        one.signal.set();
    }
    Ok(())
}
