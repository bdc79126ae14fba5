//! The ledger's promises, without a registry.

use super::*;
use crate::error::Error;

#[test]
fn every_state_counts_and_the_end_is_exact() {
    let ledger = Ledger::new(100);
    let a = ledger.reserve(60).unwrap();
    assert!(matches!(
        ledger.reserve(41).unwrap_err(),
        Error::OverLimit {
            requested: 41,
            in_use: 60,
            limit: 100
        }
    ));
    a.settle();
    let b = ledger.reserve(40).unwrap();
    a.retire();
    let now = ledger.snapshot();
    assert_eq!(
        (now.reserved, now.resident, now.retired, now.peak),
        (40, 0, 60, 100)
    );
    assert!(
        ledger.reserve(1).is_err(),
        "retired bytes count until they are back"
    );
    drop(a);
    drop(b);
    let now = ledger.snapshot();
    assert_eq!((now.total(), now.peak), (0, 100));
}

#[test]
fn the_state_is_the_strongest_of_the_uses() {
    let ledger = Ledger::new(100);
    let states = || {
        let now = ledger.snapshot();
        (now.reserved, now.resident, now.kept, now.retired)
    };
    let charge = ledger.reserve(10).unwrap();
    assert_eq!(states(), (10, 0, 0, 0));
    charge.settle();
    charge.unsettle();
    assert_eq!(states(), (10, 0, 0, 0), "refused: a reservation again");
    charge.settle();
    charge.keep();
    charge.retire();
    assert_eq!(states(), (0, 0, 10, 0));
    charge.settle();
    charge.forget();
    assert_eq!(states(), (0, 10, 0, 0), "rolled back to");
    charge.settle();
    charge.retire();
    assert_eq!(states(), (0, 10, 0, 0), "rebound: the new one has them");
    charge.retire();
    assert_eq!(states(), (0, 0, 0, 10));
    charge.settle();
    charge.unsettle();
    assert_eq!(states(), (0, 0, 0, 10), "refused: as it was");
    drop(charge);
    assert_eq!(states(), (0, 0, 0, 0));
}

#[test]
fn a_charge_that_is_used_again_never_lets_go_of_its_bytes() {
    let ledger = Ledger::new(100);
    let old = ledger.reserve(60).unwrap();
    old.settle();
    old.retire();
    let more = ledger.reserve(30).unwrap();
    let both = old.reuse(more);
    let now = ledger.snapshot();
    assert_eq!((now.reserved, now.total(), both.bytes()), (90, 90, 90));
    both.shrink_to(70);
    assert_eq!(ledger.snapshot().total(), 70);
    both.shrink_to(80);
    assert_eq!(both.bytes(), 70, "it only shrinks");
    drop(both);
    assert_eq!((ledger.snapshot().total(), ledger.snapshot().peak), (0, 90));
}

#[test]
fn a_reservation_near_the_end_of_u64_does_not_wrap() {
    let ledger = Ledger::new(u64::MAX);
    let _most = ledger.reserve(u64::MAX - 1).unwrap();
    assert!(ledger.reserve(2).is_err());
    assert!(ledger.reserve(1).is_ok());
}

#[test]
fn racing_reservations_never_pass_the_limit() {
    let ledger = Ledger::new(10);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..2_000u64 {
                    if let Ok(charge) = ledger.reserve(1 + round % 7) {
                        charge.settle();
                        assert!(ledger.snapshot().total() <= 10);
                        charge.retire();
                    }
                }
            });
        }
    });
    let end = ledger.snapshot();
    assert_eq!(end.total(), 0);
    assert!(end.peak <= 10 && end.peak > 0);
}
