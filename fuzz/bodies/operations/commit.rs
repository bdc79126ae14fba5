//! What a commit does to the model, and when it is refused.
//!
//! What lives here: changes of any number of sets at one instant. What does not: the order in which the
//! registry looks for reasons to refuse: any of those that there are will do.

use std::collections::BTreeMap;

use super::model::{Content, Current, Reason, Set, State};
use super::words::At;

#[derive(Debug, Clone)]
pub enum Act {
    Become(Content),
    Restore,
    Rebind(usize),
    /// The same again: what it stands on moves.
    Follow,
    /// It has no bytes from here on.
    Vacate,
    /// It has its bytes again.
    Return,
    Retire,
}

#[derive(Debug, Default)]
pub struct Changes {
    pub acts: BTreeMap<usize, Act>,
    /// New sets.
    pub born: Vec<(At, Content)>,
    /// Generations that must be current.
    pub demands: Vec<(usize, u64)>,
}

impl Changes {
    pub fn one(set: usize, act: Act) -> Self {
        Changes {
            acts: BTreeMap::from([(set, act)]),
            ..Changes::default()
        }
    }

    pub fn demanding(mut self, set: usize, number: Option<u64>) -> Self {
        self.demands.extend(number.map(|number| (set, number)));
        self
    }
}

impl State {
    /// Why it is refused. What comes along by itself is added.
    pub fn judge(&self, changes: &mut Changes) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for (&set, act) in &changes.acts {
            if self.alive(set).is_none() {
                return vec!["StaleHandle"];
            }
            reasons.extend(self.impossible(set, act));
        }
        let stands = |&(set, number): &(usize, u64)| self.sets[set].now.number == number;
        if !changes.demands.iter().all(stands) {
            reasons.push("Conflict");
        }
        self.charge(changes, &mut reasons);
        self.follow(changes, &mut reasons);
        for &set in changes.acts.keys() {
            if let Some((content, _)) = self.after(changes, set) {
                self.check(changes, Some(set), content, &mut reasons);
            }
        }
        for (_, content) in &changes.born {
            self.check(changes, None, content, &mut reasons);
        }
        reasons
    }

    /// Why this cannot become of that set, whatever else there is.
    pub fn impossible(&self, set: usize, act: &Act) -> Option<Reason> {
        match act {
            Act::Become(content) if content.base.is_some() != self.is_adapter(set) => {
                Some("KindMismatch")
            }
            Act::Rebind(_) if !self.is_adapter(set) => Some("KindMismatch"),
            Act::Restore if self.sets[set].kept.is_empty() => Some("NotKept"),
            _ => None,
        }
    }

    /// Sets that stand on what changes: those with aliases come along, all others are in the way.
    fn follow(&self, changes: &mut Changes, reasons: &mut Vec<Reason>) {
        let mut next: Vec<usize> = changes.acts.keys().copied().collect();
        while let Some(set) = next.pop() {
            let goes = matches!(changes.acts[&set], Act::Retire | Act::Vacate);
            for one in self.dependants(set) {
                if changes.acts.contains_key(&one) {
                    continue;
                }
                match self.is_adapter(one) {
                    true => reasons.push("Dependants"),
                    false if goes => reasons.push("AliasedBy"),
                    false => {
                        changes.acts.insert(one, Act::Follow);
                        next.push(one);
                    }
                }
            }
        }
    }

    /// What was staged for nobody is charged to the namespace that it goes to.
    fn charge(&self, changes: &Changes, reasons: &mut Vec<Reason>) {
        let mut more = self.limits.map(|_| 0);
        let became = changes.acts.iter().filter_map(|(&set, act)| match act {
            Act::Become(content) => Some((self.sets[set].at, content)),
            _ => None,
        });
        let born = changes.born.iter().map(|(at, content)| (*at, content));
        for (At(account, _), content) in became.chain(born) {
            match content.own.account.get() {
                Some(own) if own == account => {}
                Some(_) => reasons.push("ChargedElsewhere"),
                None => {
                    let bytes = content.own.charge;
                    let there = self.books(Some(account)).total() + more[account];
                    let over = |limit: u64| bytes > limit.saturating_sub(there);
                    if self.limits[account].bytes.is_some_and(over) {
                        reasons.push("OverAccountLimit");
                    }
                    more[account] += bytes;
                }
            }
        }
    }

    /// What a living set is made of after it, and whether it has bytes then.
    fn after<'s>(&'s self, changes: &'s Changes, set: usize) -> Option<(&'s Content, bool)> {
        let of = self.alive(set)?;
        match changes.acts.get(&set) {
            None | Some(Act::Rebind(_) | Act::Follow) => Some((&of.now.content, of.now.resident)),
            Some(Act::Become(content)) => Some((content, true)),
            Some(Act::Restore) => of.kept.last().map(|(_, content)| (content, true)),
            Some(Act::Vacate) => Some((&of.now.content, false)),
            Some(Act::Return) => Some((&of.now.content, true)),
            Some(Act::Retire) => None,
        }
    }

    /// Does it stand?
    fn check(
        &self,
        changes: &Changes,
        set: Option<usize>,
        content: &Content,
        reasons: &mut Vec<Reason>,
    ) {
        let moved = set.and_then(|set| changes.acts.get(&set));
        let base = match moved {
            Some(Act::Rebind(base)) => Some(*base),
            _ => content.base,
        };
        if let Some(base) = base {
            match self.after(changes, base) {
                None => reasons.push("BaseNotCurrent"),
                Some(_) if self.is_adapter(base) => reasons.push("NotABase"),
                Some(_) => {}
            }
        }
        let Some(alias) = content.alias else {
            return;
        };
        if set == Some(alias.target) {
            reasons.push("InvalidTensor");
        }
        match self.after(changes, alias.target) {
            None => reasons.extend(["StaleHandle", "BaseNotCurrent"]),
            Some((_, false)) => reasons.push("NotResident"),
            Some((target, true)) => {
                if target.alias.is_some() || target.own.len != alias.len {
                    reasons.push("AliasMismatch");
                }
            }
        }
    }

    /// Does it.
    pub fn apply(&mut self, changes: Changes) {
        self.commits += 1;
        let number = self.commits;
        for (set, act) in changes.acts {
            self.sets[set].change(number, act);
        }
    }

    /// A new set of the newest commit.
    pub fn bear(&mut self, handle: weighbridge::SetHandle, at: At, content: Content) {
        content.own.account.set(Some(at.0));
        self.sets.push(Set {
            handle,
            at,
            alive: true,
            now: Current {
                number: self.commits,
                content,
                resident: true,
            },
            keep: self.keep,
            kept: Vec::new(),
        });
    }
}

impl Set {
    fn change(&mut self, number: u64, act: Act) {
        let before = self.now.clone();
        self.now.number = number;
        match act {
            Act::Become(content) => {
                content.own.account.set(Some(self.at.0));
                self.supersede(before, content);
            }
            Act::Restore => {
                let (_, content) = self.kept.pop().expect("judged");
                self.supersede(before, content);
            }
            Act::Rebind(base) => self.now.content.base = Some(base),
            Act::Follow => {}
            Act::Vacate => self.now.resident = false,
            Act::Return => self.now.resident = true,
            Act::Retire => {
                self.alive = false;
                self.kept.clear();
            }
        }
    }

    fn supersede(&mut self, before: Current, content: Content) {
        (self.now.content, self.now.resident) = (content, true);
        if before.resident {
            self.kept.push((before.number, before.content));
        }
        self.trim();
    }

    pub fn trim(&mut self) {
        let over = self.kept.len().saturating_sub(self.keep);
        self.kept.drain(..over);
    }
}
