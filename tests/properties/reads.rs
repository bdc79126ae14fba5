//! What readers, and an open transaction, are answered.
//!
//! What lives here: the model of leases as of an instant, and of steps that are added one by one. What does
//! not: single changes (`asks`), the commit (`model`).

use weighbridge::SetHandle;

use super::asks::{Answer, OPERATOR, Terms, step};
use super::content::Content;
use super::model::{Act, Expect, Lease, Model, NodeId, Set, Staged, Step};

/// What a scope sees: the commit, and which generation each set had.
#[derive(Debug, Clone)]
pub struct View {
    pub number: u64,
    pub nodes: Vec<Option<NodeId>>,
}

impl View {
    pub fn node(&self, set: usize) -> Option<NodeId> {
        self.nodes.get(set).copied().flatten()
    }
}

impl Model {
    pub fn view(&self) -> View {
        View {
            number: self.commits,
            nodes: self.sets.iter().map(|set| set.current).collect(),
        }
    }

    /// A lease of these as of that view.
    pub fn acquire(&self, terms: Terms<'_>, view: &View, handles: &[SetHandle]) -> Answer<Lease> {
        for &handle in handles {
            self.readable(terms, handle)?;
        }
        let sets: Answer<Vec<usize>> = handles
            .iter()
            .map(|&handle| self.set(handle).ok_or(format!("WrongRegistry {handle}")))
            .collect();
        let mut nodes = Vec::new();
        for (set, handle) in sets?.into_iter().zip(handles) {
            let node = view.node(set).ok_or(format!("StaleHandle {handle}"))?;
            // Whether or not it had bytes then.
            if self.nodes[node].dead {
                return Err(format!("Superseded {handle}"));
            }
            if self.nodes[node].body.is_none() {
                return Err(format!("NotResident {handle}"));
            }
            nodes.push(node);
        }
        self.pairs(view, &nodes)?;
        Ok(Lease {
            nodes,
            number: view.number,
            label: None,
            fence: None,
        })
    }

    /// May these be leased together, whether or not they are there?
    pub fn pairing(&self, handles: &[SetHandle]) -> Answer {
        let nodes = handles.iter().filter_map(|&handle| self.current(handle));
        self.pairs(&self.view(), &nodes.collect::<Vec<_>>())
    }

    /// An adapter goes with its own base, if it goes with any.
    fn pairs(&self, view: &View, nodes: &[NodeId]) -> Answer {
        let leased = nodes.iter().map(|&node| self.nodes[node].set);
        let adapter = |set: &usize| {
            let node = view.node(*set).map(|node| &self.nodes[node].content);
            node.and_then(|content| content.base)
        };
        let bases: Vec<usize> = leased
            .clone()
            .filter(|set| adapter(set).is_none())
            .collect();
        let Some(&first) = bases.first() else {
            return Ok(());
        };
        for set in leased {
            let Some(base) = adapter(&set) else { continue };
            if !bases.iter().any(|&other| self.sets[other].handle == base) {
                let there = self.set(base).filter(|&base| view.node(base).is_some());
                let there = there.map(|base| self.name(base));
                let (name, other) = (self.name(set), Some(self.name(first)));
                return Err(format!("WrongBase {name} {base} {there:?} {other:?}"));
            }
        }
        Ok(())
    }
}

/// The open transaction.
#[derive(Debug, Clone, Default)]
pub struct Open {
    pub steps: Vec<Step>,
}

impl Open {
    fn place(&self, set: usize) -> Option<usize> {
        self.steps.iter().position(|step| step.set == set)
    }

    fn once(&self, model: &Model, set: usize) -> Answer<usize> {
        match self.place(set) {
            Some(_) => Err(format!("TwiceInTransaction {}", model.name(set))),
            None => Ok(set),
        }
    }

    /// [`Model::stage`], where the base may be in the transaction.
    pub fn stage(&self, model: &mut Model, content: &Content) -> Answer<Staged> {
        let base = content.base.and_then(|base| {
            let set = model.set(base)?;
            let place = self.place(set)?;
            Some(match &self.steps[place].act {
                Act::Become(staged) => model.fits_base(content, set, &staged.content),
                Act::Retire => Err(format!("BaseNotCurrent {base}")),
                _ => Ok(()),
            })
        });
        model.stage(OPERATOR, None, content, base)
    }

    pub fn publish(&mut self, model: &mut Model, new: &Set, staged: Staged) -> Answer {
        let ours = model
            .taken(new.name)
            .is_some_and(|set| self.place(set).is_some());
        let reserved = model.reserve_name(new, &staged).map_err(|why| {
            match ours && why.starts_with("NameBusy") {
                true => why.replace("NameBusy", "TwiceInTransaction"),
                false => why,
            }
        });
        let set = model.tell("transaction", super::asks::name_of(new.name), reserved);
        let set = set.inspect_err(|_| model.let_go(&staged))?;
        self.steps
            .push(step(set, Expect::Vacant, Act::Become(staged)));
        Ok(())
    }

    pub fn replace(
        &mut self,
        model: &mut Model,
        handle: SetHandle,
        expect: Expect,
        staged: Staged,
    ) -> Answer {
        let answer = model.check_follow(handle, &staged.content);
        let answer = answer.and_then(|set| self.once(model, set));
        let answer = model.tell("transaction", handle, answer);
        let set = answer.inspect_err(|_| model.let_go(&staged))?;
        self.steps.push(step(set, expect, Act::Become(staged)));
        Ok(())
    }

    pub fn retire(&mut self, model: &mut Model, handle: SetHandle, expect: Expect) -> Answer {
        let answer = model.there(handle).and_then(|set| self.once(model, set));
        let set = model.tell("transaction", handle, answer)?;
        self.steps.push(step(set, expect, Act::Retire));
        Ok(())
    }

    pub fn cascade(&mut self, model: &mut Model, handle: SetHandle) -> Answer {
        self.retire(model, handle, Expect::Tenant)?;
        let mut next = vec![handle];
        while let Some(base) = next.pop() {
            let base = model.there(base)?;
            for (set, _, _) in model.standing(base) {
                if self.place(set).is_none() {
                    self.steps.push(step(set, Expect::Tenant, Act::Retire));
                    next.push(model.sets[set].handle);
                }
            }
        }
        Ok(())
    }

    pub fn rebind(&mut self, model: &mut Model, adapter: SetHandle, base: SetHandle) -> Answer {
        let ours = model.set(base).ok_or(format!("WrongRegistry {base}"));
        let answer = ours.and_then(|_| model.check_rebind(adapter));
        let answer = answer.and_then(|set| self.once(model, set));
        let set = model.tell("transaction", adapter, answer)?;
        self.steps
            .push(step(set, Expect::Tenant, Act::Rebind(Some(base))));
        Ok(())
    }

    pub fn rebind_all(&mut self, model: &mut Model, base: SetHandle) -> Answer<usize> {
        let answer = model.there(base);
        let base = model.tell("transaction", base, answer)?;
        let mut count = 0;
        for (set, adapter, _) in model.standing(base) {
            if adapter && self.place(set).is_none() {
                self.steps
                    .push(step(set, Expect::Tenant, Act::Rebind(None)));
                count += 1;
            }
        }
        Ok(count)
    }

    pub fn rollback(&mut self, model: &mut Model, handle: SetHandle) -> Answer {
        let answer = model.there(handle).and_then(|set| self.once(model, set));
        let set = model.tell("transaction", handle, answer)?;
        self.steps
            .push(step(set, Expect::Tenant, Act::Restore(None)));
        Ok(())
    }

    /// What each step superseded; or the step to blame, and why.
    pub fn commit(self, model: &mut Model) -> Result<Vec<Option<NodeId>>, (usize, String)> {
        let subject = format!("{} set(s)", self.steps.len());
        match model.commit(self.steps.clone()) {
            Ok(previous) => Ok(previous),
            Err((index, why)) => {
                self.forget(model);
                let why = model
                    .tell("transaction", subject, Err::<(), _>(why))
                    .unwrap_err();
                Err((index, why))
            }
        }
    }

    /// It changes nothing.
    pub fn forget(self, model: &mut Model) {
        for step in self.steps {
            if let Act::Become(staged) = &step.act {
                model.let_go(staged);
            }
            if step.expect == Expect::Vacant {
                model.sets[step.set].named = false;
            }
        }
    }
}
