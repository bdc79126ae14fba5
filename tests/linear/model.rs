//! The registry, one operation at a time.
//!
//! What lives here: what each public operation may answer, given what came before. What does not: the
//! search for an order (`checker`), real threads (`drive`).
//!
//! Publishing and retiring are two steps each, as the documentation says: a set is current before its
//! name is found, and is gone before its name is. A name that is taken just then is said to be busy.
//!
//! Bytes go and come back without a commit, and each time that is a step of its own: where a request has
//! sets loaded, its steps are among those of others.

use weighbridge::SetHandle;

use super::checker::Model;

pub const NAMES: usize = 3;

/// What is in a set: bytes that are all the same.
pub type Fill = u8;

/// Some sources are read once and are gone.
pub fn can_be_read_again(fill: Fill) -> bool {
    !fill.is_multiple_of(4)
}

/// What was done and what it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A set becomes current, an adapter on its base.
    Born(SetHandle, usize, Fill, Option<SetHandle>),
    /// Its name is found.
    Named(SetHandle, usize),
    /// A set is retired; it had this generation.
    Gone(SetHandle, u64),
    /// Sets are retired together, each with the generation that it had.
    Cascade(Vec<(SetHandle, u64)>),
    /// Adapters on it stand in the way.
    Blocked(SetHandle),
    /// Its name is free.
    Unnamed(SetHandle, usize),
    /// A publish of a name that means something already, or (`contended`) may just have, or be about to.
    Taken {
        name: usize,
        contended: bool,
    },
    /// A publish of a name that somebody else is publishing or retiring.
    Busy {
        contended: bool,
    },
    /// A replace, of this generation if that was demanded: the new one, and the one before.
    Replaced(SetHandle, Option<u64>, Fill, u64, u64),
    /// Back to the generation before.
    RolledBack(SetHandle, u64),
    NothingKept(SetHandle),
    /// Is a generation before this one kept?
    Keeps(SetHandle, bool),
    /// Another generation was current than the one that was demanded.
    Conflict(SetHandle, u64, u64),
    /// The set is not there.
    Stale(SetHandle),
    /// Several sets at one instant: the commit, and generation and bytes of each.
    Leased(u64, Vec<(SetHandle, u64, Fill)>),
    /// A picture: the commit, and the generation of each, if it was there.
    Scoped(u64, Vec<(SetHandle, Option<u64>)>),
    Found(usize, Option<SetHandle>),
    /// All sets at one commit.
    Listed(u64, Vec<(usize, SetHandle, u64)>),
    /// How many commits there were.
    Commits(u64),
    /// Everything at one instant: the new generation; what was replaced, bound anew, retired, born.
    Together {
        number: u64,
        replaced: Vec<(SetHandle, Fill)>,
        rebound: Vec<SetHandle>,
        retired: Vec<SetHandle>,
        born: Vec<(SetHandle, usize, Fill)>,
    },
    /// As [`Leased`](Self::Leased), whatever had to be loaded for it.
    LeasedOrLoaded(u64, Vec<(SetHandle, u64, Fill)>),
    /// These bytes were read again for somebody: the set has them, unless it is another generation by now.
    Came(Fill),
    /// The set is current and has no bytes.
    Away(SetHandle),
    /// Its bytes were taken away.
    Evicted(SetHandle),
    /// It had none that could be.
    NothingThere(SetHandle),
    /// They were read again.
    Loaded(SetHandle),
    /// They were there.
    There(SetHandle),
    /// They are leased by somebody else (`contended`).
    InUse {
        set: SetHandle,
        contended: bool,
    },
    /// Another generation may still have the same bytes.
    Shared(SetHandle),
    /// They could not be read again.
    Stays(SetHandle),
    Pinned(SetHandle),
    Unpinned(SetHandle),
    /// It is not evicted, because it is pinned.
    PinnedDown(SetHandle),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Set {
    handle: SetHandle,
    name: usize,
    alive: bool,
    generation: u64,
    fill: Fill,
    /// The generation before, which a rollback brings back.
    kept: Option<Fill>,
    /// What an adapter stands on.
    base: Option<SetHandle>,
    /// It has no bytes.
    away: bool,
    /// It has the bytes of an earlier generation.
    passed_on: bool,
    pins: u8,
}

impl Set {
    /// What was current is kept, if it has bytes, and this is current from here on.
    fn becomes(&mut self, generation: u64, fill: Fill) {
        if !self.away {
            self.kept = Some(self.fill);
        }
        (self.generation, self.fill) = (generation, fill);
        (self.away, self.passed_on) = (false, false);
    }

    fn may_be_evicted(&self) -> bool {
        !self.away && can_be_read_again(self.fill) && self.pins == 0
    }

    fn goes(&mut self) {
        self.away = true;
    }

    /// In memory of its own.
    fn comes(&mut self) {
        (self.away, self.passed_on) = (false, false);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    commits: u64,
    sets: Vec<Set>,
    /// What look-ups say.
    names: [Option<SetHandle>; NAMES],
}

impl State {
    fn alive(&self, handle: SetHandle) -> Option<&Set> {
        let set = self.sets.iter().find(|set| set.handle == handle)?;
        set.alive.then_some(set)
    }

    /// Do only these stand on it?
    fn stands_only(&self, handle: SetHandle, along: &[SetHandle]) -> bool {
        let on_it = |set: &&Set| set.alive && set.base == Some(handle);
        let mut standing = self.sets.iter().filter(on_it);
        standing.all(|set| along.contains(&set.handle))
    }

    fn born(
        &mut self,
        handle: SetHandle,
        name: usize,
        fill: Fill,
        base: Option<SetHandle>,
    ) -> Option<()> {
        if let Some(base) = base {
            self.alive(base)?;
        }
        let free = |set: &Set| set.handle != handle && !(set.alive && set.name == name);
        self.sets.iter().all(free).then_some(())?;
        self.sets.push(Set {
            handle,
            name,
            alive: true,
            generation: self.commits,
            fill,
            kept: None,
            base,
            away: false,
            passed_on: false,
            pins: 0,
        });
        Some(())
    }

    fn change(&mut self, handle: SetHandle, change: impl FnOnce(&mut Set)) -> Option<()> {
        let set = self.sets.iter_mut().find(|set| set.handle == handle)?;
        set.alive.then(|| change(set))
    }
}

pub struct Registry;

impl Model for Registry {
    type State = State;
    type Op = Op;

    fn init() -> State {
        State::default()
    }

    fn step(state: &State, op: &Op) -> Option<State> {
        let mut next = state.clone();
        let now = state.commits + 1;
        match op {
            Op::Born(handle, name, fill, base) => {
                next.commits = now;
                next.born(*handle, *name, *fill, *base)?;
            }
            Op::Named(handle, name) => {
                (state.names[*name].is_none() && state.alive(*handle).is_some()).then_some(())?;
                next.names[*name] = Some(*handle);
            }
            Op::Gone(handle, generation) => {
                (state.alive(*handle)?.generation == *generation).then_some(())?;
                state.stands_only(*handle, &[]).then_some(())?;
                next.commits = now;
                next.change(*handle, |set| set.alive = false)?;
            }
            Op::Cascade(gone) => {
                next.commits = now;
                let along: Vec<SetHandle> = gone.iter().map(|one| one.0).collect();
                for &(handle, generation) in gone {
                    (state.alive(handle)?.generation == generation).then_some(())?;
                    state.stands_only(handle, &along).then_some(())?;
                    next.change(handle, |set| set.alive = false)?;
                }
            }
            Op::Blocked(handle) => {
                state.alive(*handle)?;
                (!state.stands_only(*handle, &[])).then_some(())?;
            }
            Op::Unnamed(handle, name) => {
                let ours = state.names[*name] == Some(*handle) && state.alive(*handle).is_none();
                ours.then_some(())?;
                next.names[*name] = None;
            }
            Op::Taken { name, contended } => {
                (*contended || state.names[*name].is_some()).then_some(())?;
            }
            Op::Busy { contended } => contended.then_some(())?,
            Op::Replaced(handle, expected, fill, generation, previous) => {
                let was = state.alive(*handle)?;
                let as_demanded = expected.is_none_or(|expected| expected == was.generation);
                let fits = as_demanded && *generation == now && *previous == was.generation;
                (fits && state.stands_only(*handle, &[])).then_some(())?;
                next.commits = now;
                next.change(*handle, |set| set.becomes(now, *fill))?;
            }
            Op::RolledBack(handle, generation) => {
                let back = state.alive(*handle)?.kept?;
                (*generation == now && state.stands_only(*handle, &[])).then_some(())?;
                next.commits = now;
                next.change(*handle, |set| {
                    set.kept = None;
                    set.becomes(now, back);
                    set.passed_on = true;
                })?;
            }
            Op::NothingKept(handle) => {
                state.alive(*handle)?.kept.is_none().then_some(())?;
            }
            Op::Keeps(handle, keeps) => {
                let kept = state.alive(*handle)?.kept;
                (kept.is_some() == *keeps).then_some(())?;
            }
            Op::Conflict(handle, expected, current) => {
                let is = state.alive(*handle)?.generation;
                (is == *current && is != *expected).then_some(())?;
            }
            Op::Stale(handle) => state.alive(*handle).is_none().then_some(())?,
            Op::Leased(number, sets) | Op::LeasedOrLoaded(number, sets) => {
                let as_now = |&(handle, generation, fill): &(SetHandle, u64, Fill)| {
                    let set = state.alive(handle);
                    set.is_some_and(|set| {
                        !set.away && (set.generation, set.fill) == (generation, fill)
                    })
                };
                (*number == state.commits && sets.iter().all(as_now)).then_some(())?;
            }
            Op::Scoped(number, sets) => {
                let as_now = |&(handle, generation): &(SetHandle, Option<u64>)| {
                    state.alive(handle).map(|set| set.generation) == generation
                };
                (*number == state.commits && sets.iter().all(as_now)).then_some(())?;
            }
            Op::Found(name, handle) => (state.names[*name] == *handle).then_some(())?,
            Op::Listed(number, sets) => {
                let alive = state.sets.iter().filter(|set| set.alive);
                let mut expected: Vec<_> = alive
                    .map(|set| (set.name, set.handle, set.generation))
                    .collect();
                expected.sort_unstable();
                (*number == state.commits && *sets == expected).then_some(())?;
            }
            Op::Came(fill) => {
                let waits = |set: &&mut Set| set.alive && set.away && set.fill == *fill;
                next.sets.iter_mut().filter(waits).for_each(Set::comes);
            }
            Op::Evicted(handle) => {
                state.alive(*handle)?.may_be_evicted().then_some(())?;
                next.change(*handle, Set::goes)?;
            }
            Op::Loaded(handle) => {
                state.alive(*handle)?.away.then_some(())?;
                next.change(*handle, Set::comes)?;
            }
            Op::Away(handle) | Op::NothingThere(handle) => {
                state.alive(*handle)?.away.then_some(())?;
            }
            Op::There(handle) => (!state.alive(*handle)?.away).then_some(())?,
            Op::InUse { set, contended } => {
                let set = state.alive(*set)?;
                (*contended && set.may_be_evicted()).then_some(())?;
            }
            Op::Shared(handle) => {
                let set = state.alive(*handle)?;
                (set.passed_on && set.may_be_evicted()).then_some(())?;
            }
            Op::Stays(handle) => {
                let set = state.alive(*handle)?;
                (!set.away && !can_be_read_again(set.fill)).then_some(())?;
            }
            Op::Pinned(handle) => next.change(*handle, |set| set.pins += 1)?,
            // What is gone is still pinned, and nobody minds.
            Op::Unpinned(handle) => {
                let set = next.sets.iter_mut().find(|set| set.handle == *handle)?;
                set.pins = set.pins.checked_sub(1)?;
            }
            Op::PinnedDown(handle) => {
                let set = state.alive(*handle)?;
                let otherwise = !set.away && can_be_read_again(set.fill);
                (otherwise && set.pins > 0).then_some(())?;
            }
            Op::Commits(number) => (*number == state.commits).then_some(())?,
            Op::Together {
                number,
                replaced,
                rebound,
                retired,
                born,
            } => {
                (*number == now).then_some(())?;
                next.commits = now;
                let changed = replaced.iter().map(|one| one.0);
                let along: Vec<SetHandle> = changed.chain(retired.iter().copied()).collect();
                let follow = [along.as_slice(), rebound.as_slice()].concat();
                let stands = |&handle: &SetHandle| state.stands_only(handle, &follow);
                along.iter().all(stands).then_some(())?;
                for &handle in rebound {
                    next.change(handle, |set| {
                        (set.generation, set.passed_on) = (now, true);
                    })?;
                }
                for &(handle, fill) in replaced {
                    next.change(handle, |set| set.becomes(now, fill))?;
                }
                for &handle in retired {
                    next.change(handle, |set| set.alive = false)?;
                }
                for &(handle, name, fill) in born {
                    next.born(handle, name, fill, None)?;
                }
            }
        }
        Some(next)
    }
}
