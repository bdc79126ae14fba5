//! Writing one set: every way to give it a generation, and to end it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use weighbridge::{Dtype, Plan, Retirement, SetHandle};

use crate::options::Plant;
use crate::roles::{self, Role};
use crate::worker::{Done, Worker};

fn some_set(worker: &mut Worker) -> Option<(Role, SetHandle)> {
    let role = worker.random.of_range(roles::PLAIN);
    Some((role, worker.handle(role)?))
}

pub fn publish(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::PLAIN);
    let source = worker.next(role)?;
    let world = worker.world.clone();
    if worker.random.once_in(2) {
        world.registry.publish(roles::name(role), source)?;
        return Ok(());
    }
    // What was refused under one name is good for another one.
    let staged = world.registry.stage(source)?;
    if let Err(refused) = world.registry.publish_staged(roles::name(role), staged) {
        let (error, staged) = refused.into_parts();
        world.demand(staged.is_some(), || {
            format!("{error}: what was staged is gone")
        });
        return Err(error);
    }
    Ok(())
}

pub fn replace(worker: &mut Worker) -> Done {
    let Some((role, set)) = some_set(worker) else {
        return Ok(());
    };
    let source = worker.next(role)?;
    let swap = worker.world.registry.replace(set, source)?;
    worker.committed(role, swap.generation.number());
    Ok(())
}

pub fn swap_if(worker: &mut Worker) -> Done {
    let Some((role, set)) = some_set(worker) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let lease = world.registry.acquire(set)?;
    let seen = lease.set(set)?.generation();
    worker.keep(lease, "compare and swap");
    let source = worker.next(role)?;
    let swap = world.registry.replace_if(set, seen, source)?;
    world.demand(swap.previous.generation() == seen, || {
        format!("compared with {seen}, swapped {:?}", swap.previous)
    });
    worker.committed(role, swap.generation.number());
    // It cannot be current twice.
    let source = worker.next(role)?;
    match world.registry.replace_if(set, seen, source) {
        Ok(_) => world.fail(format!("generation {seen} of set-{role} was current again")),
        Err(refused) => world.refused("compare and swap", refused.error()),
    }
    Ok(())
}

/// What every retire of this run goes through.
pub fn gone(worker: &mut Worker, going: &Retirement) -> Done {
    if worker.world.options.plant == Some(Plant::Arc) {
        // An allocation that nobody looks at is none: the compiler leaves it out.
        std::mem::forget(std::hint::black_box(Arc::new([0u64; 8])));
    }
    match worker.random.below(4) {
        0 => going.drained(Duration::from_millis(worker.random.below(5) as u64)),
        1 => going.reclaimed(Duration::from_millis(worker.random.below(5) as u64)),
        _ => Ok(()),
    }
}

pub fn retire(worker: &mut Worker) -> Done {
    let Some((_, set)) = some_set(worker) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let going = if worker.random.once_in(2) {
        world.registry.retire(set)?
    } else {
        let current = world.registry.acquire(set)?.set(set)?.generation();
        world.registry.retire_if(set, current)?
    };
    world.demand(world.registry.acquire(set).is_err(), || {
        format!("{} was leased after it was retired", going.name())
    });
    gone(worker, &going)
}

pub fn revoke(worker: &mut Worker) -> Done {
    let Some((_, set)) = some_set(worker) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let lease = world.registry.acquire_as("to be revoked", set)?;
    let leased = lease.set(set)?.generation();
    let going = world.registry.revoke(set)?;
    world.demand(lease.is_superseded(), || format!("{going:?} is current"));
    world.demand(lease.is_revoked() || going.generation() != leased, || {
        format!("{going:?} was revoked and its lease does not say so")
    });
    world.demand(!going.is_reclaimed(), || {
        format!("{going:?} is reclaimed under a lease")
    });
    worker.keep(lease, "revoke");
    Ok(())
}

pub fn keep(worker: &mut Worker) -> Done {
    let Some((_, set)) = some_set(worker) else {
        return Ok(());
    };
    let number = worker.random.below(3);
    worker.world.registry.keep_previous(set, number)
}

pub fn roll_back(worker: &mut Worker) -> Done {
    let Some((role, set)) = some_set(worker) else {
        return Ok(());
    };
    let world = worker.world.clone();
    let kept = world.registry.kept(set)?;
    let Some(back_to) = kept.first().filter(|_| worker.random.once_in(2)) else {
        let back = world.registry.rollback(set)?;
        worker.committed(role, back.generation.number());
        return Ok(());
    };
    let back = world.registry.rollback_to(set, back_to.generation)?;
    worker.committed(role, back.generation.number());
    let lease = world.registry.acquire(set)?;
    let now = lease.set(set)?;
    let same = *now.identity() == back_to.identity;
    world.demand(same || now.generation() != back.generation, || {
        format!(
            "set-{role} went back to {back_to:?} and is {}",
            now.identity()
        )
    });
    worker.keep(lease, "roll back");
    Ok(())
}

pub fn drained(worker: &mut Worker) -> Done {
    let Some((role, set)) = some_set(worker) else {
        return Ok(());
    };
    let timeout = Duration::from_millis(worker.random.below(20) as u64);
    let source = worker.next(role)?;
    let swap = worker
        .world
        .registry
        .replace_drained(set, source, timeout)?;
    worker.committed(role, swap.generation.number());
    Ok(())
}

pub fn abandon(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::PLAIN);
    let source = worker.next(role)?;
    drop(worker.world.registry.stage(source)?);
    Ok(())
}

pub fn fill(worker: &mut Worker) -> Done {
    let role = worker.random.of_range(roles::PLAIN);
    let world = worker.world.clone();
    let body = world.body(role);
    let lengths = [100, 4096, 777];
    let tensors = lengths
        .iter()
        .enumerate()
        .map(|(at, len)| (format!("t{at}"), Dtype::U8, vec![*len]));
    let filling = world.registry.fill(Plan::of("a stream", tensors)?, None)?;
    let missing = worker.random.once_in(4);
    let write = |at: usize| {
        let bytes = body.bytes(10 + at as u32, lengths[at]);
        let mut writer = filling.writer(&format!("t{at}"))?;
        let (first, rest) = bytes.split_at(50);
        writer.write(first)?;
        if missing { Ok(()) } else { writer.write(rest) }
    };
    let written: Vec<Done> = thread::scope(|scope| {
        let writers = (0..lengths.len()).map(|at| {
            let write = &write;
            scope.spawn(move || write(at))
        });
        let writers: Vec<_> = writers.collect();
        let ends = writers.into_iter().map(|writer| writer.join());
        ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    written.into_iter().collect::<Done>()?;
    match filling.seal() {
        Ok(staged) => {
            world.demand(!missing, || "what was filled in part was sealed".to_owned());
            world.registry.publish_staged(roles::name(role), staged)?;
        }
        Err(refused) => world.demand(missing, || refused.to_string()),
    }
    Ok(())
}

pub fn once(worker: &mut Worker) -> Done {
    let world = worker.world.clone();
    let body = world.body(roles::ONCE);
    let source = worker.source(&body)?;
    let name = format!("once-{}", body.uid);
    let set = world.registry.publish(name.as_str(), source)?;
    let lease = world.registry.acquire_as(&name, set)?;
    worker.keep(lease, "a name that is used once");
    let going = world.registry.retire(set)?;
    world.demand(world.registry.lookup(name.as_str()).is_none(), || {
        format!("{name} is found after it was retired")
    });
    gone(worker, &going)
}
