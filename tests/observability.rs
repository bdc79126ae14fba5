//! What observers see: events, JSON, gauges, and names that cannot forge what is shown.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{SOON, adapter, bytes, registry, tiny};
use weighbridge::source::{InMemory, PeftAdapter, Source};
use weighbridge::{
    Catalog, CatalogEntry, Cause, Dtype, Error, Event, EventKind, Generation, Next, Operation,
    Plan, SetHandle, Subscription, WeightRegistry,
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

#[test]
fn the_oldest_lease_and_scope_are_known_though_scopes_read_no_clock() {
    let registry = registry();
    let set = registry.publish("a", bytes(4, 1)).unwrap();
    let idle = registry.stats();
    assert_eq!(
        (idle.oldest_lease, idle.oldest_scope_at_least),
        (None, None)
    );
    let first = registry.acquire_as("first", set).unwrap();
    let second = registry.acquire_as("second", set).unwrap();
    let clone = first.clone();
    drop(first);
    let stats = registry.stats();
    assert_eq!(stats.oldest_lease.as_ref().unwrap().label, "first");
    drop(clone);
    assert_eq!(registry.stats().oldest_lease.unwrap().label, "second");
    drop(second);
    assert_eq!(registry.stats().oldest_lease, None);

    let (opened, wait_opened) = std::sync::mpsc::channel();
    let (close, wait_close) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|threads| {
        let registry = &registry;
        let holder = threads.spawn(move || {
            registry.scope(|_| {
                opened.send(()).unwrap();
                wait_close.recv().unwrap();
            });
        });
        wait_opened.recv().unwrap();
        assert_eq!(registry.stats().metadata_waiting, 0, "it keeps nothing yet");
        for fill in 2..5 {
            let swap = registry.replace(set, bytes(4, fill)).unwrap();
            swap.previous.reclaimed(SOON).unwrap();
        }
        let before = registry.stats();
        let after = registry.stats();
        assert_eq!((before.metadata_waiting, after.metadata_waiting), (3, 3));
        assert!(before.oldest_scope_at_least.unwrap() <= after.oldest_scope_at_least.unwrap());
        assert_eq!(
            (after.reclaimed_generations, after.retired_generations),
            (3, 0)
        );
        assert!(after.reclaimed_bytes > 0);
        close.send(()).unwrap();
        holder.join().unwrap();
    });
    // The reclaimer's own look, which it has after work, counts as one while it lasts.
    let deadline = Instant::now() + SOON;
    while registry.stats().metadata_waiting != 0 {
        assert!(Instant::now() < deadline, "no scope is open");
        std::thread::yield_now();
    }
    assert_eq!(registry.stats().oldest_scope_at_least, None);
}

const HOSTILE: &str = "x\u{202e}y\u{200b}\u{2066}z\u{2028}";

/// Fit for one line of a log, and nothing in it turns or hides text.
fn shown(text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    assert_eq!(
        text,
        text.replace(|c: char| c.is_control(), ""),
        "control characters"
    );
    for bad in HOSTILE.chars().filter(|c| !c.is_ascii()) {
        assert!(!text.contains(bad), "{text:?}");
    }
    text
}

/// A source that lies in every text that it can choose.
struct Liar(Plan, fn(String) -> Error);

impl Source for Liar {
    fn plan(&self) -> &Plan {
        &self.0
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err((self.1)(format!("{HOSTILE}\n\u{1b}[2J")))
    }
}

#[test]
fn hostile_names_forge_nothing() {
    let registry = registry();
    // Control characters are refused in names, and the refusal shows none.
    for name in ["a\nb", "\u{1b}[31m", "\u{85}", "\u{7f}"] {
        let error = registry.publish((HOSTILE, name), bytes(1, 1)).unwrap_err();
        assert!(error.error().is_malformed());
        shown(&error);
        shown(registry.publish((name, "a"), bytes(1, 1)).unwrap_err());
    }
    let mut events = registry.events();
    let tensor = |name: &str| InMemory::new().tensor(name, Dtype::U8, [1], [1]).unwrap();
    let set = registry
        .publish((HOSTILE, "a/b c"), tensor(HOSTILE).declared(HOSTILE))
        .unwrap();
    let name = registry.catalog().entries()[0].name.clone();
    assert_eq!(
        shown(&name),
        "\"x\\u{202e}y\\u{200b}\\u{2066}z\\u{2028}/a/b c\""
    );
    assert_eq!(format!("{name:?}"), shown(&name));
    shown(registry.catalog().entries()[0].identity.to_string());
    let taken = registry
        .publish(name, tensor("w").declared(HOSTILE))
        .unwrap_err();
    shown(&taken);
    let lease = registry.acquire_as("req\n\u{202e}", set).unwrap();
    shown(
        lease
            .set(set)
            .unwrap()
            .get(&format!("{HOSTILE}\n"))
            .unwrap_err(),
    );
    shown(format!("{lease:?}"));
    let gone = registry.retire(set).unwrap();
    let holdup = gone.drained(Duration::ZERO).unwrap_err();
    assert!(shown(&holdup).contains(r"req\n\u{202e}"), "{holdup}");
    shown(format!("{gone:?}"));

    // What a source says of itself and of its failures.
    let lies: [fn(String) -> Error; 7] = [
        |text| Error::Io {
            path: text.clone().into(),
            op: "read",
            source: std::io::Error::other(text),
        },
        |text| Error::Malformed {
            file: text.clone().into(),
            tensor: Some(text.clone()),
            reason: text,
        },
        |text| Error::InvalidTensor {
            tensor: text.clone(),
            reason: text,
        },
        |text| Error::MissingShard { file: text.into() },
        |text| Error::SourceChanged {
            file: text.clone().into(),
            what: text,
        },
        |text| Error::Unsupported {
            file: text.clone().into(),
            option: text.clone(),
            value: text,
            advice: "",
        },
        |text| Error::AdapterMismatch {
            origin: text.clone(),
            module: text.clone(),
            reason: text,
        },
    ];
    for lie in lies {
        let origin = format!("{HOSTILE}\n");
        let plan = Plan::of(&origin, [("w", Dtype::U8, vec![1])]).unwrap();
        shown(registry.stage(Liar(plan, lie)).unwrap_err());
    }
    // Nor do events, and as JSON each is one line.
    let mut refusals = 0;
    for next in events.pending() {
        let Next::Event(event) = next else {
            panic!("{next:?}")
        };
        assert!(
            !event.to_json().contains(|c: char| c.is_control()),
            "more than one line"
        );
        if let EventKind::Refused {
            subject, reason, ..
        } = event.kind
        {
            shown(subject);
            shown(reason);
            refusals += 1;
        }
    }
    assert_eq!(refusals, 8);
    assert_eq!(PeftAdapter::open("\n").err().map(shown).is_some(), true);
}

/// The examples of docs/JSON.md, in order.
fn promised() -> impl Iterator<Item = Value> {
    let page = include_str!("../docs/JSON.md");
    let blocks = page.split("```json\n").skip(1);
    blocks.map(|block| {
        let (example, _) = block.split_once("```").unwrap();
        serde_json::from_str(example).unwrap()
    })
}

/// What was written, with the registry's number and all times as in the examples.
fn written(json: &str, set: SetHandle) -> Value {
    fn settle(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(settle),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_f64() {
                        Some(age) if key == "age_seconds" => {
                            assert!(age > 0.0);
                            *value = 0.5.into();
                        }
                        Some(_) if key == "waited_seconds" => *value = 0.0.into(),
                        _ => settle(value),
                    }
                }
            }
            _ => {}
        }
    }
    assert!(!json.contains('\n'), "one line");
    let handle = set.to_string();
    let (registry, _) = handle.split_once(':').unwrap();
    let json = json.replace(&format!("\"{registry}:"), "\"set 1:");
    let mut value = serde_json::from_str(&json).unwrap();
    settle(&mut value);
    value
}

#[test]
fn the_json_is_what_the_page_promises() {
    let registry = WeightRegistry::builder().limit_bytes(4096).build().unwrap();
    let mut events = registry.events();
    let weight = |name: &str, shape: [usize; 2]| {
        let bytes = vec![1; shape[0] * shape[1]];
        InMemory::new()
            .tensor(name, Dtype::U8, shape, bytes)
            .unwrap()
    };
    let base = registry
        .publish(("tenant/7", "the \"base\""), weight("m.weight", [4, 4]))
        .unwrap();
    let lora = |revision: &str| {
        let (a, b) = (([1, 4], [1; 4]), ([4, 1], [2; 4]));
        let lora = InMemory::new().lora("m", Dtype::U8, a, b, 1.0).unwrap();
        lora.on(base).declared(revision)
    };
    let mut promised = promised();
    let mut check = |json: String| assert_eq!(Some(written(&json, base)), promised.next());

    let pirate = registry.publish("pirate", lora("step 100")).unwrap();
    check(registry.catalog().to_json());
    let swap = registry.replace(pirate, lora("step 200")).unwrap();
    swap.previous.reclaimed(SOON).unwrap();
    registry.retire(base).unwrap_err();
    let lease = registry.acquire_as("request\n42", pirate).unwrap();
    let unlabelled = registry.acquire(pirate).unwrap();
    let gone = registry.retire(pirate).unwrap();
    for next in events.pending().skip(1) {
        let Next::Event(event) = next else {
            panic!("{next:?}")
        };
        check(event.to_json());
    }
    check(registry.stats().to_json());
    let Err(Error::NotDrained(holdup)) = gone.drained(Duration::ZERO) else {
        panic!("it is leased")
    };
    check(serde_json::to_string(&holdup).unwrap());
    assert_eq!(
        promised.next(),
        None,
        "an example that nothing is compared with"
    );
    drop((lease, unlabelled));
    // No limit.
    let boundless = WeightRegistry::builder().build().unwrap();
    assert!(boundless.stats().to_json().contains("\"limit\":null"));
}
