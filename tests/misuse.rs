//! Every error there is, produced on purpose through the public interface, and sorted by what a
//! caller is to do about it.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use support::{SOON, adapter, addition, bytes, fixture, registry, tiny};
use weighbridge::flat::FlatRegistry;
use weighbridge::memory::Owner;
use weighbridge::source::{Checkpoint, Evictable, Foreign, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, NamespaceLimits, Plan, SetHandle, Shard, WeightRegistry};

/// The predicate that an error answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    NotFound,
    Conflict,
    OutOfMemory,
    Exhausted,
    Timeout,
    Malformed,
    Unsupported,
    Io,
    Misuse,
}

fn classes(error: &Error) -> Vec<Class> {
    let all = [
        (Class::NotFound, error.is_not_found()),
        (Class::Conflict, error.is_conflict()),
        (Class::OutOfMemory, error.is_out_of_memory()),
        (Class::Exhausted, error.is_exhausted()),
        (Class::Timeout, error.is_timeout()),
        (Class::Malformed, error.is_malformed()),
        (Class::Unsupported, error.is_unsupported()),
        (Class::Io, error.is_io()),
        (Class::Misuse, error.is_misuse()),
    ];
    let answers = all.into_iter().filter(|&(_, answers)| answers);
    answers.map(|(class, _)| class).collect()
}

/// Another test that produces the variant, where one process or one registry will not do.
const ELSEWHERE: &[(&str, &str)] = &[
    ("Forked", "tests/process/fork.rs"),
    ("InPart", "tests/streams/whole.rs"),
    ("InvalidParts", "tests/streams/asking.rs"),
    ("LoadBroken", "tests/loading/failures.rs"),
    ("NoSuchPart", "tests/streams/asking.rs"),
    ("NotStreamed", "tests/streams/asking.rs"),
    ("PartFailed", "tests/streams/passes.rs"),
    ("PartNotLoaded", "tests/streams/endings.rs"),
    ("ReloadDiffers", "tests/residency.rs"),
    ("Spent", "src/registry/spent.rs"),
];

/// Memory of a device: so many bytes, from this address on.
struct Device(u64, u64);

impl Owner for Device {
    fn byte_len(&self) -> u64 {
        self.0
    }

    fn address(&self) -> u64 {
        self.1
    }
}

/// A source whose file turns out to be broken while it is read.
struct Broken(InMemory);

impl Source for Broken {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::InvalidTensor {
            tensor: "w".to_owned(),
            reason: "broken on purpose".to_owned(),
        })
    }
}

/// A set that has nothing but `head`, which is `w` of `owner`.
fn alias(registry: &WeightRegistry, owner: SetHandle) -> InMemory {
    let w = registry.weight_handle(owner, "w").unwrap();
    InMemory::new().alias("head", w).unwrap()
}

/// One half of a tensor.
fn half(rank: u32) -> InMemory {
    let (dim, world) = (0, 2);
    let part = Shard { dim, rank, world };
    let whole = InMemory::new().tensor("w", Dtype::U8, [4], [1; 4]).unwrap();
    whole.shards(|_| Some(part)).unwrap()
}

/// A set that is away, and of which something else would come back.
fn changing(registry: &WeightRegistry) -> SetHandle {
    let fill = AtomicU8::new(0);
    let next = move || Ok(bytes(1, fill.fetch_add(1, Ordering::Relaxed)));
    let source = Evictable::opened_by(next).unwrap();
    let set = registry.publish("a", source).unwrap();
    registry.evict(set).unwrap();
    set
}

type Case = (Class, fn() -> Error);

/// One call each. The variant is read off the error itself.
const CASES: &[Case] = &[
    (Class::Malformed, || {
        registry().publish("", bytes(1, 1)).unwrap_err().into()
    }),
    (Class::Conflict, || {
        // AlreadyPublished
        let registry = registry();
        registry.publish("a", bytes(1, 1)).unwrap();
        registry.publish("a", bytes(1, 2)).unwrap_err().into()
    }),
    (Class::Conflict, || {
        // NameBusy
        let registry = registry();
        let mut transaction = registry.transaction();
        let staged = registry.stage(bytes(1, 1)).unwrap();
        transaction.publish("a", staged).unwrap();
        registry.publish("a", bytes(1, 2)).unwrap_err().into()
    }),
    (Class::NotFound, || {
        // StaleHandle
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        registry.retire(set).unwrap();
        registry.acquire(set).unwrap_err()
    }),
    (Class::Misuse, || {
        // WrongRegistry
        let set = registry().publish("a", bytes(1, 1)).unwrap();
        registry().acquire(set).unwrap_err()
    }),
    (Class::Misuse, || {
        // StagedElsewhere
        let staged = registry().stage(bytes(1, 1)).unwrap();
        registry().publish_staged("a", staged).unwrap_err().into()
    }),
    (Class::Conflict, || {
        // Conflict
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        let seen = registry.scope(|scope| scope.get(set).unwrap().generation());
        registry.replace(set, bytes(1, 2)).unwrap();
        registry.retire_if(set, seen).unwrap_err()
    }),
    (Class::Misuse, || {
        // TwiceInTransaction
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        let mut transaction = registry.transaction();
        transaction.retire(set).unwrap();
        transaction.retire(set).unwrap_err()
    }),
    (Class::Conflict, || {
        // Dependants
        let registry = registry();
        let base = registry.publish("base", bytes(1, 1)).unwrap();
        registry.publish("on it", addition(1, 1, base)).unwrap();
        registry.retire(base).unwrap_err()
    }),
    (Class::NotFound, || {
        // BaseNotCurrent
        let registry = registry();
        let base = registry.publish("base", bytes(1, 1)).unwrap();
        let staged = registry.stage(addition(1, 1, base)).unwrap();
        registry.retire(base).unwrap();
        registry.publish_staged("on it", staged).unwrap_err().into()
    }),
    (Class::Misuse, || {
        // AdapterWithoutBase
        let pirate = PeftAdapter::open(fixture("adapters/pirate-v1")).unwrap();
        registry().publish("a", pirate).unwrap_err().into()
    }),
    (Class::Misuse, || {
        // AdapterWithoutEffect: a PEFT file that is read as if it were a checkpoint's.
        let registry = registry();
        let base = registry.publish("base", tiny()).unwrap();
        let file = fixture("adapters/pirate-v1/adapter_model.safetensors");
        let plain = InMemory::from_safetensors(&std::fs::read(file).unwrap()).unwrap();
        let failed = registry.publish("a", plain.on(base)).unwrap_err();
        assert_eq!(registry.ledger().resident, registry.ledger().total());
        failed.into()
    }),
    (Class::OutOfMemory, || {
        // Emptied, for what its cause is
        let registry = WeightRegistry::builder().limit_bytes(64).build().unwrap();
        let set = registry.publish("s", bytes(64, 1)).unwrap();
        struct Greedy(InMemory);
        impl Source for Greedy {
            fn plan(&self) -> &Plan {
                self.0.plan()
            }
            fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
                Err(Error::OutOfMemory { bytes: 1 })
            }
        }
        let failed = registry.replace_drained(set, Greedy(bytes(64, 2)), SOON);
        failed.unwrap_err().into()
    }),
    (Class::Misuse, || {
        // NotABase
        let registry = registry();
        let base = registry.publish("base", bytes(1, 1)).unwrap();
        let adapter = registry.publish("on it", addition(1, 1, base)).unwrap();
        registry
            .publish("on that", addition(1, 1, adapter))
            .unwrap_err()
            .into()
    }),
    (Class::Misuse, || {
        // WrongBase
        let registry = registry();
        let base = registry.publish("base", bytes(1, 1)).unwrap();
        let other = registry.publish("other", bytes(1, 1)).unwrap();
        let adapter = registry.publish("on it", addition(1, 1, base)).unwrap();
        registry.acquire([other, adapter]).unwrap_err()
    }),
    (Class::Conflict, || {
        // KindMismatch
        let registry = registry();
        let base = registry.publish("base", bytes(1, 1)).unwrap();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        registry
            .replace(set, addition(1, 1, base))
            .unwrap_err()
            .into()
    }),
    (Class::Misuse, || {
        // NotInLease
        let registry = registry();
        let [a, b] = ["a", "b"].map(|name| registry.publish(name, bytes(1, 1)).unwrap());
        registry.acquire(a).unwrap().set(b).unwrap_err()
    }),
    (Class::NotFound, || {
        // NoSuchTensor
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        registry.weight_handle(set, "nowhere").unwrap_err()
    }),
    (Class::Unsupported, || {
        // UnreadableTensor
        let registry = registry();
        let header = r#"{"w":{"dtype":"F7_NEW","shape":[4],"data_offsets":[0,4]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&[1; 4]);
        let source = InMemory::from_safetensors(&file).unwrap();
        let set = registry.publish("a", source).unwrap();
        let lease = registry.acquire(set).unwrap();
        lease.set(set).unwrap().get("w").unwrap_err()
    }),
    (Class::Conflict, || {
        // Superseded
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        let reader = registry.reader();
        let scope = reader.scope();
        registry.replace(set, bytes(1, 2)).unwrap();
        scope.acquire(set).unwrap_err()
    }),
    (Class::Conflict, || {
        // AliasedBy
        let registry = registry();
        let owner = registry.publish("owner", bytes(1, 1)).unwrap();
        registry.publish("user", alias(&registry, owner)).unwrap();
        registry.retire(owner).unwrap_err()
    }),
    (Class::Conflict, || {
        // AliasMismatch
        let registry = registry();
        let owner = registry.publish("owner", bytes(1, 1)).unwrap();
        registry.publish("user", alias(&registry, owner)).unwrap();
        registry.replace(owner, bytes(2, 1)).unwrap_err().into()
    }),
    (Class::Conflict, || {
        // ShardMismatch
        let registry = registry();
        let set = registry.publish("part 0", half(0)).unwrap();
        registry.replace(set, half(1)).unwrap_err().into()
    }),
    (Class::Conflict, || {
        // NotResident
        let registry = WeightRegistry::builder().limit_bytes(96).build().unwrap();
        let set = registry.publish("a", bytes(64, 1)).unwrap();
        let broken = registry.replace_drained(set, Broken(bytes(64, 2)), SOON);
        assert!(broken.unwrap_err().error().is_malformed());
        registry.acquire(set).unwrap_err()
    }),
    (Class::Conflict, || {
        // Leased
        let registry = registry();
        let set = registry.publish("a", Evictable::new(bytes(1, 1))).unwrap();
        let _lease = registry.acquire(set).unwrap();
        registry.evict(set).unwrap_err()
    }),
    (Class::Conflict, || {
        // BytesShared
        let registry = registry();
        let owner = registry.publish("owner", Evictable::new(bytes(1, 1)));
        let owner = owner.unwrap();
        registry.publish("user", alias(&registry, owner)).unwrap();
        registry.evict(owner).unwrap_err()
    }),
    (Class::Misuse, || {
        // NotEvictable
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        registry.evict(set).unwrap_err()
    }),
    (Class::Malformed, || {
        // LoadFailed: of its cause's class
        let registry = registry();
        let set = changing(&registry);
        registry.acquire_or_load(set, SOON).unwrap_err()
    }),
    (Class::Conflict, || {
        // BackingOff
        let registry = registry();
        let set = changing(&registry);
        registry.load(set).unwrap_err();
        registry.acquire_or_load(set, SOON).unwrap_err()
    }),
    (Class::Conflict, || {
        // Pinned
        let registry = registry();
        let set = registry.publish("a", Evictable::new(bytes(1, 1))).unwrap();
        let _pin = registry.pin(set, "somebody").unwrap();
        registry.evict(set).unwrap_err()
    }),
    (Class::OutOfMemory, || {
        // NeverFits
        let registry = WeightRegistry::builder().limit_bytes(64).build().unwrap();
        let set = registry.publish("a", Evictable::new(bytes(1, 1))).unwrap();
        registry.evict(set).unwrap();
        registry.publish("b", bytes(1, 1)).unwrap();
        registry.acquire_or_load(set, SOON).unwrap_err()
    }),
    (Class::Timeout, || {
        // NotLoaded
        let registry = WeightRegistry::builder().limit_bytes(64).build().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            let source = Evictable::new(bytes(1, 1));
            let set = registry.publish(name, source).unwrap();
            registry.evict(set).unwrap();
            set
        });
        let _lease = registry.acquire_or_load(a, SOON).unwrap();
        registry.acquire_or_load(b, Duration::ZERO).unwrap_err()
    }),
    (Class::Misuse, || {
        // LoadInsideLoad
        let registry = Arc::new(registry());
        let asks = Arc::downgrade(&registry);
        let (told, tells) = std::sync::mpsc::channel();
        let open = move || {
            if let Some(registry) = asks.upgrade()
                && let Some(own) = registry.lookup("a")
            {
                let _ = told.send(registry.load(own));
            }
            Ok(bytes(1, 1))
        };
        let source = Evictable::opened_by(open).unwrap();
        let set = registry.publish("a", source).unwrap();
        registry.evict(set).unwrap();
        registry.load(set).unwrap();
        tells.recv().unwrap().unwrap_err()
    }),
    (Class::NotFound, || {
        // NotKept
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        registry.rollback(set).unwrap_err()
    }),
    (Class::Misuse, || {
        // WrongNamespace
        let registry = registry();
        let theirs = registry.publish(("theirs", "a"), bytes(1, 1)).unwrap();
        let ours = registry.namespace("ours").unwrap();
        ours.acquire(theirs).unwrap_err()
    }),
    (Class::Misuse, || {
        // ChargedElsewhere
        let registry = registry();
        let [ours, theirs] = ["ours", "theirs"].map(|name| registry.namespace(name).unwrap());
        let staged = theirs.stage(bytes(1, 1)).unwrap();
        ours.publish_staged("a", staged).unwrap_err().into()
    }),
    (Class::Misuse, || {
        // OtherNamespace
        let flat = FlatRegistry::new(Arc::new(registry()));
        let theirs = bytes(1, 1);
        flat.registry().publish(("flat", "a"), theirs).unwrap();
        flat.unregister(flat.lookup("a").unwrap()).unwrap_err()
    }),
    (Class::Conflict, || {
        // AlreadyRegistered
        let flat = FlatRegistry::new(Arc::new(registry()));
        flat.register("a", Dtype::U8, [1], &[1]).unwrap();
        flat.register("a", Dtype::U8, [1], &[2]).unwrap_err()
    }),
    (Class::Conflict, || {
        // WeightTied
        let flat = FlatRegistry::new(Arc::new(registry()));
        let weight = flat.register("a", Dtype::U8, [1], &[1]).unwrap().handle();
        flat.alias("tied", weight, Dtype::U8, [1]).unwrap();
        flat.unregister(weight).unwrap_err()
    }),
    (Class::Conflict, || {
        // WeightBound
        let flat = FlatRegistry::new(Arc::new(registry()));
        let weight = flat.register("a", Dtype::U8, [1], &[1]).unwrap().handle();
        let on_it = addition(1, 1, weight.set());
        flat.registry().publish("on it", on_it).unwrap();
        flat.unregister(weight).unwrap_err()
    }),
    (Class::OutOfMemory, || {
        // OverAccountLimit
        let registry = registry();
        let limits = NamespaceLimits::none().bytes(63);
        registry.set_namespace_limits("full", limits).unwrap();
        let full = registry.namespace("full").unwrap();
        full.publish("a", bytes(1, 1)).unwrap_err().into()
    }),
    (Class::Exhausted, || {
        // TooManySets
        let registry = registry();
        let limits = NamespaceLimits::none().sets(0);
        registry.set_namespace_limits("full", limits).unwrap();
        let full = registry.namespace("full").unwrap();
        full.publish("a", bytes(1, 1)).unwrap_err().into()
    }),
    (Class::Unsupported, || {
        // NotHostReadable
        let registry = registry();
        let source = Foreign::new(Device(4, 64)).unwrap();
        let source = source.tensor("w", Dtype::U8, [4], 0).unwrap();
        let set = registry.publish("a", source).unwrap();
        let lease = registry.acquire(set).unwrap();
        lease.set(set).unwrap().get("w").unwrap_err()
    }),
    (Class::Malformed, || {
        // InvalidMemory
        Foreign::new(Device(4, u64::MAX)).unwrap_err()
    }),
    (Class::Timeout, || {
        // NotDrained
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        let _lease = registry.acquire(set).unwrap();
        let going = registry.retire(set).unwrap();
        going.drained(Duration::ZERO).unwrap_err()
    }),
    (Class::Timeout, || {
        // NotReclaimed
        let registry = registry();
        let set = registry.publish("a", bytes(1, 1)).unwrap();
        let _lease = registry.acquire(set).unwrap();
        let going = registry.retire(set).unwrap();
        going.reclaimed(Duration::ZERO).unwrap_err()
    }),
    (Class::OutOfMemory, || {
        // OverLimit
        let registry = WeightRegistry::builder().limit_bytes(63).build().unwrap();
        registry.publish("a", bytes(1, 1)).unwrap_err().into()
    }),
    (Class::OutOfMemory, || {
        // OutOfMemory
        let registry = WeightRegistry::builder().build().unwrap();
        let plan = Plan::of("huge", [("w", Dtype::U8, vec![1 << 60])]).unwrap();
        registry.fill(plan, None).unwrap_err()
    }),
    (Class::Io, || Checkpoint::open("no/such/place").unwrap_err()),
    (Class::Malformed, || {
        // Malformed
        InMemory::from_safetensors(b"short").unwrap_err()
    }),
    (Class::Malformed, || {
        // InvalidTensor
        InMemory::new()
            .tensor("w", Dtype::F32, [1], [0; 3])
            .unwrap_err()
    }),
    (Class::Conflict, || {
        // TensorBusy
        let plan = bytes(1, 1).plan().clone();
        let filling = registry().fill(plan, None).unwrap();
        let _writer = filling.writer("w").unwrap();
        filling.writer("w").unwrap_err()
    }),
    (Class::Malformed, || {
        // MissingShard
        let dir = tempfile::tempdir().unwrap();
        let index = r#"{"weight_map":{"w":"model-00001-of-00001.safetensors"}}"#;
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        Checkpoint::open(dir.path()).unwrap_err()
    }),
    (Class::Malformed, || {
        // SourceChanged
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::copy(fixture("tiny-llama/model.safetensors"), &path).unwrap();
        let source = Checkpoint::open(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        registry().stage(source).unwrap_err()
    }),
    (Class::Unsupported, || {
        // Unsupported
        let dir = tempfile::tempdir().unwrap();
        let from = fixture("adapters/pirate-v1");
        let weights = "adapter_model.safetensors";
        std::fs::copy(from.join(weights), dir.path().join(weights)).unwrap();
        let config = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
        let config = config.replace("\"use_dora\": false", "\"use_dora\": true");
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        PeftAdapter::open(dir.path()).unwrap_err()
    }),
    (Class::Malformed, || {
        // AdapterMismatch
        let registry = registry();
        let base = registry.publish("base", bytes(1, 1)).unwrap();
        registry
            .publish("a", adapter("pirate-v1", base))
            .unwrap_err()
            .into()
    }),
];

/// The variants as they are written in the source: no `match` from outside of the crate can be
/// exhaustive.
fn variants() -> BTreeSet<&'static str> {
    let text = include_str!("../src/error/mod.rs");
    let (_, rest) = text.split_once("pub enum Error {\n").expect("the type");
    let (body, _) = rest.split_once("\n}\n").expect("its end");
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    names
        .filter_map(|line| line.split(|at: char| !at.is_ascii_alphanumeric()).next())
        .collect()
}

fn variant(error: &Error) -> String {
    let text = format!("{error:?}");
    let end = text.find(|at: char| !at.is_ascii_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

#[test]
fn every_error_is_produced_and_has_one_class() {
    let mut produced = BTreeSet::new();
    for (class, case) in CASES {
        let error = case();
        assert_eq!(classes(&error), [*class], "{error:?}");
        let limited = matches!(class, Class::OutOfMemory | Class::Exhausted);
        assert!(limited || !error.is_over_limit(), "{error:?}");
        assert!(!error.to_string().is_empty() && !error.to_string().contains(char::is_control));
        assert!(produced.insert(variant(&error)), "twice: {error:?}");
    }
    for (name, file) in ELSEWHERE {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains(&format!("Error::{name}")),
            "{file} has no {name}"
        );
        assert!(
            produced.insert((*name).to_owned()),
            "{name} is produced here"
        );
    }
    let all: BTreeSet<String> = variants().into_iter().map(str::to_owned).collect();
    assert_eq!(
        all, produced,
        "the variants on the left; add what is new to CASES"
    );
}

/// A refused call changes nothing: afterwards the same sets are there, and the books balance.
#[test]
fn refusals_change_nothing() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let pirate = registry
        .publish("pirate", adapter("pirate-v1", base))
        .unwrap();
    let gone = registry.publish("gone", bytes(64, 1)).unwrap();
    registry.retire(gone).unwrap().reclaimed(SOON).unwrap();
    let foreign = support::registry().publish("x", bytes(64, 1)).unwrap();
    let before = registry.stats();
    let seen = registry.scope(|scope| scope.get(gone).is_err());
    assert!(seen);
    for set in [gone, foreign] {
        assert!(registry.replace(set, bytes(64, 1)).is_err());
        assert!(registry.publish("new", addition(64, 1, set)).is_err());
        assert!(registry.retire(set).is_err());
        assert!(registry.acquire([base, set]).is_err());
        let mut transaction = registry.transaction();
        assert!(transaction.retire(set).is_err());
        assert!(
            transaction
                .replace(set, registry.stage(bytes(64, 1)).unwrap())
                .is_err()
        );
    }
    assert!(registry.replace(pirate, bytes(64, 1)).is_err());
    assert!(registry.replace(base, tiny()).is_err());
    assert!(registry.publish("pirate", bytes(64, 1)).is_err());
    assert!(registry.publish("", bytes(64, 1)).is_err());
    assert_eq!(registry.lookup("new"), None);
    let after = registry.stats();
    assert_eq!(
        (after.sets, after.commits, after.retired_generations),
        (before.sets, before.commits, 0)
    );
    let books = |stats: &weighbridge::Stats| {
        (
            stats.ledger.reserved,
            stats.ledger.resident,
            stats.ledger.retired,
        )
    };
    assert_eq!(books(&after), books(&before));
    assert!(registry.retire(pirate).is_ok() && registry.retire(base).is_ok());
}
