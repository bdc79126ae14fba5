//! Asking for parts: what is refused, and what is waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use weighbridge::source::{Source, Streamed};
use weighbridge::{Error, Order, Parts, WeightRegistry, WindowSize};

use super::layers::{Disk, Layers, check, registry};
use super::support::{SOON, block_on, bytes};

const NOT_LONG: Duration = Duration::from_millis(20);

#[test]
fn what_is_no_stream_is_refused() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(3, 1, &disk).streamed(2))
        .unwrap();
    let plain = registry.publish("plain", bytes(8, 1)).unwrap();
    let lease = registry.acquire([set, plain]).unwrap();
    let only = registry.acquire(plain).unwrap();
    let stream = |lease, set, order| registry.stream(lease, set, order).map(drop).unwrap_err();
    let refused = stream(&lease, plain, Order::forward());
    assert!(
        matches!(refused, Error::NotStreamed { .. }) && refused.is_misuse(),
        "{refused}"
    );
    assert!(matches!(
        stream(&only, set, Order::forward()),
        Error::NotInLease { .. }
    ));
    let refused = stream(&lease, set, Order::list([0, 3]));
    assert!(
        matches!(
            refused,
            Error::NoSuchPart {
                part: 3,
                parts: 3,
                ..
            }
        ),
        "{refused}"
    );
    assert!(refused.is_not_found());
    let mut ours = registry.stream(&lease, set, Order::forward()).unwrap();
    let refused = ours.part(3, SOON).map(drop).unwrap_err();
    assert!(
        matches!(refused, Error::NoSuchPart { part: 3, .. }),
        "{refused}"
    );
    let other = super::layers::registry();
    let elsewhere = other
        .stream(&lease, set, Order::forward())
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(elsewhere, Error::WrongRegistry { .. }),
        "{elsewhere}"
    );
}

#[test]
fn what_cannot_be_streamed_is_refused() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    // No pieces.
    let refused = Streamed::new(
        bytes(8, 1),
        &Parts::by(|_| Some("all".to_owned())),
        WindowSize::Parts(1),
    );
    assert!(matches!(refused, Err(Error::InvalidParts { .. })));
    // An adapter, and a set with a tensor of another one.
    let base = registry.publish("base", super::support::tiny()).unwrap();
    let pirate = super::support::adapter("pirate-v1", base);
    let refused = Streamed::new(pirate, &Parts::layers(), WindowSize::Parts(1)).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("an adapter is used as a whole"),
        "{refused}"
    );
    let norm = registry.weight_handle(base, "model.norm.weight").unwrap();
    let lent = super::support::tiny().alias("lent", norm).unwrap();
    let refused = Streamed::new(lent, &Parts::layers(), WindowSize::Parts(1)).unwrap_err();
    assert!(refused.to_string().contains("another set's"), "{refused}");
    // Written by somebody, once.
    let streamed = Layers::new(3, 1, &disk).streamed(2);
    let refused = registry
        .fill(streamed.plan().clone(), None)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(refused, Error::InvalidParts { .. }) && refused.is_malformed(),
        "{refused}"
    );
    // A tensor that is not there all the time is nobody's alias.
    let set = registry.publish("layers", streamed).unwrap();
    for (tensor, fits) in [("layers.0.a", false), ("embed", true)] {
        let handle = registry.weight_handle(set, tensor).unwrap();
        let alias = bytes(8, 1).alias("lent", handle).unwrap();
        match registry.publish(tensor, alias) {
            Ok(_) => assert!(fits),
            Err(refused) => {
                assert!(
                    !fits && matches!(refused.error(), Error::AliasMismatch { .. }),
                    "{refused}"
                );
            }
        }
    }
    assert_eq!(registry.ledger().reserved, 0);
}

/// A thread that has a part of another stream can be in its own way, and is told so.
#[test]
fn a_wait_says_what_is_in_the_way() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(3, 1, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut one = registry.stream(&lease, set, Order::forward()).unwrap();
    let mut other = registry.stream(&lease, set, Order::forward()).unwrap();
    let held = one.part(0, SOON).unwrap();
    let refused = other.part(1, NOT_LONG).map(drop).unwrap_err();
    assert!(refused.is_timeout(), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("1 parts are held in its window"),
        "{refused}"
    );
    // The same part has room for any number.
    check(&other.part(0, NOT_LONG).unwrap(), 0, 1);
    drop(held);
    check(&other.part(1, SOON).unwrap(), 1, 1);
}

/// While one source hangs, others are streamed, and whoever waits can give up.
#[test]
fn a_disk_that_hangs_is_in_its_own_way_only() {
    let registry = registry();
    let (hangs, disk) = (Arc::new(Disk::default()), Arc::new(Disk::default()));
    let stuck = registry
        .publish("stuck", Layers::new(4, 1, &hangs).streamed(2))
        .unwrap();
    let fine = registry
        .publish("fine", Layers::new(4, 2, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire([stuck, fine]).unwrap();
    hangs.close();
    let mut waits = registry.stream(&lease, stuck, Order::forward()).unwrap();
    while hangs.waiting.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    let refused = waits.part(0, NOT_LONG).map(drop).unwrap_err();
    assert!(refused.is_timeout(), "{refused}");
    assert!(
        refused.to_string().contains("it is being read"),
        "{refused}"
    );
    let mut stream = registry.stream(&lease, fine, Order::forward()).unwrap();
    for layer in 0..4 {
        check(&stream.part(layer, SOON).unwrap(), layer, 2);
    }
    // A set whose reader hangs is retired all the same, and what is in the way has a name.
    drop((waits, stream, lease));
    let retirement = registry.retire(stuck).unwrap();
    let holdup = retirement.drained(NOT_LONG).unwrap_err().to_string();
    assert!(holdup.contains("weighbridge reads ahead"), "{holdup}");
    hangs.open();
    retirement.reclaimed(SOON).unwrap();
}

/// Whoever may wait needs nobody who reads for it: all loaders are busy elsewhere, and all who ask get their parts.
#[test]
fn calls_that_wait_need_no_loader() {
    let registry = Arc::new(WeightRegistry::builder().loaders(1).build().unwrap());
    let (hangs, disk) = (Arc::new(Disk::default()), Arc::new(Disk::default()));
    let stuck = registry
        .publish("stuck", Layers::new(4, 1, &hangs).streamed(2))
        .unwrap();
    let fine = registry
        .publish("fine", Layers::new(4, 2, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire([stuck, fine]).unwrap();
    hangs.close();
    let ahead = registry.stream(&lease, stuck, Order::forward()).unwrap();
    while hangs.waiting.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    let done = AtomicBool::new(false);
    thread::scope(|threads| {
        for start in 0..3 {
            let (registry, lease, done) = (&registry, &lease, &done);
            threads.spawn(move || {
                let mut stream = registry.stream(lease, fine, Order::ring()).unwrap();
                for step in 0.. {
                    let layer = (start + step) % 3;
                    check(&stream.part(layer, SOON).unwrap(), layer, 2);
                    if step >= 80 && done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        // Not even this future does: those whom it is in the way of read its part.
        threads.spawn(|| {
            let mut stream = registry.stream(&lease, fine, Order::unknown()).unwrap();
            check(&block_on(stream.part_async(3)).unwrap(), 3, 2);
            done.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(
        hangs.waiting.load(Ordering::Relaxed),
        1,
        "the loader still hangs"
    );
    hangs.open();
    drop(ahead);
}

/// All loaders are busy elsewhere, and a stream goes before anybody has read ahead for it: nothing of it waits for its turn.
#[test]
fn what_nobody_has_begun_to_read_keeps_nothing() {
    let registry = Arc::new(WeightRegistry::builder().loaders(1).build().unwrap());
    let (hangs, disk) = (Arc::new(Disk::default()), Arc::new(Disk::default()));
    let stuck = registry
        .publish("stuck", Layers::new(4, 1, &hangs).streamed(2))
        .unwrap();
    let fine = registry
        .publish("fine", Layers::new(4, 2, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire(stuck).unwrap();
    hangs.close();
    let ahead = registry.stream(&lease, stuck, Order::forward()).unwrap();
    while hangs.waiting.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    let lease = registry.acquire(fine).unwrap();
    let stream = registry.stream(&lease, fine, Order::forward()).unwrap();
    let mut other = registry.stream(&lease, fine, Order::forward()).unwrap();
    drop((lease, stream));
    // Somebody else still wants it to be read, and reads itself.
    check(&other.part(0, SOON).unwrap(), 0, 2);
    drop(other);
    registry.retire(fine).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(hangs.waiting.load(Ordering::Relaxed), 1, "it hangs");
    assert_eq!(disk.take_reads(), [0]);
    // Whoever comes in vain goes on.
    let again = registry
        .publish("fine", Layers::new(4, 3, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire(again).unwrap();
    let mut stream = registry.stream(&lease, again, Order::ring()).unwrap();
    hangs.open();
    check(&block_on(stream.part_async(2)).unwrap(), 2, 3);
    drop(ahead);
}

/// One set of which there is always something to read leaves the loader to others after each part.
#[test]
fn a_set_that_is_always_read_is_in_nobodys_way() {
    let registry = Arc::new(WeightRegistry::builder().loaders(1).build().unwrap());
    let disks = [(); 2].map(|()| Arc::new(Disk::default()));
    let sets = [0, 1].map(|at| {
        let layers = Layers::new(6, 1 + at as u8, &disks[at]).streamed(4);
        registry.publish(format!("{at}"), layers).unwrap()
    });
    let lease = registry.acquire(sets).unwrap();
    disks[0].close();
    let order = Order::ring().ahead(3);
    let ahead = registry.stream(&lease, sets[0], order).unwrap();
    while disks[0].waiting.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    let mut stream = registry.stream(&lease, sets[1], Order::unknown()).unwrap();
    let mut soon = Box::pin(stream.part_async(5));
    let mut context = Context::from_waker(Waker::noop());
    assert!(soon.as_mut().poll(&mut context).is_pending());
    // The first of three. The loader would stop in the second one, if it went on with it.
    disks[0].allow(1);
    check(&block_on(soon).unwrap(), 5, 2);
    disks[0].open();
    drop(ahead);
}

/// A read that a call has begun is brought to its end, whatever its patience.
#[test]
fn a_read_of_ones_own_is_not_given_up() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(2, 1, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::unknown()).unwrap();
    disk.close();
    thread::scope(|threads| {
        threads.spawn(|| {
            while disk.waiting.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            disk.open();
        });
        check(&stream.part(0, Duration::ZERO).unwrap(), 0, 1);
    });
}
