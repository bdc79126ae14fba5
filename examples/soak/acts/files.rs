//! Sets from files: a checkpoint that is read, the same one mapped, and adapters on either.
//!
//! What lives here: opening and publishing them, and what they must be, found out before the run. What
//! does not: looking at them during the run (`check`).

use std::path::PathBuf;

use weighbridge::source::{Checkpoint, PeftAdapter};
use weighbridge::{Error, SetHandle, WeightRegistry};

use crate::check::Files;
use crate::pattern::checksum;
use crate::roles::{self, Role};
use crate::worker::{Done, Worker};

use super::writing::gone;

const ADAPTERS: [&str; 3] = ["pirate-v1", "pirate-v2", "robot"];

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

enum Opened {
    Read(Checkpoint),
    Mapped(weighbridge::source::Mapped),
    Adapter(PeftAdapter),
}

/// Opens what `role` is; `uid` is declared.
fn open(role: Role, uid: u64, base: Option<SetHandle>) -> Result<Opened, Error> {
    let revision = format!("file {uid}");
    Ok(match (role, base) {
        (roles::READ, _) => {
            Opened::Read(Checkpoint::open(fixture("tiny-llama"))?.declared(revision))
        }
        (roles::MAPPED, _) => {
            let opened = Checkpoint::open(fixture("tiny-llama"))?;
            // SAFETY: the fixtures are this repository's; nobody writes them while this runs.
            let mapped = unsafe { opened.map_files_that_nobody_changes() }?;
            Opened::Mapped(mapped.declared(revision))
        }
        (_, base) => {
            let dir = ADAPTERS[role - roles::PEFT.start];
            let adapter = PeftAdapter::open(fixture("adapters").join(dir))?.declared(revision);
            Opened::Adapter(match base {
                Some(base) => adapter.on(base),
                None => adapter,
            })
        }
    })
}

fn publish(
    registry: &WeightRegistry,
    role: Role,
    uid: u64,
    base: Option<SetHandle>,
) -> Result<SetHandle, Error> {
    let name = roles::name(role);
    Ok(match open(role, uid, base)? {
        Opened::Read(source) => registry.publish(name, source)?,
        Opened::Mapped(source) => registry.publish(name, source)?,
        Opened::Adapter(source) => registry.publish(name, source)?,
    })
}

/// What the files hold, as one thread alone reads it.
pub fn foresee() -> Result<Files, Error> {
    let registry = WeightRegistry::builder().build()?;
    let mut files = Files::default();
    let mut base = None;
    for role in [roles::READ, roles::MAPPED].into_iter().chain(roles::PEFT) {
        let set = publish(&registry, role, 1, base)?;
        base = base.or(Some(set));
        let lease = registry.acquire(set)?;
        let view = lease.set(set)?;
        let mut sums = std::collections::HashMap::new();
        for weight in view.iter() {
            let weight = weight?;
            sums.insert(weight.name().to_owned(), checksum(weight.bytes()));
        }
        files.known.insert(role, (view.bytes(), sums));
    }
    Ok(files)
}

fn some_base(worker: &mut Worker) -> Option<SetHandle> {
    let role = [roles::READ, roles::MAPPED][worker.random.below(2)];
    worker.handle(role)
}

pub fn change(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::READ..roles::PEFT.end);
    let adapter = roles::PEFT.contains(&role);
    let base = if adapter { some_base(worker) } else { None };
    if adapter && base.is_none() {
        return Ok(());
    }
    let world = worker.world.clone();
    let registry = &world.registry;
    match (worker.random.below(4), worker.handle(role)) {
        (0, Some(set)) => {
            let all = registry.retire_cascade(set)?;
            return all.iter().try_for_each(|one| gone(worker, one));
        }
        (1, Some(set)) => {
            let mut all = registry.transaction();
            let staged = match open(role, world.unique(), base)? {
                Opened::Read(source) => all.stage(source)?,
                Opened::Mapped(source) => all.stage(source)?,
                Opened::Adapter(source) => all.stage(source)?,
            };
            all.replace(set, staged)?;
            if !adapter {
                all.rebind_adapters(set)?;
            }
            let done = all.commit()?;
            worker.committed(role, done.generation.number());
        }
        (2, Some(set)) if adapter => {
            let moved = registry.rebind(set, base.unwrap_or(set))?;
            worker.committed(role, moved.generation.number());
        }
        _ => drop(publish(registry, role, world.unique(), base)?),
    }
    Ok(())
}

pub fn lease(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::READ..roles::PEFT.end);
    let Some(set) = worker.handle(role) else {
        return Ok(());
    };
    let lease = worker.world.registry.acquire_as("files", set)?;
    let base = lease.set(set)?.base();
    worker.keep(lease, "a lease of files");
    if let Some(base) = base {
        let both = worker.world.registry.acquire([base, set])?;
        worker.keep(both, "a lease of files");
    }
    Ok(())
}
