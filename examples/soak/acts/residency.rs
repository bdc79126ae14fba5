//! Bytes that go and come back: evicting, loading, asking for what may be away, pins.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use weighbridge::{Demand, Estimate, SetHandle};

use crate::roles::{self, Role};
use crate::worker::{Done, PINS, Worker};

/// Sets of which most can be read again.
const ANY: std::ops::Range<Role> = roles::PLAIN.start..roles::TENANT.end;

fn some_set(worker: &mut Worker) -> Option<(Role, SetHandle)> {
    let role = worker.random.of_range(ANY);
    Some((role, worker.handle(role)?))
}

pub fn evict(worker: &mut Worker) -> Done {
    let Some((_, set)) = some_set(worker) else {
        return Ok(());
    };
    worker.world.registry.evict(set)?;
    Ok(())
}

pub fn load(worker: &mut Worker) -> Done {
    let Some((_, set)) = some_set(worker) else {
        return Ok(());
    };
    worker.world.registry.load(set)?;
    Ok(())
}

/// One set, or several that have nothing to do with each other, or a group of one transaction.
fn wanted(worker: &mut Worker) -> Vec<SetHandle> {
    let roles: Vec<Role> = match worker.random.below(3) {
        0 => {
            let groups = roles::GROUP.len() / roles::MEMBERS;
            roles::group(worker.random.below(groups)).collect()
        }
        1 => vec![worker.random.of_range(ANY)],
        _ => (0..3)
            .map(|_| worker.random.of_range(roles::PLAIN))
            .collect(),
    };
    let sets = roles.into_iter().filter_map(|role| worker.handle(role));
    sets.collect()
}

fn patience(worker: &mut Worker) -> Duration {
    Duration::from_micros(worker.random.below(5_000) as u64)
}

pub fn acquire(worker: &mut Worker) -> Done {
    let sets = wanted(worker);
    let patience = patience(worker);
    let lease = worker.world.registry.acquire_or_load(&sets, patience)?;
    worker.keep(lease, "acquire or load");
    Ok(())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// As a future, which is dropped when its time is over, whatever it has begun.
pub fn acquire_async(worker: &mut Worker) -> Done {
    let sets = wanted(worker);
    let deadline = Instant::now() + patience(worker);
    let world = worker.world.clone();
    let mut future = pin!(world.registry.acquire_or_load_async(&sets));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            worker.keep(answer?, "acquire or load as a future");
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::park_timeout(left);
    }
}

/// Pins a set, or lets go of a pin.
pub fn pin(worker: &mut Worker) -> Done {
    if worker.pins.len() >= PINS || (!worker.pins.is_empty() && worker.random.once_in(2)) {
        let at = worker.random.below(worker.pins.len());
        drop(worker.pins.swap_remove(at));
        return Ok(());
    }
    let Some((_, set)) = some_set(worker) else {
        return Ok(());
    };
    let pin = worker.world.registry.pin(set, "a worker")?;
    worker.pins.push(pin);
    Ok(())
}

pub fn estimate(worker: &mut Worker) -> Done {
    let sets = wanted(worker);
    let demand = sets
        .iter()
        .fold(Demand::new(), |demand, &set| demand.set(set));
    let estimate = worker.world.registry.estimate(&demand)?;
    if let Estimate::AfterEvicting { bytes, freed, .. } = estimate {
        worker.world.demand(bytes > 0 && freed > 0, || {
            format!("{bytes} bytes for {freed} that go")
        });
    }
    Ok(())
}
