//! Weights one by one.

use std::sync::Arc;

use weighbridge::Dtype;
use weighbridge::flat::FlatRegistry;

use super::Size;
use super::crew::Crew;
use super::oracle::{LEN, Stamp, close, registry};

/// Registered, looked up, pinned and unregistered under the same few names.
pub fn flat_weights(size: Size) {
    const NAMES: u64 = 3;
    let registry = registry();
    let flat = Arc::new(FlatRegistry::new(Arc::clone(&registry)));
    let name = |number: u64| format!("w{number}");
    let mut crew = Crew::new();
    for writer in 0..2 {
        let flat = Arc::clone(&flat);
        crew.lead(move || {
            for round in 0..size.rounds {
                let set = (round + writer) % NAMES;
                let stamp = Stamp {
                    set,
                    version: round * 2 + writer,
                };
                let bytes = stamp.bytes(LEN);
                match flat.register(name(set).as_str(), Dtype::U8, [LEN], &bytes) {
                    Ok(registered) => drop(flat.unregister(registered.handle()).unwrap()),
                    Err(lost) => assert!(lost.is_conflict(), "{lost}"),
                }
            }
        });
    }
    for reader in 0..size.threads as u64 {
        let flat = Arc::clone(&flat);
        let mut turn = reader;
        crew.follow(move || {
            turn += 1;
            let set = turn % NAMES;
            let Some(handle) = flat.lookup(name(set).as_str()) else {
                return;
            };
            if let Ok(pinned) = flat.get(handle) {
                assert_eq!(Stamp::of(pinned.bytes()).set, set, "another name's weight");
                assert_eq!((pinned.name(), pinned.handle()), (&*name(set), handle));
                assert_eq!(pinned.clone().bytes(), pinned.bytes());
            }
        });
    }
    crew.work();
    assert_eq!((flat.len(), flat.total_bytes()), (0, 0));
    drop(flat);
    close(&registry);
}
