//! What happens when the system takes memory back only in part. In a binary of its own: it uses up
//! the process's mappings.
#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use support::mappings::{self, PAGE};
use support::{bytes, registry};

const LEN: usize = 3 << 20;
const SETS: usize = 12;

/// Pages of this process that are in memory. (The file is short: there is no room for a long one.)
fn resident_pages() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn pages_go_back_even_where_the_mapping_cannot() {
    let Some(limit) = mappings::limit() else {
        return;
    };
    let registry = registry();
    let sets: Vec<_> = (0..SETS)
        .map(|set| registry.publish(format!("s{set}"), bytes(LEN, 1)).unwrap())
        .collect();
    let address = |set: usize| {
        let lease = registry.acquire(sets[set]).unwrap();
        let set = lease.sets().next().unwrap();
        let weight = set.iter().next().unwrap().unwrap();
        weight.bytes().as_ptr() as usize
    };
    let all: Vec<usize> = (0..SETS).map(address).collect();
    let neighbours = |at: usize| all.contains(&(at + LEN)) && all.contains(&(at - LEN));
    let Some(middle) = (0..SETS).find(|&set| neighbours(all[set])) else {
        println!("skipped: this kernel did not place mappings side by side");
        return;
    };
    let _used_up = mappings::use_up(limit);
    let before = resident_pages();
    let retirement = registry.retire(sets[middle]).unwrap();
    retirement.reclaimed(Duration::from_secs(60)).unwrap();
    assert_eq!(registry.stats().stranded_bytes, LEN as u64);
    assert_eq!(registry.stats().reclaimer_panics, 0);
    // The kernel counts in batches: not exact, but far from nothing.
    let back = before.saturating_sub(resident_pages());
    assert!(back > LEN / PAGE / 2, "only {back} pages went back");
}
