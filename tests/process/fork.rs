//! A forked child: whatever loads, changes or waits says so, reads work, and nothing hangs.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use weighbridge::policy::{Candidate, Lru, Policy};
use weighbridge::source::{Evictable, Source, Streamed};
use weighbridge::{
    Account, AcquireOrLoad, Demand, Error, Filling, Generation, Lease, Namespace, NamespaceLimits,
    NamespaceTransaction, Next, Order, Parts, Plan, Retirement, SetHandle, Staged, Stream,
    Subscription, Transaction, WeightRegistry, WindowSize, fence,
};

use crate::support::device::until;
use crate::support::{SOON, adapter, addition, block_on, bytes, registry, tiny};

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
        "a_child_gives_leases_away_and_keeps_them",
        a_child_gives_leases_away_and_keeps_them,
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
    (
        "a_child_is_refused_what_its_parent_waits_for",
        a_child_is_refused_what_its_parent_waits_for,
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
    /// One without bytes.
    away: SetHandle,
    number: Generation,
    base: SetHandle,
    adapter: SetHandle,
    /// Of a set that was retired; its generation is held by `held`.
    going: Retirement,
    held: Lease,
    staged: Vec<Staged>,
    fillings: Vec<Filling>,
    transaction: Option<Transaction<'r>>,
    tenant: Namespace<'r>,
    /// The tenant's set, its generation, and an adapter of the tenant's on `base`.
    own: SetHandle,
    own_number: Generation,
    own_adapter: SetHandle,
    own_transaction: Option<NamespaceTransaction<'r>>,
    events: Subscription,
    streaming: Arc<WeightRegistry>,
    streamed: SetHandle,
    streamed_lease: Lease,
    stream: Stream,
    /// It has entered a part.
    entered: Stream,
}

impl<'r> Kit<'r> {
    fn new(registry: &'r WeightRegistry) -> Self {
        let set = registry.publish("a", bytes(64, 1)).unwrap();
        let away = registry.publish("away", Evictable::new(bytes(64, 8)));
        let away = away.unwrap();
        registry.evict(away).unwrap();
        let base = registry.publish("tiny", tiny()).unwrap();
        let adapter = registry
            .publish("pirate", adapter("pirate-v1", base))
            .unwrap();
        let gone = registry.publish("gone", bytes(64, 2)).unwrap();
        let held = registry.acquire_as("held", [set, gone]).unwrap();
        let tenant = registry.namespace("tenant").unwrap();
        let own = tenant.publish("own", bytes(64, 6)).unwrap();
        let on_base = addition(64, 7, base);
        let own_adapter = tenant.publish("adapter", on_base).unwrap();
        // It has one event to read: that `gone` goes.
        let events = registry.events();
        let going = registry.retire(gone).unwrap();
        let plan = || bytes(64, 3).plan().clone();
        let filling = |_| registry.fill(plan(), None).unwrap();
        let mut transaction = registry.transaction();
        let staged = registry.stage(bytes(64, 4)).unwrap();
        transaction.publish("claimed", staged).unwrap();
        let streaming = Arc::new(WeightRegistry::builder().build().unwrap());
        let parts = Streamed::new(tiny(), &Parts::layers(), WindowSize::Parts(2)).unwrap();
        let streamed = streaming.publish("streamed", parts).unwrap();
        let streamed_lease = streaming.acquire(streamed).unwrap();
        let stream = streaming.stream(&streamed_lease, streamed, Order::unknown());
        let stream = stream.unwrap();
        let entered = streaming.stream(&streamed_lease, streamed, Order::unknown());
        let mut entered = entered.unwrap();
        entered.enter(1, SOON).unwrap();
        Kit {
            number: held.set(set).unwrap().generation(),
            registry,
            set,
            away,
            base,
            adapter,
            going,
            held,
            own_number: registry.scope(|scope| scope.get(own).unwrap().generation()),
            own_transaction: Some(tenant.transaction()),
            tenant,
            own,
            own_adapter,
            events,
            staged: (0..16)
                .map(|_| registry.stage(bytes(64, 5)).unwrap())
                .collect(),
            fillings: (0..4).map(filling).collect(),
            transaction: Some(transaction),
            streaming,
            streamed,
            streamed_lease,
            stream,
            entered,
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

    fn own_transaction(&mut self) -> &mut NamespaceTransaction<'r> {
        self.own_transaction.as_mut().expect("not committed yet")
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
    ("transaction/retire_cascade", |kit| {
        let set = kit.set;
        of(kit.transaction().retire_cascade(set))
    }),
    ("transaction/rebind", |kit| {
        let (adapter, base) = (kit.adapter, kit.base);
        of(kit.transaction().rebind(adapter, base))
    }),
    ("transaction/rebind_adapters", |kit| {
        let base = kit.base;
        of(kit.transaction().rebind_adapters(base))
    }),
    ("transaction/rollback", |kit| {
        let set = kit.set;
        of(kit.transaction().rollback(set))
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
    ("accounts/set_namespace_limits", |kit| {
        let limits = NamespaceLimits::none().sets(1);
        of(kit.registry.set_namespace_limits("tenant", limits))
    }),
    ("accounts/set_account_limit", |kit| {
        let account = Account::foreign("gpu0");
        of(kit.registry.set_account_limit(&account, Some(1)))
    }),
    ("accounts/empty_pool", |kit| of(kit.registry.empty_pool())),
    ("accounts/reserve_in", |kit| {
        of(kit.registry.reserve_in(&Account::foreign("gpu0"), 1))
    }),
    ("dependants/rebind", |kit| {
        of(kit.registry.rebind(kit.adapter, kit.base))
    }),
    ("dependants/retire_cascade", |kit| {
        of(kit.registry.retire_cascade(kit.base))
    }),
    ("fenced/retire_after", |kit| {
        of(kit.registry.retire_after(kit.set, never_asked))
    }),
    ("fenced/retire_after_if", |kit| {
        let (set, number) = (kit.set, kit.number);
        of(kit.registry.retire_after_if(set, number, never_asked))
    }),
    ("fenced/revoke", |kit| of(kit.registry.revoke(kit.set))),
    ("residency/evict", |kit| of(kit.registry.evict(kit.set))),
    ("wanting/load", |kit| of(kit.registry.load(kit.set))),
    ("wanting/acquire_or_load", |kit| {
        of(kit.registry.acquire_or_load(kit.away, Duration::MAX))
    }),
    ("namespace/mod/acquire_or_load", |kit| {
        of(kit.tenant.acquire_or_load(kit.away, Duration::MAX))
    }),
    ("room/pins/pin", |kit| of(kit.registry.pin(kit.set, "it"))),
    ("stream/mod/stream", |kit| {
        let order = Order::forward();
        of(kit
            .streaming
            .stream(&kit.streamed_lease, kit.streamed, order))
    }),
    ("stream/mod/expect", |kit| {
        of(kit.stream.expect(Order::ring()))
    }),
    ("stream/mod/part", |kit| {
        of(kit.stream.part(0, Duration::MAX))
    }),
    ("stream/mod/enter", |kit| {
        of(kit.stream.enter(0, Duration::MAX))
    }),
    ("stream/mod/part_async", |kit| {
        of(block_on(kit.stream.part_async(0)))
    }),
    ("stream/mod/window", |kit| of(kit.stream.window())),
    ("stream/mod/tally", |kit| of(kit.stream.tally())),
    ("room/pins/pinned_by", |kit| {
        of(kit.registry.pinned_by(kit.set))
    }),
    ("room/estimate/estimate", |kit| {
        of(kit.registry.estimate(&Demand::new().set(kit.set)))
    }),
    ("rollback/keep_previous", |kit| {
        of(kit.registry.keep_previous(kit.set, 1))
    }),
    ("rollback/rollback", |kit| {
        of(kit.registry.rollback(kit.set))
    }),
    ("rollback/rollback_to", |kit| {
        of(kit.registry.rollback_to(kit.set, kit.number))
    }),
    ("swap/replace_drained", |kit| {
        let next = bytes(1, 1);
        of(kit.registry.replace_drained(kit.set, next, Duration::MAX))
    }),
    ("namespace/mod/stage", |kit| {
        of(kit.tenant.stage(bytes(1, 1)))
    }),
    ("namespace/mod/fill", |kit| {
        let plan: Plan = bytes(1, 1).plan().clone();
        of(kit.tenant.fill(plan, None))
    }),
    ("namespace/mod/publish", |kit| {
        of(kit.tenant.publish("new", bytes(1, 1)))
    }),
    ("namespace/mod/publish_staged", |kit| {
        let staged = kit.staged();
        of(kit.tenant.publish_staged("new", staged))
    }),
    ("namespace/mod/replace", |kit| {
        of(kit.tenant.replace(kit.own, bytes(1, 1)))
    }),
    ("namespace/mod/replace_if", |kit| {
        let next = bytes(1, 1);
        of(kit.tenant.replace_if(kit.own, kit.own_number, next))
    }),
    ("namespace/mod/replace_staged", |kit| {
        let staged = kit.staged();
        of(kit.tenant.replace_staged(kit.own, staged))
    }),
    ("namespace/mod/replace_staged_if", |kit| {
        let (number, staged) = (kit.own_number, kit.staged());
        of(kit.tenant.replace_staged_if(kit.own, number, staged))
    }),
    ("namespace/mod/replace_drained", |kit| {
        let next = bytes(1, 1);
        of(kit.tenant.replace_drained(kit.own, next, Duration::MAX))
    }),
    ("namespace/mod/evict", |kit| of(kit.tenant.evict(kit.own))),
    ("namespace/mod/load", |kit| of(kit.tenant.load(kit.own))),
    ("namespace/mod/retire", |kit| of(kit.tenant.retire(kit.own))),
    ("namespace/mod/retire_if", |kit| {
        of(kit.tenant.retire_if(kit.own, kit.own_number))
    }),
    ("namespace/mod/rebind", |kit| {
        of(kit.tenant.rebind(kit.own_adapter, kit.base))
    }),
    ("namespace/mod/keep_previous", |kit| {
        of(kit.tenant.keep_previous(kit.own, 1))
    }),
    ("namespace/mod/rollback", |kit| {
        of(kit.tenant.rollback(kit.own))
    }),
    ("namespace/mod/rollback_to", |kit| {
        of(kit.tenant.rollback_to(kit.own, kit.own_number))
    }),
    ("namespace/transaction/stage", |kit| {
        of(kit.own_transaction().stage(bytes(1, 1)))
    }),
    ("namespace/transaction/publish", |kit| {
        let staged = kit.staged();
        of(kit.own_transaction().publish("new", staged))
    }),
    ("namespace/transaction/replace", |kit| {
        let (own, staged) = (kit.own, kit.staged());
        of(kit.own_transaction().replace(own, staged))
    }),
    ("namespace/transaction/replace_if", |kit| {
        let (own, number, staged) = (kit.own, kit.own_number, kit.staged());
        of(kit.own_transaction().replace_if(own, number, staged))
    }),
    ("namespace/transaction/retire", |kit| {
        let own = kit.own;
        of(kit.own_transaction().retire(own))
    }),
    ("namespace/transaction/retire_if", |kit| {
        let (own, number) = (kit.own, kit.own_number);
        of(kit.own_transaction().retire_if(own, number))
    }),
    ("namespace/transaction/rebind", |kit| {
        let (adapter, base) = (kit.own_adapter, kit.base);
        of(kit.own_transaction().rebind(adapter, base))
    }),
    ("namespace/transaction/rollback", |kit| {
        let own = kit.own;
        of(kit.own_transaction().rollback(own))
    }),
    ("namespace/transaction/commit", |kit| {
        of(kit.own_transaction.take()?.commit())
    }),
];

/// A fence that nobody has a reason to look at.
fn never_asked() -> bool {
    panic!("a fence was asked in a child")
}

/// Arenas have no owner.
struct NoOwner;

impl weighbridge::memory::Owner for NoOwner {
    fn byte_len(&self) -> u64 {
        0
    }

    fn address(&self) -> u64 {
        0
    }
}

type Reads = (&'static str, &'static [&'static str], fn(&mut Kit<'_>));

/// Whatever looks at what is there already.
const READS: &[Reads] = &[
    (
        "mod",
        &[
            "builder",
            "limit_bytes",
            "keep_previous",
            "event_capacity",
            "policy",
            "loaders",
            "readers",
            "load_backoff",
            "soft_limit_bytes",
            "pool_bytes",
            "write_protect",
            "build",
        ],
        |_| {
            let options = WeightRegistry::builder().limit_bytes(1);
            let options = options.policy(Lru::new()).loaders(1).readers(1);
            let options = options.load_backoff(Duration::ZERO, Duration::MAX);
            let options = options.soft_limit_bytes(1).pool_bytes(1 << 20);
            let options = options.write_protect(true);
            options.keep_previous(1).event_capacity(1).build().unwrap();
        },
    ),
    (
        "accounts",
        &[
            "none",
            "bytes",
            "sets",
            "namespace_stats",
            "account",
            "accounts",
        ],
        |kit| {
            let limits = NamespaceLimits::none().bytes(1).sets(1);
            assert_eq!((limits.bytes, limits.sets), (Some(1), Some(1)));
            assert_eq!(kit.registry.namespace_stats("tenant").sets, 2);
            let account = Account::namespace("tenant");
            assert_eq!(kit.registry.account(&account).resident, 128);
            let accounts = kit.registry.accounts();
            assert!(accounts.iter().any(|(one, _)| *one == account));
        },
    ),
    (
        "audit",
        &["is_revoked", "is_superseded", "provenance"],
        |kit| {
            let set = kit.held.set(kit.set).unwrap();
            assert!(!kit.held.is_revoked() && !set.is_revoked());
            assert!(kit.held.is_superseded() && !set.is_superseded());
            assert_eq!(kit.held.provenance().sets.len(), 2);
        },
    ),
    ("dependants", &["dependants_of"], |kit| {
        let mut dependants = kit.registry.dependants_of(kit.base).unwrap();
        dependants.sort();
        let mut known = [kit.adapter, kit.own_adapter];
        known.sort();
        assert_eq!(dependants, known);
    }),
    ("event", &["to_json", "as_str"], |kit| {
        let mut events = kit.events.clone();
        let Next::Event(event) = events.try_next() else {
            panic!("`gone` was retired")
        };
        assert!(event.to_json().contains("retired"));
        assert_eq!(weighbridge::Operation::Retire.as_str(), "retire");
        assert_eq!(weighbridge::Cause::Misuse.as_str(), "misuse");
    }),
    ("observe/metering", &["record_metrics"], |kit| {
        #[cfg(feature = "metrics")]
        kit.registry.record_metrics();
        let _ = kit;
    }),
    (
        "place",
        &[
            "place",
            "info",
            "address",
            "offset",
            "is_host_readable",
            "owner",
            "owner_as",
        ],
        |kit| {
            let w = kit.registry.weight_handle(kit.set, "w").unwrap();
            let bytes = kit.held.weight(w).unwrap().bytes();
            let place = kit.held.place(w).unwrap();
            assert_eq!(place.address(), bytes.as_ptr().addr() as u64);
            let same = kit.held.set(kit.set).unwrap().place("w").unwrap();
            assert_eq!((same.offset(), same.info().name()), (0, "w"));
            assert!(same.is_host_readable() && same.owner().is_none());
            assert!(same.owner_as::<NoOwner>().is_none());
        },
    ),
    (
        "room/estimate",
        &[
            "new",
            "set",
            "plan",
            "replacement",
            "drained_replacement",
            "bytes",
        ],
        |kit| {
            let next = bytes(1, 1);
            let demand = Demand::new().set(kit.set).plan("", next.plan());
            let demand = demand.replacement(kit.set, next.plan());
            let demand = demand.drained_replacement(kit.set, next.plan());
            let _ = demand.bytes(&Account::foreign("gpu0"), 1);
        },
    ),
    // What is there is leased as by `acquire`, and a future of the child's own does its work.
    (
        "wanting",
        &[
            "acquire_or_load",
            "acquire_or_load_as",
            "acquire_or_load_async",
            "labelled",
        ],
        |kit| {
            let read = kit.registry.acquire_or_load(kit.set, Duration::MAX);
            assert_eq!(read.unwrap().sets().len(), 1);
            let read = kit
                .registry
                .acquire_or_load_as("it", kit.set, Duration::MAX);
            assert_eq!(read.unwrap().sets().len(), 1);
            let registry = Arc::new(WeightRegistry::builder().build().unwrap());
            let set = registry.publish("a", bytes(1, 1)).unwrap();
            drop(registry.acquire_or_load_async(set).labelled("it"));
        },
    ),
    (
        "stream/mod",
        &[
            "len", "is_empty", "name", "part_of", "lease", "leave", "weight",
        ],
        |kit| {
            let norm = "model.layers.3.input_layernorm.weight";
            let norm = kit.streaming.weight_handle(kit.streamed, norm).unwrap();
            assert_eq!(kit.stream.part_of(norm).unwrap(), Some(3));
            kit.stream.leave();
            let norm = kit
                .streaming
                .weight_handle(kit.streamed, "model.norm.weight");
            assert_eq!(kit.stream.weight(norm.unwrap()).unwrap().shape(), [96]);
            assert_eq!((kit.stream.len(), kit.stream.is_empty()), (4, false));
            assert_eq!(kit.stream.name(1), Some("model.layers.1"));
            assert_eq!(kit.stream.lease().sets().len(), 1);
        },
    ),
    (
        "stream/order",
        &["forward", "ring", "list", "ring_of", "unknown", "ahead"],
        |_| {
            let _ = (Order::forward(), Order::ring(), Order::unknown());
            let _ = (Order::list([0]), Order::ring_of([0]).ahead(1));
        },
    ),
    // Of a registry of the child's own.
    (
        "stream/part",
        &["index", "name", "weight", "get", "iter"],
        |_| {
            let registry = Arc::new(WeightRegistry::builder().build().unwrap());
            let parts = Streamed::new(tiny(), &Parts::layers(), WindowSize::Parts(2)).unwrap();
            let set = registry.publish("streamed", parts).unwrap();
            let lease = registry.acquire(set).unwrap();
            let norm = "model.layers.3.input_layernorm.weight";
            let handle = registry.weight_handle(set, norm).unwrap();
            let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
            let part = stream.part(3, SOON).unwrap();
            assert_eq!((part.index(), part.name()), (3, "model.layers.3"));
            assert_eq!(
                part.weight(handle).unwrap().bytes(),
                part.get(norm).unwrap().bytes()
            );
            assert_eq!(part.iter().count(), 9);
        },
    ),
    ("stream/fenced", &["release_after", "leave_after"], |kit| {
        // The parent's: it is kept, and the fence is asked nothing.
        kit.entered
            .leave_after(|| -> bool { panic!("asked in the child") });
        // Of a registry of the child's own.
        let registry = Arc::new(WeightRegistry::builder().build().unwrap());
        let parts = Streamed::new(tiny(), &Parts::layers(), WindowSize::Parts(1)).unwrap();
        let set = registry.publish("streamed", parts).unwrap();
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
        let (copied, copy) = fence::signal("copy");
        stream.part(0, SOON).unwrap().release_after(copy);
        copied.set();
        assert_eq!(stream.part(1, SOON).unwrap().index(), 1);
    }),
    ("serving", &["lora_requests_info", "to_prometheus"], |kit| {
        let info = kit.registry.lora_requests_info();
        assert!(info.to_prometheus("it", 1).starts_with("it{"));
    }),
    ("rollback", &["kept"], |kit| {
        assert!(kit.registry.kept(kit.set).unwrap().is_empty());
    }),
    (
        "subscription",
        &["events", "try_next", "next_timeout", "pending"],
        |kit| {
            let mut events = kit.events.clone();
            assert_eq!(events.pending().count(), 1);
            assert_eq!(events.try_next(), Next::Nothing);
            // Nothing comes here, so there is nothing to wait for.
            assert_eq!(events.next_timeout(Duration::MAX), Next::Closed);
            let mut new = kit.registry.events();
            assert_eq!(new.next_timeout(Duration::MAX), Next::Closed);
            let first = kit.events.clone().next_timeout(Duration::MAX);
            assert!(matches!(first, Next::Event(_)), "{first:?}");
        },
    ),
    (
        "namespace/mod",
        &[
            "namespace",
            "name",
            "stats",
            "catalog",
            "lookup",
            "acquire",
            "acquire_as",
            "weight_handle",
            "kept",
        ],
        |kit| {
            let tenant = kit.registry.namespace("tenant").unwrap();
            assert_eq!((tenant.name(), tenant.stats().sets), ("tenant", 2));
            assert_eq!(tenant.catalog().entries().len(), 2);
            assert_eq!(tenant.lookup("own"), Some(kit.own));
            let w = tenant.weight_handle(kit.own, "w").unwrap();
            for lease in [
                tenant.acquire(kit.own).unwrap(),
                tenant.acquire_as("child", kit.own).unwrap(),
            ] {
                assert_eq!(lease.weight(w).unwrap().bytes(), [6; 64]);
            }
            assert!(tenant.kept(kit.own).unwrap().is_empty());
        },
    ),
    ("namespace/transaction", &["transaction"], |kit| {
        drop(kit.tenant.transaction());
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
            "is_resident",
            "base",
            "leases",
            "unchecked_modules",
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
            assert!(view.is_resident());
            assert_eq!(view.unchecked_modules().count(), 0);
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
            let first = view.module(0).unwrap();
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
        "adapter",
        &[
            "adapter",
            "scale",
            "len",
            "is_empty",
            "module",
            "modules",
            "position",
            "unchecked_modules",
            "replacements",
            "replacement",
        ],
        |kit| {
            let pair = kit.registry.acquire([kit.base, kit.adapter]).unwrap();
            let view = pair.set(kit.adapter).unwrap().adapter().unwrap();
            assert!(!view.is_empty());
            let first = view.module(0).unwrap();
            assert_eq!(view.scale(0).unwrap().scaling, first.scaling);
            assert_eq!(view.position(first.module), Some(0));
            assert_eq!(view.modules().count(), view.len());
            assert_eq!(view.unchecked_modules().count(), 0);
            assert_eq!(view.replacements().count(), 0);
            assert!(view.replacement("lm_head.weight").unwrap().is_none());
        },
    ),
    (
        "catalog/mod",
        &[
            "number", "entries", "get", "to_json", "catalog", "stats", "ledger", "retired",
        ],
        |kit| {
            let catalog = kit.registry.catalog();
            assert_eq!(catalog.entries().len(), 6);
            assert!(catalog.to_json().contains("\"tenant\""));
            assert!(kit.registry.stats().to_json().contains("\"schema\""));
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
            "fences",
            "revoke",
            "is_drained",
            "is_reclaimed",
        ],
        |kit| {
            let going = &kit.going;
            assert_eq!((going.bytes(), going.leases()), (64, 1));
            assert_eq!(going.holders()[0].label, "held");
            assert!(going.fences().is_empty());
            // The child's own copy of the request: whoever holds the lease in the parent sees none.
            going.revoke();
            assert!(kit.held.is_revoked());
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
    // The last: the child keeps the lease. What becomes of a lease that is given away: `a_child_gives_leases_away_and_keeps_them`.
    ("fenced", &["release_after", "fences"], |kit| {
        kit.held.clone().release_after(never_asked);
        assert!(kit.registry.fences().is_empty());
    }),
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

/// The source files in `dir` and below, without their endings, as they are named in the tables.
fn rooms(dir: &Path, prefix: &str, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let room = format!("{prefix}{name}");
        if path.is_dir() {
            rooms(&path, &format!("{room}/"), found);
        } else {
            found.push((room, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

fn every_public_operation_is_in_the_tables() {
    let mut all = Vec::new();
    let registry = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry");
    rooms(&registry, "", &mut all);
    let mut found = 0;
    for (file, text) in &all {
        let refused = REFUSED.iter().filter_map(|(name, _)| name.rsplit_once('/'));
        let mut known: BTreeSet<&str> = refused
            .filter_map(|(room, name)| (room == file).then_some(name))
            .collect();
        let reads = READS.iter().filter(|(room, ..)| room == file);
        known.extend(reads.flat_map(|(_, names, _)| names.iter()));
        let public = public_functions(text);
        assert_eq!(
            public,
            known,
            "src/registry/{file}.rs on the left: say in {} whether a forked child may call what is new",
            file!()
        );
        found += public.len();
    }
    for (room, ..) in READS {
        assert!(all.iter().any(|(file, _)| file == room), "no {room}.rs");
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
    // Apart from how long `held` has been held.
    let stats = || {
        let mut stats = registry.stats();
        stats.oldest_lease = None;
        stats
    };
    let before = stats();
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
    assert_eq!(stats(), before);
    assert!(!kit.held.is_revoked());
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

/// Whoever looks at fences stayed in the parent. The lease stays, the fence is asked nothing, no thread
/// is started, and no lock is waited for, whether the parent's had started or not.
fn a_child_gives_leases_away_and_keeps_them() {
    /// Counts whatever is done with it.
    struct Counts(Arc<AtomicU64>);
    impl fence::Fence for Counts {
        fn has_passed(&mut self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed);
            true
        }
    }
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let threads = || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    for started in [false, true] {
        let registry = registry();
        let set = registry.publish("a", bytes(64, 1)).unwrap();
        let leases =
            |registry: &WeightRegistry| registry.scope(|scope| scope.get(set).unwrap().leases());
        let (signal, queued) = fence::signal("the parent's");
        if started {
            registry.acquire(set).unwrap().release_after(queued);
        }
        let parents = u64::from(started);
        let lease = registry.acquire_as("child", set).unwrap();
        let touched = Arc::new(AtomicU64::new(0));
        forked("a lease that is given away", || {
            let w = registry.weight_handle(set, "w").unwrap();
            lease.clone().release_after(Counts(Arc::clone(&touched)));
            assert_eq!(leases(&registry), parents + 2, "it was ended");
            drop(lease);
            assert_eq!(leases(&registry), parents + 1, "it was ended");
            assert_eq!(touched.load(Ordering::Relaxed), 0, "the fence was asked");
            assert_eq!(threads(), 1, "a thread was started");
            assert_eq!(registry.stats().pending_fences, parents);
            let still = registry.acquire(set).unwrap();
            assert_eq!(still.weight(w).unwrap().bytes(), [1; 64]);
            drop(still);
            drop(registry);
        });
        signal.set();
    }
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

/// Stops where it holds the lock under which loads are admitted, once it is told to.
struct Stops {
    armed: Arc<AtomicBool>,
    stopped: Sender<()>,
    go: Receiver<()>,
}

impl Policy for Stops {
    fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
        if self.armed.load(Ordering::SeqCst) {
            let _ = self.stopped.send(());
            // Told to go on, or that nobody is there any more who could tell it.
            let _ = self.go.recv();
            return Vec::new(); // Nothing may go for whoever asked.
        }
        candidates.iter().map(|one| one.set).collect()
    }
}

/// Futures that wait when the process forks: for room, as the first of the line, with a set that went for it;
/// and for a load, with a lease of what was there. The lock of whoever is admitted is held for ever in the
/// child: there they are refused, or dropped as they are, in any order. The parent's go on.
fn a_child_is_refused_what_its_parent_waits_for() {
    let armed: [Arc<AtomicBool>; 2] = Default::default();
    let (stopped, stops) = channel();
    let (go_on, go) = channel();
    let policy = Stops {
        armed: Arc::clone(&armed[0]),
        stopped,
        go,
    };
    let builder = WeightRegistry::builder().policy(policy);
    let registry = Arc::new(builder.limit_bytes(4 * 64).build().unwrap());
    let (open_up, opened) = channel::<()>();
    let opened = Mutex::new(opened);
    let (slow, reading) = (Arc::clone(&armed[1]), Arc::new(AtomicBool::new(false)));
    let in_read = Arc::clone(&reading);
    let waits = move || {
        if slow.load(Ordering::SeqCst) {
            in_read.store(true, Ordering::SeqCst);
            let _ = opened.lock().unwrap().recv();
        }
        Ok(bytes(64, 1))
    };
    let slow = registry.publish("slow", Evictable::opened_by(waits).unwrap());
    let slow = slow.unwrap();
    registry.evict(slow).unwrap();
    let [there, idle, leased, one, two, other] = ["there", "idle", "leased", "one", "two", "other"]
        .map(|name| {
            let set = registry.publish(name, Evictable::new(bytes(64, 1)));
            let set = set.unwrap();
            registry.evict(set).unwrap();
            set
        });
    armed[1].store(true, Ordering::SeqCst);
    let lease = registry.acquire_or_load([there, leased], SOON).unwrap();
    drop(registry.acquire_or_load(idle, SOON).unwrap());

    let mut context = Context::from_waker(Waker::noop());
    let mut comes = Some(Box::pin(registry.acquire_or_load_async([there, slow])));
    let pending = |future: &mut Option<Pin<Box<AcquireOrLoad>>>, context: &mut Context<'_>| {
        future.as_mut().unwrap().as_mut().poll(context).is_pending()
    };
    assert!(pending(&mut comes, &mut context));
    until("it is read", || reading.load(Ordering::SeqCst));
    let mut line = Some(Box::pin(registry.acquire_or_load_async([one, two])));
    while registry.ledger().retired == 0 {
        assert!(pending(&mut line, &mut context));
    }
    let mut unpolled = Some(Box::pin(registry.acquire_or_load_async(other)));

    let parent = std::process::id();
    let mut parents = Some(registry);
    std::thread::scope(|threads| {
        // Dropped when this ends, however it does: nobody is left behind.
        let (go_on, open_up) = (go_on, open_up);
        armed[0].store(true, Ordering::SeqCst);
        let asks = Arc::clone(parents.as_ref().unwrap());
        let holds = threads.spawn(move || asks.acquire_or_load(other, Duration::ZERO).map(drop));
        stops.recv().unwrap();
        let refused = |future: &mut Option<Pin<Box<AcquireOrLoad>>>| {
            let mut context = Context::from_waker(Waker::noop());
            let answer = future.as_mut().unwrap().as_mut().poll(&mut context);
            let now = std::process::id();
            assert!(
                matches!(answer, Poll::Ready(Err(Error::Forked { made_in, now: here })) if made_in == parent && here == now),
                "{answer:?}"
            );
        };
        forked("futures that are polled", || {
            refused(&mut line);
            refused(&mut comes);
            refused(&mut unpolled);
            (line, comes, unpolled, parents) = (None, None, None, None);
        });
        forked("futures that are dropped", || {
            (comes, line, unpolled, parents) = (None, None, None, None);
        });
        forked("futures that are dropped after their registry", || {
            (parents, unpolled, line, comes) = (None, None, None, None);
        });
        forked("a future that is polled, beside one that is not", || {
            refused(&mut comes);
            (line, comes) = (None, None);
            assert_eq!(lease.sets().len(), 2);
        });
        armed[0].store(false, Ordering::SeqCst);
        go_on.send(()).unwrap();
        let refused = holds.join().unwrap();
        assert!(matches!(refused, Err(Error::NotLoaded(_))), "{refused:?}");
        open_up.send(()).unwrap();
    });
    let came = block_on(comes.take().unwrap()).unwrap();
    assert_eq!(came.set(slow).unwrap().get("w").unwrap().bytes(), [1; 64]);
    drop((came, lease));
    let came = block_on(line.take().unwrap()).unwrap();
    assert_eq!(came.sets().len(), 2);
    drop(block_on(unpolled.take().unwrap()).unwrap());
    let registry = parents.unwrap();
    assert_eq!(registry.stats().waiting, 0);
    let ledger = registry.ledger();
    assert!(ledger.peak <= 4 * 64, "{ledger:?}");
    assert_eq!((ledger.reserved, ledger.retired), (0, 0));
}
