//! Weights one by one, beside the sets.

use weighbridge::Dtype;
use weighbridge::flat::{Address, FlatHandle};

use crate::pattern::Body;
use crate::roles::{self, Role};
use crate::worker::{Done, Worker};

use super::writing::gone;

/// Weights of the base model, slices of an adapter, aliases of the first of them.
const SLICES: std::ops::Range<Role> = roles::FLAT.start + 6..roles::FLAT.start + 9;
const ALIASES: std::ops::Range<Role> = SLICES.end..roles::FLAT.end;
/// Of every weight that may have an alias.
const LENGTH: usize = 300;

fn address(role: Role, name: &str) -> Address<'_> {
    if SLICES.contains(&role) {
        ("low", name).into()
    } else {
        name.into()
    }
}

fn find(worker: &Worker, role: Role) -> Option<FlatHandle> {
    let name = format!("w-{role}");
    worker.world.flat.lookup(address(role, &name))
}

pub fn change(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::FLAT);
    let world = worker.world.clone();
    let name = format!("w-{role}");
    let address = address(role, &name);
    match (find(worker, role), worker.random.below(4)) {
        (Some(weight), 0) if worker.random.once_in(2) => {
            let all = world.flat.unregister_cascade(weight)?;
            return all.iter().try_for_each(|one| gone(worker, one));
        }
        (Some(weight), 0) => {
            let going = world.flat.unregister(weight)?;
            return gone(worker, &going);
        }
        (Some(weight), 1) if !ALIASES.contains(&role) => {
            let pinned = world.flat.get(weight)?;
            let again = world
                .flat
                .register(address, Dtype::U8, pinned.shape(), pinned.bytes())?;
            // Somebody may have unregistered it, and somebody else may have had this idea, too. The
            // next one of this name cannot have the same bytes.
            let now = world.flat.get(again.handle())?;
            world.demand(now.identity() == pinned.identity(), || {
                format!("{name} became {again:?}: {now:?} is not {pinned:?}")
            });
        }
        (_, 2) if SLICES.contains(&role) && worker.random.once_in(4) => {
            let all = world.flat.unregister_adapter("low")?;
            return all.iter().try_for_each(|one| gone(worker, one));
        }
        _ if ALIASES.contains(&role) => {
            let target = roles::FLAT.start + role - ALIASES.start;
            if let Some(target) = find(worker, target) {
                world.flat.alias(address, target, Dtype::U8, [LENGTH])?;
            }
        }
        _ => {
            let bytes = world.body(role).bytes(3, LENGTH);
            world.flat.register(address, Dtype::U8, [LENGTH], &bytes)?;
        }
    }
    Ok(())
}

pub fn pin(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::FLAT);
    let Some(weight) = find(worker, role) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let pinned = world.flat.get(weight)?;
    let target = if ALIASES.contains(&role) {
        roles::FLAT.start + role - ALIASES.start
    } else {
        role
    };
    match Body::of(pinned.bytes(), 3) {
        Ok(body) => world.demand(body.role == target, || format!("w-{role} has {body:?}")),
        Err(wrong) => world.fail(format!("w-{role}: {wrong}")),
    }
    // The same as a lease.
    let lease = world.registry.acquire(weight.set())?;
    worker.keep(lease, "pin a flat weight");
    Ok(())
}

pub fn totals(worker: &mut Worker) -> Done {
    let flat = &worker.world.flat;
    let totals = flat.totals();
    let whole = |total: weighbridge::flat::Total| total.bytes == (total.weights * LENGTH) as u64;
    worker
        .world
        .demand(whole(totals.base) && whole(totals.lora), || {
            format!("weights of {LENGTH} bytes each, and {totals:?}")
        });
    let slices = flat.adapter_handles("low").len();
    worker
        .world
        .demand(slices <= SLICES.len(), || format!("{slices} slices"));
    Ok(())
}

/// What the flat registry says it has, and what is there; while nobody works.
pub fn account(world: &crate::world::World) -> (u64, u64) {
    let there = roles::FLAT.filter(|role| {
        let name = format!("w-{role}");
        !ALIASES.contains(role) && world.flat.lookup(address(*role, &name)).is_some()
    });
    (world.flat.total_bytes(), (there.count() * LENGTH) as u64)
}
