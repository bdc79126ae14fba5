//! Operations, done to the registry and to the model.
//!
//! What lives here: a run, and one operation after the other. What does not: several sets at once and
//! drained swaps (`together`), what is compared after each operation (`check`).

use std::cell::Cell;
use std::rc::Rc;

use weighbridge::fence::{self, Signal};
use weighbridge::source::InMemory;
use weighbridge::{
    Dtype, Error, Generation, Lease, Namespace, NamespaceLimits, SetHandle, Staged, WeightHandle,
    WeightRegistry,
};

use super::commit::{Act, Changes};
use super::model::{Alias, Body, Content, Limits, Reason, State};
use super::words::{At, Demand, Made, NAMES, NAMESPACES, Op, Pick, TENANT, What};

/// More of each are not made.
const SETS: usize = 24;
const LEASES: usize = 6;
const STAGED: usize = 4;

pub struct Run<'r> {
    pub registry: &'r WeightRegistry,
    pub tenant: Namespace<'r>,
    pub state: State,
    /// The tensor `w` of each set that has one.
    pub weights: Vec<Option<WeightHandle>>,
    pub seen: Vec<Generation>,
    pub leases: Vec<Lease>,
    pub fences: Vec<Signal>,
    pub staged: Vec<Staged>,
}

/// What is to be staged, with sets instead of picks.
pub struct Wanted {
    pub source: InMemory,
    pub content: Content,
    /// Sets that its source names.
    names: Vec<usize>,
}

/// Were these two of one mind?
pub fn agreed<T, E: Into<Error>>(answer: Result<T, E>, reasons: &[Reason]) -> Option<T> {
    match answer {
        Ok(value) => {
            assert!(reasons.is_empty(), "accepted, against {reasons:?}");
            Some(value)
        }
        Err(error) => {
            let error = error.into();
            let name = format!("{error:?}");
            let name = name
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or_default();
            assert!(
                reasons.contains(&name),
                "{name} ({error}), expected: {reasons:?}"
            );
            None
        }
    }
}

fn picked(pick: Pick, len: usize) -> Option<usize> {
    (len > 0).then(|| len - 1 - pick % len)
}

impl<'r> Run<'r> {
    pub fn new(registry: &'r WeightRegistry, limit: u64, keep: usize) -> Self {
        Run {
            registry,
            tenant: registry
                .namespace(NAMESPACES[TENANT])
                .expect("a legal name"),
            state: State::new(limit, keep),
            weights: Vec::new(),
            seen: vec![registry.catalog().number()],
            leases: Vec::new(),
            fences: Vec::new(),
            staged: Vec::new(),
        }
    }

    pub fn act(&mut self, op: Op) {
        let _ = match op {
            Op::Publish { tenant, at, made } => self.publish(tenant, at, made),
            Op::Replace {
                tenant,
                set,
                demand,
                made,
            } => self.replace(tenant, set, demand, made),
            Op::ReplaceDrained { set, made, fails } => self.replace_drained(set, made, fails),
            Op::Retire {
                tenant,
                set,
                demand,
            } => self.retire(tenant, set, demand),
            Op::Cascade { set } => self.cascade(set),
            Op::Rollback { set } => self.rollback(set),
            Op::Keep { set, n } => self.keep(set, n),
            Op::Rebind { set, base } => self.rebind(set, base),
            Op::Stage { tenant, made } => self.stage(tenant, made),
            Op::PublishStaged { staged, at } => self.publish_staged(staged, at),
            Op::ReplaceStaged { staged, set } => self.replace_staged(staged, set),
            Op::DropStaged { staged } => self.take_staged(staged).map(drop),
            Op::Acquire {
                tenant,
                sets,
                labelled,
            } => self.acquire(tenant, &sets, labelled),
            Op::Clone { lease } => self.clone_lease(lease),
            Op::Release { lease } => self.release(lease),
            Op::ReleaseAfter { lease } => self.release_after(lease),
            Op::Signal { fence } => self.signal(fence),
            Op::Limit {
                namespace,
                lines,
                sets,
            } => self.limit(namespace, lines, sets),
            Op::Transaction { steps, commit } => self.transaction(&steps, commit),
        };
        let newest = self.registry.catalog().number();
        if self.seen.last() != Some(&newest) {
            self.seen.push(newest);
        }
    }

    pub fn set(&self, pick: Pick) -> Option<usize> {
        picked(pick, self.state.sets.len())
    }

    pub fn handle(&self, set: usize) -> SetHandle {
        self.state.sets[set].handle
    }

    /// The generation that a compare-and-swap demands.
    pub fn demanded(&self, set: usize, demand: Demand) -> Option<Generation> {
        let seen = |back| self.seen[picked(back, self.seen.len()).expect("never empty")];
        match demand {
            Demand::Nothing => None,
            Demand::Current => {
                let number = self.state.sets[set].now.number;
                let current = self.seen.iter().find(|seen| seen.number() == number);
                Some(current.copied().unwrap_or_else(|| seen(0)))
            }
            Demand::Seen(back) => Some(seen(back)),
        }
    }

    pub fn wanted(&self, made: Made) -> Wanted {
        let Made { what, len, fill } = made;
        let (mut source, bytes) = (InMemory::new(), vec![fill; len]);
        let (mut base, mut alias, mut names) = (None, None, Vec::new());
        let on = match what {
            What::Plain => None,
            What::Adapter(pick) | What::Alias(pick) => self.set(pick),
        };
        source = match (what, on, on.and_then(|on| self.weights[on])) {
            (What::Adapter(_), Some(on), _) => {
                base = Some(on);
                names.push(on);
                let more = source.replacement("more", Dtype::U8, [len], bytes);
                more.expect("a legal tensor").on(self.handle(on))
            }
            (What::Alias(_), Some(on), Some(weight)) => {
                alias = Some(self.alias(on));
                names.extend([on, self.alias(on).target]);
                let own = source.tensor("own", Dtype::U8, [len], bytes);
                own.and_then(|own| own.alias("w", weight))
                    .expect("two names")
            }
            _ => source
                .tensor("w", Dtype::U8, [len], bytes)
                .expect("a legal tensor"),
        };
        let charge = len.next_multiple_of(64) as u64;
        let account = Cell::new(None);
        let own = Rc::new(Body {
            charge,
            len,
            fill,
            account,
        });
        let content = Content { own, base, alias };
        Wanted {
            source,
            content,
            names,
        }
    }

    /// An alias of an alias is an alias of what that one is.
    fn alias(&self, on: usize) -> Alias {
        let content = &self.state.sets[on].now.content;
        let further = content.alias.filter(|_| self.state.alive(on).is_some());
        further.unwrap_or(Alias {
            target: on,
            len: content.own.len,
        })
    }

    /// Why it cannot be staged for this account.
    pub fn unstaged(&self, wanted: &Wanted, account: Option<usize>, tenant: bool) -> Vec<Reason> {
        let Content { own, base, alias } = &wanted.content;
        own.account.set(account);
        let mut reasons = self.state.unfounded(*base, *alias);
        reasons.extend(self.state.no_room(account, own.charge));
        let strange = |&set: &usize| self.state.alive(set).is_some_and(|set| set.at.0 > TENANT);
        if tenant && wanted.names.iter().any(strange) {
            reasons.push("WrongNamespace");
        }
        reasons
    }

    pub fn unnamed(&self, at: At, coming: usize) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if self.state.named(at).is_some() {
            reasons.push("AlreadyPublished");
        }
        let there = self
            .state
            .living()
            .filter(|(_, set)| set.at.0 == at.0)
            .count();
        let limit = self.state.limits[at.0].sets;
        if limit.is_some_and(|limit| there + coming >= limit) {
            reasons.push("TooManySets");
        }
        reasons
    }

    /// A set was published.
    pub fn born(&mut self, handle: SetHandle, at: At, content: Content) {
        let plain = content.base.is_none();
        let weight = plain.then(|| {
            self.registry
                .weight_handle(handle, "w")
                .expect("it has one")
        });
        self.weights.push(weight);
        self.state.bear(handle, at, content);
    }

    fn publish(&mut self, tenant: bool, at: At, made: Made) -> Option<()> {
        let at = if tenant { At(TENANT, at.1) } else { at };
        let wanted = self.wanted(made);
        (self.state.sets.len() < SETS).then_some(())?;
        let mut reasons = self.unnamed(at, 0);
        reasons.extend(self.unstaged(&wanted, Some(at.0), tenant));
        let answer = match tenant {
            true => self.tenant.publish(NAMES[at.1], wanted.source),
            false => self
                .registry
                .publish((NAMESPACES[at.0], NAMES[at.1]), wanted.source),
        };
        let handle = agreed(answer, &reasons)?;
        self.state.apply(Changes::default());
        self.born(handle, at, wanted.content);
        Some(())
    }

    /// Why the tenant's view has no such set.
    fn strange(&self, tenant: bool, set: usize) -> Option<Reason> {
        let strange = |set: &super::model::Set| set.at.0 != TENANT;
        (tenant && self.state.alive(set).is_some_and(strange)).then_some("WrongNamespace")
    }

    fn replace(&mut self, tenant: bool, set: Pick, demand: Demand, made: Made) -> Option<()> {
        let (set, wanted) = (self.set(set)?, self.wanted(made));
        let demanded = self.demanded(set, demand);
        let mut reasons = self.unstaged(&wanted, Some(self.state.sets[set].at.0), tenant);
        let act = Act::Become(wanted.content.clone());
        let number = demanded.map(Generation::number);
        let mut changes = Changes::one(set, act).demanding(set, number);
        reasons.extend(self.state.judge(&mut changes));
        reasons.extend(self.strange(tenant, set));
        let (handle, source) = (self.handle(set), wanted.source);
        let answer = match (tenant, demanded) {
            (true, None) => self.tenant.replace(handle, source),
            (true, Some(demanded)) => self.tenant.replace_if(handle, demanded, source),
            (false, None) => self.registry.replace(handle, source),
            (false, Some(demanded)) => self.registry.replace_if(handle, demanded, source),
        };
        let previous = self.state.sets[set].now.number;
        let replaced = agreed(answer, &reasons)?;
        self.state.apply(changes);
        assert_eq!(replaced.generation.number(), self.state.commits);
        assert_eq!(replaced.previous.generation().number(), previous);
        Some(())
    }

    fn retire(&mut self, tenant: bool, set: Pick, demand: Demand) -> Option<()> {
        let set = self.set(set)?;
        let demanded = self.demanded(set, demand);
        let number = demanded.map(Generation::number);
        let mut changes = Changes::one(set, Act::Retire).demanding(set, number);
        let mut reasons = self.state.judge(&mut changes);
        reasons.extend(self.strange(tenant, set));
        let handle = self.handle(set);
        let answer = match (tenant, demanded) {
            (true, None) => self.tenant.retire(handle),
            (true, Some(demanded)) => self.tenant.retire_if(handle, demanded),
            (false, None) => self.registry.retire(handle),
            (false, Some(demanded)) => self.registry.retire_if(handle, demanded),
        };
        agreed(answer, &reasons)?;
        self.state.apply(changes);
        Some(())
    }

    fn rollback(&mut self, set: Pick) -> Option<()> {
        let set = self.set(set)?;
        let mut changes = Changes::one(set, Act::Restore);
        let reasons = self.state.judge(&mut changes);
        agreed(self.registry.rollback(self.handle(set)), &reasons)?;
        self.state.apply(changes);
        Some(())
    }

    fn keep(&mut self, set: Pick, n: usize) -> Option<()> {
        let set = self.set(set)?;
        let alive = self.state.alive(set).is_some();
        let reasons: &[Reason] = if alive { &[] } else { &["StaleHandle"] };
        agreed(self.registry.keep_previous(self.handle(set), n), reasons)?;
        self.state.sets[set].keep = n;
        self.state.sets[set].trim();
        Some(())
    }

    fn rebind(&mut self, set: Pick, base: Pick) -> Option<()> {
        let (set, base) = (self.set(set)?, self.set(base)?);
        let mut changes = Changes::one(set, Act::Rebind(base));
        let reasons = self.state.judge(&mut changes);
        agreed(
            self.registry.rebind(self.handle(set), self.handle(base)),
            &reasons,
        )?;
        self.state.apply(changes);
        Some(())
    }

    fn stage(&mut self, tenant: bool, made: Made) -> Option<()> {
        let wanted = self.wanted(made);
        (self.staged.len() < STAGED).then_some(())?;
        let reasons = self.unstaged(&wanted, tenant.then_some(TENANT), tenant);
        let answer = match tenant {
            true => self.tenant.stage(wanted.source),
            false => self.registry.stage(wanted.source),
        };
        self.staged.push(agreed(answer, &reasons)?);
        self.state.staged.push(wanted.content);
        Some(())
    }

    fn take_staged(&mut self, staged: Pick) -> Option<(Staged, Content)> {
        let at = picked(staged, self.staged.len())?;
        Some((self.staged.remove(at), self.state.staged.remove(at)))
    }

    fn publish_staged(&mut self, staged: Pick, at: At) -> Option<()> {
        (self.state.sets.len() < SETS).then_some(())?;
        let (staged, content) = self.take_staged(staged)?;
        let mut changes = Changes {
            born: vec![(at, content.clone())],
            ..Changes::default()
        };
        let mut reasons = self.unnamed(at, 0);
        self.state.staged.push(content.clone());
        reasons.extend(self.state.judge(&mut changes));
        let answer = self
            .registry
            .publish_staged((NAMESPACES[at.0], NAMES[at.1]), staged);
        let handle = self.agreed_or_back(answer, &reasons)?;
        self.state.staged.pop();
        self.state.apply(changes);
        self.born(handle, at, content);
        Some(())
    }

    fn replace_staged(&mut self, staged: Pick, set: Pick) -> Option<()> {
        let set = self.set(set)?;
        let (staged, content) = self.take_staged(staged)?;
        let mut changes = Changes::one(set, Act::Become(content.clone()));
        self.state.staged.push(content);
        let reasons = self.state.judge(&mut changes);
        let answer = self.registry.replace_staged(self.handle(set), staged);
        self.agreed_or_back(answer, &reasons)?;
        self.state.staged.pop();
        self.state.apply(changes);
        Some(())
    }

    /// What was refused comes back as it was.
    fn agreed_or_back<T>(
        &mut self,
        answer: Result<T, weighbridge::PublishError>,
        reasons: &[Reason],
    ) -> Option<T> {
        let answer = answer.map_err(|failed| {
            let (error, staged) = failed.into_parts();
            self.staged.push(staged.expect("it comes back"));
            error
        });
        agreed(answer, reasons)
    }

    fn acquire(&mut self, tenant: bool, sets: &[Pick], labelled: bool) -> Option<()> {
        (self.leases.len() < LEASES).then_some(())?;
        let sets: Vec<usize> = sets.iter().filter_map(|&pick| self.set(pick)).collect();
        let mut reasons = self.state.acquire(&sets);
        let strange = |&set: &usize| self.state.alive(set).is_some_and(|set| set.at.0 > TENANT);
        if tenant && sets.iter().any(strange) {
            reasons.push("WrongNamespace");
        }
        let handles: Vec<SetHandle> = sets.iter().map(|&set| self.handle(set)).collect();
        let answer = match (tenant, labelled) {
            (true, true) => self.tenant.acquire_as("request", handles),
            (true, false) => self.tenant.acquire(handles),
            (false, true) => self.registry.acquire_as("request", handles),
            (false, false) => self.registry.acquire(handles),
        };
        let lease = agreed(answer, &reasons)?;
        assert_eq!(lease.number().number(), self.state.commits);
        self.leases.push(lease);
        self.state
            .leases
            .push(sets.iter().map(|&set| self.state.hold(set)).collect());
        Some(())
    }

    fn clone_lease(&mut self, lease: Pick) -> Option<()> {
        (self.leases.len() < LEASES).then_some(())?;
        let at = picked(lease, self.leases.len())?;
        self.leases.push(self.leases[at].clone());
        self.state.leases.push(self.state.leases[at].clone());
        Some(())
    }

    fn release(&mut self, lease: Pick) -> Option<()> {
        let at = picked(lease, self.leases.len())?;
        drop(self.leases.remove(at));
        self.state.leases.remove(at);
        Some(())
    }

    fn release_after(&mut self, lease: Pick) -> Option<()> {
        let at = picked(lease, self.leases.len())?;
        let (signal, fence) = fence::signal("step");
        self.leases.remove(at).release_after(fence);
        self.fences.push(signal);
        let held = self.state.leases.remove(at);
        self.state.fenced.push(held);
        Some(())
    }

    fn signal(&mut self, fence: Pick) -> Option<()> {
        let at = picked(fence, self.fences.len())?;
        self.fences.remove(at).set();
        self.state.fenced.remove(at);
        Some(())
    }

    fn limit(&mut self, namespace: usize, lines: Option<u64>, sets: Option<usize>) -> Option<()> {
        let bytes = lines.map(|lines| lines * 64);
        let mut limits = NamespaceLimits::none();
        (limits.bytes, limits.sets) = (bytes, sets);
        let answer = self
            .registry
            .set_namespace_limits(NAMESPACES[namespace], limits);
        answer.expect("a legal name");
        self.state.limits[namespace] = Limits { bytes, sets };
        Some(())
    }
}
