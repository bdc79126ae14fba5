//! Leases that are held for a while: here, on other threads, and until a thread ends.
//!
//! What lives here: [`Held`], which knows what it saw first. What does not: when a lease is taken and
//! let go (`acts`).

use std::cell::RefCell;
use std::sync::Arc;

use weighbridge::{Lease, WeightRegistry};

use crate::check::{Facts, look_together};
use crate::world::World;

/// A lease and what was seen in it when it was taken.
pub struct Held {
    pub lease: Lease,
    pub facts: Vec<Facts>,
    /// It is of another registry than the run's, which may be gone.
    pub foreign: bool,
}

impl Held {
    /// Looks at everything in `lease`; a wrong byte is a failure of the run.
    pub fn of(lease: Lease, world: &World, doing: &str) -> Option<Self> {
        match look_together(&lease, &world.files) {
            Ok(facts) => Some(Held {
                lease,
                facts,
                foreign: false,
            }),
            Err(wrong) => {
                world.fail(format!("{doing}: {wrong}"));
                None
            }
        }
    }

    /// The end of the lease: it still is what it was.
    pub fn let_go(self, world: &World, doing: &str) {
        match look_together(&self.lease, &world.files) {
            Ok(now) => world.demand(now == self.facts, || {
                format!("{doing}: {:?} became {now:?}", self.facts)
            }),
            Err(wrong) => world.fail(format!("{doing}: {wrong}")),
        }
    }
}

/// Lets go when its thread ends.
struct AtEnd {
    held: Option<Held>,
    world: Arc<World>,
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.let_go(&self.world, "the end of a thread");
        }
    }
}

thread_local! {
    static LAST: RefCell<Vec<AtEnd>> = const { RefCell::new(Vec::new()) };
}

/// The most that a thread keeps until its end.
const AT_END: usize = 3;

/// Leaves `held` to the end of this thread.
pub fn until_the_end(held: Held, world: &Arc<World>) -> Option<Held> {
    LAST.with_borrow_mut(|last| {
        if last.len() >= AT_END {
            return Some(held);
        }
        let (held, world) = (Some(held), Arc::clone(world));
        last.push(AtEnd { held, world });
        None
    })
}

/// A registry may go before its leases.
pub fn outlive(registry: WeightRegistry, mut held: Held) -> Held {
    drop(registry);
    held.foreign = true;
    held
}
