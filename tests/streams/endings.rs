//! Streams that end before their time, and sets that end under them.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use weighbridge::{Error, Order};

use super::layers::{Disk, Layers, check, registry};
use super::support::{SOON, block_on};

#[test]
fn a_stream_outlives_the_retirement_of_its_set() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(5, 1, &disk).streamed(2))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
    drop(lease);
    let retirement = registry.retire(set).unwrap();
    for layer in 0..5 {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
    }
    assert!(!retirement.is_drained());
    drop(stream);
    retirement.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn a_future_that_is_dropped_leaves_nothing() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(5, 1, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry
        .stream(&lease, set, Order::forward().ahead(0))
        .unwrap();
    let mut other = registry
        .stream(&lease, set, Order::forward().ahead(0))
        .unwrap();
    disk.close();
    for layer in [0, 1] {
        let mut soon = Box::pin(stream.part_async(layer));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(soon.as_mut().poll(&mut context), Poll::Pending));
    }
    disk.open();
    // It is read for nobody, and then in nobody's way.
    for layer in [3, 0, 4] {
        check(&other.part(layer, SOON).unwrap(), layer, 1);
    }
    let mut holds = other.window().unwrap().into_iter();
    assert!(holds.all(|part| !matches!(part.state, weighbridge::PartState::Here { holds: 1.. })));
}

/// A future that has been polled and is then forgotten: it is in the way until its stream goes, and no longer.
#[test]
fn a_future_that_is_forgotten_goes_with_its_stream() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(5, 1, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let open = || {
        registry
            .stream(&lease, set, Order::ring().ahead(0))
            .unwrap()
    };
    let (mut stream, mut other) = (open(), open());
    let held = other.part(0, SOON).unwrap();
    let mut soon = Box::pin(stream.part_async(3));
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(soon.as_mut().poll(&mut context), Poll::Pending));
    std::mem::forget(soon);
    drop((held, stream));
    // By futures alone, more often than anybody may be passed.
    for layer in (0..5).cycle().take(80) {
        check(&block_on(other.part_async(layer)).unwrap(), layer, 1);
    }
    let mut parts = other.window().unwrap().into_iter();
    assert!(parts.all(|part| !matches!(part.state, weighbridge::PartState::Here { holds: 1.. })));
    drop(other);
    drop(lease);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
}

#[test]
fn what_is_leaked_is_in_the_way_and_counted() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(5, 1, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
    std::mem::forget(stream.part(0, SOON).unwrap());
    let refused = stream
        .part(1, std::time::Duration::from_millis(5))
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(refused, Error::PartNotLoaded { held: 1, .. }),
        "{refused}"
    );
    drop((stream, lease));
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0, "it goes with its set");
}

/// Evicted with all that it has, and loaded again: the window is empty then, and the same passes go on.
#[test]
fn a_streamed_set_is_evicted_as_a_whole() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    for hashed in [false, true] {
        let layers = Layers::new(5, 1, &disk);
        let layers = if hashed { layers.hashed() } else { layers };
        let set = registry.publish("layers", layers.streamed(2)).unwrap();
        let charged = registry.ledger().total();
        let pass = || {
            let lease = registry.acquire(set).unwrap();
            let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
            for layer in 0..5 {
                check(&stream.part(layer, SOON).unwrap(), layer, 1);
            }
        };
        pass();
        // Whoever reads ahead may still have a lease.
        while matches!(registry.evict(set), Err(Error::Leased(_))) {
            thread::yield_now();
        }
        assert_eq!(registry.ledger().total(), 0);
        assert_eq!(registry.load(set).unwrap(), charged);
        pass();
        disk.changed.lock().unwrap().insert(3);
        while matches!(registry.evict(set), Err(Error::Leased(_))) {
            thread::yield_now();
        }
        match registry.load(set) {
            Ok(_) => assert!(!hashed, "what nobody hashes nobody knows"),
            Err(error) => assert!(hashed && error.is_malformed(), "{error}"),
        }
        disk.changed.lock().unwrap().clear();
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    }
}

/// A generation that is kept has its window, too, and comes back with it.
#[test]
fn a_rollback_streams_what_it_was() {
    let disk = Arc::new(Disk::default());
    let registry = weighbridge::WeightRegistry::builder()
        .keep_previous(1)
        .build()
        .unwrap();
    let registry = Arc::new(registry);
    let set = registry
        .publish("layers", Layers::new(5, 1, &disk).streamed(2))
        .unwrap();
    registry
        .replace(set, Layers::new(5, 2, &disk).streamed(3))
        .unwrap();
    let pass = |version| {
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
        for layer in 0..5 {
            check(&stream.part(layer, SOON).unwrap(), layer, version);
        }
    };
    pass(2);
    registry.rollback(set).unwrap();
    pass(1);
}
