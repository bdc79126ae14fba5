//! Several sets at one instant: groups by transactions, owners with the sets that have aliases in them.

use weighbridge::{Error, SetHandle, Staged};

use crate::again::Again;
use crate::options::Plant;
use crate::pattern::Body;
use crate::roles::{self, Role};
use crate::worker::{Done, Worker};

use super::writing::gone;

fn some_group(worker: &mut Worker) -> std::ops::Range<Role> {
    roles::group(worker.random.below(roles::GROUP.len() / roles::MEMBERS))
}

/// The next generation of each member, of one stamp.
fn stage(worker: &mut Worker, group: std::ops::Range<Role>) -> Result<Vec<Staged>, Error> {
    let stamp = worker.world.unique();
    let staged = group.map(|role| {
        let body = Body {
            stamp,
            ..worker.world.body(role)
        };
        let source = worker.source(&body)?;
        worker.world.registry.stage(source)
    });
    staged.collect()
}

fn members(worker: &mut Worker, group: std::ops::Range<Role>) -> Option<Vec<(Role, SetHandle)>> {
    group
        .map(|role| Some((role, worker.handle(role)?)))
        .collect()
}

pub fn publish(worker: &mut Worker) -> Done {
    let group = some_group(worker);
    let staged = stage(worker, group.clone())?;
    let world = worker.world.clone();
    let mut all = world.registry.transaction();
    for (role, staged) in group.zip(staged) {
        all.publish(roles::name(role), staged)?;
    }
    all.commit()?;
    Ok(())
}

pub fn replace(worker: &mut Worker) -> Done {
    let group = some_group(worker);
    let Some(members) = members(worker, group.clone()) else {
        return Ok(());
    };
    let staged = stage(worker, group)?;
    let world = worker.world.clone();
    if world.plants(Plant::Torn) {
        for one in staged.into_iter().take(1) {
            world.registry.replace_staged(members[0].1, one)?;
        }
        return Ok(());
    }
    let mut all = world.registry.transaction();
    for ((_, set), staged) in members.iter().zip(staged) {
        all.replace(*set, staged)?;
    }
    let done = all.commit()?;
    for (role, _) in members {
        worker.committed(role, done.generation.number());
    }
    Ok(())
}

pub fn retire(worker: &mut Worker) -> Done {
    let group = some_group(worker);
    let Some(members) = members(worker, group) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let mut all = world.registry.transaction();
    for (_, set) in &members {
        all.retire(*set)?;
    }
    let done = all.commit()?;
    done.previous.iter().try_for_each(|one| gone(worker, one))
}

pub fn abandon(worker: &mut Worker) -> Done {
    let group = some_group(worker);
    let staged = stage(worker, group.clone())?;
    let world = worker.world.clone();
    let mut all = world.registry.transaction();
    for (role, staged) in group.zip(staged) {
        match world.registry.lookup(&roles::name(role)) {
            Some(set) => all.replace(set, staged)?,
            None => drop(all.publish(roles::name(role), staged)?),
        }
    }
    drop(all);
    Ok(())
}

/// The last step cannot be: nothing of it may be seen.
pub fn refused(worker: &mut Worker) -> Done {
    let group = some_group(worker);
    let Some(members) = members(worker, group.clone()) else {
        return Ok(());
    };
    let mut staged = stage(worker, group)?;
    let world = worker.world.clone();
    let current = world.registry.acquire(members[0].1)?;
    let current = current.set(members[0].1)?.generation();
    let mut all = world.registry.transaction();
    if let Some(last) = staged.pop() {
        all.replace(members[2].1, last)?;
    }
    if let Some(second) = staged.pop() {
        all.replace_if(members[1].1, current, second)?;
    }
    // A plain set's number is none of the group's.
    let plain = roles::PLAIN.start;
    let other = worker.handle(plain);
    let source = worker.next(plain)?;
    if let Some(other) = other {
        all.replace_if(other, current, all.stage(source)?)?;
        match all.commit() {
            Ok(done) => world.fail(format!("{done:?}: a step of it could not be")),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn some_tied(worker: &mut Worker) -> Role {
    worker.random.of_range(roles::OWNER.start..roles::USER.end)
}

fn tied_source(worker: &mut Worker, role: Role) -> Result<Option<Again>, Error> {
    let body = worker.world.body(role);
    if roles::OWNER.contains(&role) {
        return worker.source(&body).map(Some);
    }
    let Some(owner) = worker.handle(roles::owner_of(role)) else {
        return Ok(None);
    };
    let target = worker.world.registry.weight_handle(owner, "t0")?;
    let user = roles::user(&body, target, &mut worker.random)?;
    Ok(Some(Again::new(user, false)))
}

pub fn publish_tied(worker: &mut Worker) -> Done {
    let role = some_tied(worker);
    if let Some(source) = tied_source(worker, role)? {
        worker.world.registry.publish(roles::name(role), source)?;
    }
    Ok(())
}

pub fn replace_tied(worker: &mut Worker) -> Done {
    let role = some_tied(worker);
    let (source, set) = (tied_source(worker, role)?, worker.handle(role));
    if let (Some(source), Some(set)) = (source, set) {
        let swap = worker.world.registry.replace(set, source)?;
        worker.committed(role, swap.generation.number());
    }
    Ok(())
}

pub fn retire_tied(worker: &mut Worker) -> Done {
    let role = some_tied(worker);
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    if worker.random.once_in(3) {
        let all = worker.world.registry.retire_cascade(set)?;
        return all.iter().try_for_each(|one| gone(worker, one));
    }
    let going = worker.world.registry.retire(set)?;
    gone(worker, &going)
}
