//! Loads that fail, by an error or a panic of the source.
//!
//! What lives here: that the failure is everybody's who waited, leaves no trace, and has the set left alone
//! for a while. What does not: what is refused before anything is read (`refusals`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use weighbridge::source::Evictable;
use weighbridge::{Error, Lease, WeightRegistry};

use crate::support::device::until;
use crate::support::{SOON, block_on, bytes};
use crate::{ONE, REFUSED, away, published, resident, value};

#[test]
fn a_failure_is_shared_and_leaves_no_trace() {
    let (registry, kitchen, sets) = away(2, 2);
    let registry = Arc::new(registry);
    let [set, second] = [sets[0], sets[1]];
    kitchen.hold(0);
    kitchen.breaks(0, true);
    let (started, all) = (AtomicUsize::new(0), 8);
    let causes: Vec<Arc<Error>> = std::thread::scope(|threads| {
        let spawn = |number| {
            let (registry, started) = (&registry, &started);
            threads.spawn(move || {
                started.fetch_add(1, Ordering::SeqCst);
                let refused = if number % 2 == 0 {
                    registry.acquire_or_load([set, second], SOON)
                } else {
                    block_on(registry.acquire_or_load_async(set))
                };
                match refused.unwrap_err() {
                    Error::LoadFailed { set, cause } => {
                        assert_eq!(set.name(), "s0");
                        cause
                    }
                    other => panic!("{other}"),
                }
            })
        };
        let threads: Vec<_> = (0..all).map(spawn).collect();
        until("all ask", || started.load(Ordering::SeqCst) == all);
        kitchen.let_go(0);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    // Whoever came while it was read has the very same error; who came later caused another read.
    let reads = kitchen.entered.load(Ordering::SeqCst) - kitchen.reads(1);
    let different: HashSet<*const Error> = causes.iter().map(Arc::as_ptr).collect();
    assert_eq!(different.len(), reads);
    assert!(causes[0].is_io() && causes[0].to_string().contains(REFUSED));
    assert_eq!(resident(&registry), ["s1"]);
    assert_eq!(registry.ledger().total(), ONE);

    kitchen.breaks(0, false);
    assert_eq!(value(&registry.acquire_or_load(set, SOON).unwrap(), set), 0);
}

#[test]
fn a_set_whose_load_failed_is_left_alone_for_a_while() {
    let builder = WeightRegistry::builder();
    let registry = builder
        .load_backoff(Duration::from_secs(3600), Duration::from_secs(7200))
        .build()
        .unwrap();
    let (registry, kitchen, sets) = published(registry, 2);
    kitchen.breaks(0, true);
    let refused = |failed: u32, doubled: u64| {
        let Error::BackingOff {
            failures, retry_in, ..
        } = registry.acquire_or_load(sets[0], SOON).unwrap_err()
        else {
            panic!("it is left alone")
        };
        assert_eq!(failures, failed);
        let most = Duration::from_secs(3600 * doubled);
        assert!(retry_in <= most && retry_in > most / 2, "{retry_in:?}");
    };
    let failed = registry.acquire_or_load(sets[0], SOON).unwrap_err();
    assert!(matches!(failed, Error::LoadFailed { .. }) && failed.is_io());
    refused(1, 1);
    assert_eq!(
        kitchen.entered.load(Ordering::SeqCst),
        1,
        "nobody asks the source"
    );
    // Others are not affected; an operator may try.
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    assert!(registry.load(sets[0]).is_err());
    refused(2, 2);
    assert!(registry.load(sets[0]).is_err());
    refused(3, 2); // the longest
    kitchen.breaks(0, false);
    assert_eq!(registry.load(sets[0]).unwrap(), ONE);
    registry.evict(sets[0]).unwrap();
    drop(registry.acquire_or_load(sets[0], SOON).unwrap());
}

/// Whoever may wait for ever after a failure does; and a new generation is another matter.
#[test]
fn a_failure_may_be_for_good_and_is_of_one_generation() {
    let builder = WeightRegistry::builder().load_backoff(Duration::MAX, Duration::MAX);
    let (registry, kitchen, sets) = published(builder.build().unwrap(), 2);
    let set = sets[0];
    kitchen.breaks(0, true);
    let failed = registry.acquire_or_load(set, SOON).unwrap_err();
    assert!(matches!(failed, Error::LoadFailed { .. }), "{failed}");
    let refused = registry.acquire_or_load(set, SOON).unwrap_err();
    let Error::BackingOff { retry_in, .. } = refused else {
        panic!("{refused}")
    };
    assert_eq!(retry_in, Duration::MAX);
    registry.replace(set, kitchen.source(1)).unwrap();
    registry.evict(set).unwrap();
    assert_eq!(value(&registry.acquire_or_load(set, SOON).unwrap(), set), 1);
}

/// A source that panics while it is opened.
#[test]
fn a_source_that_panics_wakes_everybody_and_leaves_no_trace() {
    let registry = Arc::new(WeightRegistry::builder().limit_bytes(ONE).build().unwrap());
    let (armed, entered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let open = {
        let (armed, entered) = (Arc::clone(&armed), Arc::clone(&entered));
        move || {
            if armed.load(Ordering::SeqCst) {
                entered.fetch_add(1, Ordering::SeqCst);
                panic!("on purpose");
            }
            Ok(bytes(64, 7))
        }
    };
    let set = registry
        .publish("s", Evictable::opened_by(open).unwrap())
        .unwrap();
    registry.evict(set).unwrap();
    armed.store(true, Ordering::SeqCst);
    let broken = |refused: Result<Lease, Error>| {
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, Error::LoadFailed { cause, .. } if matches!(**cause, Error::LoadBroken { .. })),
            "{refused}"
        );
    };
    broken(registry.acquire_or_load(set, SOON));
    assert_eq!(registry.ledger().total(), 0);
    assert!(matches!(
        registry.acquire_or_load(set, SOON),
        Err(Error::BackingOff { .. })
    ));
    until("it is tried again", || {
        match block_on(registry.acquire_or_load_async(set)) {
            Err(Error::BackingOff { .. }) => false,
            refused => {
                broken(refused);
                true
            }
        }
    });
    assert_eq!(entered.load(Ordering::SeqCst), 2);
    armed.store(false, Ordering::SeqCst);
    assert_eq!(
        registry.load(set).unwrap(),
        ONE,
        "the reader's thread lives"
    );
    assert_eq!(registry.ledger().total(), ONE);
}
