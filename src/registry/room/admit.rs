//! Admission: all that is wanted, or nothing.
//!
//! What lives here: what is there of what is wanted, whether the rest ever fits, what goes for it. What
//! does not: waiting (`line`), the acts on sets (`idle`).
//!
//! All of it happens under the room's lock. It reads no file and frees no memory: what was taken from sets
//! is freed by whoever loads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::super::WeightRegistry;
use super::super::content::Facts;
use super::super::generation::{Holds, View, generation};
use super::super::lease::Lease;
use super::super::loading::{Duty, Load};
use super::super::record::SetRecord;
use super::choice::{Choice, Offer, choose};
use super::idle::{Resident, Scene, Spare};
use super::line::Lack;
use super::{Chooser, Job};
use crate::arena::Arena;
use crate::core::{Miss, Turn, Vitals, discard, panics};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::ledger::{Account, Exchanged, Need, Shortage};
use crate::memory::Memory;
use crate::policy::{Candidate, Policy};
use crate::sync::atomic::{AtomicU64, Ordering};

/// What somebody wants, as it was found. Dropped when no lock is held: there is foreign code in it.
#[derive(Default)]
pub(super) struct Found {
    /// Leases of what is there.
    pub(super) held: Vec<Lease>,
    /// The loads of what is on its way.
    pub(super) flights: Vec<Arc<Load>>,
    /// The rest.
    pub(super) missing: Vec<Missing>,
    /// What was missing and is on its way now.
    pub(super) caused: Vec<SetHandle>,
}

pub(super) struct Missing {
    record: Arc<SetRecord>,
    generation: Generation,
    facts: Facts,
    need: Need,
}

impl Missing {
    /// How long the arena of its load is.
    fn arena_bytes(&self) -> u64 {
        let again = self.facts.again.as_ref();
        again.map_or(0, |again| again.arena_bytes)
    }
}

/// Room that was made.
struct Made {
    exchanged: Exchanged,
    /// From the pool.
    arenas: Vec<Arena>,
    /// In place of whose bytes it was taken.
    used: Vec<Spare>,
}

/// A set that could not be leased.
enum Away {
    /// It is there by now.
    There,
    Coming(Arc<Load>),
    Gone(Box<Missing>),
}

/// The load of one set.
pub(in super::super) struct Single {
    pub(in super::super) load: Arc<Load>,
    /// What is to be done for it; `None`: somebody else does.
    pub(in super::super) job: Option<Job>,
    /// What that takes.
    pub(in super::super) bytes: u64,
}

pub(super) enum Verdict {
    Granted {
        /// `None`: there is nothing to do.
        job: Option<Job>,
    },
    /// It does not fit now.
    Short(Shortage),
}

/// Is `short` of what `needs` takes?
fn conflict(short: &Shortage, needs: &[Need]) -> bool {
    let account = |need: &Need| short.accounts.contains_key(&need.account);
    short.total > 0 || needs.iter().any(account)
}

/// What somebody wants to have.
pub(super) struct Wish<'w> {
    /// All of it.
    pub(super) sets: &'w [SetHandle],
    /// What of it is there.
    pub(super) held: &'w [SetHandle],
    /// What the rest takes.
    pub(super) needs: &'w [Need],
}

/// Why something is not admitted.
pub(super) enum Refused {
    /// It may fit later.
    NotNow(Shortage),
    Never(Error),
}

impl WeightRegistry {
    pub(super) fn admit(
        &self,
        chooser: &mut Chooser,
        sets: &[SetHandle],
        ticket: Option<u64>,
        found: &mut Found,
    ) -> Result<Verdict, Error> {
        self.put_back_for(chooser, sets, ticket);
        self.find(sets, found)?;
        if found.missing.is_empty() {
            return Ok(Verdict::Granted { job: None });
        }
        let needs: Vec<Need> = found.missing.iter().map(|one| one.need.clone()).collect();
        let lacks = |first: &Lack| conflict(&first.short, &needs);
        let turn = self.room.line.turn(ticket, lacks);
        // Nobody but the first has what was evicted for the first.
        let mut spare = match turn {
            Turn::First => std::mem::take(&mut chooser.spare),
            Turn::MayPass => Vec::new(),
            Turn::MustWait => {
                let short = self.shared.pool.shortage(&needs);
                return Ok(Verdict::Short(short));
            }
        };
        let held: Vec<SetHandle> = found.held.iter().flat_map(Lease::handles).collect();
        let wish = Wish {
            sets,
            held: &held,
            needs: &needs,
        };
        let first = turn == Turn::First;
        let lens: Vec<u64> = found.missing.iter().map(Missing::arena_bytes).collect();
        let answer = self.make_room(&mut *chooser.policy, (&wish, &lens), first, &mut spare);
        let verdict = match answer {
            Ok(mut made) => {
                if !first {
                    self.room.line.passed(lacks);
                }
                self.they_go(chooser, &mut made.used);
                self.ease(chooser, &wish);
                let job = self.begin(found, made);
                Ok(Verdict::Granted { job: Some(job) })
            }
            Err(Refused::NotNow(short)) => Ok(Verdict::Short(short)),
            Err(Refused::Never(error)) => {
                if found.missing.iter().all(|one| self.is_still_away(one)) {
                    Err(error)
                } else {
                    // What it was reckoned with has changed since: it is to look again.
                    Ok(Verdict::Short(self.shared.pool.shortage(&needs)))
                }
            }
        };
        // What it waits for is kept if it is the first; what is left when it does not wait, for whoever is
        // the first then.
        let others = self.room.line.len() > usize::from(ticket.is_some());
        let kept = match &verdict {
            _ if !first => Vec::new(),
            Ok(Verdict::Short(_)) => {
                let offers: Vec<Offer> = spare.iter().map(Spare::offer).collect();
                choose(&self.shared.pool.shortage(&needs), &offers).taken
            }
            Ok(Verdict::Granted { .. }) | Err(_) if others => (0..spare.len()).collect(),
            Ok(Verdict::Granted { .. }) | Err(_) => Vec::new(),
        };
        for (at, mut one) in spare.into_iter().enumerate() {
            if kept.binary_search(&at).is_ok() {
                self.tell_evicted(&mut one);
                chooser.spare.push(one);
            } else {
                self.put_back(one);
            }
        }
        verdict
    }

    /// What was evicted for the first of the line, and is what the first wants, was not evicted after all: it
    /// need not be read again.
    fn put_back_for(&self, chooser: &mut Chooser, sets: &[SetHandle], ticket: Option<u64>) {
        if chooser.spare.is_empty() || self.room.line.turn(ticket, |_| true) != Turn::First {
            return;
        }
        let all = std::mem::take(&mut chooser.spare).into_iter();
        let (wanted, kept): (Vec<_>, Vec<_>) =
            all.partition(|one| sets.contains(&one.record.handle));
        chooser.spare = kept;
        wanted.into_iter().for_each(|one| self.put_back(one));
    }

    /// What is there of `sets`, what is on its way, and what is neither.
    fn find(&self, sets: &[SetHandle], found: &mut Found) -> Result<(), Error> {
        for (at, &set) in sets.iter().enumerate() {
            if sets[..at].contains(&set) {
                continue;
            }
            let key = self.key(set)?;
            loop {
                let mut view = self.view();
                match view.acquire_one(key) {
                    Ok(hold) => {
                        let lease = Lease::new(Holds::One(hold), view.number());
                        found.held.push(lease);
                        break;
                    }
                    Err(Miss::NotResident { .. }) => {}
                    Err(Miss::Absent { .. } | Miss::Superseded { .. }) => {
                        return Err(Error::StaleHandle { handle: set });
                    }
                }
                match self.away(&view, set)? {
                    // It came since that look.
                    Away::There => {}
                    Away::Coming(flight) => {
                        found.flights.push(flight);
                        break;
                    }
                    Away::Gone(missing) => {
                        missing.record.check_backoff(missing.generation)?;
                        found.missing.push(*missing);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// What there is of a set that cannot be leased.
    fn away(&self, view: &View<'_>, set: SetHandle) -> Result<Away, Error> {
        let node = view.resolve(self.key(set)?);
        let node = node.and_then(|node| Some((node, node.meta()?)));
        let (node, meta) = node.ok_or(Error::StaleHandle { handle: set })?;
        let record = &meta.record;
        if let Some(flight) = record.flight(generation(node)) {
            return Ok(Away::Coming(flight));
        }
        if !node.is_absent() {
            return Ok(Away::There);
        }
        let again = meta.facts.again.as_ref();
        let again = again.ok_or(Error::NotResident { handle: set })?;
        Ok(Away::Gone(Box::new(Missing {
            record: Arc::clone(record),
            generation: generation(node),
            need: Need {
                account: Account::namespace(record.name.namespace()),
                bytes: again.charged,
            },
            facts: meta.facts.clone(),
        })))
    }

    fn is_still_away(&self, missing: &Missing) -> bool {
        match self.away(&self.view(), missing.record.handle) {
            Ok(Away::Gone(now)) => now.generation == missing.generation,
            _ => false,
        }
    }

    /// Which generation of a set is to be loaded; `None`: it is there, or on its way.
    pub(super) fn away_as(&self, set: SetHandle) -> Result<Option<Generation>, Error> {
        match self.away(&self.view(), set)? {
            Away::There | Away::Coming(_) => Ok(None),
            Away::Gone(missing) => Ok(Some(missing.generation)),
        }
    }

    /// Has it its bytes?
    pub(in super::super) fn is_there(&self, set: SetHandle) -> Result<bool, Error> {
        Ok(matches!(self.away(&self.view(), set)?, Away::There))
    }

    /// What loading a set takes: nothing if it is there, or on its way.
    pub(super) fn need(&self, set: SetHandle) -> Result<Option<Need>, Error> {
        match self.away(&self.view(), set)? {
            Away::There | Away::Coming(_) => Ok(None),
            Away::Gone(missing) => Ok(Some(missing.need)),
        }
    }

    /// The load of one set, if it is away: one that is under way, or one that begins now, with what it takes.
    /// Nothing is evicted for it, and whether it failed a moment ago does not matter.
    ///
    /// # Errors
    /// It does not fit, or is not to come back.
    pub(in super::super) fn load_now(&self, set: SetHandle) -> Result<Option<Single>, Error> {
        // Declared first, and so dropped when no lock is held.
        let mut found = Found::default();
        let _chooser = self.room.chooser.lock(); // E74
        match self.away(&self.view(), set)? {
            Away::There => Ok(None),
            Away::Coming(load) => Ok(Some(Single {
                load,
                job: None,
                bytes: 0,
            })),
            Away::Gone(missing) => {
                let (need, len) = (missing.need.clone(), missing.arena_bytes());
                found.missing.push(*missing);
                let Need { account, bytes } = &need;
                let pool = &self.shared.pool;
                let (exchanged, arenas) =
                    match pool.exchange(std::slice::from_ref(&need), &[len], |_| Vec::new()) {
                        Ok(taken) => taken,
                        // Says what is wrong, unless there is room by now.
                        Err(_) => {
                            let charges = vec![pool.take(Some(account), *bytes)?];
                            let rest = None;
                            (Exchanged { charges, rest }, Vec::new())
                        }
                    };
                let made = Made {
                    exchanged,
                    arenas,
                    used: Vec::new(),
                };
                let bytes = *bytes;
                let job = self.begin(&mut found, made);
                let load = found.flights.pop();
                Ok(load.map(|load| Single {
                    load,
                    job: Some(job),
                    bytes,
                }))
            }
        }
    }

    /// Reserves what is needed (`lens`: the arenas of it), in place of what is in the pool and, if that does not
    /// suffice, of what idle sets give up for it. What else was taken from sets is in `spare`, whatever the answer
    /// is. The first of the line takes whatever helps, others only what suffices.
    fn make_room(
        &self,
        policy: &mut dyn Policy,
        (wish, lens): (&Wish<'_>, &[u64]),
        first: bool,
        spare: &mut Vec<Spare>,
    ) -> Result<Made, Refused> {
        let mut busy: HashSet<SetHandle> = HashSet::new();
        loop {
            let offers: Vec<Offer> = spare.iter().map(Spare::offer).collect();
            let mut places = Vec::new();
            let taken = self.shared.pool.exchange(wish.needs, lens, |short| {
                places = choose(short, &offers).taken;
                places.iter().map(|&at| &spare[at].body.charge).collect()
            });
            let short = match taken {
                Ok((exchanged, arenas)) => {
                    let all = std::mem::take(spare).into_iter().enumerate();
                    let is_used = |(at, _): &(usize, Spare)| places.binary_search(at).is_ok();
                    let (used, rest): (Vec<_>, Vec<_>) = all.partition(is_used);
                    *spare = rest.into_iter().map(|(_, one)| one).collect();
                    return Ok(Made {
                        exchanged,
                        arenas,
                        used: used.into_iter().map(|(_, one)| one).collect(),
                    });
                }
                Err(short) => short,
            };
            let scene = self.scene();
            self.can_ever_fit(&scene, wish).map_err(Refused::Never)?;
            let ranked = self.rank_idle(policy, &scene, wish, &busy);
            let offers: Vec<Offer> = ranked.iter().map(|one| one.offer.clone()).collect();
            let Choice { taken, left } = choose(&short, &offers);
            if taken.is_empty() || !(first || left.is_none()) {
                return Err(Refused::NotNow(short));
            }
            let chosen: Vec<&Resident> = taken.into_iter().map(|at| ranked[at]).collect();
            let (more, refused) = self.take(&chosen, !first);
            // Each round takes something, or has less to choose from.
            spare.extend(more);
            busy.extend(refused);
        }
    }

    /// Whoever watches is told, and so is the policy.
    fn they_go(&self, chooser: &mut Chooser, those: &mut [Spare]) {
        those.iter_mut().for_each(|one| self.tell_evicted(one));
        let went: Vec<SetHandle> = those.iter().map(|one| one.record.handle).collect();
        self.shield(|| chooser.policy.went(&went));
    }

    /// Evicts, so that the total is below the soft limit again, as far as there is anything that may go. The
    /// reclaimer frees it: nobody waits for that.
    fn ease(&self, chooser: &mut Chooser, wish: &Wish<'_>) {
        let over = self.shared.ledger.over_soft_limit();
        if over == 0 {
            return;
        }
        let scene = self.scene();
        let ranked = self.rank_idle(&mut *chooser.policy, &scene, wish, &HashSet::new());
        let offers: Vec<Offer> = ranked.iter().map(|one| one.offer.clone()).collect();
        let short = Shortage {
            total: over,
            ..Shortage::default()
        };
        let chosen = choose(&short, &offers).taken.into_iter();
        let chosen: Vec<&Resident> = chosen.map(|at| ranked[at]).collect();
        let (mut taken, _) = self.take(&chosen, false);
        self.they_go(chooser, &mut taken);
        // E17: a statistic.
        (self.room.evicted).fetch_add(taken.len() as u64, Ordering::Relaxed);
        for Spare { body, .. } in taken {
            body.charge.let_go();
            let vitals = Arc::new(Vitals::new());
            // Nobody waits for it: it is drained from the start.
            let _ = vitals.state().kill();
            discard(self.spine.reclaimer(), body, vitals);
        }
    }

    /// Those that may go for `wish` at this moment, in the order in which they should.
    fn rank_idle<'r>(
        &self,
        policy: &mut dyn Policy,
        scene: &'r Scene,
        wish: &Wish<'_>,
        busy: &HashSet<SetHandle>,
    ) -> Vec<&'r Resident> {
        let mut ranked = self.rank(policy, &scene.residents);
        ranked.retain(|one| {
            let set = &one.record.handle;
            one.is_idle() && !wish.sets.contains(set) && !busy.contains(set)
        });
        ranked
    }

    /// The residents in the order in which they should go, as far as the policy lets them.
    pub(super) fn rank<'r>(
        &self,
        policy: &mut dyn Policy,
        residents: &'r [Resident],
    ) -> Vec<&'r Resident> {
        let candidates: Vec<Candidate> =
            residents.iter().map(|one| one.candidate.clone()).collect();
        let order = self.shield(|| policy.rank(&candidates));
        for one in residents {
            one.record.mark.lock().told(); // E77
        }
        let Some(order) = order else {
            return residents.iter().collect();
        };
        let mut rest: HashMap<SetHandle, &Resident> = residents
            .iter()
            .map(|one| (one.record.handle, one))
            .collect();
        // What it names twice, or was not asked about, it does not rank.
        order.iter().filter_map(|set| rest.remove(set)).collect()
    }

    /// Calls a policy. `None`: it panicked, which is counted.
    fn shield<T>(&self, call: impl FnOnce() -> T) -> Option<T> {
        let mut answer = None;
        if panics(|| answer = Some(call())) {
            // E17: a statistic.
            self.shared.observer_panics.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// Would it fit if everything went that could?
    ///
    /// # Errors
    /// [`Error::NeverFits`]: not while what cannot go is there.
    pub(super) fn can_ever_fit(&self, scene: &Scene, wish: &Wish<'_>) -> Result<(), Error> {
        let mut fixed = scene.fixed.clone();
        for one in &scene.residents {
            // What was away when it was looked for is needed, and not counted again if it came meanwhile.
            if one.is_pinned() || wish.held.contains(&one.record.handle) {
                *fixed.entry(one.offer.account.clone()).or_default() += one.offer.bytes;
            }
        }
        let mut wanted: BTreeMap<&Account, u64> = BTreeMap::new();
        for need in wish.needs {
            let sum = wanted.entry(&need.account).or_default();
            *sum = sum.saturating_add(need.bytes);
        }
        let fits = |account: Option<&Account>, limit, requested: u64, immovable: u64| {
            if requested.saturating_add(immovable) <= limit {
                return Ok(());
            }
            Err(Error::NeverFits {
                requested,
                immovable,
                limit,
                account: account.cloned(),
            })
        };
        // Of what nothing is wanted, nothing is in the way.
        for (&account, &requested) in wanted.iter().filter(|(_, requested)| **requested > 0) {
            let limit = self.shared.ledger.account(account).limit;
            let immovable = fixed.get(account).copied().unwrap_or(0);
            fits(Some(account), limit, requested, immovable)?;
        }
        let limit = self.shared.ledger.snapshot().limit;
        let sum = |sum: u64, more: &u64| sum.saturating_add(*more);
        let host = wanted.iter().filter(|(account, _)| account.is_host());
        let requested = host.map(|(_, bytes)| bytes).fold(0, sum);
        if requested == 0 {
            return Ok(());
        }
        fits(None, limit, requested, fixed.values().fold(0, sum))
    }

    /// What is granted begins.
    fn begin(&self, found: &mut Found, made: Made) -> Job {
        let Made {
            exchanged,
            arenas,
            used,
        } = made;
        // E17: statistics.
        let count = |of: &AtomicU64, more: usize| of.fetch_add(more as u64, Ordering::Relaxed);
        count(&self.room.admitted, found.missing.len());
        count(&self.room.evicted, used.len());
        let Exchanged { charges, rest } = exchanged;
        let missing = std::mem::take(&mut found.missing);
        found.caused = missing.iter().map(|one| one.record.handle).collect();
        let missing = missing.into_iter();
        let duties: Vec<Duty> = missing
            .zip(charges)
            .map(|(one, charge)| {
                let now = (one.generation, one.facts);
                Duty::begin(one.record, now, charge, self)
            })
            .collect();
        found
            .flights
            .extend(duties.iter().map(|duty| Arc::clone(duty.flight())));
        let used = used.into_iter().map(|one| one.body.memory);
        Job {
            scrap: arenas.into_iter().map(Memory::from).chain(used).collect(),
            rest,
            duties,
        }
    }
}
