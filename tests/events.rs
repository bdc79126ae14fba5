//! The event stream: order, gaps, the end, and that a registry can be mirrored from it.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::source::Source;
use weighbridge::{
    Catalog, CatalogEntry, Cause, Error, Event, EventKind, Generation, Next, Operation, SetHandle,
    Subscription, WeightRegistry,
};

fn next(events: &mut Subscription) -> Event {
    match events.next_timeout(SOON) {
        Next::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

fn kinds(events: &mut Subscription) -> Vec<EventKind> {
    let kind = |next| match next {
        Next::Event(event) => event.kind,
        other => panic!("{other:?}"),
    };
    events.pending().map(kind).collect()
}

#[test]
fn a_set_s_life_is_told_in_order() {
    let registry = registry();
    registry.publish("earlier", bytes(4, 0)).unwrap();
    let mut events = registry.events();
    assert_eq!(events.try_next(), Next::Nothing, "it starts at the present");
    let set = registry.publish(("t", "s"), bytes(4, 1)).unwrap();
    let first = registry.catalog().get(("t", "s")).unwrap().clone();
    let lease = registry.acquire(set).unwrap();
    let swap = registry.replace(set, bytes(4, 2)).unwrap();
    let second = registry.catalog().get(("t", "s")).unwrap().clone();
    let gone = registry.retire(set).unwrap();

    let told = next(&mut events);
    let start = told.sequence;
    let EventKind::Published {
        commit,
        more: 0,
        now,
        ..
    } = told.kind
    else {
        panic!("{told:?}")
    };
    assert_eq!((commit, &now), (first.generation, &first));
    let told = next(&mut events);
    assert_eq!(told.sequence, start + 1);
    let EventKind::Replaced {
        commit,
        more: 0,
        now,
        previous,
        ..
    } = told.kind
    else {
        panic!("{told:?}")
    };
    assert_eq!((commit, &now), (swap.generation, &second));
    assert_eq!(
        (previous.handle, previous.generation),
        (set, first.generation)
    );
    assert_eq!((&previous.name, previous.bytes), (&first.name, first.bytes));
    let told = next(&mut events);
    let EventKind::Retired {
        commit,
        more: 0,
        previous,
        ..
    } = told.kind
    else {
        panic!("{told:?}")
    };
    assert!(commit > second.generation);
    assert_eq!(
        (previous.handle, previous.generation),
        (set, second.generation)
    );

    // The second generation nobody leased, the first one waits for its lease.
    let EventKind::Reclaimed { former, .. } = next(&mut events).kind else {
        panic!("no bytes came back")
    };
    assert_eq!(former.generation, second.generation);
    assert_eq!(
        events.try_next(),
        Next::Nothing,
        "leased bytes are not back"
    );
    drop(lease);
    gone.reclaimed(SOON).unwrap();
    // It is told before the wait ends, so nothing needs to be waited for here.
    let Next::Event(told) = events.try_next() else {
        panic!("a wait ended before the event was there")
    };
    assert_eq!(told.sequence, start + 4);
    let EventKind::Reclaimed { former, .. } = told.kind else {
        panic!("{told:?}")
    };
    assert_eq!(
        (former.generation, former.bytes),
        (first.generation, first.bytes)
    );
}

#[test]
fn what_one_transaction_did_is_told_together() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let old = registry.publish("old", bytes(4, 1)).unwrap();
    let mut events = registry.events();
    let mut all = registry.transaction();
    all.replace(base, all.stage(tiny()).unwrap()).unwrap();
    all.replace(pirate, all.stage(adapter("pirate-v2", base)).unwrap())
        .unwrap();
    all.retire(old).unwrap();
    let new = all.publish("new", all.stage(bytes(4, 2)).unwrap()).unwrap();
    let done = all.commit().unwrap();
    let mut told = Vec::new();
    for left in [3, 2, 1, 0] {
        let event = next(&mut events);
        let (commit, more, handle) = match &event.kind {
            EventKind::Published {
                commit, more, now, ..
            }
            | EventKind::Replaced {
                commit, more, now, ..
            } => {
                assert_eq!(now.generation, *commit);
                (*commit, *more, now.handle)
            }
            EventKind::Retired {
                commit,
                more,
                previous,
                ..
            } => (*commit, *more, previous.handle),
            other => panic!("{other:?}"),
        };
        assert_eq!((commit, more), (done.generation, left));
        told.push(handle);
    }
    assert_eq!(told, [base, pirate, old, new]);
    // A refused transaction tells of its refusal only; an empty one of nothing.
    registry.retire(new).unwrap();
    registry.transaction().commit().unwrap();
    let mut events = registry.events();
    let mut refused = registry.transaction();
    refused.retire(base).unwrap();
    refused.commit().unwrap_err();
    let told: Vec<_> = kinds(&mut events)
        .into_iter()
        .filter(|kind| !matches!(kind, EventKind::Reclaimed { .. }))
        .collect();
    assert!(
        matches!(
            &told[..],
            [EventKind::Refused {
                operation: Operation::Transaction,
                cause: Cause::Conflict,
                ..
            }]
        ),
        "{told:?}"
    );
}

/// The sets as a subscriber knows them.
struct Mirror {
    number: Generation,
    sets: BTreeMap<SetHandle, CatalogEntry>,
}

impl Mirror {
    fn of(catalog: &Catalog) -> Self {
        let entries = catalog.entries().iter();
        Mirror {
            number: catalog.number(),
            sets: entries.map(|entry| (entry.handle, entry.clone())).collect(),
        }
    }

    fn apply(&mut self, kind: EventKind) {
        let commit = match &kind {
            EventKind::Published { commit, .. }
            | EventKind::Replaced { commit, .. }
            | EventKind::Retired { commit, .. } => *commit,
            _ => return,
        };
        if commit <= self.number {
            return;
        }
        match kind {
            EventKind::Published { now, .. } => {
                assert!(
                    self.sets.insert(now.handle, now).is_none(),
                    "published twice"
                );
            }
            EventKind::Replaced { now, previous, .. } => {
                let before = self.sets.insert(now.handle, now).expect("it was published");
                assert_eq!(
                    before.generation, previous.generation,
                    "a generation is missing"
                );
            }
            EventKind::Retired { previous, .. } => {
                let before = self
                    .sets
                    .remove(&previous.handle)
                    .expect("it was published");
                assert_eq!(
                    before.generation, previous.generation,
                    "a generation is missing"
                );
            }
            _ => unreachable!(),
        }
    }
}

/// Several writers, one subscriber that builds the catalog from events alone, or from a new picture
/// after a gap: in the end it has what the registry has.
fn mirrored(capacity: usize) -> u64 {
    let registry = WeightRegistry::builder()
        .event_capacity(capacity)
        .build()
        .unwrap();
    registry.publish("before", bytes(1, 0)).unwrap();
    let done = AtomicBool::new(false);
    let mut gaps = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let registry = &registry;
                scope.spawn(move || {
                    let name = format!("s{writer}");
                    for round in 0..120u8 {
                        let set = registry.publish(name.as_str(), bytes(1, round)).unwrap();
                        registry.replace(set, bytes(2, round)).unwrap();
                        if round % 3 != 0 {
                            let mut both = registry.transaction();
                            let other = format!("{name}-{round}");
                            both.publish(other, both.stage(bytes(1, 1)).unwrap())
                                .unwrap();
                            both.replace(set, both.stage(bytes(3, 3)).unwrap()).unwrap();
                            both.commit().unwrap();
                        }
                        registry.retire(set).unwrap();
                    }
                })
            })
            .collect();
        let (registry, done) = (&registry, &done);
        let mirror = scope.spawn(move || {
            let mut events = registry.events();
            let mut mirror = Mirror::of(&registry.catalog());
            let mut gaps = 0;
            loop {
                let last = done.load(Ordering::Acquire);
                match events.next_timeout(Duration::from_millis(1)) {
                    Next::Event(event) => mirror.apply(event.kind),
                    Next::Missed(_) => {
                        gaps += 1;
                        mirror = Mirror::of(&registry.catalog());
                    }
                    Next::Nothing if last => break,
                    Next::Nothing => {}
                    Next::Closed => panic!("closed"),
                }
            }
            assert_eq!(mirror.sets, Mirror::of(&registry.catalog()).sets);
            gaps
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        gaps = mirror.join().unwrap();
    });
    gaps
}

#[test]
fn a_registry_can_be_mirrored_from_its_events() {
    assert_eq!(mirrored(1 << 14), 0, "nothing was overwritten");
    mirrored(4);
}

#[test]
fn a_subscriber_that_does_not_read_holds_up_nobody_and_learns_what_it_missed() {
    let registry = WeightRegistry::builder().event_capacity(8).build().unwrap();
    let mut events = registry.events();
    let mut late = events.clone();
    for _ in 0..20 {
        registry.publish(("", ""), bytes(1, 1)).unwrap_err();
    }
    assert_eq!(events.try_next(), Next::Missed(12));
    let sequences: Vec<u64> = events
        .pending()
        .map(|next| match next {
            Next::Event(event) => event.sequence,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sequences, (13..=20).collect::<Vec<_>>());
    assert_eq!(
        late.try_next(),
        Next::Missed(12),
        "a clone has its own place"
    );
    // Bounds that make no sense are brought to some that do.
    for capacity in [0, usize::MAX] {
        let registry = WeightRegistry::builder()
            .event_capacity(capacity)
            .build()
            .unwrap();
        let mut events = registry.events();
        registry.publish("a", bytes(1, 1)).unwrap();
        assert!(matches!(
            next(&mut events).kind,
            EventKind::Published { .. }
        ));
    }
}

#[test]
fn the_stream_ends_with_the_registry_after_everything_that_happened() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let mut events = registry.events();
    let mut sleeper = events.clone();
    let sleeper = std::thread::spawn(move || {
        let mut told = 0;
        loop {
            match sleeper.next_timeout(SOON) {
                Next::Event(_) => told += 1,
                Next::Closed => return told,
                other => panic!("{other:?}"),
            }
        }
    });
    registry.replace(set, bytes(4, 2)).unwrap();
    let lease = registry.acquire(set).unwrap();
    registry.retire(set).unwrap();
    drop(registry);
    // Replaced, retired, and the bytes of the first generation.
    assert_eq!(sleeper.join().unwrap(), 3);
    assert_eq!(kinds(&mut events).len(), 3);
    assert_eq!(events.try_next(), Next::Closed);
    // What outlives the registry tells nobody.
    drop(lease);
    assert_eq!(events.next_timeout(SOON), Next::Closed);
}

#[test]
fn refusals_are_told_once_with_their_cause() {
    let registry = WeightRegistry::builder()
        .limit_bytes(1 << 16)
        .build()
        .unwrap();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let later = registry.publish("later", bytes(1, 1)).unwrap();
    let wrong = registry.catalog().number();
    let mut events = registry.events();
    let mut told = |expected: (Operation, Cause), error: Error| {
        let kinds = kinds(&mut events);
        let [
            EventKind::Refused {
                operation,
                cause,
                reason,
                ..
            },
        ] = &kinds[..]
        else {
            panic!("{kinds:?}")
        };
        assert_eq!(
            ((*operation, *cause), reason),
            (expected, &error.to_string())
        );
    };
    let big = || bytes(1 << 20, 1);
    told(
        (Operation::Stage, Cause::OutOfMemory),
        registry.publish("b", big()).unwrap_err().into(),
    );
    told(
        (Operation::Stage, Cause::OutOfMemory),
        registry.replace(set, big()).unwrap_err().into(),
    );
    told(
        (Operation::Stage, Cause::OutOfMemory),
        registry.fill(big().plan().clone(), None).unwrap_err(),
    );
    told(
        (Operation::Publish, Cause::Conflict),
        registry.publish("a", bytes(1, 1)).unwrap_err().into(),
    );
    let staged = registry.stage(bytes(1, 1)).unwrap();
    told(
        (Operation::Publish, Cause::Malformed),
        registry.publish_staged("\n", staged).unwrap_err().into(),
    );
    told(
        (Operation::Replace, Cause::Conflict),
        registry
            .replace_if(set, wrong, bytes(1, 1))
            .unwrap_err()
            .into(),
    );
    told(
        (Operation::Retire, Cause::Conflict),
        registry.retire_if(set, wrong).unwrap_err(),
    );
    let elsewhere = registry.stage(bytes(1, 1)).unwrap();
    let mut transaction = registry.transaction();
    transaction.retire(later).unwrap();
    told(
        (Operation::Transaction, Cause::Misuse),
        transaction.replace(later, elsewhere).unwrap_err().into(),
    );
}

/// Whoever asks for what is gone, and a tenant that reaches for what is another's: no call is refused in
/// silence, none twice.
#[test]
fn no_writer_is_refused_in_silence() {
    use Operation::{Publish, Rebind, Replace, Retire, Rollback, Transaction};
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let gone = registry.publish("gone", bytes(4, 1)).unwrap();
    registry.retire(gone).unwrap();
    let theirs = registry.publish(("them", "a"), bytes(4, 1)).unwrap();
    let lora = registry
        .publish("lora", adapter("pirate-v1", base))
        .unwrap();
    let ours = registry
        .publish(("us", "lora"), adapter("pirate-v1", base))
        .unwrap();
    let number = registry.catalog().number();
    let tenant = registry.namespace("us").unwrap();
    let staged = || registry.stage(bytes(4, 1)).unwrap();
    let link = registry.weight_handle(theirs, "w").unwrap();
    let on_theirs = || {
        registry
            .stage(bytes(4, 1).alias("linked", link).unwrap())
            .unwrap()
    };
    let mut events = registry.events();
    let mut told = |call: &str, expected: Operation, cause: Cause| {
        let mut kinds = kinds(&mut events);
        // What was retired may be back at any time.
        kinds.retain(|kind| !matches!(kind, EventKind::Reclaimed { .. }));
        assert!(
            matches!(&kinds[..], [EventKind::Refused { operation, cause: why, .. }]
                if (*operation, *why) == (expected, cause)),
            "{call}: {kinds:?}"
        );
    };
    macro_rules! refused {
        ($operation:ident, $cause:ident: $($call:expr),+ $(,)?) => {$(
            assert!($call.is_err(), stringify!($call));
            told(stringify!($call), $operation, Cause::$cause);
        )+};
    }
    refused!(Replace, NotFound:
        registry.replace(gone, bytes(4, 2)),
        registry.replace_if(gone, number, bytes(4, 2)),
        registry.replace_staged(gone, staged()),
        registry.replace_staged_if(gone, number, staged()),
        registry.replace_drained(gone, bytes(4, 2), SOON),
    );
    refused!(Retire, NotFound:
        registry.retire(gone),
        registry.retire_if(gone, number),
        registry.revoke(gone),
        registry.retire_after(gone, || true),
        registry.retire_after_if(gone, number, || true),
    );
    refused!(Retire, Conflict:
        registry.retire_if(theirs, number),
        registry.retire_after_if(theirs, number, || true),
    );
    refused!(Transaction, NotFound: registry.retire_cascade(gone));
    refused!(Rebind, NotFound: registry.rebind(gone, base));
    refused!(Rollback, NotFound: registry.rollback(gone), registry.rollback_to(gone, number));
    let mut steps = registry.transaction();
    refused!(Transaction, NotFound:
        steps.replace(gone, staged()),
        steps.replace_if(gone, number, staged()),
        steps.retire(gone),
        steps.retire_if(gone, number),
        steps.retire_cascade(gone),
        steps.rebind(gone, base),
        steps.rebind_adapters(gone),
        steps.rollback(gone),
    );
    drop(steps);
    refused!(Replace, Misuse:
        tenant.replace(theirs, bytes(4, 2)),
        tenant.replace_if(theirs, number, bytes(4, 2)),
        tenant.replace_staged(theirs, staged()),
        tenant.replace_staged_if(theirs, number, staged()),
        tenant.replace_drained(theirs, bytes(4, 2), SOON),
    );
    refused!(Publish, Misuse: tenant.publish_staged("linked", on_theirs()));
    refused!(Retire, Misuse: tenant.retire(theirs), tenant.retire_if(theirs, number));
    refused!(Rebind, Misuse: tenant.rebind(lora, base), tenant.rebind(ours, theirs));
    refused!(Rollback, Misuse: tenant.rollback(theirs), tenant.rollback_to(theirs, number));
    let mut steps = tenant.transaction();
    refused!(Transaction, Misuse:
        steps.publish("linked", on_theirs()),
        steps.replace(theirs, staged()),
        steps.replace_if(theirs, number, staged()),
        steps.retire(theirs),
        steps.retire_if(theirs, number),
        steps.rebind(theirs, base),
        steps.rebind(ours, theirs),
        steps.rollback(theirs),
    );
}

#[test]
fn however_long_a_text_is_what_is_kept_of_it_is_short() {
    let registry = registry();
    let mut events = registry.events();
    let long = "x".repeat(1 << 20);
    registry.publish(long, bytes(1, 1)).unwrap_err();
    assert!(next(&mut events).to_json().len() < 4096);
}
