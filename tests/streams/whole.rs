//! What is streamed is what it would be if all of it were in memory.

use std::sync::Arc;

use weighbridge::source::{Checkpoint, Source, Streamed};
use weighbridge::{Error, Order, Parts, WeightRegistry, WindowSize};

use super::layers::{Disk, Layers, registry};
use super::support::{SOON, fixture};

fn streams_as_it_is(open: impl Fn() -> Checkpoint, parts: &Parts, window: WindowSize) {
    let registry = registry();
    let plain = registry.publish("plain", open()).unwrap();
    let before = registry.ledger().total();
    let streamed = Streamed::new(open(), parts, window).unwrap();
    let plan = streamed.plan().clone();
    let set = registry.publish("streamed", streamed).unwrap();
    let charged = registry.ledger().total() - before;
    assert_eq!(charged, plan.charged_bytes());
    let parts = plan.parts().unwrap();
    assert_eq!(
        charged,
        parts.resident_bytes() + parts.window_bytes(),
        "to the byte"
    );

    let lease = registry.acquire([plain, set]).unwrap();
    let (whole, ours) = (lease.set(plain).unwrap(), lease.set(set).unwrap());
    assert_eq!(ours.identity(), whole.identity());
    assert_eq!(ours.layout().len(), whole.layout().len());
    let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
    for _ in 0..3 {
        let mut seen = 0;
        for number in 0..stream.len() {
            let part = stream.part(number, SOON).unwrap();
            for weight in part.iter() {
                let weight = weight.unwrap();
                let there = whole.get(weight.name()).unwrap();
                assert_eq!(
                    (weight.dtype(), weight.shape()),
                    (there.dtype(), there.shape())
                );
                assert!(weight.bytes() == there.bytes(), "{}", weight.name());
                assert_eq!(weight.bytes().as_ptr() as usize % 64, 0);
                let refused = ours.get(weight.name()).unwrap_err();
                assert!(
                    matches!(&refused, Error::InPart { part, .. } if part == parts.all()[number].name()),
                    "{refused}"
                );
                assert!(matches!(
                    ours.place(weight.name()),
                    Err(Error::InPart { .. })
                ));
                seen += 1;
            }
        }
        let staying = plan
            .tensors()
            .iter()
            .filter(|tensor| tensor.part().is_none());
        assert_eq!(seen + staying.clone().count(), plan.tensors().len());
        for tensor in staying {
            let (here, there) = (
                ours.get(tensor.name()).unwrap(),
                whole.get(tensor.name()).unwrap(),
            );
            assert!(here.bytes() == there.bytes());
            let part = stream.part(0, SOON).unwrap();
            assert!(part.get(tensor.name()).unwrap().bytes() == there.bytes());
        }
    }
    assert_eq!(registry.ledger().peak, registry.ledger().total());
    drop((stream, lease));
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), before);
}

#[test]
fn what_is_streamed_is_what_is_resident() {
    let rest = Parts::layers().and_the_rest();
    for name in ["tiny-llama", "tiny-llama-sharded"] {
        let open = || Checkpoint::open(fixture(name)).unwrap();
        for window in [1, 2, 3, 9] {
            streams_as_it_is(open, &Parts::layers(), WindowSize::Parts(window));
        }
        streams_as_it_is(open, &rest, WindowSize::Parts(1));
        streams_as_it_is(open, &rest, WindowSize::Within(500_000));
        let declared = || open().declared("rev");
        streams_as_it_is(declared, &Parts::layers(), WindowSize::Parts(2));
    }
}

/// What the ledger is charged is known before anything is allocated, and it does not fit into less.
#[test]
fn a_set_that_is_larger_than_the_limit() {
    let disk = Arc::new(Disk::default());
    let source = Layers::new(40, 1, &disk).streamed(3);
    let charged = source.plan().charged_bytes();
    let limited = |limit| {
        WeightRegistry::builder()
            .limit_bytes(limit)
            .build()
            .unwrap()
    };
    let refused = limited(charged - 1).publish("layers", source).unwrap_err();
    assert!(
        matches!(refused.error(), Error::OverLimit { .. }),
        "{refused}"
    );
    let registry = Arc::new(limited(charged));
    let set = registry
        .publish("layers", Layers::new(40, 1, &disk).streamed(3))
        .unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut stream = registry.stream(&lease, set, Order::forward()).unwrap();
    for layer in 0..40 {
        super::layers::check(&stream.part(layer, SOON).unwrap(), layer, 1);
    }
    assert_eq!(
        (registry.ledger().peak, registry.ledger().total()),
        (charged, charged)
    );
}
