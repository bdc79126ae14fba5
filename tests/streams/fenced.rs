//! Parts that a device still reads after the stream has gone on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use weighbridge::{Error, Order, Part, fence};

use super::layers::{Disk, Layers, byte, check, registry};
use super::support::device::until;
use super::support::{SOON, block_on, ends};

const NOT_LONG: Duration = Duration::from_millis(20);

/// Tensor `a` of a layer, as a device sees it: a place in memory.
struct Device(*const u8, usize);

impl Device {
    fn of(part: &Part<'_>) -> Self {
        let name = format!("{}.a", part.name());
        let bytes = part.get(&name).unwrap().bytes();
        Device(bytes.as_ptr(), bytes.len())
    }

    /// Still that layer's bytes?
    fn check(&self, layer: usize) {
        // SAFETY: the part is kept until its fence has passed, which it has not.
        let there = unsafe { std::slice::from_raw_parts(self.0, self.1) };
        let name = format!("layers.{layer}.a");
        assert!(
            (0..)
                .zip(there)
                .all(|(at, there)| *there == byte(&name, at, 1))
        );
    }
}

#[test]
fn a_part_behind_a_fence_stays_until_it_has_passed() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(6, 1, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
    let (copied, copy) = fence::signal("copy of layer 0");
    let part = stream.part(0, SOON).unwrap();
    let device = Device::of(&part);
    part.release_after(copy);
    // It is in the way of what does not fit beside it, and of nothing else.
    for layer in [1, 2, 3, 0, 5] {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
        device.check(0);
    }
    let mut other = registry.stream(&lease, set, Order::unknown()).unwrap();
    let held = stream.part(1, SOON).unwrap();
    let refused = other.part(2, NOT_LONG).map(drop).unwrap_err();
    assert!(
        matches!(refused, Error::PartNotLoaded { held: 2, .. }),
        "{refused}"
    );
    assert_eq!(registry.fences().len(), 1);
    device.check(0);
    copied.set();
    check(&other.part(2, SOON).unwrap(), 2, 1);
    check(&held, 1, 1);
    drop(held);
    drop((stream, other, lease));
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!((registry.ledger().total(), registry.fences().len()), (0, 0));
}

/// The stream, its lease and the set are gone: what the fence keeps is named by it.
#[test]
fn a_fence_keeps_the_set_too() {
    for window in [2, 99] {
        let (registry, disk) = (registry(), Arc::new(Disk::default()));
        let set = registry
            .publish("layers", Layers::new(4, 1, &disk).streamed(window))
            .unwrap();
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
        for layer in 0..4 {
            check(&stream.part(layer, SOON).unwrap(), layer, 1);
        }
        stream.enter(0, SOON).unwrap();
        let (copied, copy) = fence::signal("copy of layer 0");
        let (never, nothing) = fence::signal("of nothing");
        stream.leave_after(copy);
        stream.leave_after(nothing);
        drop(never);
        drop((stream, lease));
        let retirement = registry.retire(set).unwrap();
        let holdup = retirement.drained(NOT_LONG).unwrap_err().to_string();
        assert!(
            holdup.contains("copy of layer 0") && !holdup.contains("nothing"),
            "{holdup}"
        );
        copied.set();
        retirement.reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().total(), 0);
    }
}

/// One that panics keeps its part for ever, and nothing else.
#[test]
fn a_fence_that_panics_keeps_its_part() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(4, 1, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
    let part = stream.part(0, SOON).unwrap();
    let device = Device::of(&part);
    part.release_after(fence::named("broken", || -> bool { panic!("on purpose") }));
    while registry.stats().fence_panics == 0 {
        std::thread::yield_now();
    }
    for layer in [1, 2, 3, 1, 2, 3] {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
    }
    device.check(0);
    // Whoever waits for the one place that is left gets it, by a call or a future, whoever else wants it all the time.
    let done = AtomicUsize::new(0);
    thread::scope(|threads| {
        for start in [1, 3] {
            let (registry, lease, done) = (&registry, &lease, &done);
            threads.spawn(move || {
                let mut stream = registry.stream(lease, set, Order::unknown()).unwrap();
                for step in 0.. {
                    let layer = (start + step) % 3 + 1;
                    check(&stream.part(layer, SOON).unwrap(), layer, 1);
                    if step > 100 && done.load(Ordering::Relaxed) > 0 {
                        break;
                    }
                }
            });
        }
        threads.spawn(|| {
            let mut late = registry.stream(&lease, set, Order::unknown()).unwrap();
            for layer in (1..4).cycle().take(30) {
                check(&block_on(late.part_async(layer)).unwrap(), layer, 1);
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
    });
    device.check(0);
    until(
        "it is known to be broken",
        || matches!(&registry.fences()[..], [one] if one.broken && one.name == "broken"),
    );
}

/// The registry may go meanwhile, whoever looks at the fence last.
#[test]
fn a_fence_outlives_the_registry() {
    ends("a fence that outlives its registry", || {
        for first in [true, false] {
            let (registry, disk) = (registry(), Arc::new(Disk::default()));
            let set = registry
                .publish("layers", Layers::new(4, 1, &disk).streamed(2))
                .unwrap();
            let lease = registry.acquire(set).unwrap();
            let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
            let part = stream.part(0, SOON).unwrap();
            let device = Device::of(&part);
            let (copied, copy) = fence::signal("copy of layer 0");
            part.release_after(copy);
            drop(lease);
            let retirement = registry.retire(set).unwrap();
            if first {
                drop(registry);
                check(&stream.part(1, SOON).unwrap(), 1, 1);
                device.check(0);
                copied.set();
                drop(stream);
            } else {
                drop(stream);
                drop(registry);
                device.check(0);
                copied.set();
            }
            retirement.reclaimed(SOON).unwrap();
        }
    });
}
