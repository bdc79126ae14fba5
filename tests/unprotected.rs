//! What happens when the system does not let memory be protected: it is at its limit of mappings. In a
//! binary of its own: it uses up the process's mappings.
#![cfg(target_os = "linux")]

mod support;

use support::{bytes, mappings};
use weighbridge::{Dtype, Error, Filling, Plan, SetHandle, WeightRegistry};

const LEN: usize = 3 << 20;
const FILLINGS: usize = 12;

fn filled(registry: &WeightRegistry, byte: u8) -> Filling {
    let plan = Plan::of("filled", [("w", Dtype::U8, vec![LEN])]).unwrap();
    let filling = registry.fill(plan, None).unwrap();
    filling
        .writer("w")
        .unwrap()
        .write(&vec![byte; LEN])
        .unwrap();
    filling
}

fn is_protected(registry: &WeightRegistry, set: SetHandle) -> bool {
    let w = registry.weight_handle(set, "w").unwrap();
    let address = registry.acquire(set).unwrap().place(w).unwrap().address();
    mappings::protection(address).unwrap().starts_with("r--")
}

fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Io { op: "protect", .. })
}

#[test]
fn what_cannot_be_protected_is_not_published() {
    let Some(limit) = mappings::limit() else {
        return;
    };
    let registry = WeightRegistry::builder()
        .write_protect(true)
        .build()
        .unwrap();
    // The kernel merges neighbours with the same protection, and needs more mappings to protect one of them.
    let fillings: Vec<_> = (0..FILLINGS)
        .map(|at| filled(&registry, at as u8))
        .collect();
    let total = registry.ledger().total();
    let used_up = mappings::use_up(limit);

    // A filling comes back as it was, charge and all.
    let (mut sealed, mut refused) = (0, Vec::new());
    for (at, filling) in fillings.into_iter().enumerate() {
        match filling.seal() {
            Ok(staged) => {
                let set = registry
                    .publish_staged(format!("sealed {at}"), staged)
                    .unwrap();
                assert!(is_protected(&registry, set));
                sealed += 1;
            }
            Err(failed) => {
                assert!(is_refused(failed.error()), "{failed}");
                refused.push((at, failed.into_filling()));
            }
        }
    }
    if refused.is_empty() {
        println!("skipped: this kernel did not place mappings side by side");
        return;
    }
    assert_eq!(registry.ledger().total(), total);

    // A source leaves nothing behind: neither bytes nor a name. Some find a place beside memory that is
    // protected already, and need no mapping more.
    let (mut before, mut published) = (registry.ledger().total(), 0);
    for at in 0..FILLINGS {
        match registry.publish(format!("late {at}"), bytes(LEN, 1)) {
            Ok(set) => {
                assert!(is_protected(&registry, set));
                (before, published) = (registry.ledger().total(), published + 1);
            }
            Err(failed) => {
                let out_of_memory = matches!(failed.error(), Error::OutOfMemory { .. });
                assert!(is_refused(failed.error()) || out_of_memory, "{failed}");
                assert_eq!(registry.ledger().total(), before);
                assert!(registry.lookup(&*format!("late {at}")).is_none());
            }
        }
    }
    assert_eq!(registry.catalog().entries().len(), sealed + published);

    drop(used_up);
    for (at, filling) in refused {
        let set = registry
            .publish_staged(format!("s{at}"), filling.seal().unwrap())
            .unwrap();
        assert!(is_protected(&registry, set));
        let lease = registry.acquire(set).unwrap();
        assert_eq!(
            lease.set(set).unwrap().get("w").unwrap().bytes(),
            vec![at as u8; LEN]
        );
    }
    registry.publish("now", bytes(LEN, 1)).unwrap();
}
