//! The books of the flat registry: who belongs to which adapter, who is an alias of whom, totals.
//!
//! What lives here: tables that make every question cost its answer, never all weights. What does
//! not: names and bytes, which the registry underneath has.

use std::collections::BTreeMap;
use std::sync::Arc;

// Its hasher is the quicker one: handles are our own numbers.
use hashbrown::HashMap;

use super::address::{FlatHandle, FlatKind};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::layout::Layout;
use crate::names::SetName;
use crate::registry::SetView;
use crate::tensor::WeightKind;

/// Weights of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Total {
    /// How many.
    pub weights: usize,
    /// Their bytes: dtype times shape, without padding, also if they are evicted. What memory they take is in
    /// [`WeightRegistry::ledger`](crate::WeightRegistry::ledger).
    pub bytes: u64,
}

/// All registered weights by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Weights of the base model.
    pub base: Total,
    /// Slices of adapters.
    pub lora: Total,
    /// Aliases. They have no bytes of their own.
    pub aliases: usize,
}

/// What is current of a registered weight, as far as the books tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) generation: Generation,
    /// The weight that it is an alias of.
    target: Option<SetHandle>,
    bytes: u64,
}

impl Now {
    pub(super) fn of(view: &SetView<'_>) -> Self {
        let layout = view.layout();
        // A tie is another tensor's bytes.
        let own = (layout.tensors()).filter(|(_, info)| info.kind() != WeightKind::TiedAlias);
        Now {
            generation: view.generation(),
            target: alias_of(view.base(), layout),
            bytes: own.map(|(_, info)| info.byte_len()).sum(),
        }
    }
}

/// The target of an alias: a set without tensors that stands on another one.
pub(super) fn alias_of(base: Option<SetHandle>, layout: &Layout) -> Option<SetHandle> {
    base.filter(|_| layout.is_empty())
}

/// A registered weight or alias.
#[derive(Debug)]
pub(super) struct Entry {
    name: SetName,
    adapter: Option<Arc<str>>,
    now: Now,
    aliases: Vec<SetHandle>,
}

impl Entry {
    pub(super) fn new(name: SetName, now: Now) -> Self {
        Entry {
            name,
            adapter: None,
            now,
            aliases: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> &SetName {
        &self.name
    }

    pub(super) fn adapter(&self) -> Option<&Arc<str>> {
        self.adapter.as_ref()
    }

    pub(super) fn kind(&self) -> FlatKind {
        match (self.now.target, &self.adapter) {
            (Some(target), _) => FlatKind::TiedAlias {
                target: FlatHandle(target),
            },
            (None, Some(_)) => FlatKind::Lora,
            (None, None) => FlatKind::Base,
        }
    }

    fn bytes(&self) -> u64 {
        #[cfg(all(test, not(weighbridge_loom)))]
        tests::READ.with(|read| read.set(read.get() + 1));
        self.now.bytes
    }

    /// The aliases of this weight.
    pub(super) fn aliases(&self) -> &[SetHandle] {
        &self.aliases
    }
}

#[derive(Debug, Default)]
struct Adapter {
    members: BTreeMap<SetName, SetHandle>,
    /// How many sets are counted: until the books have caught up, one that somebody retired is beside the
    /// one that has its name now.
    sets: usize,
    bytes: u64,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<SetHandle, Entry>,
    adapters: BTreeMap<Arc<str>, Adapter>,
    base: Total,
    lora: Total,
    aliases: Total,
}

impl Index {
    pub(super) fn get(&self, set: SetHandle) -> Option<&Entry> {
        self.entries.get(&set)
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            base: self.base,
            lora: self.lora,
            aliases: self.aliases.weights,
        }
    }

    /// Bytes of an adapter's slices.
    pub(super) fn adapter_bytes(&self, adapter: &str) -> u64 {
        self.adapters
            .get(adapter)
            .map_or(0, |adapter| adapter.bytes)
    }

    /// All adapters that have slices, by name.
    pub(super) fn adapter_names(&self) -> Vec<Arc<str>> {
        self.adapters.keys().cloned().collect()
    }

    /// What is registered for an adapter, by name.
    pub(super) fn members(&self, adapter: &str) -> Vec<SetHandle> {
        self.adapters.get(adapter).map_or_else(Vec::new, |adapter| {
            adapter.members.values().copied().collect()
        })
    }

    /// Every set that is in the books.
    pub(super) fn sets(&self) -> Vec<SetHandle> {
        self.entries.keys().copied().collect()
    }

    /// Books what was just published.
    pub(super) fn insert(&mut self, set: SetHandle, mut entry: Entry, adapter: Option<&str>) {
        entry.adapter = adapter.map(|adapter| {
            let known = self.adapters.get_key_value(adapter);
            known.map_or_else(|| Arc::from(adapter), |(known, _)| Arc::clone(known))
        });
        self.put(set, entry);
    }

    /// Strikes out what was retired.
    pub(super) fn remove(&mut self, set: SetHandle) {
        self.take(set);
    }

    /// Books what a set is now.
    pub(super) fn revise(&mut self, set: SetHandle, now: Now) {
        if self.get(set).is_some_and(|entry| entry.now != now)
            && let Some(entry) = self.take(set)
        {
            self.put(set, Entry { now, ..entry });
        }
    }

    fn put(&mut self, set: SetHandle, entry: Entry) {
        let bytes = entry.bytes();
        if let Some(adapter) = &entry.adapter {
            let of = self.adapters.entry(Arc::clone(adapter)).or_default();
            of.members.insert(entry.name.clone(), set);
            of.sets += 1;
            of.bytes += bytes;
        }
        if let Some(target) = entry.now.target
            && let Some(target) = self.entries.get_mut(&target)
        {
            target.aliases.push(set);
        }
        let total = self.total(entry.kind());
        total.weights += 1;
        // Bytes that are in memory: their sum is less than the address space.
        total.bytes += bytes;
        self.entries.insert(set, entry);
    }

    fn take(&mut self, set: SetHandle) -> Option<Entry> {
        let entry = self.entries.remove(&set)?;
        let bytes = entry.bytes();
        if let Some(name) = &entry.adapter
            && let Some(adapter) = self.adapters.get_mut(name)
        {
            // A name that was taken again is another set's.
            if adapter.members.get(&entry.name) == Some(&set) {
                adapter.members.remove(&entry.name);
            }
            adapter.sets -= 1;
            adapter.bytes -= bytes;
            if adapter.sets == 0 {
                self.adapters.remove(name);
            }
        }
        if let Some(target) = entry.now.target
            && let Some(target) = self.entries.get_mut(&target)
        {
            target.aliases.retain(|&alias| alias != set);
        }
        let total = self.total(entry.kind());
        total.weights -= 1;
        total.bytes -= bytes;
        Some(entry)
    }

    /// The refusal if one of `sets` has an alias that is not among them.
    pub(super) fn aliased(&self, sets: &[SetHandle]) -> Option<Error> {
        sets.iter().find_map(|set| {
            let entry = self.entries.get(set)?;
            let outside = entry.aliases.iter().filter(|alias| !sets.contains(alias));
            let aliases: Vec<SetName> = outside
                .filter_map(|alias| Some(self.entries.get(alias)?.name.clone()))
                .collect();
            (!aliases.is_empty()).then(|| Error::WeightTied {
                weight: entry.name.clone(),
                aliases,
            })
        })
    }

    fn total(&mut self, kind: FlatKind) -> &mut Total {
        match kind {
            FlatKind::Base => &mut self.base,
            FlatKind::Lora => &mut self.lora,
            FlatKind::TiedAlias { .. } => &mut self.aliases,
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How often the bytes of an entry were looked at on this thread.
        pub(super) static READ: Cell<u64> = const { Cell::new(0) };
    }

    fn set(slot: u32) -> SetHandle {
        SetHandle {
            registry: 1,
            slot,
            tag: 0,
        }
    }

    fn now(generation: u64, target: Option<SetHandle>, bytes: u64) -> Now {
        Now {
            generation: Generation(generation),
            target,
            bytes,
        }
    }

    fn weight(name: impl Into<SetName>, bytes: u64) -> Entry {
        Entry::new(name.into(), now(1, None, bytes))
    }

    /// 1,117 adapters of 448 tensors: totals look at no weight, an adapter's questions at its own.
    #[test]
    fn questions_about_half_a_million_weights_look_at_none_of_them() {
        let mut index = Index::default();
        let mut slot = 0;
        for adapter in 0..1_117 {
            let adapter = format!("adapter-{adapter:04}");
            for tensor in 0..448 {
                let name = SetName::from((&*adapter, &*format!("t{tensor:03}")));
                index.insert(set(slot), weight(name, 64), Some(&adapter));
                slot += 1;
            }
        }
        READ.with(|read| read.set(0));
        let totals = index.totals();
        assert_eq!(
            (totals.lora.weights, totals.lora.bytes),
            (500_416, 500_416 * 64)
        );
        assert_eq!(index.adapter_names().len(), 1_117);
        let members = index.members("adapter-0007");
        assert_eq!((members.len(), members.capacity()), (448, 448));
        assert_eq!(index.adapter_bytes("adapter-0007"), 448 * 64);
        assert_eq!(READ.with(Cell::get), 0, "somebody went over the weights");
        // Striking one out looks at that one.
        index.remove(members[0]);
        assert_eq!(READ.with(Cell::get), 1);
        assert_eq!(index.members("adapter-0007").len(), 447);
        assert_eq!(index.totals().lora.bytes, 500_415 * 64);
    }

    #[test]
    fn the_books_end_where_they_began() {
        let mut index = Index::default();
        index.insert(set(1), weight("embed", 100), None);
        let head = Entry::new("head".into(), now(1, Some(set(1)), 0));
        index.insert(set(2), head, None);
        index.insert(set(3), weight("a", 10), Some("pirate"));
        let totals = index.totals();
        assert_eq!((totals.base.weights, totals.base.bytes), (1, 100));
        assert_eq!((totals.lora.weights, totals.aliases), (1, 1));
        assert!(matches!(
            index.aliased(&[set(1)]),
            Some(Error::WeightTied { aliases, .. }) if aliases == [SetName::from("head")]
        ));
        assert!(index.aliased(&[set(1), set(2)]).is_none());
        for slot in [2, 1, 3, 3] {
            index.remove(set(slot));
        }
        assert_eq!(index.totals(), Totals::default());
        assert!(index.adapter_names().is_empty() && index.get(set(1)).is_none());
    }

    /// One that somebody retired is still there when another one takes its name, and goes after it has
    /// changed.
    #[test]
    fn a_name_that_is_taken_again_counts_twice_until_the_first_is_struck_out() {
        let mut index = Index::default();
        index.insert(set(1), weight("a", 5), Some("pirate"));
        index.insert(set(2), weight("a", 4), Some("pirate"));
        assert_eq!(index.members("pirate"), [set(2)]);
        index.revise(set(2), now(2, None, 3));
        index.remove(set(1));
        assert_eq!(index.members("pirate"), [set(2)]);
        assert_eq!(
            (index.adapter_bytes("pirate"), index.totals().lora.bytes),
            (3, 3)
        );
        index.remove(set(2));
        assert!(index.adapter_names().is_empty());
        assert_eq!(index.totals(), Totals::default());
    }

    /// A target that changes keeps its aliases, an alias that is bound anew changes its target.
    #[test]
    fn what_is_revised_keeps_what_hangs_on_it() {
        let mut index = Index::default();
        for (slot, name) in [(1, "one"), (2, "two")] {
            index.insert(set(slot), weight(name, 4), None);
        }
        index.insert(
            set(3),
            Entry::new("tied".into(), now(1, Some(set(1)), 0)),
            None,
        );
        let aliases =
            |index: &Index| [1, 2].map(|slot| index.get(set(slot)).unwrap().aliases().to_vec());
        index.revise(set(1), now(2, None, 7));
        assert_eq!(aliases(&index), [vec![set(3)], vec![]]);
        index.revise(set(3), now(3, Some(set(2)), 0));
        assert_eq!(aliases(&index), [vec![], vec![set(3)]]);
        index.revise(set(3), now(4, None, 2));
        assert_eq!(aliases(&index), [vec![], vec![]]);
        let totals = index.totals();
        assert_eq!(
            (totals.base.weights, totals.base.bytes, totals.aliases),
            (3, 13, 0)
        );
    }
}
