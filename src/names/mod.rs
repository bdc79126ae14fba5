//! Names: which name means which set.
//!
//! What lives here: [`Index`], the authority (dashmap) and its lock-free projection. `set_name` has
//! the names themselves, `seats` how many a namespace may have. What does not: what a record says
//! (`registry`).
//!
//! The authority decides who owns a name; it is only touched by writers. Lookups read the
//! projection: shards of immutable tables behind arc-swap (`docs/design/names.md` has the figures).
//!
//! The projection always changes first, the authority after it, both under the shard's writer lock
//! (E41). So who is told that a name is live finds it by lookup, and who gets a name that was freed
//! finds nothing of the old tenant under it. A lookup sees a name from its settle to its unlink. A
//! name is settled after its set became current and unlinked after its set was retired; in between a
//! lookup may return a record whose handle no longer resolves, which its tag tells.

mod seats;
mod set_name;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

pub use seats::{Full, Seat, Seats};
pub(crate) use set_name::validate_namespace;
pub use set_name::{NameRef, SetName};

use crate::sync::Mutex;
use crate::sync::map::ShardMap;
use crate::sync::swap::Swap;

/// A publish copies one shard: at a million names that is a thousand entries, some 40 microseconds.
/// Empty shards share one table, so a registry with ten names pays 16 KiB.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const SHARDS: usize = 1024;
/// Everything meets.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
const SHARDS: usize = 1;

/// The hash is kept: copying a shard hashes nothing.
#[derive(Clone)]
struct Entry<R> {
    hash: u64,
    name: SetName,
    record: R,
}

type Table<R> = HashTable<Entry<R>>;

#[inline]
fn find<'t, R>(table: &'t Table<R>, hash: u64, name: &NameRef<'_>) -> Option<&'t R> {
    let entry = table.find(hash, |entry| entry.hash == hash && entry.name.is(name));
    entry.map(|entry| &entry.record)
}

fn remove<R>(table: &mut Table<R>, hash: u64, name: &NameRef<'_>) {
    let found = table.find_entry(hash, |entry| entry.hash == hash && entry.name.is(name));
    if let Ok(found) = found {
        found.remove();
    }
}

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
    table: Swap<Table<R>>,
    writer: Mutex<()>,
}

/// See the module documentation.
pub struct Index<R> {
    authority: ShardMap<SetName, State<R>>,
    /// SipHash with random keys: names come from tenants.
    hasher: RandomState,
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
        let empty = Arc::new(Table::new());
        let shards = (0..SHARDS)
            .map(|_| Shard {
                table: Swap::new(Arc::clone(&empty)),
                writer: Mutex::new(()),
            })
            .collect();
        Index {
            authority: ShardMap::new(),
            hasher: RandomState::new(),
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

    /// What `name` means. Takes no lock. Allocates in a thread's very first call (arc-swap registers
    /// it); the last reader of a table that was replaced meanwhile frees it.
    #[inline]
    pub fn lookup(&self, name: NameRef<'_>) -> Option<R> {
        let hash = self.hasher.hash_one(name);
        // E40: sees every projection that happens before this call.
        self.shards[shard_of(hash)]
            .table
            .with(|table| find(table, hash, &name).cloned())
    }

    /// Frees a name whose record `matches`. Does nothing if it means something else, or is only
    /// claimed so far: who settles a claim looks afterwards whether the set is still there. Says
    /// whether it was this call that freed it.
    pub fn unlink(&self, name: &SetName, matches: impl Fn(&R) -> bool) -> bool {
        let hash = self.hasher.hash_one(name);
        let shard = &self.shards[shard_of(hash)];
        // E41: one writer per shard: no update is lost, and nobody settles in between.
        let writing = shard.writer.lock();
        let mut table = shard.table.with(Table::clone);
        let mut freed = false;
        if find(&table, hash, &name.as_ref()).is_some_and(&matches) {
            remove(&mut table, hash, &name.as_ref());
            shard.table.store(Arc::new(table)); // E40
            freed = self.authority.remove_if(name, |state| match state {
                State::Live(record) => matches(record),
                State::Claimed => false,
            });
        }
        drop(writing);
        freed
    }

    /// Settles many claims and copies each shard once: for bulk registration.
    pub fn settle_many<'i>(&'i self, claims: impl IntoIterator<Item = (Claim<'i, R>, R)>)
    where
        R: 'i,
    {
        let mut entries: Vec<Entry<R>> = claims
            .into_iter()
            .filter_map(|(claim, record)| {
                debug_assert!(std::ptr::eq(claim.index, self), "a claim of another index");
                claim.entry(record)
            })
            .collect();
        entries.sort_by_key(|entry| shard_of(entry.hash));
        for group in entries.chunk_by(|a, b| shard_of(a.hash) == shard_of(b.hash)) {
            self.settle_shard(group);
        }
    }

    /// Makes names of one shard live: first for lookups, then for claims.
    fn settle_shard(&self, entries: &[Entry<R>]) {
        let Some(first) = entries.first() else {
            return;
        };
        let shard = &self.shards[shard_of(first.hash)];
        // E41: one writer per shard: no update is lost.
        let writing = shard.writer.lock();
        let mut table = shard.table.with(Table::clone);
        table.reserve(entries.len(), |entry| entry.hash);
        for entry in entries {
            table.insert_unique(entry.hash, entry.clone(), |entry| entry.hash);
        }
        shard.table.store(Arc::new(table)); // E40
        for entry in entries {
            let live = State::Live(entry.record.clone());
            self.authority.set(entry.name.clone(), live);
        }
        drop(writing);
    }

    /// How many names are taken, claims included.
    pub fn len(&self) -> usize {
        self.authority.len()
    }
}

/// The table inside takes the hash's low bits and its top seven.
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

/// A name that is being published. Dropping it without [`settle`](Self::settle) frees the name.
pub struct Claim<'i, R: Clone> {
    index: &'i Index<R>,
    name: Option<SetName>,
}

impl<R: Clone> Claim<'_, R> {
    /// The set is current: the name means `record` from here on.
    #[cfg(any(test, weighbridge_loom))]
    pub fn settle(self, record: R) {
        let index = self.index;
        if let Some(entry) = self.entry(record) {
            index.settle_shard(&[entry]);
        }
    }

    /// What goes into the projection. From here on the claim is not given up by a drop.
    fn entry(mut self, record: R) -> Option<Entry<R>> {
        let name = self.name.take()?;
        let hash = self.index.hasher.hash_one(&name);
        Some(Entry { hash, name, record })
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

    /// Sixty-four bits of a hash are one name only until they are two.
    #[test]
    fn names_with_one_hash_are_two_names() {
        const HASH: u64 = 42;
        let mut table = Table::new();
        let names = ["a", "b"].map(SetName::from);
        for (number, name) in names.iter().enumerate() {
            let entry = Entry {
                hash: HASH,
                name: name.clone(),
                record: number,
            };
            table.insert_unique(HASH, entry, |entry| entry.hash);
        }
        let there = |table: &_| [0, 1].map(|at| find(table, HASH, &names[at].as_ref()).copied());
        assert_eq!(there(&table), [Some(0), Some(1)]);
        assert_eq!(find(&table, HASH, &NameRef::from("c")), None);
        remove(&mut table, HASH, &NameRef::from("c"));
        assert_eq!(there(&table), [Some(0), Some(1)]);
        for gone in [1, 0] {
            let mut table = table.clone();
            remove(&mut table, HASH, &names[gone].as_ref());
            let rest = [0, 1].map(|number| (number != gone).then_some(number));
            assert_eq!(there(&table), rest);
        }
    }

    #[test]
    fn a_small_registry_pays_little() {
        let shards = SHARDS * size_of::<Shard<Arc<u32>>>();
        assert!(shards <= 16 << 10, "{shards}");
    }

    #[test]
    fn bulk_settles_all_and_keeps_what_was_there() {
        let index = Index::<u32>::new();
        let name = |number: u32| SetName::from(("t", format!("set-{number}").as_str()));
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
