//! Ends: of threads that hold leases, and of registries that are leased from.

use std::cell::RefCell;
use std::sync::Arc;

use weighbridge::{Lease, SetHandle};

use super::Size;
use super::crew::Crew;
use super::oracle::{LONG, acquire_now, close, registry, source, stamp_in};

/// Reads what it holds once more when its thread ends.
struct Pocket(Vec<(Lease, SetHandle)>);

impl Drop for Pocket {
    fn drop(&mut self) {
        for (lease, set) in self.0.drain(..) {
            assert_eq!(stamp_in(&lease.clone(), set).set, 1);
        }
    }
}

thread_local! {
    static POCKET: RefCell<Pocket> = const { RefCell::new(Pocket(Vec::new())) };
}

/// Leases in thread-locals, which end before or after the thread's own registration.
pub fn threads_exit_with_leases(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    for round in 1..=size.rounds.div_ceil(4) {
        let mut crew = Crew::new();
        for way in 0..size.threads {
            let registry = Arc::clone(&registry);
            crew.lead(move || {
                if way.is_multiple_of(2) {
                    POCKET.with_borrow_mut(|pocket| pocket.0.reserve(4));
                }
                for _ in 0..2 {
                    let lease = acquire_now(&registry, &[set], way);
                    POCKET.with_borrow_mut(|pocket| pocket.0.push((lease, set)));
                }
            });
        }
        let writer = Arc::clone(&registry);
        crew.lead(move || {
            let swap = writer.replace(set, source(1, round)).unwrap();
            swap.previous.reclaimed(LONG).unwrap();
        });
        crew.work();
    }
    close(&registry);
}

/// Whoever has the registry last drops it, while others hold leases, and go on.
pub fn leases_outlive_the_registry(size: Size) {
    for round in 0..size.rounds {
        let registry = registry();
        let sets = ["a", "b"].map(|name| registry.publish(name, source(1, round)).unwrap());
        let leases: Vec<Lease> = (0..size.threads)
            .map(|way| acquire_now(&registry, &sets, way))
            .collect();
        let going = registry.retire(sets[1]).unwrap();
        let mut crew = Crew::new();
        for (way, lease) in leases.into_iter().enumerate() {
            let registry = Arc::clone(&registry);
            crew.lead(move || {
                let mine = acquire_now(&registry, &sets[..1], way);
                // The second half of the threads goes on when the registry may be gone.
                let registry = (way % 2 == 0).then_some(registry);
                let twin = lease.clone();
                drop(lease);
                for set in sets {
                    assert_eq!(stamp_in(&twin, set).version, round);
                }
                drop(registry);
                assert_eq!(stamp_in(&mine, sets[0]).version, round);
            });
        }
        crew.lead(move || going.reclaimed(LONG).unwrap());
        drop(registry);
        crew.work();
    }
}

/// The registry goes while the reclaimer has work, and while somebody waits for it.
pub fn registry_dropped_at_a_full_reclaimer(size: Size) {
    for round in 0..size.rounds {
        let registry = registry();
        let mut crew = Crew::new();
        for thread in 0..size.threads.min(4) {
            let registry = Arc::clone(&registry);
            crew.lead(move || {
                let name = format!("set-{thread}");
                let set = registry.publish(name.as_str(), source(1, round)).unwrap();
                let lease = registry.acquire(set).unwrap();
                let swap = registry.replace(set, source(1, round + 1)).unwrap();
                let newest = registry.acquire(set).unwrap();
                let going = registry.retire(set).unwrap();
                drop((lease, registry));
                swap.previous.reclaimed(LONG).unwrap();
                assert_eq!(stamp_in(&newest, set).version, round + 1);
                drop(newest);
                going.reclaimed(LONG).unwrap();
            });
        }
        drop(registry);
        crew.work();
    }
}
