//! Several sets at once, and swaps that drain first: operations that are more than one commit, or more
//! than one set.
//!
//! What lives here: those. What does not: operations on one set (`drive`).

use std::rc::Rc;
use std::time::Duration;

use weighbridge::source::{InMemory, Source};
use weighbridge::{Error, Generation, Plan, SetHandle, Staged, Transaction};

use super::super::ground::SOON;
use super::commit::{Act, Changes};
use super::drive::{Run, Wanted, agreed};
use super::model::{Content, Reason};
use super::words::{At, Made, NAMES, NAMESPACES, Pick, Step};

/// A source that may fail when it is read.
struct Reading {
    inner: InMemory,
    fails: bool,
}

impl Source for Reading {
    fn plan(&self) -> &Plan {
        self.inner.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        if self.fails {
            return Err(Error::InvalidTensor {
                tensor: "w".to_owned(),
                reason: "cannot be read".to_owned(),
            });
        }
        self.inner.read_into(arena)
    }

    fn base(&self) -> Option<SetHandle> {
        self.inner.base()
    }
}

/// A transaction that is being built, and what it is to the model.
struct Building<'r> {
    transaction: Transaction<'r>,
    changes: Changes,
    handles: Vec<SetHandle>,
}

impl<'r> Run<'r> {
    pub fn cascade(&mut self, set: Pick) -> Option<()> {
        let set = self.set(set)?;
        let mut changes = Changes::one(set, Act::Retire);
        let mut next = vec![set];
        while let Some(one) = next.pop() {
            let more = self.state.dependants(one).into_iter();
            let more = more.filter(|more| changes.acts.insert(*more, Act::Retire).is_none());
            next.extend(more.collect::<Vec<_>>());
        }
        let reasons = self.state.judge(&mut changes);
        let gone = agreed(self.registry.retire_cascade(self.handle(set)), &reasons)?;
        assert_eq!(gone.len(), changes.acts.len());
        self.state.apply(changes);
        Some(())
    }

    pub fn replace_drained(&mut self, set: Pick, made: Made, fails: bool) -> Option<()> {
        let (set, wanted) = (self.set(set)?, self.wanted(made));
        let Wanted { content, .. } = &wanted;
        let account = self.state.sets[set].at.0;
        let mut reasons = self.unstaged(&wanted, Some(account), false);
        let full = reasons.iter().any(|reason| reason.starts_with("Over"));
        reasons.retain(|reason| !reason.starts_with("Over"));
        let alive = self.state.alive(set).is_some();
        if !alive {
            reasons.push("StaleHandle");
        }
        let content = content.clone();
        let swap = |run: &Self, timeout| {
            let source = Reading {
                inner: wanted.source,
                fails,
            };
            run.registry
                .replace_drained(run.handle(set), source, timeout)
        };
        if !reasons.is_empty() {
            agreed(swap(self, SOON), &reasons);
            return None;
        }
        if !full {
            return self.swap_at_once(set, content, fails, |run| swap(run, SOON));
        }
        let more = self.no_place(set, &content);
        if !more.is_empty() {
            agreed(swap(self, SOON), &more);
            return None;
        }
        let before = self.with_dependants(set, Act::Vacate);
        let held = |set: usize| self.state.held().any(|held| held.set == set);
        let own = &self.state.sets[set].now.content.own;
        let lent = |lent: &Rc<_>| Rc::ptr_eq(lent, own);
        let late = if held(set) {
            Some("NotDrained")
        } else {
            let shared = self.state.held().any(|held| held.lent.iter().any(lent));
            shared.then_some("NotReclaimed")
        };
        self.state.apply(before);
        if let Some(late) = late {
            agreed(swap(self, Duration::ZERO), &[late]);
            self.state.apply(self.with_dependants(set, Act::Return));
            return None;
        }
        let mut after = self.with_dependants(set, Act::Become(content));
        let unfit = fails || !self.state.judge(&mut after).is_empty();
        let reasons: &[Reason] = if unfit { &["Emptied"] } else { &[] };
        agreed(swap(self, SOON), reasons)?;
        self.state.apply(after);
        Some(())
    }

    /// There is room for both generations, or the set is empty already.
    fn swap_at_once(
        &mut self,
        set: usize,
        content: Content,
        fails: bool,
        swap: impl FnOnce(&Self) -> Result<weighbridge::Replaced, weighbridge::PublishError>,
    ) -> Option<()> {
        let act = Act::Become(content);
        let mut changes = match self.state.sets[set].now.resident {
            true => Changes::one(set, act),
            false => self.with_dependants(set, act),
        };
        let mut reasons = match fails {
            true => vec!["InvalidTensor"],
            false => Vec::new(),
        };
        if !fails {
            reasons = self.state.judge(&mut changes);
        }
        agreed(swap(self), &reasons)?;
        self.state.apply(changes);
        Some(())
    }

    /// Why a set cannot give its memory to this.
    fn no_place(&self, set: usize, content: &Content) -> Vec<Reason> {
        let of = &self.state.sets[set];
        let mut reasons = Vec::new();
        if content.base.is_some() != self.state.is_adapter(set) {
            reasons.push("KindMismatch");
        }
        let standing = self.state.dependants(set);
        if standing.iter().any(|&one| !self.state.is_adapter(one)) {
            reasons.push("AliasedBy");
        }
        let has = if of.now.resident {
            of.now.content.own.charge
        } else {
            0
        };
        let more = content.own.charge.saturating_sub(has);
        reasons.extend(self.state.no_room(Some(of.at.0), more));
        reasons
    }

    /// A change of a set with which those that stand on it move along.
    fn with_dependants(&self, set: usize, act: Act) -> Changes {
        let mut changes = Changes::one(set, act);
        for one in self.state.dependants(set) {
            changes.acts.insert(one, Act::Follow);
        }
        changes
    }

    pub fn transaction(&mut self, steps: &[Step], commit: bool) -> Option<()> {
        let mut building = Building {
            transaction: self.registry.transaction(),
            changes: Changes::default(),
            handles: Vec::new(),
        };
        let staged = self.state.staged.len();
        for step in steps {
            self.step(&mut building, *step);
        }
        let Building {
            transaction,
            mut changes,
            handles,
        } = building;
        if !commit {
            drop(transaction);
            self.state.staged.truncate(staged);
            return None;
        }
        let reasons = self.state.judge(&mut changes);
        let answer = transaction.commit();
        self.state.staged.truncate(staged);
        let done = agreed(answer, &reasons)?;
        let born = std::mem::take(&mut changes.born);
        self.state.apply(changes);
        assert_eq!(done.generation.number(), self.state.commits);
        assert_eq!(done.published, handles);
        for (handle, (at, content)) in handles.into_iter().zip(born) {
            self.born(handle, at, content);
        }
        Some(())
    }

    fn step(&mut self, building: &mut Building<'r>, step: Step) -> Option<()> {
        match step {
            Step::Publish(at, made) => {
                let (staged, content) = self.staged_for(made)?;
                self.publish_in(building, at, staged, content)
            }
            Step::Replace(set, demand, made) => {
                let set = self.set(set)?;
                let demanded = self.demanded(set, demand);
                let (staged, content) = self.staged_for(made)?;
                let act = Act::Become(content);
                let reasons = self.unchangeable(building, set, &act);
                let (handle, transaction) = (self.handle(set), &mut building.transaction);
                let answer = match demanded {
                    None => transaction.replace(handle, staged),
                    Some(demanded) => transaction.replace_if(handle, demanded, staged),
                };
                if agreed(answer, &reasons).is_none() {
                    self.state.staged.pop();
                    return None;
                }
                add(building, set, act, demanded)
            }
            Step::Retire(set, demand) => {
                let set = self.set(set)?;
                let demanded = self.demanded(set, demand);
                let reasons = self.unchangeable(building, set, &Act::Retire);
                let (handle, transaction) = (self.handle(set), &mut building.transaction);
                let answer = match demanded {
                    None => transaction.retire(handle),
                    Some(demanded) => transaction.retire_if(handle, demanded),
                };
                agreed(answer, &reasons)?;
                add(building, set, Act::Retire, demanded)
            }
            Step::Rebind(set, base) => {
                let (set, base) = (self.set(set)?, self.set(base)?);
                let reasons = self.unchangeable(building, set, &Act::Rebind(base));
                let answer = building
                    .transaction
                    .rebind(self.handle(set), self.handle(base));
                agreed(answer, &reasons)?;
                add(building, set, Act::Rebind(base), None)
            }
            Step::RebindAll(base) => self.rebind_all(building, base),
            Step::Rollback(set) => {
                let set = self.set(set)?;
                let reasons = self.unchangeable(building, set, &Act::Restore);
                agreed(building.transaction.rollback(self.handle(set)), &reasons)?;
                add(building, set, Act::Restore, None)
            }
        }
    }

    /// Stages for a transaction; the model has it among what is staged until that is over.
    fn staged_for(&mut self, made: Made) -> Option<(Staged, Content)> {
        let wanted = self.wanted(made);
        let reasons = self.unstaged(&wanted, None, false);
        let staged = agreed(self.registry.stage(wanted.source), &reasons)?;
        self.state.staged.push(wanted.content.clone());
        Some((staged, wanted.content))
    }

    fn publish_in(
        &mut self,
        building: &mut Building<'r>,
        at: At,
        staged: Staged,
        content: Content,
    ) -> Option<()> {
        let born = &building.changes.born;
        let coming = born.iter().filter(|(other, _)| other.0 == at.0).count();
        let mut reasons = self.unnamed(at, coming);
        if born.iter().any(|(other, _)| *other == at) {
            reasons.push("TwiceInTransaction");
        }
        let name = (NAMESPACES[at.0], NAMES[at.1]);
        let Some(handle) = agreed(building.transaction.publish(name, staged), &reasons) else {
            self.state.staged.pop();
            return None;
        };
        building.handles.push(handle);
        building.changes.born.push((at, content));
        Some(())
    }

    fn rebind_all(&mut self, building: &mut Building<'r>, base: Pick) -> Option<()> {
        let base = self.set(base)?;
        let alive = self.state.alive(base).is_some();
        let reasons: &[Reason] = if alive { &[] } else { &["StaleHandle"] };
        let moved = agreed(
            building.transaction.rebind_adapters(self.handle(base)),
            reasons,
        )?;
        let mut count = 0;
        for one in self.state.dependants(base) {
            if self.state.is_adapter(one) && !building.changes.acts.contains_key(&one) {
                building.changes.acts.insert(one, Act::Follow);
                count += 1;
            }
        }
        assert_eq!(moved, count);
        Some(())
    }

    /// Why a step is not added.
    fn unchangeable(&self, building: &Building<'_>, set: usize, act: &Act) -> Vec<Reason> {
        if self.state.alive(set).is_none() {
            return vec!["StaleHandle"];
        }
        let mut reasons = Vec::new();
        if building.changes.acts.contains_key(&set) {
            reasons.push("TwiceInTransaction");
        }
        if !matches!(act, Act::Restore) {
            reasons.extend(self.state.impossible(set, act));
        }
        reasons
    }
}

fn add(
    building: &mut Building<'_>,
    set: usize,
    act: Act,
    demanded: Option<Generation>,
) -> Option<()> {
    building.changes.acts.insert(set, act);
    let demanded = demanded.map(|demanded| (set, demanded.number()));
    building.changes.demands.extend(demanded);
    Some(())
}
