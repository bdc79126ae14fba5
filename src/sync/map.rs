//! The facade over dashmap: a sharded map whose guards never leave it, so that they cannot deadlock.
//!
//! Under the model checker: shards of a lock and a map, which is dashmap's contract. Under the scheduler:
//! shuttle's dashmap.

#[cfg(not(weighbridge_loom))]
mod real {
    use std::hash::Hash;

    #[cfg(weighbridge_shuttle)]
    use shuttle_dashmap as dashmap;

    use dashmap::Entry;

    /// `dashmap::DashMap`, by value and clone only.
    #[derive(Debug)]
    pub struct ShardMap<K: Eq + Hash, V>(dashmap::DashMap<K, V>);

    impl<K: Eq + Hash + Clone, V: Clone> ShardMap<K, V> {
        /// An empty map.
        pub fn new() -> Self {
            ShardMap(dashmap::DashMap::new())
        }

        /// Inserts `value` if nobody is there, else says who is. One step.
        pub fn insert_new(&self, key: K, value: V) -> Result<(), V> {
            match self.0.entry(key) {
                Entry::Vacant(vacant) => {
                    vacant.insert(value);
                    Ok(())
                }
                Entry::Occupied(occupied) => Err(occupied.get().clone()),
            }
        }

        /// Sets the value, whoever was there.
        pub fn set(&self, key: K, value: V) {
            self.0.insert(key, value);
        }

        /// Removes the value if `matches` says so. One step; `matches` must not call the map.
        pub fn remove_if(&self, key: &K, matches: impl FnOnce(&V) -> bool) -> bool {
            self.0.remove_if(key, |_, value| matches(value)).is_some()
        }

        /// How many.
        pub fn len(&self) -> usize {
            self.0.len()
        }
    }
}

#[cfg(weighbridge_loom)]
mod mock {
    use std::collections::BTreeMap;
    use std::hash::Hash;

    use crate::sync::Mutex;

    /// One shard: everything meets.
    #[derive(Debug)]
    pub struct ShardMap<K: Eq + Hash, V>(Mutex<BTreeMap<K, V>>);

    impl<K: Eq + Hash + Ord, V: Clone> ShardMap<K, V> {
        /// An empty map.
        pub fn new() -> Self {
            ShardMap(Mutex::new(BTreeMap::new()))
        }

        /// Inserts `value` if nobody is there, else says who is. One step.
        pub fn insert_new(&self, key: K, value: V) -> Result<(), V> {
            let mut map = self.0.lock();
            match map.get(&key) {
                Some(there) => Err(there.clone()),
                None => {
                    map.insert(key, value);
                    Ok(())
                }
            }
        }

        /// Sets the value, whoever was there.
        pub fn set(&self, key: K, value: V) {
            self.0.lock().insert(key, value);
        }

        /// Removes the value if `matches` says so.
        pub fn remove_if(&self, key: &K, matches: impl FnOnce(&V) -> bool) -> bool {
            let mut map = self.0.lock();
            if map.get(key).is_some_and(matches) {
                map.remove(key).is_some()
            } else {
                false
            }
        }

        /// How many.
        pub fn len(&self) -> usize {
            self.0.lock().len()
        }
    }
}

#[cfg(weighbridge_loom)]
pub use mock::ShardMap;
#[cfg(not(weighbridge_loom))]
pub use real::ShardMap;

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::ShardMap;

    /// Nothing that the map returns borrows it: it would not be `'static` then, and this would not
    /// compile. So no guard leaves it, and whoever calls it holds no lock between two calls.
    #[test]
    fn what_comes_out_is_owned() {
        fn owned<T: 'static>(value: T) -> T {
            value
        }
        let map: ShardMap<u32, u32> = owned(ShardMap::new());
        assert_eq!(owned(map.insert_new(1, 10)), Ok(()));
        assert_eq!(owned(map.insert_new(1, 11)), Err(10));
        let () = map.set(1, 12);
        assert!(!owned(map.remove_if(&1, |&value| value == 10)));
        assert_eq!(owned(map.len()), 1);
        assert!(owned(map.remove_if(&1, |&value| value == 12)));
    }
}
