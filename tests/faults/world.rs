//! A registry with everything that must go on whatever fails beside it, and the one check that all of it
//! did.
//!
//! What lives here: [`World`], what it holds and its books. What does not: the operations that fail
//! (`operations`), the faults.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weighbridge::flat::{FlatHandle, FlatRegistry};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Account, Dtype, Error, Lease, SetHandle, WeightRegistry};

use crate::heap;
use crate::support::device::until;
use crate::support::{SOON, addition, bytes, tiny};

/// One test at a time: descriptors, threads and arenas are the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// The name and the bytes of every tensor of a set.
pub type Contents = Vec<(String, Vec<u8>)>;

/// Charged bytes of the sets that operations replace.
pub const TARGET: usize = 4096;
/// What no operation can leave behind without being seen: the names that they publish.
pub const NEW: [&str; 3] = ["new", "first", "second"];
pub const TENANT: &str = "tenant";
const LIMIT: u64 = 8 << 20;

/// What the process has of what can leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    descriptors: usize,
    threads: usize,
    pub arenas: usize,
}

impl Process {
    pub fn now() -> Self {
        Process {
            descriptors: descriptors(),
            threads: threads(),
            arenas: heap::arenas(),
        }
    }
}

/// Open descriptors, where the system tells.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Threads of the library's, where the system tells.
pub fn threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0;
    };
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names
        .filter(|name| name.starts_with("weighbridge-"))
        .count()
}

/// The process is this test's, also while it has children.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct World {
    pub registry: Arc<WeightRegistry>,
    pub flat: FlatRegistry,
    /// Sets that operations replace: of the default namespace, of a tenant, and an adapter.
    pub target: SetHandle,
    pub tenants: SetHandle,
    pub adapter: SetHandle,
    /// A checkpoint to stand on, and a set whose tensor others have as an alias.
    pub base: SetHandle,
    pub neighbour: SetHandle,
    tied: SetHandle,
    bias: FlatHandle,
    /// What every set has, as it was when it was published.
    served: Vec<(SetHandle, Contents)>,
    /// What the ledger has when everything is there.
    pub total: u64,
    before: Process,
    _alone: MutexGuard<'static, ()>,
}

/// All that a lease says of one of its sets.
pub fn contents(lease: &Lease, set: SetHandle) -> Contents {
    let weights = lease.set(set).unwrap().iter().map(Result::unwrap);
    let named = weights.map(|weight| (weight.name().to_owned(), weight.bytes().to_vec()));
    named.collect()
}

/// Sources of what the targets are.
pub fn original(of: &World, set: SetHandle) -> InMemory {
    match set {
        _ if set == of.target => bytes(TARGET, 1),
        _ if set == of.tenants => bytes(TARGET, 2),
        _ => addition(TARGET, 3, of.base),
    }
}

impl World {
    pub fn new() -> Self {
        let alone = alone();
        until("threads of the test before this one", || threads() == 0);
        let before = Process::now();
        let registry = WeightRegistry::builder()
            .limit_bytes(LIMIT)
            .build()
            .unwrap();
        let registry = Arc::new(registry);
        let flat = FlatRegistry::new(Arc::clone(&registry));
        let base = registry.publish("base", tiny()).unwrap();
        let neighbour = registry.publish("neighbour", bytes(2048, 4)).unwrap();
        let w = registry.weight_handle(neighbour, "w").unwrap();
        let tied = InMemory::new().alias("head", w).unwrap();
        let mut world = World {
            target: registry.publish("target", bytes(TARGET, 1)).unwrap(),
            tenants: registry
                .publish((TENANT, "target"), bytes(TARGET, 2))
                .unwrap(),
            adapter: registry
                .publish("adapter", addition(TARGET, 3, base))
                .unwrap(),
            tied: registry.publish("tied", tied).unwrap(),
            bias: flat
                .register("bias", Dtype::U8, [64], &[5; 64])
                .unwrap()
                .handle(),
            base,
            neighbour,
            total: registry.ledger().total(),
            served: Vec::new(),
            registry,
            flat,
            before,
            _alone: alone,
        };
        world.total = world.registry.ledger().total();
        world.served = (world.sets().iter())
            .map(|&set| (set, contents(&world.lease(set).unwrap(), set)))
            .collect();
        // The test knows the sum by itself.
        let known = tiny().plan().charged_bytes() + 2048 + 3 * TARGET as u64 + 64;
        assert_eq!(world.total, known);
        world.intact("at the beginning", None);
        world
    }

    fn sets(&self) -> [SetHandle; 7] {
        let World {
            target,
            tenants,
            adapter,
            base,
            neighbour,
            tied,
            bias,
            ..
        } = *self;
        [target, tenants, adapter, base, neighbour, tied, bias.set()]
    }

    /// An adapter is leased with its base.
    fn lease(&self, set: SetHandle) -> Result<Lease, Error> {
        if set == self.adapter {
            return self.registry.acquire([self.base, set]);
        }
        self.registry.acquire(set)
    }

    /// What is there is served, with the bytes that it always had.
    pub fn serves(&self, what: &str, but: Option<SetHandle>) {
        for (set, wanted) in &self.served {
            if but != Some(*set) {
                let lease = self
                    .lease(*set)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(
                    contents(&lease, *set) == *wanted,
                    "{what}: {set} has other bytes"
                );
            }
        }
        assert_eq!(self.flat.get(self.bias).unwrap().bytes(), [5; 64], "{what}");
    }

    /// Is everything as if nothing had been asked for? The one exception: a drained swap that fails after
    /// it gave up the memory of `may_be_empty`, which then says so. Returns whether it did.
    #[track_caller]
    pub fn intact(&self, what: &str, may_be_empty: Option<SetHandle>) -> bool {
        let empty =
            may_be_empty.filter(|&set| matches!(self.lease(set), Err(Error::NotResident { .. })));
        let gone = empty.map_or(0, |_| TARGET as u64);
        self.balanced(what, gone);
        self.serves(what, empty);
        // No name is kept, and no seat.
        for name in NEW {
            assert_eq!(self.registry.lookup(name), None, "{what}");
            assert_eq!(self.registry.lookup((TENANT, name)), None, "{what}");
            assert!(self.flat.lookup(name).is_none(), "{what}");
        }
        assert_eq!(self.registry.stats().sets, 7, "{what}");
        assert_eq!(self.registry.namespace_stats(TENANT).sets, 1, "{what}");
        assert_eq!(
            (self.flat.len(), self.flat.total_bytes()),
            (1, 64),
            "{what}"
        );
        for set in self.sets() {
            let leases = self
                .registry
                .scope(|scope| scope.get(set).unwrap().leases());
            assert_eq!(leases, 0, "{what}: a lease of {set} is left");
        }
        let now = Process::now();
        assert_eq!(
            now.descriptors, self.before.descriptors,
            "{what}: descriptors"
        );
        empty.is_some()
    }

    /// What is charged for sets is what the allocator gave out for them, also in the middle of an operation.
    pub fn charges_what_is_allocated(&self) {
        until("allocated, and charged", || {
            let ledger = self.registry.ledger();
            let arenas = (heap::arenas() - self.before.arenas) as u64;
            arenas == ledger.total() - ledger.reserved
        });
    }

    /// The ledger has what the test knows, `less` bytes less, and so has the allocator.
    #[track_caller]
    fn balanced(&self, what: &str, less: u64) {
        let registry = &self.registry;
        // Frees are another thread's.
        until(what, || {
            registry.ledger().retired == 0 && registry.retired().is_empty()
        });
        let ledger = registry.ledger();
        let all = (
            ledger.reserved,
            ledger.resident,
            ledger.kept,
            ledger.retired,
        );
        assert_eq!(all, (0, self.total - less, 0, 0), "{what}");
        let accounts: u64 = (registry.accounts().iter())
            .filter(|(account, _)| matches!(account, Account::Namespace(_)))
            .map(|(_, account)| account.total())
            .sum();
        assert_eq!(accounts, ledger.total(), "{what}: the accounts together");
        let arenas = (heap::arenas() - self.before.arenas) as u64;
        assert_eq!(arenas, ledger.total(), "{what}: allocated, and charged");
        assert!(ledger.peak <= LIMIT, "{what}");
    }

    /// Everything goes, and nothing is left of it in the process.
    #[track_caller]
    pub fn end(self) {
        let World {
            registry,
            flat,
            before,
            ..
        } = &self;
        flat.unregister(self.bias).unwrap();
        for set in [
            self.target,
            self.tenants,
            self.adapter,
            self.tied,
            self.neighbour,
            self.base,
        ] {
            registry.retire(set).unwrap();
        }
        for going in registry.retired() {
            going.reclaimed(SOON).unwrap();
        }
        assert_eq!(registry.ledger().total(), 0);
        assert!(registry.accounts().is_empty(), "{:?}", registry.accounts());
        assert_eq!(registry.stats().sets, 0);
        assert_eq!(heap::arenas(), before.arenas);
        let before = *before;
        let World {
            registry,
            flat,
            _alone,
            ..
        } = self;
        drop(flat);
        assert!(
            Arc::into_inner(registry).is_some(),
            "somebody has the registry"
        );
        until("the library's threads end", || threads() == before.threads);
        assert_eq!(Process::now(), before);
    }
}
