//! Everything that can be observed, compared after every operation.
//!
//! What lives here: waiting until what was given back is back, and the comparison of catalog, names, books,
//! statistics, leases, retirements, kept generations and events. What does not: answers (`world`).
//!
//! An operation that was refused changes nothing in the model, so this is also the check that it left no
//! trace.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use weighbridge::{Account, Lease, Next, SetHandle};

use super::books::{entry_in_words, event_in_words, snapshot_in_words, sums_in_words};
use super::model::{self, NodeId, Told};
use super::ops::NAMES;
use super::world::World;

/// How long the reclaimer may take, in milliseconds. Less once a case has failed: shrinking waits often
/// for what never comes.
pub static PATIENCE: AtomicU64 = AtomicU64::new(60_000);

impl World<'_> {
    /// What is over by the model is over in the registry; and then everything is the same.
    pub fn look(&mut self) {
        let number = self.registry.scope(|scope| scope.number());
        assert_eq!(number.number(), self.model.commits, "commits");
        self.generations.insert(number.number(), number);
        self.wait();
        self.books();
        self.catalog();
        self.statistics();
        self.sets();
        self.held();
        self.ends();
        self.in_scope();
        self.told();
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_millis(PATIENCE.load(Ordering::Relaxed));
        let left = || deadline.saturating_duration_since(Instant::now());
        for going in &self.going {
            if going
                .nodes
                .iter()
                .all(|&node| self.model.is_reclaimed(node))
            {
                // An error shows below, as what is not back.
                let _ = going.retirement.reclaimed(left());
            }
        }
        let nodes = 0..self.model.nodes.len();
        let reclaimed = nodes.filter(|&node| self.model.is_reclaimed(node)).count() as u64;
        let fences = self
            .model
            .leases
            .values()
            .filter(|lease| lease.fence.is_some())
            .count();
        let total: u64 = self.model.total().iter().sum();
        let held = self.held_up().count();
        // A generation is counted as back an instant before it says so itself.
        let done = || {
            let now = self.registry.stats();
            now.ledger.total() == total
                && now.reclaimed_generations == reclaimed
                && now.retired_generations == held
                && now.pending_fences == fences as u64
        };
        while !done() && !left().is_zero() {
            std::thread::yield_now();
        }
        let now = self.registry.stats();
        assert_eq!(
            now.reclaimed_generations, reclaimed,
            "generations that are back"
        );
        assert_eq!(now.pending_fences, fences as u64, "pending fences");
    }

    /// The generations that are over, and not back.
    fn held_up(&self) -> impl Iterator<Item = NodeId> {
        let nodes = 0..self.model.nodes.len();
        nodes.filter(|&node| self.model.nodes[node].dead && !self.model.is_reclaimed(node))
    }

    fn books(&mut self) {
        let (sums, limit, peak) = (self.model.total(), self.model.limit, self.model.peak);
        let expected = sums_in_words("total", sums, limit, peak);
        assert_eq!(
            snapshot_in_words("total", &self.registry.ledger()),
            expected
        );
        let accounts = self.registry.accounts();
        let accounts: Vec<String> = accounts
            .iter()
            .map(|(account, now)| snapshot_in_words(&account.to_string(), now))
            .collect();
        assert_eq!(accounts, self.model.accounts(), "accounts");
        let back = self.registry.stats().reclaimed_bytes;
        assert_eq!(back, self.model.reclaimed_bytes(), "bytes that came back");
        for namespace in ["", "t", "u"] {
            let now = self.registry.namespace_stats(namespace);
            assert_eq!(
                now.sets,
                self.model.seats_taken(namespace),
                "seats of {namespace:?}"
            );
            assert_eq!(now.limits.sets, self.model.seats.get(namespace).copied());
            let limit = self.model.limits.get(&Account::namespace(namespace));
            assert_eq!(now.limits.bytes, limit.copied());
        }
    }

    fn catalog(&self) {
        let mut current: Vec<(_, NodeId)> = self
            .model
            .sets
            .iter()
            .filter_map(|set| Some((set.name, set.current?)))
            .collect();
        current.sort_unstable();
        let words = |namespace: Option<&str>| -> Vec<String> {
            let some = current
                .iter()
                .filter(|one| namespace.is_none_or(|name| name == one.0.0));
            some.map(|one| self.model.node_in_words(one.1)).collect()
        };
        let catalog = self.registry.catalog();
        let is = |catalog: &weighbridge::Catalog| -> Vec<String> {
            catalog.entries().iter().map(entry_in_words).collect()
        };
        assert_eq!(is(&catalog), words(None), "the catalog");
        assert_eq!(catalog.number().number(), self.model.commits);
        for tenant in super::ops::TENANTS {
            let view = self.registry.namespace(tenant).unwrap();
            assert_eq!(
                is(&view.catalog()),
                words(Some(tenant)),
                "the catalog of {tenant}"
            );
        }
        for name in NAMES {
            let node = current.iter().find(|one| one.0 == name).map(|one| one.1);
            let set = node.map(|node| self.model.sets[self.model.nodes[node].set].handle);
            assert_eq!(self.registry.lookup(name), set, "what {name:?} means");
            let entry = catalog.get(name).map(entry_in_words);
            assert_eq!(entry, node.map(|node| self.model.node_in_words(node)));
        }
    }

    fn statistics(&self) {
        let now = self.registry.stats();
        let named = self.model.sets.iter().filter(|set| set.named).count();
        assert_eq!(
            (now.sets, now.commits),
            (named, self.model.commits),
            "sets, commits"
        );
        let expected = (self.model.loads, self.model.evictions, 0);
        let moved = (now.loads, now.evictions, now.waiting);
        assert_eq!(moved, expected, "loads, evictions for them, who waits");
        let held = self.held_up();
        let mut held: Vec<String> = held.map(|node| self.model.former_in_words(node)).collect();
        let retired = self.registry.retired();
        let mut retired: Vec<String> = retired
            .iter()
            .map(|one| {
                let (name, set, generation) = (one.name(), one.set(), one.generation());
                format!("{name} {set} g{generation} {} B", one.bytes())
            })
            .collect();
        held.sort();
        retired.sort();
        assert_eq!(retired, held, "what is retired and not back");
        assert_eq!(now.retired_generations, held.len());
        let trouble = [
            now.unlabelled,
            now.fence_panics,
            now.reclaimer_panics,
            now.observer_panics,
        ];
        assert_eq!(trouble, [0; 4]);
        let labels = || {
            self.model
                .leases
                .values()
                .filter(|lease| lease.fence.is_none())
        };
        let labels: Vec<&String> = labels().filter_map(|lease| lease.label.as_ref()).collect();
        let oldest = now.oldest_lease.map(|holder| holder.label);
        assert_eq!(oldest.is_some(), !labels.is_empty(), "somebody's label");
        assert!(oldest.is_none_or(|oldest| labels.contains(&&oldest)));
        let mut fences: Vec<String> = Vec::new();
        for lease in self.model.leases.values() {
            let name = lease.fence.iter();
            let each = name.flat_map(|name| lease.nodes.iter().map(move |&node| (name, node)));
            fences.extend(
                each.map(|(name, node)| format!("{name} g{}", self.model.nodes[node].generation)),
            );
        }
        let now = self.registry.fences();
        let mut now: Vec<String> = now
            .iter()
            .map(|one| format!("{} g{}", one.name, one.generation))
            .collect();
        fences.sort();
        now.sort();
        assert_eq!(now, fences, "what waits for fences");
    }

    /// Every set that there ever was.
    fn sets(&mut self) {
        for index in 0..self.model.sets.len() {
            let set = self.model.sets[index].clone();
            let Some(node) = set.current else {
                let gone = self.registry.scope(|scope| scope.get(set.handle).is_err());
                assert!(gone, "{} is gone", set.handle);
                assert!(self.registry.kept(set.handle).unwrap_err().is_not_found());
                continue;
            };
            let (words, holds) = (self.model.node_in_words(node), self.model.holds(node));
            self.registry.scope(|scope| {
                let view = scope.get(set.handle).unwrap();
                assert_eq!(
                    view.generation().number(),
                    self.model.nodes[node].generation
                );
                assert_eq!(view.leases(), holds, "leases of {words}");
                assert_eq!(view.is_resident(), self.model.nodes[node].body.is_some());
                assert_eq!(view.layout().len(), self.model.nodes[node].tensors.len());
            });
            let kept = self.registry.kept(set.handle).unwrap();
            let kept: Vec<_> = kept
                .iter()
                .map(|kept| {
                    (
                        kept.generation.number(),
                        kept.identity.to_string(),
                        kept.bytes,
                    )
                })
                .collect();
            let bytes = |kept: &model::Kept| self.model.bodies[kept.body].bytes;
            let expected: Vec<_> = set
                .kept
                .iter()
                .map(|kept| (kept.generation, kept.identity.clone(), bytes(kept)))
                .collect();
            assert_eq!(kept, expected, "what {words} keeps");
            let pins = self.registry.pinned_by(set.handle).unwrap();
            assert!(
                pins.iter().map(|by| &**by).eq(&set.pins),
                "who pinned {words}"
            );
            let standing = self.model.standing(index).into_iter();
            let standing: Vec<SetHandle> =
                standing.map(|one| self.model.sets[one.0].handle).collect();
            assert_eq!(self.registry.dependants_of(set.handle).unwrap(), standing);
            self.ordinals(index, node);
        }
    }

    fn ordinals(&mut self, set: usize, node: NodeId) {
        let handle = self.model.sets[set].handle;
        for (name, _, _) in self.model.nodes[node].tensors.clone() {
            let weight = self.registry.weight_handle(handle, &name).unwrap();
            let known = &mut self.model.sets[set].ordinals;
            let before = *known.entry(name.clone()).or_insert(weight.ordinal());
            assert_eq!(weight.ordinal(), before, "{name} has another handle");
            let same = known.values().filter(|&&other| other == before).count();
            assert_eq!(same, 1, "two tensors have the handle of {name}");
        }
    }

    fn held(&mut self) {
        let ids: Vec<usize> = self.leases.keys().copied().collect();
        for id in ids {
            let (lease, mirror) = (&self.leases[&id], &self.model.leases[&id]);
            let identities = self.lease(lease, mirror);
            let key = lease.cache_key();
            let first = *self.keys.entry(identities.clone()).or_insert(key);
            assert_eq!(key, first, "one content, two keys");
            let same = self.keys.values().filter(|&&other| other == key).count();
            assert_eq!(same, 1, "two contents, one key: {identities:?}");
        }
        for (staged, mirror) in self.staged.iter().flatten() {
            assert_eq!(
                staged.identity().to_string(),
                mirror.identity,
                "what was staged"
            );
            assert_eq!(staged.bytes(), mirror.content.bytes());
        }
    }

    /// Is it what it was, to the last byte? Returns what its sets are.
    fn lease(&self, lease: &Lease, mirror: &model::Lease) -> Vec<String> {
        assert_eq!(lease.number().number(), mirror.number);
        let nodes: Vec<_> = mirror
            .nodes
            .iter()
            .map(|&node| &self.model.nodes[node])
            .collect();
        assert_eq!(lease.is_superseded(), nodes.iter().any(|node| node.dead));
        assert_eq!(lease.is_revoked(), nodes.iter().any(|node| node.revoked));
        assert_eq!(lease.sets().len(), nodes.len());
        let record = lease.provenance();
        for ((set, node), said) in lease.sets().zip(&nodes).zip(&record.sets) {
            let own = &self.model.sets[node.set];
            assert_eq!((set.handle(), said.handle), (own.handle, own.handle));
            assert_eq!(said.name.to_string(), self.model.name(node.set));
            assert_eq!(
                set.generation().number(),
                node.generation,
                "the leased generation"
            );
            assert_eq!(said.generation.number(), node.generation, "provenance");
            assert_eq!(set.identity().to_string(), node.identity);
            assert_eq!(said.identity.to_string(), node.identity, "provenance");
            let under = said
                .base
                .as_ref()
                .map(|base| (base.handle, base.generation.number()));
            let expected = node.content.base.zip(node.base_generation);
            assert_eq!(under, expected, "provenance: what an adapter stands on");
            for (name, shape, bytes) in &node.tensors {
                let weight = set.get(name).unwrap();
                assert_eq!(
                    (weight.bytes(), weight.shape()),
                    (&bytes[..], &shape[..]),
                    "{name}"
                );
                assert_eq!(weight.bytes().as_ptr().addr() % 64, 0);
                if lease
                    .sets()
                    .filter(|other| other.handle() == own.handle)
                    .count()
                    == 1
                    && let Some(&ordinal) = own.ordinals.get(name)
                    && own.current.is_some()
                {
                    let handle = self.registry.weight_handle(own.handle, name);
                    if let Ok(handle) = handle {
                        assert_eq!(handle.ordinal(), ordinal);
                        assert_eq!(
                            lease.weight(handle).unwrap().bytes(),
                            bytes,
                            "{name} by handle"
                        );
                    }
                }
            }
            let scale = set.adapter().and_then(|adapter| adapter.scale(0));
            let factor = node.content.lora.map(|(_, rank, factor)| (rank, factor));
            assert_eq!(scale.map(|scale| (scale.rank, scale.scaling)), factor);
            assert_eq!(
                set.iter().filter(|one| one.is_ok()).count(),
                node.tensors.len()
            );
        }
        assert!(lease.set(self.stranger).unwrap_err().is_misuse());
        nodes.iter().map(|node| node.identity.clone()).collect()
    }

    /// Whoever waits for something that is over, or is not.
    fn ends(&self) {
        for going in &self.going {
            let (retirement, nodes) = (&going.retirement, &going.nodes);
            let last = &self.model.nodes[*nodes.last().expect("at least one")];
            assert_eq!(retirement.set(), self.model.sets[last.set].handle);
            assert_eq!(retirement.generation().number(), last.generation);
            let words = self.model.former_in_words(nodes[nodes.len() - 1]);
            let holds: u64 = nodes.iter().map(|&node| self.model.holds(node)).sum();
            assert_eq!(retirement.leases(), holds, "leases of {words}");
            assert_eq!(retirement.is_drained(), holds == 0, "is {words} drained?");
            let back = nodes.iter().all(|&node| self.model.is_reclaimed(node));
            if !going.with_kept || !back {
                assert_eq!(retirement.is_reclaimed(), back, "is {words} reclaimed?");
            }
            if !going.with_kept {
                let body = |&node: &NodeId| self.model.nodes[node].body;
                let bytes = nodes
                    .iter()
                    .filter_map(body)
                    .map(|body| self.model.bodies[body].bytes);
                assert_eq!(retirement.bytes(), bytes.sum::<u64>(), "bytes of {words}");
            }
            let mut labels: Vec<String> = Vec::new();
            for lease in self
                .model
                .leases
                .values()
                .filter(|lease| lease.fence.is_none())
            {
                let held = lease
                    .nodes
                    .iter()
                    .filter(|node| nodes.contains(node))
                    .count();
                labels.extend(
                    lease
                        .label
                        .iter()
                        .flat_map(|label| vec![label.clone(); held]),
                );
            }
            let mut now: Vec<String> = retirement
                .holders()
                .into_iter()
                .map(|one| one.label)
                .collect();
            labels.sort();
            now.sort();
            assert_eq!(now, labels, "who holds {words}");
        }
    }

    fn in_scope(&self) {
        let Some((scope, view)) = &self.scope else {
            return;
        };
        assert_eq!(scope.number().number(), view.number);
        for (index, set) in self.model.sets.iter().enumerate() {
            match (scope.get(set.handle), view.node(index)) {
                (Ok(seen), Some(node)) => {
                    let node = &self.model.nodes[node];
                    assert_eq!(
                        seen.generation().number(),
                        node.generation,
                        "through the scope"
                    );
                    assert_eq!(seen.identity().to_string(), node.identity);
                }
                (seen, node) => assert_eq!(seen.is_ok(), node.is_some(), "through the scope"),
            }
        }
    }

    /// Exactly this was told, in this order; of bytes that are back, in any order after it.
    fn told(&mut self) {
        let mut told = Vec::new();
        let mut events = std::mem::take(&mut self.early);
        while let Next::Event(event) = self.events.try_next() {
            events.push(event);
        }
        for event in events {
            assert_eq!(event.sequence, self.sequence, "a place was left out");
            self.sequence += 1;
            let (kind, reason) = event_in_words(&event);
            assert!(reason.is_none() || reason == self.refused, "{reason:?}");
            told.push(kind);
        }
        let mut expected = std::mem::take(&mut self.model.told);
        for node in 0..self.model.nodes.len() {
            if self.model.is_reclaimed(node) && !self.model.nodes[node].told_reclaimed {
                self.model.nodes[node].told_reclaimed = true;
                expected.push(Told::Reclaimed(self.model.former_in_words(node)));
            }
        }
        for kind in &told {
            match kind {
                Told::Commit(text) if !text.contains(" published ") => self.told[0] += 1,
                Told::Reclaimed(_) => self.told[1] += 1,
                _ => {}
            }
        }
        let split = |all: Vec<Told>| -> (Vec<Told>, Vec<Told>) {
            let (mut back, rest): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|one| matches!(one, Told::Reclaimed(_)));
            back.sort();
            (rest, back)
        };
        assert_eq!(split(told), split(expected), "events");
        self.refused = None;
    }
}
