//! Sets that are loaded when they are wanted, in place of others.

mod support;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use support::{SOON, bytes};
use weighbridge::policy::{Candidate, Lru, Policy};
use weighbridge::source::{Evictable, InMemory, Source};
use weighbridge::{
    Account, Demand, Dtype, Error, Estimate, EventKind, Lease, NamespaceLimits, Next, Plan,
    SetHandle, WeightRegistry,
};

/// What one set takes.
const ONE: u64 = 64;

/// Sets of 64 bytes, each of another value, that can be told to fail, and are counted.
struct Kitchen {
    opened: Vec<AtomicUsize>,
    broken: Vec<AtomicBool>,
    /// Those that do not come to their end before they are let go.
    held: Mutex<HashSet<usize>>,
    changed: Condvar,
    entered: AtomicUsize,
}

/// How a set fails.
const REFUSED: &str = "the disk is gone";

impl Kitchen {
    fn new(sets: usize) -> Arc<Self> {
        Arc::new(Kitchen {
            opened: (0..sets).map(|_| AtomicUsize::new(0)).collect(),
            broken: (0..sets).map(|_| AtomicBool::new(false)).collect(),
            held: Mutex::default(),
            changed: Condvar::new(),
            entered: AtomicUsize::new(0),
        })
    }

    fn source(self: &Arc<Self>, at: usize) -> Evictable<InMemory> {
        let kitchen = Arc::clone(self);
        Evictable::opened_by(move || kitchen.open(at)).unwrap()
    }

    fn open(&self, at: usize) -> Result<InMemory, Error> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock().unwrap();
        while held.contains(&at) {
            held = self.changed.wait(held).unwrap();
        }
        drop(held);
        if self.broken[at].load(Ordering::SeqCst) {
            return Err(Error::Io {
                path: REFUSED.into(),
                op: "open",
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        self.opened[at].fetch_add(1, Ordering::SeqCst);
        Ok(bytes(64, u8::try_from(at).unwrap()))
    }

    /// How often it was read.
    fn reads(&self, at: usize) -> usize {
        self.opened[at].load(Ordering::SeqCst)
    }

    fn hold(&self, at: usize) {
        self.held.lock().unwrap().insert(at);
    }

    fn let_go(&self, at: usize) {
        self.held.lock().unwrap().remove(&at);
        self.changed.notify_all();
    }

    fn breaks(&self, at: usize, broken: bool) {
        self.broken[at].store(broken, Ordering::SeqCst);
    }
}

/// So many sets, all away, and room for `room` of them.
fn away(sets: usize, room: u64) -> (WeightRegistry, Arc<Kitchen>, Vec<SetHandle>) {
    let builder = WeightRegistry::builder()
        .limit_bytes(room * ONE)
        .load_backoff(Duration::ZERO, Duration::ZERO);
    published(builder.build().unwrap(), sets)
}

fn published(
    registry: WeightRegistry,
    sets: usize,
) -> (WeightRegistry, Arc<Kitchen>, Vec<SetHandle>) {
    let kitchen = Kitchen::new(sets);
    let publish = |at| {
        let set = registry
            .publish(format!("s{at}"), kitchen.source(at))
            .unwrap();
        assert_eq!(registry.evict(set).unwrap(), ONE);
        set
    };
    let handles: Vec<_> = (0..sets).map(publish).collect();
    for opened in &kitchen.opened {
        opened.store(0, Ordering::SeqCst);
    }
    kitchen.entered.store(0, Ordering::SeqCst);
    assert_eq!(registry.ledger().total(), 0);
    (registry, kitchen, handles)
}

fn value(lease: &Lease, set: SetHandle) -> usize {
    let bytes = lease.set(set).unwrap().get("w").unwrap().bytes().to_vec();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    usize::from(bytes[0])
}

fn resident(registry: &WeightRegistry) -> Vec<String> {
    let catalog = registry.catalog();
    let there = catalog.entries().iter().filter(|entry| entry.resident);
    there.map(|entry| entry.name.to_string()).collect()
}

/// Waits for something that others do.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    let deadline = Instant::now() + SOON;
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return answer;
        }
        while !unpark.1.swap(false, Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "nobody woke it");
            std::thread::park_timeout(SOON);
        }
    }
}

#[test]
fn many_who_want_one_cause_one_load() {
    let (registry, kitchen, sets) = away(1, 1);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    let all = 16;
    std::thread::scope(|threads| {
        for number in 0..all {
            let (registry, set) = (&registry, sets[0]);
            threads.spawn(move || {
                let lease = if number % 2 == 0 {
                    registry.acquire_or_load(set, SOON)
                } else {
                    block_on(registry.acquire_or_load_async(set))
                };
                assert_eq!(value(&lease.unwrap(), set), 0);
            });
        }
        until("one reads", || kitchen.entered.load(Ordering::SeqCst) == 1);
        kitchen.let_go(0);
    });
    assert_eq!(kitchen.reads(0), 1);
    assert_eq!(registry.ledger().peak, ONE);
    let stats = registry.stats();
    assert_eq!((stats.loads, stats.evictions, stats.waiting), (1, 0, 0));
}

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

#[test]
fn other_sets_do_not_wait_for_one_that_is_read() {
    let (registry, kitchen, sets) = away(3, 3);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let slow = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        drop(registry.acquire_or_load(sets[1], SOON).unwrap());
        drop(block_on(registry.acquire_or_load_async(sets[2])).unwrap());
        assert!(!slow.is_finished());
        kitchen.let_go(0);
        slow.join().unwrap().unwrap();
    });
}

#[test]
fn idle_sets_make_room_and_no_others() {
    let (registry, _kitchen, sets) = away(5, 3);
    let mut events = registry.events();
    let load = |at: usize| registry.acquire_or_load(sets[at], SOON).unwrap();
    let leased = load(0);
    let pin = registry.pin(sets[1], "the operator").unwrap();
    drop(load(1));
    drop(load(2));
    let _events = events.pending().count();
    assert_eq!(value(&load(3), sets[3]), 3);
    assert_eq!(
        resident(&registry),
        ["s0", "s1", "s3"],
        "the only idle one went"
    );
    let told: Vec<String> = events
        .pending()
        .filter_map(|next| match next {
            Next::Event(event) => match &event.kind {
                EventKind::Evicted { now, .. } => Some(format!("-{}", now.name)),
                EventKind::Loaded { now, .. } => Some(format!("+{}", now.name)),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(told, ["-s2", "+s3"]);
    let refused = registry.evict(sets[1]).unwrap_err();
    let Error::Pinned { by, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(by[..], ["the operator".into()]);
    assert_eq!(registry.pinned_by(sets[1]).unwrap(), *by);
    drop(leased);
    drop(pin);
    assert!(registry.pinned_by(sets[1]).unwrap().is_empty());
    let both = registry
        .acquire_or_load([sets[2], sets[4], sets[3]], SOON)
        .unwrap();
    assert_eq!([2, 4, 3].map(|at| value(&both, sets[at])), [2, 4, 3]);
    assert_eq!(resident(&registry), ["s2", "s3", "s4"]);
    assert_eq!(registry.ledger().peak, 3 * ONE);
}

#[test]
fn what_is_used_again_is_spared() {
    let (registry, kitchen, sets) = away(40, 4);
    let ask = |at: usize| drop(registry.acquire_or_load(sets[at], SOON).unwrap());
    // One is used all the time; the others once each.
    ask(0);
    for at in 1..40 {
        ask(0);
        ask(at);
    }
    assert_eq!(kitchen.reads(0), 1, "it never went");
    assert!((1..40).all(|at| kitchen.reads(at) == 1));
}

/// As they came, but for what was used since.
#[test]
fn the_least_recently_used_goes_first_if_one_wants_that() {
    let builder = WeightRegistry::builder().policy(Lru::new());
    let registry = builder.limit_bytes(3 * ONE).build().unwrap();
    let (registry, _, sets) = published(registry, 6);
    let ask = |at: usize| drop(registry.acquire_or_load(sets[at], SOON).unwrap());
    [0, 1, 2].into_iter().for_each(ask);
    ask(0);
    ask(3);
    assert_eq!(resident(&registry), ["s0", "s2", "s3"]);
    ask(4);
    assert_eq!(resident(&registry), ["s0", "s3", "s4"]);
    ask(5);
    assert_eq!(resident(&registry), ["s3", "s4", "s5"]);
}

/// A policy that calls the registry, panics, or names what it was not asked about.
#[test]
fn a_policy_only_ranks() {
    type Asked = (std::sync::Weak<WeightRegistry>, SetHandle);
    #[derive(Clone, Default)]
    struct Odd {
        registry: Arc<Mutex<Option<Asked>>>,
        step: Arc<AtomicUsize>,
    }
    impl Policy for Odd {
        fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
            let Some((registry, other)) = self.registry.lock().unwrap().clone() else {
                return Vec::new();
            };
            let registry = registry.upgrade().unwrap();
            let order = candidates.iter().rev().map(|one| one.set);
            match self.step.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    let refused = registry.acquire_or_load(other, SOON).unwrap_err();
                    assert!(matches!(refused, Error::LoadInsideLoad), "{refused}");
                    assert!(matches!(registry.load(other), Err(Error::LoadInsideLoad)));
                    assert!(matches!(registry.evict(other), Err(Error::LoadInsideLoad)));
                    let refused = registry.estimate(&Demand::new().set(other));
                    assert!(matches!(refused, Err(Error::LoadInsideLoad)));
                    let _ = registry.stats();
                    [other, other].into_iter().chain(order).collect()
                }
                1 => panic!("on purpose"),
                // Nothing may go.
                _ => Vec::new(),
            }
        }
    }
    let odd = Odd::default();
    let builder = WeightRegistry::builder().policy(odd.clone());
    let registry = builder.limit_bytes(2 * ONE).build().unwrap();
    let (registry, _, sets) = published(registry, 6);
    let registry = Arc::new(registry);
    *odd.registry.lock().unwrap() = Some((Arc::downgrade(&registry), sets[5]));
    let ask = |at: usize| registry.acquire_or_load(sets[at], SOON).map(drop);
    ask(0).unwrap();
    ask(1).unwrap();
    ask(2).unwrap();
    assert_eq!(resident(&registry), ["s0", "s2"], "as it was ranked");
    let before = registry.stats().observer_panics;
    ask(3).unwrap();
    assert_eq!(resident(&registry), ["s2", "s3"], "as they came");
    assert_eq!(registry.stats().observer_panics, before + 1);
    let refused = registry.acquire_or_load(sets[4], Duration::ZERO);
    assert!(matches!(refused, Err(Error::NotLoaded(_))));
    assert_eq!(resident(&registry), ["s2", "s3"]);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let (registry, _, sets) = away(4, 2);
    let refused = registry.acquire_or_load(&sets[..3], SOON).unwrap_err();
    assert!(
        matches!(refused, Error::NeverFits { requested, immovable: 0, limit, account: None } if (requested, limit) == (3 * ONE, 2 * ONE)),
        "{refused}"
    );
    assert!(refused.is_over_limit() && refused.is_out_of_memory());
    assert_eq!(registry.ledger().peak, ONE, "the publishes");
    assert!(resident(&registry).is_empty());

    let fixed = registry.publish("fixed", bytes(64, 9)).unwrap();
    drop(registry.acquire_or_load(sets[0], SOON).unwrap());
    let pin = registry.pin(sets[0], "somebody").unwrap();
    let refused = registry.acquire_or_load(sets[1], SOON).unwrap_err();
    assert!(
        matches!(refused, Error::NeverFits { immovable, .. } if immovable == 2 * ONE),
        "{refused}"
    );
    assert_eq!(resident(&registry), ["fixed", "s0"]);
    drop(pin);
    // What is wanted as well stays.
    let refused = registry.acquire_or_load([sets[0], sets[1]], SOON);
    assert!(matches!(refused, Err(Error::NeverFits { .. })));
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    registry.retire(fixed).unwrap().reclaimed(SOON).unwrap();
    drop(registry.acquire_or_load([sets[0], sets[1]], SOON).unwrap());
}

#[test]
fn whoever_waits_too_long_is_told_who_is_in_the_way() {
    let (registry, _, sets) = away(3, 2);
    let lease = registry
        .acquire_or_load_as("request-42", [sets[0], sets[1]], SOON)
        .unwrap();
    let refused = registry
        .acquire_or_load(sets[2], Duration::from_millis(20))
        .unwrap_err();
    assert!(refused.is_timeout());
    let message = refused.to_string();
    assert!(
        message.contains("request-42") && message.contains("64 bytes"),
        "{message}"
    );
    let Error::NotLoaded(overdue) = refused else {
        panic!("{message}")
    };
    assert_eq!((overdue.missing, overdue.waiting), (ONE, 0));
    assert_eq!(overdue.leased.len(), 2);
    assert_eq!(registry.stats().waiting, 0, "it is out of the line");
    assert_eq!(value(&lease, sets[0]), 0);
    drop(lease);
    drop(registry.acquire_or_load(sets[2], Duration::ZERO).unwrap());
}

/// The end of a lease wakes nobody by itself; what it made possible is seen all the same.
#[test]
fn whoever_waits_goes_on_when_a_lease_ends() {
    let (registry, _, sets) = away(3, 1);
    let registry = Arc::new(registry);
    let lease = registry.acquire_or_load(sets[0], SOON).unwrap();
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| registry.acquire_or_load(sets[1], SOON).map(drop));
        let task = threads.spawn(|| block_on(registry.acquire_or_load_async(sets[2])).map(drop));
        until("they wait", || registry.stats().waiting == 2);
        assert_eq!(value(&lease, sets[0]), 0);
        drop(lease);
        waits.join().unwrap().unwrap();
        task.join().unwrap().unwrap();
    });
    assert_eq!(registry.ledger().peak, ONE);
}

/// What comes back to the ledger wakes those who wait: a retired set, a reservation, a higher limit.
#[test]
fn whoever_waits_goes_on_when_bytes_come_back() {
    let (registry, _, sets) = away(1, 1);
    let ends: [&dyn Fn() -> Box<dyn FnOnce() + Send>; 2] = [
        &|| {
            let device = Account::namespace("");
            let charge = registry.reserve_in(&device, ONE).unwrap();
            Box::new(move || drop(charge))
        },
        &|| {
            let staged = registry.stage(bytes(64, 1)).unwrap();
            Box::new(move || drop(staged))
        },
    ];
    for end in ends {
        let end = end();
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
            until("it waits", || registry.stats().waiting == 1);
            end();
            waits.join().unwrap().unwrap();
        });
        registry.evict(sets[0]).unwrap();
    }
}

/// Each wants two of three, and there is room for two: whoever took one and waited for the other would
/// wait for ever.
#[test]
fn requests_for_several_sets_do_not_block_each_other() {
    let (registry, _, sets) = away(3, 2);
    let registry = Arc::new(registry);
    let rounds = 60;
    std::thread::scope(|threads| {
        for number in 0..6 {
            let (registry, sets) = (&registry, &sets);
            threads.spawn(move || {
                for round in 0..rounds {
                    let first = (number + round) % 3;
                    let pair = [sets[first], sets[(first + 1) % 3]];
                    let lease = if number % 2 == 0 {
                        registry.acquire_or_load(pair, SOON)
                    } else {
                        block_on(registry.acquire_or_load_async(pair))
                    };
                    let lease = lease.unwrap();
                    assert_eq!(value(&lease, pair[0]), first);
                    assert_eq!(value(&lease, pair[1]), (first + 1) % 3);
                }
            });
        }
    });
    let ledger = registry.ledger();
    assert!(ledger.peak <= 2 * ONE, "{ledger:?}");
    assert_eq!((ledger.reserved, ledger.retired), (0, 0));
    assert_eq!(registry.stats().waiting, 0);
}

/// One wants all there is, while others never stop asking for one each.
#[test]
fn who_wants_much_is_not_passed_for_ever() {
    let (registry, _, sets) = away(8, 3);
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for number in 0..3 {
            let (registry, sets, done) = (&registry, &sets, &done);
            threads.spawn(move || {
                for round in 0.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    let set = sets[3 + (number + round) % 5];
                    drop(registry.acquire_or_load(set, SOON).unwrap());
                }
            });
        }
        for _ in 0..10 {
            let all = registry.acquire_or_load(&sets[..3], SOON).unwrap();
            assert_eq!(value(&all, sets[2]), 2);
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(registry.ledger().peak <= 3 * ONE);
}

/// A future that is dropped, at each of its stages.
#[test]
fn whoever_gives_up_harms_nobody() {
    let (registry, kitchen, sets) = away(3, 1);
    let registry = Arc::new(registry);
    let waker = Waker::noop();
    let mut context = Context::from_waker(waker);
    // Never polled.
    drop(registry.acquire_or_load_async(sets[0]));
    // While it waits for its load, and another for the same.
    kitchen.hold(0);
    let mut one = Box::pin(registry.acquire_or_load_async(sets[0]));
    assert!(one.as_mut().poll(&mut context).is_pending());
    let mut other = Box::pin(registry.acquire_or_load_async(sets[0]));
    assert!(other.as_mut().poll(&mut context).is_pending());
    drop(one);
    kitchen.let_go(0);
    let lease = block_on(other).unwrap();
    assert_eq!((value(&lease, sets[0]), kitchen.reads(0)), (0, 1));
    // In the line, first and second.
    let mut first = Box::pin(registry.acquire_or_load_async(sets[1]));
    assert!(first.as_mut().poll(&mut context).is_pending());
    let mut second = Box::pin(registry.acquire_or_load_async(sets[2]));
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert_eq!(registry.stats().waiting, 2);
    drop(first);
    assert_eq!(registry.stats().waiting, 1);
    drop(lease);
    drop(block_on(second).unwrap());
    // Nobody waits for its load any more: it is there for the next.
    let mut last = Box::pin(registry.acquire_or_load_async(sets[1]));
    while last.as_mut().poll(&mut context).is_pending() && registry.stats().loads < 3 {}
    drop(last);
    until("it came all the same", || resident(&registry) == ["s1"]);
    assert_eq!(registry.ledger().total(), ONE);
}

/// What was evicted for somebody who gives up goes back to where it was.
#[test]
fn what_the_first_of_the_line_gave_up_comes_back() {
    let (registry, kitchen, sets) = away(4, 2);
    let registry = Arc::new(registry);
    drop(registry.acquire_or_load(sets[0], SOON).unwrap());
    let lease = registry.acquire_or_load(sets[1], SOON).unwrap();
    let mut events = registry.events();
    // It needs the room of both, and one is leased.
    let mut first = Box::pin(registry.acquire_or_load_async([sets[2], sets[3]]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(first.as_mut().poll(&mut context).is_pending(), "the first");
    assert_eq!(resident(&registry), ["s1"]);
    let ledger = registry.ledger();
    assert_eq!((ledger.resident, ledger.retired), (ONE, ONE), "kept for it");
    // Who needs what it has got waits behind it, or passes with something else that is idle: there is none.
    let refused = registry.acquire_or_load(sets[0], Duration::ZERO);
    assert!(matches!(refused, Err(Error::NotLoaded(_))));
    drop(first);
    assert_eq!(resident(&registry), ["s0", "s1"]);
    let ledger = registry.ledger();
    assert_eq!((ledger.resident, ledger.retired), (2 * ONE, 0));
    let told: Vec<bool> = events
        .pending()
        .filter_map(|next| match next {
            Next::Event(event) => match event.kind {
                EventKind::Evicted { .. } => Some(false),
                EventKind::Loaded { .. } => Some(true),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(told, [false, true]);
    assert_eq!(kitchen.reads(0), 1, "it was not read again");
    let again = registry.acquire([sets[0], sets[1]]).unwrap();
    assert_eq!(value(&again, sets[0]), 0);
    drop((lease, again));
    // The same, and the set that it took from gets another generation meanwhile.
    let lease = registry.acquire(sets[1]).unwrap();
    let mut first = Box::pin(registry.acquire_or_load_async([sets[2], sets[3]]));
    while resident(&registry) != ["s1"] {
        assert!(first.as_mut().poll(&mut context).is_pending());
    }
    registry.retire(sets[0]).unwrap();
    drop(first);
    assert_eq!(resident(&registry), ["s1"]);
    assert_eq!(registry.ledger().total(), ONE);
    drop(lease);
}

#[test]
fn a_source_that_asks_for_another_load_is_refused() {
    let registry = Arc::new(WeightRegistry::builder().build().unwrap());
    let kitchen = Kitchen::new(1);
    let other = registry.publish("other", kitchen.source(0)).unwrap();
    registry.evict(other).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let open = {
        let (registry, seen) = (Arc::downgrade(&registry), Arc::clone(&seen));
        move || {
            if let Some(registry) = registry.upgrade()
                && let Some(own) = registry.lookup("s")
            {
                let asked = [
                    registry.acquire_or_load(other, SOON).map(drop),
                    registry.acquire_or_load(own, SOON).map(drop),
                    registry.load(own).map(drop),
                ];
                seen.lock().unwrap().extend(asked);
            }
            Ok(bytes(64, 7))
        }
    };
    let set = registry
        .publish("s", Evictable::opened_by(open).unwrap())
        .unwrap();
    registry.evict(set).unwrap();
    drop(registry.acquire_or_load(set, SOON).unwrap());
    registry.evict(set).unwrap();
    drop(block_on(registry.acquire_or_load_async(set)).unwrap());
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), 6);
    for refused in seen {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::LoadInsideLoad), "{refused}");
        assert!(refused.is_misuse());
    }
    // Afterwards this thread may.
    drop(registry.acquire_or_load(other, SOON).unwrap());
}

/// The set is replaced while its old generation is read: whoever waits gets the new one.
#[test]
fn a_replace_overtakes_a_load() {
    let (registry, kitchen, sets) = away(1, 4);
    let set = sets[0];
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| {
            let lease = registry.acquire_or_load(set, SOON).unwrap();
            value(&lease, set)
        });
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        registry.replace(set, bytes(64, 9)).unwrap();
        assert_eq!(
            registry
                .acquire(set)
                .map(|lease| value(&lease, set))
                .unwrap(),
            9
        );
        kitchen.let_go(0);
        assert_eq!(waits.join().unwrap(), 9);
    });
    assert_eq!(registry.ledger().total(), ONE);
}

#[test]
fn a_retire_overtakes_a_load() {
    let (registry, kitchen, sets) = away(1, 4);
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        registry.retire(sets[0]).unwrap();
        kitchen.let_go(0);
        let refused = waits.join().unwrap().unwrap_err();
        assert!(matches!(refused, Error::StaleHandle { .. }), "{refused}");
    });
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn a_tenants_limit_is_met_by_its_own_sets() {
    let registry = WeightRegistry::builder()
        .limit_bytes(4 * ONE)
        .build()
        .unwrap();
    let (registry, kitchen, sets) = published(registry, 2);
    let tenant = registry.namespace("tenant-7").unwrap();
    let limits = NamespaceLimits::none().bytes(2 * ONE);
    registry.set_namespace_limits("tenant-7", limits).unwrap();
    let kitchen_of_tenant = Kitchen::new(3);
    let own: Vec<SetHandle> = (0..3)
        .map(|at| {
            let source = kitchen_of_tenant.source(at);
            let set = tenant.publish(&format!("t{at}"), source).unwrap();
            tenant.evict(set).unwrap();
            set
        })
        .collect();
    // Whatever is oldest, the tenant's limit is met by the tenant's.
    drop(registry.acquire_or_load(sets[0], SOON).unwrap());
    drop(tenant.acquire_or_load([own[0], sets[0]], SOON).unwrap());
    drop(tenant.acquire_or_load(own[1], SOON).unwrap());
    drop(tenant.acquire_or_load(own[2], SOON).unwrap());
    assert_eq!(resident(&registry), ["s0", "tenant-7/t1", "tenant-7/t2"]);
    let refused = tenant.acquire_or_load(&own[..], SOON).unwrap_err();
    assert!(
        matches!(&refused, Error::NeverFits { account: Some(account), .. } if account.name() == "tenant-7"),
        "{refused}"
    );
    // The total's limit is met by anybody's.
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    let fixed = registry.publish("fixed", bytes(0, 1)).unwrap();
    registry.retire(fixed).unwrap();
    let all = registry.ledger();
    assert_eq!((all.total(), all.peak), (4 * ONE, 4 * ONE));
    assert_eq!(kitchen.reads(0) + kitchen.reads(1), 2);
    // Somebody else's is no tenant's business.
    let other = registry.namespace("tenant-8").unwrap();
    let refused = other.acquire_or_load(own[0], SOON).unwrap_err();
    assert!(matches!(refused, Error::WrongNamespace { .. }), "{refused}");
}

#[test]
fn an_estimate_says_what_then_happens() {
    let (registry, _, sets) = away(5, 3);
    let one = Demand::new().set(sets[0]);
    assert_eq!(
        registry.estimate(&one).unwrap(),
        estimate_now(ONE),
        "nothing was changed"
    );
    assert!(resident(&registry).is_empty());
    let lease = registry.acquire_or_load(sets[0], SOON).unwrap();
    assert_eq!(registry.estimate(&one).unwrap(), estimate_now(0));
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    drop(registry.acquire_or_load(sets[2], SOON).unwrap());
    let two = Demand::new().set(sets[3]).set(sets[4]).set(sets[3]);
    let Estimate::AfterEvicting {
        bytes,
        sets: going,
        freed,
        ..
    } = registry.estimate(&two).unwrap()
    else {
        panic!("two are idle")
    };
    let going: Vec<String> = going.iter().map(ToString::to_string).collect();
    assert_eq!(
        (bytes, freed, &going[..]),
        (2 * ONE, 2 * ONE, &["s1".to_owned(), "s2".to_owned()][..])
    );
    // Beside bytes that are no weights.
    let more = two.clone().bytes(&Account::namespace(""), 1);
    let Estimate::WhenReleased {
        missing, leased, ..
    } = registry.estimate(&more).unwrap()
    else {
        panic!("one is leased")
    };
    assert_eq!((missing, leased.len()), (1, 1));
    let Estimate::Never { missing, .. } = registry.estimate(&more.set(sets[0])).unwrap() else {
        panic!("all are wanted")
    };
    assert_eq!(missing, 1);
    // Foreign memory has its own limit.
    let gpu = Account::foreign("gpu0");
    registry.set_account_limit(&gpu, Some(10)).unwrap();
    let fits = registry.estimate(&Demand::new().bytes(&gpu, 10)).unwrap();
    assert_eq!(fits, estimate_now(10));
    let never = registry.estimate(&Demand::new().bytes(&gpu, 11)).unwrap();
    assert!(matches!(
        never,
        Estimate::Never {
            missing: 1,
            account: Some(_),
            ..
        }
    ));
    assert_eq!(registry.ledger().total(), 3 * ONE);
    drop(registry.acquire_or_load([sets[3], sets[4]], SOON).unwrap());
    assert_eq!(resident(&registry), ["s0", "s3", "s4"]);
    drop(lease);
}

fn estimate_now(bytes: u64) -> Estimate {
    // There is no other way to make one outside of the library.
    let registry = WeightRegistry::builder().build().unwrap();
    let demand = Demand::new().bytes(&Account::namespace(""), bytes);
    let estimate = registry.estimate(&demand).unwrap();
    assert!(matches!(estimate, Estimate::Now { .. }));
    estimate
}

/// Handles that mean nothing, sets that cannot come back.
#[test]
fn what_is_wrong_with_the_sets_is_said_first() {
    let (registry, _, sets) = away(1, 1);
    let other = WeightRegistry::builder().build().unwrap();
    let foreign = other.publish("s", bytes(64, 1)).unwrap();
    let refused = registry.acquire_or_load([sets[0], foreign], SOON);
    assert!(matches!(refused, Err(Error::WrongRegistry { .. })));
    let retired = registry.publish("gone", bytes(0, 1)).unwrap();
    registry.retire(retired).unwrap();
    let refused = registry.acquire_or_load([sets[0], retired], SOON);
    assert!(matches!(refused, Err(Error::StaleHandle { .. })));
    assert!(registry.estimate(&Demand::new().set(retired)).is_err());
    assert!(registry.pin(retired, "x").is_err() && registry.pinned_by(foreign).is_err());
    // None, and one twice.
    assert_eq!(registry.acquire_or_load([], SOON).unwrap().sets().len(), 0);
    let twice = registry.acquire_or_load([sets[0]; 2], SOON).unwrap();
    assert_eq!(twice.sets().len(), 2);
    assert_eq!(registry.ledger().peak, ONE);
}

/// Many threads, random sets, random failures, a third of what they want: never over the limit, nobody
/// hangs, and at the end every byte is accounted for.
#[test]
fn a_third_of_the_working_set_is_enough() {
    let sets_in_all = 24;
    let (registry, kitchen, sets) = away(sets_in_all, 8);
    let registry = Arc::new(registry);
    let (failed, served) = (AtomicU64::new(0), AtomicU64::new(0));
    let barrier = Barrier::new(8);
    std::thread::scope(|threads| {
        for number in 0..8u64 {
            let (registry, kitchen, sets) = (&registry, &kitchen, &sets);
            let (failed, served, barrier) = (&failed, &served, &barrier);
            threads.spawn(move || {
                let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut random = |below: usize| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    (seed % below as u64) as usize
                };
                barrier.wait();
                for _ in 0..150 {
                    let some: Vec<SetHandle> = (0..1 + random(3))
                        .map(|_| sets[random(sets_in_all).min(random(sets_in_all))])
                        .collect();
                    kitchen.breaks(random(sets_in_all), random(4) == 0);
                    let lease = match random(3) {
                        0 => block_on(registry.acquire_or_load_async(&some)),
                        1 => {
                            let patience = Duration::from_micros(random(3000) as u64);
                            registry.acquire_or_load(&some, patience)
                        }
                        _ => registry.acquire_or_load(&some, SOON),
                    };
                    match lease {
                        Ok(lease) => {
                            for &set in &some {
                                let at = sets.iter().position(|one| *one == set).unwrap();
                                assert_eq!(value(&lease, set), at);
                            }
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(
                            Error::LoadFailed { .. }
                            | Error::BackingOff { .. }
                            | Error::NotLoaded(_),
                        ) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(other) => panic!("{other}"),
                    }
                    if random(8) == 0 {
                        let _ = registry.evict(sets[random(sets_in_all)]);
                    }
                }
            });
        }
    });
    let (failed, served) = (failed.into_inner(), served.into_inner());
    assert!(failed > 0 && served > 0, "{failed} failed, {served} served");
    let stats = registry.stats();
    assert_eq!(stats.waiting, 0);
    // A load that nobody waits for any more may still be under way.
    until("every load ends", || registry.ledger().reserved == 0);
    let ledger = registry.ledger();
    assert!(ledger.peak <= 8 * ONE, "{ledger:?}");
    assert_eq!(ledger.total(), resident(&registry).len() as u64 * ONE);
    for at in 0..sets_in_all {
        kitchen.breaks(at, false);
    }
    for &set in &sets {
        until("nobody has it", || registry.evict(set).is_ok());
    }
    assert_eq!(registry.ledger().total(), 0);
}

/// The last to have the registry may be one of its own threads.
#[test]
fn a_registry_may_end_on_a_thread_that_loads_for_it() {
    /// Dropped with the registry, after its threads.
    struct Last(#[expect(dead_code, reason = "dropping it is all it does")] mpsc::Sender<()>);
    impl Policy for Last {
        fn rank(&mut self, _: &[Candidate]) -> Vec<SetHandle> {
            Vec::new()
        }
    }
    let (last, ended) = mpsc::channel();
    let builder = WeightRegistry::builder().policy(Last(last));
    let (registry, kitchen, sets) = published(builder.build().unwrap(), 1);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    let mut future = Box::pin(registry.acquire_or_load_async(sets[0]));
    let pending = future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending();
    assert!(pending);
    drop(future);
    drop(registry);
    assert!(
        ended.try_recv() == Err(mpsc::TryRecvError::Empty),
        "its load has it"
    );
    kitchen.let_go(0);
    let ended = ended.recv_timeout(SOON);
    assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected), "it hangs");
    assert_eq!(kitchen.reads(0), 1);
}

/// A task that was woken and is never polled again, or was forgotten, holds up nobody for ever.
#[test]
fn a_future_that_nobody_polls_is_passed() {
    let (registry, _, sets) = away(40, 2);
    let registry = Arc::new(registry);
    let lease = registry.acquire_or_load(sets[0], SOON).unwrap();
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    // It wants the room of both, has that of one kept for it, and is forgotten.
    let mut forgotten = Box::pin(registry.acquire_or_load_async([sets[2], sets[3]]));
    let mut context = Context::from_waker(Waker::noop());
    while registry.ledger().retired == 0 {
        assert!(forgotten.as_mut().poll(&mut context).is_pending());
    }
    std::mem::forget(forgotten);
    assert_eq!(registry.stats().waiting, 1);
    // More than may pass.
    for &set in &sets[4..] {
        drop(registry.acquire_or_load(set, SOON).unwrap());
    }
    drop(lease);
    drop(registry.acquire_or_load([sets[0], sets[1]], SOON).unwrap());
    assert!(registry.ledger().peak <= 2 * ONE);
}

/// One request wants a set whose source hangs, and another; who wants only that other one has it.
#[test]
fn a_source_that_hangs_is_in_the_way_of_its_own_set_only() {
    let (registry, kitchen, sets) = away(4, 4);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let both = threads.spawn(|| registry.acquire_or_load([sets[0], sets[1]], SOON).map(drop));
        until("both are read", || registry.stats().loads == 2);
        drop(registry.acquire_or_load(sets[1], SOON).unwrap());
        let mut task = Box::pin(registry.acquire_or_load_async([sets[0], sets[2], sets[3]]));
        let mut context = Context::from_waker(Waker::noop());
        assert!(task.as_mut().poll(&mut context).is_pending());
        drop(block_on(registry.acquire_or_load_async([sets[3], sets[2]])).unwrap());
        assert!(!both.is_finished());
        kitchen.let_go(0);
        both.join().unwrap().unwrap();
        drop(block_on(task).unwrap());
    });
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

/// A read of a generation that is gone is in nobody's way.
#[test]
fn a_read_that_hangs_ends_with_its_generation() {
    let (registry, kitchen, sets) = away(2, 4);
    let set = sets[0];
    kitchen.hold(0);
    std::thread::scope(|threads| {
        let hangs = threads.spawn(|| registry.acquire_or_load(set, SOON).map(drop));
        until("it is read", || kitchen.entered.load(Ordering::SeqCst) == 1);
        registry.replace(set, kitchen.source(1)).unwrap();
        registry.evict(set).unwrap();
        assert_eq!(value(&registry.acquire_or_load(set, SOON).unwrap(), set), 1);
        kitchen.let_go(0);
        hangs.join().unwrap().unwrap();
    });
    assert_eq!(registry.ledger().total(), ONE);
}

/// Bytes that an alias has, too, stay, and nothing goes in vain beside them.
#[test]
fn shared_bytes_make_no_room() {
    let (registry, kitchen, sets) = away(4, 3);
    drop(registry.acquire_or_load(&sets[..2], SOON).unwrap());
    let w = registry.weight_handle(sets[0], "w").unwrap();
    let alias = InMemory::new().alias("lent", w).unwrap();
    registry.publish("alias", alias).unwrap();
    let mut events = registry.events();
    let refused = registry.acquire_or_load(&sets[2..], Duration::from_millis(10));
    assert!(
        refused.is_ok(),
        "there is room for one, and one goes: {refused:?}"
    );
    assert_eq!(resident(&registry), ["alias", "s0", "s2", "s3"]);
    let went = |next: Next| match next {
        Next::Event(event) => matches!(event.kind, EventKind::Evicted { .. }),
        _ => false,
    };
    assert_eq!(
        events.pending().filter(|next| went(next.clone())).count(),
        1
    );
    assert_eq!(kitchen.reads(0), 1);
    drop(refused);
    // The first of the line takes what helps: not what helps nobody.
    let refused = registry.acquire_or_load([sets[1], sets[2], sets[3]], Duration::ZERO);
    assert!(refused.is_err());
    assert_eq!(resident(&registry), ["alias", "s0", "s2", "s3"]);
}

/// A tenant is not told of others' sets.
#[test]
fn a_tenant_is_told_of_its_own_holdups_only() {
    let registry = WeightRegistry::builder()
        .limit_bytes(2 * ONE)
        .build()
        .unwrap();
    let kitchen = Kitchen::new(3);
    let [ours, theirs] = ["ours", "theirs"].map(|name| registry.namespace(name).unwrap());
    let mine = ours.publish("a", kitchen.source(0)).unwrap();
    ours.evict(mine).unwrap();
    let own = ours.publish("b", kitchen.source(1)).unwrap();
    let other = theirs.publish("secret", kitchen.source(2)).unwrap();
    let _leases = (
        registry.acquire_as("mine", own).unwrap(),
        registry.acquire_as("secret", other).unwrap(),
    );
    let patience = Duration::from_millis(1);
    let message = |refused: Result<Lease, Error>| refused.unwrap_err().to_string();
    let told = message(ours.acquire_or_load(mine, patience));
    assert!(told.contains("mine") && !told.contains("secret"), "{told}");
    let told = message(registry.acquire_or_load(mine, patience));
    assert!(told.contains("mine") && told.contains("secret"), "{told}");
}

/// Another base than its own is found before anything is loaded.
#[test]
fn a_wrong_pair_is_refused_before_it_is_loaded() {
    let registry = WeightRegistry::builder().build().unwrap();
    let kitchen = Kitchen::new(2);
    let [base, other] = [0, 1].map(|at| {
        registry
            .publish(format!("s{at}"), kitchen.source(at))
            .unwrap()
    });
    let adapter = registry
        .publish("adapter", support::addition(64, 7, base))
        .unwrap();
    registry.evict(other).unwrap();
    let refused = registry.acquire_or_load([adapter, other], SOON);
    assert!(matches!(refused, Err(Error::WrongBase { .. })));
    assert_eq!(resident(&registry), ["adapter", "s0"]);
}

/// Memory of what goes is used for what comes, and nothing of it is left.
#[test]
fn memory_is_used_again_and_is_clean() {
    /// Fills the first half of what it has, and vouches for that.
    struct Half(Plan, u8);
    impl Source for Half {
        fn plan(&self) -> &Plan {
            &self.0
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            let half = arena.len() / 2;
            arena[..half].fill(self.1);
            Ok(())
        }
        fn declared(&self) -> Option<&str> {
            Some("half of it")
        }
    }
    for len in [4096_usize, 3 << 20, 9 << 20] {
        let source = move |fill: u8| {
            let plan = Plan::of("half", [("w", Dtype::U8, vec![len])]).unwrap();
            Evictable::opened_by(move || Ok(Half(plan.clone(), fill))).unwrap()
        };
        let plan = Plan::of("half", [("w", Dtype::U8, vec![len])]).unwrap();
        let room = plan.charged_bytes();
        let registry = WeightRegistry::builder().limit_bytes(room).build().unwrap();
        let sets = [1, 2].map(|fill| {
            let set = registry.publish(format!("s{fill}"), source(fill)).unwrap();
            registry.evict(set).unwrap();
            set
        });
        let mut addresses = HashSet::new();
        for round in 0..6 {
            let (at, set) = (round % 2, sets[round % 2]);
            let lease = registry.acquire_or_load(set, SOON).unwrap();
            let w = registry.weight_handle(set, "w").unwrap();
            let bytes = lease.weight(w).unwrap().bytes();
            let fill = u8::try_from(at + 1).unwrap();
            assert!(bytes[..len / 2].iter().all(|byte| *byte == fill));
            assert!(bytes[len / 2..].iter().all(|byte| *byte == 0), "stale");
            addresses.insert(bytes.as_ptr() as usize);
        }
        assert_eq!(addresses.len(), 1, "it is the same memory");
        assert_eq!(registry.ledger().peak, room);
    }
}

#[test]
#[should_panic(expected = "polled after it had answered")]
fn a_future_answers_once() {
    let (registry, _, sets) = away(1, 1);
    let registry = Arc::new(registry);
    let mut future = Box::pin(registry.acquire_or_load_async(sets[0]).labelled("once"));
    let mut context = Context::from_waker(Waker::noop());
    let deadline = Instant::now() + SOON;
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(lease) => break assert_eq!(value(&lease.unwrap(), sets[0]), 0),
            Poll::Pending => assert!(Instant::now() < deadline),
        }
    }
    let _ = future.as_mut().poll(&mut context);
}

/// A waker that panics keeps nobody else asleep.
#[test]
fn a_waker_that_panics_harms_nobody() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose")
        }
    }
    let (registry, kitchen, sets) = away(1, 1);
    let registry = Arc::new(registry);
    kitchen.hold(0);
    let waker = Waker::from(Arc::new(Panics));
    let mut broken = Box::pin(registry.acquire_or_load_async(sets[0]));
    let mut context = Context::from_waker(&waker);
    assert!(broken.as_mut().poll(&mut context).is_pending());
    std::thread::scope(|threads| {
        let other = threads.spawn(|| block_on(registry.acquire_or_load_async(sets[0])).map(drop));
        let third = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
        kitchen.let_go(0);
        other.join().unwrap().unwrap();
        third.join().unwrap().unwrap();
    });
    let caught = catch_unwind(AssertUnwindSafe(|| drop(broken)));
    assert!(caught.is_ok());
}

/// A plan is exact before anything is read.
#[test]
fn what_a_plan_says_is_what_is_charged() {
    let registry = WeightRegistry::builder().build().unwrap();
    let source = bytes(100, 3);
    let planned: &Plan = source.plan();
    let (charged, demand) = (planned.charged_bytes(), Demand::new().plan("", planned));
    assert_eq!(registry.estimate(&demand).unwrap(), estimate_now(charged));
    registry.publish("s", source).unwrap();
    assert_eq!(registry.ledger().total(), charged);
}

/// What routers ask for: who serves, who is waited for.
#[test]
fn adapters_that_serve_and_that_are_waited_for_are_told() {
    let registry = Arc::new(
        WeightRegistry::builder()
            .limit_bytes(3 * ONE)
            .build()
            .unwrap(),
    );
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    let adapters = ["one", "two", "with \"quotes\" and \\"].map(|name| {
        let open = move || Ok(support::addition(64, 2, base));
        let source = Evictable::opened_by(open).unwrap();
        let set = registry.publish(name, source).unwrap();
        registry.evict(set).unwrap();
        set
    });
    let told = || {
        let line = registry.lora_requests_info().to_prometheus("it", 2);
        let (labels, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().unwrap() > 1e9, "{value}");
        labels.to_owned()
    };
    let of = |running: &str, waiting: &str| {
        format!(
            r#"it{{max_lora="2",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}}"#
        )
    };
    assert_eq!(told(), of("", ""));
    let one = registry.acquire_or_load([base, adapters[0]], SOON).unwrap();
    let two = registry.acquire_or_load(adapters[1], SOON).unwrap();
    assert_eq!(told(), of("one,two", ""), "a base is none");
    let mut third = Box::pin(registry.acquire_or_load_async([base, adapters[2]]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(third.as_mut().poll(&mut context).is_pending());
    assert_eq!(told(), of("one,two", r#"with \"quotes\" and \\"#));
    drop(one);
    let lease = block_on(third).unwrap();
    assert_eq!(told(), of(r#"two,with \"quotes\" and \\"#, ""));
    drop((two, lease));
    // The thread that read it may be about to let go of it.
    until("nobody has any", || told() == of("", ""));
}

/// An account that is short is not helped by what is others': nothing of that goes, however long it waits.
#[test]
fn whoever_is_at_the_limit_of_an_account_takes_nothing_of_others() {
    let registry = WeightRegistry::builder()
        .limit_bytes(3 * ONE)
        .build()
        .unwrap();
    let registry = Arc::new(registry);
    let kitchen = Kitchen::new(4);
    let limits = NamespaceLimits::none().bytes(2 * ONE);
    registry.set_namespace_limits("t", limits).unwrap();
    let tenant = registry.namespace("t").unwrap();
    let own: Vec<SetHandle> = (0..3)
        .map(|at| {
            let set = tenant
                .publish(&format!("t{at}"), kitchen.source(at))
                .unwrap();
            tenant.evict(set).unwrap();
            set
        })
        .collect();
    let other = registry.publish("other", kitchen.source(3)).unwrap();
    let lease = registry.acquire_or_load([own[0], own[1]], SOON).unwrap();
    // The total is full, and so is the tenant.
    let mut waits = Box::pin(registry.acquire_or_load_async(own[2]));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(registry.acquire(other).unwrap());
    }
    drop(lease);
    drop(block_on(waits).unwrap());
    assert!(registry.acquire(other).is_ok());
    assert_eq!(registry.ledger().retired, 0);
}

/// What was taken for a request that then needed less goes back at once if nobody waits.
#[test]
fn nothing_is_stranded_where_nobody_waits() {
    let registry = WeightRegistry::builder()
        .limit_bytes(100 * 64)
        .build()
        .unwrap();
    let set = |name: &str, lines: usize| {
        let open = move || Ok(bytes(64 * lines, 1));
        let source = Evictable::opened_by(open).unwrap();
        registry.publish(name.to_owned(), source).unwrap()
    };
    let wanted = set("d", 40);
    registry.evict(wanted).unwrap();
    let [a, b] = ["a", "b"].map(|name| set(name, 30));
    let c = set("c", 40);
    // `b` has bytes that another set has, too; in the order of their coming it is asked for after `a`.
    let w = registry.weight_handle(b, "w").unwrap();
    let alias = InMemory::new().alias("lent", w).unwrap();
    registry.publish("alias", alias).unwrap();
    drop(registry.acquire_or_load(wanted, SOON).unwrap());
    let ledger = registry.ledger();
    assert_eq!((ledger.retired, ledger.reserved), (0, 0), "{ledger:?}");
    let catalog = registry.catalog();
    let there = |name| catalog.get(name).unwrap().resident;
    assert!(there("d") && there("b"));
    let bytes: u64 = [("a", 30), ("b", 30), ("c", 40), ("d", 40)]
        .iter()
        .filter(|(name, _)| there(name))
        .map(|(_, lines)| lines * 64)
        .sum();
    assert_eq!(ledger.total(), bytes);
    let _ = (a, c);
}
