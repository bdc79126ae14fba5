//! Reading: leases of one set and of several, scopes, handles.

use weighbridge::{Error, SetHandle};

use crate::held::Held;
use crate::roles::{self, Role};
use crate::worker::{Done, Worker};
use crate::world::lock;

/// Sets in the default namespace that are read from memory.
const ANY: std::ops::Range<Role> = roles::PLAIN.start..roles::USER.end;

pub fn one(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(ANY);
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    let lease = if worker.random.once_in(3) {
        let label = format!("request-{}", worker.random.next());
        worker.world.registry.acquire_as(&label, set)?
    } else {
        worker.world.registry.acquire(set)?
    };
    worker.keep(lease, "lease one set");
    Ok(())
}

/// Handles of all of these, if all are there.
fn all(worker: &mut Worker, roles: impl Iterator<Item = Role>) -> Option<Vec<SetHandle>> {
    roles.map(|role| worker.handle(role)).collect()
}

fn some_group(worker: &mut Worker) -> Option<Vec<SetHandle>> {
    let groups = roles::GROUP.len() / roles::MEMBERS;
    let group = worker.random.below(groups);
    all(worker, roles::group(group))
}

pub fn group(worker: &mut Worker) -> Done {
    let Some(sets) = some_group(worker) else {
        return Ok(());
    };
    let lease = worker.world.registry.acquire_as("a group", &sets)?;
    worker.keep(lease, "lease a group");
    Ok(())
}

pub fn stack(worker: &mut Worker) -> Done {
    let family = worker.random.below(roles::FAMILIES);
    let at = worker.random.below(2);
    let mut sets = Vec::new();
    sets.extend(worker.handle(roles::bases_of(family)[at]));
    for adapter in roles::ADAPTER.filter(|role| roles::family(*role) == family) {
        if worker.random.once_in(2) {
            sets.extend(worker.handle(adapter));
        }
    }
    if sets.is_empty() {
        return Ok(());
    }
    // Adapters of the other base of the family are refused.
    let lease = worker.world.registry.acquire(&sets)?;
    worker.keep(lease, "lease a base and its adapters");
    Ok(())
}

pub fn tied(worker: &mut Worker) -> Done {
    let owner = worker.random.of_range(roles::OWNER);
    let users = roles::USER.filter(|user| roles::owner_of(*user) == owner);
    let Some(sets) = all(worker, std::iter::once(owner).chain(users)) else {
        return Ok(());
    };
    let lease = worker.world.registry.acquire(&sets)?;
    worker.keep(lease, "lease an owner and its users");
    Ok(())
}

pub fn reader(worker: &mut Worker) -> Done {
    let world = worker.world.clone();
    let reader = world.registry.reader();
    for _ in 0..4 {
        let role = worker.random.of_range(ANY);
        if let Some(set) = worker.handle(role) {
            let lease = reader.acquire(set)?;
            worker.keep(lease, "lease through a reader");
        }
    }
    Ok(())
}

pub fn scope(worker: &mut Worker) -> Done {
    let Some(sets) = some_group(worker) else {
        return Ok(());
    };
    let world = worker.world.clone();
    world.registry.scope(|scope| {
        for _ in 0..3 {
            worker.saw_number(scope.number().number());
            let seen: Result<Vec<u64>, Error> = sets
                .iter()
                .map(|set| Ok::<_, Error>(scope.get(*set)?.generation().number()))
                .collect();
            let seen = seen?;
            world.demand(seen.iter().all(|one| *one == seen[0]), || {
                format!("a scope saw a transaction in part: {seen:?}")
            });
            match scope.acquire(&sets) {
                Ok(lease) => worker.keep(lease, "lease from a scope"),
                // What this scope shows may have no bytes any more.
                Err(Error::Superseded { .. }) => {}
                Err(error) => return Err(error),
            }
            scope.refresh();
        }
        Ok::<(), Error>(())
    })
}

pub fn handles(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::PLAIN);
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let first = world.registry.weight_handle(set, "t0")?;
    let lease = world.registry.acquire(set)?;
    let Some(held) = worker.look(lease, "read by handles") else {
        return Ok(());
    };
    let weight = held.lease.weight(first)?;
    world.demand(weight.name() == "t0", || {
        format!("{first} of set-{role} is {}", weight.name())
    });
    let same = held.lease.set(set)?.get("t0")?.bytes().as_ptr() == weight.bytes().as_ptr();
    world.demand(same, || format!("{first} leads elsewhere than its name"));
    held.let_go(&world, "read by handles");
    Ok(())
}

pub fn twin(worker: &mut Worker) -> Done {
    if worker.held.is_empty() {
        return Ok(());
    }
    let at = worker.random.below(worker.held.len());
    let held = &worker.held[at];
    let twin = Held {
        lease: held.lease.clone(),
        facts: held.facts.clone(),
        foreign: held.foreign,
    };
    if let Some(back) = worker.shelve(twin) {
        back.let_go(&worker.world, "clone a lease");
    }
    Ok(())
}

pub fn take(worker: &mut Worker) -> Done {
    let taken = {
        let mut shelf = lock(&worker.world.shelf);
        if shelf.is_empty() {
            return Ok(());
        }
        let at = worker.random.below(shelf.len());
        shelf.swap_remove(at)
    };
    taken.let_go(&worker.world, "take a lease from the shelf");
    Ok(())
}
