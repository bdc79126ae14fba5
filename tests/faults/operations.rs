//! Every operation that loads, as a row: what it does with a source, that it serves what the source had,
//! and how it undoes that.
//!
//! What lives here: the table. What does not: sources that fail (`faulty`), what must hold afterwards
//! (`world`).

use weighbridge::ledger::Charge;
use weighbridge::source::Checkpoint;
use weighbridge::{Account, Error, NamespaceLimits, SetHandle};

use crate::faulty::Faulty;
use crate::heap;
use crate::support::{SOON, bytes, fixture};
use crate::world::{TARGET, TENANT, World, contents, original};

/// What an operation wants to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// A checkpoint.
    Checkpoint,
    /// An adapter on the world's base.
    Adapter,
    /// One tensor.
    Tensor,
}

pub struct Operation {
    pub name: &'static str,
    pub takes: Takes,
    /// The set that it leaves without bytes if it fails late.
    pub empties: Option<fn(&World) -> SetHandle>,
    pub load: fn(&World, Faulty) -> Result<(), Error>,
}

const fn row(
    name: &'static str,
    takes: Takes,
    load: fn(&World, Faulty) -> Result<(), Error>,
) -> Operation {
    Operation {
        name,
        takes,
        empties: None,
        load,
    }
}

pub const OPERATIONS: &[Operation] = &[
    row("stage", Takes::Checkpoint, |world, source| {
        let staged = world.registry.stage(source)?;
        assert_eq!(world.registry.ledger().reserved, staged.bytes());
        Ok(())
    }),
    row("publish", Takes::Checkpoint, |world, source| {
        let wanted = source.contents();
        let set = world.registry.publish("new", source)?;
        undo(world, set, &wanted)
    }),
    row(
        "publish with aliases",
        Takes::Checkpoint,
        |world, source| {
            let target = world.registry.weight_handle(world.neighbour, "w")?;
            let source = source.alias("zz.alias", target);
            let mut wanted = source.contents();
            wanted.push(("zz.alias".to_owned(), vec![4; 2048]));
            let set = world.registry.publish("new", source)?;
            undo(world, set, &wanted)
        },
    ),
    row("replace", Takes::Checkpoint, |world, source| {
        let wanted = source.contents();
        world.registry.replace(world.target, source)?;
        back(world, world.target, &wanted)
    }),
    row("replace_if", Takes::Checkpoint, |world, source| {
        let now = world
            .registry
            .scope(|scope| scope.get(world.target).map(|set| set.generation()));
        let wanted = source.contents();
        world.registry.replace_if(world.target, now?, source)?;
        back(world, world.target, &wanted)
    }),
    row(
        "replace_drained, room for both",
        Takes::Checkpoint,
        |world, source| {
            let wanted = source.contents();
            world.registry.replace_drained(world.target, source, SOON)?;
            back(world, world.target, &wanted)
        },
    ),
    Operation {
        name: "replace_drained, room for one",
        takes: Takes::Tensor,
        empties: Some(|world| world.target),
        load: |world, source| {
            let wanted = source.contents();
            let ballast = ballast(world)?;
            world.registry.replace_drained(world.target, source, SOON)?;
            drop(ballast);
            back(world, world.target, &wanted)
        },
    },
    row("a transaction", Takes::Checkpoint, |world, source| {
        let wanted = source.contents();
        let mut all = world.registry.transaction();
        let first = all.stage(bytes(64, 9))?;
        let first = all.publish("first", first)?;
        let staged = all.stage(source)?;
        all.replace(world.target, staged)?;
        all.commit()?;
        world.registry.retire(first)?.reclaimed(SOON)?;
        back(world, world.target, &wanted)
    }),
    row("fill", Takes::Checkpoint, |world, source| {
        let wanted = source.contents();
        let filling = world.registry.fill(source.plan_now(), source.base_now())?;
        source.write_all(&filling)?;
        let set = world.registry.publish_staged("new", filling.seal()?)?;
        undo(world, set, &wanted)
    }),
    row(
        "a namespace's publish",
        Takes::Checkpoint,
        |world, source| {
            let wanted = source.contents();
            let set = world.registry.namespace(TENANT)?.publish("new", source)?;
            undo(world, set, &wanted)
        },
    ),
    row(
        "a namespace's replace",
        Takes::Checkpoint,
        |world, source| {
            let wanted = source.contents();
            world
                .registry
                .namespace(TENANT)?
                .replace(world.tenants, source)?;
            back(world, world.tenants, &wanted)
        },
    ),
    Operation {
        name: "a namespace's replace_drained, room for one",
        takes: Takes::Tensor,
        empties: Some(|world| world.tenants),
        load: |world, source| {
            let wanted = source.contents();
            let narrow = Narrow::new(world);
            let tenant = world.registry.namespace(TENANT)?;
            tenant.replace_drained(world.tenants, source, SOON)?;
            drop(narrow);
            back(world, world.tenants, &wanted)
        },
    },
    row(
        "a namespace's transaction",
        Takes::Checkpoint,
        |world, source| {
            let wanted = source.contents();
            let tenant = world.registry.namespace(TENANT)?;
            let mut all = tenant.transaction();
            let first = all.stage(bytes(64, 9))?;
            let first = all.publish("first", first)?;
            let staged = all.stage(source)?;
            all.replace(world.tenants, staged)?;
            all.commit()?;
            tenant.retire(first)?.reclaimed(SOON)?;
            back(world, world.tenants, &wanted)
        },
    ),
    row("a namespace's fill", Takes::Checkpoint, |world, source| {
        let wanted = source.contents();
        let tenant = world.registry.namespace(TENANT)?;
        let filling = tenant.fill(source.plan_now(), source.base_now())?;
        source.write_all(&filling)?;
        let set = tenant.publish_staged("new", filling.seal_declared("step 1")?)?;
        undo(world, set, &wanted)
    }),
    row("an adapter's publish", Takes::Adapter, |world, source| {
        let wanted = source.contents();
        let set = world.registry.publish("new", source)?;
        undo(world, set, &wanted)
    }),
    row("an adapter's replace", Takes::Adapter, |world, source| {
        let wanted = source.contents();
        world.registry.replace(world.adapter, source)?;
        back(world, world.adapter, &wanted)
    }),
    row(
        "a tenant's adapter on a shared base",
        Takes::Adapter,
        |world, source| {
            let wanted = source.contents();
            let set = world.registry.namespace(TENANT)?.publish("new", source)?;
            undo(world, set, &wanted)
        },
    ),
    row(
        "a base and its adapter together",
        Takes::Adapter,
        |world, source| {
            let wanted = source.contents();
            let mut all = world.registry.transaction();
            let base = all.stage(Checkpoint::open(fixture("tiny-llama"))?)?;
            all.replace(world.base, base)?;
            let staged = all.stage(source)?;
            let new = all.publish("new", staged)?;
            all.rebind_adapters(world.base)?;
            all.commit()?;
            undo(world, new, &wanted)
        },
    ),
    row("a flat weight", Takes::Tensor, |world, source| {
        let wanted = source.contents();
        let weight = world.flat.register_from("new", source)?.handle();
        assert!(world.flat.get(weight)?.bytes() == wanted[0].1);
        world.flat.unregister(weight)?.reclaimed(SOON)
    }),
    row("a flat adapter's slice", Takes::Tensor, |world, source| {
        let wanted = source.contents();
        let weight = world
            .flat
            .register_from(("pirate", "new"), source)?
            .handle();
        assert!(world.flat.get(weight)?.bytes() == wanted[0].1);
        world.flat.unregister(weight)?.reclaimed(SOON)
    }),
    row(
        "a flat registry's load",
        Takes::Checkpoint,
        |world, source| {
            let wanted = source.contents();
            let set = world.flat.load("new", source)?.handle();
            undo(world, set, &wanted)
        },
    ),
];

/// `set` is served with what its source had.
fn check(world: &World, set: SetHandle, wanted: &[(String, Vec<u8>)]) -> Result<(), Error> {
    let base = world
        .registry
        .scope(|scope| scope.get(set).map(|set| set.base()))?;
    let lease = match base {
        Some(base) => world.registry.acquire([base, set])?,
        None => world.registry.acquire(set)?,
    };
    assert!(contents(&lease, set) == wanted, "{set}: other bytes");
    world.charges_what_is_allocated();
    Ok(())
}

/// What was published is served, and goes.
fn undo(world: &World, set: SetHandle, wanted: &[(String, Vec<u8>)]) -> Result<(), Error> {
    check(world, set, wanted)?;
    world.registry.retire(set)?.reclaimed(SOON)
}

/// What was replaced is served, and is made again what it was.
fn back(world: &World, set: SetHandle, wanted: &[(String, Vec<u8>)]) -> Result<(), Error> {
    check(world, set, wanted)?;
    // No part of the load: this has the memory it needs.
    let swap = heap::lifted(|| world.registry.replace(set, original(world, set)))?;
    swap.previous.reclaimed(SOON)
}

/// So much that no second generation of a target fits, until it is dropped.
fn ballast(world: &World) -> Result<Charge, Error> {
    let room = world.registry.ledger().limit - world.total;
    let account = Account::namespace("ballast");
    world
        .registry
        .reserve_in(&account, room - TARGET as u64 / 2)
}

/// A tenant that has room for one generation, until this is dropped.
struct Narrow<'w>(&'w World);

impl<'w> Narrow<'w> {
    fn new(world: &'w World) -> Self {
        let limits = NamespaceLimits::none().bytes(TARGET as u64 * 3 / 2);
        world.registry.set_namespace_limits(TENANT, limits).unwrap();
        Narrow(world)
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        let limits = NamespaceLimits::none();
        self.0
            .registry
            .set_namespace_limits(TENANT, limits)
            .unwrap();
    }
}
