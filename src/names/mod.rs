//! Names: which name means which set.
//!
//! What lives here: [`Index`], the authority (dashmap) and its lock-free projection. `set_name` has
//! the names themselves, `seats` how many a namespace may have, `projection` and `block` what lookups read. What
//! does not: what a record says (`registry`).
//!
//! The authority decides who owns a name; it is only touched by writers. Lookups read the
//! projection, without a lock, a pin or a write (`docs/design/names.md` has the figures).
//!
//! The projection always changes first, the authority after it, both under the shard's writer lock
//! (E41). So who is told that a name is live finds it by lookup, and who gets a name that was freed
//! finds nothing of the old tenant under it. A lookup sees a name from its settle to its unlink. A
//! name is settled after its set became current and unlinked after its set was retired; in between a
//! lookup may return a record whose handle no longer resolves, which its tag tells.

mod block;
mod projection;
mod seats;
mod set_name;

use std::hash::{BuildHasher, Hasher as _};

pub use projection::Projection;
pub use seats::{Full, Seat, Seats};
pub(crate) use set_name::validate_namespace;
pub use set_name::{NameRef, SetName};

use crate::sync::map::ShardMap;

/// SipHash with random keys: names come from tenants.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
type Hasher = std::hash::RandomState;
/// The same in every execution.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
type Hasher = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

#[derive(Debug, Clone)]
enum State {
    Claimed,
    Live(u64),
}

/// Why a name could not be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Another publish of it is under way.
    Claimed,
    /// It means this.
    Live(u64),
}

/// See the module documentation. What a name means is a word, whatever that is to who asks.
pub struct Index {
    authority: ShardMap<SetName, State>,
    hasher: Hasher,
    projection: Projection,
}

/// A name on its way into the projection.
struct Entry {
    hash: u64,
    name: SetName,
    record: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// No names.
    pub fn new() -> Self {
        Index {
            authority: ShardMap::new(),
            hasher: Hasher::default(),
            projection: Projection::new(),
        }
    }

    #[inline]
    fn hash(&self, name: NameRef<'_>) -> u64 {
        let mut state = self.hasher.build_hasher();
        name.feed(&mut state);
        projection::fit(state.finish())
    }

    /// Takes `name` for a publish. Nobody else gets it until the claim is settled or dropped.
    pub fn claim(&self, name: &SetName) -> Result<Claim<'_>, Taken> {
        match self.authority.insert_new(name.clone(), State::Claimed) {
            Ok(()) => Ok(Claim {
                index: self,
                name: Some(name.clone()),
            }),
            Err(State::Claimed) => Err(Taken::Claimed),
            Err(State::Live(record)) => Err(Taken::Live(record)),
        }
    }

    /// What `name` means. Wait-free: no lock, no write, nothing allocated.
    #[inline]
    pub fn lookup(&self, name: NameRef<'_>) -> Option<u64> {
        // E40, E85: sees every name that was settled before this call.
        self.projection.find(self.hash(name), &name)
    }

    /// Frees a name whose record `matches`. Does nothing if it means something else, or is only
    /// claimed so far: who settles a claim looks afterwards whether the set is still there. Says
    /// whether it was this call that freed it.
    pub fn unlink(&self, name: &SetName, matches: impl Fn(u64) -> bool) -> bool {
        let hash = self.hash(name.as_ref());
        // E41: one writer per shard: no update is lost, and nobody settles in between.
        let mut writing = self.projection.write(hash);
        let mut freed = false;
        if writing.find(hash, &name.as_ref()).is_some_and(&matches) {
            writing.remove(hash, &name.as_ref());
            freed = self.authority.remove_if(name, |state| match state {
                State::Live(record) => matches(*record),
                State::Claimed => false,
            });
        }
        drop(writing);
        freed
    }

    /// Settles many claims, those of a shard at once: for bulk registration.
    pub fn settle_many<'i>(&'i self, claims: impl IntoIterator<Item = (Claim<'i>, u64)>) {
        let mut entries: Vec<Entry> = claims
            .into_iter()
            .filter_map(|(claim, record)| {
                debug_assert!(std::ptr::eq(claim.index, self), "a claim of another index");
                claim.entry(record)
            })
            .collect();
        let shard = |entry: &Entry| projection::shard_of(entry.hash);
        entries.sort_by_key(shard);
        for group in entries.chunk_by(|a, b| shard(a) == shard(b)) {
            self.settle_shard(group);
        }
    }

    /// Makes names of one shard live: first for lookups, then for claims.
    fn settle_shard(&self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        // E41: one writer per shard: no update is lost.
        let mut writing = self.projection.write(first.hash);
        writing.reserve(entries.len());
        for entry in entries {
            writing.insert(entry.hash, &entry.name.as_ref(), entry.record);
        }
        for entry in entries {
            self.authority
                .set(entry.name.clone(), State::Live(entry.record));
        }
        drop(writing);
    }

    /// How many names are taken, claims included.
    pub fn len(&self) -> usize {
        self.authority.len()
    }
}

/// A name that is being published. Dropping it without settling it frees the name.
pub struct Claim<'i> {
    index: &'i Index,
    name: Option<SetName>,
}

impl Claim<'_> {
    /// The set is current: the name means `record` from here on.
    #[cfg(any(test, weighbridge_loom))]
    pub fn settle(self, record: u64) {
        let index = self.index;
        if let Some(entry) = self.entry(record) {
            index.settle_shard(&[entry]);
        }
    }

    /// What goes into the projection. From here on the claim is not given up by a drop.
    fn entry(mut self, record: u64) -> Option<Entry> {
        let name = self.name.take()?;
        let hash = self.index.hash(name.as_ref());
        Some(Entry { hash, name, record })
    }
}

impl Drop for Claim<'_> {
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
        let index = Index::new();
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
        index.unlink(&name, |record| record == 2);
        assert_eq!(
            index.lookup(name.as_ref()),
            Some(1),
            "another record's unlink does nothing"
        );
        index.unlink(&name, |record| record == 1);
        assert_eq!((index.lookup(name.as_ref()), index.len()), (None, 0));
    }

    #[test]
    fn namespaces_keep_tenants_apart() {
        let index = Index::new();
        for (number, tenant) in ["", "a", "b"].into_iter().enumerate() {
            index
                .claim(&SetName::from((tenant, "x")))
                .ok()
                .unwrap()
                .settle(number as u64);
        }
        assert_eq!(index.lookup(NameRef::from("x")), Some(0));
        assert_eq!(index.lookup(NameRef::from(("a", "x"))), Some(1));
        assert_eq!(index.lookup(NameRef::from(("b", "x"))), Some(2));
        assert_eq!(index.lookup(NameRef::from(("ax", ""))), None);
    }

    #[test]
    fn bulk_settles_all_and_keeps_what_was_there() {
        let index = Index::new();
        let name = |number: u64| SetName::from(("t", format!("set-{number}").as_str()));
        index.claim(&name(9_000)).ok().unwrap().settle(9_000);
        let claims: Vec<_> = (0..5_000)
            .map(|number| (index.claim(&name(number)).ok().unwrap(), number))
            .collect();
        assert_eq!(index.lookup(name(17).as_ref()), None, "not before");
        index.settle_many(claims);
        for number in (0..5_000).chain([9_000]) {
            assert_eq!(index.lookup(name(number).as_ref()), Some(number));
            assert_eq!(index.claim(&name(number)).err(), Some(Taken::Live(number)));
        }
        assert_eq!(index.len(), 5_001);
        index.settle_many([]);
    }

    #[test]
    fn racing_writers_lose_nothing_and_readers_see_whole_records() {
        const NAMES: u64 = 300;
        const ROUNDS: u64 = 20;
        let index = Index::new();
        let name = |number: u64| SetName::from(("t", format!("set-{number}").as_str()));
        // Who, and in which round.
        let record = |number: u64, round: u64| number << 32 | round;
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (index, name) = (&index, &name);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        for number in (0..NAMES).filter(|number| number % 4 == writer) {
                            let name = name(number);
                            let claim = index.claim(&name).ok().unwrap();
                            claim.settle(record(number, round));
                            if round != ROUNDS {
                                index.unlink(&name, |there| there == record(number, round));
                            }
                        }
                    }
                });
            }
            scope.spawn(|| {
                let mut last = [0; NAMES as usize];
                for pass in 0..60 * NAMES {
                    let number = pass % NAMES;
                    if let Some(found) = index.lookup(name(number).as_ref()) {
                        let (who, round) = (found >> 32, found & u64::from(u32::MAX));
                        assert_eq!(who, number);
                        let last = &mut last[number as usize];
                        assert!(round >= *last, "an old record came back");
                        *last = round;
                    }
                }
            });
        });
        for number in 0..NAMES {
            let found = index.lookup(name(number).as_ref());
            assert_eq!(found, Some(record(number, ROUNDS)));
        }
    }
}
