//! Threads: many of them, and how they end.

#[path = "support/at_exit.rs"]
mod at_exit;
mod support;

use std::cell::RefCell;

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use at_exit::{BOTH, at_exit, last_words};
use support::{SOON, bytes, registry};
use weighbridge::{Reader, WeightRegistry};

#[test]
fn thread_local_destructors_may_do_everything() {
    for made in BOTH {
        let registry = Arc::new(registry());
        let set = registry.publish("leased", bytes(64, 7)).unwrap();
        let (told, hear) = mpsc::channel();
        let mine = Arc::clone(&registry);
        // Not in that thread: it must not meet the registry before its time.
        let lease = mine.acquire_as("in a thread-local", set).unwrap();
        let ended = thread::spawn(move || {
            let other = Arc::clone(&mine);
            at_exit(
                made,
                || drop(mine.acquire(set).unwrap()),
                move || last_words(&other, set, lease, "at exit"),
                move |well| told.send(well).unwrap(),
            );
        });
        ended.join().unwrap();
        assert!(hear.recv().unwrap(), "{made:?}");
        for going in registry.retired() {
            going.reclaimed(SOON).unwrap();
        }
        assert_eq!((registry.ledger().total(), registry.stats().sets), (0, 0));
    }
}

#[test]
fn thread_local_destructors_drop_what_outlived_the_registry() {
    for made in BOTH {
        let registry = registry();
        let sets = ["a", "b"].map(|name| registry.publish(name, bytes(64, 7)).unwrap());
        let (told, hear) = mpsc::channel();
        let (gone, wait_gone) = mpsc::channel();
        let (ready, wait_ready) = mpsc::channel();
        let registry = Arc::new(registry);
        let mine = Arc::clone(&registry);
        let leases = [
            mine.acquire_as("in a thread-local", sets).unwrap(),
            mine.acquire(sets[0]).unwrap(),
        ];
        let ended = thread::spawn(move || {
            let staged = mine.stage(bytes(64, 1)).unwrap();
            let filling = mine.fill(staged.plan().clone(), None).unwrap();
            at_exit(
                made,
                || drop(mine.acquire(sets).unwrap()),
                move || {
                    for lease in &leases {
                        assert_eq!(
                            lease.sets().next().unwrap().get("w").unwrap().bytes(),
                            [7; 64]
                        );
                    }
                    drop((leases.clone(), leases, staged, filling));
                },
                move |well| told.send(well).unwrap(),
            );
            drop(mine);
            ready.send(()).unwrap();
            wait_gone.recv().unwrap();
        });
        wait_ready.recv().unwrap();
        let registry = Arc::into_inner(registry).expect("the thread gave its share back");
        let going = registry.retire(sets[1]).unwrap();
        assert_eq!(registry.ledger().reserved, 128);
        drop(registry);
        gone.send(()).unwrap();
        going.reclaimed(SOON).unwrap();
        ended.join().unwrap();
        assert!(hear.recv().unwrap(), "{made:?}");
    }
}

#[test]
fn a_thread_local_destructor_drops_the_registry() {
    for made in BOTH {
        let registry = registry();
        let set = registry.publish("a", bytes(64, 7)).unwrap();
        let lease = registry.acquire(set).unwrap();
        let going = registry.retire(set).unwrap();
        let (told, hear) = mpsc::channel();
        let ended = thread::spawn(move || {
            let registry = Arc::new(registry);
            let mine = Arc::clone(&registry);
            at_exit(
                made,
                || registry.scope(|_| ()),
                move || {
                    drop(Arc::into_inner(mine).expect("the last share"));
                    drop(lease);
                },
                move |well| told.send(well).unwrap(),
            );
        });
        ended.join().unwrap();
        assert!(hear.recv().unwrap(), "{made:?}");
        going.reclaimed(SOON).unwrap();
    }
}

#[test]
fn a_reader_may_be_a_thread_local() {
    static REGISTRY: OnceLock<WeightRegistry> = OnceLock::new();
    thread_local! {
        static READER: RefCell<Option<Reader<'static>>> = const { RefCell::new(None) };
    }
    let registry = REGISTRY.get_or_init(registry);
    let set = registry.publish("a", bytes(64, 7)).unwrap();
    for made in BOTH {
        let (told, hear) = mpsc::channel();
        let ended = thread::spawn(move || {
            READER.with_borrow_mut(|reader| *reader = Some(registry.reader()));
            at_exit(
                made,
                || registry.scope(|_| ()),
                move || {
                    // Another destructor's thread-local may be gone already; then there is nothing to
                    // ask.
                    let _ = READER.try_with(|reader| {
                        let reader = reader.borrow();
                        assert!(reader.as_ref().unwrap().acquire(set).is_ok());
                    });
                },
                move |well| told.send(well).unwrap(),
            );
        });
        ended.join().unwrap();
        assert!(hear.recv().unwrap(), "{made:?}");
    }
    // All of their participants are gone: nothing keeps what is superseded.
    let swap = registry.replace(set, bytes(64, 8)).unwrap();
    swap.previous.reclaimed(SOON).unwrap();
}
