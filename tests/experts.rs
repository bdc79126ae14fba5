//! A mixture of experts, from a file: most of them are read when a router wants them.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use weighbridge::source::{Checkpoint, Streamed};
use weighbridge::{
    Order, PartState, Parts, SlotCopy, Slots, Stream, StreamTally, WeightRegistry, WindowSize,
};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::SOON;
use support::device::until;

const LAYERS: usize = 4;
const EXPERTS: usize = 16;
/// How many experts a token needs of each layer.
const TOP: usize = 2;
const WIDTH: usize = 32;
/// Of one expert: three matrices of f32.
const EXPERT: u64 = 3 * 4 * (WIDTH * WIDTH) as u64;

fn name(layer: usize, expert: usize, matrix: &str) -> String {
    format!("model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight")
}

/// The bytes of a tensor follow from its name.
fn content(name: &str, len: usize) -> Vec<u8> {
    let salt = name.bytes().fold(7u32, |salt, byte| {
        salt.wrapping_mul(31).wrapping_add(byte.into())
    });
    let byte = |at: u32| (at.wrapping_mul(0x9e37_79b9).wrapping_add(salt) >> 13) as u8;
    (0..len as u32).map(byte).collect()
}

/// A checkpoint with the names of Qwen's and DeepSeek's mixtures.
fn write(dir: &Path) {
    let mut tensors = HashMap::new();
    for layer in 0..LAYERS {
        for expert in 0..EXPERTS {
            for matrix in ["down_proj", "gate_proj", "up_proj"] {
                tensors.insert(name(layer, expert, matrix), vec![WIDTH, WIDTH]);
            }
        }
        let router = format!("model.layers.{layer}.mlp.gate.weight");
        tensors.insert(router, vec![EXPERTS, WIDTH]);
    }
    tensors.insert("model.embed_tokens.weight".to_owned(), vec![100, WIDTH]);
    let of = |(name, shape): (String, Vec<usize>)| {
        let bytes = content(&name, 4 * shape.iter().product::<usize>());
        (name, shape, bytes)
    };
    let tensors: Vec<_> = tensors.into_iter().map(of).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// Which experts of each layer each token needs: a few much more often than the others.
fn route(tokens: usize) -> Vec<[[usize; TOP]; LAYERS]> {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as f64 / (1u64 << 53) as f64
    };
    // Which of them those are differs from layer to layer.
    let mut pick = |layer: usize| (EXPERTS as f64 * next().powi(3)) as usize * 5 % EXPERTS + layer;
    let mut both = |layer: usize| {
        let first = pick(layer) % EXPERTS;
        let mut second = first;
        while second == first {
            second = pick(layer) % EXPERTS;
        }
        [first, second]
    };
    let token = |_| std::array::from_fn(&mut both);
    (0..tokens).map(token).collect()
}

/// A stream over the experts, those of `hot` in memory all the time, and the others in a window of so many.
fn streamed(dir: &Path, window: u32, hot: Vec<(usize, usize)>) -> (Arc<WeightRegistry>, Stream) {
    let registry = support::registry();
    let registry = Arc::new(registry);
    let kept = move |part: &str| {
        let is = |(layer, expert)| part == format!("model.layers.{layer}.mlp.experts.{expert}");
        hot.iter().copied().any(is)
    };
    let parts = Parts::experts().keep(kept);
    let source = Streamed::new(
        Checkpoint::open(dir).unwrap(),
        &parts,
        WindowSize::Parts(window),
    );
    let set = registry.publish("mixture", source.unwrap()).unwrap();
    let lease = registry.acquire(set).unwrap();
    let order = Order::unknown().ahead(TOP);
    let stream = registry.stream(&lease, set, order).unwrap();
    (registry, stream)
}

/// The number of a part; `None`: it is in memory all the time.
fn part(stream: &Stream, layer: usize, expert: usize) -> Option<usize> {
    let wanted = format!("model.layers.{layer}.mlp.experts.{expert}");
    (0..stream.len()).find(|part| stream.name(*part) == Some(&wanted))
}

/// Uses one expert: all of its bytes are looked at. The first matrix, for a device.
fn uses(stream: &mut Stream, layer: usize, expert: usize) -> Vec<u8> {
    let matrices = ["down_proj", "gate_proj", "up_proj"].map(|matrix| name(layer, expert, matrix));
    let right = |name: &str, bytes: &[u8]| assert!(bytes == content(name, bytes.len()), "{name}");
    match part(stream, layer, expert) {
        Some(number) => {
            let part = stream.part(number, SOON).unwrap();
            for name in &matrices {
                right(name, part.get(name).unwrap().bytes());
            }
            part.get(&matrices[0]).unwrap().bytes().to_vec()
        }
        None => {
            let set = stream.lease().sets().next().unwrap();
            for name in &matrices {
                right(name, set.get(name).unwrap().bytes());
            }
            set.get(&matrices[0]).unwrap().bytes().to_vec()
        }
    }
}

/// Computes tokens. `hints`: before each layer it is said before which experts the next one needs, and so long is waited.
fn compute(stream: &mut Stream, route: &[[[usize; TOP]; LAYERS]], hints: bool) -> StreamTally {
    let steps = (0..LAYERS).cycle().zip(route.iter().flatten());
    for (layer, experts) in steps {
        if hints {
            let wanted = experts
                .iter()
                .map(|expert| part(stream, layer, *expert).unwrap());
            let wanted: Vec<usize> = wanted.collect();
            stream.expect(Order::list(wanted.iter().copied())).unwrap();
            let there = |stream: &Stream| {
                let window = stream.window().unwrap();
                let here = |part: &usize| matches!(window[*part].state, PartState::Here { .. });
                wanted.iter().all(here)
            };
            until("what is predicted is read", || there(stream));
        }
        for expert in experts {
            uses(stream, layer, *expert);
        }
    }
    stream.tally().unwrap()
}

#[test]
fn experts_come_when_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let route = route(100);
    let asked = (100 * LAYERS * TOP) as u64;
    let quarter = (LAYERS * EXPERTS / 4) as u32;
    let mut often = vec![vec![0; EXPERTS]; LAYERS];
    for (layer, experts) in route.iter().flat_map(|token| token.iter().enumerate()) {
        experts.iter().for_each(|expert| often[layer][*expert] += 1);
    }
    let mut all: Vec<_> = (0..LAYERS)
        .flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert)))
        .collect();
    all.sort_by_key(|(layer, expert)| std::cmp::Reverse(often[*layer][*expert]));

    let (_registry, mut stream) = streamed(dir.path(), quarter, vec![]);
    assert_eq!(stream.len(), LAYERS * EXPERTS);
    let plain = compute(&mut stream, &route, false);
    assert_eq!(plain.hits + plain.misses, asked);
    assert_eq!(plain.read_bytes, plain.reads * EXPERT, "{plain:?}");
    assert_eq!(
        plain.reads, plain.misses,
        "each is read because it was asked for"
    );

    // A router that knows: nobody waits.
    let (_registry, mut stream) = streamed(dir.path(), quarter, vec![]);
    let hinted = compute(&mut stream, &route, true);
    assert_eq!((hinted.hits, hinted.misses), (asked, 0));
    assert!(hinted.reads < asked, "{hinted:?}");

    // The same memory, half of it for the experts that are needed most.
    let hot = all[..quarter as usize / 2].to_vec();
    let (_registry, mut stream) = streamed(dir.path(), quarter - quarter / 2, hot);
    assert_eq!(stream.len(), LAYERS * EXPERTS - quarter as usize / 2);
    let halved = compute(&mut stream, &route, false);
    assert!(halved.reads < plain.reads, "{halved:?} {plain:?}");
    println!("plain {plain:?}\nhinted {hinted:?}\nhot {halved:?}");
}

/// An engine with slots of its own copies exactly what is missing there, and its slots have what they should.
#[test]
fn a_device_with_slots_has_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let (_registry, mut stream) = streamed(dir.path(), 8, vec![]);
    let mut device: Vec<Vec<u8>> = vec![Vec::new(); 10];
    let mut slots = Slots::new(device.len());
    let mut copied = 0;
    for token in route(60) {
        for (layer, experts) in token.iter().enumerate() {
            let numbers = experts.map(|expert| part(&stream, layer, expert).unwrap());
            for SlotCopy { part, slot, evicts } in slots.need(&numbers).unwrap() {
                assert_eq!(evicts.is_none(), device[slot].is_empty());
                let at = numbers.iter().position(|number| *number == part).unwrap();
                device[slot] = uses(&mut stream, layer, experts[at]);
                copied += 1;
            }
            for (number, expert) in numbers.iter().zip(experts) {
                let there = &device[slots.slot(*number).unwrap()];
                assert!(*there == content(&name(layer, *expert, "down_proj"), there.len()));
            }
        }
    }
    let needed = 60 * LAYERS * TOP;
    assert!((1..needed).contains(&copied), "{copied} of {needed}");
}
