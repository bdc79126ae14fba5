//! Sets whose bytes go and come back while they stay published.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak};
use std::time::Instant;

use support::theirs::{Log, Theirs};
use support::{SOON, addition, bytes, copy, ends, registry};
use weighbridge::source::{Checkpoint, Evictable, Foreign, InMemory, Reload, Source};
use weighbridge::{
    Dtype, Error, EventKind, Identity, Next, Operation, Plan, SetHandle, WeightRegistry,
};

/// What a source says that cannot be read.
fn malformed() -> Error {
    let twice = bytes(64, 7).tensor("w", Dtype::U8, [1], [1]);
    twice.unwrap_err()
}

/// A set of 64 bytes that can be evicted, and the number of times that it was opened.
fn evictable(fill: u8) -> (Evictable<InMemory>, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let open = move || {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(bytes(64, fill))
    };
    (Evictable::opened_by(open).unwrap(), opened)
}

fn fill(registry: &WeightRegistry, set: SetHandle) -> Result<u8, Error> {
    let lease = registry.acquire(set)?;
    Ok(lease.set(set)?.get("w")?.bytes()[0])
}

/// Why a load failed.
fn cause(refused: Error) -> Arc<Error> {
    match refused {
        Error::LoadFailed { cause, .. } => cause,
        other => panic!("{other}"),
    }
}

fn is_differing(refused: Error) {
    let cause = cause(refused);
    assert!(matches!(*cause, Error::ReloadDiffers { .. }), "{cause}");
}

fn is_resident(registry: &WeightRegistry, set: SetHandle) -> bool {
    let catalog = registry.catalog();
    let mut entries = catalog.entries().iter();
    entries.find(|entry| entry.handle == set).unwrap().resident
}

/// Is without bytes, and nothing is charged.
fn is_away(registry: &WeightRegistry, set: SetHandle) {
    assert!(!is_resident(registry, set));
    let refused = registry.acquire(set).unwrap_err();
    assert!(matches!(refused, Error::NotResident { handle } if handle == set));
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn what_is_evicted_stays_what_it_is() {
    let registry = registry();
    let (source, opened) = evictable(7);
    let set = registry.publish("s", source).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    let before = registry.catalog();
    let [before] = before.entries() else { panic!() };
    assert!(before.resident);
    assert_eq!(registry.evict(set).unwrap(), 64);
    is_away(&registry, set);
    assert_eq!(registry.evict(set).unwrap(), 0, "it had none");

    let catalog = registry.catalog();
    let [away] = catalog.entries() else { panic!() };
    assert_eq!(away.bytes, 64, "what it will take");
    assert_eq!(
        (&away.name, away.generation, &away.identity),
        (&before.name, before.generation, &before.identity)
    );
    assert_eq!(registry.lookup("s"), Some(set));
    assert_eq!(registry.weight_handle(set, "w").unwrap(), w);
    registry.scope(|scope| {
        let seen = scope.get(set).unwrap();
        assert!(!seen.is_resident());
        assert_eq!(seen.generation(), before.generation);
    });

    assert_eq!(registry.load(set).unwrap(), 64);
    assert_eq!(registry.load(set).unwrap(), 0, "it was there");
    assert_eq!(
        opened.load(Ordering::Relaxed),
        2,
        "once for each time it was read"
    );
    let catalog = registry.catalog();
    let [back] = catalog.entries() else { panic!() };
    assert_eq!(back, before);
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.weight(w).unwrap().bytes(), [7; 64]);
    assert!(!lease.is_superseded());
    let ledger = registry.ledger();
    assert_eq!((ledger.resident, ledger.total(), ledger.peak), (64, 64, 64));
    assert_eq!(
        registry.stats().reclaimed_bytes,
        0,
        "nothing was superseded"
    );
    assert_eq!(registry.stats().commits, 1, "neither is a commit");
}

#[test]
fn nothing_leased_is_evicted_and_the_error_names_who_has_it() {
    let registry = registry();
    let set = registry.publish("s", evictable(7).0).unwrap();
    let lease = registry.acquire_as("request-42", set).unwrap();
    let other = lease.clone();
    let Error::Leased(holdup) = registry.evict(set).unwrap_err() else {
        panic!()
    };
    assert_eq!((holdup.leases, holdup.holders.len()), (2, 2));
    assert_eq!(holdup.holders[0].label, "request-42");
    let message = Error::Leased(holdup).to_string();
    assert!(
        message.contains("request-42") && !message.contains(" after "),
        "{message}"
    );
    drop(lease);
    assert_eq!(other.set(set).unwrap().get("w").unwrap().bytes(), [7; 64]);
    assert!(registry.evict(set).is_err());
    drop(other);
    assert_eq!(registry.evict(set).unwrap(), 64);
    is_away(&registry, set);
}

#[test]
fn only_what_can_be_read_again_is_evicted() {
    let registry = registry();
    let set = registry.publish("s", bytes(64, 1)).unwrap();
    let refused = registry.evict(set).unwrap_err();
    assert!(matches!(refused, Error::NotEvictable { .. }), "{refused}");
    // Some of its tensors are another set's: they would have to be bound again.
    let owner = registry.publish("owner", bytes(64, 1)).unwrap();
    let target = registry.weight_handle(owner, "w").unwrap();
    let user = bytes(64, 2).alias("lent", target).unwrap();
    let user = registry.publish("user", Evictable::new(user)).unwrap();
    let refused = registry.evict(user).unwrap_err();
    assert!(matches!(refused, Error::NotEvictable { .. }), "{refused}");
    assert_eq!(fill(&registry, user).unwrap(), 2);
    assert_eq!(registry.load(set).unwrap(), 0);
}

#[test]
fn bytes_that_others_have_stay() {
    let registry = registry();
    let owner = registry.publish("owner", evictable(7).0).unwrap();
    let target = registry.weight_handle(owner, "w").unwrap();
    let user = InMemory::new().alias("lent", target).unwrap();
    let user = registry.publish("user", user).unwrap();
    let refused = registry.evict(owner).unwrap_err();
    assert!(matches!(refused, Error::BytesShared { .. }), "{refused}");
    assert!(is_resident(&registry, owner));
    assert_eq!(fill(&registry, owner).unwrap(), 7, "it was put back");
    assert_eq!(registry.ledger().resident, 64);
    registry.retire(user).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.evict(owner).unwrap(), 64);
    is_away(&registry, owner);
}

/// What a source has when it is opened again.
type Then = fn() -> Result<InMemory, Error>;

#[test]
fn only_the_same_bytes_come_back() {
    let first: [fn() -> InMemory; 2] = [|| bytes(64, 7), || bytes(64, 7).declared("r1")];
    let others: [&[Then]; 2] = [
        &[
            || Ok(bytes(64, 8)),
            || Ok(bytes(63, 7)),
            || Ok(bytes(64, 7).declared("r1")),
            || bytes(64, 7).tensor("more", Dtype::U8, [0], []),
            || InMemory::new().tensor("v", Dtype::U8, [64], [7; 64]),
            || InMemory::new().tensor("w", Dtype::I8, [64], [7; 64]),
            || InMemory::new().tensor("w", Dtype::U8, [8, 8], [7; 64]),
            || Ok(InMemory::new()),
        ],
        &[|| Ok(bytes(64, 7)), || Ok(bytes(64, 7).declared("r2"))],
    ];
    for (first, others) in first.into_iter().zip(others) {
        let then = Arc::new(Mutex::new(None::<Then>));
        let what = Arc::clone(&then);
        let open = move || (*what.lock().unwrap()).map_or_else(|| Ok(first()), |then| then());
        let registry = registry();
        let source = Evictable::opened_by(open).unwrap();
        let set = registry.publish("s", source).unwrap();
        registry.evict(set).unwrap();
        for other in others {
            *then.lock().unwrap() = Some(*other);
            is_differing(registry.load(set).unwrap_err());
            is_away(&registry, set);
        }
        *then.lock().unwrap() = None;
        registry.load(set).unwrap();
        assert_eq!(fill(&registry, set).unwrap(), 7);
    }
}

/// Where a set is read again, badly.
struct Odd(AtomicU8);

impl Reload for Odd {
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(()), // Nothing is read.
            1 => {
                // A refusal is kept to itself.
                let _ = read(&bytes(64, 8));
                Ok(())
            }
            2 => panic!("on purpose"),
            3 => Err(malformed()),
            4 => {
                // The last word counts.
                read(&bytes(64, 7))?;
                let _ = read(&bytes(64, 8));
                Ok(())
            }
            5 => {
                // Of what was read before nothing is left.
                let _ = read(&bytes(64, 8));
                read(&Half(bytes(64, 7)))
            }
            _ => read(&bytes(64, 7)),
        }
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        panic!("on purpose, too");
    }
}

/// Leaves the second half as it finds it, and vouches for that.
struct Half(InMemory);

impl Source for Half {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        arena[..32].fill(7);
        assert!(arena[32..].iter().all(|byte| *byte == 0), "not zeroed");
        Ok(())
    }
}

struct Oddly(InMemory);

impl Source for Oddly {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.0.read_into(arena)
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        Some(Arc::new(Odd(AtomicU8::new(0))))
    }
}

#[test]
fn a_load_that_fails_or_panics_leaves_nothing_behind() {
    let registry = registry();
    let set = registry.publish("s", Oddly(bytes(64, 7))).unwrap();
    registry.evict(set).unwrap();
    for _ in 0..2 {
        is_differing(registry.load(set).unwrap_err());
        is_away(&registry, set);
    }
    let panicked = cause(registry.load(set).unwrap_err());
    assert!(matches!(*panicked, Error::LoadBroken { .. }), "{panicked}");
    is_away(&registry, set);
    let refused = registry.load(set).unwrap_err();
    assert!(refused.is_malformed(), "{refused}");
    is_away(&registry, set);
    for _ in 0..2 {
        is_differing(registry.load(set).unwrap_err());
        is_away(&registry, set);
    }
    registry.load(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 7);
    // Its way back is dropped with it, and that panics.
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

/// A panic there would hide what was wrong.
#[test]
fn what_could_not_be_read_is_not_asked_how_to_read_it_again() {
    struct Broken(InMemory);
    impl Source for Broken {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            Err(malformed())
        }
        fn reload(&self) -> Option<Arc<dyn Reload>> {
            panic!("it is asked");
        }
    }
    let registry = registry();
    let refused = registry.publish("s", Broken(bytes(64, 1))).unwrap_err();
    assert!(refused.error().is_malformed(), "{refused}");
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn a_load_is_within_the_limits() {
    let registry = WeightRegistry::builder().limit_bytes(100).build().unwrap();
    let set = registry.publish(("tenant", "s"), evictable(7).0).unwrap();
    assert_eq!(registry.namespace_stats("tenant").bytes.resident, 64);
    registry.evict(set).unwrap();
    assert_eq!(registry.namespace_stats("tenant").bytes.total(), 0);
    let other = registry.publish("other", bytes(64, 1)).unwrap();
    let refused = registry.load(set).unwrap_err();
    assert!(matches!(
        refused,
        Error::OverLimit {
            requested: 64,
            in_use: 64,
            limit: 100
        }
    ));
    assert_eq!(registry.ledger().total(), 64);
    registry.retire(other).unwrap().reclaimed(SOON).unwrap();
    let tenant = registry.namespace("tenant").unwrap();
    assert_eq!(tenant.load(set).unwrap(), 64);
    assert_eq!(registry.namespace_stats("tenant").bytes.resident, 64);
    assert!(registry.ledger().peak <= 100);

    let stranger = registry.namespace("stranger").unwrap();
    for refused in [stranger.evict(set), stranger.load(set)] {
        assert!(matches!(refused, Err(Error::WrongNamespace { .. })));
    }
    assert_eq!(tenant.evict(set).unwrap(), 64);
}

#[test]
fn a_set_that_is_away_can_be_replaced_and_retired() {
    let registry = registry();
    let set = registry.publish("s", evictable(1).0).unwrap();
    registry.keep_previous(set, 2).unwrap();
    registry.evict(set).unwrap();
    let replaced = registry.replace(set, evictable(2).0).unwrap();
    assert_eq!(replaced.previous.bytes(), 0, "nothing is to come back");
    replaced.previous.reclaimed(SOON).unwrap();
    assert!(
        registry.kept(set).unwrap().is_empty(),
        "there was nothing to keep"
    );
    assert_eq!(fill(&registry, set).unwrap(), 2);
    assert_eq!(registry.ledger().total(), 64);

    // What is kept stays, while the current one is away.
    registry.replace(set, evictable(3).0).unwrap();
    registry.evict(set).unwrap();
    assert_eq!(
        (registry.ledger().kept, registry.ledger().total()),
        (64, 64)
    );
    registry.rollback(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 2);
    // Until the reclaimer has let go of it as what was kept, it has two owners.
    let deadline = Instant::now() + SOON;
    while let Err(refused) = registry.evict(set) {
        assert!(matches!(refused, Error::BytesShared { .. }), "{refused}");
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    registry.load(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 2);

    registry.evict(set).unwrap();
    let retired = registry.retire(set).unwrap();
    retired.reclaimed(SOON).unwrap();
    for gone in [registry.evict(set), registry.load(set)] {
        assert!(matches!(gone, Err(Error::StaleHandle { .. })));
    }
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn an_adapter_that_is_away_moves_with_its_base() {
    let registry = registry();
    let base = registry.publish("base", evictable(1).0).unwrap();
    let source = Evictable::new(addition(64, 5, base));
    let adapter = registry.publish("adapter", source).unwrap();
    registry.evict(adapter).unwrap();
    let mut swap = registry.transaction();
    let next = registry.stage(evictable(2).0).unwrap();
    swap.replace(base, next).unwrap();
    swap.rebind_adapters(base).unwrap();
    swap.commit().unwrap();
    assert!(!is_resident(&registry, adapter));
    let refused = registry.acquire([base, adapter]).unwrap_err();
    assert!(matches!(refused, Error::NotResident { handle } if handle == adapter));
    assert_eq!(registry.load(adapter).unwrap(), 64);
    let lease = registry.acquire([base, adapter]).unwrap();
    let leased = lease.set(adapter).unwrap();
    let more = leased.iter().next().unwrap().unwrap();
    assert_eq!(more.bytes(), [5; 64]);
    assert_eq!(lease.set(adapter).unwrap().bytes(), 64);
    // Its base may go, too, while it is there.
    drop(lease);
    registry.evict(base).unwrap();
    let refused = registry.acquire([base, adapter]).unwrap_err();
    assert!(matches!(refused, Error::NotResident { handle } if handle == base));
    assert!(registry.acquire(adapter).is_ok());
    registry.load(base).unwrap();
    assert!(registry.acquire([base, adapter]).is_ok());
}

#[test]
fn a_drained_swap_of_what_is_away_needs_no_drain_and_what_it_empties_is_not_loaded() {
    let registry = WeightRegistry::builder().limit_bytes(96).build().unwrap();
    let set = registry.publish("s", evictable(1).0).unwrap();
    registry.evict(set).unwrap();
    registry.replace_drained(set, evictable(2).0, SOON).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 2);
    assert_eq!(registry.ledger().total(), 64);

    struct Broken(InMemory);
    impl Source for Broken {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            Err(malformed())
        }
    }
    let emptied = registry.replace_drained(set, Broken(bytes(64, 3)), SOON);
    assert!(matches!(
        emptied.unwrap_err().error(),
        Error::Emptied { .. }
    ));
    let refused = registry.load(set).unwrap_err();
    assert!(
        matches!(refused, Error::NotResident { .. }),
        "the old ones do not come back"
    );
    assert_eq!(registry.ledger().total(), 0);

    // While something else has the memory, it does not fit either way.
    let set = registry.publish("t", evictable(4).0).unwrap();
    registry.evict(set).unwrap();
    let other = registry.publish("other", bytes(64, 1)).unwrap();
    let refused = registry.replace_drained(set, evictable(5).0, SOON);
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused.error(), Error::OverLimit { .. }),
        "{refused}"
    );
    registry.retire(other).unwrap().reclaimed(SOON).unwrap();
    registry.load(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 4);
}

/// Calls back while it is read.
struct While<F>(InMemory, F);

impl<F: Fn() -> Result<(), Error>> Source for While<F> {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        (self.1)()?;
        self.0.read_into(arena)
    }
}

#[test]
fn a_drained_swap_takes_no_evicted_set_for_its_empty_place() {
    let registry = WeightRegistry::builder().limit_bytes(192).build().unwrap();
    let set = registry.publish("s", bytes(128, 1)).unwrap();
    // Somebody else gives it a generation meanwhile, and evicts it.
    let meanwhile = || {
        registry.replace(set, evictable(2).0).unwrap();
        registry.evict(set).map(|_| ())
    };
    let swap = registry.replace_drained(set, While(bytes(128, 3), meanwhile), SOON);
    let refused = swap.unwrap_err();
    assert!(
        matches!(refused.error(), Error::Conflict { .. }),
        "{refused}"
    );
    drop(refused);
    registry.load(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 2, "theirs is there");

    // The same, and the source breaks: the set is not empty, it is away.
    let swap = registry.replace_drained(set, evictable(4).0, SOON).unwrap();
    swap.previous.reclaimed(SOON).unwrap();
    registry.replace_drained(set, bytes(128, 5), SOON).unwrap();
    let broken = || {
        registry.replace(set, evictable(6).0).unwrap();
        registry.evict(set).unwrap();
        Err(malformed())
    };
    let swap = registry.replace_drained(set, While(bytes(128, 7), broken), SOON);
    let refused = swap.unwrap_err();
    assert!(refused.error().is_malformed(), "{refused}");
    registry.load(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 6);
    assert_eq!(registry.ledger().total(), 64);
}

#[test]
fn a_drained_swap_of_what_is_away_is_a_replace() {
    let registry = registry();
    let base = registry.publish("base", evictable(1).0).unwrap();
    registry.publish("adapter", addition(64, 5, base)).unwrap();
    registry.evict(base).unwrap();
    let refused = registry.replace_drained(base, evictable(2).0, SOON);
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused.error(), Error::Dependants { .. }),
        "{refused}"
    );
}

/// Nobody who reads is told that bytes are away which nobody could take.
#[test]
fn an_eviction_that_is_refused_for_a_share_is_not_seen() {
    let registry = registry();
    let owner = registry.publish("owner", evictable(7).0).unwrap();
    let target = registry.weight_handle(owner, "w").unwrap();
    let user = InMemory::new().alias("lent", target).unwrap();
    registry.publish("user", user).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for _ in 0..20_000 {
                registry.evict(owner).unwrap_err();
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(fill(&registry, owner).unwrap(), 7);
        }
    });
    assert!(is_resident(&registry, owner));
}

#[test]
fn bytes_that_are_evicted_are_not_bytes_of_what_was_superseded() {
    let registry = registry();
    let base = registry.publish("base", evictable(1).0).unwrap();
    let source = Evictable::new(addition(64, 5, base));
    let adapter = registry.publish("adapter", source).unwrap();
    // A new number for the same bytes.
    let moved = registry.rebind(adapter, base).unwrap();
    moved.previous.reclaimed(SOON).unwrap();
    let was = registry.stats().reclaimed_bytes;
    for _ in 0..2 {
        assert_eq!(registry.evict(adapter).unwrap(), 64);
        registry.load(adapter).unwrap();
    }
    assert_eq!(registry.stats().reclaimed_bytes, was);
}

#[test]
fn memory_that_a_source_brings_is_published_and_not_evicted() {
    let registry = registry();
    let log = Log::new();
    let owner = Theirs::on_host([7; 64], &log);
    let source = Foreign::new(owner).unwrap();
    let source = source.tensor("w", Dtype::U8, [64], 0).unwrap();
    let set = registry.publish("s", Evictable::new(source)).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 7);
    let refused = registry.evict(set).unwrap_err();
    assert!(matches!(refused, Error::NotEvictable { .. }), "{refused}");
}

/// What a source leaves is dropped where it may ask the registry: not under the lock of the set's writers,
/// where a replace trims what is kept.
#[test]
fn a_way_back_may_call_the_registry_when_it_is_dropped() {
    struct Asks(Weak<WeightRegistry>, SetHandle, Arc<AtomicUsize>);
    impl Reload for Asks {
        fn reopen(
            &self,
            read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>,
        ) -> Result<(), Error> {
            read(&bytes(64, 1))
        }
    }
    impl Drop for Asks {
        fn drop(&mut self) {
            if let Some(registry) = self.0.upgrade() {
                let _ = registry.kept(self.1);
            }
            self.2.fetch_add(1, Ordering::Relaxed);
        }
    }
    struct With(InMemory, Arc<Asks>);
    impl Source for With {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            self.0.read_into(arena)
        }
        fn reload(&self) -> Option<Arc<dyn Reload>> {
            Some(Arc::clone(&self.1) as Arc<dyn Reload>)
        }
    }
    ends("what is kept is trimmed", || {
        let registry = Arc::new(WeightRegistry::builder().keep_previous(1).build().unwrap());
        let gone = Arc::new(AtomicUsize::new(0));
        let set = registry.publish("s", bytes(64, 0)).unwrap();
        let replace = || {
            let asks = Arc::new(Asks(Arc::downgrade(&registry), set, Arc::clone(&gone)));
            let back = Arc::downgrade(&asks);
            registry.replace(set, With(bytes(64, 1), asks)).unwrap();
            registry.evict(set).unwrap();
            registry.load(set).unwrap();
            back
        };
        let mut current = replace();
        for round in 0..4 {
            // This one keeps `current`, and trims the one before it.
            let next = replace();
            let deadline = Instant::now() + SOON;
            // Until that has ended, and until only what is kept has `current`: then whoever trims it drops it.
            while gone.load(Ordering::Relaxed) < round || current.strong_count() > 1 {
                assert!(Instant::now() < deadline, "it is had for ever");
                registry.stats(); // moves the epoch
                std::thread::yield_now();
            }
            assert_eq!(current.strong_count(), 1, "it is kept");
            current = next;
        }
    });
}

#[test]
fn observers_are_told_of_what_goes_and_comes() {
    let registry = registry();
    let set = registry.publish("s", evictable(7).0).unwrap();
    let mut events = registry.events();
    registry.evict(set).unwrap();
    registry.evict(set).unwrap();
    registry.load(set).unwrap();
    registry.load(set).unwrap();
    let _lease = registry.acquire(set).unwrap();
    registry.evict(set).unwrap_err();
    let mut told = Vec::new();
    while let Next::Event(event) = events.try_next() {
        let line = event.to_json();
        told.push(match event.kind {
            EventKind::Evicted { now, .. } => {
                assert!(line.contains(r#""event":"evicted""#), "{line}");
                ("evicted", now.resident, now.bytes)
            }
            EventKind::Loaded { now, .. } => {
                assert!(line.contains(r#""event":"loaded""#), "{line}");
                ("loaded", now.resident, now.bytes)
            }
            EventKind::Refused { operation, .. } => {
                assert_eq!(operation, Operation::Evict);
                assert!(line.contains(r#""operation":"evict""#), "{line}");
                ("refused", true, 0)
            }
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(
        told,
        [
            ("evicted", false, 64),
            ("loaded", true, 64),
            ("refused", true, 0)
        ]
    );
}

/// Files: kept open, or opened again.
#[test]
fn files_that_were_replaced_are_read_only_by_who_kept_them_open() {
    let dir = copy("tiny-llama");
    let path = dir.path().to_owned();
    let open = move || Checkpoint::open(&path);
    let registry = registry();
    let kept = registry.publish("kept", Evictable::new(open().unwrap()));
    let kept = kept.unwrap();
    let again = registry.publish("again", Evictable::opened_by(open).unwrap());
    let again = again.unwrap();
    for set in [kept, again] {
        let identity = |registry: &WeightRegistry| {
            let lease = registry.acquire(set).unwrap();
            lease.set(set).unwrap().identity().clone()
        };
        let was = identity(&registry);
        assert!(matches!(was, Identity::Content(_)));
        assert!(registry.evict(set).unwrap() > 0);
        registry.load(set).unwrap();
        assert_eq!(identity(&registry), was);
        registry.evict(set).unwrap();
    }
    is_away(&registry, kept);
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(dir.path().join("new"), bytes).unwrap();
    std::fs::rename(dir.path().join("new"), &file).unwrap();
    assert!(registry.load(kept).unwrap() > 0);
    is_differing(registry.load(again).unwrap_err());
    std::fs::remove_file(&file).unwrap();
    let refused = registry.load(again).unwrap_err();
    assert!(refused.is_malformed(), "{refused}");
}

#[test]
fn of_many_who_load_one_reads() {
    let registry = registry();
    let (source, opened) = evictable(7);
    let set = registry.publish("s", source).unwrap();
    for round in 1..=20 {
        registry.evict(set).unwrap();
        let start = Barrier::new(8);
        let read = AtomicUsize::new(0);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    start.wait();
                    if registry.load(set).unwrap() > 0 {
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                    assert_eq!(fill(&registry, set).unwrap(), 7);
                });
            }
        });
        assert_eq!(read.into_inner(), 1);
        assert_eq!(opened.load(Ordering::Relaxed), 1 + round);
        assert_eq!(registry.ledger().total(), 64);
    }
    assert_eq!(registry.ledger().peak, 64, "never twice in memory");
}

/// Readers, two who evict, two who load, one who replaces: whoever has a lease reads one generation, and
/// in the end every byte is accounted for.
#[test]
fn readers_meet_evictions_and_loads() {
    let registry = registry();
    let set = registry.publish("s", evictable(0).0).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    let stop = AtomicBool::new(false);
    let [read, refused, evicted, loaded] = [(); 4].map(|()| AtomicUsize::new(0));
    let add = |to: &AtomicUsize| to.fetch_add(1, Ordering::Relaxed);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match registry.acquire(set) {
                        Ok(lease) => {
                            let bytes = lease.weight(w).unwrap().bytes();
                            let first = bytes[0];
                            assert!(bytes.iter().all(|byte| *byte == first), "mixed");
                            add(&read);
                        }
                        Err(Error::NotResident { .. }) => {
                            add(&refused);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match registry.evict(set) {
                        Ok(0) | Err(Error::Leased(_) | Error::BytesShared { .. }) => {}
                        Ok(_) => {
                            add(&evicted);
                        }
                        Err(other) => panic!("{other}"),
                    }
                    // The lock of those who write a set is not fair.
                    std::thread::yield_now();
                }
            });
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if registry.load(set).unwrap() > 0 {
                        add(&loaded);
                    }
                    std::thread::yield_now();
                }
            });
        }
        threads.spawn(|| {
            for version in 1..=50u8 {
                registry.replace(set, evictable(version).0).unwrap();
            }
            let enough = || {
                let counts = [&read, &refused, &evicted, &loaded];
                counts
                    .into_iter()
                    .all(|count| count.load(Ordering::Relaxed) >= 50)
            };
            let deadline = Instant::now() + SOON;
            while !enough() {
                assert!(Instant::now() < deadline, "something does not come to pass");
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert!(registry.ledger().peak <= 64 * 54);
    registry.load(set).unwrap();
    assert_eq!(fill(&registry, set).unwrap(), 50);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    while !registry.retired().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(registry.ledger().total(), 0);
}
