//! Passes over the parts: what is read, how often, and in whose version.

use std::sync::Arc;
use std::thread;

use weighbridge::{Error, Order, Part};

use super::layers::{Disk, LAYER, Layers, byte, check, registry};
use super::support::device::until;
use super::support::{SOON, block_on};

/// Nothing is read ahead: each layer once, when it is asked for.
#[test]
fn without_reading_ahead_each_is_read_when_it_is_asked_for() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(6, 1, &disk).streamed(2))
        .unwrap();
    assert!(disk.take_reads().is_empty(), "nobody wants one");
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry
        .stream(&lease, set, Order::forward().ahead(0))
        .unwrap();
    for layer in 0..6 {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
        assert_eq!(disk.take_reads(), [layer]);
    }
    // Again, back, skipping, and what is still there: what comes next in the order stays longest.
    for (layer, reads) in [
        (5, false),
        (4, false),
        (0, true),
        (0, false),
        (3, true),
        (4, false),
    ] {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
        assert_eq!(disk.take_reads().len(), usize::from(reads), "layer {layer}");
    }
}

/// Of a ring that does not fit, a front stays.
#[test]
fn of_a_ring_only_what_does_not_fit_is_read_again() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(8, 1, &disk).streamed(5))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry
        .stream(&lease, set, Order::ring().ahead(1))
        .unwrap();
    let mut read = 0;
    for round in 0..6 {
        for layer in 0..8 {
            check(&stream.part(layer, SOON).unwrap(), layer, 1);
        }
        let reads = disk.take_reads().len();
        // Two go round, three stay; what is read ahead of the next round may come late or early.
        assert!(round == 0 || reads <= 7, "round {round}: {reads} reads");
        read += reads as u64;
    }
    let tally = stream.tally().unwrap();
    assert_eq!((tally.hits + tally.misses, tally.failures), (48, 0));
    // One may be on its way: begun and not there yet, or there and begun after the last look at the disk.
    assert!(read.abs_diff(tally.reads) <= 1, "{read}: {tally:?}");
    assert_eq!(tally.read_bytes, tally.reads * LAYER);
}

/// The stream itself has one part at a time.
#[test]
fn a_stream_that_has_entered_a_part_reads_it() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(4, 1, &disk).streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let handle = |layer| {
        registry
            .weight_handle(set, &format!("layers.{layer}.b"))
            .unwrap()
    };
    let embed = registry.weight_handle(set, "embed").unwrap();
    let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
    let in_part = |read: Result<_, Error>| matches!(read, Err(Error::InPart { .. }));
    assert!(in_part(stream.weight(handle(0)).map(drop)));
    for layer in (0..4).cycle().take(9) {
        stream.enter(layer, SOON).unwrap();
        let weight = stream.weight(handle(layer)).unwrap();
        let right = |(at, there): (u64, &u8)| *there == byte(weight.name(), at, 1);
        assert!((0..).zip(weight.bytes()).all(right));
        assert!(in_part(stream.weight(handle((layer + 1) % 4)).map(drop)));
        assert_eq!(stream.weight(embed).unwrap().name(), "embed");
    }
    // It gives back what it has before it waits for another one, however it asks.
    check(&stream.part(2, SOON).unwrap(), 2, 1);
    stream.enter(3, SOON).unwrap();
    check(&block_on(stream.part_async(1)).unwrap(), 1, 1);
    stream.enter(0, SOON).unwrap();
    disk.broken.lock().unwrap().insert(1);
    assert!(stream.enter(1, SOON).is_err());
    assert!(in_part(stream.weight(handle(0)).map(drop)), "it has left");
    stream.enter(2, SOON).unwrap();
    let mut other = registry.stream(&lease, set, Order::unknown()).unwrap();
    drop(stream);
    check(&other.part(3, SOON).unwrap(), 3, 1);
}

#[test]
fn with_room_for_all_each_is_read_once() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(8, 1, &disk).streamed(99))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    thread::scope(|threads| {
        for start in 0..4 {
            let (registry, lease) = (&registry, &lease);
            threads.spawn(move || {
                let mut stream = registry.stream(lease, set, Order::ring()).unwrap();
                for step in 0..40 {
                    let layer = (2 * start + step) % 8;
                    check(&stream.part(layer, SOON).unwrap(), layer, 1);
                }
            });
        }
    });
    let mut reads = disk.take_reads();
    reads.sort_unstable();
    assert_eq!(reads, [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// A replace in the middle of a pass: the pass goes on with what it began with, the next one has the new version.
#[test]
fn a_pass_is_of_one_version() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(6, 1, &disk).streamed(2))
        .unwrap();
    thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                let mut last = 0;
                loop {
                    let lease = registry.acquire(set).unwrap();
                    let revision = lease.set(set).unwrap().identity().to_string();
                    let version: u8 = revision["declared:v".len()..].parse().unwrap();
                    assert!(version >= last);
                    last = version;
                    let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
                    for layer in 0..6 {
                        check(&stream.part(layer, SOON).unwrap(), layer, version);
                    }
                    if version == 20 {
                        return;
                    }
                }
            });
        }
        for version in 2..=20 {
            let next = Layers::new(6, version, &disk).streamed(1 + u32::from(version) % 3);
            registry.replace(set, next).unwrap();
        }
    });
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

/// Threads at different places of their passes, more of them than the window has places.
#[test]
fn threads_at_different_positions_share_one_window() {
    for (window, ahead) in [(1, 0), (1, 2), (2, 1), (3, 5)] {
        let (registry, disk) = (registry(), Arc::new(Disk::default()));
        let set = registry
            .publish("layers", Layers::new(7, 1, &disk).streamed(window))
            .unwrap();
        let lease = registry.acquire(set).unwrap();
        let charged = registry.ledger().total();
        thread::scope(|threads| {
            for start in 0..5 {
                let (registry, lease) = (&registry, &lease);
                threads.spawn(move || {
                    let order = if start % 2 == 0 {
                        Order::ring()
                    } else {
                        Order::forward()
                    };
                    let mut stream = registry.stream(lease, set, order.ahead(ahead)).unwrap();
                    for step in 0..60 {
                        let layer = (start + step) % 7;
                        if step % 3 == 0 {
                            check(&block_on(stream.part_async(layer)).unwrap(), layer, 1);
                        } else {
                            check(&stream.part(layer, SOON).unwrap(), layer, 1);
                        }
                    }
                });
            }
        });
        assert_eq!(registry.ledger().peak, charged);
    }
}

#[test]
fn a_failed_read_surfaces_at_its_layer_and_is_tried_again() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(6, 1, &disk).streamed(3))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    disk.broken.lock().unwrap().extend([2, 4]);
    let mut stream = registry
        .stream(&lease, set, Order::ring().ahead(2))
        .unwrap();
    let mut failed = Vec::new();
    for round in 0..3 {
        for layer in 0..6 {
            let broken = disk.broken.lock().unwrap().contains(&layer);
            let checked = |part: Part<'_>| check(&part, layer, 1);
            let Err(error) = stream.part(layer, SOON).map(checked) else {
                assert!(!broken);
                continue;
            };
            // It may have been tried before it was mended.
            let says = format!("part \"layers.{layer}\" of layers could not be read");
            assert!(error.to_string().starts_with(&says), "{error}");
            assert!(error.to_string().contains("a hole in the disk"), "{error}");
            assert!(error.is_malformed(), "as what it was caused by");
            failed.push((round, layer));
            // Mended meanwhile: asking again reads again.
            disk.broken.lock().unwrap().remove(&layer);
            stream.part(layer, SOON).map(checked).unwrap();
        }
    }
    assert_eq!(failed, [(0, 2), (0, 4)]);
    // The registry's own counts are those of its only window. What reads ahead may be at it.
    let mut told = (0, 0, 0);
    until("nobody reads any more", || {
        let (stats, tally) = (registry.stats(), stream.tally().unwrap());
        told = (stats.part_reads, stats.part_read_bytes, stats.part_failures);
        told == (tally.reads, tally.read_bytes, tally.failures)
    });
    assert!(told.0 >= 6 && told.2 >= 2, "{told:?}");
    assert_eq!(registry.stats().streams, 1);
    drop(stream);
    assert_eq!(registry.stats().streams, 0);
}

/// Other bytes than those that were published: not under this generation.
#[test]
fn a_part_that_changed_is_refused() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("layers", Layers::new(4, 1, &disk).hashed().streamed(1))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry
        .stream(&lease, set, Order::forward().ahead(0))
        .unwrap();
    disk.changed.lock().unwrap().insert(2);
    for layer in 0..4 {
        match stream.part(layer, SOON) {
            Ok(part) => check(&part, layer, 1),
            Err(Error::PartFailed { cause, .. }) => {
                assert_eq!(layer, 2);
                assert!(matches!(&*cause, Error::ReloadDiffers { .. }), "{cause}");
                assert!(cause.to_string().contains("layers.2.a"), "{cause}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    disk.changed.lock().unwrap().clear();
    check(&stream.part(2, SOON).unwrap(), 2, 1);
}

#[test]
fn what_a_router_predicts_is_read_ahead() {
    let (registry, disk) = (registry(), Arc::new(Disk::default()));
    let set = registry
        .publish("experts", Layers::new(16, 1, &disk).streamed(4))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry
        .stream(&lease, set, Order::unknown().ahead(2))
        .unwrap();
    check(&stream.part(9, SOON).unwrap(), 9, 1);
    assert_eq!(disk.take_reads(), [9]);
    stream.expect(Order::list([3, 12, 5])).unwrap();
    while disk.reads.lock().unwrap().len() < 2 {
        thread::yield_now();
    }
    assert_eq!(disk.take_reads(), [3, 12], "two are read ahead");
    for layer in [3, 12, 9] {
        check(&stream.part(layer, SOON).unwrap(), layer, 1);
    }
    assert!(!disk.take_reads().contains(&9), "it is still there");
    let refused = stream.expect(Order::list([3, 16])).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::NoSuchPart {
                part: 16,
                parts: 16,
                ..
            }
        ),
        "{refused}"
    );
}
