//! Tenants with limits of their own.
//!
//! What lives here: that an account's limit is met by what is in that account. What does not: what a tenant is
//! told (`refusals`), the total's limit (`going`, `line`).

use std::sync::Arc;
use std::task::{Context, Waker};

use weighbridge::source::Source;
use weighbridge::{Demand, Error, Estimate, NamespaceLimits, SetHandle, WeightRegistry};

use crate::support::{SOON, block_on, bytes};
use crate::{Kitchen, ONE, published, resident};

#[test]
fn a_tenants_limit_is_met_by_its_own_sets() {
    let registry = WeightRegistry::builder()
        .limit_bytes(4 * ONE)
        .build()
        .unwrap();
    let (registry, kitchen, sets) = published(registry, 2);
    let tenant = registry.namespace("tenant-7").unwrap();
    let limits = NamespaceLimits::none().bytes(2 * ONE);
    registry.set_namespace_limits("tenant-7", limits).unwrap();
    let kitchen_of_tenant = Kitchen::new(3);
    let own: Vec<SetHandle> = (0..3)
        .map(|at| {
            let source = kitchen_of_tenant.source(at);
            let set = tenant.publish(&format!("t{at}"), source).unwrap();
            tenant.evict(set).unwrap();
            set
        })
        .collect();
    // Whatever is oldest, the tenant's limit is met by the tenant's.
    drop(registry.acquire_or_load(sets[0], SOON).unwrap());
    drop(tenant.acquire_or_load([own[0], sets[0]], SOON).unwrap());
    drop(tenant.acquire_or_load(own[1], SOON).unwrap());
    drop(tenant.acquire_or_load(own[2], SOON).unwrap());
    assert_eq!(resident(&registry), ["s0", "tenant-7/t1", "tenant-7/t2"]);
    let refused = tenant.acquire_or_load(&own[..], SOON).unwrap_err();
    assert!(
        matches!(&refused, Error::NeverFits { account: Some(account), .. } if account.name() == "tenant-7"),
        "{refused}"
    );
    // The total's limit is met by anybody's.
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    let fixed = registry.publish("fixed", bytes(0, 1)).unwrap();
    registry.retire(fixed).unwrap();
    let all = registry.ledger();
    assert_eq!((all.total(), all.peak), (4 * ONE, 4 * ONE));
    assert_eq!(kitchen.reads(0) + kitchen.reads(1), 2);
    // Somebody else's is no tenant's business.
    let other = registry.namespace("tenant-8").unwrap();
    let refused = other.acquire_or_load(own[0], SOON).unwrap_err();
    assert!(matches!(refused, Error::WrongNamespace { .. }), "{refused}");
}

/// An account that is short is not helped by what is others': nothing of that goes, however long it waits.
#[test]
fn whoever_is_at_the_limit_of_an_account_takes_nothing_of_others() {
    let registry = WeightRegistry::builder()
        .limit_bytes(3 * ONE)
        .build()
        .unwrap();
    let registry = Arc::new(registry);
    let kitchen = Kitchen::new(4);
    let limits = NamespaceLimits::none().bytes(2 * ONE);
    registry.set_namespace_limits("t", limits).unwrap();
    let tenant = registry.namespace("t").unwrap();
    let own: Vec<SetHandle> = (0..3)
        .map(|at| {
            let set = tenant
                .publish(&format!("t{at}"), kitchen.source(at))
                .unwrap();
            tenant.evict(set).unwrap();
            set
        })
        .collect();
    let other = registry.publish("other", kitchen.source(3)).unwrap();
    let lease = registry.acquire_or_load([own[0], own[1]], SOON).unwrap();
    // The total is full, and so is the tenant.
    let mut waits = Box::pin(registry.acquire_or_load_async(own[2]));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(registry.acquire(other).unwrap());
    }
    drop(lease);
    drop(block_on(waits).unwrap());
    assert!(registry.acquire(other).is_ok());
    assert_eq!(registry.ledger().retired, 0);
}

/// Two idle sets in an account of three, whose limit is set to one.
fn overdrawn() -> (WeightRegistry, Vec<SetHandle>) {
    let registry = WeightRegistry::builder().build().unwrap();
    let kitchen = Kitchen::new(3);
    let sets: Vec<SetHandle> = ["a", "b", "c"]
        .iter()
        .enumerate()
        .map(|(at, &name)| registry.publish(("t", name), kitchen.source(at)).unwrap())
        .collect();
    registry.evict(sets[2]).unwrap();
    let limits = NamespaceLimits::none().bytes(ONE);
    registry.set_namespace_limits("t", limits).unwrap();
    (registry, sets)
}

/// The third one comes if both go.
#[test]
fn an_account_over_its_limit_is_brought_below_it() {
    let (registry, sets) = overdrawn();
    let estimate = registry.estimate(&Demand::new().set(sets[2])).unwrap();
    assert!(
        matches!(&estimate, Estimate::AfterEvicting { sets, .. } if sets.len() == 2),
        "{estimate:?}"
    );
    registry.acquire_or_load(sets[2], SOON).unwrap();
    assert_eq!(registry.stats().evictions, 2);
    assert_eq!(registry.ledger().total(), ONE);
}

/// Of the account nothing more is wanted, so what is beyond its limit is in nobody's way.
#[test]
fn an_account_of_which_nothing_is_wanted_is_in_nobodys_way() {
    let registry = WeightRegistry::builder().limit_bytes(4 * ONE);
    let registry = registry.build().unwrap();
    let kitchen = Kitchen::new(1);
    let fixed = registry.publish(("t", "fixed"), bytes(2 * ONE as usize, 1));
    let fixed = fixed.unwrap();
    let idle = registry.publish(("u", "idle"), kitchen.source(0)).unwrap();
    let limits = NamespaceLimits::none().bytes(ONE);
    registry.set_namespace_limits("t", limits).unwrap();
    let plan = |len: u64| {
        let source = bytes(len as usize, 1);
        source.plan().clone()
    };
    let demand = Demand::new().drained_replacement(fixed, &plan(ONE));
    let demand = demand.plan("u", &plan(2 * ONE));
    let estimate = registry.estimate(&demand).unwrap();
    assert!(
        matches!(&estimate, Estimate::AfterEvicting { sets, .. } if sets.len() == 1),
        "{estimate:?}"
    );
    registry.evict(idle).unwrap();
    assert!(matches!(
        registry.estimate(&demand).unwrap(),
        Estimate::Now { .. }
    ));
}

/// One of the two is leased.
#[test]
fn an_estimate_of_an_account_over_its_limit() {
    let (registry, sets) = overdrawn();
    let _lease = registry.acquire(sets[0]).unwrap();
    let estimate = registry.estimate(&Demand::new().set(sets[2])).unwrap();
    assert!(
        matches!(estimate, Estimate::WhenReleased { missing, .. } if missing == ONE),
        "{estimate:?}"
    );
}
