//! Panics in every kind of user code: nothing is left behind, nothing is locked, everything else goes
//! on.

mod support;

use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use support::{SOON, adapter, addition, bytes, registry, tiny};
use weighbridge::source::{InMemory, Reload, Source};
use weighbridge::{Error, NameRef, Plan, SetHandle, SetName, Staged, Stats, WeightRegistry};

/// Runs `f`, which must panic, and checks that `registry` is as it was before.
#[track_caller]
fn panics<R>(registry: &WeightRegistry, what: &str, f: impl FnOnce() -> R) {
    let counts = |stats: Stats| (stats.sets, stats.commits, stats.layouts);
    let totals = |registry: &WeightRegistry| {
        let now = registry.ledger();
        (now.reserved, now.resident, now.retired)
    };
    let before = (counts(registry.stats()), totals(registry));
    let catalog = registry.catalog();
    assert!(
        catch_unwind(AssertUnwindSafe(f)).is_err(),
        "{what}: it did not panic"
    );
    assert_eq!(
        (counts(registry.stats()), totals(registry)),
        before,
        "{what}"
    );
    assert_eq!(registry.catalog().number(), catalog.number(), "{what}");
    for entry in catalog.entries() {
        let lease = registry.acquire(entry.handle).unwrap();
        assert_eq!(
            lease.set(entry.handle).unwrap().generation(),
            entry.generation
        );
    }
}

/// Every way on: a publish under `free`, a replace of `set`, both again, together.
fn goes_on(registry: &WeightRegistry, free: &str, set: SetHandle) {
    let new = registry.publish(free, bytes(64, 1)).unwrap();
    registry
        .replace(set, bytes(64, 2))
        .unwrap()
        .previous
        .reclaimed(SOON)
        .unwrap();
    let mut both = registry.transaction();
    both.replace(set, registry.stage(bytes(64, 3)).unwrap())
        .unwrap();
    both.retire(new).unwrap();
    for previous in both.commit().unwrap().previous {
        previous.reclaimed(SOON).unwrap();
    }
    assert_eq!(registry.lookup(free), None);
}

/// Where a source panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Plan,
    Base,
    ReadInto,
    Declared,
    Reload,
    Drop,
    /// When it is dropped after it could not be read.
    DropAfterError,
}

const EVERYWHERE: [At; 7] = [
    At::Plan,
    At::Base,
    At::ReadInto,
    At::Declared,
    At::Reload,
    At::Drop,
    At::DropAfterError,
];

struct Bomb {
    set: InMemory,
    at: At,
}

impl Bomb {
    fn go_off(&self, here: At) {
        assert!(self.at != here, "on purpose");
    }
}

impl Source for Bomb {
    fn plan(&self) -> &Plan {
        self.go_off(At::Plan);
        self.set.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        arena.fill(0xAA);
        self.go_off(At::ReadInto);
        if self.at == At::DropAfterError {
            return Err(Error::MissingShard {
                file: "made up".into(),
            });
        }
        self.set.read_into(arena)
    }

    fn declared(&self) -> Option<&str> {
        self.go_off(At::Declared);
        Source::declared(&self.set)
    }

    fn base(&self) -> Option<SetHandle> {
        self.go_off(At::Base);
        self.set.base()
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        self.go_off(At::Reload);
        None
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.go_off(At::Drop);
            self.go_off(At::DropAfterError);
        }
    }
}

type Load = (&'static str, fn(&WeightRegistry, SetHandle, Bomb));

/// Every call that takes a source.
const LOADS: &[Load] = &[
    ("stage", |registry, _, bomb| drop(registry.stage(bomb))),
    ("publish", |registry, _, bomb| {
        drop(registry.publish("new", bomb))
    }),
    ("publish, in a namespace", |registry, _, bomb| {
        drop(registry.publish(("tenant", "new"), bomb));
    }),
    ("replace", |registry, set, bomb| {
        drop(registry.replace(set, bomb))
    }),
    ("replace_if", |registry, set, bomb| {
        let now = registry.scope(|scope| scope.get(set).unwrap().generation());
        drop(registry.replace_if(set, now, bomb));
    }),
    ("a transaction", |registry, set, bomb| {
        let mut transaction = registry.transaction();
        let staged = transaction.stage(bytes(64, 1)).unwrap();
        transaction.publish("new", staged).unwrap();
        transaction.retire(set).unwrap();
        let staged = transaction.stage(bomb);
        let _ = transaction.publish("second", staged.unwrap());
        let _ = transaction.commit();
    }),
];

#[test]
fn a_source_may_panic_wherever_it_is_asked() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    for at in EVERYWHERE {
        for (name, load) in LOADS {
            // What is there is a checkpoint: an adapter is refused before its plan is asked for.
            let replaces = name.starts_with("replace");
            for base in [None, (!replaces).then_some(base)] {
                let source = match base {
                    Some(base) => addition(4096, 7, base),
                    None => bytes(4096, 7),
                };
                let bomb = Bomb { set: source, at };
                let what = format!("{name}, {at:?}, base {base:?}");
                panics(&registry, &what, || load(&registry, set, bomb));
            }
            goes_on(&registry, "new", set);
        }
    }
    // A name that is taken: only its plan is looked at.
    let bomb = Bomb {
        set: bytes(64, 1),
        at: At::Plan,
    };
    panics(&registry, "taken", || registry.publish("a", bomb));
    goes_on(&registry, "new", set);
}

struct BadName;

impl From<BadName> for SetName {
    fn from(_: BadName) -> Self {
        panic!("on purpose")
    }
}

impl From<BadName> for NameRef<'_> {
    fn from(_: BadName) -> Self {
        panic!("on purpose")
    }
}

struct BadSets;

impl AsRef<[SetHandle]> for BadSets {
    fn as_ref(&self) -> &[SetHandle] {
        panic!("on purpose")
    }
}

/// Panics when it is dropped, after the lease was taken.
struct BadEnd(SetHandle);

impl AsRef<[SetHandle]> for BadEnd {
    fn as_ref(&self) -> &[SetHandle] {
        self.0.as_ref()
    }
}

impl Drop for BadEnd {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "on purpose");
    }
}

#[test]
fn what_names_the_sets_may_panic_when_it_is_dropped() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let reader = registry.reader();
    let scope = reader.scope();
    panics(&registry, "acquire", || registry.acquire(BadEnd(set)));
    panics(&registry, "acquire_as", || {
        registry.acquire_as("x", BadEnd(set))
    });
    panics(&registry, "a reader", || reader.acquire(BadEnd(set)));
    let tenant = registry.namespace("tenant").unwrap();
    panics(&registry, "a namespace", || tenant.acquire(BadEnd(set)));
    panics(&registry, "a namespace's label", || {
        tenant.acquire_as("x", BadEnd(set))
    });
    panics(&registry, "a reader's label", || {
        reader.acquire_as("x", BadEnd(set))
    });
    panics(&registry, "a scope", || scope.acquire(BadEnd(set)));
    assert_eq!(scope.get(set).unwrap().leases(), 0, "a lease was lost");
    drop(scope);
    goes_on(&registry, "new", set);
}

#[test]
fn conversions_may_panic() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let staged = || registry.stage(bytes(64, 2)).unwrap();
    panics(&registry, "publish", || {
        registry.publish(BadName, bytes(64, 2))
    });
    panics(&registry, "publish_staged", || {
        registry.publish_staged(BadName, staged())
    });
    panics(&registry, "lookup", || registry.lookup(BadName));
    panics(&registry, "the catalog's look-up", || {
        registry.catalog().get(BadName).is_some()
    });
    panics(&registry, "acquire", || registry.acquire(BadSets));
    panics(&registry, "acquire_as", || {
        registry.acquire_as("x", BadSets)
    });
    let reader = registry.reader();
    panics(&registry, "a reader's acquire", || reader.acquire(BadSets));
    let scope = reader.scope();
    panics(&registry, "a scope's acquire", || scope.acquire(BadSets));
    drop(scope);
    let mut transaction = registry.transaction();
    panics(&registry, "a transaction's publish", || {
        transaction.publish(BadName, staged())
    });
    // It goes on without that step.
    transaction.replace(set, staged()).unwrap();
    let done = transaction.commit().unwrap();
    assert_eq!((done.published.len(), done.previous.len()), (0, 1));
    goes_on(&registry, "new", set);
}

#[test]
fn code_in_a_scope_may_panic() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    panics(&registry, "a scope", || {
        registry.scope(|_| panic!("on purpose"))
    });
    panics(&registry, "a scope in a scope", || {
        registry.scope(|outer| {
            let lease = outer.acquire(set).unwrap();
            registry.scope(|_| panic!("on purpose {lease:?}"))
        })
    });
    panics(&registry, "a refreshed scope of a reader", || {
        let reader = registry.reader();
        let mut scope = reader.scope();
        scope.refresh();
        panic!("on purpose")
    });
    // Nobody is pinned: what is superseded goes.
    goes_on(&registry, "new", set);
}

#[test]
fn a_transaction_that_is_unwound_leaves_no_trace() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    panics(&registry, "a transaction", || {
        let mut transaction = registry.transaction();
        let staged = transaction.stage(tiny()).unwrap();
        let new = transaction.publish("new base", staged).unwrap();
        let staged = transaction.stage(adapter("pirate-v1", new)).unwrap();
        transaction.publish("new", staged).unwrap();
        transaction.retire(base).unwrap();
        panic!("on purpose")
    });
    assert_eq!(registry.lookup("new base"), None);
    goes_on(&registry, "new base", set);
    goes_on(&registry, "new", set);
}

#[test]
fn staged_sets_and_fillings_that_are_unwound_leave_no_trace() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    panics(&registry, "staged", || {
        let _staged: Staged = registry.stage(bytes(4096, 1)).unwrap();
        panic!("on purpose")
    });
    panics(&registry, "one writer's thread of two", || {
        let plan = InMemory::new()
            .tensor("a", weighbridge::Dtype::U8, [64], [0; 64])
            .and_then(|set| set.tensor("b", weighbridge::Dtype::U8, [64], [0; 64]));
        let filling = registry.fill(plan.unwrap().plan().clone(), None).unwrap();
        std::thread::scope(|scope| {
            let mut writer = filling.writer("a").unwrap();
            scope.spawn(move || writer.write(&[1; 64]).unwrap());
            let mut writer = filling.writer("b").unwrap();
            scope.spawn(move || {
                writer.write(&[1; 32]).unwrap();
                panic!("on purpose")
            });
        });
    });
    goes_on(&registry, "new", set);
}

/// Takes `left` writes and then panics.
struct BadSink {
    left: usize,
}

impl Write for BadSink {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        assert!(self.left > 0, "on purpose");
        self.left -= 1;
        Ok(())
    }
}

#[test]
fn formatting_may_panic_at_every_write() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let gone = registry.publish("gone", bytes(64, 1)).unwrap();
    let lease = registry.acquire_as("held", [set, gone]).unwrap();
    let going = registry.retire(gone).unwrap();
    let staged = registry.stage(bytes(64, 1)).unwrap();
    let filling = registry.fill(staged.plan().clone(), None).unwrap();
    let writer = filling.writer("w").unwrap();
    let mut transaction = registry.transaction();
    transaction.retire(set).unwrap();
    let late = going.drained(std::time::Duration::ZERO).unwrap_err();
    let reader = registry.reader();
    let scope = reader.scope();
    let view = scope.get(set).unwrap();
    let leased = lease.set(set).unwrap();
    let weight = leased.get("w").unwrap();
    let catalog = registry.catalog();
    let things: &[&dyn fmt::Debug] = &[
        &registry,
        &lease,
        &going,
        &staged,
        &filling,
        &writer,
        &transaction,
        &late,
        &view,
        &leased,
        &weight,
        &catalog,
        &set,
    ];
    for thing in things {
        let mut panicked = 0;
        // As many writes as it takes, and one of them panics.
        while catch_unwind(AssertUnwindSafe(|| {
            write!(BadSink { left: panicked }, "{thing:?}").unwrap();
        }))
        .is_err()
        {
            panicked += 1;
            // Nothing is locked.
            assert_eq!(registry.stats().sets, 1);
            assert_eq!(registry.retired().len(), 1);
        }
        assert!(panicked > 0, "{thing:?}");
    }
    let text = format!("{late}");
    assert!(text.contains("held"));
    drop(writer);
    drop((filling, staged, transaction, lease));
    going.reclaimed(SOON).unwrap();
    goes_on(&registry, "new", set);
}
