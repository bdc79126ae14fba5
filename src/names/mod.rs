//! Names: which name means which set.
//!
//! What lives here: [`Index`], the authority (dashmap) and its lock-free projection. `set_name` has
//! the names themselves. What does not: what a record says (`registry`).
//!
//! The authority decides who owns a name; it is only touched by writers. Lookups read the
//! projection: shards of immutable maps behind arc-swap. A name is projected after its set became
//! current, and taken out after its set was retired; in between a lookup may return a record whose
//! handle no longer resolves, which its tag tells.

mod set_name;

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashMap;

pub use set_name::{NameRef, SetName};

use crate::sync::Mutex;
use crate::sync::map::ShardMap;
use crate::sync::swap::Swap;

/// Keyed at random per process: names come from tenants.
type Keyed = hashbrown::DefaultHashBuilder;
type Map<R> = HashMap<SetName, R, Keyed>;

/// A publish copies one shard, so shards must stay small at a million names; a registry with ten
/// names must not be large.
#[cfg(not(weighbridge_loom))]
const SHARDS: usize = 256;
/// Everything meets.
#[cfg(weighbridge_loom)]
const SHARDS: usize = 1;

#[derive(Debug, Clone)]
enum State<R> {
    Claimed,
    Live(R),
}

/// Why a name could not be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken<R> {
    /// Another publish of it is under way.
    Claimed,
    /// It means this.
    Live(R),
}

struct Shard<R> {
    map: Swap<Map<R>>,
    writer: Mutex<()>,
}

/// See the module documentation.
pub struct Index<R> {
    authority: ShardMap<SetName, State<R>>,
    hasher: Keyed,
    shards: Box<[Shard<R>]>,
}

impl<R: Clone> Default for Index<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Clone> Index<R> {
    /// No names.
    pub fn new() -> Self {
        let hasher = Keyed::default();
        let shards = (0..SHARDS)
            .map(|_| Shard {
                map: Swap::new(Arc::new(Map::with_hasher(hasher.clone()))),
                writer: Mutex::new(()),
            })
            .collect();
        Index {
            authority: ShardMap::new(),
            hasher,
            shards,
        }
    }

    /// Takes `name` for a publish. Nobody else gets it until the claim is settled or dropped.
    pub fn claim(&self, name: &SetName) -> Result<Claim<'_, R>, Taken<R>> {
        match self.authority.insert_new(name.clone(), State::Claimed) {
            Ok(()) => Ok(Claim {
                index: self,
                name: Some(name.clone()),
            }),
            Err(State::Claimed) => Err(Taken::Claimed),
            Err(State::Live(record)) => Err(Taken::Live(record)),
        }
    }

    /// What `name` means. Takes no lock and does not allocate.
    pub fn lookup(&self, name: NameRef<'_>) -> Option<R> {
        // E40: sees every projection that happens before this call.
        self.shard(&name).map.with(|map| map.get(&name).cloned())
    }

    /// Frees a name whose record `matches`. Does nothing if it means something else, or is only
    /// claimed so far: who settles a claim looks afterwards whether the set is still there.
    pub fn unlink(&self, name: &SetName, matches: impl Fn(&R) -> bool) {
        self.project(name, |map| {
            if map.get(name).is_some_and(&matches) {
                map.remove(name);
            }
            self.authority.remove_if(name, |state| match state {
                State::Live(record) => matches(record),
                State::Claimed => false,
            });
        });
    }

    /// How many names are taken, claims included.
    pub fn len(&self) -> usize {
        self.authority.len()
    }

    fn shard(&self, name: &NameRef<'_>) -> &Shard<R> {
        // The map inside takes the same hash's other bits.
        let hash = self.hasher.hash_one(name);
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    fn project(&self, name: &SetName, change: impl FnOnce(&mut Map<R>)) {
        let shard = self.shard(&name.as_ref());
        // E41: one writer per shard: no update is lost, and authority and projection change
        // together for whoever holds it.
        let writing = shard.writer.lock();
        let mut map = shard.map.with(Map::clone);
        change(&mut map);
        shard.map.store(Arc::new(map)); // E40
        drop(writing);
    }
}

/// A name that is being published. Dropping it without [`settle`](Self::settle) frees the name.
pub struct Claim<'i, R: Clone> {
    index: &'i Index<R>,
    name: Option<SetName>,
}

impl<R: Clone> Claim<'_, R> {
    /// The set is current: the name means `record` from here on.
    pub fn settle(mut self, record: R) {
        if let Some(name) = self.name.take() {
            self.index.project(&name, |map| {
                self.index
                    .authority
                    .set(name.clone(), State::Live(record.clone()));
                map.insert(name.clone(), record);
            });
        }
    }
}

impl<R: Clone> Drop for Claim<'_, R> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.index
                .authority
                .remove_if(&name, |state| matches!(state, State::Claimed));
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_owner_at_a_time() {
        let index = Index::<u32>::new();
        let name = SetName::from("llama");
        let claim = index.claim(&name).ok().unwrap();
        assert_eq!(index.claim(&name).err(), Some(Taken::Claimed));
        assert_eq!(
            index.lookup(name.as_ref()),
            None,
            "not before it is settled"
        );
        drop(claim);
        index.claim(&name).ok().unwrap().settle(1);
        assert_eq!(index.claim(&name).err(), Some(Taken::Live(1)));
        assert_eq!(index.lookup(name.as_ref()), Some(1));
        index.unlink(&name, |&record| record == 2);
        assert_eq!(
            index.lookup(name.as_ref()),
            Some(1),
            "another record's unlink does nothing"
        );
        index.unlink(&name, |&record| record == 1);
        assert_eq!((index.lookup(name.as_ref()), index.len()), (None, 0));
    }

    #[test]
    fn namespaces_keep_tenants_apart() {
        let index = Index::<u32>::new();
        for (number, tenant) in ["", "a", "b"].into_iter().enumerate() {
            index
                .claim(&SetName::from((tenant, "x")))
                .ok()
                .unwrap()
                .settle(number as u32);
        }
        assert_eq!(index.lookup(NameRef::from("x")), Some(0));
        assert_eq!(index.lookup(NameRef::from(("a", "x"))), Some(1));
        assert_eq!(index.lookup(NameRef::from(("b", "x"))), Some(2));
        assert_eq!(index.lookup(NameRef::from(("ax", ""))), None);
    }

    #[test]
    fn racing_writers_lose_nothing_and_readers_see_whole_records() {
        const NAMES: u32 = 300;
        const ROUNDS: u32 = 20;
        let index = Index::<(u32, u32)>::new();
        let name = |number: u32| SetName::from(("t", format!("set-{number}").as_str()));
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (index, name) = (&index, &name);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        for number in (0..NAMES).filter(|number| number % 4 == writer) {
                            let name = name(number);
                            index.claim(&name).ok().unwrap().settle((number, round));
                            if round != ROUNDS {
                                index.unlink(&name, |record| record.1 == round);
                            }
                        }
                    }
                });
            }
            scope.spawn(|| {
                let mut last = [0; NAMES as usize];
                for pass in 0..60 * NAMES {
                    let number = pass % NAMES;
                    if let Some((who, round)) = index.lookup(name(number).as_ref()) {
                        assert_eq!(who, number);
                        assert!(round >= last[number as usize], "an old record came back");
                        last[number as usize] = round;
                    }
                }
            });
        });
        for number in 0..NAMES {
            assert_eq!(index.lookup(name(number).as_ref()), Some((number, ROUNDS)));
        }
    }
}
