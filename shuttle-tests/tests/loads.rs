//! Sets that are away: one load for all who want one, room for several at one instant, and what overtakes a
//! load.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use shuttle::thread::{Thread, current, park};
use weighbridge::source::Evictable;
use weighbridge::{Error, Lease, SetHandle, WeightRegistry};
use weighbridge_shuttle_tests::{
    LINE, LONG, all, bytes, empty, ended, explore, saw, start, value, yield_now,
};

/// A registry with room for `room` sets, so many sets that are away, and how often each was opened since.
/// Set number n is filled with n.
fn away(room: u64, sets: u8) -> (Arc<WeightRegistry>, Vec<SetHandle>, Arc<Vec<Reads>>) {
    let builder = WeightRegistry::builder().event_capacity(32).loaders(1);
    let builder = builder.load_backoff(Duration::ZERO, Duration::ZERO);
    let registry = builder.limit_bytes(room * LINE).build().unwrap();
    let reads: Arc<Vec<Reads>> = Arc::new((0..sets).map(|_| Reads::default()).collect());
    let publish = |number: u8| {
        let reads = Arc::clone(&reads);
        let open = move || reads[usize::from(number)].open(number);
        let source = Evictable::opened_by(open).unwrap();
        let set = registry.publish(format!("s{number}"), source).unwrap();
        registry.evict(set).unwrap();
        set
    };
    let handles = (0..sets).map(publish).collect();
    reads
        .iter()
        .for_each(|one| one.0.store(0, Ordering::SeqCst));
    (Arc::new(registry), handles, reads)
}

#[derive(Default)]
struct Reads(AtomicUsize, AtomicBool);

impl Reads {
    fn open(&self, number: u8) -> Result<weighbridge::source::InMemory, Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        // Where others may come between.
        yield_now();
        if self.1.load(Ordering::SeqCst) {
            return Err(Error::LoadInsideLoad);
        }
        Ok(bytes(number))
    }

    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn load(registry: &WeightRegistry, sets: &[SetHandle]) -> Result<Lease, Error> {
    registry.acquire_or_load(sets, LONG)
}

/// By a future, on this thread.
fn load_async(registry: &Arc<WeightRegistry>, sets: &[SetHandle]) -> Result<Lease, Error> {
    ended(registry.acquire_or_load_async(sets))
}

#[test]
fn of_all_who_want_a_set_one_reads() {
    let outcomes = ["at the same time", "one after the other"];
    explore("of_all_who_want_a_set_one_reads", &outcomes, move || {
        let (registry, sets, reads) = away(3, 1);
        let set = sets[0];
        let others = [(); 2].map(|()| {
            start(&registry, move |registry| {
                let there = registry.acquire(set).is_ok();
                assert_eq!(value(&load(registry, &[set]).unwrap(), set), 0);
                there
            })
        });
        let mine = load(&registry, &[set]).unwrap();
        assert_eq!(value(&mine, set), 0);
        let late = all(others).into_iter().any(|there| there);
        saw(if late { outcomes[1] } else { outcomes[0] });
        assert_eq!(reads[0].times(), 1);
        assert_eq!(registry.ledger().peak, LINE);
        drop(mine);
        empty(&registry);
    });
}

/// Each takes the other's place, and nobody hangs.
#[test]
fn two_take_turns_where_there_is_room_for_one() {
    let outcomes = ["3 reads"];
    explore(
        "two_take_turns_where_there_is_room_for_one",
        &outcomes,
        move || {
            let (registry, sets, reads) = away(1, 2);
            let [first, second] = [sets[0], sets[1]];
            let other = start(&registry, move |registry| {
                for set in [second, first] {
                    load(registry, &[set]).unwrap();
                }
            });
            assert_eq!(value(&load(&registry, &[first]).unwrap(), first), 0);
            assert_eq!(value(&load(&registry, &[second]).unwrap(), second), 1);
            other.join().unwrap();
            let times: usize = reads.iter().map(Reads::times).sum();
            assert!(times <= 4, "{times}: they chase each other");
            saw(format!("{times} reads"));
            assert_eq!(registry.ledger().peak, LINE);
            assert_eq!(registry.stats().waiting, 0);
            empty(&registry);
        },
    );
}

/// Each wants two of three, and there is room for two.
#[test]
fn pairs_do_not_block_each_other() {
    let outcomes = ["one waited", "none waited"];
    explore("pairs_do_not_block_each_other", &outcomes, move || {
        let (registry, sets, _) = away(2, 3);
        let pairs = [[sets[1], sets[2]], [sets[2], sets[0]]];
        let others = pairs.map(|pair| {
            start(&registry, move |registry| {
                drop(load(registry, &pair).unwrap());
            })
        });
        let pair = [sets[0], sets[1]];
        let lease = load_async(&registry, &pair).unwrap();
        assert_eq!((value(&lease, pair[0]), value(&lease, pair[1])), (0, 1));
        let waited = registry.stats().waiting > 0;
        saw(if waited { outcomes[0] } else { outcomes[1] });
        drop(lease);
        all(others);
        let ledger = registry.ledger();
        assert!(ledger.peak <= 2 * LINE, "{ledger:?}");
        assert_eq!((ledger.reserved, ledger.retired), (0, 0));
        assert_eq!(registry.stats().waiting, 0);
        empty(&registry);
    });
}

#[test]
fn a_failed_load_is_everybodys_and_leaves_nothing() {
    let outcomes = ["the same", "another"];
    explore(
        "a_failed_load_is_everybodys_and_leaves_nothing",
        &outcomes,
        move || {
            let (registry, sets, reads) = away(1, 1);
            let set = sets[0];
            reads[0].1.store(true, Ordering::SeqCst);
            let cause = |refused: Result<Lease, Error>| match refused.unwrap_err() {
                Error::LoadFailed { cause, .. } => cause,
                other => panic!("{other}"),
            };
            let other = start(&registry, move |registry| load(registry, &[set]));
            let mine = cause(load_async(&registry, &[set]));
            let other = cause(other.join().unwrap());
            let same = Arc::ptr_eq(&mine, &other);
            saw(if same { outcomes[0] } else { outcomes[1] });
            assert_eq!(reads[0].times(), if same { 1 } else { 2 });
            assert_eq!(registry.ledger().total(), 0);
            reads[0].1.store(false, Ordering::SeqCst);
            drop(load(&registry, &[set]).unwrap());
            empty(&registry);
        },
    );
}

/// The set is replaced, and evicted, while it is loaded.
#[test]
fn whoever_waits_gets_what_is_current() {
    let outcomes = ["old", "new"];
    explore("whoever_waits_gets_what_is_current", &outcomes, move || {
        let (registry, sets, _) = away(3, 1);
        let set = sets[0];
        let other = start(&registry, move |registry| {
            let next = Evictable::opened_by(|| Ok(bytes(9))).unwrap();
            registry.replace(set, next).unwrap();
            match registry.evict(set) {
                Ok(_) | Err(Error::Leased(_)) => {}
                Err(other) => panic!("{other}"),
            }
        });
        let lease = load(&registry, &[set]).unwrap();
        let old = value(&lease, set) == 0;
        saw(if old { outcomes[0] } else { outcomes[1] });
        other.join().unwrap();
        drop(lease);
        assert_eq!(value(&load(&registry, &[set]).unwrap(), set), 9);
        empty(&registry);
    });
}

/// One gives up in the line, at whatever moment: the other goes on, and nothing is lost.
#[test]
fn whoever_gives_up_takes_nothing_along() {
    let outcomes = ["gave up", "was served"];
    explore(
        "whoever_gives_up_takes_nothing_along",
        &outcomes,
        move || {
            let (registry, sets, _) = away(1, 2);
            let [first, second] = [sets[0], sets[1]];
            let lease = load(&registry, &[first]).unwrap();
            let other = start(&registry, move |registry| {
                drop(load(registry, &[second]).unwrap());
            });
            let mut future = Box::pin(registry.acquire_or_load_async(second));
            let mut context = Context::from_waker(Waker::noop());
            let mut served = future.as_mut().poll(&mut context).is_ready();
            drop(lease);
            yield_now();
            served = served || future.as_mut().poll(&mut context).is_ready();
            drop(future);
            saw(if served { outcomes[1] } else { outcomes[0] });
            other.join().unwrap();
            assert_eq!(registry.stats().waiting, 0);
            assert!(registry.ledger().peak <= LINE);
            // A load that nobody waits for any more comes to its end.
            while registry.ledger().reserved > 0 {
                yield_now();
            }
            empty(&registry);
        },
    );
}
