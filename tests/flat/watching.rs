//! Events, metrics and spans: who is told, when, and that no lock is held.

use super::*;

/// What is told of refusals meanwhile: the operation, the subject, the reason.
fn refusals(flat: &FlatRegistry, act: impl FnOnce()) -> Vec<(Operation, String, String)> {
    let mut events = flat.registry().events();
    act();
    let told = events.pending().filter_map(|next| match next {
        Next::Event(event) => match event.kind {
            EventKind::Refused {
                operation,
                subject,
                reason,
                ..
            } => Some((operation, subject, reason)),
            _ => None,
        },
        _ => None,
    });
    told.collect()
}

#[test]
fn a_refusal_is_told_once_in_the_words_of_the_caller() {
    let flat = flat();
    let w = put(&flat, "w", 1);
    flat.alias("tied", w, Dtype::U8, [4]).unwrap();
    put(&flat, "x", 1);
    let batch_too_late = || {
        let second = std::iter::once_with(|| {
            put(&flat, "late", 9);
            (Address::from("b"), Dtype::U8, &[1][..], &[2][..])
        });
        let first = (Address::from("late"), Dtype::U8, &[1][..], &[1][..]);
        flat.register_all(std::iter::once(first).chain(second))
            .unwrap_err()
    };
    type Refuses<'r> = (Operation, &'r str, &'r dyn Fn() -> Error);
    let all: [Refuses<'_>; 5] = [
        (Operation::Publish, "flat/w", &|| {
            flat.register("w", Dtype::U8, [4], &[2; 4]).unwrap_err()
        }),
        (Operation::Publish, "flat/w", &|| {
            flat.load(("flat", "w"), bytes(4, 1)).unwrap_err()
        }),
        (Operation::Retire, "set ", &|| {
            flat.unregister(w).unwrap_err()
        }),
        (Operation::Publish, "flat/x", &|| {
            put_all(&flat, &[("a", 1), ("x", 2)]).unwrap_err()
        }),
        (Operation::Transaction, "2 weight(s)", &batch_too_late),
    ];
    for (operation, subject, act) in all {
        let mut error = None;
        let told = refusals(&flat, || error = Some(act()));
        let [(of, about, reason)] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!((*of, reason), (operation, &error.unwrap().to_string()));
        assert!(about.starts_with(subject), "{about}");
    }
}

/// The same came while it was being read: it is used, and nobody was refused anything.
#[test]
fn a_call_that_finds_what_it_wanted_was_not_refused() {
    struct Late<'f>(&'f FlatRegistry, InMemory);
    impl Source for Late<'_> {
        fn plan(&self) -> &weighbridge::Plan {
            self.1.plan()
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            put(self.0, "w", 1);
            self.0.load("set", bytes(4, 1))?;
            self.1.read_into(arena)
        }
    }
    let flat = flat();
    let late = || Late(&flat, bytes(4, 1));
    let told = refusals(&flat, || {
        let made = flat.register_from("w", late()).unwrap();
        assert_eq!(made, Registered::Reused(flat.lookup("w").unwrap()));
        flat.unregister(made.handle()).unwrap();
        flat.registry()
            .retire(flat.registry().lookup("set").unwrap())
            .unwrap();
        assert!(!flat.load("set", late()).unwrap().is_new());
    });
    assert!(told.is_empty(), "{told:?}");
}

/// Memory that a load brought for nothing ends when the lock is free, and what its owner does then is told
/// as always.
#[test]
fn an_owner_may_call_the_flat_registry_when_it_ends() {
    struct Calls(Arc<FlatRegistry>, [u8; 4]);
    impl weighbridge::memory::Owner for Calls {
        fn byte_len(&self) -> u64 {
            4
        }
        fn address(&self) -> u64 {
            self.1.as_ptr().expose_provenance() as u64
        }
        fn as_host(&self) -> Option<&[u8]> {
            Some(&self.1)
        }
    }
    impl Drop for Calls {
        fn drop(&mut self) {
            assert_eq!(self.0.len(), 1);
            self.0.register("w", Dtype::U8, [4], &[9; 4]).unwrap_err();
        }
    }
    let (tell, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let flat = Arc::new(flat());
        put(&flat, "w", 1);
        let brought = |fill| {
            let memory = Foreign::new(Calls(Arc::clone(&flat), [fill; 4])).unwrap();
            memory.tensor("w", Dtype::U8, [4], 0).unwrap()
        };
        flat.load("set", bytes(4, 1)).unwrap();
        let told = refusals(&flat, || {
            assert!(!flat.load("set", brought(1)).unwrap().is_new())
        });
        assert_eq!(told.len(), 1, "{told:?}");
        let told = refusals(&flat, || drop(flat.load("set", brought(2)).unwrap_err()));
        let subjects: Vec<_> = told.iter().map(|(_, about, _)| &**about).collect();
        assert_eq!(subjects, ["set", "flat/w"]);
        tell.send(()).unwrap();
    });
    ends.recv_timeout(SOON).expect("it hangs, or failed");
}

#[cfg(any(feature = "metrics", feature = "tracing"))]
mod watched {
    use std::cell::Cell;
    use std::sync::mpsc;

    use super::*;

    thread_local! {
        /// An observer's own calls are reported, too.
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }

    /// What it does when it is told something: asks for everything, and changes something.
    struct Looks {
        flat: Arc<FlatRegistry>,
        told: Arc<AtomicUsize>,
    }

    impl Looks {
        fn look(&self) {
            if INSIDE.replace(true) {
                return;
            }
            self.told.fetch_add(1, Ordering::Relaxed);
            let flat = &*self.flat;
            assert!(flat.total_bytes() < 1000 && !format!("{flat:?}").is_empty());
            flat.adapter_names();
            let mine = flat.register(("observer", "mine"), Dtype::U8, [1], &[1]);
            flat.entry(mine.unwrap().handle()).unwrap();
            flat.unregister_adapter("observer").unwrap();
            INSIDE.set(false);
        }
    }

    #[cfg(feature = "metrics")]
    mod meter {
        use metrics::*;

        impl Recorder for super::Looks {
            fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
                self.look();
                Counter::noop()
            }
            fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
                Gauge::noop()
            }
            fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
                self.look();
                Histogram::noop()
            }
        }
    }

    #[cfg(feature = "tracing")]
    mod diary {
        use tracing::span::{Attributes, Id, Record};
        use tracing::subscriber::Interest;
        use tracing::{Event, Metadata};

        impl tracing::Subscriber for super::Looks {
            fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
                Interest::sometimes()
            }
            fn enabled(&self, about: &Metadata<'_>) -> bool {
                about.target() == "weighbridge"
            }
            fn new_span(&self, _: &Attributes<'_>) -> Id {
                self.look();
                Id::from_u64(1)
            }
            fn record(&self, _: &Id, _: &Record<'_>) {}
            fn record_follows_from(&self, _: &Id, _: &Id) {}
            fn event(&self, _: &Event<'_>) {
                self.look();
            }
            fn enter(&self, _: &Id) {
                self.look();
            }
            fn exit(&self, _: &Id) {
                self.look();
            }
            fn try_close(&self, _: Id) -> bool {
                self.look();
                true
            }
        }
    }

    /// Runs `body` under a subscriber. While there is no more than one, a thread without any that meets
    /// one of the library's callsites first tells the cache that nobody is interested in it: so there are
    /// always two more.
    #[cfg(feature = "tracing")]
    fn subscribed<T>(
        subscriber: impl tracing::Subscriber + Send + Sync + 'static,
        body: impl FnOnce() -> T,
    ) -> T {
        static MORE: std::sync::LazyLock<[tracing::Dispatch; 2]> = std::sync::LazyLock::new(|| {
            [(), ()].map(|()| {
                tracing::Dispatch::new(Looks {
                    flat: Arc::new(flat()),
                    told: Arc::default(),
                })
            })
        });
        std::sync::LazyLock::force(&MORE);
        tracing::subscriber::with_default(subscriber, body)
    }

    /// Runs `body` with such observers, and says how often they were told something.
    fn watched<T>(flat: &Arc<FlatRegistry>, body: impl FnOnce() -> T) -> (T, usize) {
        let told = Arc::new(AtomicUsize::new(0));
        let looks = || Looks {
            flat: Arc::clone(flat),
            told: Arc::clone(&told),
        };
        #[cfg(feature = "metrics")]
        let body = || metrics::with_local_recorder(&looks(), body);
        #[cfg(feature = "tracing")]
        let body = || subscribed(looks(), body);
        (body(), told.load(Ordering::Relaxed))
    }

    /// Runs `body` on a thread that may not come back.
    fn ends(body: impl FnOnce() + Send + 'static) {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            body();
            tell.send(()).unwrap();
        });
        match told.recv_timeout(SOON) {
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
            _ => thread.join().unwrap(),
        }
    }

    #[test]
    fn an_observer_may_ask_and_change_the_flat_registry_that_tells_it() {
        ends(|| {
            let flat = Arc::new(flat());
            let small = InMemory::new().tensor("p.weight", Dtype::U8, [2, 3], [0; 6]);
            let base = flat.registry().publish("base", small.unwrap()).unwrap();
            let slices = |fill: u8| {
                let slice = |name, shape: [usize; 2]| {
                    let bytes = vec![fill; shape[0] * shape[1]];
                    let made = flat.register(("pirate", name), Dtype::U8, shape, &bytes);
                    made.unwrap().handle()
                };
                let mut group = flat.lora_group("pirate");
                let scale = ModuleScale::new(1, 1.0, false);
                let [a, b] = [slice("a", [1, 3]), slice("b", [2, 1])];
                group.module("p", scale, a, b).unwrap();
                group
            };
            let does = |what: &str, act: &dyn Fn()| {
                let ((), told) = watched(&flat, act);
                assert!(told > 0, "nobody was told: {what}");
            };
            let here = |name: &str| flat.lookup(name).unwrap();
            does("register", &|| {
                put(&flat, "w", 1);
            });
            does("a conflict", &|| {
                flat.register("w", Dtype::U8, [4], &[2; 4]).unwrap_err();
            });
            does("a source", &|| {
                flat.register_from("s", bytes(4, 1)).unwrap();
            });
            does("alias", &|| {
                flat.alias("tied", here("w"), Dtype::U8, [4]).unwrap();
            });
            does("an alias in the way", &|| {
                flat.unregister(here("w")).unwrap_err();
            });
            does("a batch", &|| drop(put_all(&flat, &[("x", 1), ("y", 1)])));
            does("a batch's conflict", &|| {
                put_all(&flat, &[("z", 1), ("x", 2)]).unwrap_err();
            });
            does("a batch that comes too late", &|| {
                let second = std::iter::once_with(|| {
                    put(&flat, "late", 9);
                    (Address::from("b"), Dtype::U8, &[1][..], &[2][..])
                });
                let first = (Address::from("late"), Dtype::U8, &[1][..], &[1][..]);
                let batch = std::iter::once(first).chain(second);
                flat.register_all(batch).unwrap_err();
            });
            does("unregister", &|| drop(flat.unregister(here("x")).unwrap()));
            does("cascade", &|| {
                flat.unregister_cascade(here("w")).unwrap();
            });
            let sealed = Cell::new(None);
            does("seal", &|| {
                let made = slices(1).seal("pirate", base).unwrap();
                sealed.set(Some(made.set));
            });
            let sealed = sealed.get().unwrap();
            does("seal over", &|| {
                slices(2).seal_over(sealed).unwrap();
            });
            does("a seal that is refused", &|| {
                slices(3).seal("pirate", base).unwrap_err();
            });
            does("an adapter", &|| {
                assert_eq!(flat.unregister_adapter("pirate").unwrap().len(), 2);
            });
            does("load", &|| {
                flat.load("l", bytes(4, 1)).unwrap();
            });
            does("load again", &|| {
                assert!(!flat.load("l", bytes(4, 1)).unwrap().is_new());
            });
            does("another load", &|| {
                flat.load("l", bytes(4, 2)).unwrap_err();
            });
            assert_eq!(flat.registry().stats().observer_panics, 0);
            for name in ["s", "y", "late"] {
                flat.unregister(here(name)).unwrap();
            }
            assert_eq!(flat.totals(), Totals::default());
        });
    }

    /// A destructor of a source that is registered for nothing runs when the lock is free, and what it
    /// does is told as always.
    #[test]
    fn a_source_that_is_not_needed_may_call_the_flat_registry_when_it_goes() {
        struct Goes {
            flat: Arc<FlatRegistry>,
            source: InMemory,
        }
        impl Source for Goes {
            fn plan(&self) -> &weighbridge::Plan {
                self.source.plan()
            }
            fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
                put(&self.flat, "came first", 1);
                self.source.read_into(arena)
            }
        }
        impl Drop for Goes {
            fn drop(&mut self) {
                put(&self.flat, "went", 1);
            }
        }
        ends(|| {
            let flat = Arc::new(flat());
            let goes = |source| Goes {
                flat: Arc::clone(&flat),
                source,
            };
            let (refused, _) = watched(&flat, || {
                flat.register_from("came first", goes(bytes(4, 2)))
            });
            assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })));
            assert!(flat.lookup("went").is_some());
        });
    }

    /// A call is one span, with the time that it took, and one operation, whatever it asks of the registry
    /// underneath.
    #[test]
    #[cfg(all(feature = "metrics", feature = "tracing"))]
    fn a_call_is_told_as_one() {
        let (meter, diary) = (watch::Meter::default(), watch::Diary::default());
        let flat = flat();
        let base = flat.registry().publish("base", tiny()).unwrap();
        let w = put(&flat, "w", 1);
        let told = |act: &dyn Fn()| {
            metrics::with_local_recorder(&meter, || subscribed(diary.clone(), act));
            diary.take().join(" ")
        };
        // Every callsite has been met.
        let tied = flat.alias("tied", w, Dtype::U8, [4]).unwrap().handle();
        flat.unregister(w).unwrap_err();
        flat.unregister(tied).unwrap();
        let [y, z] = ["y", "z"].map(|name| put(&flat, name, 1));
        flat.unregister_cascade(y).unwrap();
        flat.unregister_cascade(z).unwrap();
        let warm = flat.registry().stats().commits;
        let one = |what: &str, number: u64, changes: usize| {
            format!("> {what} - message=committed commit={number} changes={changes} <")
        };
        let register = || {
            flat.register("x", Dtype::U8, [1], &[1]).unwrap();
        };
        let story = told(&register);
        assert_eq!(
            story,
            format!(
                "> stage subject=x < {}",
                one("publish subject=flat/x", warm + 1, 1)
            )
        );
        assert_eq!(told(&register), "", "nothing happened");
        flat.alias("tied", w, Dtype::U8, [4]).unwrap();
        let story = told(&|| drop(flat.unregister(w).unwrap_err()));
        let refused = "- message=refused: flat/w has aliases: flat/tied. Unregister those first;";
        let retire = format!("> retire subject={} ", w.set());
        assert!(story.starts_with(&format!("{retire}{refused}")), "{story}");
        assert!(
            story.ends_with(r#"operation="retire" cause="conflict" <"#),
            "{story}"
        );
        let story = told(&|| drop(flat.unregister_cascade(w).unwrap()));
        let both = format!("transaction subject={} and its aliases", w.set());
        assert_eq!(story, one(&both, warm + 3, 2));
        let story = told(&|| drop(flat.unregister(flat.lookup("x").unwrap()).unwrap()));
        assert!(
            story.starts_with("> retire ") && story.ends_with(" changes=1 <"),
            "{story}"
        );
        let group = slices(&flat, base, "pirate-v1");
        let slices = flat.adapter_handles("pirate").len();
        let number = flat.registry().stats().commits + 1;
        let group = Cell::new(Some(group));
        let story = told(&|| drop(group.take().unwrap().seal("pirate", base).unwrap()));
        let seal = one(
            r"transaction subject=flat\u{2f}pirate/*",
            number,
            slices + 1,
        );
        assert!(story.ends_with(&seal), "{story}");
        for (name, value) in [
            ("weighbridge_operations_total operation=publish", 1.0),
            ("weighbridge_operations_total operation=retire", 1.0),
            ("weighbridge_operations_total operation=transaction", 2.0),
            ("weighbridge_operation_seconds operation=transaction", 2.0),
            (
                "weighbridge_refusals_total operation=retire cause=conflict",
                1.0,
            ),
            ("weighbridge_commits_total", 4.0),
            ("weighbridge_changes_total", 5.0 + slices as f64),
        ] {
            assert_eq!(meter.value(name), Some(value), "{name}");
        }
    }

    /// Whoever is slow to listen holds up the call that tells it, and no other.
    #[test]
    #[cfg(feature = "metrics")]
    fn a_slow_observer_holds_up_nobody_else() {
        use metrics::*;

        /// Waits, once, when it is told of a commit.
        struct Slow {
            told: mpsc::Sender<()>,
            go_on: mpsc::Receiver<()>,
        }
        impl Recorder for Slow {
            fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
                if key.name() == "weighbridge_commits_total" {
                    self.told.send(()).unwrap();
                    self.go_on.recv_timeout(SOON).unwrap();
                }
                Counter::noop()
            }
            fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
                Gauge::noop()
            }
            fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
                Histogram::noop()
            }
        }
        ends(|| {
            let flat = Arc::new(flat());
            let (told, is_told) = mpsc::channel();
            let (go, go_on) = mpsc::channel();
            let slow = std::thread::spawn({
                let flat = Arc::clone(&flat);
                move || {
                    let slow = Slow { told, go_on };
                    with_local_recorder(&slow, || put(&flat, "slow", 1));
                }
            });
            is_told.recv_timeout(SOON).unwrap();
            let (tell, fast) = mpsc::channel();
            std::thread::spawn({
                let flat = Arc::clone(&flat);
                move || tell.send((put(&flat, "fast", 1), flat.len())).unwrap()
            });
            let others = fast.recv_timeout(Duration::from_secs(10));
            go.send(()).unwrap();
            slow.join().unwrap();
            assert_eq!(others.expect("it waits for an observer").1, 2);
        });
    }

    /// Somebody moves the adapter to another base while its next version is being read.
    #[test]
    #[cfg(feature = "metrics")]
    fn an_adapter_that_is_moved_meanwhile_is_not_moved_back() {
        use metrics::*;

        struct Moves<'r>(&'r WeightRegistry, SetHandle, SetHandle, Cell<bool>);
        impl Recorder for Moves<'_> {
            fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
            fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
                let stage = key.labels().any(|label| label.value() == "stage");
                if stage && !self.3.replace(true) {
                    self.0.rebind(self.1, self.2).unwrap();
                }
                Counter::noop()
            }
            fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
                Gauge::noop()
            }
            fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
                Histogram::noop()
            }
        }
        let flat = flat();
        let core = flat.registry();
        let [one, two] = ["one", "two"].map(|name| core.publish(name, tiny()).unwrap());
        let sealed = slices(&flat, one, "pirate-v1").seal("pirate", one).unwrap();
        let next = slices(&flat, one, "pirate-v2");
        let moves = Moves(core, sealed.set, two, Cell::new(false));
        let refused = with_local_recorder(&moves, || next.seal_over(sealed.set)).unwrap_err();
        assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
        let base = core.scope(|scope| scope.get(sealed.set).unwrap().base());
        assert_eq!(base, Some(two));
    }
}
