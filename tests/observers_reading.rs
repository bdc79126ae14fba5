//! The reading side, the ends of leases and the reclaimer's thread call no observer. A process of its own,
//! because the observers are those of all threads.
#![cfg(all(feature = "metrics", feature = "tracing"))]

mod support;
#[path = "support/observers.rs"]
mod watch;

use support::{SOON, bytes, registry};
use watch::{Diary, Meter, read_everything};

#[test]
fn the_reading_side_calls_no_observer() {
    let (meter, diary) = (Meter::default(), Diary::default());
    metrics::set_global_recorder(meter.clone()).unwrap();
    tracing::subscriber::set_global_default(diary.clone()).unwrap();
    let calls = || (meter.calls(), diary.calls());

    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let last = registry.acquire(set).unwrap();
    let swap = registry.replace(set, bytes(4, 2)).unwrap();
    let before = calls();
    assert!(before.0 > 0 && before.1 > 0, "the writing side calls them");
    read_everything(&registry);
    std::thread::scope(|scope| {
        scope.spawn(|| read_everything(&registry));
    });
    drop(last);
    swap.previous.reclaimed(SOON).unwrap();
    let lease = registry.acquire(set).unwrap();
    drop(registry);
    drop(lease);
    assert_eq!(calls(), before);
}
