//! What each operation asks before it commits, and what it tells when it is refused.
//!
//! What lives here: the model's answer to publish, replace, retire and their kin. What does not: the commit
//! (`model`), reading (`reads`), the open transaction (`tx`).

use weighbridge::{Account, SetHandle};

use super::content::Content;
use super::model::{Act, Body, Expect, Model, NodeId, Staged, Step, Told};
use super::said::cause;

/// Ok, or the refusal in words.
pub type Answer<T = ()> = Result<T, String>;

/// On whose behalf.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'t> {
    /// `None`: the operator.
    pub tenant: Option<&'t str>,
    /// Sets that the tenant's transaction is about to publish.
    pub coming: &'t [SetHandle],
}

pub const OPERATOR: Terms<'_> = Terms {
    tenant: None,
    coming: &[],
};

impl Model {
    /// Tells of a refusal, if it is one.
    pub fn tell<T>(
        &mut self,
        operation: &str,
        subject: impl ToString,
        answer: Answer<T>,
    ) -> Answer<T> {
        if let Err(why) = &answer {
            let subject = subject.to_string();
            self.told.push(Told::Refused(format!(
                "{operation} {subject}: {}",
                cause(why)
            )));
        }
        answer
    }

    /// A set that is there.
    pub fn there(&self, handle: SetHandle) -> Answer<usize> {
        let set = self.set(handle).ok_or(format!("WrongRegistry {handle}"))?;
        let living = self.sets[set].current.map(|_| set);
        living.ok_or(format!("StaleHandle {handle}"))
    }

    pub fn own(&self, terms: Terms<'_>, handle: SetHandle) -> Answer {
        self.confined(terms, handle, false)
    }

    pub fn readable(&self, terms: Terms<'_>, handle: SetHandle) -> Answer {
        self.confined(terms, handle, true)
    }

    fn confined(&self, terms: Terms<'_>, handle: SetHandle, reads: bool) -> Answer {
        let Some(tenant) = terms.tenant else {
            return Ok(());
        };
        if terms.coming.contains(&handle) {
            return Ok(());
        }
        let namespace = self.sets[self.there(handle)?].name.0;
        if namespace == tenant || (reads && namespace.is_empty()) {
            return Ok(());
        }
        Err(format!("WrongNamespace {handle} {tenant}"))
    }

    fn generation(&self, set: usize) -> u64 {
        self.sets[set]
            .current
            .map_or(0, |node| self.nodes[node].generation)
    }

    pub fn taken(&self, name: (&str, &str)) -> Option<usize> {
        self.sets
            .iter()
            .position(|set| set.named && set.name == name)
    }

    fn already(&self, set: usize, offered: &str) -> Option<String> {
        let node = &self.nodes[self.sets[set].current?];
        let (name, now, identity) = (self.name(set), node.generation, &node.identity);
        Some(format!(
            "AlreadyPublished {name} {now} {identity} {offered}"
        ))
    }

    fn seat(&self, name: (&str, &str)) -> Answer {
        let in_use = self.seats_taken(name.0);
        match self.seats.get(name.0) {
            Some(&limit) if in_use >= limit => {
                let full = if name.0.is_empty() {
                    name.1.to_owned()
                } else {
                    format!("{}/{}", name.0, name.1)
                };
                Err(format!("TooManySets {full} {in_use} {limit}"))
            }
            _ => Ok(()),
        }
    }

    pub fn seats_taken(&self, namespace: &str) -> usize {
        let taken = self
            .sets
            .iter()
            .filter(|set| set.named && set.name.0 == namespace);
        taken.count()
    }

    fn check_free(&self, name: (&str, &str)) -> Answer {
        if let Some(error) = self.taken(name).and_then(|set| self.already(set, "memory")) {
            return Err(error);
        }
        self.seat(name)
    }

    /// What is wrong with a content before a byte of it is reserved. `base`: what an adapter is checked
    /// against, if that is not what is current.
    pub fn room(&self, terms: Terms<'_>, content: &Content, base: Option<Answer>) -> Answer {
        if content.idle {
            return Err(format!("AdapterWithoutEffect {}", content.own.len()));
        }
        // What was asked for first, then what that stands for.
        let asked = content.aliases.iter().map(|alias| alias.asked);
        let stands_for = content.aliases.iter().map(|alias| alias.set);
        for set in content.base.into_iter().chain(asked).chain(stands_for) {
            self.readable(terms, set)?;
        }
        match (content.base, base) {
            (Some(_), Some(answer)) => answer?,
            (Some(base), None) => {
                let set = self.there(base)?;
                let node = self.sets[set].current.map(|node| &self.nodes[node]);
                self.fits_under(content, set, node.map(|node| &node.content))?;
            }
            (None, _) => {}
        }
        for set in content.targets() {
            self.lender(set)?;
        }
        content
            .aliases
            .iter()
            .try_for_each(|alias| self.look(alias, None))
    }

    pub fn fits_under(&self, adapter: &Content, base: usize, under: Option<&Content>) -> Answer {
        under.map_or(Ok(()), |under| self.fits_base(adapter, base, under))
    }

    /// Reads into memory.
    pub fn stage(
        &mut self,
        terms: Terms<'_>,
        account: Option<&Account>,
        content: &Content,
        base: Option<Answer>,
    ) -> Answer<Staged> {
        let staged = self.stage_quietly(terms, account, content, base);
        self.tell("stage", "memory", staged)
    }

    fn stage_quietly(
        &mut self,
        terms: Terms<'_>,
        account: Option<&Account>,
        content: &Content,
        base: Option<Answer>,
    ) -> Answer<Staged> {
        self.room(terms, content, base)?;
        let body = self.take(account, content.bytes())?;
        self.read(content, body)
    }

    fn read(&mut self, content: &Content, body: usize) -> Answer<Staged> {
        if content.broken {
            self.bodies[body].in_hand = false;
            return Err("InvalidTensor w".to_owned());
        }
        Ok(Staged {
            content: content.clone(),
            body,
            identity: self.identity(content),
        })
    }

    pub fn let_go(&mut self, staged: &Staged) {
        self.bodies[staged.body].in_hand = false;
    }

    /// `new`: the set, should it come to be.
    pub fn publish(
        &mut self,
        terms: Terms<'_>,
        new: &super::model::Set,
        content: &Content,
    ) -> Answer {
        let name = new.name;
        let free = self.check_free(name);
        self.tell("publish", name_of(name), free)?;
        let account = Account::namespace(name.0);
        let staged = self.stage(terms, Some(&account), content, None)?;
        self.publish_staged(OPERATOR, new, &staged)
            .inspect_err(|_| self.let_go(&staged))
    }

    /// The name is taken; or whose it is.
    pub fn reserve_name(&mut self, new: &super::model::Set, staged: &Staged) -> Answer<usize> {
        if let Some(other) = self.taken(new.name) {
            let busy = format!("NameBusy {}", self.name(other));
            return Err(self.already(other, &staged.identity).unwrap_or(busy));
        }
        self.seat(new.name)?;
        self.sets.push(super::model::Set {
            named: true,
            keep: self.keep,
            ..new.clone()
        });
        Ok(self.sets.len() - 1)
    }

    pub fn publish_staged(
        &mut self,
        terms: Terms<'_>,
        new: &super::model::Set,
        staged: &Staged,
    ) -> Answer {
        let admitted = self.admitted(terms, &staged.content);
        self.tell("publish", name_of(new.name), admitted)?;
        let answer = self.reserve_name(new, staged).and_then(|set| {
            let step = step(set, Expect::Vacant, Act::Become(staged.clone()));
            self.commit(vec![step]).map(drop).map_err(|(_, why)| {
                self.sets.truncate(set);
                why
            })
        });
        self.tell("publish", name_of(new.name), answer)
    }

    /// May a tenant publish what stands on this?
    pub fn admitted(&self, terms: Terms<'_>, content: &Content) -> Answer {
        if let Some(base) = content.base {
            let gone = |why: String| match why == format!("StaleHandle {base}") {
                true => format!("BaseNotCurrent {base}"),
                false => why,
            };
            self.readable(terms, base).map_err(gone)?;
        }
        let mut sets = content.targets().into_iter();
        sets.try_for_each(|set| self.readable(terms, set))
    }

    fn kinds(&self, set: usize, offered: &Content) -> Answer {
        let now = self.sets[set]
            .current
            .map(|node| self.nodes[node].content.is_adapter());
        let kind = |adapter| if adapter { "adapter" } else { "checkpoint" };
        if now == Some(offered.is_adapter()) {
            return Ok(());
        }
        let (now, offered) = (kind(now == Some(true)), kind(offered.is_adapter()));
        Err(format!("KindMismatch {} {now} {offered}", self.name(set)))
    }

    fn may_follow(&self, handle: SetHandle, expect: Expect, offered: &Content) -> Answer {
        let set = self.there(handle)?;
        self.kinds(set, offered)?;
        let now = self.generation(set);
        if let Expect::Exactly(demanded) = expect
            && demanded != now
        {
            return Err(format!("Conflict {} {demanded} {now}", self.name(set)));
        }
        let mut standing = self.standing(set);
        standing.retain(|one| one.1);
        match standing.is_empty() {
            true => Ok(()),
            false => Err(self.blocked(set, &standing)),
        }
    }

    pub fn replace(
        &mut self,
        terms: Terms<'_>,
        handle: SetHandle,
        expect: Expect,
        content: &Content,
    ) -> Answer<NodeId> {
        let may = self.own(terms, handle);
        let may = may.and_then(|()| self.may_follow(handle, expect, content));
        self.tell("replace", handle, may)?;
        let set = self.there(handle)?;
        let account = Account::namespace(self.sets[set].name.0);
        let staged = self.stage(terms, Some(&account), content, None)?;
        let answer = self.replace_staged(OPERATOR, handle, expect, &staged);
        answer.inspect_err(|_| self.let_go(&staged))
    }

    pub fn replace_staged(
        &mut self,
        terms: Terms<'_>,
        handle: SetHandle,
        expect: Expect,
        staged: &Staged,
    ) -> Answer<NodeId> {
        let admitted = self.own(terms, handle);
        let admitted = admitted.and_then(|()| self.admitted(terms, &staged.content));
        let answer = admitted.and_then(|()| self.follow(handle, expect, staged));
        self.tell("replace", handle, answer)
    }

    pub fn check_follow(&self, handle: SetHandle, offered: &Content) -> Answer<usize> {
        let set = self.there(handle)?;
        self.kinds(set, offered)?;
        Ok(set)
    }

    pub fn follow(&mut self, handle: SetHandle, expect: Expect, staged: &Staged) -> Answer<NodeId> {
        let set = self.check_follow(handle, &staged.content)?;
        self.one(step(set, expect, Act::Become(staged.clone())))
    }

    /// A commit of one set that had a generation before.
    pub fn one(&mut self, step: Step) -> Answer<NodeId> {
        let previous = self.commit(vec![step]).map_err(|(_, why)| why)?;
        Ok(previous[0].expect("it had one before"))
    }

    pub fn retire(
        &mut self,
        terms: Terms<'_>,
        handle: SetHandle,
        expect: Expect,
    ) -> Answer<NodeId> {
        let set = self.own(terms, handle).and_then(|()| self.there(handle));
        let answer = set.and_then(|set| self.one(step(set, expect, Act::Retire)));
        self.tell("retire", handle, answer)
    }

    pub fn rebind(
        &mut self,
        terms: Terms<'_>,
        adapter: SetHandle,
        base: SetHandle,
    ) -> Answer<NodeId> {
        let allowed = self.own(terms, adapter);
        let allowed = allowed.and_then(|()| self.readable(terms, base));
        let answer = allowed.and_then(|()| self.check_rebind(adapter));
        let answer =
            answer.and_then(|set| self.one(step(set, Expect::Tenant, Act::Rebind(Some(base)))));
        self.tell("rebind", adapter, answer)
    }

    pub fn check_rebind(&self, adapter: SetHandle) -> Answer<usize> {
        let set = self.there(adapter)?;
        let node = self.sets[set].current.map(|node| &self.nodes[node].content);
        match node.is_some_and(Content::is_adapter) {
            true => Ok(set),
            false => Err(format!(
                "KindMismatch {} checkpoint adapter",
                self.name(set)
            )),
        }
    }

    pub fn rollback(
        &mut self,
        terms: Terms<'_>,
        handle: SetHandle,
        to: Option<u64>,
    ) -> Answer<NodeId> {
        let set = self.own(terms, handle).and_then(|()| self.there(handle));
        let answer = set.and_then(|set| self.one(step(set, Expect::Tenant, Act::Restore(to))));
        self.tell("rollback", handle, answer)
    }

    pub fn keep(&mut self, terms: Terms<'_>, handle: SetHandle, n: usize) -> Answer {
        self.own(terms, handle)?;
        let set = self.there(handle)?;
        let set = &mut self.sets[set];
        set.keep = n;
        while set.kept.len() > n {
            set.kept.pop_front();
        }
        Ok(())
    }

    /// A commit of one set, with which all that stand on it move along.
    fn with_adapters(&mut self, set: usize, expect: Expect, act: Act) -> Answer<NodeId> {
        let mut steps = vec![step(set, expect, act)];
        let standing = self.standing(set);
        steps.extend(
            standing
                .iter()
                .map(|one| step(one.0, Expect::Tenant, Act::Rebind(None))),
        );
        let previous = self.commit(steps).map_err(|(_, why)| why)?;
        Ok(previous[0].expect("it had one before"))
    }

    pub fn replace_drained(
        &mut self,
        terms: Terms<'_>,
        handle: SetHandle,
        content: &Content,
    ) -> Answer<NodeId> {
        let set = self.own(terms, handle).and_then(|()| self.there(handle));
        let answer = set.and_then(|set| self.drain_and_swap(terms, set, content));
        self.tell("replace", handle, answer)
    }

    fn drain_and_swap(
        &mut self,
        terms: Terms<'_>,
        set: usize,
        content: &Content,
    ) -> Answer<NodeId> {
        let handle = self.sets[set].handle;
        let account = Account::namespace(self.sets[set].name.0);
        self.room(terms, content, None)?;
        let needed = content.bytes();
        match self.take(Some(&account), needed) {
            Ok(body) => {
                let staged = self.read(content, body)?;
                let answer = self.follow_or_fill(handle, &staged);
                return answer.inspect_err(|_| self.let_go(&staged));
            }
            Err(_) => self.can_follow(set, content)?,
        }
        let old = self.sets[set].current.expect("it is there");
        let has = self.nodes[old]
            .body
            .map_or(0, |body| self.bodies[body].bytes);
        let more = self.take(Some(&account), needed.saturating_sub(has));
        let more = more.map_err(|why| instead_of(has, needed, &why))?;
        let answer = self.swap(set, old, more, content, account);
        self.bodies[more].in_hand = false;
        answer
    }

    fn can_follow(&self, set: usize, content: &Content) -> Answer {
        self.kinds(set, content)?;
        let standing = self.standing(set);
        if standing.iter().any(|one| one.2) {
            return Err(self.blocked(set, &standing));
        }
        let (all, _) = self.resolve(content);
        for one in standing {
            let adapter = self.sets[one.0]
                .current
                .map(|node| &self.nodes[node].content);
            adapter.map_or(Ok(()), |adapter| Self::fits(adapter, &all))?;
        }
        Ok(())
    }

    fn follow_or_fill(&mut self, handle: SetHandle, staged: &Staged) -> Answer<NodeId> {
        let set = self.there(handle)?;
        let now = self.sets[set].current.expect("it is there");
        if self.nodes[now].body.is_some() || self.nodes[now].content.again {
            return self.follow(handle, Expect::Tenant, staged);
        }
        self.check_follow(handle, &staged.content)?;
        self.with_adapters(
            set,
            Expect::Exactly(self.generation(set)),
            Act::Become(staged.clone()),
        )
    }

    fn swap(
        &mut self,
        set: usize,
        old: NodeId,
        more: usize,
        content: &Content,
        account: Account,
    ) -> Answer<NodeId> {
        let expect = Expect::Exactly(self.nodes[old].generation);
        self.with_adapters(set, expect, Act::Vacate)?;
        if let Err(why) = self.drained(set, old) {
            let back = Act::Restore(Some(self.nodes[old].generation));
            self.with_adapters(set, Expect::Tenant, back)
                .expect("nobody is in the way");
            return Err(why);
        }
        self.bodies[more].in_hand = false;
        self.sets[set].vacated = None;
        // What it has from here on, from the old memory and what was taken beyond it.
        self.bodies.push(Body {
            bytes: content.bytes(),
            account: Some(account),
            in_hand: true,
            evicted: false,
        });
        let body = self.bodies.len() - 1;
        let expect = Expect::Exactly(self.generation(set));
        let filled = self
            .read(content, body)
            .and_then(|staged| self.with_adapters(set, expect, Act::Become(staged)));
        match filled {
            Ok(_) => Ok(old),
            Err(why) => {
                self.bodies[body].in_hand = false;
                Err(format!("Emptied {} {why}", self.name(set)))
            }
        }
    }

    /// Does nobody have the memory of a set that was vacated?
    fn drained(&self, set: usize, old: NodeId) -> Answer {
        let going = (0..self.nodes.len()).filter(|&node| self.nodes[node].set == set);
        let leases: u64 = going
            .filter(|&node| self.nodes[node].dead)
            .map(|node| self.holds(node))
            .sum();
        if leases > 0 {
            return Err(format!("NotDrained {} {leases}", self.name(set)));
        }
        let body = self.nodes[old].body.expect("it was vacated");
        let has = |node: NodeId| !self.is_reclaimed(node) && self.nodes[node].lent.contains(&body);
        match (0..self.nodes.len()).any(has) {
            true => Err(format!("NotReclaimed {} 0", self.name(set))),
            false => Ok(()),
        }
    }
}

pub fn step(set: usize, expect: Expect, act: Act) -> Step {
    Step {
        set,
        expect,
        act,
        follows: None,
    }
}

pub fn name_of(name: (&str, &str)) -> String {
    match name {
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// A refusal of what is needed beyond `has`, as one of all that is needed.
fn instead_of(has: u64, needed: u64, why: &str) -> String {
    let mut words: Vec<String> = why.split(' ').map(str::to_owned).collect();
    let end = words.len();
    let in_use: u64 = words[end - 2].parse().expect("a number");
    words[end - 3] = needed.to_string();
    words[end - 2] = in_use.saturating_sub(has).to_string();
    words.join(" ")
}
