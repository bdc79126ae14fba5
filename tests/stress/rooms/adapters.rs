//! Sets that stand on others: adapters, and tensors that are another set's.

use std::sync::Arc;

use weighbridge::source::InMemory;
use weighbridge::{Dtype, SetHandle};

use super::Size;
use super::crew::Crew;
use super::oracle::{LEN, Stamp, acquire, addition, close, registry, source, stamp_in};

/// A base is replaced together with its adapter, which gets bytes of its own or comes along as it is.
pub fn adapters_move_with_their_base(size: Size) {
    let registry = registry();
    let base = registry.publish("base", source(1, 0)).unwrap();
    let adapter = registry.publish("adapter", addition(2, 0, base)).unwrap();
    let change = move |registry: &weighbridge::WeightRegistry, version: u64| {
        let mut both = registry.transaction();
        let staged = both.stage(source(1, version)).unwrap();
        both.replace(base, staged).unwrap();
        if version.is_multiple_of(2) {
            let staged = both.stage(addition(2, version, base)).unwrap();
            both.replace(adapter, staged).unwrap();
        } else {
            both.rebind(adapter, base).unwrap();
        }
        both.commit().unwrap();
    };
    change(&registry, 1);
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || (2..=size.rounds).for_each(|version| change(&writer, version)));
    for way in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            let Some(lease) = acquire(&registry, &[base, adapter], way) else {
                return;
            };
            let [below, above] = [base, adapter].map(|set| lease.set(set).unwrap());
            assert_eq!(below.generation(), above.generation(), "of two commits");
            let version = stamp_in(&lease, base).version;
            assert_eq!(stamp_in(&lease, adapter).version, version & !1, "mixed");
            assert_eq!(above.base(), Some(base));
        });
    }
    crew.work();
    close(&registry);
}

/// A set with a tensor of its own and one that is `owner`'s.
fn user(registry: &weighbridge::WeightRegistry, owner: SetHandle) -> InMemory {
    let w = registry.weight_handle(owner, "w").unwrap();
    let own = Stamp { set: 2, version: 0 };
    InMemory::new()
        .tensor("own", Dtype::U8, [LEN], own.bytes(LEN))
        .and_then(|source| source.alias("head", w))
        .unwrap()
}

/// An alias is at every instant what its target is.
pub fn aliases_follow(size: Size) {
    let registry = registry();
    let owner = registry.publish("owner", source(1, 0)).unwrap();
    let using = registry.publish("user", user(&registry, owner)).unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            writer.replace(owner, source(1, version)).unwrap();
        }
    });
    for way in 0..size.threads {
        let registry = Arc::clone(&registry);
        crew.follow(move || {
            // The user alone keeps the other's bytes, too.
            let sets = [using, owner];
            let sets = &sets[..1 + way % 2];
            let Some(lease) = acquire(&registry, sets, way) else {
                return;
            };
            let tensor = |name| lease.set(using).unwrap().get(name).unwrap().bytes();
            let head = Stamp::of(tensor("head"));
            assert_eq!((head.set, Stamp::of(tensor("own")).set), (1, 2));
            if let Ok(target) = lease.set(owner) {
                let target = target.get("w").unwrap().bytes();
                assert_eq!(Stamp::of(target), head, "of two commits");
            }
        });
    }
    crew.work();
    close(&registry);
}
