//! Tenants: namespaces with fewer seats and bytes than they would like.

use std::time::Duration;

use weighbridge::Error;

use crate::roles::{self, Role};
use crate::worker::{Done, Worker};

use super::writing::gone;

pub fn change(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::TENANT);
    let world = worker.world.clone();
    let tenant = world
        .registry
        .namespace(&roles::tenant_name(roles::tenant_of(role)))?;
    let name = roles::name(role);
    let Some(set) = tenant.lookup(name.name()) else {
        let source = worker.next(role)?;
        tenant.publish(name.name(), source)?;
        return Ok(());
    };
    match worker.random.below(8) {
        0 => {
            let going = tenant.retire(set)?;
            return gone(worker, &going);
        }
        1 => {
            let number = worker.random.below(2);
            tenant.keep_previous(set, number)?;
        }
        2 => {
            let back = tenant.rollback(set)?;
            worker.committed(role, back.generation.number());
        }
        3 => {
            let timeout = Duration::from_millis(worker.random.below(10) as u64);
            let source = worker.next(role)?;
            let swap = tenant.replace_drained(set, source, timeout)?;
            worker.committed(role, swap.generation.number());
        }
        _ => {
            let source = worker.next(role)?;
            let swap = tenant.replace(set, source)?;
            worker.committed(role, swap.generation.number());
        }
    }
    Ok(())
}

/// A tenant's set, alone or together with one of the default namespace.
pub fn lease(worker: &mut Worker) -> Done {
    let role: Role = worker.random.of_range(roles::TENANT);
    let plain = worker.random.of_range(roles::PLAIN);
    let world = worker.world.clone();
    let tenant = world
        .registry
        .namespace(&roles::tenant_name(roles::tenant_of(role)))?;
    let Some(set) = tenant.lookup(roles::name(role).name()) else {
        return Ok(());
    };
    let lease = match worker.handle(plain) {
        Some(other) if worker.random.once_in(2) => tenant.acquire([set, other])?,
        _ => tenant.acquire_as("a tenant", set)?,
    };
    worker.keep(lease, "lease a tenant's set");
    Ok(())
}

pub fn look_across(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::TENANT);
    let tenants = roles::TENANT.len() / roles::PER_TENANT;
    let other = (roles::tenant_of(role) + 1) % tenants;
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let tenant = world.registry.namespace(&roles::tenant_name(other))?;
    let refused = [
        tenant.acquire(set).map(drop),
        tenant.retire(set).map(drop),
        tenant.rollback(set).map(drop),
    ];
    for answer in refused {
        match answer {
            Ok(()) => world.fail(format!("{other} reached {}", roles::name(role))),
            Err(error @ (Error::WrongNamespace { .. } | Error::StaleHandle { .. })) => {
                world.refused("look into another tenant", &error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
