//! Memory that is kept for the next load, at the end of the registry. Alone in its process: it looks at where nothing
//! is mapped any more, and any other test might map something there.
#![cfg(target_os = "linux")]

mod support;

use support::{SOON, bytes};
use weighbridge::WeightRegistry;

fn is_mapped(address: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let range = line.split(' ').next().unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        (hex(from)..hex(to)).contains(&address)
    })
}

/// Neither what is in the pool when a registry goes, nor what a lease has that outlives it.
#[test]
fn nothing_is_kept_for_a_registry_that_is_gone() {
    let builder = WeightRegistry::builder().pool_bytes(64 << 20);
    let registry = builder.build().unwrap();
    let publish = |name: &str, len: usize| {
        let set = registry.publish(name, bytes(len, 1)).unwrap();
        let w = registry.weight_handle(set, "w").unwrap();
        let place = registry.acquire(set).unwrap().place(w).unwrap().address();
        (set, place)
    };
    let (set, there) = publish("passing", 32 << 20);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    let (set, leased) = publish("leased", 17 << 20);
    assert!(is_mapped(there) && is_mapped(leased));
    let lease = registry.acquire(set).unwrap();
    drop(registry);
    assert!(!is_mapped(there) && is_mapped(leased));
    drop(lease);
    assert!(!is_mapped(leased));
}
