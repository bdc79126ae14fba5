//! Operations, on the registry and on the model.
//!
//! What lives here: everything that is one call. What does not: transactions and what is staged
//! (`drive_tx`), bytes that go and come back (`drive_rooms`), what is compared afterwards (`look`).
//!
//! The registry is asked first, because only it knows the handle that a new set gets; the model answers
//! without having seen more than that.

use std::time::Duration;

use weighbridge::{Account, Error, NamespaceLimits, PublishError, Replaced, SetHandle};

use super::asks::{Answer, OPERATOR};
use super::content::{self, Content, Offer};
use super::model::{Expect, NodeId};
use super::ops::{By, NAMES, Op, TENANTS, Way, When, Who};
use super::world::{World, see};
use crate::support::SOON;

impl World<'_> {
    /// Does it, unless it concerns an empty register.
    pub fn act(&mut self, op: &Op) {
        let done = match *op {
            Op::Publish(by, name, offer) => self.publish(by, name, offer),
            Op::PublishBadName => self.publish_bad_name(),
            Op::Replace(by, who, when, offer) => self.replace(by, who, when, offer),
            Op::ReplaceDrained(by, who, offer) => self.replace_drained(by, who, offer),
            Op::Retire(by, who, when) => self.retire(by, who, when),
            Op::Cascade(who) => self.handle(who).map(|set| self.cascade(set)),
            Op::Revoke(who) => self.revoke(who),
            Op::RetireAfter(who) => self.retire_after(who),
            Op::Rebind(by, adapter, base) => self.rebind(by, adapter, base),
            Op::Keep(by, who, n) => self.keep(by, who, n),
            Op::Rollback(by, who) => self.rollback(by, who, When::Whatever),
            Op::RollbackTo(by, who, when) => self.rollback(by, who, when),
            Op::Acquire(way, place, ref sets) => self.acquire(way, place, sets),
            Op::Evict(who) => self.evict(who),
            Op::Load(who) => self.load(who),
            Op::Pin(place, who) => self.pin(place, who),
            Op::Unpin(place) => self.unpin(place),
            Op::AcquireOrLoad(place, ref sets) => self.acquire_or_load(place, sets),
            Op::CloneLease(from, to) => self.clone_lease(from, to),
            Op::DropLease(place) => {
                self.drop_lease(place);
                Some(())
            }
            Op::Fence(place) => self.give_to_fence(place),
            Op::Signal(oldest) => self.signal(oldest),
            Op::OpenScope | Op::RefreshScope | Op::CloseScope => self.scope(op),
            Op::LimitTenant(tenant, bytes, sets) => self.limit(tenant, bytes, sets),
            Op::Reserve(foreign, bytes) => self.reserve(foreign, bytes),
            Op::Unreserve => self.unreserve(),
            _ => self.act_in_steps(op),
        };
        if done.is_none() {
            see("skipped".to_owned());
        }
    }

    /// What is offered, as a source and as the model has it.
    pub fn offered(&mut self, offer: Offer) -> Option<(content::Either, Content)> {
        let named = self.named(offer)?.ok()?;
        Some((content::source(offer, &named), Content::of(offer, &named)))
    }

    fn publish(&mut self, by: By, name: usize, offer: Offer) -> Option<()> {
        let (namespace, local) = NAMES[name];
        if Self::tenant(by).is_some_and(|tenant| tenant != namespace) {
            return None;
        }
        let (source, content) = self.offered(offer)?;
        let answer = match Self::tenant(by) {
            None => self.registry.publish(NAMES[name], source),
            Some(tenant) => self
                .registry
                .namespace(tenant)
                .unwrap()
                .publish(local, source),
        };
        let new = self.coming(name, answer.as_ref().ok().copied());
        let expected = self.model.publish(Self::terms(by), &new, &content);
        self.compare("publish", &answer, &expected);
        answer.ok().map_or(Some(()), |set| {
            self.met(name, set);
            Some(())
        })
    }

    fn publish_bad_name(&mut self) -> Option<()> {
        let answer = self.registry.publish("\n", crate::support::bytes(8, 1));
        let expected: Answer = Err("InvalidName".to_owned());
        let expected = self
            .model
            .tell("publish", "\"\\n\"".replace('"', ""), expected);
        self.compare("publish", &answer, &expected);
        Some(())
    }

    /// A generation was superseded by a single one.
    pub fn replaced(
        &mut self,
        operation: &str,
        answer: Result<Replaced, impl super::world::Blame>,
        expected: Answer<NodeId>,
    ) -> Option<()> {
        self.compare(operation, &answer, &expected);
        if let (Ok(done), Ok(node)) = (answer, expected) {
            assert_eq!(done.generation.number(), self.model.commits);
            self.goes(done.previous, node, false, false);
        }
        Some(())
    }

    fn replace(&mut self, by: By, who: Who, when: When, offer: Offer) -> Option<()> {
        let set = self.handle(who)?;
        let demanded = self.demanded(who, when);
        let (source, content) = self.offered(offer)?;
        let (registry, tenant) = (self.registry, Self::tenant(by));
        let view = || self.registry.namespace(tenant.unwrap_or("")).unwrap();
        let answer = match (tenant, demanded) {
            (None, None) => registry.replace(set, source),
            (None, Some((generation, _))) => registry.replace_if(set, generation, source),
            (Some(_), None) => view().replace(set, source),
            (Some(_), Some((generation, _))) => view().replace_if(set, generation, source),
        };
        let expect = demanded.map_or(Expect::Tenant, |demanded| demanded.1);
        let expected = self.model.replace(Self::terms(by), set, expect, &content);
        self.replaced("replace", answer, expected)
    }

    fn replace_drained(&mut self, by: By, who: Who, offer: Offer) -> Option<()> {
        let set = self.handle(who)?;
        let (source, content) = self.offered(offer)?;
        let expected = self.model.replace_drained(Self::terms(by), set, &content);
        // Nobody ends a lease while we wait.
        let hopeless = matches!(&expected, Err(why) if why.starts_with("NotDrained"));
        let patience = if hopeless { Duration::ZERO } else { SOON };
        let answer: Result<Replaced, PublishError> = match Self::tenant(by) {
            None => self.registry.replace_drained(set, source, patience),
            Some(tenant) => {
                let view = self.registry.namespace(tenant).unwrap();
                view.replace_drained(set, source, patience)
            }
        };
        self.replaced("replace_drained", answer, expected)
    }

    fn retire(&mut self, by: By, who: Who, when: When) -> Option<()> {
        let set = self.handle(who)?;
        let demanded = self.demanded(who, when);
        let tenant = Self::tenant(by);
        let view = || self.registry.namespace(tenant.unwrap_or("")).unwrap();
        let answer = match (tenant, demanded) {
            (None, None) => self.registry.retire(set),
            (None, Some((generation, _))) => self.registry.retire_if(set, generation),
            (Some(_), None) => view().retire(set),
            (Some(_), Some((generation, _))) => view().retire_if(set, generation),
        };
        let expect = demanded.map_or(Expect::Tenant, |demanded| demanded.1);
        let kept = self.keeps(set);
        let expected = self.model.retire(Self::terms(by), set, expect);
        self.compare("retire", &answer, &expected);
        if let (Ok(retirement), Ok(node)) = (answer, expected) {
            self.goes(retirement, node, true, kept);
        }
        Some(())
    }

    /// Does it keep anything?
    pub fn keeps(&self, set: SetHandle) -> bool {
        let set = self.model.set(set);
        set.is_some_and(|set| !self.model.sets[set].kept.is_empty())
    }

    pub fn cascade(&mut self, set: SetHandle) {
        let answer = self.registry.retire_cascade(set);
        let mut open = super::reads::Open::default();
        let there = self.model.there(set);
        let there = self
            .model
            .tell("transaction", format!("{set} and what stands on it"), there);
        let expected = there.and_then(|_| open.cascade(&mut self.model, set));
        let kept: Vec<bool> = {
            let sets = open
                .steps
                .iter()
                .map(|step| self.model.sets[step.set].handle);
            sets.map(|set| self.keeps(set)).collect()
        };
        let expected = expected.and_then(|()| open.commit(&mut self.model).map_err(|(_, why)| why));
        self.compare("retire_cascade", &answer, &expected);
        if let (Ok(gone), Ok(nodes)) = (answer, expected) {
            assert_eq!(gone.len(), nodes.len());
            for ((retirement, node), kept) in gone.into_iter().zip(nodes).zip(kept) {
                self.goes(retirement, node.expect("it was there"), true, kept);
            }
        }
    }

    fn revoke(&mut self, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        let answer = self.registry.revoke(set);
        let kept = self.keeps(set);
        let expected = self.model.retire(OPERATOR, set, Expect::Tenant);
        self.compare("revoke", &answer, &expected);
        if let (Ok(retirement), Ok(node)) = (answer, expected) {
            self.goes(retirement, node, true, kept);
            for &node in &self.going.last()?.nodes {
                self.model.nodes[node].revoked = true;
            }
        }
        Some(())
    }

    fn retire_after(&mut self, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        let view = self.model.view();
        let lease = self.model.acquire(OPERATOR, &view, &[set]);
        let kept = self.keeps(set);
        let mut answer = None;
        let registry = self.registry;
        let expected = match lease {
            Err(why) => {
                let (_signal, fence) = weighbridge::fence::signal("none");
                answer = Some(registry.retire_after(set, fence));
                self.model.tell("retire", set, Err(why))
            }
            Ok(lease) => {
                let expected = self.model.retire(OPERATOR, set, Expect::Tenant);
                self.fence(lease, |fence| {
                    answer = Some(registry.retire_after(set, fence))
                });
                expected
            }
        };
        let answer = answer.expect("it was asked");
        self.compare("retire_after", &answer, &expected);
        match (answer, expected) {
            (Ok(retirement), Ok(node)) => self.goes(retirement, node, true, kept),
            // The fence is dropped with the refusal.
            _ => self.forget_fence(set),
        }
        Some(())
    }

    fn forget_fence(&mut self, set: SetHandle) {
        if self
            .model
            .acquire(OPERATOR, &self.model.view(), &[set])
            .is_ok()
            && let Some((_, id)) = self.signals.pop()
        {
            self.model.leases.remove(&id);
        }
    }

    fn rebind(&mut self, by: By, adapter: Who, base: Who) -> Option<()> {
        let (adapter, base) = (self.handle(adapter)?, self.handle(base)?);
        let answer = match Self::tenant(by) {
            None => self.registry.rebind(adapter, base),
            Some(tenant) => self
                .registry
                .namespace(tenant)
                .unwrap()
                .rebind(adapter, base),
        };
        let expected = self.model.rebind(Self::terms(by), adapter, base);
        self.replaced("rebind", answer, expected)
    }

    fn keep(&mut self, by: By, who: Who, n: usize) -> Option<()> {
        let set = self.handle(who)?;
        let answer = match Self::tenant(by) {
            None => self.registry.keep_previous(set, n),
            Some(tenant) => self
                .registry
                .namespace(tenant)
                .unwrap()
                .keep_previous(set, n),
        };
        let expected = self.model.keep(Self::terms(by), set, n);
        self.compare("keep", &answer, &expected);
        Some(())
    }

    fn rollback(&mut self, by: By, who: Who, when: When) -> Option<()> {
        let set = self.handle(who)?;
        let kept = self
            .model
            .set(set)
            .and_then(|set| self.model.sets[set].kept.front().cloned());
        // The oldest that is kept, where the current one is asked for: that is never kept.
        let demanded = match (when, kept) {
            (When::Current, Some(kept)) => self.demanded(who, When::Number(kept.generation)),
            _ => self.demanded(who, when),
        };
        let tenant = Self::tenant(by);
        let view = || self.registry.namespace(tenant.unwrap_or("")).unwrap();
        let (answer, to): (Result<Replaced, Error>, _) = match (tenant, demanded) {
            (None, None) => (self.registry.rollback(set), None),
            (Some(_), None) => (view().rollback(set), None),
            (None, Some((to, _))) => (self.registry.rollback_to(set, to), Some(to.number())),
            (Some(_), Some((to, _))) => (view().rollback_to(set, to), Some(to.number())),
        };
        let expected = self.model.rollback(Self::terms(by), set, to);
        self.replaced("rollback", answer, expected)
    }

    fn acquire(&mut self, way: Way, place: usize, sets: &[Who]) -> Option<()> {
        let sets: Vec<SetHandle> = sets.iter().filter_map(|&who| self.handle(who)).collect();
        if sets.is_empty() {
            return None;
        }
        let label = (way == Way::Labelled).then(|| format!("lease {}", self.next_lease));
        let mut terms = OPERATOR;
        let mut view = self.model.view();
        let answer = match way {
            Way::ByCall => self.registry.acquire(&sets),
            Way::Labelled => self.registry.acquire_as(label.as_deref()?, &sets),
            Way::ByReader => self.reader.acquire(&sets),
            Way::InScope => match &self.scope {
                Some((scope, seen)) => {
                    view = seen.clone();
                    scope.acquire(&sets)
                }
                // One of its own.
                None => self.reader.scope().acquire(&sets),
            },
            Way::AsTenant(tenant) => {
                terms.tenant = Some(TENANTS[tenant]);
                self.registry
                    .namespace(TENANTS[tenant])
                    .unwrap()
                    .acquire(&sets)
            }
        };
        let expected = self.model.acquire(terms, &view, &sets);
        let operation = if way == Way::InScope {
            "acquire in a scope"
        } else {
            "acquire"
        };
        self.compare(operation, &answer, &expected);
        if let (Ok(lease), Ok(mirror)) = (answer, expected) {
            self.put(place, lease, super::model::Lease { label, ..mirror });
        }
        Some(())
    }

    fn clone_lease(&mut self, from: usize, to: usize) -> Option<()> {
        let id = self.places[from]?;
        let (lease, mirror) = (self.leases[&id].clone(), self.model.leases[&id].clone());
        self.put(to, lease, mirror);
        Some(())
    }

    fn give_to_fence(&mut self, place: usize) -> Option<()> {
        let id = self.places[place].take()?;
        let lease = self.leases.remove(&id)?;
        let mirror = self.model.leases.remove(&id)?;
        self.fence(mirror, |fence| lease.release_after(fence));
        see("fence".to_owned());
        Some(())
    }

    pub fn signal(&mut self, oldest: bool) -> Option<()> {
        let last = self.signals.len().checked_sub(1)?;
        let (signal, id) = self.signals.remove(if oldest { 0 } else { last });
        signal.set();
        self.model.leases.remove(&id);
        Some(())
    }

    fn scope(&mut self, op: &Op) -> Option<()> {
        let view = self.model.view();
        match (op, &mut self.scope) {
            (Op::OpenScope, scope) => {
                *scope = None;
                *scope = Some((self.reader.scope(), view));
            }
            (Op::RefreshScope, Some((scope, seen))) => {
                scope.refresh();
                *seen = view;
            }
            (Op::CloseScope, scope) => {
                scope.take()?;
            }
            _ => return None,
        }
        Some(())
    }

    fn limit(&mut self, tenant: usize, bytes: Option<u64>, sets: Option<usize>) -> Option<()> {
        let name = TENANTS[tenant];
        let mut limits = NamespaceLimits::none();
        (limits.bytes, limits.sets) = (bytes, sets);
        self.registry.set_namespace_limits(name, limits).unwrap();
        self.model.limits.remove(&Account::namespace(name));
        self.model.seats.remove(name);
        self.model
            .limits
            .extend(bytes.map(|bytes| (Account::namespace(name), bytes)));
        self.model.seats.extend(sets.map(|sets| (name, sets)));
        see("limits".to_owned());
        Some(())
    }

    fn reserve(&mut self, foreign: bool, bytes: u64) -> Option<()> {
        let account = match foreign {
            true => Account::foreign("gpu"),
            false => Account::namespace("t"),
        };
        let answer = self.registry.reserve_in(&account, bytes);
        let expected = self.model.reserve(&account, bytes);
        self.compare("reserve", &answer, &expected);
        self.charges.extend(answer);
        Some(())
    }

    pub fn unreserve(&mut self) -> Option<()> {
        let charge = self.charges.pop()?;
        let (account, bytes) = self.model.reserved.pop()?;
        assert_eq!((charge.account(), charge.bytes()), (Some(account), bytes));
        Some(())
    }
}
