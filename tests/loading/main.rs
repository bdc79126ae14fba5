//! Sets that are loaded when they are wanted, in place of others.
//!
//! What lives here: sources that can be told to wait and to fail, and what else the tests share. They are in the
//! files beside, by concern.

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod failures;
mod futures;
mod going;
mod line;
mod refusals;
mod together;
mod told;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use weighbridge::source::{Evictable, InMemory};
use weighbridge::{Error, Lease, SetHandle, WeightRegistry};

use support::bytes;

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
