//! The usual maps, behind one trait.
//!
//! What lives here: five maps that threads can share, and what a cell does with them. What does not: which
//! keys and values they have (`usual`).
//!
//! A map looks up within whatever it calls a guard, once per operation, which is what its documentation
//! shows. A value is looked at in its guard.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, RwLock};

use arc_swap::ArcSwap;

/// A key of any of the maps.
pub trait Key: Clone + Eq + Hash + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Send + Sync + 'static> Key for K {}
/// A value of any of the maps.
pub trait Value: Clone + Send + Sync + 'static {}
impl<V: Clone + Send + Sync + 'static> Value for V {}
/// A hasher for any of the maps.
pub trait Hashes: BuildHasher + Clone + Default + Send + Sync + 'static {}
impl<S: BuildHasher + Clone + Default + Send + Sync + 'static> Hashes for S {}

/// A map that threads share.
pub trait Shared<K: Key, V: Value>: Send + Sync + 'static {
    /// What inserting many leaves to be dropped by the caller, where a map gives it away.
    type Left;

    /// What it is called in the table.
    const NAME: &'static str;

    /// An empty map with room for so many.
    fn with_room(entries: usize) -> Self;

    /// Looks at the values of some keys, within one guard if there are guards for several.
    ///
    /// # Panics
    /// If one is not there.
    fn see<Q: Eq + Hash + ?Sized, const N: usize>(&self, keys: [&Q; N], see: impl FnMut(&V))
    where
        K: Borrow<Q>;

    /// One entry comes, or is replaced.
    fn put(&self, key: K, value: V);

    /// One entry goes.
    fn take<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>;

    /// Many come.
    fn put_all(&self, entries: impl Iterator<Item = (K, V)>) -> Self::Left;

    /// Filled.
    fn filled(entries: impl ExactSizeIterator<Item = (K, V)>) -> Self
    where
        Self: Sized,
    {
        let map = Self::with_room(entries.len());
        map.put_all(entries);
        map
    }
}

/// `RwLock<HashMap>`, both of the standard library.
pub struct Locked<K, V, S>(RwLock<HashMap<K, V, S>>);

impl<K: Key, V: Value, S: Hashes> Shared<K, V> for Locked<K, V, S> {
    type Left = Vec<Option<V>>;

    const NAME: &'static str = "RwLock<HashMap>";

    fn with_room(entries: usize) -> Self {
        Locked(RwLock::new(HashMap::with_capacity_and_hasher(
            entries,
            S::default(),
        )))
    }

    #[inline]
    fn see<Q: Eq + Hash + ?Sized, const N: usize>(&self, keys: [&Q; N], see: impl FnMut(&V))
    where
        K: Borrow<Q>,
    {
        let map = self.0.read().expect("not poisoned");
        keys.map(|key| map.get(key).expect("there"))
            .into_iter()
            .for_each(see);
    }

    fn put(&self, key: K, value: V) {
        // What was there is dropped when the lock is free.
        let before = self.0.write().expect("not poisoned").insert(key, value);
        drop(before);
    }

    fn take<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let before = self.0.write().expect("not poisoned").remove(key);
        drop(before);
    }

    fn put_all(&self, entries: impl Iterator<Item = (K, V)>) -> Self::Left {
        let mut map = self.0.write().expect("not poisoned");
        entries.map(|(key, value)| map.insert(key, value)).collect()
    }
}

/// dashmap 6.
pub struct Dash<K, V, S>(dashmap::DashMap<K, V, S>);

impl<K: Key, V: Value, S: Hashes> Shared<K, V> for Dash<K, V, S> {
    type Left = Vec<Option<V>>;

    const NAME: &'static str = "dashmap";

    fn with_room(entries: usize) -> Self {
        Dash(dashmap::DashMap::with_capacity_and_hasher(
            entries,
            S::default(),
        ))
    }

    #[inline]
    fn see<Q: Eq + Hash + ?Sized, const N: usize>(&self, keys: [&Q; N], mut see: impl FnMut(&V))
    where
        K: Borrow<Q>,
    {
        for key in keys {
            see(&self.0.get(key).expect("there"));
        }
    }

    fn put(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    fn take<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove(key);
    }

    fn put_all(&self, entries: impl Iterator<Item = (K, V)>) -> Self::Left {
        entries
            .map(|(key, value)| self.0.insert(key, value))
            .collect()
    }
}

/// papaya.
pub struct Papaya<K, V, S>(pub(super) papaya::HashMap<K, V, S>);

impl<K: Key, V: Value, S: Hashes> Shared<K, V> for Papaya<K, V, S> {
    type Left = ();

    const NAME: &'static str = "papaya";

    fn with_room(entries: usize) -> Self {
        Papaya(papaya::HashMap::with_capacity_and_hasher(
            entries,
            S::default(),
        ))
    }

    #[inline]
    fn see<Q: Eq + Hash + ?Sized, const N: usize>(&self, keys: [&Q; N], see: impl FnMut(&V))
    where
        K: Borrow<Q>,
    {
        let map = self.0.pin();
        keys.map(|key| map.get(key).expect("there"))
            .into_iter()
            .for_each(see);
    }

    fn put(&self, key: K, value: V) {
        self.0.pin().insert(key, value);
    }

    fn take<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.pin().remove(key);
    }

    fn put_all(&self, entries: impl Iterator<Item = (K, V)>) {
        let map = self.0.pin();
        entries.for_each(|(key, value)| {
            map.insert(key, value);
        });
    }
}

/// `HashIndex` of scc, which is the one of its maps that is made for reading.
pub struct Scc<K: Key, V: Value, S: Hashes>(scc::HashIndex<K, V, S>);

impl<K: Key, V: Value, S: Hashes> Shared<K, V> for Scc<K, V, S> {
    type Left = ();

    const NAME: &'static str = "scc HashIndex";

    fn with_room(entries: usize) -> Self {
        Scc(scc::HashIndex::with_capacity_and_hasher(
            entries,
            S::default(),
        ))
    }

    #[inline]
    fn see<Q: Eq + Hash + ?Sized, const N: usize>(&self, keys: [&Q; N], see: impl FnMut(&V))
    where
        K: Borrow<Q>,
    {
        let guard = scc::Guard::new();
        // While an entry is replaced, a reader may meet neither the old nor the new one: it looks again.
        let peek = |key| {
            loop {
                if let Some(value) = self.0.peek(key, &guard) {
                    return value;
                }
            }
        };
        keys.map(peek).into_iter().for_each(see);
    }

    fn put(&self, key: K, value: V) {
        match self.0.entry_sync(key) {
            scc::hash_index::Entry::Occupied(mut there) => there.update(value),
            scc::hash_index::Entry::Vacant(place) => {
                place.insert_entry(value);
            }
        }
    }

    fn take<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove_sync(key);
    }

    fn put_all(&self, entries: impl Iterator<Item = (K, V)>) {
        entries.for_each(|(key, value)| self.put(key, value));
    }
}

/// `ArcSwap<HashMap>`: whoever writes clones the map and swaps it.
pub struct Swapped<K, V, S>(pub(super) ArcSwap<HashMap<K, V, S>>);

impl<K: Key, V: Value, S: Hashes> Swapped<K, V, S> {
    fn change(&self, change: impl FnOnce(&mut HashMap<K, V, S>)) -> Arc<HashMap<K, V, S>> {
        // There is one writer.
        let mut map = (**self.0.load()).clone();
        change(&mut map);
        self.0.swap(Arc::new(map))
    }
}

impl<K: Key, V: Value, S: Hashes> Shared<K, V> for Swapped<K, V, S> {
    type Left = Arc<HashMap<K, V, S>>;

    const NAME: &'static str = "ArcSwap<HashMap>";

    fn with_room(entries: usize) -> Self {
        let map = HashMap::with_capacity_and_hasher(entries, S::default());
        Swapped(ArcSwap::from_pointee(map))
    }

    #[inline]
    fn see<Q: Eq + Hash + ?Sized, const N: usize>(&self, keys: [&Q; N], see: impl FnMut(&V))
    where
        K: Borrow<Q>,
    {
        let map = self.0.load();
        keys.map(|key| map.get(key).expect("there"))
            .into_iter()
            .for_each(see);
    }

    fn put(&self, key: K, value: V) {
        self.change(|map| {
            map.insert(key, value);
        });
    }

    fn take<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.change(|map| {
            map.remove(key);
        });
    }

    fn put_all(&self, entries: impl Iterator<Item = (K, V)>) -> Self::Left {
        self.change(|map| map.extend(entries))
    }
}

/// A plain map that nobody shares: a limit.
pub struct Plain<K, V, S>(HashMap<K, V, S>);

impl<K: Key, V: Value, S: Hashes> Plain<K, V, S> {
    /// Filled.
    pub fn filled(entries: impl ExactSizeIterator<Item = (K, V)>) -> Self {
        let mut map = HashMap::with_capacity_and_hasher(entries.len(), S::default());
        map.extend(entries);
        Plain(map)
    }

    /// Looks at the value of a key.
    ///
    /// # Panics
    /// If it is not there.
    #[inline]
    pub fn see<Q: Eq + Hash + ?Sized>(&self, key: &Q, see: impl FnOnce(&V))
    where
        K: Borrow<Q>,
    {
        see(self.0.get(key).expect("there"));
    }
}

/// The same route by each of the five maps: `each_map!(hasher; with entries; map => route)`. A closure
/// cannot be generic.
macro_rules! each_map {
    ($hasher:ty; $entries:expr; $map:ident => $route:expr) => {
        vec![
            {
                let $map = <Locked<_, _, $hasher> as Shared<_, _>>::filled($entries);
                $route
            },
            {
                let $map = <Dash<_, _, $hasher> as Shared<_, _>>::filled($entries);
                $route
            },
            {
                let $map = <Papaya<_, _, $hasher> as Shared<_, _>>::filled($entries);
                $route
            },
            {
                let $map = <Scc<_, _, $hasher> as Shared<_, _>>::filled($entries);
                $route
            },
            {
                let $map = <Swapped<_, _, $hasher> as Shared<_, _>>::filled($entries);
                $route
            },
        ]
    };
}
pub(super) use each_map;
