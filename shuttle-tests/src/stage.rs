//! Sets to play with, and what every test looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use shuttle::thread::{JoinHandle, Thread, current, park, spawn};
use weighbridge::source::InMemory;
use weighbridge::{Dtype, Lease, SetHandle, WeightRegistry};

/// What one set of [`bytes`] is charged.
pub const LINE: u64 = 64;

/// A deadline that never passes: what waits for ever is a deadlock, and told as one.
pub const LONG: Duration = Duration::from_secs(3600);

/// A deadline that may pass at any moment (`sync::Condvar` in the scheduled build).
pub const SOON: Duration = Duration::from_secs(30);

/// A registry for one schedule.
///
/// # Panics
/// If there is none.
pub fn registry() -> Arc<WeightRegistry> {
    let builder = WeightRegistry::builder().event_capacity(32);
    Arc::new(builder.build().expect("a registry"))
}

/// Starts a thread that has the registry.
///
/// Not shuttle's `scope`: when the last thread of a scope ends, it wakes the one that opened it, whatever
/// that one waits for.
pub fn start<R, T>(registry: &Arc<R>, f: impl FnOnce(&R) -> T + Send + 'static) -> JoinHandle<T>
where
    R: Send + Sync + 'static,
    T: Send + 'static,
{
    let registry = Arc::clone(registry);
    spawn(move || f(&registry))
}

/// Waits for threads.
///
/// # Panics
/// Never: a panic in a thread ends the test there.
pub fn all<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    let join = |thread: JoinHandle<T>| thread.join().expect("it did not panic");
    threads.into_iter().map(join).collect()
}

struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// What a future comes to, on this thread. (Not by the tests' `block_on`: its thread would be parked by the system, which
/// the scheduler does not see.)
pub fn ended<F: Future>(future: F) -> F::Output {
    let unpark = Arc::new(Unpark(current(), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = Box::pin(future);
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return answer;
        }
        while !unpark.1.swap(false, Ordering::SeqCst) {
            park();
        }
    }
}

/// One tensor `w` of four equal bytes.
///
/// # Panics
/// Never.
pub fn bytes(fill: u8) -> InMemory {
    let tensor = InMemory::new().tensor("w", Dtype::U8, [4], [fill; 4]);
    tensor.expect("four bytes")
}

/// An adapter on `base` that puts four equal bytes in place of its tensor.
///
/// # Panics
/// Never.
pub fn adapter(base: SetHandle, fill: u8) -> InMemory {
    let tensor = InMemory::new().replacement("w", Dtype::U8, [4], [fill; 4]);
    tensor.expect("four bytes").on(base)
}

/// What a leased set of ours is filled with: the same byte everywhere.
///
/// # Panics
/// If it is torn, or not in the lease.
pub fn value(lease: &Lease, set: SetHandle) -> u8 {
    let set = lease.set(set).expect("leased");
    let weight = set.iter().next().expect("a tensor").expect("readable");
    let bytes = weight.bytes();
    assert_eq!(bytes, [bytes[0]; 4], "torn");
    bytes[0]
}

/// What `set` is filled with now.
///
/// # Panics
/// If it cannot be leased.
pub fn filled(registry: &WeightRegistry, set: SetHandle) -> u8 {
    value(&registry.acquire(set).expect("there"), set)
}

/// All bytes that are accounted for.
pub fn total(registry: &WeightRegistry) -> u64 {
    registry.ledger().total()
}

/// Retires all that is left, and waits for its bytes: nothing is charged then.
///
/// # Panics
/// If something stays.
pub fn empty(registry: &WeightRegistry) {
    let left: Vec<SetHandle> = registry
        .catalog()
        .entries()
        .iter()
        .map(|entry| entry.handle)
        .collect();
    let mut all = registry.transaction();
    for set in left {
        all.retire(set).expect("nobody else retires now");
    }
    let gone = all.commit().expect("nobody else is here");
    for retirement in gone.previous {
        retirement.reclaimed(LONG).expect("the bytes come back");
    }
    for retirement in registry.retired() {
        retirement.reclaimed(LONG).expect("the bytes come back");
    }
    assert_eq!(total(registry), 0, "something is charged to nobody");
    assert_eq!(registry.stats().sets, 0, "a name was left behind");
}
