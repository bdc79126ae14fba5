//! Who only looks: labels, events, the catalog.

use std::sync::Arc;

use weighbridge::{EventKind, Next, WeightRegistry};

use super::Size;
use super::crew::Crew;
use super::oracle::{LONG, close, registry, source, stamp_in};

/// The first labels of many registries, so that the slab grows under them, and who looks at them.
pub fn labels(size: Size) {
    for round in 0..size.rounds.div_ceil(4) {
        let registry = registry();
        let set = registry.publish("s", source(1, round)).unwrap();
        let held = registry.acquire_as("holder", set).unwrap();
        let swap = registry.replace(set, source(1, round + 1)).unwrap();
        let mut crew = Crew::new();
        for thread in 0..size.threads {
            let (registry, held) = (Arc::clone(&registry), held.clone());
            crew.lead(move || {
                // Kept to the end, so that all threads ask for more entries at once.
                let mut twins = Vec::new();
                for turn in 0..20 {
                    let label = format!("{thread}-{turn}-").repeat(3);
                    let lease = registry.acquire_as(&label, set).unwrap();
                    twins.extend([lease.clone(), held.clone()]);
                    assert_eq!(stamp_in(&lease, set).version, round + 1);
                }
            });
        }
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            let whole = |label: &str| {
                let part = label.split_inclusive('-').take(2).collect::<String>();
                label == "holder" || label == part.repeat(3)
            };
            for holder in swap.previous.holders() {
                assert_eq!(holder.label, "holder", "another generation's");
            }
            if let Some(oldest) = registry.stats().oldest_lease {
                assert!(whole(&oldest.label), "torn: {}", oldest.label);
            }
        });
        crew.work();
    }
}

/// Subscribers of a short stream: in order, without a gap that is not told, up to its end.
pub fn events(size: Size) {
    let registry = WeightRegistry::builder().event_capacity(16).build();
    let registry = Arc::new(registry.unwrap());
    let mut crew = Crew::new();
    for writer in 0..2u64 {
        // The last one to go drops the registry, which is the end of the stream.
        let registry = Arc::clone(&registry);
        crew.lead(move || {
            let name = format!("set-{writer}");
            for round in 0..size.rounds {
                let set = registry
                    .publish(name.as_str(), source(writer, round))
                    .unwrap();
                registry.replace(set, source(writer, round + 1)).unwrap();
                registry.retire(set).unwrap();
            }
        });
    }
    for subscriber in 0..size.threads {
        let mut events = registry.events();
        crew.lead(move || {
            // Of the next event, as soon as one was seen.
            let (mut expected, mut commit) = (None, 0);
            loop {
                let next = match subscriber % 2 {
                    0 => events.next_timeout(LONG),
                    _ => events.try_next(),
                };
                let event = match next {
                    Next::Event(event) => event,
                    Next::Missed(events) => {
                        assert_ne!(events, 0);
                        expected = expected.map(|next| next + events);
                        continue;
                    }
                    Next::Nothing => continue,
                    Next::Closed => return,
                };
                assert_eq!(event.sequence, expected.unwrap_or(event.sequence), "a gap");
                expected = Some(event.sequence + 1);
                let (number, handle) = match &event.kind {
                    EventKind::Published { commit, now, .. } => (*commit, now.handle),
                    EventKind::Replaced {
                        commit,
                        now,
                        previous,
                        ..
                    } => {
                        assert_eq!(previous.name, now.name);
                        (*commit, previous.handle)
                    }
                    EventKind::Retired {
                        commit, previous, ..
                    } => (*commit, previous.handle),
                    _ => continue,
                };
                assert!(
                    number.number() > commit,
                    "{commit}, then {number:?} of {handle}"
                );
                commit = number.number();
            }
        });
    }
    drop(registry);
    crew.work();
}

/// Pictures of everything: as of one commit each, never older than the one before.
pub fn catalog(size: Size) {
    let registry = registry();
    let sets = ["a", "b"].map(|name| registry.publish(name, source(1, 0)).unwrap());
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            let mut both = writer.transaction();
            for set in sets {
                let staged = both.stage(source(1, version)).unwrap();
                both.replace(set, staged).unwrap();
            }
            both.commit().unwrap();
            let extra = writer.publish("extra", source(2, version)).unwrap();
            writer.retire(extra).unwrap();
        }
    });
    for _ in 0..size.threads {
        let (registry, mut last) = (Arc::clone(&registry), None);
        crew.follow(move || {
            let picture = registry.catalog();
            assert!(Some(picture.number()) >= last, "a picture went back");
            last = Some(picture.number());
            let both = sets.map(|set| {
                let mut entries = picture.entries().iter();
                entries
                    .find(|entry| entry.handle == set)
                    .unwrap()
                    .generation
            });
            let first = both[0].max(both[1]);
            // The first generations came one by one.
            assert!(both[0] == both[1] || first.number() <= 2, "{both:?}");
            assert!(first <= picture.number());
            for going in registry.retired() {
                assert!(going.bytes() > 0);
            }
        });
    }
    crew.work();
    close(&registry);
}
