//! What a registry of many adapters knows of each tensor, in bytes of heap.
#![cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]

#[path = "support/counting.rs"]
mod counting;

use counting::live;
use weighbridge::source::InMemory;
use weighbridge::{Dtype, WeightRegistry};

const ADAPTERS: usize = 2_000;
const MODULES: usize = 224;
const TENSORS: usize = 2 * MODULES;
/// For each tensor, with all that is known of its generation and set.
const AT_MOST: f64 = 24.0;

fn base() -> InMemory {
    let name = |module| format!("layers.{module}.weight");
    (0..MODULES).fold(InMemory::new(), |base, module| {
        base.tensor(name(module), Dtype::U8, [1, 1], [0]).unwrap()
    })
}

fn adapter() -> InMemory {
    (0..MODULES).fold(InMemory::new(), |adapter, module| {
        let (a, b) = (([1, 1], [1]), ([1, 1], [2]));
        let module = format!("layers.{module}");
        adapter.lora(module, Dtype::U8, a, b, 1.0).unwrap()
    })
}

/// They were trained alike: one layout, and one table of places.
#[test]
fn a_tensor_of_the_next_adapter_is_a_few_words() {
    let registry = WeightRegistry::builder().build().unwrap();
    let base = registry.publish("base", base()).unwrap();
    let publish = |number: usize| {
        let source = adapter().on(base).declared(format!("{number}"));
        registry
            .publish(format!("adapter-{number}"), source)
            .unwrap()
    };
    let first = publish(0);
    // Arenas that are so small are on the heap, too.
    let known = || live() - registry.ledger().total() as usize;
    let before = known();
    let others: Vec<_> = (1..=ADAPTERS).map(publish).collect();
    let each = (known() - before) as f64 / (ADAPTERS * TENSORS) as f64;
    println!("{each:.1} bytes of heap for each tensor");
    assert!(each <= AT_MOST, "{each:.1} bytes");
    let lease = registry.acquire([first, others[ADAPTERS - 1]]).unwrap();
    assert_eq!(
        lease.sets().map(|set| set.layout().len()).sum::<usize>(),
        2 * TENSORS
    );
}
