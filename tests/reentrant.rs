//! User code that the registry calls may call the registry: no lock is held meanwhile, and none of
//! the map of names leaves the room it lives in.

mod support;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak, mpsc};
use std::{fmt, io, thread};

use support::{SOON, bytes, ends, registry};
use weighbridge::source::{Evictable, InMemory, Reload, Source};
use weighbridge::{Error, NameRef, Plan, SetHandle, SetName, WeightRegistry};

/// Enough that every shard of every map meets every other one's names.
const NAMES: usize = 300;

fn name(number: usize) -> String {
    format!("set-{number}")
}

/// Every kind of call, under names of its own.
fn call_everything(registry: &WeightRegistry, own: &str) {
    let set = registry.publish(own, bytes(64, 1)).unwrap();
    assert_eq!(registry.lookup(own), Some(set));
    let lease = registry.acquire_as(own, set).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    assert_eq!(lease.weight(w).unwrap().bytes(), [1; 64]);
    let swap = registry.replace(set, bytes(64, 2)).unwrap();
    assert!(registry.catalog().get(own).is_some());
    assert!(registry.stats().sets > 0 && !registry.retired().is_empty());
    let mut transaction = registry.transaction();
    let staged = transaction.stage(bytes(64, 3)).unwrap();
    transaction.replace(set, staged).unwrap();
    transaction.commit().unwrap();
    drop(lease);
    swap.previous.reclaimed(SOON).unwrap();
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.lookup(own), None);
}

/// A source that calls the registry from wherever the registry calls it.
struct Caller<'r> {
    set: InMemory,
    registry: &'r WeightRegistry,
    own: String,
    calls: Cell<usize>,
}

impl<'r> Caller<'r> {
    fn new(registry: &'r WeightRegistry, own: String) -> Self {
        Caller {
            set: bytes(64, 7),
            registry,
            own,
            calls: Cell::new(0),
        }
    }

    fn call(&self) {
        self.calls.set(self.calls.get() + 1);
        call_everything(self.registry, &self.own);
    }
}

impl Source for Caller<'_> {
    fn plan(&self) -> &Plan {
        self.call();
        self.set.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.call();
        self.set.read_into(arena)
    }

    fn declared(&self) -> Option<&str> {
        self.call();
        None
    }

    fn base(&self) -> Option<SetHandle> {
        self.call();
        None
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.call();
        assert!(
            self.calls.get() >= 5,
            "asked in {} places only",
            self.calls.get()
        );
    }
}

impl From<Caller<'_>> for SetName {
    fn from(caller: Caller<'_>) -> Self {
        (0..4).for_each(|_| caller.call());
        SetName::from(format!("{} named", caller.own))
    }
}

impl From<&Caller<'_>> for NameRef<'_> {
    fn from(caller: &Caller<'_>) -> Self {
        caller.call();
        NameRef::from("nobody")
    }
}

struct Sets<'r>(SetHandle, &'r WeightRegistry, String);

impl AsRef<[SetHandle]> for Sets<'_> {
    fn as_ref(&self) -> &[SetHandle] {
        call_everything(self.1, &self.2);
        self.0.as_ref()
    }
}

fn call_from_everywhere(registry: &WeightRegistry, thread: usize) {
    let own = |number: usize| format!("{} of {thread}", name(number));
    let stays = registry.publish(own(0).as_str(), bytes(64, 1)).unwrap();
    for number in 1..NAMES / 10 {
        let caller = || Caller::new(registry, format!("{} called", own(number)));
        let set = registry.publish(own(number), caller()).unwrap();
        registry.replace(set, caller()).unwrap();
        let mut transaction = registry.transaction();
        let staged = transaction.stage(caller()).unwrap();
        transaction.replace(set, staged).unwrap();
        // With a name claimed, and one to be retired.
        let staged = transaction.stage(caller()).unwrap();
        let named = transaction.publish(caller(), staged).unwrap();
        let done = transaction.commit().unwrap();
        assert_eq!(done.published, [named]);
        registry.retire(named).unwrap();
        registry.retire(set).unwrap();
        let asked = caller();
        assert_eq!(registry.lookup(&asked), None);
        (0..4).for_each(|_| asked.call());
        drop(asked);
        let sets = || Sets(stays, registry, format!("{} leased", own(number)));
        registry.acquire(sets()).unwrap();
        registry.reader().acquire(sets()).unwrap();
        registry.scope(|scope| {
            // Pinned all the while: bytes come back all the same.
            call_everything(registry, &own(number));
            scope.acquire(sets()).unwrap();
        });
    }
    registry.retire(stays).unwrap();
}

#[test]
fn user_code_may_call_the_registry_that_calls_it() {
    ends("one thread", || {
        let registry = registry();
        call_from_everywhere(&registry, 0);
        assert_eq!(registry.stats().sets, 0);
    });
}

#[test]
fn user_code_of_several_threads_may_call_the_registry_that_calls_it() {
    const THREADS: usize = 4;
    ends("several threads", || {
        let registry = Arc::new(registry());
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (registry, start) = (&registry, &start);
                scope.spawn(move || {
                    start.wait();
                    call_from_everywhere(registry, thread);
                });
            }
        });
        assert_eq!(registry.stats().sets, 0);
        for going in registry.retired() {
            going.reclaimed(SOON).unwrap();
        }
        assert_eq!(registry.ledger().total(), 0);
    });
}

/// Calls the registry when it is asked how it is read again, and when it is.
struct Again {
    registry: Weak<WeightRegistry>,
    other: SetHandle,
    own: &'static str,
    calls: Arc<AtomicUsize>,
}

impl Again {
    fn call(&self) {
        let registry = self.registry.upgrade().unwrap();
        self.calls.fetch_add(1, Ordering::Relaxed);
        call_everything(&registry, self.own);
        assert!(registry.catalog().get("other").is_some());
        assert!(registry.acquire(self.other).is_ok());
    }
}

impl Reload for Again {
    fn reopen(&self, read: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        self.call();
        let registry = self.registry.upgrade().unwrap();
        let own = registry.lookup("s").unwrap();
        let away = registry.acquire(own).unwrap_err();
        assert!(matches!(away, Error::NotResident { .. }), "{away}");
        // Other sets go and come back meanwhile, but not by whoever is being read.
        assert_eq!(registry.load(self.other).unwrap(), 0);
        registry.evict(self.other).unwrap();
        let refused = registry.load(self.other).unwrap_err();
        assert!(matches!(refused, Error::LoadInsideLoad), "{refused}");
        std::thread::scope(|threads| {
            let elsewhere = threads.spawn(|| registry.load(self.other));
            elsewhere.join().unwrap().unwrap();
        });
        (0..3).for_each(|_| self.call());
        let caller = Caller::new(&registry, format!("{} read", self.own));
        let read = read(&caller);
        assert!(caller.calls.get() >= 3, "plan, contents, who vouches");
        (0..2).for_each(|_| caller.call());
        self.call();
        read
    }
}

struct CallsAgain(InMemory, Arc<Again>);

impl Source for CallsAgain {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.0.read_into(arena)
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        self.1.call();
        Some(Arc::clone(&self.1) as Arc<dyn Reload>)
    }
}

#[test]
fn what_is_read_again_may_call_the_registry() {
    ends("evicted and loaded", || {
        let registry = Arc::new(registry());
        let other = Evictable::new(bytes(64, 1));
        let other = registry.publish("other", other).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let again = Again {
            registry: Arc::downgrade(&registry),
            other,
            own: "again",
            calls: Arc::clone(&calls),
        };
        let source = CallsAgain(bytes(64, 7), Arc::new(again));
        let set = registry.publish("s", source).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1, "when it was asked");
        for _ in 0..2 {
            registry.evict(set).unwrap();
            registry.load(set).unwrap();
        }
        assert_eq!(calls.load(Ordering::Relaxed), 11, "whenever it was read");
        assert!(registry.acquire(set).is_ok());
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        registry.retire(other).unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().total(), 0);
    });
}

/// A foreign error that asks the registry when it ends.
#[derive(Debug)]
struct Asks {
    registry: Weak<WeightRegistry>,
    by: mpsc::Sender<thread::ThreadId>,
}

impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store does not answer")
    }
}

impl std::error::Error for Asks {}

impl Drop for Asks {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.retired();
        }
        let _ = self.by.send(thread::current().id());
    }
}

/// Cannot be read again, for such a reason.
struct Gone(Mutex<Option<Asks>>);

impl Reload for Gone {
    fn reopen(&self, _: &mut dyn FnMut(&dyn Source) -> Result<(), Error>) -> Result<(), Error> {
        let asks = self.0.lock().unwrap().take().expect("asked once");
        Err(Error::Io {
            path: "store".into(),
            op: "read",
            source: io::Error::other(asks),
        })
    }
}

struct CannotComeBack(InMemory, Arc<Gone>);

impl Source for CannotComeBack {
    fn plan(&self) -> &Plan {
        self.0.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.0.read_into(arena)
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        Some(Arc::clone(&self.1) as Arc<dyn Reload>)
    }
}

/// A set's record has the cause of its last failed load, and ends with whoever has it last. That is often
/// the list of what goes: what is forgotten there must not end under its lock.
#[test]
fn the_end_of_a_foreign_error_may_ask_what_goes() {
    ends("forgotten", || {
        let registry = Arc::new(registry());
        let (by, ended) = mpsc::channel();
        let here = thread::current().id();
        loop {
            let asks = Asks {
                registry: Arc::downgrade(&registry),
                by: by.clone(),
            };
            let gone = Arc::new(Gone(Mutex::new(Some(asks))));
            let set = registry.publish("s", CannotComeBack(bytes(64, 7), gone));
            let set = set.unwrap();
            registry.evict(set).unwrap();
            let refused = registry.load(set).unwrap_err();
            assert!(refused.to_string().contains("does not answer"), "{refused}");
            drop(refused);
            registry.retire(set).unwrap().reclaimed(SOON).unwrap();
            // Give the reclaimer time to end the generation's own share, so that the list's is the last.
            (0..100).for_each(|_| thread::yield_now());
            registry.retired();
            if ended.recv_timeout(SOON).unwrap() == here {
                return; // It ended within our own call, and that came back.
            }
        }
    });
}

#[test]
fn transactions_hold_names_and_not_the_map_of_names() {
    ends("claims", || {
        let registry = registry();
        let mut transaction = registry.transaction();
        for number in 0..NAMES {
            let staged = registry.stage(bytes(64, 1)).unwrap();
            transaction.publish(name(number), staged).unwrap();
            // Whatever shard the claims are in, other names of it are free to come and go.
            call_everything(&registry, &format!("another-{number}"));
        }
        let taken = registry.publish(name(0), bytes(64, 1)).unwrap_err();
        assert!(matches!(taken.error(), Error::NameBusy { .. }));
        drop(taken);
        transaction.commit().unwrap();
        assert_eq!(registry.stats().sets, NAMES);
    });
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The map's guards are locks. They stay in one file, whose own test shows that it returns none
/// (`what_comes_out_is_owned` in `src/sync/map.rs`).
#[test]
fn the_map_of_names_is_known_to_one_file() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let knows = |path: &&PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let code = |line: &&str| !line.trim_start().starts_with("//");
        text.lines()
            .filter(code)
            .any(|line| line.to_lowercase().contains("dashmap"))
    };
    let who: Vec<_> = all.iter().filter(knows).collect();
    assert_eq!(who.len(), 1, "{who:?}");
    assert!(who[0].ends_with("src/sync/map.rs"), "{who:?}");
    let map = std::fs::read_to_string(who[0]).unwrap();
    assert!(map.contains("fn what_comes_out_is_owned()"));
    // Every function of the map is in that test.
    let (real, tests) = map.split_once("mod tests").unwrap();
    let functions = real.split("pub fn ").skip(1);
    let names = functions.filter_map(|rest| rest.split('(').next());
    let mut seen = 0;
    for function in names {
        assert!(
            tests.contains(&format!("{function}(")),
            "{function} is not in its test"
        );
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} functions were found");
}

/// What names the sets may make them first: it is asked before anything is looked at.
#[test]
fn what_names_the_sets_may_publish_them() {
    struct Late<'r>(&'r WeightRegistry, &'r str, std::sync::OnceLock<SetHandle>);
    impl AsRef<[SetHandle]> for Late<'_> {
        fn as_ref(&self) -> &[SetHandle] {
            let Late(registry, name, made) = self;
            let publish = || registry.publish(*name, bytes(1, 1)).unwrap();
            std::slice::from_ref(made.get_or_init(publish))
        }
    }
    let registry = registry();
    let late = |name| Late(&registry, name, std::sync::OnceLock::new());
    registry.acquire(late("a")).unwrap();
    registry.reader().acquire(late("b")).unwrap();
    let tenant = registry.namespace("tenant").unwrap();
    tenant.acquire(late("c")).unwrap();
}
