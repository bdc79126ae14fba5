//! The core on real threads with small payloads: counts that must come out exactly. Interleavings
//! are the loom models' business; these are the quick checks and the stress.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Bytes that count their frees.
struct Load(Arc<AtomicUsize>);

impl Storage for Load {
    fn dismantle(self, _: &mut dyn FnMut()) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    spine: Spine<u64, Load>,
    freed: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        Rig {
            spine: Spine::new(Arc::new(Reclaimer::closed())),
            freed: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn freed(&self) -> usize {
        self.freed.load(Ordering::Relaxed)
    }

    fn node(&self, tag: u32, meta: u64, bond: Option<Bond>) -> StagedNode<u64, Load> {
        let load = Load(Arc::clone(&self.freed));
        let binds = bond.into_iter().collect();
        StagedNode::new(tag, binds, meta, load, Arc::clone(self.spine.reclaimer()))
    }

    fn put(&self, key: Key, expect: Expect, meta: u64) -> Change<u64, Load> {
        Change::new(key.slot, expect, self.node(key.tag, meta, None))
    }

    fn bury(&self, key: Key) -> Change<u64, Load> {
        let node = StagedNode::tombstone(key.tag, Arc::clone(self.spine.reclaimer()));
        Change::new(key.slot, Expect::Tenant(key.tag), node)
    }

    fn commit(&self, changes: &mut [Change<u64, Load>]) -> Result<u64, Refusal> {
        self.spine
            .view(&self.spine.register())
            .commit(changes, |_| (), |_, _, _| {})
    }

    fn publish(&self, meta: u64) -> Key {
        let key = self.spine.allocate().unwrap();
        self.commit(&mut [self.put(key, Expect::Vacant, meta)])
            .unwrap();
        key
    }

    fn acquire(&self, keys: &[Key]) -> Result<Holds<u64, Load>, Miss> {
        self.spine.view(&self.spine.register()).acquire(keys)
    }
}

/// Its collector would not hold back what this spine frees.
#[test]
#[should_panic(expected = "a guard of another registry")]
fn a_view_takes_no_guard_of_another_registry() {
    let (one, other) = (Rig::new(), Rig::new());
    let _ = one.spine.view(&other.spine.register());
}

/// However many sets there are, and whichever of them is missing.
#[test]
fn an_acquire_that_fails_gives_back_what_it_took() {
    let rig = Rig::new();
    let keys: Vec<Key> = (0..4).map(|meta| rig.publish(meta)).collect();
    let leased = |count: usize| {
        let me = rig.spine.register();
        let view = rig.spine.view(&me);
        let each = keys[..count].iter();
        let each = each.map(|&key| view.resolve(key).unwrap().vitals().state().holds());
        each.collect::<Vec<u64>>()
    };
    for count in 0..keys.len() {
        let mut asked = keys[..count].to_vec();
        let held = rig.acquire(&asked).unwrap();
        assert_eq!((held.len(), leased(count)), (count, vec![1; count]));
        let twice = held.clone();
        assert_eq!((twice.len(), leased(count)), (count, vec![2; count]));
        drop((held, twice));
        asked.push(Key {
            tag: 99,
            ..keys[count]
        });
        let failed = rig.acquire(&asked).err();
        assert_eq!(failed, Some(Miss::Absent { index: count }));
        assert_eq!(leased(count), vec![0; count], "a lease was lost");
    }
}

#[test]
fn a_lease_keeps_its_generation_and_new_ones_get_the_next() {
    let rig = Rig::new();
    let key = rig.publish(1);
    let old = rig.acquire(&[key]).unwrap();
    rig.commit(&mut [rig.put(key, Expect::Tenant(key.tag), 2)])
        .unwrap();
    assert_eq!(*old[0].meta(), 1);
    assert_eq!(*rig.acquire(&[key]).unwrap()[0].meta(), 2);
    assert_eq!(rig.freed(), 0);
    drop(old);
    assert_eq!(rig.freed(), 1);
}

#[test]
fn clones_of_a_dead_generation_count() {
    let rig = Rig::new();
    let key = rig.publish(1);
    let lease = rig.acquire(&[key]).unwrap();
    rig.commit(&mut [rig.bury(key)]).unwrap();
    let second = lease.clone();
    drop(lease);
    assert_eq!(rig.freed(), 0);
    drop(second);
    assert_eq!(rig.freed(), 1);
    assert_eq!(rig.acquire(&[key]).err(), Some(Miss::Absent { index: 0 }));
}

#[test]
fn bytes_come_back_while_a_view_stays_open() {
    let rig = Rig::new();
    let key = rig.publish(1);
    let idle = rig.spine.register();
    let idle = rig.spine.view(&idle);
    rig.commit(&mut [rig.put(key, Expect::Tenant(key.tag), 2)])
        .unwrap();
    assert_eq!(rig.freed(), 1, "bytes must not wait for an idle guard");
    // The idle view still reads the old metadata.
    assert_eq!(
        idle.resolve(key).and_then(|node| node.meta().copied()),
        Some(1)
    );
    assert_eq!(
        idle.acquire_here(1, |_| key).err(),
        Some(Miss::Superseded { index: 0 })
    );
}

#[test]
fn a_refused_commit_touches_nothing_and_returns_its_nodes() {
    let rig = Rig::new();
    let (a, b) = (rig.publish(1), rig.publish(2));
    let wrong = Expect::Exactly {
        tag: b.tag,
        birth: 77,
    };
    let mut changes = [rig.put(a, Expect::Tenant(a.tag), 10), rig.put(b, wrong, 20)];
    let seen = Some(Sight {
        tag: b.tag,
        birth: 2,
        retired: false,
    });
    assert_eq!(
        rig.commit(&mut changes),
        Err(Refusal::Changed { index: 1, seen })
    );
    assert_eq!(*rig.acquire(&[a]).unwrap()[0].meta(), 1);
    let [first, _] = changes;
    assert_eq!(
        first
            .into_node()
            .and_then(StagedNode::dismantle)
            .map(|(meta, _)| meta),
        Some(10)
    );
    let mut twice = [
        rig.put(a, Expect::Tenant(a.tag), 3),
        rig.put(a, Expect::Tenant(a.tag), 4),
    ];
    assert_eq!(rig.commit(&mut twice), Err(Refusal::Twice { index: 1 }));
}

#[test]
fn a_base_outlives_what_stands_on_it() {
    let rig = Rig::new();
    let base = rig.publish(1);
    let bond = Bond {
        base,
        birth: Some(1),
    };
    let adapter = rig.spine.allocate().unwrap();
    let stale = Bond {
        base,
        birth: Some(9),
    };
    let node = rig.node(adapter.tag, 5, Some(stale));
    let refused = rig.commit(&mut [Change::new(adapter.slot, Expect::Vacant, node)]);
    assert_eq!(
        refused,
        Err(Refusal::BaseGone {
            index: 0,
            bond: stale
        })
    );
    let node = rig.node(adapter.tag, 5, Some(bond));
    rig.commit(&mut [Change::new(adapter.slot, Expect::Vacant, node)])
        .unwrap();
    assert_eq!(rig.spine.dependants(base), 1);
    let refused = rig.commit(&mut [rig.bury(base)]);
    assert_eq!(refused, Err(Refusal::Dependants { index: 0, count: 1 }));
    // A new generation of the adapter on the same base changes nothing.
    let node = rig.node(adapter.tag, 6, Some(bond));
    rig.commit(&mut [Change::new(adapter.slot, Expect::Tenant(adapter.tag), node)])
        .unwrap();
    assert_eq!(rig.spine.dependants(base), 1);
    // Both in one commit is fine: nothing is left standing.
    rig.commit(&mut [rig.bury(base), rig.bury(adapter)])
        .unwrap();
    assert_eq!(rig.spine.dependants(base), 0);
    assert_eq!(
        rig.freed(),
        4,
        "the dropped refusal, two adapters, the base"
    );
}

#[test]
fn a_tombstone_is_never_held() {
    let rig = Rig::new();
    let key = rig.publish(1);
    rig.commit(&mut [rig.bury(key)]).unwrap();
    let me = rig.spine.register();
    let mut view = rig.spine.view(&me);
    let absent = Some(Miss::Absent { index: 0 });
    assert_eq!(view.acquire_one(key).err(), absent);
    assert_eq!(view.acquire_one_here(key).err(), absent);
    assert_eq!(view.acquire(&[key]).err(), absent);
    let birth = view.number();
    let load = Load(Arc::clone(&rig.freed));
    // SAFETY: nobody else writes.
    let restored = unsafe { view.restore(key, birth, load, |_, _| unreachable!()) };
    assert!(restored.is_err());
}

#[test]
fn a_reused_slot_has_another_tag() {
    let rig = Rig::new();
    let first = rig.publish(1);
    rig.commit(&mut [rig.bury(first)]).unwrap();
    rig.spine.recycle(first);
    let second = rig.publish(2);
    assert_eq!(second.slot, first.slot);
    assert_ne!(second.tag, first.tag);
    assert_eq!(rig.acquire(&[first]).err(), Some(Miss::Absent { index: 0 }));
    assert_eq!(*rig.acquire(&[second]).unwrap()[0].meta(), 2);
}

#[test]
fn leases_outlive_the_spine() {
    let rig = Rig::new();
    let (a, b) = (rig.publish(1), rig.publish(2));
    let lease = rig.acquire(&[a]).unwrap();
    let freed = Arc::clone(&rig.freed);
    drop(rig);
    let _ = b;
    assert_eq!(
        freed.load(Ordering::Relaxed),
        1,
        "the unleased one goes with the spine"
    );
    assert_eq!(*lease[0].meta(), 1);
    drop(lease);
    assert_eq!(freed.load(Ordering::Relaxed), 2);
}

#[test]
fn two_sets_swapped_together_are_never_seen_mixed() {
    const SWAPS: u64 = 2_000;
    let rig = Rig::new();
    let (a, b) = (rig.publish(0), rig.publish(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let me = rig.spine.register();
                let mut last = 0;
                while last < SWAPS {
                    let holds = rig.spine.view(&me).acquire(&[a, b]).unwrap();
                    let (x, y) = (*holds[0].meta(), *holds[1].meta());
                    assert_eq!(x, y, "one set old, one new");
                    assert!(x >= last, "time went back");
                    last = x;
                }
            });
        }
        for swap in 1..=SWAPS {
            let tenant = |key: Key| Expect::Tenant(key.tag);
            rig.commit(&mut [rig.put(a, tenant(a), swap), rig.put(b, tenant(b), swap)])
                .unwrap();
        }
    });
    assert_eq!(
        rig.freed(),
        2 * SWAPS as usize,
        "all but the two current generations"
    );
    let freed = Arc::clone(&rig.freed);
    drop(rig);
    assert_eq!(freed.load(Ordering::Relaxed), 2 * SWAPS as usize + 2);
}

/// A foreign destructor that panics costs its own errand, not the others.
#[test]
fn the_reclaimer_survives_a_panicking_destructor() {
    struct Grumpy(Arc<AtomicUsize>, bool);
    impl Storage for Grumpy {
        fn dismantle(self, _: &mut dyn FnMut()) {
            self.0.fetch_add(1, Ordering::Relaxed);
            assert!(!self.1, "grumpy on purpose");
        }
    }
    let queue = Arc::new(Reclaimer::open());
    let worker = Arc::clone(&queue);
    let thread =
        crate::sync::thread::spawn_named("reclaimer", move || worker.run(|| false)).unwrap();
    queue.staff(thread.thread().clone());
    let freed = Arc::new(AtomicUsize::new(0));
    let spine: Spine<(), Grumpy> = Spine::new(Arc::clone(&queue));
    let me = spine.register();
    let mut going = Vec::new();
    for round in 0..4 {
        let key = spine.allocate().unwrap();
        let load = Grumpy(Arc::clone(&freed), round == 1);
        let node = StagedNode::new(key.tag, Vec::new(), (), load, Arc::clone(&queue));
        let view = spine.view(&me);
        view.commit(
            &mut [Change::new(key.slot, Expect::Vacant, node)],
            |_| (),
            |_, _, _| {},
        )
        .unwrap();
        let grave = StagedNode::tombstone(key.tag, Arc::clone(&queue));
        view.commit(
            &mut [Change::new(key.slot, Expect::Tenant(key.tag), grave)],
            |_| (),
            |_, node, _| going.push(Arc::clone(node.vitals())),
        )
        .unwrap();
    }
    for vitals in &going {
        assert_eq!(vitals.wait_drained(None), Ok(()));
        assert_eq!(vitals.wait_reclaimed(None), Ok(()));
    }
    assert_eq!((freed.load(Ordering::Relaxed), queue.panics()), (4, 1));
    drop(spine);
    queue.close();
    thread.join().unwrap();
}

#[test]
fn bytes_go_and_come_back_only_while_nobody_has_a_lease() {
    let rig = Rig::new();
    let key = rig.publish(7);
    let me = rig.spine.register();
    let view = rig.spine.view(&me);
    let birth = view.number();
    let state = || view.resolve(key).unwrap().vitals().state();
    // SAFETY: this thread is the only one here.
    let evict = |birth, idle| unsafe { view.evict(key, birth, idle, |_| true) };
    // SAFETY: as above.
    let restore = |birth, load| unsafe { view.restore(key, birth, load, |_, _| ()) };

    let hold = rig.acquire(&[key]).unwrap();
    assert_eq!(evict(birth, false).err(), Some(Stays::Leased));
    drop(hold);
    assert_eq!(
        evict(birth + 1, false).err(),
        Some(Stays::Dead),
        "another one"
    );
    assert_eq!(evict(birth, true).err(), Some(Stays::Visited));
    // SAFETY: as above.
    let shared = unsafe { view.evict(key, birth, false, |_| false) };
    assert_eq!(shared.err(), Some(Stays::Shared));
    assert!(!state().is_absent(), "nobody was told otherwise");
    assert!(state().clear_visited() && !state().clear_visited());
    let Ok(load) = evict(birth, true) else {
        panic!("idle")
    };
    assert!(state().is_absent() && !state().is_dead());
    assert_eq!(evict(birth, false).err(), Some(Stays::Absent));
    let missed = rig.acquire(&[key]).err();
    assert_eq!(missed, Some(Miss::NotResident { index: 0 }));
    let Err(load) = restore(birth + 1, load) else {
        panic!("another one")
    };
    assert!(restore(birth, load).is_ok());
    let another = Load(Arc::clone(&rig.freed));
    assert!(restore(birth, another).is_err(), "there are some");
    assert_eq!(*rig.acquire(&[key]).unwrap()[0].meta(), 7);
    assert_eq!(rig.freed(), 0);

    // Superseded without bytes: there is nothing to wait for.
    let Ok(load) = evict(birth, false) else {
        panic!("unleased")
    };
    drop(load);
    let vitals = Arc::clone(view.resolve(key).unwrap().vitals());
    drop(view);
    rig.commit(&mut [rig.bury(key)]).unwrap();
    assert!(vitals.is_reclaimed() && vitals.state().is_drained());
    assert_eq!(rig.freed(), 0, "they are ours");
}

/// Lets go at its third look, or panics there.
struct Third {
    looks: usize,
    panics: bool,
}

impl Kept for Third {
    fn listen(&mut self, _: &Bell) -> bool {
        false
    }

    fn may_go(&mut self) -> bool {
        self.looks += 1;
        assert!(!self.panics || self.looks < 3, "on purpose");
        self.looks == 3
    }

    fn broke(&mut self) {
        self.panics = false;
    }
}

impl Drop for Third {
    fn drop(&mut self) {
        assert_eq!(self.looks, 3, "let go too early");
        GONE.fetch_add(1, Ordering::Relaxed);
    }
}

static GONE: AtomicUsize = AtomicUsize::new(0);

/// What `keep` does when the system refuses a thread.
#[test]
fn without_a_thread_the_caller_waits_and_a_panic_keeps() {
    let keeper = Keeper::new();
    let third = |panics| Third { looks: 0, panics };
    let gone = || GONE.load(Ordering::Relaxed);
    keeper.wait_here(third(false));
    assert_eq!((gone(), keeper.panics()), (1, 0));
    keeper.wait_here(third(true));
    assert_eq!(gone(), 1, "let go though it never may");
    assert_eq!(keeper.panics(), 1);
}
