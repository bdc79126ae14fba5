//! The books of the flat registry: who belongs to which adapter, who is an alias of whom, totals.
//!
//! What lives here: tables that make every question cost its answer, never all weights. What does
//! not: names and bytes, which the registry underneath has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::address::{FlatHandle, FlatKind};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::layout::Layout;
use crate::names::SetName;
use crate::plan::PlannedTensor;

/// Weights of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Total {
    /// How many.
    pub weights: usize,
    /// Their bytes: dtype times shape, without padding. What memory they take is in
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

/// The target of an alias: a set without tensors that stands on another one.
pub(super) fn alias_of(base: Option<SetHandle>, layout: &Layout) -> Option<SetHandle> {
    base.filter(|_| layout.is_empty())
}

/// A registered weight or alias.
#[derive(Debug)]
pub(super) struct Entry {
    name: SetName,
    adapter: Option<Arc<str>>,
    target: Option<SetHandle>,
    aliases: Vec<SetHandle>,
    bytes: u64,
}

impl Entry {
    pub(super) fn new(name: SetName, target: Option<SetHandle>, tensors: &[PlannedTensor]) -> Self {
        let bytes = tensors.iter().map(PlannedTensor::byte_len).sum();
        Entry {
            name,
            adapter: None,
            target,
            aliases: Vec::new(),
            bytes,
        }
    }

    pub(super) fn name(&self) -> &SetName {
        &self.name
    }

    pub(super) fn adapter(&self) -> Option<&Arc<str>> {
        self.adapter.as_ref()
    }

    pub(super) fn kind(&self) -> FlatKind {
        match (self.target, &self.adapter) {
            (Some(target), _) => FlatKind::TiedAlias {
                target: FlatHandle(target),
            },
            (None, Some(_)) => FlatKind::Lora,
            (None, None) => FlatKind::Base,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        #[cfg(all(test, not(weighbridge_loom)))]
        tests::READ.with(|read| read.set(read.get() + 1));
        self.bytes
    }

    /// The aliases of this weight.
    pub(super) fn aliases(&self) -> &[SetHandle] {
        &self.aliases
    }
}

#[derive(Debug, Default)]
struct Adapter {
    members: BTreeMap<SetName, SetHandle>,
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

    /// Books what was just published.
    pub(super) fn insert(&mut self, set: SetHandle, mut entry: Entry, adapter: Option<&str>) {
        if let Some(adapter) = adapter {
            let known = self.adapters.get_key_value(adapter);
            let adapter = known.map_or_else(|| Arc::from(adapter), |(known, _)| Arc::clone(known));
            let of = self.adapters.entry(Arc::clone(&adapter)).or_default();
            of.members.insert(entry.name.clone(), set);
            of.bytes += entry.bytes();
            entry.adapter = Some(adapter);
        }
        if let Some(target) = entry.target
            && let Some(target) = self.entries.get_mut(&target)
        {
            target.aliases.push(set);
        }
        let total = self.total(entry.kind());
        total.weights += 1;
        // Bytes that are in memory: their sum is less than the address space.
        total.bytes += entry.bytes();
        self.entries.insert(set, entry);
    }

    /// Strikes out what was just retired.
    pub(super) fn remove(&mut self, set: SetHandle) {
        let Some(entry) = self.entries.remove(&set) else {
            return;
        };
        let bytes = entry.bytes();
        if let Some(name) = &entry.adapter
            && let Some(adapter) = self.adapters.get_mut(name)
        {
            adapter.members.remove(&entry.name);
            adapter.bytes -= bytes;
            if adapter.members.is_empty() {
                self.adapters.remove(name);
            }
        }
        if let Some(target) = entry.target
            && let Some(target) = self.entries.get_mut(&target)
        {
            target.aliases.retain(|&alias| alias != set);
        }
        let total = self.total(entry.kind());
        total.weights -= 1;
        total.bytes -= bytes;
    }

    /// The refusal if one of `sets` has an alias that is not among them.
    pub(super) fn aliased(&self, sets: &[SetHandle]) -> Option<Error> {
        sets.iter().find_map(|set| {
            let entry = self.entries.get(set)?;
            let outside = entry.aliases.iter().filter(|alias| !sets.contains(alias));
            let aliases: Vec<SetName> = outside
                .filter_map(|alias| Some(self.entries.get(alias)?.name.clone()))
                .collect();
            (!aliases.is_empty()).then(|| Error::AliasedBy {
                set: entry.name.clone(),
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
    use crate::Dtype;

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

    fn tensor(bytes: u64) -> PlannedTensor {
        PlannedTensor::new("weight", Dtype::U8.into(), vec![bytes as usize], bytes)
    }

    fn weight(name: &str, bytes: u64) -> Entry {
        Entry::new(SetName::from(name), None, &[tensor(bytes)])
    }

    /// 1,117 adapters of 448 tensors: totals look at no weight, an adapter's questions at its own.
    #[test]
    fn questions_about_half_a_million_weights_look_at_none_of_them() {
        let mut index = Index::default();
        let tensors = [tensor(64)];
        let mut slot = 0;
        for adapter in 0..1_117 {
            let adapter = format!("adapter-{adapter:04}");
            for tensor in 0..448 {
                let name = SetName::from((&*adapter, &*format!("t{tensor:03}")));
                index.insert(set(slot), Entry::new(name, None, &tensors), Some(&adapter));
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
        let head = Entry::new("head".into(), Some(set(1)), &[]);
        index.insert(set(2), head, None);
        index.insert(set(3), weight("a", 10), Some("pirate"));
        let totals = index.totals();
        assert_eq!((totals.base.weights, totals.base.bytes), (1, 100));
        assert_eq!((totals.lora.weights, totals.aliases), (1, 1));
        assert!(matches!(
            index.aliased(&[set(1)]),
            Some(Error::AliasedBy { aliases, .. }) if aliases == [SetName::from("head")]
        ));
        assert!(index.aliased(&[set(1), set(2)]).is_none());
        for slot in [2, 1, 3, 3] {
            index.remove(set(slot));
        }
        assert_eq!(index.totals(), Totals::default());
        assert!(index.adapter_names().is_empty() && index.get(set(1)).is_none());
    }
}
