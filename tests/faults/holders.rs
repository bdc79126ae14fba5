//! Holders that do not let go: a lease that is leaked, a fence that does not pass. Whatever is done with the
//! set, nobody waits for ever, nothing is lost, and it is said who is in the way.
//!
//! (A fence that never passes keeps its registry's thread for fences alive. Here it passes when the test is
//! over, and what it held comes back.)

use std::time::Duration;

use weighbridge::fence::{self, Signal};
use weighbridge::{Error, Lease, Retirement, SetHandle};

use crate::support::device::until;
use crate::support::{SOON, addition, bytes};
use crate::world::{TARGET, TENANT, World, original};

/// Somebody who does not let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Leaks,
    /// Its fence does not pass.
    Fenced,
}

/// What lets a fence pass.
type Signals = Vec<Signal>;

impl Holder {
    const LABEL: &'static str = "request-42";

    fn takes(self, world: &World, sets: &[SetHandle], signals: &mut Signals) {
        let lease: Lease = world.registry.acquire_as(Self::LABEL, sets).unwrap();
        match self {
            Holder::Leaks => std::mem::forget(lease),
            Holder::Fenced => {
                let (signal, fence) = fence::signal("lost device");
                signals.push(signal);
                lease.release_after(fence);
            }
        }
    }

    /// `going` counts it and names it, and so does whoever waits.
    fn is_named(self, going: &Retirement) {
        assert_eq!(going.leases(), 1, "{self:?}");
        assert!(!going.is_drained() && !going.is_reclaimed());
        let late = going.drained(Duration::from_millis(1)).unwrap_err();
        assert!(late.is_timeout(), "{late}");
        let text = late.to_string();
        let names: Vec<String> = match self {
            Holder::Leaks => going.holders().into_iter().map(|one| one.label).collect(),
            Holder::Fenced => going.fences().into_iter().map(|one| one.name).collect(),
        };
        assert!(
            names.len() == 1 && names[0].contains(Self::LABEL),
            "{names:?}"
        );
        assert!(text.contains(Self::LABEL), "{text}");
        assert_eq!(
            text.contains("lost device"),
            self == Holder::Fenced,
            "{text}"
        );
    }
}

/// What waits for a fence comes back when that passes, and all else was back before.
fn release(world: &World, signals: &Signals) {
    if !signals.is_empty() {
        signals.iter().for_each(Signal::set);
        until("what was fenced is back", || {
            world.registry.stats().pending_fences == 0 && world.registry.ledger().retired == 0
        });
    }
}

type Change = (&'static str, fn(&World) -> Vec<Retirement>);

/// Every way to supersede the target, which come back at once.
const CHANGES: &[Change] = &[
    ("replace", |world| {
        vec![
            world
                .registry
                .replace(world.target, bytes(TARGET, 1))
                .unwrap()
                .previous,
        ]
    }),
    ("replace_if", |world| {
        let now = world
            .registry
            .scope(|scope| scope.get(world.target).unwrap().generation());
        let swap = world
            .registry
            .replace_if(world.target, now, bytes(TARGET, 1));
        vec![swap.unwrap().previous]
    }),
    ("replace_drained, room for both", |world| {
        let swap = world
            .registry
            .replace_drained(world.target, bytes(TARGET, 1), Duration::ZERO);
        vec![swap.unwrap().previous]
    }),
    ("a transaction", |world| {
        let mut all = world.registry.transaction();
        all.replace(world.target, all.stage(bytes(TARGET, 1)).unwrap())
            .unwrap();
        all.commit().unwrap().previous
    }),
];

/// How much is lost for ever is known, and nothing else is.
#[test]
fn a_generation_that_is_held_for_ever_costs_its_own_bytes() {
    for holder in [Holder::Leaks, Holder::Fenced] {
        let (world, mut signals) = (World::new(), Signals::new());
        let mut lost = 0;
        let mut all = Vec::new();
        for (name, change) in CHANGES {
            holder.takes(&world, &[world.target], &mut signals);
            let going = change(&world);
            assert_eq!(going.len(), 1, "{name}");
            holder.is_named(&going[0]);
            lost += TARGET as u64;
            let ledger = world.registry.ledger();
            assert_eq!(
                (ledger.retired, ledger.resident),
                (lost, world.total),
                "{name}"
            );
            assert_eq!(ledger.reserved, 0, "{name}");
            // The new generation, and every other set.
            world.serves(name, None);
            all.extend(going);
        }
        // A set that is gone can be held, too. Its name is free.
        holder.takes(&world, &[world.tenants], &mut signals);
        let going = world.registry.retire(world.tenants).unwrap();
        holder.is_named(&going);
        let again = bytes(TARGET, 2);
        let again = world.registry.publish((TENANT, "target"), again).unwrap();
        assert_eq!(world.registry.ledger().retired, lost + TARGET as u64);
        world
            .registry
            .retire(again)
            .unwrap()
            .reclaimed(SOON)
            .unwrap();
        assert_eq!(world.registry.retired().len(), CHANGES.len() + 1);
        all.iter().for_each(|going| holder.is_named(going));
        release(&world, &signals);
    }
}

/// A drained swap has a deadline, names who it waited for, and leaves the set as it was; so does one of a
/// base, whose adapters move along and back.
#[test]
fn a_drained_swap_gives_up_at_its_deadline() {
    for holder in [Holder::Leaks, Holder::Fenced] {
        for with_adapter in [false, true] {
            let (world, mut signals) = (World::new(), Signals::new());
            let registry = &world.registry;
            let set = if with_adapter {
                world.adapter
            } else {
                world.target
            };
            let held = [world.base, set];
            let held = if with_adapter { &held[..] } else { &held[1..] };
            holder.takes(&world, held, &mut signals);
            let room = registry.ledger().limit - registry.ledger().total();
            let account = weighbridge::Account::namespace("ballast");
            let ballast = registry
                .reserve_in(&account, room - TARGET as u64 / 2)
                .unwrap();
            let deadline = Duration::from_millis(5);
            let failed = registry.replace_drained(set, original(&world, set), deadline);
            let failed = failed.unwrap_err();
            let Error::NotDrained(holdup) = failed.error() else {
                panic!("{failed}")
            };
            assert_eq!(holdup.leases, 1);
            assert!(failed.to_string().contains(Holder::LABEL), "{failed}");
            drop(ballast);
            // It is current again, under a new number, with the same bytes, and charged once.
            world.serves("after the deadline", None);
            let ledger = registry.ledger();
            assert_eq!((ledger.total(), ledger.reserved), (world.total, 0));
            // A swap that needs not wait goes through.
            let swap = registry.replace(set, original(&world, set)).unwrap();
            assert_eq!(registry.ledger().retired, TARGET as u64);
            // What nobody leased is gone; what is held is the generation before it.
            assert!(swap.previous.is_drained());
            swap.previous.reclaimed(SOON).unwrap();
            let held = registry.retired();
            assert_eq!(held.len(), 1, "{held:?}");
            holder.is_named(&held[0]);
            world.serves("after the swap", None);
            release(&world, &signals);
        }
    }
}

/// A base whose old generation is held for ever, and the adapters on it.
#[test]
fn a_base_that_is_held_for_ever_can_be_replaced_and_its_adapters_go_on() {
    for holder in [Holder::Leaks, Holder::Fenced] {
        let (world, mut signals) = (World::new(), Signals::new());
        let registry = &world.registry;
        let charged = registry.scope(|scope| scope.get(world.base).unwrap().bytes());
        holder.takes(&world, &[world.base, world.adapter], &mut signals);
        let mut all = registry.transaction();
        all.replace(world.base, all.stage(crate::support::tiny()).unwrap())
            .unwrap();
        all.replace(
            world.adapter,
            all.stage(addition(TARGET, 3, world.base)).unwrap(),
        )
        .unwrap();
        for going in all.commit().unwrap().previous {
            holder.is_named(&going);
        }
        assert_eq!(registry.ledger().retired, charged + TARGET as u64);
        world.serves("on the new base", None);
        let last = registry.retire_cascade(world.base).unwrap();
        last.iter().for_each(|going| assert_eq!(going.leases(), 1));
        let again = registry.publish("base", crate::support::tiny()).unwrap();
        let on = registry
            .publish("adapter", addition(TARGET, 3, again))
            .unwrap();
        assert!(registry.acquire([again, on]).is_ok());
        release(&world, &signals);
    }
}
