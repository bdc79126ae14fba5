//! Recorders and subscribers: what they are told, and that one which panics harms nobody.
#![cfg(all(feature = "metrics", feature = "tracing"))]

mod support;
#[path = "support/observers.rs"]
mod watch;

use support::{SOON, bytes, registry};
use watch::{Diary, Meter, read_everything};
use weighbridge::Error;

/// Runs `body` under both.
fn watched<T>(meter: &Meter, diary: &Diary, body: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(diary.clone(), || metrics::with_local_recorder(meter, body))
}

#[test]
fn writers_are_counted_timed_and_traced() {
    let (meter, diary) = (Meter::default(), Diary::default());
    watched(&meter, &diary, || {
        let registry = registry();
        let set = registry.publish(("t", "a\u{202e}"), bytes(4, 1)).unwrap();
        assert_eq!(
            diary.take(),
            [
                "> stage subject=memory",
                "<",
                "> publish subject=t/a\\u{202e}",
                "- message=committed commit=1 changes=1",
                "<"
            ]
        );
        registry
            .publish(("t", "a\u{202e}"), bytes(4, 1))
            .unwrap_err();
        let [refused] = &diary.take()[..] else {
            panic!("a refusal is one event")
        };
        assert!(
            refused.starts_with("- message=refused: t/a\\u{202e} is already"),
            "{refused}"
        );
        assert!(
            refused.ends_with("operation=\"publish\" cause=\"conflict\""),
            "{refused}"
        );
        let swap = registry.replace(set, bytes(4, 2)).unwrap();
        swap.previous.reclaimed(SOON).unwrap();
        let mut both = registry.transaction();
        both.retire(set).unwrap();
        both.publish("b", both.stage(bytes(4, 3)).unwrap()).unwrap();
        both.commit().unwrap();
        let told = diary.take().join("\n");
        for line in [
            "> replace subject=set ",
            "> transaction subject=2 set(s)\n- message=committed commit=3 changes=2\n<",
        ] {
            assert!(told.contains(line), "{told}");
        }
        registry.record_metrics();
        for (name, value) in [
            ("weighbridge_operations_total operation=stage", 3.0),
            ("weighbridge_operations_total operation=publish", 1.0),
            ("weighbridge_operations_total operation=replace", 1.0),
            ("weighbridge_operations_total operation=transaction", 1.0),
            ("weighbridge_operation_seconds operation=stage", 3.0),
            (
                "weighbridge_refusals_total operation=publish cause=conflict",
                1.0,
            ),
            ("weighbridge_commits_total", 3.0),
            ("weighbridge_changes_total", 4.0),
            ("weighbridge_sets", 1.0),
            ("weighbridge_bytes state=resident", 64.0),
            ("weighbridge_bytes state=kept", 0.0),
            ("weighbridge_pending_fences", 0.0),
            ("weighbridge_oldest_fence_seconds", 0.0),
            ("weighbridge_fence_panics_total", 0.0),
            ("weighbridge_limit_bytes", (64 << 20) as f64),
            ("weighbridge_oldest_lease_seconds", 0.0),
            ("weighbridge_observer_panics_total", 0.0),
        ] {
            assert_eq!(meter.value(name), Some(value), "{name}");
        }
        assert!(meter.value("weighbridge_reclaimed_bytes_total") >= Some(64.0));
    });
}

#[test]
fn observers_that_panic_are_counted_and_change_nothing() {
    let (meter, diary) = (Meter::panicking(), Diary::panicking());
    watched(&meter, &diary, || {
        let registry = registry();
        let mut events = registry.events();
        let set = registry.publish("a", bytes(4, 1)).unwrap();
        let refused = registry.publish("a", bytes(4, 1)).unwrap_err();
        assert!(matches!(refused.error(), Error::AlreadyPublished { .. }));
        let swap = registry.replace(set, bytes(4, 2)).unwrap();
        swap.previous.reclaimed(SOON).unwrap();
        let mut both = registry.transaction();
        both.publish("b", both.stage(bytes(4, 3)).unwrap()).unwrap();
        both.commit().unwrap();
        read_everything(&registry);
        let gone = registry.retire(set).unwrap();
        gone.reclaimed(SOON).unwrap();
        registry.record_metrics();
        let stats = registry.stats();
        assert!(stats.observer_panics >= 20, "{stats:?}");
        assert_eq!(
            (stats.sets, stats.commits, stats.ledger.total()),
            (1, 4, 64)
        );
        assert_eq!(events.pending().count(), 7);
    });
}
