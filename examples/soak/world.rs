//! What all threads of a run share, and what they tell.
//!
//! What lives here: the registry under test and what lies beside it, failures, counts, what each thread
//! is doing. What does not: a thread's own memory (`worker`), the operations (`acts`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use weighbridge::fence::{Signal, Steps};
use weighbridge::flat::FlatRegistry;
use weighbridge::{Error, NamespaceLimits, WeightRegistry};

use crate::acts::{self, Act};
use crate::check::{Facts, Files};
use crate::held::Held;
use crate::options::{Options, Plant};
use crate::pattern::Body;
use crate::roles::{self, Role};

/// All weights together: so little that loads are refused now and then.
pub const LIMIT: u64 = 5200 << 10;
/// What loads on demand leave free, as far as they can.
pub const SOFT_LIMIT: u64 = 4800 << 10;
/// Memory that is kept for the next load: of sets that are mapped, which are the longest.
const POOL: u64 = 1600 << 10;
/// Enough for two versions of a streamed set, but not for three.
const STREAMED: u64 = 180 << 10;
/// A tenant's: less than its four sets may have together.
const TENANT_BYTES: u64 = 12 << 10;
const TENANT_SETS: usize = 3;
/// The places of the event stream.
pub const EVENTS: usize = 1 << 13;
/// Leases and signals that lie where any thread may take them.
pub const SHELF: usize = 24;
/// Failures that are written down; the others are counted.
const WRITTEN: usize = 20;

/// A lease that waits for a fence.
pub struct Fenced {
    pub signal: Signal,
    /// What it was.
    pub facts: Vec<Facts>,
}

pub struct World {
    pub registry: Arc<WeightRegistry>,
    pub flat: FlatRegistry,
    /// With a set whose layers are streamed.
    pub streamed: Arc<WeightRegistry>,
    pub files: Files,
    pub options: Options,
    /// What is drawn from: each operation as often as its weight says.
    pub acts: Vec<&'static Act>,
    pub started: Instant,
    /// The lives of threads end soon.
    pub stop: AtomicBool,
    uid: AtomicU64,
    /// Leases for other threads to take.
    pub shelf: Mutex<Vec<Held>>,
    /// Fences for other threads to signal.
    pub fenced: Mutex<Vec<Fenced>>,
    pub steps: Steps,
    pub step: AtomicU64,
    pub doing: Box<[Doing]>,
    failures: Mutex<(u64, Vec<String>)>,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    planted: AtomicBool,
    pub counts: Counts,
}

#[derive(Default)]
pub struct Counts {
    pub operations: AtomicU64,
    pub reads: AtomicU64,
    pub commits: AtomicU64,
    pub lives: AtomicU64,
    pub gaps: AtomicU64,
    pub events: AtomicU64,
}

/// What one thread is doing.
#[derive(Default)]
pub struct Doing {
    what: Mutex<Option<(&'static str, Instant, Duration)>>,
}

impl Doing {
    pub fn begin(&self, what: &'static str, allowed: Duration) {
        *lock(&self.what) = Some((what, Instant::now(), allowed));
    }

    pub fn end(&self) {
        *lock(&self.what) = None;
    }

    /// What it has been doing for longer than allowed, and since when.
    pub fn overdue(&self) -> Option<(&'static str, Instant)> {
        let (what, since, allowed) = (*lock(&self.what))?;
        (since.elapsed() > allowed).then_some((what, since))
    }
}

/// A poisoned lock is a panic that is reported anyway.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub fn bump(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl World {
    pub fn new(options: Options, files: Files) -> Result<Self, Error> {
        let registry = WeightRegistry::builder()
            .limit_bytes(LIMIT)
            .soft_limit_bytes(SOFT_LIMIT)
            .pool_bytes(POOL)
            .write_protect(true)
            .event_capacity(EVENTS)
            .build()?;
        let streamed = WeightRegistry::builder().limit_bytes(STREAMED).build()?;
        let registry = Arc::new(registry);
        for tenant in 0..roles::TENANT.len() / roles::PER_TENANT {
            let limits = NamespaceLimits::none()
                .bytes(TENANT_BYTES)
                .sets(TENANT_SETS);
            registry.set_namespace_limits(&roles::tenant_name(tenant), limits)?;
        }
        // The last one is that of whoever calls the meetings.
        let doing = (0..=options.threads).map(|_| Doing::default()).collect();
        Ok(World {
            streamed: Arc::new(streamed),
            flat: FlatRegistry::within(Arc::clone(&registry), roles::FLAT_SPACE)?,
            registry,
            files,
            acts: acts::drawn(&options.only),
            options,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            uid: AtomicU64::new(1),
            shelf: Mutex::new(Vec::with_capacity(SHELF)),
            fenced: Mutex::new(Vec::with_capacity(SHELF)),
            steps: Steps::new("the device"),
            step: AtomicU64::new(1),
            doing,
            failures: Mutex::default(),
            refusals: Mutex::default(),
            planted: AtomicBool::new(false),
            counts: Counts::default(),
        })
    }

    /// A body that is like no other.
    pub fn body(&self, role: Role) -> Body {
        let uid = self.unique();
        Body {
            uid,
            role,
            stamp: 0,
        }
    }

    pub fn unique(&self) -> u64 {
        self.uid.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes a failure down.
    pub fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        let mut failures = lock(&self.failures);
        failures.0 += 1;
        if failures.1.len() < WRITTEN {
            let at = self.started.elapsed().as_secs_f64();
            eprintln!("{at:>8.1} s  FAILED: {what}");
            failures.1.push(format!("{at:.1} s: {what}"));
        }
    }

    pub fn demand(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what());
        }
    }

    /// How many, and the first of them.
    pub fn failures(&self) -> (u64, Vec<String>) {
        lock(&self.failures).clone()
    }

    /// Counts a refusal, which must be one that this run provokes.
    pub fn refused(&self, doing: &str, error: &Error) {
        let error = match error {
            Error::Emptied { cause, .. } if self.kind(error).is_some() => {
                self.count(error);
                cause
            }
            _ => error,
        };
        if self.kind(error).is_none() {
            return self.fail(format!("{doing}: {error}"));
        }
        self.count(error);
    }

    fn count(&self, error: &Error) {
        if let Some(kind) = self.kind(error) {
            *lock(&self.refusals).entry(kind).or_default() += 1;
        }
    }

    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.refusals).clone()
    }

    /// The refusals that are part of the job.
    fn kind(&self, error: &Error) -> Option<&'static str> {
        Some(match error {
            Error::AlreadyPublished { .. } => "already published",
            Error::AlreadyRegistered { .. } => "already registered",
            Error::NameBusy { .. } => "name busy",
            Error::StaleHandle { .. } => "stale handle",
            Error::TooManySets { .. } => "too many sets",
            Error::NotResident { .. } => "not resident",
            Error::Conflict { .. } => "conflict",
            Error::Emptied { .. } => "emptied",
            Error::Dependants { .. } => "dependants",
            Error::AliasedBy { .. } => "aliased by",
            Error::WeightTied { .. } => "weight tied",
            Error::NotKept { .. } => "not kept",
            Error::BaseNotCurrent { .. } => "base not current",
            Error::WrongBase { .. } => "wrong base",
            Error::WrongNamespace { .. } => "wrong namespace",
            Error::Leased(_) => "leased",
            Error::BytesShared { .. } => "bytes shared",
            Error::NotEvictable { .. } => "not evictable",
            Error::Pinned { .. } => "pinned",
            Error::NotLoaded(_) => "not loaded in time",
            Error::PartNotLoaded { .. } => "a part not loaded in time",
            Error::NeverFits {
                requested,
                immovable,
                limit,
                ..
            } => {
                self.demand(immovable + requested > *limit, || error.to_string());
                "never fits"
            }
            Error::NotDrained(_) => "not drained",
            Error::NotReclaimed(_) => "not reclaimed",
            Error::OverLimit {
                limit,
                in_use,
                requested,
            } => {
                self.demand(in_use + requested > *limit, || error.to_string());
                "over limit"
            }
            Error::OverAccountLimit {
                limit,
                in_use,
                requested,
                ..
            } => {
                self.demand(in_use + requested > *limit, || error.to_string());
                "over account limit"
            }
            _ => return None,
        })
    }

    /// True once in a run, if `plant` is the mistake to be made, after a tenth of its time.
    pub fn plants(&self, plant: Plant) -> bool {
        let due = self.started.elapsed() > self.options.time / 10;
        self.options.plant == Some(plant) && due && !self.planted.swap(true, Ordering::Relaxed)
    }
}
