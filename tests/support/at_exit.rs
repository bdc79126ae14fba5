//! What thread-local destructors do to a registry, for threads (`threads.rs`) and for the main thread
//! (`process/main_exit.rs`).

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use weighbridge::{Error, Lease, SetHandle, WeightRegistry};

use super::support::{SOON, bytes};

/// Calls what it holds when it is dropped.
struct AtExit(Option<Box<dyn FnOnce()>>);

impl Drop for AtExit {
    fn drop(&mut self) {
        if let Some(last) = self.0.take() {
            last();
        }
    }
}

thread_local! {
    static BEFORE: RefCell<Option<AtExit>> = const { RefCell::new(None) };
    static AFTER: RefCell<Option<AtExit>> = const { RefCell::new(None) };
}

/// Whether a thread-local is made before the registry's own one, or after it. Its destructor runs
/// after, or before, the registry's.
#[derive(Debug, Clone, Copy)]
pub enum Made {
    Before,
    After,
}

pub const BOTH: [Made; 2] = [Made::Before, Made::After];

/// Has `last` run by a destructor of the calling thread. `meet` is the thread's first call of a
/// registry through its thread-local.
/// `told` hears whether it panicked; a panic would end the process otherwise.
pub fn at_exit(
    made: Made,
    meet: impl FnOnce(),
    last: impl FnOnce() + 'static,
    told: impl FnOnce(bool) + 'static,
) {
    let last = AtExit(Some(Box::new(move || {
        told(catch_unwind(AssertUnwindSafe(last)).is_ok());
    })));
    match made {
        Made::Before => {
            // The destructor is registered by the first access.
            BEFORE.with_borrow_mut(|place| *place = Some(last));
            meet();
        }
        Made::After => {
            meet();
            AFTER.with_borrow_mut(|place| *place = Some(last));
        }
    }
}

/// Every kind of call, with `lease` of `set`, which goes, under a name that nobody else uses.
pub fn last_words(registry: &WeightRegistry, set: SetHandle, lease: Lease, own: &str) {
    assert!(lease.set(set).unwrap().get("w").is_ok());
    let w = registry.weight_handle(set, "w").unwrap();
    assert!(
        registry
            .acquire_as("at exit", set)
            .unwrap()
            .weight(w)
            .is_ok()
    );
    assert!(
        registry
            .reader()
            .acquire([set, set])
            .unwrap()
            .weight(w)
            .is_ok()
    );
    registry.scope(|scope| {
        scope.refresh();
        assert!(scope.acquire(set).is_ok());
    });
    let mine = registry.publish(own, bytes(64, 1)).unwrap();
    assert_eq!(registry.lookup(own), Some(mine));
    assert!(registry.catalog().get(own).is_some());
    let swap = registry.replace(mine, bytes(64, 2)).unwrap();
    swap.previous.reclaimed(SOON).unwrap();
    let mut both = registry.transaction();
    both.retire(mine).unwrap();
    let going = both.commit().unwrap().previous;
    assert_eq!(registry.lookup(own), None);
    going[0].drained(SOON).unwrap();
    let Err(Error::StaleHandle { .. }) = registry.acquire(mine) else {
        panic!("a retired set was leased")
    };
    assert!(format!("{registry:?}").contains("stats"));
    let twin = lease.clone();
    drop(lease);
    // Only ours is sure to be there; the set may be held by others.
    let going = registry.retire(set).unwrap();
    assert!(going.drained(Duration::ZERO).unwrap_err().is_timeout());
    drop(twin);
}
