//! What goes so that something else can come.
//!
//! What lives here: that only idle sets go, in the policy's order and no more than are of use, and what becomes
//! of their memory. What does not: whose limit it is (`accounts`), who waits for it (`line`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weighbridge::policy::{Candidate, Lru, Policy};
use weighbridge::source::{Evictable, InMemory, Source};
use weighbridge::{Demand, Dtype, Error, EventKind, Next, Plan, SetHandle, WeightRegistry};

use crate::support::{SOON, bytes};
use crate::{ONE, away, published, resident, value};

#[test]
fn idle_sets_make_room_and_no_others() {
    let (registry, _kitchen, sets) = away(5, 3);
    let mut events = registry.events();
    let load = |at: usize| registry.acquire_or_load(sets[at], SOON).unwrap();
    let leased = load(0);
    let pin = registry.pin(sets[1], "the operator").unwrap();
    drop(load(1));
    drop(load(2));
    let _events = events.pending().count();
    assert_eq!(value(&load(3), sets[3]), 3);
    assert_eq!(
        resident(&registry),
        ["s0", "s1", "s3"],
        "the only idle one went"
    );
    let told: Vec<String> = events
        .pending()
        .filter_map(|next| match next {
            Next::Event(event) => match &event.kind {
                EventKind::Evicted { now, .. } => Some(format!("-{}", now.name)),
                EventKind::Loaded { now, .. } => Some(format!("+{}", now.name)),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(told, ["-s2", "+s3"]);
    let refused = registry.evict(sets[1]).unwrap_err();
    let Error::Pinned { by, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(by[..], ["the operator".into()]);
    assert_eq!(registry.pinned_by(sets[1]).unwrap(), *by);
    drop(leased);
    drop(pin);
    assert!(registry.pinned_by(sets[1]).unwrap().is_empty());
    let both = registry
        .acquire_or_load([sets[2], sets[4], sets[3]], SOON)
        .unwrap();
    assert_eq!([2, 4, 3].map(|at| value(&both, sets[at])), [2, 4, 3]);
    assert_eq!(resident(&registry), ["s2", "s3", "s4"]);
    assert_eq!(registry.ledger().peak, 3 * ONE);
}

#[test]
fn what_is_used_again_is_spared() {
    let (registry, kitchen, sets) = away(40, 4);
    let ask = |at: usize| drop(registry.acquire_or_load(sets[at], SOON).unwrap());
    // One is used all the time; the others once each.
    ask(0);
    for at in 1..40 {
        ask(0);
        ask(at);
    }
    assert_eq!(kitchen.reads(0), 1, "it never went");
    assert!((1..40).all(|at| kitchen.reads(at) == 1));
}

/// As they came, but for what was used since.
#[test]
fn the_least_recently_used_goes_first_if_one_wants_that() {
    let builder = WeightRegistry::builder().policy(Lru::new());
    let registry = builder.limit_bytes(3 * ONE).build().unwrap();
    let (registry, _, sets) = published(registry, 6);
    let ask = |at: usize| drop(registry.acquire_or_load(sets[at], SOON).unwrap());
    [0, 1, 2].into_iter().for_each(ask);
    ask(0);
    ask(3);
    assert_eq!(resident(&registry), ["s0", "s2", "s3"]);
    ask(4);
    assert_eq!(resident(&registry), ["s0", "s3", "s4"]);
    ask(5);
    assert_eq!(resident(&registry), ["s3", "s4", "s5"]);
}

/// A policy that calls the registry, panics, or names what it was not asked about.
#[test]
fn a_policy_only_ranks() {
    type Asked = (std::sync::Weak<WeightRegistry>, SetHandle);
    #[derive(Clone, Default)]
    struct Odd {
        registry: Arc<Mutex<Option<Asked>>>,
        step: Arc<AtomicUsize>,
    }
    impl Policy for Odd {
        fn rank(&mut self, candidates: &[Candidate]) -> Vec<SetHandle> {
            let Some((registry, other)) = self.registry.lock().unwrap().clone() else {
                return Vec::new();
            };
            let registry = registry.upgrade().unwrap();
            let order = candidates.iter().rev().map(|one| one.set);
            match self.step.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    let refused = registry.acquire_or_load(other, SOON).unwrap_err();
                    assert!(matches!(refused, Error::LoadInsideLoad), "{refused}");
                    assert!(matches!(registry.load(other), Err(Error::LoadInsideLoad)));
                    assert!(matches!(registry.evict(other), Err(Error::LoadInsideLoad)));
                    let refused = registry.estimate(&Demand::new().set(other));
                    assert!(matches!(refused, Err(Error::LoadInsideLoad)));
                    let _ = registry.stats();
                    [other, other].into_iter().chain(order).collect()
                }
                1 => panic!("on purpose"),
                // Nothing may go.
                _ => Vec::new(),
            }
        }
    }
    let odd = Odd::default();
    let builder = WeightRegistry::builder().policy(odd.clone());
    let registry = builder.limit_bytes(2 * ONE).build().unwrap();
    let (registry, _, sets) = published(registry, 6);
    let registry = Arc::new(registry);
    *odd.registry.lock().unwrap() = Some((Arc::downgrade(&registry), sets[5]));
    let ask = |at: usize| registry.acquire_or_load(sets[at], SOON).map(drop);
    ask(0).unwrap();
    ask(1).unwrap();
    ask(2).unwrap();
    assert_eq!(resident(&registry), ["s0", "s2"], "as it was ranked");
    let before = registry.stats().observer_panics;
    ask(3).unwrap();
    assert_eq!(resident(&registry), ["s2", "s3"], "as they came");
    assert_eq!(registry.stats().observer_panics, before + 1);
    let refused = registry.acquire_or_load(sets[4], Duration::ZERO);
    assert!(matches!(refused, Err(Error::NotLoaded(_))));
    assert_eq!(resident(&registry), ["s2", "s3"]);
}

/// Bytes that an alias has, too, stay, and nothing goes in vain beside them.
#[test]
fn shared_bytes_make_no_room() {
    let (registry, kitchen, sets) = away(4, 3);
    drop(registry.acquire_or_load(&sets[..2], SOON).unwrap());
    let w = registry.weight_handle(sets[0], "w").unwrap();
    let alias = InMemory::new().alias("lent", w).unwrap();
    registry.publish("alias", alias).unwrap();
    let mut events = registry.events();
    let refused = registry.acquire_or_load(&sets[2..], Duration::from_millis(10));
    assert!(
        refused.is_ok(),
        "there is room for one, and one goes: {refused:?}"
    );
    assert_eq!(resident(&registry), ["alias", "s0", "s2", "s3"]);
    let went = |next: Next| match next {
        Next::Event(event) => matches!(event.kind, EventKind::Evicted { .. }),
        _ => false,
    };
    assert_eq!(
        events.pending().filter(|next| went(next.clone())).count(),
        1
    );
    assert_eq!(kitchen.reads(0), 1);
    drop(refused);
    // The first of the line takes what helps: not what helps nobody.
    let refused = registry.acquire_or_load([sets[1], sets[2], sets[3]], Duration::ZERO);
    assert!(refused.is_err());
    assert_eq!(resident(&registry), ["alias", "s0", "s2", "s3"]);
}

/// What was taken for a request that then needed less goes back at once if nobody waits.
#[test]
fn nothing_is_stranded_where_nobody_waits() {
    let registry = WeightRegistry::builder()
        .limit_bytes(100 * 64)
        .build()
        .unwrap();
    let set = |name: &str, lines: usize| {
        let open = move || Ok(bytes(64 * lines, 1));
        let source = Evictable::opened_by(open).unwrap();
        registry.publish(name.to_owned(), source).unwrap()
    };
    let wanted = set("d", 40);
    registry.evict(wanted).unwrap();
    let [a, b] = ["a", "b"].map(|name| set(name, 30));
    let c = set("c", 40);
    // `b` has bytes that another set has, too; in the order of their coming it is asked for after `a`.
    let w = registry.weight_handle(b, "w").unwrap();
    let alias = InMemory::new().alias("lent", w).unwrap();
    registry.publish("alias", alias).unwrap();
    drop(registry.acquire_or_load(wanted, SOON).unwrap());
    let ledger = registry.ledger();
    assert_eq!((ledger.retired, ledger.reserved), (0, 0), "{ledger:?}");
    let catalog = registry.catalog();
    let there = |name| catalog.get(name).unwrap().resident;
    assert!(there("d") && there("b"));
    let bytes: u64 = [("a", 30), ("b", 30), ("c", 40), ("d", 40)]
        .iter()
        .filter(|(name, _)| there(name))
        .map(|(_, lines)| lines * 64)
        .sum();
    assert_eq!(ledger.total(), bytes);
    let _ = (a, c);
}

/// Memory of what goes is used for what comes, and nothing of it is left.
#[test]
fn memory_is_used_again_and_is_clean() {
    /// Fills the first half of what it has, and vouches for that.
    struct Half(Plan, u8);
    impl Source for Half {
        fn plan(&self) -> &Plan {
            &self.0
        }
        fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
            let half = arena.len() / 2;
            arena[..half].fill(self.1);
            Ok(())
        }
        fn declared(&self) -> Option<&str> {
            Some("half of it")
        }
    }
    for len in [4096_usize, 3 << 20, 9 << 20] {
        let source = move |fill: u8| {
            let plan = Plan::of("half", [("w", Dtype::U8, vec![len])]).unwrap();
            Evictable::opened_by(move || Ok(Half(plan.clone(), fill))).unwrap()
        };
        let plan = Plan::of("half", [("w", Dtype::U8, vec![len])]).unwrap();
        let room = plan.charged_bytes();
        let registry = WeightRegistry::builder().limit_bytes(room).build().unwrap();
        let sets = [1, 2].map(|fill| {
            let set = registry.publish(format!("s{fill}"), source(fill)).unwrap();
            registry.evict(set).unwrap();
            set
        });
        let mut addresses = HashSet::new();
        for round in 0..6 {
            let (at, set) = (round % 2, sets[round % 2]);
            let lease = registry.acquire_or_load(set, SOON).unwrap();
            let w = registry.weight_handle(set, "w").unwrap();
            let bytes = lease.weight(w).unwrap().bytes();
            let fill = u8::try_from(at + 1).unwrap();
            assert!(bytes[..len / 2].iter().all(|byte| *byte == fill));
            assert!(bytes[len / 2..].iter().all(|byte| *byte == 0), "stale");
            addresses.insert(bytes.as_ptr() as usize);
        }
        assert_eq!(addresses.len(), 1, "it is the same memory");
        assert_eq!(registry.ledger().peak, room);
    }
}
