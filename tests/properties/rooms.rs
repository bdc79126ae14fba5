//! The model's answers about bytes that go and come back.
//!
//! What lives here: evict, load, pins, what a request for sets that are away needs, who could go for it, and
//! whether that is enough. What does not: in which order sets go, which is a policy's, doing it (`drive_rooms`).

use std::collections::BTreeMap;

use weighbridge::{Account, SetHandle};

use super::asks::Answer;
use super::model::{BodyId, Model, NodeId, Told};

/// What a request lacks: the sets that must come, and what they take.
#[derive(Debug)]
pub struct Missing {
    pub sets: Vec<usize>,
    pub needs: Vec<(Account, u64)>,
}

impl Missing {
    pub fn bytes(&self) -> u64 {
        self.needs.iter().map(|need| need.1).sum()
    }

    fn accounts(&self) -> BTreeMap<&Account, u64> {
        let mut all = BTreeMap::new();
        for (account, bytes) in &self.needs {
            *all.entry(account).or_default() += bytes;
        }
        all
    }
}

impl Model {
    /// Has somebody else these bytes, too?
    fn shared(&self, node: NodeId, body: BodyId) -> bool {
        let has = |other: NodeId| {
            let one = &self.nodes[other];
            let same = one.body == Some(body) || one.lent.contains(&body);
            other != node && same && !self.is_reclaimed(other)
        };
        let mut kept = self.sets.iter().flat_map(|set| &set.kept);
        (0..self.nodes.len()).any(has) || kept.any(|kept| kept.body == body)
    }

    fn account_of(&self, set: usize) -> Account {
        Account::namespace(self.sets[set].name.0)
    }

    /// What the bytes of a set's current generation take, there or not.
    pub fn takes(&self, set: usize) -> u64 {
        let node = self.sets[set].current.map(|node| &self.nodes[node]);
        node.map_or(0, |node| node.content.bytes())
    }

    /// The set and its current generation.
    fn now(&self, handle: SetHandle) -> Answer<(usize, NodeId)> {
        let set = self.there(handle)?;
        Ok((set, self.sets[set].current.expect("it is there")))
    }

    pub fn evict(&mut self, handle: SetHandle) -> Answer<u64> {
        let answer = self.may_evict(handle);
        let answer = answer.map(|set| set.map_or(0, |set| self.goes(set)));
        self.tell("evict", handle, answer)
    }

    /// `None`: it is away.
    fn may_evict(&self, handle: SetHandle) -> Answer<Option<usize>> {
        let (set, node) = self.now(handle)?;
        let name = self.name(set);
        let Some(body) = self.nodes[node].body else {
            return Ok(None);
        };
        if !self.nodes[node].content.again {
            return Err(format!("NotEvictable {name}"));
        }
        if !self.sets[set].pins.is_empty() {
            return Err(format!("Pinned {name} {:?}", self.sets[set].pins));
        }
        if self.shared(node, body) {
            return Err(format!("BytesShared {name}"));
        }
        match self.holds(node) {
            0 => Ok(Some(set)),
            holds => Err(format!("Leased {name} {holds}")),
        }
    }

    /// The bytes go.
    pub fn goes(&mut self, set: usize) -> u64 {
        let node = self.sets[set].current.expect("it is there");
        let body = self.nodes[node].body.take().expect("it has bytes");
        self.bodies[body].evicted = true;
        let told = format!("evicted {}", self.node_in_words(node));
        self.told.push(Told::Moved(told));
        self.bodies[body].bytes
    }

    /// The bytes are there.
    pub fn comes(&mut self, set: usize, body: BodyId) {
        let node = self.sets[set].current.expect("it is there");
        self.bodies[body].in_hand = false;
        self.nodes[node].body = Some(body);
        let told = format!("loaded {}", self.node_in_words(node));
        self.told.push(Told::Moved(told));
        self.loads += 1;
    }

    pub fn load(&mut self, handle: SetHandle) -> Answer<u64> {
        let answer = self.load_quietly(handle);
        self.tell("load", handle, answer)
    }

    fn load_quietly(&mut self, handle: SetHandle) -> Answer<u64> {
        let Missing { sets, needs } = self.missing(&[handle])?;
        let Some((&set, (account, bytes))) = sets.first().zip(needs.first()) else {
            return Ok(0);
        };
        let body = self.take(Some(account), *bytes)?;
        self.comes(set, body);
        Ok(*bytes)
    }

    pub fn pin(&mut self, handle: SetHandle, by: &str) -> Answer {
        let set = self.there(handle)?;
        self.sets[set].pins.push(by.to_owned());
        Ok(())
    }

    pub fn unpin(&mut self, handle: SetHandle, by: &str) {
        if let Some(set) = self.set(handle) {
            self.sets[set].pins.retain(|other| other != by);
        }
    }

    /// What must come so that all of these are there.
    pub fn missing(&self, handles: &[SetHandle]) -> Answer<Missing> {
        let mut sets = Vec::new();
        for &handle in handles {
            let (set, node) = self.now(handle)?;
            let node = &self.nodes[node];
            if node.body.is_some() || sets.contains(&set) {
                continue;
            }
            if !node.content.again {
                return Err(format!("NotResident {handle}"));
            }
            sets.push(set);
        }
        let needs = sets
            .iter()
            .map(|&set| (self.account_of(set), self.takes(set)));
        Ok(Missing {
            needs: needs.collect(),
            sets,
        })
    }

    /// The sets that could go for a request that wants `wished`.
    pub fn could_go(&self, wished: &[SetHandle]) -> Vec<usize> {
        let sets = 0..self.sets.len();
        sets.filter(|&set| {
            let handle = self.sets[set].handle;
            !wished.contains(&handle) && matches!(self.may_evict(handle), Ok(Some(_)))
        })
        .collect()
    }

    /// Is anything idle that has its bytes together with somebody else? A policy does not know that.
    pub fn some_are_shared(&self) -> bool {
        let mut sets = self.sets.iter();
        sets.any(|set| {
            let answer = self.may_evict(set.handle);
            answer.is_err_and(|why| why.starts_with("BytesShared"))
        })
    }

    /// Does it fit in place of these?
    pub fn fits_in_place_of(&self, missing: &Missing, gone: &[usize]) -> bool {
        let given = |account: Option<&Account>| -> u64 {
            let some = gone
                .iter()
                .filter(|&&set| account.is_none_or(|account| *account == self.account_of(set)));
            some.map(|&set| self.takes(set)).sum()
        };
        let fits = |limit: u64, sums: [u64; 4], given: u64, wanted: u64| {
            let in_use = sums.iter().sum::<u64>() - given;
            wanted <= limit.saturating_sub(in_use)
        };
        let mut accounts = missing.accounts().into_iter();
        accounts.all(|(account, wanted)| {
            let limit = self.limits.get(account).copied().unwrap_or(u64::MAX);
            fits(limit, self.account(account).0, given(Some(account)), wanted)
        }) && fits(self.limit, self.total(), given(None), missing.bytes())
    }

    /// Why it does not fit whatever goes.
    pub fn never_fits(&self, missing: &Missing, wished: &[SetHandle]) -> Option<String> {
        let mut fixed: BTreeMap<Account, u64> = BTreeMap::new();
        for (set, one) in self.sets.iter().enumerate() {
            let Some(node) = one.current.map(|node| &self.nodes[node]) else {
                continue;
            };
            let stays = !node.content.again || !one.pins.is_empty() || wished.contains(&one.handle);
            if node.body.is_some() && stays {
                *fixed.entry(self.account_of(set)).or_default() += self.takes(set);
            }
        }
        let refused = |account: Option<&Account>, limit: u64, wanted: u64, stays: u64| {
            let account = account.map(ToString::to_string);
            (wanted + stays > limit)
                .then(|| format!("NeverFits {account:?} {wanted} {stays} {limit}"))
        };
        for (account, wanted) in missing.accounts() {
            let limit = self.limits.get(account).copied().unwrap_or(u64::MAX);
            let stays = fixed.get(account).copied().unwrap_or(0);
            if limit < u64::MAX
                && let Some(why) = refused(Some(account), limit, wanted, stays)
            {
                return Some(why);
            }
        }
        refused(None, self.limit, missing.bytes(), fixed.values().sum())
    }
}
