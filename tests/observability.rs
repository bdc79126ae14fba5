//! What observers read: JSON, gauges, and text that cannot forge what is shown.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{SOON, bytes, registry};
use weighbridge::source::{Evictable, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, EventKind, Next, Plan, SetHandle, WeightRegistry, fence};

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
    shown(PeftAdapter::open("\n\u{202e}").unwrap_err());
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
                        Some(age) if ["age_seconds", "oldest_fence_seconds"].contains(&&**key) => {
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
        Evictable::new(lora.on(base).declared(revision))
    };
    let mut promised = promised();
    let mut check = |json: String| assert_eq!(Some(written(&json, base)), promised.next());

    let pirate = registry.publish("pirate", lora("step 100")).unwrap();
    check(registry.catalog().to_json());
    let swap = registry.replace(pirate, lora("step 200")).unwrap();
    swap.previous.reclaimed(SOON).unwrap();
    registry.evict(pirate).unwrap();
    registry.load(pirate).unwrap();
    registry.retire(base).unwrap_err();
    let lease = registry.acquire_as("request\n42", pirate).unwrap();
    let unlabelled = registry.acquire(pirate).unwrap();
    let (signal, queued) = fence::signal("stream 0");
    let fenced = registry.acquire_as("decode", pirate).unwrap();
    fenced.release_after(queued);
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
    signal.set();
    gone.reclaimed(SOON).unwrap();
    // No limit.
    let boundless = WeightRegistry::builder().build().unwrap();
    assert!(boundless.stats().to_json().contains("\"limit\":null"));
}
