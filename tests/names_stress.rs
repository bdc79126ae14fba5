//! Names under load, on the real dashmap: writers fight for the same names, readers
//! look them up. Bounded by iterations.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use support::{bytes, registry};
use weighbridge::{Error, SetName};

const NAMES: usize = 8;
const WRITERS: usize = 4;
const ROUNDS: usize = 300;
const LOOKUPS: usize = 20_000;

fn name(number: usize) -> SetName {
    // Of all lengths, so that blocks of all sizes change hands.
    let name = format!("set-{number}-{}", "x".repeat(number * number * 7));
    SetName::from(("tenant", name.as_str()))
}

#[test]
fn writers_fight_for_names_and_nothing_is_lost() {
    let registry = registry();
    let (won, lost, found) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (registry, won, lost) = (&registry, &won, &lost);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = name((round + writer) % NAMES);
                    match registry.publish(&name, bytes(4, writer as u8)) {
                        Ok(set) => {
                            assert_eq!(registry.lookup(&name), Some(set), "mine, not found");
                            registry.retire(set).unwrap();
                            assert_ne!(registry.lookup(&name), Some(set), "retired, found");
                            won.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(failed) => {
                            let error = Error::from(failed);
                            assert!(error.is_conflict(), "{error}");
                            lost.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        for reader in 0..2 {
            let (registry, found) = (&registry, &found);
            scope.spawn(move || {
                for turn in 0..LOOKUPS {
                    let name = name((turn + reader) % NAMES);
                    if let Some(set) = registry.lookup(&name) {
                        found.fetch_add(1, Ordering::Relaxed);
                        // Retired meanwhile is an answer; another set's name is not.
                        registry.scope(|scope| {
                            if let Ok(view) = scope.get(set) {
                                assert_eq!(*view.name(), name);
                            }
                        });
                    }
                }
            });
        }
    });
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    println!(
        "won {} lost {} found {}",
        count(&won),
        count(&lost),
        count(&found)
    );
    assert_eq!(count(&won) + count(&lost), WRITERS * ROUNDS);
    assert!(count(&won) >= NAMES);
    assert_eq!(
        registry.stats().sets,
        0,
        "a name or a claim was left behind"
    );
    for number in 0..NAMES {
        assert_eq!(registry.lookup(&name(number)), None);
        registry.publish(name(number), bytes(4, 0)).unwrap();
    }
    assert_eq!(registry.stats().sets, NAMES);
}
