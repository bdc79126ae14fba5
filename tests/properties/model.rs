//! The registry, one operation at a time: its state, and the one rule of how sets change.
//!
//! What lives here: sets, generations, bytes, and [`Model::commit`]. What does not: what each operation of
//! the interface asks before that (`asks`), the sums (`books`), doing anything (`drive`).
//!
//! Nothing is counted that can be derived: whether bytes are resident, kept, retired or back follows from
//! who has them. So a count that goes wrong in the library has no counterpart here that could do the same.

use std::collections::{BTreeMap, VecDeque};

use weighbridge::{Account, SetHandle};

use super::content::{Content, Tensor, identity};

pub type NodeId = usize;
pub type BodyId = usize;

#[derive(Debug, Clone)]
pub struct Set {
    pub handle: SetHandle,
    pub name: (&'static str, &'static str),
    /// Its name and its seat are taken.
    pub named: bool,
    pub current: Option<NodeId>,
    pub keep: usize,
    pub kept: VecDeque<Kept>,
    pub vacated: Option<Kept>,
    /// What was ever resolved: handles never mean another tensor.
    pub ordinals: BTreeMap<String, u32>,
    /// Who pinned it.
    pub pins: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Kept {
    pub generation: u64,
    pub content: Content,
    pub body: BodyId,
    pub identity: String,
}

/// A generation.
#[derive(Debug, Clone)]
pub struct Node {
    pub set: usize,
    pub generation: u64,
    pub content: Content,
    /// All tensors, those of other sets as they are there.
    pub tensors: Vec<Tensor>,
    pub identity: String,
    /// `None`: it has no bytes.
    pub body: Option<BodyId>,
    pub lent: Vec<BodyId>,
    pub base_generation: Option<u64>,
    pub dead: bool,
    pub revoked: bool,
    pub told_reclaimed: bool,
}

/// Bytes that are charged once.
#[derive(Debug, Clone)]
pub struct Body {
    pub bytes: u64,
    pub account: Option<Account>,
    /// Staged, in flight, or in somebody's hands.
    pub in_hand: bool,
    /// They were taken from a generation that was current.
    pub evicted: bool,
}

#[derive(Debug, Clone)]
pub struct Lease {
    pub nodes: Vec<NodeId>,
    pub number: u64,
    pub label: Option<String>,
    /// It waits for this fence.
    pub fence: Option<String>,
}

/// What is staged.
#[derive(Debug, Clone)]
pub struct Staged {
    pub content: Content,
    pub body: BodyId,
    pub identity: String,
}

#[derive(Debug, Clone)]
pub enum Act {
    Become(Staged),
    Restore(Option<u64>),
    Rebind(Option<SetHandle>),
    Vacate,
    Retire,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Expect {
    Vacant,
    Tenant,
    Exactly(u64),
}

#[derive(Debug, Clone)]
pub struct Step {
    pub set: usize,
    pub expect: Expect,
    pub act: Act,
    /// It comes along by itself, because of this step.
    pub follows: Option<usize>,
}

/// What subscribers are told, in words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    Commit(String),
    Refused(String),
    Reclaimed(String),
    /// Bytes went, or came back.
    Moved(String),
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub sets: Vec<Set>,
    pub nodes: Vec<Node>,
    pub bodies: Vec<Body>,
    pub leases: BTreeMap<usize, Lease>,
    pub commits: u64,
    pub keep: usize,
    pub limit: u64,
    pub limits: BTreeMap<Account, u64>,
    pub seats: BTreeMap<&'static str, usize>,
    /// Taken by hand.
    pub reserved: Vec<(Account, u64)>,
    pub peak: u64,
    pub peaks: BTreeMap<Account, u64>,
    pub told: Vec<Told>,
    /// Sets that were loaded, and sets that went for that.
    pub loads: u64,
    pub evictions: u64,
}

/// What a step is made of, before it is known whether it fits.
struct There {
    content: Option<Content>,
    body: Option<BodyId>,
    restored: Option<u64>,
}

pub type Refused = (usize, String);

impl Model {
    pub fn set(&self, handle: SetHandle) -> Option<usize> {
        self.sets.iter().position(|set| set.handle == handle)
    }

    pub fn current(&self, handle: SetHandle) -> Option<NodeId> {
        self.sets[self.set(handle)?].current
    }

    pub fn name(&self, set: usize) -> String {
        match self.sets[set].name {
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }

    /// Leases of each generation.
    pub fn all_holds(&self) -> Vec<u64> {
        let mut holds = vec![0; self.nodes.len()];
        for &node in self.leases.values().flat_map(|lease| &lease.nodes) {
            holds[node] += 1;
        }
        holds
    }

    pub fn holds(&self, node: NodeId) -> u64 {
        let leases = self.leases.values().flat_map(|lease| &lease.nodes);
        leases.filter(|&&held| held == node).count() as u64
    }

    pub fn is_reclaimed(&self, node: NodeId) -> bool {
        let one = &self.nodes[node];
        one.dead && (one.body.is_none() || self.holds(node) == 0)
    }

    /// Living sets that stand on this one: as an adapter, by an alias. By name.
    pub fn standing(&self, set: usize) -> Vec<(usize, bool, bool)> {
        let handle = self.sets[set].handle;
        let mut found = Vec::new();
        for (index, other) in self.sets.iter().enumerate() {
            let Some(node) = other.current else { continue };
            let content = &self.nodes[node].content;
            let (adapter, alias) = (
                content.base == Some(handle),
                content.targets().contains(&handle),
            );
            if adapter || alias {
                found.push((index, adapter, alias));
            }
        }
        found.sort_by_key(|one| self.sets[one.0].name);
        found
    }

    pub fn blocked(&self, set: usize, standing: &[(usize, bool, bool)]) -> String {
        let names = |which: fn(&(usize, bool, bool)) -> bool| -> Vec<String> {
            let which = standing.iter().filter(|one| which(one));
            which.map(|one| self.name(one.0)).collect()
        };
        let aliases = names(|one| one.2);
        match aliases.is_empty() {
            true => format!("Dependants {} {:?}", self.name(set), names(|one| one.1)),
            false => format!("AliasedBy {} {aliases:?}", self.name(set)),
        }
    }

    /// Does an adapter of this content fit a base of that?
    pub fn fits(adapter: &Content, base: &[Tensor]) -> Result<(), String> {
        let find = |name: &str| base.iter().find(|tensor| tensor.0 == name);
        if let Some((module, _, _)) = adapter.lora {
            let outs = adapter.own[1].1[0];
            let there = find("m.weight").map(|tensor| tensor.1.clone());
            if there != Some(vec![outs, 2]) {
                return Err(format!("AdapterMismatch {module}"));
            }
        }
        for (name, shape, _) in &adapter.own {
            let replaced = name.strip_prefix(super::content::PREFIX);
            let there = replaced.and_then(find);
            if adapter.lora.is_none() && there.is_some_and(|there| there.1 != *shape) {
                return Err("AdapterMismatch ".to_owned());
            }
        }
        Ok(())
    }

    /// Takes all steps at one instant, or none of them.
    pub fn commit(&mut self, mut steps: Vec<Step>) -> Result<Vec<Option<NodeId>>, Refused> {
        let asked = steps.len();
        let assigned = self.assign(&steps)?;
        let failed = loop {
            match self.attempt(&steps) {
                Ok(there) => {
                    let mut previous = self.apply(&steps, there);
                    previous.truncate(asked);
                    return Ok(previous);
                }
                Err((_, Ok(follow))) => steps.extend(follow),
                Err((index, Err(why))) => break (index, why),
            }
        };
        for body in assigned {
            self.bodies[body].account = None;
        }
        let mut index = failed.0;
        while let Some(leader) = steps[index].follows {
            index = leader;
        }
        Err((index, failed.1))
    }

    /// Charges what is to be published to the namespaces that it goes to.
    fn assign(&mut self, steps: &[Step]) -> Result<Vec<BodyId>, Refused> {
        let mut assigned: Vec<BodyId> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let Act::Become(staged) = &step.act else {
                continue;
            };
            let account = Account::namespace(self.sets[step.set].name.0);
            let (has, bytes) = {
                let body = &self.bodies[staged.body];
                (body.account.clone(), body.bytes)
            };
            let refused = match has {
                Some(has) if has == account => continue,
                Some(has) => Err(format!("ChargedElsewhere {has} {account}")),
                None => self.fits_account(&account, bytes),
            };
            if let Err(why) = refused {
                for body in assigned {
                    self.bodies[body].account = None;
                }
                return Err((index, why));
            }
            self.bodies[staged.body].account = Some(account.clone());
            assigned.push(staged.body);
            self.note_peaks(Some(&account));
        }
        Ok(assigned)
    }

    /// Everything that can speak against it, in the order in which it is asked. `Err(Ok(..))`: others
    /// must come along.
    #[allow(clippy::type_complexity, reason = "used once")]
    fn attempt(&self, steps: &[Step]) -> Result<Vec<There>, (usize, Result<Vec<Step>, String>)> {
        let refuse = |index: usize, why: String| (index, Err(why));
        let mut there = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            there.push(self.made_of(step).map_err(|why| refuse(index, why))?);
        }
        for index in 0..steps.len() {
            let footing = self.footing(index, steps, &there);
            footing.map_err(|why| refuse(index, why))?;
        }
        for (index, step) in steps.iter().enumerate() {
            let set = &self.sets[step.set];
            let now = set.current.map(|node| self.nodes[node].generation);
            match (step.expect, now) {
                (Expect::Vacant, _) | (Expect::Tenant, Some(_)) => {}
                (Expect::Exactly(demanded), Some(now)) if demanded == now => {}
                (Expect::Exactly(demanded), Some(now)) => {
                    let why = format!("Conflict {} {demanded} {now}", self.name(step.set));
                    return Err(refuse(index, why));
                }
                (_, None) => return Err(refuse(index, format!("StaleHandle {}", set.handle))),
            }
        }
        let among = |set: usize| steps.iter().any(|step| step.set == set);
        for (index, step) in steps.iter().enumerate() {
            let mut standing = self.standing(step.set);
            standing.retain(|one| !among(one.0));
            if standing.is_empty() {
                continue;
            }
            let moves = matches!(step.act, Act::Become(_) | Act::Restore(_) | Act::Rebind(_));
            let follow = standing.iter().filter(|one| moves && one.2 && !one.1);
            let follow: Vec<Step> = follow
                .map(|one| Step {
                    set: one.0,
                    expect: Expect::Tenant,
                    act: Act::Rebind(None),
                    follows: Some(index),
                })
                .collect();
            return Err(match follow.is_empty() {
                true => refuse(index, self.blocked(step.set, &standing)),
                false => (index, Ok(follow)),
            });
        }
        Ok(there)
    }

    fn made_of(&self, step: &Step) -> Result<There, String> {
        let set = &self.sets[step.set];
        let stale = || format!("StaleHandle {}", set.handle);
        let now = || set.current.map(|node| &self.nodes[node]).ok_or_else(stale);
        let there = |content, body, restored| There {
            content: Some(content),
            body,
            restored,
        };
        Ok(match &step.act {
            Act::Retire => There {
                content: None,
                body: None,
                restored: None,
            },
            Act::Become(staged) => there(staged.content.clone(), Some(staged.body), None),
            Act::Restore(wanted) => {
                let mut kept = set.vacated.iter().chain(set.kept.iter().rev());
                let found = kept.find(|kept| wanted.is_none_or(|it| it == kept.generation));
                let Some(kept) = found else {
                    now()?;
                    let all: Vec<u64> = set.kept.iter().map(|kept| kept.generation).collect();
                    let name = self.name(step.set);
                    return Err(format!("NotKept {name} {wanted:?} {all:?}"));
                };
                there(kept.content.clone(), Some(kept.body), Some(kept.generation))
            }
            Act::Rebind(base) => {
                let node = now()?;
                let mut content = node.content.clone();
                content.base = base.or(content.base);
                there(content, node.body, None)
            }
            Act::Vacate => {
                let node = now()?;
                node.body.ok_or(format!("NotResident {}", set.handle))?;
                // A place for the next generation: what was there does not come back.
                let content = Content {
                    again: false,
                    ..node.content.clone()
                };
                there(content, None, None)
            }
        })
    }

    /// Does what it stands on hold?
    fn footing(&self, index: usize, steps: &[Step], there: &[There]) -> Result<(), String> {
        let Some(content) = &there[index].content else {
            return Ok(());
        };
        // What a commit of one set changes is not looked at as if it came along.
        let along = |set: SetHandle| {
            let place = steps
                .iter()
                .position(|step| self.sets[step.set].handle == set);
            place.filter(|_| steps.len() > 1)
        };
        if let Some(base) = content.base {
            let gone = format!("BaseNotCurrent {base}");
            match along(base) {
                Some(place) => {
                    let under = there[place].content.as_ref().ok_or(gone)?;
                    self.fits_base(content, steps[place].set, under)?;
                }
                None => {
                    let set = self.set(base).ok_or(format!("WrongRegistry {base}"))?;
                    let node = self.sets[set].current.ok_or(gone)?;
                    self.fits_base(content, set, &self.nodes[node].content)?;
                }
            }
        }
        let own = self.sets[steps[index].set].handle;
        for set in content.targets() {
            if set == own {
                return Err(format!("InvalidTensor {}", content.aliases[0].name));
            }
            match along(set) {
                Some(place) => {
                    let gone = format!("BaseNotCurrent {set}");
                    there[place].content.as_ref().ok_or(gone)?;
                    there[place].body.ok_or(format!("NotResident {set}"))?;
                }
                None => self.lender(set).map(drop)?,
            }
        }
        for alias in &content.aliases {
            let place = along(alias.set);
            let under = place.and_then(|place| there[place].content.as_ref());
            self.look(alias, under)?;
        }
        Ok(())
    }

    pub fn fits_base(&self, adapter: &Content, base: usize, under: &Content) -> Result<(), String> {
        if under.is_adapter() {
            return Err(format!("NotABase {}", self.name(base)));
        }
        let aliased = under.aliases.iter().map(|alias| {
            let len = alias.shape.iter().product();
            (alias.name.clone(), alias.shape.clone(), vec![0; len])
        });
        let all: Vec<Tensor> = under.own.iter().cloned().chain(aliased).collect();
        Self::fits(adapter, &all)
    }

    /// The generation that an alias into this set is bound to.
    pub fn lender(&self, set: SetHandle) -> Result<NodeId, String> {
        let node = self.current(set).ok_or(format!("StaleHandle {set}"))?;
        let has = self.nodes[node].body.map(|_| node);
        has.ok_or(format!("NotResident {set}"))
    }

    /// Is what an alias stands for still there? `under`: what its set becomes.
    pub fn look(&self, alias: &Alias, under: Option<&Content>) -> Result<(), String> {
        let Some(set) = self.set(alias.set) else {
            return Ok(());
        };
        let now = || self.sets[set].current.map(|node| &self.nodes[node].content);
        let Some(content) = under.or_else(now) else {
            return Ok(());
        };
        let there = content.find(&alias.tensor);
        if there.is_some_and(|there| there.1 == alias.shape) {
            return Ok(());
        }
        let (name, of) = (&alias.name, self.name(set));
        Err(format!("AliasMismatch {name} {of} {}", alias.tensor))
    }

    /// All tensors of a content when the sets of its aliases are what `bodies` and nodes say now.
    pub fn resolve(&self, content: &Content) -> (Vec<Tensor>, Vec<BodyId>) {
        let mut tensors = content.own.clone();
        let mut lent = Vec::new();
        for alias in &content.aliases {
            let Some(node) = self.current(alias.set) else {
                continue;
            };
            let node = &self.nodes[node];
            lent.extend(node.body);
            if let Some(there) = node.content.find(&alias.tensor) {
                tensors.push((alias.name.clone(), there.1.clone(), there.2.clone()));
            }
        }
        (tensors, lent)
    }

    pub fn identity(&self, content: &Content) -> String {
        identity(
            &self.resolve(content).0,
            content.lora,
            content.is_plan_of_adapter(),
        )
    }

    fn apply(&mut self, steps: &[Step], there: Vec<There>) -> Vec<Option<NodeId>> {
        self.commits += 1;
        let number = self.commits;
        let mut previous = Vec::new();
        let mut restored = Vec::new();
        // First what each set becomes, then what is seen through aliases of it.
        for (step, there) in steps.iter().zip(there) {
            let old = self.sets[step.set].current;
            previous.push(old);
            restored.push(there.restored);
            let node = there.content.map(|content| Node {
                set: step.set,
                generation: number,
                content,
                tensors: Vec::new(),
                identity: String::new(),
                body: there.body,
                lent: Vec::new(),
                base_generation: None,
                dead: false,
                revoked: false,
                told_reclaimed: false,
            });
            let new = node.map(|node| {
                self.nodes.push(node);
                self.nodes.len() - 1
            });
            self.sets[step.set].current = new;
            self.sets[step.set].named = new.is_some();
            if let Act::Become(staged) = &step.act {
                self.bodies[staged.body].in_hand = false;
            }
        }
        for (index, step) in steps.iter().enumerate() {
            self.settle(step, restored[index], previous[index]);
            let more = steps.len() - 1 - index;
            let told = self.commit_in_words(step.set, previous[index], more);
            self.told.push(Told::Commit(told));
        }
        previous
    }

    fn settle(&mut self, step: &Step, restored: Option<u64>, old: Option<NodeId>) {
        let new = self.sets[step.set].current;
        if let Some(new) = new {
            let content = self.nodes[new].content.clone();
            let (tensors, lent) = self.resolve(&content);
            let base = content.base.and_then(|base| self.current(base));
            let under = base.map(|base| self.nodes[base].generation);
            let node = &mut self.nodes[new];
            node.identity = identity(&tensors, content.lora, content.is_plan_of_adapter());
            // What has no bytes has no share in those of others either.
            let lent = node.body.map_or_else(Vec::new, |_| lent);
            (node.tensors, node.lent, node.base_generation) = (tensors, lent, under);
        }
        let kept = old.and_then(|old| {
            let node = &mut self.nodes[old];
            node.dead = true;
            Some(Kept {
                generation: node.generation,
                content: node.content.clone(),
                body: node.body?,
                identity: node.identity.clone(),
            })
        });
        let set = &mut self.sets[step.set];
        match step.act {
            Act::Retire => {
                set.kept.clear();
                set.vacated = None;
            }
            Act::Vacate => set.vacated = kept,
            Act::Rebind(_) => {}
            Act::Become(_) | Act::Restore(_) => {
                set.kept.retain(|kept| Some(kept.generation) != restored);
                set.vacated = None;
                if set.keep > 0 {
                    set.kept.extend(kept);
                }
                while set.kept.len() > set.keep {
                    set.kept.pop_front();
                }
            }
        }
    }
}

use super::content::Alias;

impl Content {
    /// Does its plan say that it is an adapter's? (One that is bound to a base and has nothing but
    /// aliases does not.)
    pub fn is_plan_of_adapter(&self) -> bool {
        self.lora.is_some()
            || self
                .own
                .iter()
                .any(|own| own.0.starts_with(super::content::PREFIX))
    }
}
