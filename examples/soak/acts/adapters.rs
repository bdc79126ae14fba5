//! Adapters on bases: bound, replaced, moved, retired with what they stand on.

use weighbridge::SetHandle;

use crate::again::Again;
use crate::roles::{self, Role};
use crate::worker::{Done, Worker};

use super::writing::gone;

pub fn publish_base(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::BASE);
    let source = worker.next(role)?;
    worker.world.registry.publish(roles::name(role), source)?;
    Ok(())
}

/// An adapter and a base that it may be on.
fn pair(worker: &mut Worker) -> Option<(Role, SetHandle)> {
    let role = worker.random.of_range(roles::ADAPTER);
    let at = worker.random.below(2);
    let base = roles::bases_of(roles::family(role))[at];
    Some((role, worker.handle(base)?))
}

pub fn publish(worker: &mut Worker) -> Done {
    let Some((role, base)) = pair(worker) else {
        return Ok(());
    };
    let source = roles::adapter(&worker.world.body(role), base)?;
    let source = Again::new(source, !worker.random.once_in(4));
    let set = worker.world.registry.publish(roles::name(role), source)?;
    let lease = worker.world.registry.acquire([set, base])?;
    worker.keep(lease, "publish an adapter");
    Ok(())
}

pub fn replace(worker: &mut Worker) -> Done {
    let Some((role, base)) = pair(worker) else {
        return Ok(());
    };
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    let source = roles::adapter(&worker.world.body(role), base)?;
    let source = Again::new(source, !worker.random.once_in(4));
    let swap = worker.world.registry.replace(set, source)?;
    worker.committed(role, swap.generation.number());
    Ok(())
}

pub fn replace_base(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::BASE);
    let Some(base) = worker.handle(role) else {
        return Ok(());
    };
    let source = worker.next(role)?;
    let world = worker.world.clone();
    if worker.random.once_in(2) {
        // Refused while there are adapters on it.
        let swap = world.registry.replace(base, source)?;
        worker.committed(role, swap.generation.number());
        return Ok(());
    }
    let mut all = world.registry.transaction();
    all.replace(base, all.stage(source)?)?;
    all.rebind_adapters(base)?;
    let done = all.commit()?;
    worker.committed(role, done.generation.number());
    Ok(())
}

pub fn rebind(worker: &mut Worker) -> Done {
    let Some((role, base)) = pair(worker) else {
        return Ok(());
    };
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    let moved = worker.world.registry.rebind(set, base)?;
    worker.committed(role, moved.generation.number());
    Ok(())
}

pub fn retire(worker: &mut Worker) -> Done {
    let role = worker
        .random
        .of_range(roles::BASE.start..roles::ADAPTER.end);
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
