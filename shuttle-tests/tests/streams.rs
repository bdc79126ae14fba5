//! Layers that come and go under those who use them, while their set is replaced and retired.
#![cfg(weighbridge_shuttle)]

use std::sync::Arc;

use weighbridge::source::{Pieces, ReadPieces, Source, Streamed};
use weighbridge::{
    Dtype, Error, Order, Part, Parts, Plan, SetHandle, WeightRegistry, WindowSize, fence,
};
use weighbridge_shuttle_tests::{LONG, all, empty, ended, explore, saw, start, yield_now};

/// Layers of one tensor each, all of whose bytes are the version and the layer.
struct Layers {
    plan: Plan,
    version: u8,
}

fn byte(version: u8, layer: usize) -> u8 {
    version * 16 + layer as u8
}

impl Layers {
    /// So many, with room for so many.
    fn streamed(version: u8, layers: usize, room: u32) -> Streamed<Self> {
        let tensors = (0..layers).map(|layer| (format!("layers.{layer}.w"), Dtype::U8, vec![4]));
        let plan = Plan::of("layers", tensors).unwrap();
        Streamed::new(
            Layers { plan, version },
            &Parts::layers(),
            WindowSize::Parts(room),
        )
        .unwrap()
    }
}

impl ReadPieces for Layers {
    fn read(&self, tensor: usize, _: u64, bytes: &mut [u8]) -> Result<(), Error> {
        // Where others may come between.
        yield_now();
        bytes.fill(byte(self.version, tensor));
        Ok(())
    }
}

impl Source for Layers {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        unreachable!("it has pieces")
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        Some(Pieces::of(&self.plan, self))
    }

    fn declared(&self) -> Option<&str> {
        Some("whatever its version")
    }
}

fn registry() -> Arc<WeightRegistry> {
    let builder = WeightRegistry::builder().event_capacity(32);
    Arc::new(builder.loaders(1).build().unwrap())
}

/// Of a part whose bytes are one version's of its layer: the version.
fn version(part: &Part<'_>) -> u8 {
    let weight = part.iter().next().expect("a tensor").expect("it is there");
    let bytes = weight.bytes();
    let version = bytes[0] / 16;
    assert_eq!(
        bytes,
        [byte(version, part.index()); 4],
        "another layer's bytes"
    );
    version
}

/// One pass over all layers, by a call that waits or a future; of one version.
fn pass(registry: &WeightRegistry, set: SetHandle, layers: usize, by_future: bool) -> u8 {
    let lease = registry.acquire(set).unwrap();
    let order = Order::ring().ahead(1);
    let mut stream = registry.stream(&lease, set, order).unwrap();
    let mut seen = None;
    for layer in 0..layers {
        let part = match by_future {
            true => ended(stream.part_async(layer)),
            false => stream.part(layer, LONG),
        };
        let now = version(&part.unwrap());
        assert_eq!(*seen.get_or_insert(now), now, "two versions in one pass");
    }
    seen.expect("there are layers")
}

/// Two passes, one of them by futures, while the set is replaced: each is of one version, nobody hangs, and all of it comes back.
#[test]
fn a_pass_is_of_one_version() {
    let outcomes = ["1 and 1", "1 and 2", "2 and 2"];
    explore("a_pass_is_of_one_version", &outcomes, move || {
        let registry = registry();
        let set = registry
            .publish("layers", Layers::streamed(1, 3, 1))
            .unwrap();
        let passes = [false, true]
            .map(|by_future| start(&registry, move |registry| pass(registry, set, 3, by_future)));
        registry.replace(set, Layers::streamed(2, 3, 2)).unwrap();
        let mut seen = all(passes);
        seen.sort_unstable();
        saw(format!("{} and {}", seen[0], seen[1]));
        empty(&registry);
    });
}

/// Streams that are opened and dropped while somebody is called who reads ahead for them: the set goes when they are gone.
#[test]
fn a_stream_that_is_dropped_keeps_nothing() {
    let outcomes = ["read ahead", "not read"];
    explore(
        "a_stream_that_is_dropped_keeps_nothing",
        &outcomes,
        move || {
            let registry = registry();
            let set = registry
                .publish("layers", Layers::streamed(1, 3, 2))
                .unwrap();
            let others = [(); 2].map(|()| {
                start(&registry, move |registry| {
                    let lease = registry.acquire(set).unwrap();
                    let stream = registry
                        .stream(&lease, set, Order::forward().ahead(2))
                        .unwrap();
                    yield_now();
                    stream.tally().unwrap().reads
                })
            });
            let reads: u64 = all(others).into_iter().max().unwrap();
            saw(outcomes[usize::from(reads == 0)]);
            empty(&registry);
        },
    );
}

/// A part behind a fence that another thread signals: its place is free then, and its bytes stay until then.
#[test]
fn a_part_behind_a_fence() {
    let outcomes = ["waited", "had passed"];
    explore("a_part_behind_a_fence", &outcomes, move || {
        let registry = registry();
        let set = registry
            .publish("layers", Layers::streamed(1, 2, 1))
            .unwrap();
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry
            .stream(&lease, set, Order::ring().ahead(1))
            .unwrap();
        drop(lease);
        let (copied, copy) = fence::signal("a copy");
        let part = stream.part(0, LONG).unwrap();
        let device = part.get("layers.0.w").unwrap().bytes().as_ptr() as usize;
        part.release_after(copy);
        let signal = start(&registry, move |_| {
            // SAFETY: the part is kept until the fence has passed, which it has not.
            let there = unsafe { std::slice::from_raw_parts(device as *const u8, 4) };
            assert_eq!(there, [byte(1, 0); 4]);
            copied.set();
        });
        let waits = !registry.fences().is_empty();
        saw(outcomes[usize::from(!waits)]);
        assert_eq!(version(&stream.part(1, LONG).unwrap()), 1);
        signal.join().unwrap();
        drop(stream);
        empty(&registry);
    });
}

/// Room for all: who finds all there reads without the lock, while the last of them lands.
#[test]
fn all_that_there_is() {
    let outcomes = ["counted", "not counted"];
    explore("all_that_there_is", &outcomes, move || {
        let registry = registry();
        let set = registry
            .publish("layers", Layers::streamed(1, 2, 2))
            .unwrap();
        let passes = [false, true]
            .map(|by_future| start(&registry, move |registry| pass(registry, set, 2, by_future)));
        assert_eq!(all(passes), [1, 1]);
        let lease = registry.acquire(set).unwrap();
        let mut stream = registry.stream(&lease, set, Order::ring()).unwrap();
        let before = stream.tally().unwrap();
        assert_eq!(before.reads, 2, "each is read once");
        saw(outcomes[usize::from(before.hits + before.misses < 4)]);
        assert_eq!(version(&stream.part(1, LONG).unwrap()), 1);
        assert_eq!(stream.tally().unwrap(), before, "none is counted any more");
        drop((stream, lease));
        empty(&registry);
    });
}
