//! A registry and its model, side by side, and what a case has in its hands.
//!
//! What lives here: registers and what they mean, the comparison of two answers, the count of what was
//! seen. What does not: the operations (`drive`, `drive_tx`), the comparison of everything else (`look`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use weighbridge::ledger::Charge;
use weighbridge::{
    CacheKey, Error, Event, Fence, Filling, Generation, Lease, Pin, Reader, Retirement, Scope,
    SetHandle, Staged, Subscription, Transaction, WeightRegistry, fence,
};

use super::asks::{Answer, OPERATOR, Terms};
use super::content::{Alias, Content, Named, Offer};
use super::model::{self, Expect, Model, NodeId};
use super::ops::{By, LEASES, NAMES, PINS, STAGED, TENANTS, When, Who};
use super::reads::{Open, View};
use super::said::said;

/// A set that is being filled: what it is to be, and how much of it is there.
pub struct Half {
    pub filling: Filling,
    pub content: Content,
    pub body: usize,
    pub written: usize,
}

/// What is left of generations, and which those are.
pub struct Going {
    pub retirement: Retirement,
    pub nodes: Vec<NodeId>,
    /// It waits for what the set kept, too.
    pub with_kept: bool,
}

pub struct World<'r> {
    pub registry: &'r WeightRegistry,
    pub reader: &'r Reader<'r>,
    pub elsewhere: &'r WeightRegistry,
    pub stranger: SetHandle,
    pub model: Model,
    pub now: [Option<SetHandle>; NAMES.len()],
    pub former: [Option<SetHandle>; NAMES.len()],
    pub leases: BTreeMap<usize, Lease>,
    pub places: [Option<usize>; LEASES],
    pub next_lease: usize,
    pub staged: [Option<(Staged, model::Staged)>; STAGED],
    pub halves: [Option<Half>; STAGED],
    pub transaction: Option<(Transaction<'r>, Open)>,
    pub scope: Option<(Scope<'r>, View)>,
    pub signals: Vec<(fence::Signal, usize)>,
    pub charges: Vec<Charge>,
    pub going: Vec<Going>,
    pub generations: BTreeMap<u64, Generation>,
    pub pins: [Option<(Pin, SetHandle)>; PINS],
    /// What is said to go for the request that comes next, by name, and how many bytes that is.
    pub estimate: Option<(Vec<String>, u64)>,
    pub events: Subscription,
    /// Those that were looked at already.
    pub early: Vec<Event>,
    pub sequence: u64,
    pub keys: HashMap<Vec<String>, CacheKey>,
    /// The last refusal as it prints.
    pub refused: Option<String>,
    /// Sets that were superseded, and sets that were told to be back.
    pub told: [usize; 2],
}

/// What is at the bottom of a failure.
pub trait Blame {
    fn blame(&self) -> &Error;
}

impl Blame for Error {
    fn blame(&self) -> &Error {
        self
    }
}

macro_rules! blame {
    ($($failure:ty),*) => {
        $(impl Blame for $failure {
            fn blame(&self) -> &Error {
                self.error()
            }
        })*
    };
}
blame!(
    weighbridge::PublishError,
    weighbridge::TransactionError,
    weighbridge::SealError
);

/// How often each kind of answer was given to each operation.
pub static SEEN: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

pub fn see(what: String) {
    *SEEN.lock().unwrap().entry(what).or_default() += 1;
}

impl<'r> World<'r> {
    pub fn handle(&self, who: Who) -> Option<SetHandle> {
        match who {
            Who::Set(name) => self.now[name],
            Who::Former(name) => self.former[name],
            Who::Stranger => Some(self.stranger),
        }
    }

    /// A name means another set from here on.
    pub fn met(&mut self, name: usize, set: SetHandle) {
        self.former[name] = self.now[name].replace(set);
    }

    pub fn tenant(by: By) -> Option<&'static str> {
        match by {
            By::Operator => None,
            By::Tenant(which) => Some(TENANTS[which]),
        }
    }

    pub fn terms(by: By) -> Terms<'static> {
        Terms {
            tenant: Self::tenant(by),
            ..OPERATOR
        }
    }

    /// A set that may come to be. It needs a handle only if it does.
    pub fn coming(&self, name: usize, handle: Option<SetHandle>) -> model::Set {
        if let Some(handle) = handle {
            let met = self.model.set(handle);
            assert_eq!(met, None, "{handle} means another set already");
        }
        model::Set {
            handle: handle.unwrap_or(self.stranger),
            name: NAMES[name],
            named: false,
            current: None,
            keep: 0,
            kept: Default::default(),
            vacated: None,
            ordinals: BTreeMap::new(),
            pins: Vec::new(),
        }
    }

    /// The generation that is demanded.
    pub fn demanded(&self, who: Who, when: When) -> Option<(Generation, Expect)> {
        let number = match when {
            When::Whatever => return None,
            When::Number(number) => number,
            When::Current => {
                let node = self.handle(who).and_then(|set| self.model.current(set));
                node.map_or(0, |node| self.model.nodes[node].generation)
            }
        };
        let generation = *self.generations.get(&number)?;
        Some((generation, Expect::Exactly(number)))
    }

    /// The handles that an offer needs. `None`: it names a register that is empty. `Err`: there is no
    /// tensor to be an alias of, which the model says, too.
    pub fn named(&mut self, offer: Offer) -> Option<Result<Named, ()>> {
        let none = Named {
            base: None,
            alias: None,
        };
        Some(Ok(match offer {
            Offer::Plain(..) | Offer::Base(..) | Offer::Broken(_) => none,
            Offer::Patch(on, ..) | Offer::Lora(on, ..) | Offer::Idle(on) => Named {
                base: Some(self.handle(on)?),
                alias: None,
            },
            Offer::Tied(of, _) => {
                let set = self.handle(of)?;
                let Some(alias) = self.alias(set) else {
                    return Some(Err(()));
                };
                Named {
                    base: None,
                    alias: Some(alias),
                }
            }
        }))
    }

    /// `head`, which is the set's `w`; or what the set's own `head` is.
    fn alias(&mut self, set: SetHandle) -> Option<(weighbridge::WeightHandle, Alias)> {
        let node = self.model.current(set);
        let tensors = node
            .map(|node| self.model.nodes[node].tensors.clone())
            .unwrap_or_default();
        let found = ["w", "head"]
            .iter()
            .find_map(|name| tensors.iter().find(|there| there.0 == *name));
        let expected = self.model.there(set).and_then(|index| match (found, node) {
            (None, Some(node)) => {
                let now = self.model.nodes[node].generation;
                Err(format!("NoSuchTensor {} {now} w", self.model.name(index)))
            }
            _ => Ok(()),
        });
        let answer = self
            .registry
            .weight_handle(set, found.map_or("w", |found| &found.0));
        self.compare("weight_handle", &answer, &expected);
        let (name, shape, _) = found?;
        let further = self.model.nodes[node?]
            .content
            .aliases
            .iter()
            .find(|one| one.name == *name);
        let further = further.map(|one| (one.set, one.tensor.clone()));
        let (asked, (set, tensor)) = (set, further.unwrap_or_else(|| (set, name.clone())));
        let alias = Alias {
            name: "head".to_owned(),
            asked,
            set,
            tensor,
            shape: shape.clone(),
        };
        Some((answer.ok()?, alias))
    }

    /// The registry's answer is the model's.
    #[track_caller]
    pub fn compare<T, U>(
        &mut self,
        operation: &str,
        answer: &Result<T, impl Blame>,
        expected: &Answer<U>,
    ) {
        let is = answer.as_ref().err().map(|error| said(error.blame()));
        let should = expected.as_ref().err().cloned();
        assert_eq!(
            is, should,
            "the answer to {operation} (left), and the model's"
        );
        let kind = should
            .as_deref()
            .map_or("ok", |why| why.split(' ').next().unwrap_or(why));
        see(format!("{operation} {kind}"));
        if let Err(error) = answer {
            self.refused = Some(error.blame().to_string());
        }
    }

    /// A lease is in this place from here on.
    pub fn put(&mut self, place: usize, lease: Lease, mirror: model::Lease) {
        self.drop_lease(place);
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.insert(id, lease);
        self.model.leases.insert(id, mirror);
        self.places[place] = Some(id);
    }

    pub fn drop_lease(&mut self, place: usize) {
        if let Some(id) = self.places[place].take() {
            self.leases.remove(&id);
            self.model.leases.remove(&id);
        }
    }

    /// A lease is given to a fence.
    pub fn fence(&mut self, mirror: model::Lease, give: impl FnOnce(fence::SignalFence)) {
        let id = self.next_lease;
        self.next_lease += 1;
        let name = format!("fence {id}");
        let (signal, fence) = fence::signal(name.as_str());
        assert_eq!(fence.name(), name);
        give(fence);
        let shown = match &mirror.label {
            Some(label) => format!("{name} ({label})"),
            None => name,
        };
        let mirror = model::Lease {
            fence: Some(shown),
            ..mirror
        };
        self.model.leases.insert(id, mirror);
        self.signals.push((signal, id));
    }

    /// What a commit superseded in one set, and is to be awaited: the one generation, or all that are
    /// still held.
    pub fn goes(&mut self, retirement: Retirement, node: NodeId, whole: bool, with_kept: bool) {
        let set = self.model.nodes[node].set;
        let mut nodes = Vec::new();
        if whole {
            let all = 0..self.model.nodes.len();
            nodes.extend(all.filter(|&other| {
                let one = &self.model.nodes[other];
                one.set == set && one.dead && !one.told_reclaimed && other != node
            }));
        }
        nodes.push(node);
        self.going.push(Going {
            retirement,
            nodes,
            with_kept,
        });
    }
}
