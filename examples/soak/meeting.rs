//! Meetings: no thread works, so everything that is there can be counted.
//!
//! What lives here: the two halves of a meeting. First what is there is compared with what the run knows
//! to be there, with all its leases as they are. Then everything is let go, and nothing may be left. What
//! does not: when meetings are (`run`), the sums (`books`).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use weighbridge::source::InMemory;
use weighbridge::{Account, Dtype, Error, SetHandle};

use crate::acts;
use crate::books::Books;
use crate::check::{self, Facts};
use crate::counting;
use crate::held::Held;
use crate::mirror::Mirror;
use crate::pattern::Body;
use crate::process;
use crate::roles;
use crate::worker::Worker;
use crate::world::{EVENTS, World, lock};

/// For what must happen by itself, on a machine that has other work.
const SOON: Duration = Duration::from_secs(20);
/// For a whole meeting.
pub const ALLOWED: Duration = Duration::from_secs(120);

/// What was counted at a meeting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    pub leases: usize,
    pub fenced: usize,
    pub sets: usize,
    pub ledger: u64,
    /// Of that, memory that is kept for the next load.
    pub pooled: u64,
    /// Events were missed, so they were not compared.
    pub blind: bool,
}

/// Memory when everything was let go.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub live: usize,
    pub blocks: usize,
    pub resident: Option<u64>,
}

/// Waits until `holds`.
fn until(world: &World, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        if Instant::now() > deadline {
            return world.fail(format!("{what}: not within {SOON:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn complete_steps(world: &World) {
    // Threads set fences a few steps ahead.
    let step = world.step.fetch_add(100, Ordering::Relaxed) + 100;
    world.steps.complete(step);
}

/// All that nobody leases is back.
fn settle_retired(world: &World) {
    for going in world.registry.retired() {
        if going.leases() == 0
            && let Err(error) = going.reclaimed(SOON)
        {
            world.fail(format!("nobody leases it, and {error}"));
        }
    }
}

/// Everything that is current and not away, read whole at this moment.
fn current(world: &World) -> Vec<Facts> {
    let catalog = world.registry.catalog();
    let resident = catalog.entries().iter().filter(|entry| entry.resident);
    let read = resident.filter_map(|entry| {
        let lease = match world.registry.acquire(entry.handle) {
            Ok(lease) => lease,
            Err(error) => {
                world.fail(format!("{}: nobody works, and {error}", entry.name));
                return None;
            }
        };
        Some(Held::of(lease, world, "at a meeting")?.facts)
    });
    read.flatten().collect()
}

/// First half: what is there is what must be there.
pub fn count(world: &World, workers: &[Worker], mirror: &Mirror) -> Count {
    complete_steps(world);
    let fenced = lock(&world.fenced);
    until(world, "fences that have passed", || {
        world.registry.stats().pending_fences == fenced.len() as u64
    });
    settle_retired(world);
    let shelf = lock(&world.shelf);
    let held = workers.iter().flat_map(|worker| &worker.held);
    let held: Vec<&Held> = held.chain(&*shelf).collect();
    let ours = held.iter().filter(|held| !held.foreign);
    let leased: Vec<&Facts> = ours
        .flat_map(|held| &held.facts)
        .chain(fenced.iter().flat_map(|one| &one.facts))
        .collect();
    let current = current(world);
    let catalog = world.registry.catalog();
    let away = catalog.entries().iter().filter(|entry| !entry.resident);
    let away: HashSet<SetHandle> = away.map(|entry| entry.handle).collect();
    let bases = || check::have_their_bases(&current, &away);
    if let Err(wrong) = check::agree(&current).and_then(|()| bases()) {
        world.fail(format!("at a meeting: {wrong}"));
    }
    audit(world, &current, &leased);
    let ledger = world.registry.ledger();
    Count {
        leases: held.len(),
        fenced: fenced.len(),
        sets: current.len(),
        ledger: ledger.total(),
        pooled: ledger.pooled,
        blind: !compare_events(world, &current, &leased, mirror),
    }
}

/// The ledger, and the tenants' accounts in it.
fn audit(world: &World, current: &[Facts], leased: &[&Facts]) {
    let mut books = Books::default();
    current.iter().for_each(|facts| books.current(facts));
    leased.iter().for_each(|facts| books.leased(facts));
    // What is away may keep something.
    for entry in world.registry.catalog().entries() {
        match world.registry.kept(entry.handle) {
            Ok(kept) => kept
                .iter()
                .for_each(|one| books.kept(&one.identity, one.bytes)),
            Err(error) => world.fail(format!("{error}")),
        }
    }
    if let Some(wrong) = books.disagree(&world.registry.ledger()) {
        world.fail(format!("the ledger: {wrong}"));
    }
    let accounts = world.registry.accounts();
    let spaces = accounts
        .iter()
        .filter(|(account, _)| matches!(account, Account::Namespace(_)));
    let charged: u64 = spaces.map(|(_, of)| of.total()).sum();
    let ledger = world.registry.ledger();
    world.demand(charged <= ledger.total(), || {
        format!("accounts have {charged} bytes of {ledger:?}")
    });
    for tenant in 0..roles::TENANT.len() / roles::PER_TENANT {
        let stats = world.registry.namespace_stats(&roles::tenant_name(tenant));
        let there = world.registry.catalog();
        let there = there.entries().iter();
        let there = there.filter(|entry| entry.name.namespace() == roles::tenant_name(tenant));
        let there = there.count();
        world.demand(stats.sets == there, || format!("{there} sets, {stats:?}"));
    }
    let (said, known) = acts::account(world);
    world.demand(said == known, || {
        format!("flat weights have {known} bytes and say {said}")
    });
}

/// What events told, against what is. False if it could not be compared.
fn compare_events(world: &World, current: &[Facts], leased: &[&Facts], mirror: &Mirror) -> bool {
    let Some(picture) = mirror.ask() else {
        world.fail("nobody answers for the events");
        return false;
    };
    if picture.blind {
        return false;
    }
    let catalog = world.registry.catalog();
    let entries = catalog.entries().iter();
    let there: HashMap<SetHandle, (u64, u64, bool)> = entries
        .map(|entry| {
            let value = (entry.generation.number(), entry.bytes, entry.resident);
            (entry.handle, value)
        })
        .collect();
    world.demand(picture.current == there, || {
        format!("events told {:?}, there is {there:?}", picture.current)
    });
    let now: HashSet<(SetHandle, u64)> = current
        .iter()
        .map(|facts| (facts.handle, facts.generation))
        .collect();
    let old = leased.iter().map(|facts| (facts.handle, facts.generation));
    let old: HashSet<(SetHandle, u64)> = old.filter(|one| !now.contains(one)).collect();
    world.demand(picture.going == old, || {
        let more = picture.going.difference(&old).take(3);
        let less = old.difference(&picture.going).take(3);
        format!(
            "of {} old generations that are leased, events still know {}; more: {:?}, less: {:?}",
            old.len(),
            picture.going.len(),
            more.collect::<Vec<_>>(),
            less.collect::<Vec<_>>()
        )
    });
    true
}

/// Second half: everything goes, and nothing is left.
pub fn clear(world: &World, workers: &mut [Worker], mirror: &Mirror) {
    for worker in workers.iter_mut() {
        worker.pins.clear();
        for held in worker.held.drain(..) {
            held.let_go(world, "a meeting");
        }
    }
    for held in lock(&world.shelf).drain(..) {
        held.let_go(world, "a meeting");
    }
    lock(&world.fenced)
        .drain(..)
        .for_each(|one| one.signal.set());
    complete_steps(world);
    for entry in world.registry.catalog().entries() {
        match world.registry.retire_cascade(entry.handle) {
            // It went with what it stood on.
            Ok(_) | Err(Error::StaleHandle { .. }) => {}
            Err(error) => world.fail(format!("{}: {error}", entry.name)),
        }
    }
    for going in world.registry.retired() {
        if let Err(error) = going.reclaimed(SOON) {
            world.fail(format!("all leases have ended, and {error}"));
        }
    }
    acts::clear_streams(world);
    if let Err(error) = world.registry.empty_pool() {
        world.fail(format!("the pool: {error}"));
    }
    // What sets kept for a rollback was among those.
    nothing_left(world);
    let told = mirror.ask();
    world.demand(told.is_some_and(|it| it.blind || it.is_empty()), || {
        "events do not tell of the end of everything".to_owned()
    });
    world.demand(mirror.forget(), || "nobody follows the events".to_owned());
}

fn nothing_left(world: &World) {
    let stats = world.registry.stats();
    let left = (stats.sets, stats.ledger.total(), stats.retired_generations);
    world.demand(left == (0, 0, 0) && stats.pending_fences == 0, || {
        format!("everything was let go, and there is still {stats:?}")
    });
    let wrong = (
        stats.fence_panics,
        stats.reclaimer_panics,
        stats.observer_panics,
    );
    world.demand(wrong == (0, 0, 0), || format!("panics: {stats:?}"));
    for (account, of) in world.registry.accounts() {
        world.demand(of.total() == 0, || format!("{account}: {of:?}"));
    }
    let totals = world.flat.totals();
    world.demand(
        totals.base.bytes + totals.lora.bytes == 0 && world.flat.is_empty(),
        || format!("no flat weight is left, and there are {totals:?}"),
    );
}

/// Memory now: with the same events in the stream's places, and no garbage that can still go.
pub fn sample(world: &World) -> Sample {
    let body = Body {
        uid: 0,
        role: 0,
        stamp: 0,
    };
    for _ in 0..EVENTS / 3 + 1 {
        let tensor = InMemory::new().tensor("t0", Dtype::U8, [64], body.bytes(10, 64));
        let done = tensor
            .and_then(|source| Ok(world.registry.publish("set-0", source)?))
            .and_then(|set| world.registry.retire(set))
            .and_then(|going| going.reclaimed(SOON));
        if let Err(error) = done {
            world.fail(format!("alone: {error}"));
            break;
        }
    }
    std::hint::black_box(world.registry.catalog());
    let mut least = counting::live();
    let mut quiet = 0;
    for _ in 0..500 {
        (0..128).for_each(|_| world.registry.scope(|_| ()));
        let now = counting::live();
        quiet = if now < least { 0 } else { quiet + 1 };
        least = least.min(now);
        if quiet > 20 && world.registry.stats().metadata_waiting == 0 {
            break;
        }
    }
    Sample {
        live: counting::live(),
        blocks: counting::blocks(),
        resident: process::resident(),
    }
}
