//! Memory that others own: where it ends, what its owner may do wrong, what the host cannot read.

mod support;

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, panic_any};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::theirs::{Log, Theirs, slow, whole};
use support::{SOON, bytes, registry};
use weighbridge::memory::{Memory, Owner};
use weighbridge::source::{Foreign, InMemory, Source};
use weighbridge::{
    Dtype, Error, Identity, Lease, LedgerSnapshot, Plan, Staged, WeightKind, WeightRegistry,
};

const RECLAIMER: &str = "weighbridge-reclaimer";

fn nothing_is_left(registry: &WeightRegistry) {
    let ledger: LedgerSnapshot = registry.ledger();
    assert_eq!((ledger.total(), registry.stats().sets), (0, 0));
}

// ---- where it ends ----

#[test]
fn an_owner_ends_once_on_the_reclaimers_thread_after_the_last_lease() {
    let (registry, log) = (registry(), Log::new());
    let set = registry
        .publish("s", whole(Theirs::on_host([7; 100], &log)))
        .unwrap();
    let first = registry.acquire(set).unwrap();
    let second = first.clone();
    let going = registry.retire(set).unwrap();
    assert!(log.ends().is_empty());
    drop(first);
    assert_eq!(second.set(set).unwrap().get("w").unwrap().bytes(), [7; 100]);
    assert!(log.ends().is_empty(), "a lease still holds it");
    drop(second);
    going.reclaimed(SOON).unwrap();
    assert_eq!(log.ends(), [RECLAIMER]);
    drop(registry);
    assert_eq!(log.ends(), [RECLAIMER], "once");
}

#[test]
fn a_panic_at_the_end_is_counted_and_nobody_else_notices() {
    /// A panic whose payload panics again.
    struct Twice;
    impl Drop for Twice {
        fn drop(&mut self) {
            // A payload without memory: it is forgotten, and must not look like a leak.
            panic_any(());
        }
    }
    let (registry, log) = (registry(), Log::new());
    let ends: [fn(); 2] = [|| panic!("in a foreign destructor"), || panic_any(Twice)];
    for (count, end) in (1..).zip(ends) {
        let owner = Theirs::on_device(8, &log).charged(1000).at_the_end(end);
        let set = registry.publish("s", whole(owner)).unwrap();
        let other = registry.publish("other", bytes(9, 1)).unwrap();
        assert_eq!(registry.ledger().total(), 1000 + 64);
        let (going, others) = (registry.retire(set).unwrap(), registry.retire(other));
        going.reclaimed(SOON).unwrap();
        others.unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.stats().reclaimer_panics, count);
        nothing_is_left(&registry);
    }
    assert_eq!(log.ends(), [RECLAIMER, RECLAIMER]);
}

#[test]
fn a_slow_end_delays_no_reader_and_no_writer() {
    let (registry, log) = (registry(), Log::new());
    let (owner, has_begun, go_on) = slow(&log);
    let set = registry.publish("slow", whole(owner)).unwrap();
    let slow = registry.retire(set).unwrap();
    has_begun.recv_timeout(SOON).unwrap();

    let other = registry.publish("other", bytes(9, 1)).unwrap();
    let replaced = registry.replace(other, bytes(9, 2)).unwrap();
    let lease = registry.acquire(other).unwrap();
    assert_eq!(lease.set(other).unwrap().get("w").unwrap().bytes(), [2; 9]);
    assert!(replaced.previous.is_drained());
    replaced.previous.drained(Duration::ZERO).unwrap();
    // What it does delay: memory that comes back later.
    assert!(!replaced.previous.is_reclaimed() && !slow.is_reclaimed());

    go_on.send(()).unwrap();
    slow.reclaimed(SOON).unwrap();
    replaced.previous.reclaimed(SOON).unwrap();
    assert_eq!(log.ends(), [RECLAIMER]);
}

#[test]
fn a_long_end_in_pieces_lets_the_news_of_others_through() {
    struct InPieces(Mutex<Receiver<()>>, Sender<&'static str>);
    impl Owner for InPieces {
        fn byte_len(&self) -> u64 {
            0
        }
        fn address(&self) -> u64 {
            0
        }
        fn give_back(self: Box<Self>, step: &mut dyn FnMut()) {
            for _ in 0..2 {
                self.1.send("a piece is to come").unwrap();
                self.0.lock().unwrap().recv().unwrap();
                step();
            }
            self.1.send("all pieces are done").unwrap();
        }
    }
    let registry = registry();
    let (go_on, may_go_on) = channel();
    let (tell, told) = channel();
    let owner = InPieces(Mutex::new(may_go_on), tell.clone());
    let long = registry
        .publish("long", Foreign::new(owner).unwrap())
        .unwrap();
    let other = registry.publish("other", bytes(9, 1)).unwrap();
    let lease = registry.acquire(other).unwrap();
    let going = registry.retire(other).unwrap();
    let long = registry.retire(long).unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), "a piece is to come");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            going.drained(SOON).unwrap();
            tell.send("drained").unwrap();
        });
        drop(lease);
        // Asleep or not yet: the news must reach it while the end is under way.
        go_on.send(()).unwrap();
        assert_eq!(
            [told.recv_timeout(SOON), told.recv_timeout(SOON)]
                .map(Result::unwrap)
                .into_iter()
                .filter(|news| *news == "drained")
                .count(),
            1
        );
        waits.join().unwrap();
    });
    assert!(!long.is_reclaimed() && !going.is_reclaimed());
    go_on.send(()).unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), "all pieces are done");
    long.reclaimed(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
}

#[test]
fn leases_keep_it_when_the_registry_goes_first() {
    let (registry, log) = (registry(), Log::new());
    let owner = Theirs::on_host([5; 10], &log).at_the_end(|| panic!("after the registry"));
    let set = registry.publish("s", whole(owner)).unwrap();
    let unleased = Theirs::on_device(1, &log);
    registry.publish("unleased", whole(unleased)).unwrap();
    let lease = registry.acquire(set).unwrap();
    drop(registry);
    assert_eq!(log.ends().len(), 1, "the one that nobody leases");
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [5; 10]);
    let here = std::thread::current().name().unwrap().to_owned();
    drop(lease);
    assert_eq!(log.ends()[1], here);
}

#[test]
fn a_staged_set_ends_where_it_is_dropped_and_its_panic_stays_inside() {
    let (registry, log) = (registry(), Log::new());
    let staged = |registry: &WeightRegistry| {
        let owner = Theirs::on_device(8, &log)
            .charged(10)
            .at_the_end(|| panic!("a set that nobody published"));
        registry.stage(whole(owner)).unwrap()
    };
    drop(staged(&registry));
    let here = std::thread::current().name().unwrap().to_owned();
    assert_eq!(log.ends(), [here.as_str()]);
    nothing_is_left(&registry);
    // While another panic is under way: a second one would end the process.
    let failure = catch_unwind(AssertUnwindSafe(|| {
        let _staged = staged(&registry);
        panic!("the failure itself");
    }));
    let message = failure.unwrap_err();
    assert_eq!(message.downcast_ref(), Some(&"the failure itself"));
    assert_eq!(log.ends().len(), 2);
    nothing_is_left(&registry);
}

#[test]
fn an_end_may_drop_leases_and_the_registry() {
    let (registry, log) = (registry(), Log::new());
    let registry = Arc::new(registry);
    let other = registry.publish("other", bytes(9, 1)).unwrap();
    let lease = registry.acquire(other).unwrap();
    let (has_registry, done) = (Arc::clone(&registry), channel());
    let (tell, told) = done;
    let owner = Theirs::on_device(8, &log).at_the_end(move || {
        drop(lease);
        drop(has_registry);
        tell.send(()).unwrap();
    });
    let set = registry.publish("s", whole(owner)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let going = registry.retire(set).unwrap();
    drop(registry);
    assert!(log.ends().is_empty());
    drop(lease);
    told.recv_timeout(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
    assert_eq!(log.ends(), [RECLAIMER]);
}

// ---- reading, and what the host cannot read ----

#[test]
fn device_memory_is_refused_by_type_and_found_by_its_place() {
    let (registry, log) = (registry(), Log::new());
    let source = Foreign::new(Theirs::on_device(4096, &log)).unwrap();
    let source = source
        .tensor("a", Dtype::BF16, [3, 5], 64)
        .and_then(|source| source.tensor("empty", Dtype::F32, [0, 4], 4096))
        .and_then(|source| source.tie("b", "a"))
        .unwrap();
    let set = registry.publish("device", source).unwrap();
    let lease = registry.acquire(set).unwrap();
    let leased = lease.set(set).unwrap();
    for name in ["a", "b"] {
        let handle = registry.weight_handle(set, name).unwrap();
        let error = lease.weight(handle).unwrap_err();
        assert!(
            matches!(&error, Error::NotHostReadable { set, tensor }
                if set.to_string() == "device" && tensor == name),
            "{error}"
        );
        assert!(error.is_unsupported() && error.to_string().contains("Lease::place"));
        let place = lease.place(handle).unwrap();
        assert_eq!((place.address(), place.offset()), (0xd000_0040, 64));
        assert_eq!((place.info().name(), place.info().byte_len()), (name, 30));
        assert!(!place.is_host_readable());
        assert_eq!(place.owner_as::<Theirs>().unwrap().len, 4096);
        assert!(place.owner_as::<Nobody>().is_none());
    }
    assert_eq!(leased.get("empty").unwrap().bytes(), [0; 0]);
    assert_eq!(leased.iter().filter(Result::is_ok).count(), 1);
    assert!(matches!(
        leased.place("c").unwrap_err(),
        Error::NoSuchTensor { .. }
    ));
    assert_eq!(
        (leased.bytes(), registry.ledger().total()),
        (0, 0),
        "not ours"
    );
}

/// An owner of another type.
struct Nobody;

impl Owner for Nobody {
    fn byte_len(&self) -> u64 {
        0
    }
    fn address(&self) -> u64 {
        0
    }
}

#[test]
fn places_of_arenas_are_their_addresses() {
    let registry = registry();
    let set = registry.publish("s", bytes(9, 1)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let leased = lease.set(set).unwrap();
    let (weight, place) = (leased.get("w").unwrap(), leased.place("w").unwrap());
    assert_eq!(place.address(), weight.bytes().as_ptr().addr() as u64);
    assert!(place.owner().is_none() && place.is_host_readable());
    let other = registry.publish("other", bytes(1, 1)).unwrap();
    let handle = registry.weight_handle(other, "w").unwrap();
    assert!(matches!(
        lease.place(handle).unwrap_err(),
        Error::NotInLease { .. }
    ));
}

#[test]
fn host_memory_is_read_where_it_is_at_any_alignment() {
    let (registry, log) = (registry(), Log::new());
    let owner = Theirs::on_host((0..=255).collect::<Vec<u8>>(), &log);
    let address = owner.address;
    let source = Foreign::new(owner).unwrap();
    let source = source
        .tensor("a", Dtype::F32, [2], 1)
        .and_then(|source| source.tensor("b", Dtype::U8, [247], 9))
        .unwrap();
    let set = registry.publish("s", source).unwrap();
    let lease = registry.acquire(set).unwrap();
    let leased = lease.set(set).unwrap();
    let a = leased.get("a").unwrap();
    assert_eq!(a.bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        a.bytes().as_ptr().addr() as u64,
        address + 1,
        "nothing was copied"
    );
    assert_eq!(leased.place("a").unwrap().address(), address + 1);
    assert_eq!(
        *leased.get("b").unwrap().bytes().last().unwrap(),
        255,
        "to the last byte"
    );
}

#[test]
fn an_adapter_may_be_on_a_device() {
    let (registry, log) = (registry(), Log::new());
    let weight = InMemory::new().tensor("up.weight", Dtype::U8, [6, 4], [0; 24]);
    let base = registry.publish("base", weight.unwrap()).unwrap();
    let lora = |rank| {
        let source = Foreign::new(Theirs::on_device(100, &log)).unwrap();
        source.lora("up", Dtype::U8, ([2, 4], 0), ([6, rank], 8), 8.0)
    };
    assert!(matches!(
        lora(3).unwrap_err(),
        Error::AdapterMismatch { .. }
    ));
    let unbound = registry.stage(lora(2).unwrap()).unwrap_err();
    assert!(
        matches!(unbound, Error::AdapterWithoutBase { .. }),
        "{unbound}"
    );
    let adapter = registry
        .publish("adapter", lora(2).unwrap().on(base))
        .unwrap();
    let lease = registry.acquire([base, adapter]).unwrap();
    let leased = lease.set(adapter).unwrap();
    let view = leased.adapter().unwrap();
    let scale = view.scale(view.position("up").unwrap()).unwrap();
    assert_eq!((scale.rank, scale.scaling), (2, 4.0));
    assert!(view.scale(1).is_none());
    let [a, b] = ["lora_A", "lora_B"].map(|matrix| {
        let name = format!("base_model.model.up.{matrix}.weight");
        leased.place(&name).unwrap()
    });
    assert_eq!((a.offset(), b.offset()), (0, 8));
    assert_eq!(b.info().kind(), WeightKind::LoraB);
    assert!(matches!(
        view.module(0).unwrap_err(),
        Error::NotHostReadable { .. }
    ));

    // Another generation on the same bytes: the owner is theirs together.
    let rebound = registry.rebind(adapter, base).unwrap();
    drop(lease);
    rebound.previous.reclaimed(SOON).unwrap();
    assert_eq!(log.ends().len(), 2, "of the two that were refused");
    registry
        .retire_cascade(base)
        .unwrap()
        .iter()
        .for_each(|going| going.reclaimed(SOON).unwrap());
    assert_eq!(log.ends()[2..], [RECLAIMER]);
    nothing_is_left(&registry);
}

// ---- what is refused ----

#[test]
fn hostile_places_are_refused() {
    let log = Log::new();
    let source = || {
        Foreign::new(Theirs::on_device(100, &log))
            .unwrap()
            .tensor("a", Dtype::U8, [10], 40)
            .unwrap()
    };
    let refusals = [
        (source().tensor("b", Dtype::U8, [1], 100), "passes the end"),
        (source().tensor("b", Dtype::U8, [101], 0), "passes the end"),
        (source().tensor("b", Dtype::U8, [], u64::MAX), "passes"),
        (source().tensor("b", Dtype::F32, [0], 101), "passes the end"),
        (
            source().tensor("b", Dtype::F64, [usize::MAX, 2], 0),
            "more than",
        ),
        (source().tensor("b", Dtype::F4, [3], 0), "within a byte"),
        (source().tensor("b", Dtype::U8, [1], 40), "declare a tie"),
        (
            source().tensor("b", Dtype::U8, [1], 49),
            "\"a\" is at 40..50",
        ),
        (source().tensor("b", Dtype::U8, [41], 0), "\"a\""),
        (source().tensor("b", Dtype::U8, [100], 0), "\"a\""),
        (source().tensor("a", Dtype::U8, [1], 0), "there already"),
        (source().tie("a", "a"), "there already"),
        (source().tie("b", "c"), "not there"),
        (
            source().tie("b", "a").and_then(|it| it.tie("b", "a")),
            "there already",
        ),
        (
            source().tie("b", "a").and_then(|it| it.tie("c", "b")),
            "not there",
        ),
        (
            source()
                .tie("b", "a")
                .and_then(|it| it.tensor("b", Dtype::U8, [1], 0)),
            "there already",
        ),
    ];
    let count = refusals.len();
    for (refusal, reason) in refusals {
        let error = refusal.unwrap_err();
        assert!(
            matches!(error, Error::InvalidTensor { .. }) && error.is_malformed(),
            "{error}"
        );
        assert!(
            error.to_string().contains(reason),
            "{error}, not {reason:?}"
        );
    }
    assert_eq!(log.ends().len(), count, "every owner ended");
    // Side by side, and nothing of nothing, is no overlap.
    let fits = source()
        .tensor("b", Dtype::U8, [40], 0)
        .and_then(|source| source.tensor("c", Dtype::U8, [50], 50))
        .and_then(|source| source.tensor("d", Dtype::U8, [0], 45));
    assert_eq!(fits.unwrap().plan().tensors().len(), 4);
}

#[test]
fn an_owner_that_contradicts_itself_is_refused_and_ends() {
    let log = Log::new();
    let liar = |change: fn(&mut Theirs)| {
        let mut owner = Theirs::on_host([1; 10], &log);
        change(&mut owner);
        Foreign::new(owner).unwrap_err()
    };
    type Lie = fn(&mut Theirs);
    let lies: [(Lie, &str); 4] = [
        (
            |owner| owner.len = 11,
            "has 11 bytes, and gives the host 10",
        ),
        (|owner| owner.len = 9, "has 9 bytes, and gives the host 10"),
        (|owner| owner.len = 1 << 55, "less than 2^55"),
        (|owner| owner.address = u64::MAX, "the end of all addresses"),
    ];
    for (count, (lie, reason)) in (1..).zip(lies) {
        let error = liar(lie);
        assert!(
            matches!(&error, Error::InvalidMemory { origin, .. } if origin.contains("Theirs")),
            "{error}"
        );
        assert!(
            error.is_malformed() && error.to_string().contains(reason),
            "{error}"
        );
        assert_eq!(log.ends().len(), count);
    }
}

/// Panics at one of the questions, and counts its ends.
struct Panics(&'static str, Arc<AtomicUsize>);

impl Panics {
    fn at(&self, question: &str) {
        assert!(self.0 != question, "asked for its {question}");
    }
}

impl Owner for Panics {
    fn byte_len(&self) -> u64 {
        self.at("length");
        0
    }
    fn address(&self) -> u64 {
        self.at("address");
        0
    }
    fn as_host(&self) -> Option<&[u8]> {
        self.at("bytes");
        None
    }
    fn charged_bytes(&self) -> u64 {
        self.at("charge");
        0
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
        panic!("in the destructor, on top of it");
    }
}

#[test]
fn an_owner_that_panics_when_it_is_asked_leaves_no_trace() {
    let ends = Arc::new(AtomicUsize::new(0));
    for question in ["length", "address", "bytes", "charge"] {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            Memory::of(Panics(question, Arc::clone(&ends)))
        }));
        let message = asked.unwrap_err();
        let message: &String = message.downcast_ref().unwrap();
        assert!(message.contains(question), "{message}");
    }
    assert_eq!(ends.load(Ordering::Relaxed), 4);
}

/// A source that wraps one of ours.
struct Wraps<S> {
    source: S,
    plan: Option<Plan>,
    brings: bool,
}

impl<S: Source> Source for Wraps<S> {
    fn plan(&self) -> &Plan {
        self.plan.as_ref().unwrap_or_else(|| self.source.plan())
    }
    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.source.read_into(arena)
    }
    fn bring(&mut self) -> Option<Memory> {
        self.brings.then(|| self.source.bring()).flatten()
    }
}

#[test]
fn a_plan_without_its_memory_or_with_another_is_refused() {
    let (registry, log) = (registry(), Log::new());
    let foreign = || whole(Theirs::on_host([1; 10], &log).charged(10));
    let refused = |result: Result<Staged, Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::InvalidMemory { .. }), "{error}");
        nothing_is_left(&registry);
        error.to_string()
    };
    let wrapped = |source, plan, brings| Wraps {
        source,
        plan,
        brings,
    };
    let forgot = registry.stage(wrapped(foreign(), None, false));
    assert!(refused(forgot).contains("forward `bring`"));
    let larger = Plan::of("larger", [("w", Dtype::U8, vec![11])]).unwrap();
    let short = registry.stage(wrapped(foreign(), Some(larger), true));
    assert!(refused(short).contains("64 bytes are planned, 10 were brought"));
    let filled = registry.fill(foreign().plan().clone(), None).map(drop);
    assert!(matches!(filled.unwrap_err(), Error::InvalidMemory { .. }));
    assert!(matches!(
        foreign().read_into(&mut [0; 10]).unwrap_err(),
        Error::InvalidMemory { .. }
    ));
    // An ordinary plan, over memory that is large enough.
    let plan = Plan::of("ordinary", [("w", Dtype::U8, vec![3])]).unwrap();
    let source = whole(Theirs::on_host([4; 64], &log));
    let set = registry
        .publish("s", wrapped(source, Some(plan), true))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [4; 3]);
    // And forwarded as it should be.
    registry.stage(wrapped(foreign(), None, true)).unwrap();
}

// ---- the ledger ----

#[test]
fn the_ledger_has_what_the_owner_says_until_it_has_ended() {
    let registry = WeightRegistry::builder().limit_bytes(100).build().unwrap();
    let log = Log::new();
    let large = || whole(Theirs::on_device(1 << 40, &log).charged(60));
    assert_eq!(large().plan().charged_bytes(), 60);
    let set = registry.publish("s", large()).unwrap();
    assert_eq!(registry.ledger().resident, 60);
    let ends = log.ends().len();
    let error = registry.replace(set, large()).unwrap_err();
    assert!(matches!(
        error.error(),
        Error::OverLimit {
            requested: 60,
            in_use: 60,
            limit: 100
        }
    ));
    assert_eq!(log.ends().len(), ends + 1, "the refused one");
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    nothing_is_left(&registry);
    assert_eq!(registry.ledger().peak, 60);
}

#[test]
fn drained_and_swapped_where_both_do_not_fit() {
    let registry = WeightRegistry::builder().limit_bytes(100).build().unwrap();
    let log = Log::new();
    let generation = |byte, charged| {
        let owner = Theirs::on_host([byte; 4], &log).charged(charged);
        whole(owner.at_the_end(|| panic!("given back before the next one comes")))
    };
    let set = registry.publish("s", generation(1, 60)).unwrap();
    registry
        .replace_drained(set, generation(2, 70), SOON)
        .unwrap();
    let here = std::thread::current().name().unwrap().to_owned();
    assert_eq!(log.ends(), [here]);
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [2; 4]);
    assert_eq!(
        (registry.ledger().resident, registry.ledger().total()),
        (70, 70)
    );
    // Held: as it was, and the next owner ends.
    let refused = registry.replace_drained(set, generation(3, 80), Duration::ZERO);
    assert!(refused.unwrap_err().error().is_timeout());
    assert_eq!(log.ends().len(), 2);
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [2; 4]);
    drop(lease);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(log.ends()[2..], [RECLAIMER]);
    nothing_is_left(&registry);
}

// ---- identity ----

#[test]
fn what_was_read_is_content_and_what_was_not_is_unread() {
    let (registry, log) = (registry(), Log::new());
    let identity = |source: Foreign| registry.stage(source).unwrap().identity().clone();
    let host = |byte| whole(Theirs::on_host([byte; 9], &log));
    let device = || whole(Theirs::on_device(9, &log));
    let copied = registry.stage(bytes(9, 3)).unwrap();
    assert_eq!(identity(host(3)), *copied.identity(), "the same contents");
    assert_ne!(identity(host(4)), *copied.identity());
    for source in [host(3), device()] {
        let declared = identity(source.declared("r1").unread("of no use then"));
        assert_eq!(declared, Identity::Declared("r1".into()));
        assert!(declared.is_portable());
    }
    for source in [host(3), device()] {
        let unread = identity(source.unread("step 7"));
        assert_eq!(unread, Identity::Unread("step 7".into()));
        assert_eq!(unread.to_string(), "unread:step 7");
        assert!(!unread.is_portable());
    }
    let (one, other) = (identity(device()), identity(device()));
    assert!(matches!(one, Identity::Unread(_)));
    assert_ne!(one, other, "nothing is known of either");
}

#[test]
fn a_key_over_unread_sets_is_of_this_process() {
    const NAME: &str = "a_key_over_unread_sets_is_of_this_process";
    const CHILD: &str = "WEIGHBRIDGE_TEST_PRINTS_ITS_KEYS";
    let (registry, log) = (registry(), Log::new());
    let device = || whole(Theirs::on_device(9, &log));
    let keys = [device().declared("r1"), device().unread("r1")].map(|source| {
        let set = registry.publish("s", source).unwrap();
        let key = registry.acquire(set).unwrap().cache_key();
        let again = registry.acquire(set).unwrap().cache_key();
        assert_eq!(key, again);
        registry.retire(set).unwrap();
        format!("key={:02x?}", key.as_bytes())
    });
    if std::env::var_os(CHILD).is_some() {
        keys.iter().for_each(|key| println!("\n{key}"));
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let theirs: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("key="))
        .collect();
    assert_eq!(theirs.len(), 2, "{output}");
    assert_eq!(theirs[0], keys[0], "declared: on every host");
    assert_ne!(theirs[1], keys[1], "unread: here only");
}

// ---- generations that share it ----

#[test]
fn aliases_into_foreign_memory() {
    let (registry, log) = (registry(), Log::new());
    let host = |byte| whole(Theirs::on_host([byte; 9], &log));
    let alias = |target| InMemory::new().alias("head", target).unwrap();
    let owner = registry.publish("owner", host(1)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let set = registry.publish("alias", alias(w)).unwrap();
    let head = registry.weight_handle(set, "head").unwrap();
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.weight(head).unwrap().bytes(), [1; 9]);
    let place = lease.place(head).unwrap();
    assert_eq!(place.owner_as::<Theirs>().unwrap().len, 9);
    let same = InMemory::new().tensor("head", Dtype::U8, [9], [1; 9]);
    let same = registry.stage(same.unwrap()).unwrap();
    assert_eq!(lease.set(set).unwrap().identity(), same.identity());

    // The target's next generation is on a device: the alias is bound to it, and unread from here on.
    let replaced = registry
        .replace(owner, whole(Theirs::on_device(9, &log).charged(5)))
        .unwrap();
    let next = registry.acquire([owner, set]).unwrap();
    assert!(matches!(
        next.weight(head).unwrap_err(),
        Error::NotHostReadable { .. }
    ));
    assert_eq!(next.place(head).unwrap().address(), 0xd000_0000);
    let unread = next.set(set).unwrap().identity().clone();
    assert!(matches!(unread, Identity::Unread(_)), "{unread}");
    assert_eq!(next.set(set).unwrap().bytes(), 0, "charged to its owner");
    // The old one lives as long as the alias of then is leased.
    replaced.previous.reclaimed(SOON).unwrap();
    assert!(log.ends().is_empty());
    assert_eq!(lease.weight(head).unwrap().bytes(), [1; 9]);
    drop(lease);

    // Another device, another identity; a declared one that cannot be read is not read either.
    let declared = whole(Theirs::on_device(9, &log)).declared("r1");
    registry.replace(owner, declared).unwrap();
    let third = registry.acquire(set).unwrap();
    let now = third.set(set).unwrap().identity().clone();
    assert!(matches!(now, Identity::Unread(_)) && now != unread, "{now}");
    // And back to what can be read.
    registry.replace(owner, host(1)).unwrap();
    let fourth = registry.acquire(set).unwrap();
    assert_eq!(fourth.set(set).unwrap().identity(), same.identity());
    // Readable and left unread on purpose: an alias does not read it behind your back.
    registry.replace(owner, host(1).unread("f")).unwrap();
    let fifth = registry.acquire(set).unwrap();
    assert_eq!(fifth.weight(head).unwrap().bytes(), [1; 9]);
    assert!(!fifth.set(set).unwrap().identity().is_portable());

    drop((next, third, fourth, fifth, same));
    let going = registry.retire_cascade(owner).unwrap();
    going
        .iter()
        .for_each(|going| going.reclaimed(SOON).unwrap());
    // Earlier generations are behind those in the queue, or before them: the registry's end is after all.
    drop(registry);
    assert_eq!(log.ends(), vec![RECLAIMER; 5]);
}

#[test]
fn rolled_back_to_foreign_memory() {
    let registry = WeightRegistry::builder().keep_previous(1).build().unwrap();
    let log = Log::new();
    let generation = |byte| whole(Theirs::on_host([byte; 3], &log).charged(10));
    let set = registry.publish("s", generation(1)).unwrap();
    let identity = registry.catalog().get("s").unwrap().identity.clone();
    registry.replace(set, generation(2)).unwrap();
    let ledger = registry.ledger();
    assert_eq!((ledger.resident, ledger.kept), (10, 10));
    registry.rollback(set).unwrap();
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [1; 3]);
    assert_eq!(*lease.set(set).unwrap().identity(), identity);
    assert!(log.ends().is_empty());
    drop(lease);
    let going = registry.retire(set).unwrap();
    going.reclaimed(SOON).unwrap();
    assert_eq!(log.ends(), [RECLAIMER, RECLAIMER]);
    nothing_is_left(&registry);
}

#[test]
fn a_refused_publish_returns_the_memory() {
    let (registry, log) = (registry(), Log::new());
    registry.publish("taken", bytes(1, 1)).unwrap();
    let staged = registry
        .stage(whole(Theirs::on_host([6; 3], &log)))
        .unwrap();
    let refused = registry.publish_staged("taken", staged).unwrap_err();
    let staged = refused.into_staged().unwrap();
    assert!(log.ends().is_empty());
    let set = registry.publish_staged("free", staged).unwrap();
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [6; 3]);
}

#[test]
fn leases_stay_unwind_safe_whatever_the_owners_are() {
    fn both<T: UnwindSafe + RefUnwindSafe + Send + Sync + 'static>() {}
    both::<Lease>();
    both::<Staged>();
    both::<Memory>();
}

/// An owner says what it wants to be charged. What came back so far is a sum that may be more than there
/// can ever be at one time.
#[test]
fn charges_of_any_size_come_back() {
    struct Huge;
    impl Owner for Huge {
        fn byte_len(&self) -> u64 {
            4
        }
        fn address(&self) -> u64 {
            4096
        }
        fn charged_bytes(&self) -> u64 {
            u64::MAX
        }
    }
    let registry = WeightRegistry::builder().build().unwrap();
    for _ in 0..2 {
        let set = Foreign::new(Huge).unwrap();
        let set = set.tensor("w", Dtype::F32, [1], 0).unwrap();
        let set = registry.publish("s", set).unwrap();
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    }
    let now = registry.stats();
    assert_eq!((now.reclaimed_bytes, now.reclaimer_panics), (u64::MAX, 0));
}
