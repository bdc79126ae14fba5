//! The registry says one thing, the engine another: names without bytes, bytes without names, two answers
//! to one question.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use weighbridge::source::{Checkpoint, InMemory, PeftAdapter, Source};
use weighbridge::{Error, Plan};

use crate::support::{SOON, bytes, registry, tiny};
use crate::{first_byte, served};

/// vLLM #54839, #42633: unload forgets the name only, the bytes stay; a reload keeps both copies.
#[test]
fn unloading_gives_the_bytes_back_and_reloading_does_not_keep_two() {
    let registry = registry();
    for fill in 0..20 {
        let set = registry.publish("a", bytes(4096, fill)).unwrap();
        assert_eq!(registry.ledger().total(), 4096);
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().total(), 0);
    }
}

/// SGLang #31084: each worker has a registry of its own, and they disagree on what is loaded.
#[test]
fn all_threads_agree_on_what_is_loaded() {
    const WORKERS: usize = 4;
    let registry = registry();
    let done = AtomicBool::new(false);
    let loaded = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // What was loaded when we looked is found by whoever looks after that.
                    for number in 0..loaded.load(Ordering::Acquire) {
                        let name = format!("adapter-{number}");
                        let set = registry.lookup(name.as_str()).expect("never loaded");
                        let lease = registry.acquire(set).unwrap();
                        assert_eq!(usize::from(first_byte(&lease, set)), number);
                        let again = registry.publish(name, bytes(64, 0)).unwrap_err();
                        assert!(matches!(again.error(), Error::AlreadyPublished { .. }));
                    }
                }
            });
        }
        for number in 0..40 {
            let name = format!("adapter-{number}");
            registry.publish(name, bytes(64, number)).unwrap();
            loaded.store(usize::from(number) + 1, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.stats().sets, 40);
}

/// Dynamo #11163: a load fails, its rollback fails, and "already loaded" is answered for ever.
#[test]
fn a_name_whose_load_failed_is_as_if_it_had_never_been_asked_for() {
    struct Fails(InMemory);
    impl Source for Fails {
        fn plan(&self) -> &Plan {
            self.0.plan()
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::MissingShard {
                file: "made up".into(),
            })
        }
    }
    let registry = registry();
    for fill in 0..10 {
        let failed = registry.publish("a", Fails(bytes(64, fill))).unwrap_err();
        assert!(failed.error().is_malformed());
        let set = registry.publish("a", bytes(64, fill)).unwrap();
        let failed = registry.replace(set, Fails(bytes(64, 99))).unwrap_err();
        assert!(failed.error().is_malformed());
        assert_eq!(first_byte(&registry.acquire(set).unwrap(), set), fill);
        registry.retire(set).unwrap();
    }
}

/// Dynamo PR #11520: an unload runs while a request waits to be admitted; the request then loads the adapter
/// again, and nobody has it in his books.
#[test]
fn a_request_that_was_admitted_too_late_brings_nothing_back() {
    let registry = registry();
    let set = registry.publish("a", bytes(64, 1)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    for _ in 0..10 {
        assert!(matches!(
            registry.acquire(set),
            Err(Error::StaleHandle { .. })
        ));
        assert!(
            registry
                .replace(set, bytes(64, 1))
                .unwrap_err()
                .error()
                .is_not_found()
        );
        assert!(registry.weight_handle(w.set(), "w").is_err());
    }
    assert_eq!(registry.lookup("a"), None);
    assert!(registry.catalog().entries().is_empty());
    assert_eq!(registry.ledger().total(), 0);
}

/// Dynamo PRs #5154 and #5184: two loads of one name at once load it twice or spoil the tables; addresses
/// that differ only in what the cache's key leaves out are one adapter.
#[test]
fn many_loads_of_one_name_are_one_and_names_that_look_alike_are_many() {
    const LOADERS: usize = 6;
    let registry = registry();
    for round in 0..50 {
        let start = Barrier::new(LOADERS);
        let won = AtomicUsize::new(0);
        thread::scope(|scope| {
            for loader in 0..LOADERS {
                let (registry, start, won) = (&registry, &start, &won);
                scope.spawn(move || {
                    start.wait();
                    match registry.publish("a", bytes(64, loader as u8)) {
                        Ok(set) => {
                            won.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(usize::from(served(registry, set)), loader);
                        }
                        Err(failed) => assert!(matches!(
                            failed.error(),
                            Error::AlreadyPublished { .. } | Error::NameBusy { .. }
                        )),
                    }
                });
            }
        });
        assert_eq!(
            (won.into_inner(), registry.ledger().total()),
            (1, 64),
            "round {round}"
        );
        let set = registry.lookup("a").unwrap();
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    }
    let alike = [
        ("", "s3://a/b"),
        ("", "s3://a_b"),
        ("s3:", "//a/b"),
        ("s3://a", "/b"),
        ("", "S3://a/b"),
    ];
    let sets = alike.map(|name| registry.publish(name, bytes(64, 1)).unwrap());
    for (name, set) in alike.into_iter().zip(sets) {
        assert_eq!(registry.lookup(name), Some(set));
    }
    assert_eq!(registry.stats().sets, alike.len());
}

/// LoRAX #14: the router panics on `Option::unwrap` when an adapter cannot be loaded.
#[test]
fn an_adapter_that_cannot_be_loaded_is_an_error_of_its_own_request() {
    let registry = registry();
    let base = registry.publish("base", tiny()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(
        PeftAdapter::open(dir.path().join("nowhere"))
            .unwrap_err()
            .is_io()
    );
    assert!(PeftAdapter::open(dir.path()).is_err());
    std::fs::write(dir.path().join("adapter_config.json"), "{").unwrap();
    assert!(PeftAdapter::open(dir.path()).unwrap_err().is_malformed());
    let misfit = InMemory::new().lora(
        "nowhere",
        weighbridge::Dtype::U8,
        ([1, 4], [0; 4]),
        ([4, 1], [0; 4]),
        1.0,
    );
    let failed = registry.publish("x", misfit.unwrap().on(base)).unwrap_err();
    assert!(
        matches!(failed.error(), Error::AdapterMismatch { .. }),
        "{failed}"
    );
    // Whoever asks for it is told so, the base is served, and it can be loaded later.
    assert_eq!(registry.lookup("x"), None);
    assert!(registry.acquire(base).is_ok());
    registry
        .publish("x", crate::support::adapter("pirate-v1", base))
        .unwrap();
    assert!(Checkpoint::open(dir.path()).is_err());
}
