//! A forked child: whatever loads, changes or waits says so, reads work, and nothing hangs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weighbridge::source::Source;
use weighbridge::{
    Error, Filling, Generation, Lease, Plan, Retirement, SetHandle, Staged, Transaction,
    WeightRegistry,
};

use crate::support::{SOON, adapter, bytes, registry, tiny};

pub const CASES: &[(&str, fn())] = &[
    (
        "every_public_operation_is_in_the_tables",
        every_public_operation_is_in_the_tables,
    ),
    (
        "a_child_is_refused_whatever_it_must_not_do",
        a_child_is_refused_whatever_it_must_not_do,
    ),
    (
        "a_child_reads_what_its_parent_had",
        a_child_reads_what_its_parent_had,
    ),
    (
        "a_child_drops_what_it_has_in_any_order",
        a_child_drops_what_it_has_in_any_order,
    ),
    (
        "a_child_makes_a_registry_of_its_own",
        a_child_makes_a_registry_of_its_own,
    ),
    (
        "a_child_drops_a_registry_whose_locks_were_held",
        a_child_drops_a_registry_whose_locks_were_held,
    ),
];

/// Runs `child` in a forked child. It must come to its end, and not panic.
fn forked(what: &str, child: impl FnOnce()) {
    // SAFETY: the child uses what `fork` keeps whole: its own thread, and the allocator, which the C
    // library makes safe. It never returns into the parent's code.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: no memory is involved. A child that hangs is ended by the signal.
            unsafe { libc::alarm(60) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends this process; nothing of the parent's is run.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: our own child, and a place for its status.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(waited, pid);
            let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
            assert_ne!(signal, Some(libc::SIGALRM), "{what}: the child hung");
            assert_eq!(signal, None, "{what}: a signal ended the child");
            assert_eq!(libc::WEXITSTATUS(status), 0, "{what}: the child panicked");
        }
    }
}

/// One of everything, made before the fork.
struct Kit<'r> {
    registry: &'r WeightRegistry,
    set: SetHandle,
    number: Generation,
    base: SetHandle,
    adapter: SetHandle,
    /// Of a set that was retired; its generation is held by `held`.
    going: Retirement,
    held: Lease,
    staged: Vec<Staged>,
    fillings: Vec<Filling>,
    transaction: Option<Transaction<'r>>,
}

impl<'r> Kit<'r> {
    fn new(registry: &'r WeightRegistry) -> Self {
        let set = registry.publish("a", bytes(64, 1)).unwrap();
        let base = registry.publish("tiny", tiny()).unwrap();
        let adapter = registry
            .publish("pirate", adapter("pirate-v1", base))
            .unwrap();
        let gone = registry.publish("gone", bytes(64, 2)).unwrap();
        let held = registry.acquire_as("held", [set, gone]).unwrap();
        let going = registry.retire(gone).unwrap();
        let plan = || bytes(64, 3).plan().clone();
        let filling = |_| registry.fill(plan(), None).unwrap();
        let mut transaction = registry.transaction();
        let staged = registry.stage(bytes(64, 4)).unwrap();
        transaction.publish("claimed", staged).unwrap();
        Kit {
            number: held.set(set).unwrap().generation(),
            registry,
            set,
            base,
            adapter,
            going,
            held,
            staged: (0..8)
                .map(|_| registry.stage(bytes(64, 5)).unwrap())
                .collect(),
            fillings: (0..4).map(filling).collect(),
            transaction: Some(transaction),
        }
    }

    fn staged(&mut self) -> Staged {
        self.staged.pop().expect("enough for every case")
    }

    fn filling(&mut self) -> Filling {
        self.fillings.pop().expect("enough for every case")
    }

    fn transaction(&mut self) -> &mut Transaction<'r> {
        self.transaction.as_mut().expect("not committed yet")
    }
}

/// An operation's answer, as far as it matters: its error.
fn of<T, E: Into<Error>>(answer: Result<T, E>) -> Option<Error> {
    answer.err().map(Into::into)
}

type Refused = (&'static str, fn(&mut Kit<'_>) -> Option<Error>);

/// Whatever loads, changes or waits: by file and function in `src/registry`.
const REFUSED: &[Refused] = &[
    ("publish/stage", |kit| of(kit.registry.stage(bytes(1, 1)))),
    ("publish/publish", |kit| {
        of(kit.registry.publish("new", bytes(1, 1)))
    }),
    ("publish/publish", |kit| {
        of(kit.registry.publish("a", bytes(1, 1)))
    }),
    ("publish/publish_staged", |kit| {
        let staged = kit.staged();
        let failed = kit.registry.publish_staged("new", staged).err()?;
        let (error, staged) = failed.into_parts();
        assert!(staged.is_some(), "what was staged is lost");
        Some(error)
    }),
    ("publish/replace", |kit| {
        of(kit.registry.replace(kit.set, bytes(1, 1)))
    }),
    ("publish/replace_if", |kit| {
        of(kit.registry.replace_if(kit.set, kit.number, bytes(1, 1)))
    }),
    ("publish/replace_staged", |kit| {
        let staged = kit.staged();
        of(kit.registry.replace_staged(kit.set, staged))
    }),
    ("publish/replace_staged_if", |kit| {
        let staged = kit.staged();
        of(kit.registry.replace_staged_if(kit.set, kit.number, staged))
    }),
    ("publish/retire", |kit| of(kit.registry.retire(kit.set))),
    ("publish/retire_if", |kit| {
        of(kit.registry.retire_if(kit.set, kit.number))
    }),
    ("retirement/drained", |kit| {
        of(kit.going.drained(Duration::MAX))
    }),
    ("retirement/reclaimed", |kit| {
        of(kit.going.reclaimed(Duration::MAX))
    }),
    ("filling/fill", |kit| {
        let plan: Plan = bytes(1, 1).plan().clone();
        of(kit.registry.fill(plan, None))
    }),
    ("filling/writer", |kit| of(kit.fillings[0].writer("w"))),
    ("filling/seal", |kit| of(kit.filling().seal())),
    ("filling/seal_declared", |kit| {
        of(kit.filling().seal_declared("r"))
    }),
    ("transaction/stage", |kit| {
        of(kit.transaction().stage(bytes(1, 1)))
    }),
    ("transaction/publish", |kit| {
        let staged = kit.staged();
        of(kit.transaction().publish("new", staged))
    }),
    ("transaction/replace", |kit| {
        let (set, staged) = (kit.set, kit.staged());
        of(kit.transaction().replace(set, staged))
    }),
    ("transaction/replace_if", |kit| {
        let (set, number, staged) = (kit.set, kit.number, kit.staged());
        of(kit.transaction().replace_if(set, number, staged))
    }),
    ("transaction/retire", |kit| {
        let set = kit.set;
        of(kit.transaction().retire(set))
    }),
    ("transaction/retire_if", |kit| {
        let (set, number) = (kit.set, kit.number);
        of(kit.transaction().retire_if(set, number))
    }),
    ("transaction/commit", |kit| {
        of(kit.registry.transaction().commit())
    }),
    ("transaction/commit", |kit| {
        let failed = kit.transaction.take()?.commit().err()?;
        let &Error::Forked { made_in, now } = failed.error() else {
            panic!("{failed}")
        };
        assert_eq!(failed.into_staged().len(), 1, "what was staged is lost");
        Some(Error::Forked { made_in, now })
    }),
];

type Reads = (&'static str, &'static [&'static str], fn(&mut Kit<'_>));

/// Whatever looks at what is there already.
const READS: &[Reads] = &[
    ("mod", &["builder", "limit_bytes", "build"], |_| {
        WeightRegistry::builder().limit_bytes(1).build().unwrap();
    }),
    (
        "read",
        &[
            "acquire",
            "acquire_as",
            "weight_handle",
            "lookup",
            "scope",
            "reader",
            "number",
            "get",
            "refresh",
            "handle",
            "name",
            "kind",
            "generation",
            "identity",
            "layout",
            "bytes",
            "base",
            "leases",
        ],
        |kit| {
            let (registry, set) = (kit.registry, kit.set);
            assert_eq!(registry.lookup("a"), Some(set));
            let w = registry.weight_handle(set, "w").unwrap();
            let reader = registry.reader();
            let mut scope = reader.scope();
            let leases = [
                registry.acquire(set).unwrap(),
                registry.acquire_as("child", set).unwrap(),
                reader.acquire(set).unwrap(),
                reader.acquire_as("child", set).unwrap(),
                scope.acquire(set).unwrap(),
            ];
            for lease in &leases {
                assert_eq!(lease.weight(w).unwrap().bytes(), [1; 64]);
            }
            scope.refresh();
            assert!(scope.number() >= kit.number);
            let view = scope.get(set).unwrap();
            assert_eq!((view.handle(), view.generation()), (set, kit.number));
            assert_eq!(
                (view.name().name(), view.bytes(), view.base()),
                ("a", 64, None)
            );
            assert_eq!(view.leases(), 1 + leases.len() as u64);
            assert_eq!(view.weight_handle("w").unwrap(), w);
            let _ = (view.kind(), view.identity(), view.layout().len());
            assert_eq!(
                registry.scope(|scope| scope.get(set).unwrap().generation()),
                kit.number
            );
        },
    ),
    (
        "lease",
        &[
            "weight",
            "set",
            "sets",
            "number",
            "cache_key",
            "handle",
            "name",
            "kind",
            "generation",
            "identity",
            "layout",
            "bytes",
            "base",
            "get",
            "iter",
            "adapter",
            "len",
            "is_empty",
            "module",
            "modules",
            "position",
            "dtype",
            "shape",
            "info",
        ],
        |kit| {
            let pair = kit.registry.acquire([kit.base, kit.adapter]).unwrap();
            let both = pair.clone();
            assert_eq!(
                (pair.cache_key(), pair.number()),
                (both.cache_key(), both.number())
            );
            let view = both.set(kit.adapter).unwrap().adapter().unwrap();
            assert!(!view.is_empty());
            let first = view.module(0).unwrap();
            assert_eq!(view.position(first.module), Some(0));
            assert_eq!(view.modules().count(), view.len());
            assert_eq!(first.a.shape().len(), 2);
            let _ = (
                first.a.name(),
                first.a.dtype(),
                first.a.kind(),
                first.a.info(),
            );
            for set in both.sets() {
                assert!(set.iter().all(|weight| weight.is_ok()));
                let _ = (
                    set.kind(),
                    set.identity(),
                    set.layout(),
                    set.bytes(),
                    set.base(),
                );
            }
            // What the parent held, labelled.
            let held = kit.held.clone();
            let gone = held.set(kit.going.set()).unwrap();
            assert_eq!(gone.get("w").unwrap().bytes(), [2; 64]);
            assert_eq!(
                (gone.handle(), gone.name().name()),
                (kit.going.set(), "gone")
            );
            assert_eq!(gone.generation(), kit.going.generation());
        },
    ),
    (
        "catalog",
        &[
            "number", "entries", "get", "catalog", "stats", "ledger", "retired",
        ],
        |kit| {
            let catalog = kit.registry.catalog();
            assert_eq!(catalog.entries().len(), 3);
            assert_eq!(catalog.number().number(), kit.registry.stats().commits);
            assert_eq!(catalog.get("a").unwrap().generation, kit.number);
            assert_eq!(kit.registry.ledger().retired, 64);
            assert_eq!(kit.registry.retired().len(), 1);
        },
    ),
    (
        "retirement",
        &[
            "name",
            "set",
            "generation",
            "bytes",
            "leases",
            "holders",
            "is_drained",
            "is_reclaimed",
        ],
        |kit| {
            let going = &kit.going;
            assert_eq!((going.bytes(), going.leases()), (64, 1));
            assert_eq!(going.holders()[0].label, "held");
            assert!(!going.is_drained() && !going.is_reclaimed());
            let _ = (going.name(), going.set(), going.generation());
        },
    ),
    (
        "staged",
        &[
            "identity",
            "plan",
            "bytes",
            "error",
            "into_staged",
            "into_parts",
        ],
        |kit| {
            let staged = kit.staged();
            let _ = (staged.identity(), staged.plan());
            let failed = kit.registry.publish_staged("new", staged).unwrap_err();
            assert!(failed.error().is_misuse());
            let staged = failed.into_staged().unwrap();
            assert_eq!(staged.bytes(), 64);
        },
    ),
    (
        "filling",
        &["plan", "remaining", "write", "error", "into_filling"],
        |kit| {
            let filling = kit.filling();
            let failed = filling.seal().unwrap_err();
            assert!(failed.error().is_misuse());
            assert_eq!(failed.into_filling().plan().tensors().len(), 1);
        },
    ),
    (
        "transaction",
        &["transaction", "error", "step", "into_staged"],
        |kit| {
            let failed = kit.registry.transaction().commit().unwrap_err();
            assert!(failed.error().is_misuse());
            assert_eq!((failed.step(), failed.into_staged().len()), (0, 0));
        },
    ),
];

/// The public functions of a source file.
fn public_functions(text: &str) -> BTreeSet<&str> {
    let words = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub fn "));
    words
        .filter_map(|rest| {
            rest.split(|at: char| at != '_' && !at.is_alphanumeric())
                .next()
        })
        .collect()
}

fn every_public_operation_is_in_the_tables() {
    let rooms = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry")).unwrap();
    let mut found = 0;
    for room in rooms {
        let path = room.unwrap().path();
        let (Some(file), Ok(text)) = (path.file_stem(), std::fs::read_to_string(&path)) else {
            continue;
        };
        let file = file.to_str().unwrap();
        let refused = REFUSED.iter().filter_map(|(name, _)| name.split_once('/'));
        let mut known: BTreeSet<&str> = refused
            .filter_map(|(room, name)| (room == file).then_some(name))
            .collect();
        let reads = READS.iter().filter(|(room, ..)| *room == file);
        known.extend(reads.flat_map(|(_, names, _)| names.iter()));
        let public = public_functions(&text);
        assert_eq!(
            public,
            known,
            "src/registry/{file}.rs on the left: say in {} whether a forked child may call what is new",
            file!()
        );
        found += public.len();
    }
    assert!(
        found >= REFUSED.len() + READS.len(),
        "only {found} functions were found"
    );
}

fn a_child_is_refused_whatever_it_must_not_do() {
    let registry = registry();
    let parent = std::process::id();
    let mut kit = Kit::new(&registry);
    let before = registry.stats();
    forked("the operations", || {
        for (name, operation) in REFUSED {
            let error = operation(&mut kit);
            let now = std::process::id();
            assert!(
                matches!(error, Some(Error::Forked { made_in, now: here }) if made_in == parent && here == now),
                "{name} answered {error:?}"
            );
        }
        assert_eq!(
            kit.registry.stats().commits,
            before.commits,
            "something was changed"
        );
        assert_eq!(kit.registry.lookup("new"), None);
    });
    // The parent has not noticed.
    assert_eq!(registry.stats(), before);
    let set = kit.transaction.take().unwrap().commit().unwrap().published[0];
    registry
        .replace(set, bytes(64, 9))
        .unwrap()
        .previous
        .reclaimed(SOON)
        .unwrap();
    drop(kit.held);
    kit.going.reclaimed(SOON).unwrap();
}

fn a_child_reads_what_its_parent_had() {
    let registry = registry();
    let mut kit = Kit::new(&registry);
    forked("the reads", || {
        for (_, _, read) in READS {
            read(&mut kit);
        }
    });
    // A writer that was made before the fork writes the child's own copy; only the seal says no.
    let filling = kit.filling();
    let mut writer = filling.writer("w").unwrap();
    forked("a writer", || {
        writer.write(&[1; 10]).unwrap();
        assert_eq!(writer.remaining(), 54);
        drop(writer);
    });
}

fn a_child_drops_what_it_has_in_any_order() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0]] {
        let registry = registry();
        let set = registry.publish("a", bytes(2 << 20, 1)).unwrap();
        let gone = registry.publish("b", bytes(64, 1)).unwrap();
        let mut leases = vec![
            registry.acquire(set).unwrap(),
            registry.acquire_as("labelled", [set, gone]).unwrap(),
        ];
        let mut going = vec![registry.retire(gone).unwrap()];
        let mut registry = Some(registry);
        forked("drops", || {
            for part in order {
                match part {
                    0 => registry = None,
                    1 => leases.clear(),
                    _ => going.clear(),
                }
            }
        });
        leases.clear();
        going[0].reclaimed(SOON).unwrap();
    }
}

fn a_child_makes_a_registry_of_its_own() {
    let old = registry();
    let set = old.publish("a", bytes(64, 1)).unwrap();
    drop(old.acquire(set).unwrap());
    forked("a new registry", || {
        let new = registry();
        // The C library gives the new reclaimer the stack, and the name, of the one that stayed in the
        // parent.
        drop(old);
        let set = new.publish("a", bytes(64, 2)).unwrap();
        let going = new.retire(set).unwrap();
        going.reclaimed(SOON).unwrap();
        drop(new);
    });
}

/// Threads of the parent are inside of the registry when it forks: their locks are held for ever in
/// the child.
fn a_child_drops_a_registry_whose_locks_were_held() {
    const FORKS: usize = 60;
    let shared = registry();
    let set = shared.publish("a", bytes(64, 1)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = shared.ledger();
            }
        });
        for _ in 0..FORKS {
            forked("held locks", || {
                // SAFETY: the child's copy is dropped once, and never used again: it ends here.
                drop(unsafe { std::ptr::read(&raw const shared) });
            });
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(shared.lookup("a"), Some(set));
}
