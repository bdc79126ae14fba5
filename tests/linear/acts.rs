//! What one thread does: random operations, and what each of them answered.
//!
//! What lives here: the operations and how their answers are written down. What does not: bytes that go and
//! come back (`residency`), threads (`drive`), what an answer may be (`model`).

use std::sync::Arc;
use std::thread;

use weighbridge::{Error, Generation, Lease, Pin, SetHandle, WeightRegistry};

use super::checker::Span;
use super::drive::{Planted, Random};
use super::model::{Fill, NAMES, Op};
use super::residency::leasing;
use super::source::{Diary, Eight};

/// What an operation had a hold on while it was under way.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    pub names: [bool; NAMES],
    /// Sets that it may have leased.
    pub leases: Vec<SetHandle>,
    /// It may have read sets again.
    pub loads: bool,
}

/// An operation that has ended.
pub type Ended = (Vec<Op>, Touched);

/// A set that was met: its name, a generation that it had, and what it stands on.
#[derive(Clone, Copy)]
pub struct Known {
    pub set: SetHandle,
    name: usize,
    generation: u64,
    pub base: Option<SetHandle>,
}

pub struct Actor<'s> {
    pub registry: &'s WeightRegistry,
    pub diary: &'s Arc<Diary>,
    pub thread: usize,
    pub random: Random,
    pub planted: Planted,
    pub fill: Fill,
    /// Sets that were met.
    pub known: Vec<Known>,
    pub remembered: [Option<Option<SetHandle>>; NAMES],
    /// Sets that were there once.
    pub there: Vec<SetHandle>,
    pub pin: Option<(SetHandle, Pin)>,
}

fn name(index: usize) -> String {
    format!("n{index}")
}

pub fn leased(lease: &Lease, set: SetHandle) -> (SetHandle, u64, Fill) {
    let generation = lease.set(set).unwrap().generation().number();
    (set, generation, first_byte(lease, set))
}

fn first_byte(lease: &Lease, set: SetHandle) -> Fill {
    let only = lease.set(set).unwrap().iter().next().unwrap().unwrap();
    let bytes = only.bytes();
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "mixed");
    bytes[0]
}

impl Actor<'_> {
    pub fn timed(
        &mut self,
        spans: &mut Vec<(Span<Op>, Touched)>,
        operation: impl FnOnce(&mut Self) -> Ended,
    ) {
        let from = self.diary.tick();
        let (ops, touched) = operation(self);
        let to = self.diary.tick();
        let thread = self.thread;
        spans.extend(ops.into_iter().map(|op| {
            let span = Span {
                thread,
                from,
                to,
                op,
            };
            (span, touched.clone())
        }));
    }

    pub fn anything(&mut self) -> Ended {
        let name = self.random.below(NAMES);
        match self.random.below(28) {
            0 | 1 => self.publish(name),
            2..4 => self.replace(),
            4 => self.replace_if(),
            5 => self.retire(),
            6 => self.roll_back(),
            7 | 8 => self.transact(),
            9..12 => self.lease(),
            12 => self.scope(),
            13 => self.list(),
            14 => free(vec![Op::Commits(self.registry.stats().commits)]),
            15 => self.kept(),
            16 | 17 => self.publish_adapter(name),
            18 => self.retire_cascade(),
            19 => self.replace_with_adapters(),
            20 | 21 => self.evict(),
            22 => self.load(),
            23..26 => self.acquire_or_load(),
            26 => self.pin(),
            _ => self.look_up(name),
        }
    }

    fn next_fill(&mut self) -> Fill {
        self.fill = self.fill.wrapping_add(1);
        self.fill
    }

    pub fn any_set(&mut self) -> Known {
        self.known[self.random.below(self.known.len())]
    }

    fn met(&mut self, one: Known) {
        match self.known.iter_mut().find(|known| known.set == one.set) {
            Some(known) => known.generation = known.generation.max(one.generation),
            None => self.known.push(one),
        }
    }

    /// Something that may follow it.
    fn source(&self, one: Known, fill: Fill) -> Eight {
        self.eight(fill, one.base)
    }

    fn eight(&self, fill: Fill, base: Option<SetHandle>) -> Eight {
        Eight::new(fill, base, self.diary)
    }

    pub fn publish(&mut self, index: usize) -> Ended {
        self.publish_on(index, None)
    }

    /// An adapter.
    fn publish_adapter(&mut self, index: usize) -> Ended {
        let base = self.any_set();
        let base = base.base.unwrap_or(base.set);
        self.publish_on(index, Some(base))
    }

    fn publish_on(&mut self, name: usize, base: Option<SetHandle>) -> Ended {
        let fill = self.next_fill();
        let source = self.eight(fill, base);
        let ops = match self.registry.publish(self::name(name), source) {
            Ok(set) => {
                let generation = 0;
                self.met(Known {
                    set,
                    name,
                    generation,
                    base,
                });
                vec![Op::Born(set, name, fill, base), Op::Named(set, name)]
            }
            Err(failed) => vec![refused_name(failed.error(), name)],
        };
        (ops, holding([name]))
    }

    fn replace(&mut self) -> Ended {
        let one = self.any_set();
        let fill = self.next_fill();
        free(vec![
            match self.registry.replace(one.set, self.source(one, fill)) {
                Ok(done) => {
                    let generation = done.generation.number();
                    self.met(Known { generation, ..one });
                    let previous = done.previous.generation().number();
                    Op::Replaced(one.set, None, fill, generation, previous)
                }
                Err(failed) => refused(failed.error(), one.set),
            },
        ])
    }

    fn replace_if(&mut self) -> Ended {
        let one = self.any_set();
        let fill = self.next_fill();
        let staged = match self.registry.stage(self.source(one, fill)) {
            Ok(staged) => staged,
            Err(error) => return free(vec![refused(&error, one.set)]),
        };
        let expected = self.generation(one.set, one.generation);
        let done = if self.planted == Planted::LookThenReplace {
            let now = self
                .registry
                .scope(|scope| scope.get(one.set).map(|set| set.generation()));
            match now {
                Ok(now) if now != expected => {
                    let (expected, now) = (expected.number(), now.number());
                    return free(vec![Op::Conflict(one.set, expected, now)]);
                }
                Ok(_) => {
                    thread::yield_now();
                    self.registry.replace_staged(one.set, staged)
                }
                Err(error) => return free(vec![refused(&error, one.set)]),
            }
        } else {
            self.registry.replace_staged_if(one.set, expected, staged)
        };
        free(vec![match done {
            Ok(done) => {
                let generation = done.generation.number();
                self.met(Known { generation, ..one });
                let previous = done.previous.generation().number();
                let expected = Some(expected.number());
                Op::Replaced(one.set, expected, fill, generation, previous)
            }
            Err(failed) => refused(failed.error(), one.set),
        }])
    }

    /// One that `set` had, or has.
    fn generation(&mut self, set: SetHandle, known: u64) -> Generation {
        // The only way to a number is to be told it.
        let now = self
            .registry
            .scope(|scope| scope.get(set).map(|set| set.generation()));
        match now {
            Ok(now) if known == 0 || self.random.below(2) == 0 => now,
            Ok(now) if now.number() == known => now,
            _ => self.kept_or_first(set),
        }
    }

    fn kept_or_first(&self, set: SetHandle) -> Generation {
        let kept = self.registry.kept(set).ok();
        let kept = kept.and_then(|kept| kept.first().map(|kept| kept.generation));
        kept.unwrap_or_else(|| self.registry.scope(|scope| scope.number()))
    }

    fn retire(&mut self) -> Ended {
        let one = self.any_set();
        match self.registry.retire(one.set) {
            Ok(gone) => {
                let gone = gone.generation().number();
                let ops = vec![Op::Gone(one.set, gone), Op::Unnamed(one.set, one.name)];
                (ops, holding([one.name]))
            }
            Err(error) => free(vec![refused(&error, one.set)]),
        }
    }

    fn retire_cascade(&mut self) -> Ended {
        let one = self.any_set();
        match self.registry.retire_cascade(one.set) {
            Ok(all) => {
                let of = |name: &str| name[1..].parse::<usize>().unwrap();
                let gone: Vec<_> = all
                    .iter()
                    .map(|gone| {
                        (
                            gone.set(),
                            of(gone.name().name()),
                            gone.generation().number(),
                        )
                    })
                    .collect();
                let mut touched = Touched::default();
                let sets = gone.iter().map(|&(set, _, generation)| (set, generation));
                let mut ops = vec![Op::Cascade(sets.collect())];
                for &(set, name, _) in &gone {
                    touched.names[name] = true;
                    ops.push(Op::Unnamed(set, name));
                }
                (ops, touched)
            }
            Err(error) => free(vec![refused(&error, one.set)]),
        }
    }

    fn roll_back(&mut self) -> Ended {
        let one = self.any_set();
        free(vec![match self.registry.rollback(one.set) {
            Ok(done) => {
                let generation = done.generation.number();
                self.met(Known { generation, ..one });
                Op::RolledBack(one.set, generation)
            }
            Err(error) => refused(&error, one.set),
        }])
    }

    /// A base is replaced, and the adapters on it come along.
    fn replace_with_adapters(&mut self) -> Ended {
        let one = self.any_set();
        if one.base.is_some() {
            return free(Vec::new());
        }
        let fill = self.next_fill();
        let mut transaction = self.registry.transaction();
        let staged = match self.registry.stage(self.eight(fill, None)) {
            Ok(staged) => staged,
            Err(error) => return free(vec![refused(&error, one.set)]),
        };
        if let Err(failed) = transaction.replace(one.set, staged) {
            return free(vec![refused(failed.error(), one.set)]);
        }
        let rebound = match self.registry.dependants_of(one.set) {
            Ok(rebound) => rebound,
            Err(error) => return free(vec![refused(&error, one.set)]),
        };
        for &adapter in &rebound {
            if let Err(error) = transaction.rebind(adapter, one.set) {
                return free(vec![refused(&error, adapter)]);
            }
        }
        free(vec![match transaction.commit() {
            Ok(done) => {
                let number = done.generation.number();
                self.met(Known {
                    generation: number,
                    ..one
                });
                Op::Together {
                    number,
                    replaced: vec![(one.set, fill)],
                    rebound,
                    retired: Vec::new(),
                    born: Vec::new(),
                }
            }
            Err(failed) => refused(failed.error(), one.set),
        }])
    }

    fn kept(&mut self) -> Ended {
        let set = self.any_set().set;
        free(vec![match self.registry.kept(set) {
            Ok(kept) => Op::Keeps(set, !kept.is_empty()),
            Err(error) => refused(&error, set),
        }])
    }

    /// One set is replaced, maybe another one retired, maybe a new one published.
    fn transact(&mut self) -> Ended {
        let (first, second) = (self.any_set(), self.any_set());
        let index = self.random.below(NAMES);
        let mut transaction = self.registry.transaction();
        let fill = self.next_fill();
        let staged = match self.registry.stage(self.source(first, fill)) {
            Ok(staged) => staged,
            Err(error) => return free(vec![refused(&error, first.set)]),
        };
        if let Err(failed) = transaction.replace(first.set, staged) {
            return free(vec![refused(failed.error(), first.set)]);
        }
        let replaced = vec![(first.set, fill)];
        let mut touched = Touched::default();
        // Not its own base: an adapter cannot stay on one that goes.
        let other = second.set != first.set && first.base != Some(second.set);
        let retired = if other && self.random.below(2) == 0 {
            if let Err(error) = transaction.retire(second.set) {
                return free(vec![refused(&error, second.set)]);
            }
            touched.names[second.name] = true;
            vec![second.set]
        } else {
            Vec::new()
        };
        let mut born = Vec::new();
        if self.random.below(2) == 0 {
            let fill = self.next_fill();
            let staged = match self.registry.stage(self.eight(fill, None)) {
                Ok(staged) => staged,
                Err(error) => return (vec![refused(&error, first.set)], touched),
            };
            match transaction.publish(name(index), staged) {
                Ok(set) => {
                    touched.names[index] = true;
                    born.push((set, index, fill));
                }
                Err(failed) => {
                    return (vec![refused_name(failed.error(), index)], holding([index]));
                }
            }
        }
        match transaction.commit() {
            Ok(done) => {
                let number = done.generation.number();
                self.met(Known {
                    generation: number,
                    ..first
                });
                let named = born.iter().map(|&(set, index, _)| Op::Named(set, index));
                let unnamed = retired.iter().map(|&set| Op::Unnamed(set, second.name));
                let names: Vec<_> = named.chain(unnamed).collect();
                for &(set, name, _) in &born {
                    self.met(Known {
                        set,
                        name,
                        generation: number,
                        base: None,
                    });
                }
                let together = Op::Together {
                    number,
                    replaced,
                    rebound: Vec::new(),
                    retired,
                    born,
                };
                let ops = [together].into_iter().chain(names).collect();
                (ops, touched)
            }
            Err(failed) => {
                let blamed = [first.set, second.set][failed.step().min(1)];
                (vec![refused(failed.error(), blamed)], touched)
            }
        }
    }

    fn lease(&mut self) -> Ended {
        let mut sets: Vec<SetHandle> = Vec::new();
        for _ in 0..=self.random.below(3) {
            let one = self.any_set();
            // An adapter goes with its own base.
            for set in [Some(one.set), one.base].into_iter().flatten() {
                if !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
        if self.planted == Planted::LeaseOneByOne {
            let (mut number, mut all) = (0, Vec::new());
            for set in sets {
                match self.registry.acquire(set) {
                    Ok(lease) => {
                        number = lease.number().number();
                        all.push(leased(&lease, set));
                        thread::yield_now();
                    }
                    Err(error) => return (vec![refused(&error, set)], leasing(vec![set])),
                }
            }
            let leases = all.iter().map(|one| one.0).collect();
            return (vec![Op::Leased(number, all)], leasing(leases));
        }
        let op = match self.registry.acquire(&sets) {
            Ok(lease) => {
                let all = sets.iter().map(|&set| leased(&lease, set)).collect();
                Op::Leased(lease.number().number(), all)
            }
            Err(error) => refused(&error, sets[0]),
        };
        (vec![op], leasing(sets))
    }

    fn scope(&mut self) -> Ended {
        let sets = [self.any_set().set, self.any_set().set];
        let seen = self.registry.scope(|scope| {
            let all = sets.map(|set| {
                let generation = scope.get(set).map(|set| set.generation().number());
                (set, generation.ok())
            });
            (scope.number().number(), all)
        });
        free(vec![Op::Scoped(seen.0, seen.1.to_vec())])
    }

    fn list(&mut self) -> Ended {
        let catalog = self.registry.catalog();
        let entries = catalog.entries().iter().map(|entry| {
            let index = entry.name.name()[1..].parse().unwrap();
            (index, entry.handle, entry.generation.number())
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable();
        free(vec![Op::Listed(catalog.number().number(), entries)])
    }

    fn look_up(&mut self, index: usize) -> Ended {
        let found = match (self.planted, self.remembered[index]) {
            (Planted::OldLookup, Some(found)) => found,
            _ => self.registry.lookup(name(index).as_str()),
        };
        self.remembered[index] = Some(found);
        if let Some(set) = found {
            // What it stands on does not change. If it is gone already, it is not needed.
            let base = self
                .registry
                .scope(|scope| scope.get(set).map(|view| view.base()));
            if let Ok(base) = base {
                self.met(Known {
                    set,
                    name: index,
                    generation: 0,
                    base,
                });
            }
        }
        free(vec![Op::Found(index, found)])
    }
}

pub fn free(ops: Vec<Op>) -> Ended {
    (ops, Touched::default())
}

fn holding(names: [usize; 1]) -> Touched {
    Touched {
        names: std::array::from_fn(|index| names.contains(&index)),
        ..Touched::default()
    }
}

fn refused_name(error: &Error, name: usize) -> Op {
    match error {
        Error::AlreadyPublished { .. } => Op::Taken {
            name,
            contended: false,
        },
        Error::NameBusy { .. } => Op::Busy { contended: false },
        Error::StaleHandle { handle } => Op::Stale(*handle),
        Error::BaseNotCurrent { base } => Op::Stale(*base),
        other => panic!("{other}"),
    }
}

pub fn refused(error: &Error, set: SetHandle) -> Op {
    match error {
        Error::StaleHandle { handle } => Op::Stale(*handle),
        Error::Conflict {
            expected, current, ..
        } => Op::Conflict(set, expected.number(), current.number()),
        Error::NotKept { .. } => Op::NothingKept(set),
        Error::BaseNotCurrent { base } => Op::Stale(*base),
        Error::Dependants { .. } => Op::Blocked(set),
        Error::NotResident { handle } => Op::Away(*handle),
        Error::Leased(_) => Op::InUse {
            set,
            contended: false,
        },
        Error::BytesShared { .. } => Op::Shared(set),
        Error::NotEvictable { .. } => Op::Stays(set),
        Error::Pinned { .. } => Op::PinnedDown(set),
        other => panic!("{other}"),
    }
}
