//! Memory: the ledger at its limit, staging, filling.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use weighbridge::{Account, Dtype, Error, NamespaceLimits, Plan};

use super::Size;
use super::crew::Crew;
use super::oracle::{CHARGE, Stamp, close, limited, registry, source, stamp_in};

/// More loads than there is room for: never over the limit at any instant.
pub fn ledger_at_its_limit(size: Size) {
    let limit = 3 * CHARGE + CHARGE / 2;
    let registry = limited(limit);
    let tenant = NamespaceLimits::none().bytes(2 * CHARGE).sets(1);
    registry.set_namespace_limits("tenant", tenant).unwrap();
    let mut crew = Crew::new();
    for thread in 0..size.threads as u64 {
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            for round in 0..size.rounds {
                // Each its own set, all tenants the same one, and what is not the registry's.
                let name = match thread % 3 {
                    0 => weighbridge::SetName::from(format!("set-{thread}").as_str()),
                    1 => weighbridge::SetName::from(("tenant", "same")),
                    _ => {
                        let account = Account::namespace("tenant");
                        match registry.reserve_in(&account, CHARGE) {
                            Ok(charge) => drop(charge),
                            Err(refused) => assert!(refused.is_over_limit(), "{refused}"),
                        }
                        continue;
                    }
                };
                match registry.publish(name, source(thread, round)) {
                    Ok(set) => drop(registry.retire(set).unwrap()),
                    Err(refused) => {
                        let error = refused.error();
                        assert!(error.is_over_limit() || error.is_conflict(), "{error}");
                    }
                }
            }
        });
    }
    let observer = Arc::clone(&registry);
    crew.follow(move || {
        let ledger = observer.ledger();
        assert!(
            ledger.total() <= limit && ledger.peak <= limit,
            "{ledger:?}"
        );
        let tenant = observer.account(&Account::namespace("tenant"));
        assert!(tenant.total() <= 2 * CHARGE, "{tenant:?}");
    });
    crew.work();
    close(&registry);
}

/// Many threads fill one set, a piece at a time, each wherever the last one stopped.
pub fn filled_by_many(size: Size) {
    const TENSORS: usize = 3;
    const TENSOR: usize = 512;
    const PIECE: usize = 24;
    let registry = registry();
    for round in 0..size.rounds.div_ceil(4) {
        let stamp = move |tensor: usize| Stamp {
            set: tensor as u64,
            version: round,
        };
        let name = |tensor: usize| format!("t{tensor}");
        let tensors = (0..TENSORS).map(|tensor| (name(tensor), Dtype::U8, vec![TENSOR]));
        let plan = Plan::of("many threads", tensors).unwrap();
        let filling = Arc::new(registry.fill(plan, None).unwrap());
        let full = Arc::new(AtomicUsize::new(0));
        let mut crew = Crew::new();
        for thread in 0..size.threads {
            let (filling, full) = (Arc::clone(&filling), Arc::clone(&full));
            crew.lead(move || {
                let mut turn = thread;
                while full.load(Ordering::Relaxed) < TENSORS {
                    turn += 1;
                    let tensor = turn % TENSORS;
                    let mut writer = match filling.writer(&name(tensor)) {
                        Ok(writer) => writer,
                        Err(Error::TensorBusy { .. }) => {
                            std::thread::yield_now();
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    let left = writer.remaining();
                    if left == 0 {
                        continue;
                    }
                    let (from, piece) = (TENSOR - left, left.min(PIECE));
                    let bytes = stamp(tensor).bytes(TENSOR);
                    writer.write(&bytes[from..from + piece]).unwrap();
                    drop(writer);
                    full.fetch_add(usize::from(left == piece), Ordering::Relaxed);
                }
            });
        }
        crew.work();
        let filling = Arc::into_inner(filling).expect("all threads are done");
        let set = registry
            .publish_staged("filled", filling.seal().unwrap())
            .unwrap();
        let lease = registry.acquire(set).unwrap();
        for tensor in 0..TENSORS {
            let weight = lease.set(set).unwrap().get(&name(tensor)).unwrap();
            assert_eq!(Stamp::of(weight.bytes()), stamp(tensor));
        }
        registry.retire(set).unwrap();
    }
    close(&registry);
}

/// Sets with the same tensors are staged at once, so that they meet at one layout; some are not
/// published.
pub fn staged_by_many(size: Size) {
    let registry = registry();
    let mut crew = Crew::new();
    for thread in 0..size.threads as u64 {
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            let name = format!("set-{thread}");
            for round in 0..size.rounds {
                let staged = registry.stage(source(thread, round)).unwrap();
                if round % 3 == 2 {
                    continue;
                }
                let set = registry.publish_staged(name.as_str(), staged).unwrap();
                let lease = registry.acquire(set).unwrap();
                let stamp = stamp_in(&lease, set);
                assert_eq!((stamp.set, stamp.version), (thread, round));
                registry.retire(set).unwrap();
            }
        });
    }
    let observer = Arc::clone(&registry);
    crew.follow(move || assert!(observer.stats().layouts <= 1));
    crew.work();
    close(&registry);
}
