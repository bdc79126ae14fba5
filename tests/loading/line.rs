//! The line of those who wait for room.
//!
//! What lives here: what makes them go on, that nobody in it waits for ever, and that all of them together stay
//! under the limit. What does not: which sets go for them (`going`), whoever leaves the line (`futures`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use weighbridge::{Account, Error, SetHandle};

use crate::support::device::until;
use crate::support::{SOON, block_on, bytes};
use crate::{ONE, away, resident, value};

/// The end of a lease wakes nobody by itself; what it made possible is seen all the same.
#[test]
fn whoever_waits_goes_on_when_a_lease_ends() {
    let (registry, _, sets) = away(3, 1);
    let registry = Arc::new(registry);
    let lease = registry.acquire_or_load(sets[0], SOON).unwrap();
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| registry.acquire_or_load(sets[1], SOON).map(drop));
        let task = threads.spawn(|| block_on(registry.acquire_or_load_async(sets[2])).map(drop));
        until("they wait", || registry.stats().waiting == 2);
        assert_eq!(value(&lease, sets[0]), 0);
        drop(lease);
        waits.join().unwrap().unwrap();
        task.join().unwrap().unwrap();
    });
    assert_eq!(registry.ledger().peak, ONE);
}

/// What comes back to the ledger wakes those who wait: a retired set, a reservation, a higher limit.
#[test]
fn whoever_waits_goes_on_when_bytes_come_back() {
    let (registry, _, sets) = away(1, 1);
    let ends: [&dyn Fn() -> Box<dyn FnOnce() + Send>; 2] = [
        &|| {
            let device = Account::namespace("");
            let charge = registry.reserve_in(&device, ONE).unwrap();
            Box::new(move || drop(charge))
        },
        &|| {
            let staged = registry.stage(bytes(64, 1)).unwrap();
            Box::new(move || drop(staged))
        },
    ];
    for end in ends {
        let end = end();
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| registry.acquire_or_load(sets[0], SOON).map(drop));
            until("it waits", || registry.stats().waiting == 1);
            end();
            waits.join().unwrap().unwrap();
        });
        registry.evict(sets[0]).unwrap();
    }
}

/// Each wants two of three, and there is room for two: whoever took one and waited for the other would
/// wait for ever.
#[test]
fn requests_for_several_sets_do_not_block_each_other() {
    let (registry, _, sets) = away(3, 2);
    let registry = Arc::new(registry);
    let rounds = 60;
    std::thread::scope(|threads| {
        for number in 0..6 {
            let (registry, sets) = (&registry, &sets);
            threads.spawn(move || {
                for round in 0..rounds {
                    let first = (number + round) % 3;
                    let pair = [sets[first], sets[(first + 1) % 3]];
                    let lease = if number % 2 == 0 {
                        registry.acquire_or_load(pair, SOON)
                    } else {
                        block_on(registry.acquire_or_load_async(pair))
                    };
                    let lease = lease.unwrap();
                    assert_eq!(value(&lease, pair[0]), first);
                    assert_eq!(value(&lease, pair[1]), (first + 1) % 3);
                }
            });
        }
    });
    let ledger = registry.ledger();
    assert!(ledger.peak <= 2 * ONE, "{ledger:?}");
    assert_eq!((ledger.reserved, ledger.retired), (0, 0));
    assert_eq!(registry.stats().waiting, 0);
}

/// One wants all there is, while others never stop asking for one each.
#[test]
fn who_wants_much_is_not_passed_for_ever() {
    let (registry, _, sets) = away(8, 3);
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for number in 0..3 {
            let (registry, sets, done) = (&registry, &sets, &done);
            threads.spawn(move || {
                for round in 0.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    let set = sets[3 + (number + round) % 5];
                    drop(registry.acquire_or_load(set, SOON).unwrap());
                }
            });
        }
        for _ in 0..10 {
            let all = registry.acquire_or_load(&sets[..3], SOON).unwrap();
            assert_eq!(value(&all, sets[2]), 2);
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(registry.ledger().peak <= 3 * ONE);
}

/// Many threads, random sets, random failures, a third of what they want: never over the limit, nobody
/// hangs, and at the end every byte is accounted for.
#[test]
fn a_third_of_the_working_set_is_enough() {
    let sets_in_all = 24;
    let (registry, kitchen, sets) = away(sets_in_all, 8);
    let registry = Arc::new(registry);
    let (failed, served) = (AtomicU64::new(0), AtomicU64::new(0));
    let barrier = Barrier::new(8);
    std::thread::scope(|threads| {
        for number in 0..8u64 {
            let (registry, kitchen, sets) = (&registry, &kitchen, &sets);
            let (failed, served, barrier) = (&failed, &served, &barrier);
            threads.spawn(move || {
                let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut random = |below: usize| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    (seed % below as u64) as usize
                };
                barrier.wait();
                for _ in 0..150 {
                    let some: Vec<SetHandle> = (0..1 + random(3))
                        .map(|_| sets[random(sets_in_all).min(random(sets_in_all))])
                        .collect();
                    kitchen.breaks(random(sets_in_all), random(4) == 0);
                    let lease = match random(3) {
                        0 => block_on(registry.acquire_or_load_async(&some)),
                        1 => {
                            let patience = Duration::from_micros(random(3000) as u64);
                            registry.acquire_or_load(&some, patience)
                        }
                        _ => registry.acquire_or_load(&some, SOON),
                    };
                    match lease {
                        Ok(lease) => {
                            for &set in &some {
                                let at = sets.iter().position(|one| *one == set).unwrap();
                                assert_eq!(value(&lease, set), at);
                            }
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(
                            Error::LoadFailed { .. }
                            | Error::BackingOff { .. }
                            | Error::NotLoaded(_),
                        ) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(other) => panic!("{other}"),
                    }
                    if random(8) == 0 {
                        let _ = registry.evict(sets[random(sets_in_all)]);
                    }
                }
            });
        }
    });
    let (failed, served) = (failed.into_inner(), served.into_inner());
    assert!(failed > 0 && served > 0, "{failed} failed, {served} served");
    let stats = registry.stats();
    assert_eq!(stats.waiting, 0);
    // A load that nobody waits for any more may still be under way.
    until("every load ends", || registry.ledger().reserved == 0);
    let ledger = registry.ledger();
    assert!(ledger.peak <= 8 * ONE, "{ledger:?}");
    assert_eq!(ledger.total(), resident(&registry).len() as u64 * ONE);
    for at in 0..sets_in_all {
        kitchen.breaks(at, false);
    }
    for &set in &sets {
        until("nobody has it", || registry.evict(set).is_ok());
    }
    assert_eq!(registry.ledger().total(), 0);
}
