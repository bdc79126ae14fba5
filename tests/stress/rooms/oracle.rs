//! What a set's bytes must be.
//!
//! What lives here: every byte is a function of a set's number and a version, so that bytes of two
//! versions, of another set, or of nobody are told apart wherever they are. What does not: threads.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use weighbridge::source::InMemory;
use weighbridge::{Dtype, Generation, Lease, LeasedSet, SetHandle, WeightRegistry};

/// Long enough for any wait that is going to end, also where everything takes thirty times as long.
pub const LONG: Duration = Duration::from_secs(300);

/// Bytes of the tensor `w`; `v` has a quarter.
pub const LEN: usize = 256;

/// What `source` takes of the ledger.
pub const CHARGE: u64 = (LEN + LEN / 4) as u64;

/// Who some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub set: u64,
    pub version: u64,
}

impl Stamp {
    fn word(self, at: u64) -> u64 {
        match at {
            0 => self.set,
            1 => self.version,
            _ => {
                let mixed = (self.set << 40) ^ (self.version << 8) ^ at;
                mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
            }
        }
    }

    /// `len` bytes, a multiple of eight and sixteen at least.
    pub fn bytes(self, len: usize) -> Vec<u8> {
        let words = (0..len as u64 / 8).map(|at| self.word(at).to_le_bytes());
        words.flatten().collect()
    }

    /// Whose `bytes` these are: all of them one version's of one set, or this panics.
    #[track_caller]
    pub fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(words[at]);
        let stamp = Stamp {
            set: word(0),
            version: word(1),
        };
        for at in 0..words.len() {
            assert_eq!(
                word(at),
                stamp.word(at as u64),
                "word {at} is not {stamp:?}'s"
            );
        }
        assert!(rest.is_empty());
        stamp
    }
}

/// A set of two tensors.
pub fn source(set: u64, version: u64) -> InMemory {
    let stamp = Stamp { set, version };
    [("w", LEN), ("v", LEN / 4)]
        .into_iter()
        .try_fold(InMemory::new(), |source, (name, len)| {
            source.tensor(name, Dtype::U8, [len], stamp.bytes(len))
        })
        .expect("legal tensors")
}

/// An adapter on `base`: one tensor more than it.
pub fn addition(set: u64, version: u64, base: SetHandle) -> InMemory {
    let stamp = Stamp { set, version };
    InMemory::new()
        .replacement("more", Dtype::U8, [LEN], stamp.bytes(LEN))
        .expect("a legal tensor")
        .on(base)
}

/// Of `set`'s own tensors: all are one version's.
#[track_caller]
pub fn stamp(set: &LeasedSet<'_>) -> Stamp {
    let mut stamps = set
        .iter()
        .map(|weight| Stamp::of(weight.expect("a tensor").bytes()));
    let first = stamps.next().expect("it has tensors");
    assert!(
        stamps.all(|other| other == first),
        "two versions in one set"
    );
    first
}

/// Of one of a lease's sets.
#[track_caller]
pub fn stamp_in(lease: &Lease, set: SetHandle) -> Stamp {
    stamp(&lease.set(set).expect("it was leased"))
}

/// What one thread has seen of one set that one thread writes: versions go with generations, and
/// neither goes back.
#[derive(Debug, Default)]
pub struct Seen(Option<(Generation, Stamp)>);

impl Seen {
    #[track_caller]
    pub fn see(&mut self, lease: &Lease, set: SetHandle) -> Stamp {
        let leased = lease.set(set).expect("it was leased");
        let now = (leased.generation(), stamp(&leased));
        if let Some(before) = self.0.replace(now) {
            assert_eq!(now.1.set, before.1.set, "another set's bytes");
            let versions = now.1.version.cmp(&before.1.version);
            assert_eq!(now.0.cmp(&before.0), versions, "{before:?}, then {now:?}");
            assert!(versions.is_ge(), "{before:?}, then {now:?}");
        }
        now.1
    }
}

thread_local! {
    /// How many leases this thread has asked for.
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// A lease of `sets`, in one way after the other, beginning with `way`. `None`: this one was refused one,
/// and may be.
pub fn acquire(registry: &WeightRegistry, sets: &[SetHandle], way: usize) -> Option<Lease> {
    match (way + ASKED.get()) % 5 {
        // As of the scope's commit, which may be past.
        4 => {
            ASKED.set(ASKED.get() + 1);
            registry.scope(|scope| scope.acquire(sets)).ok()
        }
        _ => Some(acquire_now(registry, sets, way)),
    }
}

/// A lease of `sets` as they are now, in one way after the other, beginning with `way`.
pub fn acquire_now(registry: &WeightRegistry, sets: &[SetHandle], way: usize) -> Lease {
    let turn = way + ASKED.replace(ASKED.get() + 1);
    let lease = match turn % 5 {
        0 => registry.acquire_as("one of many", sets),
        1 => registry.reader().acquire(sets),
        2 => registry.acquire(sets).map(|lease| {
            let twin = lease.clone();
            drop(lease);
            twin
        }),
        _ => registry.acquire(sets),
    };
    lease.expect("it is there")
}

pub fn registry() -> Arc<WeightRegistry> {
    limited(64 << 20)
}

pub fn limited(bytes: u64) -> Arc<WeightRegistry> {
    let builder = WeightRegistry::builder().limit_bytes(bytes);
    Arc::new(builder.build().expect("a registry"))
}

/// Retires what is there, waits until all of it is back, and looks at the books.
pub fn close(registry: &WeightRegistry) {
    let mut sets: Vec<SetHandle> = Vec::new();
    sets.extend(
        registry
            .catalog()
            .entries()
            .iter()
            .map(|entry| entry.handle),
    );
    for set in sets {
        // With its adapters, which may come later in the list.
        if registry.scope(|scope| scope.get(set).is_ok()) {
            drop(registry.retire_cascade(set).expect("it is there"));
        }
    }
    for going in registry.retired() {
        going.reclaimed(LONG).expect("nobody holds it");
    }
    let stats = registry.stats();
    assert_eq!((stats.sets, stats.ledger.total()), (0, 0));
    assert_eq!((stats.reclaimer_panics, stats.fence_panics), (0, 0));
}
