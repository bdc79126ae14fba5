//! The whole registry against its model.
//!
//! What lives here: one case from an empty registry to an empty registry, the cases that once failed, and
//! which kinds of answers must have been seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use weighbridge::WeightRegistry;

use super::look::PATIENCE;
use super::model::Model;
use super::ops::{LEASES, Op, PINS, STAGED, case};
use super::run::{cases, is_fixed};
use super::world::{SEEN, World};
use crate::support::bytes;

/// Room for a few sets, so that it is often too little.
const LIMIT: u64 = 1_000;

/// Answers that a run of the fixed seed must have seen, so that it cannot go blind without a word.
const MUST: &[&str] = &[
    "acquire NotResident",
    "acquire StaleHandle",
    "acquire WrongBase",
    "acquire WrongNamespace",
    "acquire WrongRegistry",
    "acquire in a scope NotResident",
    "acquire in a scope StaleHandle",
    "acquire in a scope Superseded",
    "acquire in a scope WrongBase",
    "acquire in a scope ok",
    "acquire ok",
    "acquire_or_load NeverFits",
    "acquire_or_load NotLoaded",
    "acquire_or_load NotResident",
    "acquire_or_load StaleHandle",
    "acquire_or_load WrongBase",
    "acquire_or_load WrongRegistry",
    "acquire_or_load ok",
    "cascade in a transaction StaleHandle",
    "cascade in a transaction ok",
    "commit Dependants",
    "commit NotKept",
    "commit ok",
    "estimate after evicting",
    "estimate never",
    "estimate now",
    "estimate when released",
    "evict BytesShared",
    "evict Leased",
    "evict NotEvictable",
    "evict Pinned",
    "evict StaleHandle",
    "evict WrongRegistry",
    "evict ok",
    "fill ok",
    "keep StaleHandle",
    "keep WrongNamespace",
    "keep ok",
    "load NotResident",
    "load OverLimit",
    "load StaleHandle",
    "load WrongRegistry",
    "load ok",
    "pin StaleHandle",
    "pin ok",
    "publish AdapterMismatch",
    "publish AlreadyPublished",
    "publish InvalidName",
    "publish InvalidTensor",
    "publish OverLimit",
    "publish StaleHandle",
    "publish in a transaction AlreadyPublished",
    "publish in a transaction ok",
    "publish ok",
    "publish_staged AlreadyPublished",
    "rebind KindMismatch",
    "rebind StaleHandle",
    "rebind in a transaction KindMismatch",
    "rebind in a transaction StaleHandle",
    "rebind_adapters StaleHandle",
    "rebind_adapters ok",
    "replace Dependants",
    "replace KindMismatch",
    "replace OverLimit",
    "replace StaleHandle",
    "replace WrongNamespace",
    "replace WrongRegistry",
    "replace in a transaction KindMismatch",
    "replace in a transaction StaleHandle",
    "replace in a transaction ok",
    "replace ok",
    "replace_drained AdapterMismatch",
    "replace_drained Emptied",
    "replace_drained InvalidTensor",
    "replace_drained KindMismatch",
    "replace_drained NotDrained",
    "replace_drained StaleHandle",
    "replace_drained WrongNamespace",
    "replace_drained ok",
    "replace_staged ChargedElsewhere",
    "replace_staged KindMismatch",
    "replace_staged StaleHandle",
    "replace_staged WrongNamespace",
    "replace_staged ok",
    "reserve ok",
    "retire AliasedBy",
    "retire Dependants",
    "retire StaleHandle",
    "retire WrongNamespace",
    "retire WrongRegistry",
    "retire in a transaction StaleHandle",
    "retire in a transaction TwiceInTransaction",
    "retire in a transaction ok",
    "retire ok",
    "retire_after ok",
    "retire_cascade ok",
    "revoke ok",
    "rollback NotKept",
    "rollback StaleHandle",
    "rollback WrongNamespace",
    "rollback in a transaction StaleHandle",
    "rollback in a transaction ok",
    "rollback ok",
    "room as it is",
    "room by evicting",
    "stage AdapterMismatch",
    "stage AdapterWithoutEffect",
    "stage InvalidTensor",
    "stage OverLimit",
    "stage StaleHandle",
    "stage in a transaction AdapterMismatch",
    "stage in a transaction AdapterWithoutEffect",
    "stage in a transaction InvalidTensor",
    "stage in a transaction OverLimit",
    "stage in a transaction StaleHandle",
    "stage in a transaction ok",
    "stage ok",
    "weight_handle NoSuchTensor",
    "weight_handle StaleHandle",
    "weight_handle ok",
];

/// From an empty registry to an empty registry.
fn run(ops: &[Op]) {
    let build = || {
        WeightRegistry::builder()
            .limit_bytes(LIMIT)
            .keep_previous(1)
            .build()
            .unwrap()
    };
    let (registry, elsewhere) = (build(), build());
    let reader = registry.reader();
    let mut world = World {
        registry: &registry,
        reader: &reader,
        elsewhere: &elsewhere,
        stranger: elsewhere.publish("stranger", bytes(8, 1)).unwrap(),
        model: Model {
            keep: 1,
            limit: LIMIT,
            ..Model::default()
        },
        now: [None; _],
        former: [None; _],
        leases: BTreeMap::new(),
        places: [None; LEASES],
        next_lease: 0,
        staged: [const { None }; STAGED],
        halves: [const { None }; STAGED],
        transaction: None,
        scope: None,
        signals: Vec::new(),
        charges: Vec::new(),
        going: Vec::new(),
        generations: BTreeMap::new(),
        pins: [const { None }; PINS],
        estimate: None,
        events: registry.events(),
        early: Vec::new(),
        sequence: 1,
        keys: HashMap::new(),
        refused: None,
        told: [0; 2],
    };
    for op in ops {
        world.act(op);
        world.look();
    }
    end(&mut world);
}

/// Everything is let go of: nothing is left, and the events say what became of it.
fn end(world: &mut World<'_>) {
    if let Some((transaction, open)) = world.transaction.take() {
        drop(transaction);
        open.forget(&mut world.model);
    }
    world.scope = None;
    while world.unreserve().is_some() {}
    for place in 0..STAGED {
        world.drop_staged(place);
        world.drop_half(place);
    }
    let living = world.model.sets.clone();
    for set in living {
        if world.model.there(set.handle).is_ok() {
            world.cascade(set.handle);
        }
        world.look();
    }
    (0..LEASES).for_each(|place| world.drop_lease(place));
    for place in 0..PINS {
        world.unpin(place);
    }
    while world.signal(true).is_some() {}
    world.look();
    let ledger = world.registry.ledger();
    assert_eq!(ledger.total(), 0, "{ledger:?}");
    for going in &world.going {
        let patience = std::time::Duration::from_millis(PATIENCE.load(Ordering::Relaxed));
        going.retirement.reclaimed(patience).unwrap();
        assert!(going.retirement.is_drained());
    }
    assert_eq!(
        world.told[0], world.told[1],
        "superseded and reclaimed generations"
    );
    assert!(world.registry.retired().is_empty());
}

/// As it can be pasted into [`regressions`].
fn show(ops: &[Op]) -> String {
    let one = |op: &Op| format!("    {},\n", format!("{op:?}").replace('[', "vec!["));
    format!("run(&[\n{}]);", ops.iter().map(one).collect::<String>())
}

#[test]
fn the_registry_is_its_model() {
    cases(
        400,
        &case(),
        |ops| show(ops),
        |ops| {
            if let Err(why) = super::run::attempt(|| run(ops)) {
                // Shrinking waits often for what never comes.
                PATIENCE.store(300, Ordering::Relaxed);
                panic!("{why}");
            }
        },
    );
    let seen = SEEN.lock().unwrap();
    if std::env::var_os("WEIGHBRIDGE_PROPERTIES_SEEN").is_some() {
        for (what, times) in seen.iter() {
            println!("{times:>8} {what}");
        }
    }
    if is_fixed() {
        let unseen = MUST.iter().filter(|what| !seen.contains_key(**what));
        assert_eq!(unseen.collect::<Vec<_>>(), [] as [&&str; 0]);
    }
}
