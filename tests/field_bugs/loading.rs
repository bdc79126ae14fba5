//! What a load does to others, what stays of it, and what is known of it.

use weighbridge::{EventKind, NamespaceLimits, Next};

use crate::served;
use crate::support::device::until;
use crate::support::{SOON, addition, bytes, registry};

/// diffusers #11816, peft #981: whatever is done with adapters takes longer the more of them were ever loaded.
#[test]
fn adapters_that_were_loaded_once_leave_nothing_that_could_be_walked() {
    let registry = registry();
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    let facts = || {
        let stats = registry.stats();
        let entries = registry.catalog().entries().len();
        (
            stats.sets,
            stats.retired_generations,
            stats.layouts,
            entries,
            registry.ledger().total(),
        )
    };
    let before = facts();
    let mut slots = std::collections::HashSet::new();
    for number in 0..500usize {
        // Each with a layout of its own.
        let adapter = addition(number % 50 + 1, 1, base);
        let set = registry
            .publish(format!("adapter-{number}"), adapter)
            .unwrap();
        // A handle prints as `set registry:slot#tag`.
        slots.insert(set.to_string().split('#').next().unwrap().to_owned());
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    }
    until("all of them are forgotten", || {
        registry.retired().is_empty() && facts() == before
    });
    assert!(
        slots.len() < 10,
        "{} slots for one adapter at a time",
        slots.len()
    );
}

/// SGLang #23141: a request for the base counts as one for an adapter, and the slots' assert ends the server.
#[test]
fn a_request_for_the_base_alone_takes_no_adapters_place() {
    let registry = registry();
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    registry
        .set_namespace_limits("loras", NamespaceLimits::none().sets(1))
        .unwrap();
    let only = registry
        .publish(("loras", "a"), addition(64, 2, base))
        .unwrap();
    let requests: Vec<_> = (0..100).map(|_| registry.acquire(base).unwrap()).collect();
    let on_it: Vec<_> = (0..100)
        .map(|_| registry.acquire([base, only]).unwrap())
        .collect();
    assert_eq!(registry.namespace_stats("loras").sets, 1);
    assert!(requests.iter().all(|lease| lease.sets().count() == 1));
    drop((requests, on_it));
    assert_eq!(served(&registry, base), 1);
}

/// vLLM #45325, llm-d-router #2605 and #1500: only activity is exported; who is loaded and idle is not to be
/// seen, and routers send requests to where nothing is.
#[test]
fn who_is_loaded_and_idle_is_to_be_seen() {
    let registry = registry();
    let mut events = registry.events();
    let base = registry.publish("base", bytes(64, 1)).unwrap();
    let idle = registry.publish("idle", addition(128, 2, base)).unwrap();
    let catalog = registry.catalog();
    let entry = catalog.get("idle").unwrap();
    assert_eq!(
        (entry.handle, entry.base, entry.resident, entry.bytes),
        (idle, Some(base), true, 128)
    );
    assert_eq!(registry.scope(|scope| scope.get(idle).unwrap().leases()), 0);
    assert!(catalog.to_json().contains("\"idle\""));
    registry.retire(idle).unwrap().reclaimed(SOON).unwrap();
    assert!(registry.catalog().get("idle").is_none());
    // Whoever mirrors it hears of each step.
    let mut heard = Vec::new();
    while heard.last() != Some(&"reclaimed") {
        match events.next_timeout(SOON) {
            Next::Event(event) => heard.push(match event.kind {
                EventKind::Published { .. } => "published",
                EventKind::Retired { .. } => "retired",
                EventKind::Reclaimed { .. } => "reclaimed",
                other => panic!("{other:?}"),
            }),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    assert_eq!(heard, ["published", "published", "retired", "reclaimed"]);
}
