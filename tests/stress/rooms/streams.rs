//! Layers that come and go under those who use them.

use std::sync::Arc;
use std::thread;

use weighbridge::source::{Pieces, ReadPieces, Source, Streamed};
use weighbridge::{
    Dtype, Error, Lease, Order, Part, Parts, Plan, SetHandle, WeightRegistry, WindowSize, fence,
};

use super::Size;
use super::block_on::block_on;
use super::crew::Crew;
use super::oracle::{LEN, LONG, Stamp, close, registry};

const LAYERS: usize = 5;

/// Two tensors for each layer, whose stamps are the layer's number and the version, and one that stays.
struct Layers {
    plan: Plan,
    version: u64,
}

impl Layers {
    /// With room for so many layers.
    fn streamed(version: u64, window: u32) -> Streamed<Self> {
        let of = |layer| ["a", "b"].map(|name| format!("layers.{layer}.{name}"));
        let names = (0..LAYERS).flat_map(of).chain(["norm".to_owned()]);
        let tensors = names.map(|name| (name, Dtype::U8, vec![LEN]));
        let plan = Plan::of("layers", tensors).expect("a legal plan");
        let layers = Layers { plan, version };
        Streamed::new(layers, &Parts::layers(), WindowSize::Parts(window)).expect("it fits")
    }
}

impl ReadPieces for Layers {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let stamp = Stamp {
            set: tensor as u64 / 2,
            version: self.version,
        };
        let from = offset as usize;
        for (half, to) in bytes.chunks_mut(LEN / 2).enumerate() {
            let start = from + half * (LEN / 2);
            to.copy_from_slice(&stamp.bytes(LEN)[start..start + to.len()]);
            thread::yield_now();
        }
        Ok(())
    }
}

impl Source for Layers {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        let mut all = self.plan.tensors().iter().enumerate();
        all.try_for_each(|(at, tensor)| self.read(at, 0, &mut arena[tensor.range()]))
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        Some(Pieces::of(&self.plan, self))
    }

    fn declared(&self) -> Option<&str> {
        Some("whatever its version")
    }
}

/// The version of a part, all of whose bytes are that layer's.
fn version(part: &Part<'_>) -> u64 {
    let stamps: Vec<Stamp> = part
        .iter()
        .map(|weight| Stamp::of(weight.expect("it is there").bytes()))
        .collect();
    let [one, other] = stamps[..] else {
        panic!("two tensors of a layer")
    };
    assert_eq!(one, other, "two layers, or two versions, in one part");
    assert_eq!(one.set, part.index() as u64, "another layer's bytes");
    one.version
}

/// One round over the layers, from `turn` on, in one way after the other. All of it is one version's.
fn pass(registry: &WeightRegistry, lease: &Lease, set: SetHandle, turn: usize) {
    let order = match turn % 3 {
        0 => Order::ring().ahead(0),
        1 => Order::ring().ahead(1),
        _ => Order::unknown(),
    };
    let mut stream = registry.stream(lease, set, order).expect("a stream");
    let mut seen = None;
    for step in 0..LAYERS {
        let layer = (turn + step) % LAYERS;
        let part = match (turn + step) % 4 {
            0 => block_on(stream.part_async(layer), LONG).expect("it ends"),
            1 => {
                // Dropped after its first poll.
                let mut soon = Box::pin(stream.part_async(layer));
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                drop(soon.as_mut().poll(&mut context));
                drop(soon);
                stream.part(layer, LONG)
            }
            _ => stream.part(layer, LONG),
        };
        let part = part.expect("it is read");
        let now = version(&part);
        assert_eq!(*seen.get_or_insert(now), now, "two versions in one pass");
        if (turn + step).is_multiple_of(5) {
            let mut looks = 0;
            part.release_after(fence::named("a copy", move || {
                looks += 1;
                looks > 2
            }));
        }
    }
}

/// Room for two of five layers; the set is replaced while it is streamed, by threads at different positions.
pub fn layers_come_and_go(size: Size) {
    streamed(size, 2);
}

/// Room for all of them: until they are there, and then.
pub fn layers_are_all_there(size: Size) {
    streamed(size, 99);
}

fn streamed(size: Size, window: u32) {
    let registry = registry();
    let set = registry
        .publish("layers", Layers::streamed(0, window))
        .unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds / 4 {
            writer
                .replace(set, Layers::streamed(version, window))
                .unwrap();
            thread::yield_now();
        }
    });
    for thread in 0..size.threads {
        let registry = Arc::clone(&registry);
        let mut turn = thread;
        crew.follow(move || {
            turn += 1;
            let lease = registry.acquire(set).expect("it is there");
            // More than once, with what is in memory by then.
            for round in 0..2 {
                pass(&registry, &lease, set, turn + round);
            }
        });
    }
    crew.work();
    close(&registry);
}
