//! Layers that come and go, in a registry of their own: a lease of a streamed set does not have all of its bytes.
//!
//! What lives here: the set, streaming it, changing it, letting all of it go. What does not: what its bytes are (`pattern`).

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use weighbridge::source::{Pieces, ReadPieces, Source, Streamed};
use weighbridge::{Dtype, Error, Order, Part, Parts, Plan, WindowSize, fence};

use crate::pattern::Body;
use crate::roles;
use crate::worker::{Done, Worker};
use crate::world::World;

const NAME: &str = "streamed";
const LAYERS: usize = 7;
/// Of each layer.
const TENSORS: usize = 2;
/// As long as somebody waits for a part whose place others have.
const PATIENCE: Duration = Duration::from_millis(50);
const SOON: Duration = Duration::from_secs(20);

/// The number of a tensor of this name.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix('t')?.parse().ok()
}

/// A set that is read by pieces.
struct Layers {
    body: Body,
    plan: Plan,
    declared: Option<String>,
}

impl ReadPieces for Layers {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let tensor = &self.plan.tensors()[tensor];
        let number = number_of(tensor.name()).unwrap_or(u32::MAX);
        let all = self.body.bytes(10 + number, tensor.range().len());
        bytes.copy_from_slice(&all[offset as usize..][..bytes.len()]);
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
        self.declared.as_deref()
    }
}

/// Another version, in layers of different lengths, with room for some of them or for all.
fn version(worker: &mut Worker) -> Result<Streamed<Layers>, Error> {
    let body = worker.world.body(roles::STREAMED);
    let random = &mut worker.random;
    let longest = if random.once_in(3) { 6_000 } else { 300 };
    let tensors = (0..LAYERS * TENSORS).map(|number| {
        let len = random.of_range(32..longest);
        (format!("t{number}"), Dtype::U8, vec![len])
    });
    let plan = Plan::of("layers", tensors)?;
    let layer = |name: &str| {
        let number = number_of(name)?;
        Some(format!("layer.{}", number as usize / TENSORS))
    };
    let window = WindowSize::Parts(random.of_range(1..LAYERS + 1) as u32);
    let declared = random.once_in(2).then(|| format!("step {}", body.uid));
    let layers = Layers {
        body,
        plan,
        declared,
    };
    Streamed::new(layers, &Parts::by(layer), window)
}

/// Publishes, replaces, retires or evicts.
pub fn change(worker: &mut Worker) -> Done {
    let registry = worker.world.streamed.clone();
    let Some(set) = registry.lookup(NAME) else {
        registry.publish(NAME, version(worker)?)?;
        return Ok(());
    };
    match worker.random.below(8) {
        0 => drop(registry.retire(set)?),
        1 | 2 => drop(registry.evict(set)?),
        3 => drop(registry.load(set)?),
        _ => drop(registry.replace(set, version(worker)?)?),
    }
    Ok(())
}

/// Whose bytes a part has: all of them one body's, of that layer.
fn body_of(part: &Part<'_>) -> Result<Body, String> {
    let mut body = None;
    for weight in part.iter() {
        let weight = weight.map_err(|error| error.to_string())?;
        let number: Option<u32> = weight
            .name()
            .strip_prefix('t')
            .and_then(|at| at.parse().ok());
        let number = number.ok_or("a name that nobody gave")?;
        if number as usize / TENSORS != part.index() {
            return Err(format!("{} in layer {}", weight.name(), part.index()));
        }
        let now = Body::of(weight.bytes(), 10 + number)?;
        if *body.get_or_insert(now) != now {
            return Err("two versions in one part".to_owned());
        }
    }
    body.ok_or_else(|| "an empty part".to_owned())
}

/// Some steps of a stream, in its order or not.
pub fn pass(worker: &mut Worker) -> Done {
    let world = worker.world.clone();
    let registry = world.streamed.clone();
    let Some(set) = registry.lookup(NAME) else {
        return Ok(());
    };
    let lease = registry.acquire_or_load(set, PATIENCE)?;
    let random = &mut worker.random;
    let order = match random.below(4) {
        0 => Order::forward(),
        1 => Order::unknown(),
        _ => Order::ring(),
    };
    let order = order.ahead(random.below(4));
    let mut stream = registry.stream(&lease, set, order)?;
    drop(lease);
    let (mut seen, mut next) = (None, random.below(LAYERS));
    for _ in 0..random.of_range(1..2 * LAYERS) {
        let part = match random.below(6) {
            0 => {
                let mut soon = pin!(stream.part_async(next));
                let mut context = Context::from_waker(Waker::noop());
                match soon.as_mut().poll(&mut context) {
                    Poll::Ready(part) => part?,
                    // Dropped, whatever it has begun.
                    Poll::Pending => continue,
                }
            }
            _ => stream.part(next, PATIENCE)?,
        };
        match body_of(&part) {
            Ok(body) => world.demand(*seen.get_or_insert(body) == body, || {
                "two versions in one pass".to_owned()
            }),
            Err(wrong) => world.fail(format!("a part of a stream: {wrong}")),
        }
        if random.once_in(10) {
            let mut looks = 0;
            part.release_after(fence::named("a copy", move || {
                looks += 1;
                looks > 2
            }));
        }
        next = match random.once_in(5) {
            true => random.below(LAYERS),
            false => (next + 1) % LAYERS,
        };
    }
    Ok(())
}

/// Nobody works: all of it goes, and nothing is left.
pub fn clear(world: &World) {
    let registry = &world.streamed;
    if let Some(set) = registry.lookup(NAME)
        && let Err(error) = registry.retire(set)
    {
        world.fail(format!("{NAME}: {error}"));
    }
    for going in registry.retired() {
        if let Err(error) = going.reclaimed(SOON) {
            world.fail(format!("all streams have ended, and {error}"));
        }
    }
    let stats = registry.stats();
    world.demand((stats.sets, stats.ledger.total()) == (0, 0), || {
        format!("all streams have ended, and there is {stats:?}")
    });
}
