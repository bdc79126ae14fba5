//! Futures that are dropped, forgotten, woken in vain, or outlive what they came from.
//!
//! What lives here: what becomes of everybody else then, and of what was done for them. What does not: futures
//! that are polled to their end, which the other rooms have beside calls that wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use weighbridge::policy::{Candidate, Policy};
use weighbridge::{Error, EventKind, Next, SetHandle, WeightRegistry};

use crate::support::device::until;
use crate::support::{SOON, block_on};
use crate::{ONE, away, published, resident, value};

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
