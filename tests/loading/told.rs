//! What is told before anything happens, and while it does.
//!
//! What lives here: estimates, plans, the line of running and waiting adapters. What does not: errors
//! (`refusals`), events and statistics, which are checked where they are caused.

use std::sync::Arc;
use std::task::{Context, Waker};

use weighbridge::source::{Evictable, Source};
use weighbridge::{Account, Demand, Estimate, Plan, WeightRegistry};

use crate::support::device::until;
use crate::support::{SOON, addition, block_on, bytes};
use crate::{ONE, away, resident};

#[test]
fn an_estimate_says_what_then_happens() {
    let (registry, _, sets) = away(5, 3);
    let one = Demand::new().set(sets[0]);
    assert_eq!(
        registry.estimate(&one).unwrap(),
        estimate_now(ONE),
        "nothing was changed"
    );
    assert!(resident(&registry).is_empty());
    let lease = registry.acquire_or_load(sets[0], SOON).unwrap();
    assert_eq!(registry.estimate(&one).unwrap(), estimate_now(0));
    drop(registry.acquire_or_load(sets[1], SOON).unwrap());
    drop(registry.acquire_or_load(sets[2], SOON).unwrap());
    let two = Demand::new().set(sets[3]).set(sets[4]).set(sets[3]);
    let Estimate::AfterEvicting {
        bytes,
        sets: going,
        freed,
        ..
    } = registry.estimate(&two).unwrap()
    else {
        panic!("two are idle")
    };
    let going: Vec<String> = going.iter().map(ToString::to_string).collect();
    assert_eq!(
        (bytes, freed, &going[..]),
        (2 * ONE, 2 * ONE, &["s1".to_owned(), "s2".to_owned()][..])
    );
    // Beside bytes that are no weights.
    let more = two.clone().bytes(&Account::namespace(""), 1);
    let Estimate::WhenReleased {
        missing, leased, ..
    } = registry.estimate(&more).unwrap()
    else {
        panic!("one is leased")
    };
    assert_eq!((missing, leased.len()), (1, 1));
    let Estimate::Never { missing, .. } = registry.estimate(&more.set(sets[0])).unwrap() else {
        panic!("all are wanted")
    };
    assert_eq!(missing, 1);
    // Foreign memory has its own limit.
    let gpu = Account::foreign("gpu0");
    registry.set_account_limit(&gpu, Some(10)).unwrap();
    let fits = registry.estimate(&Demand::new().bytes(&gpu, 10)).unwrap();
    assert_eq!(fits, estimate_now(10));
    let never = registry.estimate(&Demand::new().bytes(&gpu, 11)).unwrap();
    assert!(matches!(
        never,
        Estimate::Never {
            missing: 1,
            account: Some(_),
            ..
        }
    ));
    assert_eq!(registry.ledger().total(), 3 * ONE);
    drop(registry.acquire_or_load([sets[3], sets[4]], SOON).unwrap());
    assert_eq!(resident(&registry), ["s0", "s3", "s4"]);
    drop(lease);
}

/// A plan is exact before anything is read.
#[test]
fn what_a_plan_says_is_what_is_charged() {
    let registry = WeightRegistry::builder().build().unwrap();
    let source = bytes(100, 3);
    let planned: &Plan = source.plan();
    let (charged, demand) = (planned.charged_bytes(), Demand::new().plan("", planned));
    assert_eq!(registry.estimate(&demand).unwrap(), estimate_now(charged));
    registry.publish("s", source).unwrap();
    assert_eq!(registry.ledger().total(), charged);
}

/// What routers ask for: who serves, who is waited for.
#[test]
fn adapters_that_serve_and_that_are_waited_for_are_told() {
    let registry = Arc::new(
        WeightRegistry::builder()
            .limit_bytes(3 * ONE)
            .build()
            .unwrap(),
    );
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    let adapters = ["one", "two", "with \"quotes\" and \\"].map(|name| {
        let open = move || Ok(addition(64, 2, base));
        let source = Evictable::opened_by(open).unwrap();
        let set = registry.publish(name, source).unwrap();
        registry.evict(set).unwrap();
        set
    });
    let told = || {
        let line = registry.lora_requests_info().to_prometheus("it", 2);
        let (labels, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().unwrap() > 1e9, "{value}");
        labels.to_owned()
    };
    let of = |running: &str, waiting: &str| {
        format!(
            r#"it{{max_lora="2",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}}"#
        )
    };
    assert_eq!(told(), of("", ""));
    let one = registry.acquire_or_load([base, adapters[0]], SOON).unwrap();
    let two = registry.acquire_or_load(adapters[1], SOON).unwrap();
    assert_eq!(told(), of("one,two", ""), "a base is none");
    let mut third = Box::pin(registry.acquire_or_load_async([base, adapters[2]]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(third.as_mut().poll(&mut context).is_pending());
    assert_eq!(told(), of("one,two", r#"with \"quotes\" and \\"#));
    drop(one);
    let lease = block_on(third).unwrap();
    assert_eq!(told(), of(r#"two,with \"quotes\" and \\"#, ""));
    drop((two, lease));
    // The thread that read it may be about to let go of it.
    until("nobody has any", || told() == of("", ""));
}

fn estimate_now(bytes: u64) -> Estimate {
    // There is no other way to make one outside of the library.
    let registry = WeightRegistry::builder().build().unwrap();
    let demand = Demand::new().bytes(&Account::namespace(""), bytes);
    let estimate = registry.estimate(&demand).unwrap();
    assert!(matches!(estimate, Estimate::Now { .. }));
    estimate
}
