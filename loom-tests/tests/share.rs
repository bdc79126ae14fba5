//! Bytes that several generations have, and generations that have none.
#![cfg(weighbridge_loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::sync::contract;
use weighbridge::__loom::sync::share::Share;
use weighbridge::__loom::{Change, Expect, Miss, Reclaimer, Spine, StagedNode, Storage, Vitals};
use weighbridge_loom_tests::{Send2, act, model, play, saw};

/// std's `Arc` has a twin here; it keeps the contract that the real one is tested against.
#[test]
fn contract_share() {
    model("contract_share", &["done"], || {
        contract::share_answers();
        contract::share_races();
        saw("done");
    });
}

/// Bytes that are overwritten when they are freed: a lease that is not ordered with that is reported.
struct Body {
    value: UnsafeCell<u64>,
    freed: Arc<AtomicUsize>,
}

// SAFETY: read under leases, written by who frees: that these are ordered is what the model checks.
unsafe impl Send for Body {}
// SAFETY: as above.
unsafe impl Sync for Body {}

impl Storage for Body {
    fn dismantle(self, _: &mut dyn FnMut()) {
        // SAFETY: ours alone, or the checker says so.
        self.value.with_mut(|at| unsafe { *at = 0 });
        self.freed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A generation is made current again (a rollback, a rebind) while a request has the first one, and
/// then the set goes: the bytes go once, with the last of them, whoever that is.
#[test]
fn shared_bytes() {
    model("shared_bytes", &["first", "again", "gone"], || {
        let queue = Arc::new(Reclaimer::closed());
        let spine: Arc<Spine<u64, Share<Body>>> = Arc::new(Spine::new(Arc::clone(&queue)));
        let freed = Arc::new(AtomicUsize::new(0));
        let main = Send2(spine.register());
        drop(main.0.pin());
        let member = Send2(spine.register());
        drop(member.0.pin());
        let key = spine.allocate().unwrap();
        let body = Share::new(Body {
            value: UnsafeCell::new(7),
            freed: Arc::clone(&freed),
        });
        let node =
            |number, body| StagedNode::new(key.tag, Vec::new(), number, body, Arc::clone(&queue));
        let first = Change::new(key.slot, Expect::Vacant, node(1, body.clone()));
        let commit = |change| {
            spine
                .view(&main.0)
                .commit(&mut [change], |_| (), |_, _, _| {})
                .unwrap();
            if cfg!(weighbridge_flush) {
                (0..3).for_each(|_| main.0.pin().flush());
            }
        };
        commit(first);
        let request = {
            let spine = Arc::clone(&spine);
            thread::spawn(move || {
                let member = member;
                match spine.view(&member.0).acquire(&[key]) {
                    Ok(holds) => {
                        let body: &Body = holds[0].storage();
                        // SAFETY: we hold a lease.
                        assert_eq!(
                            body.value.with(|at| unsafe { *at }),
                            7,
                            "freed under a lease"
                        );
                        saw(["first", "again"][*holds[0].meta() as usize - 1]);
                    }
                    Err(Miss::Absent { .. }) => saw("gone"),
                    Err(other) => panic!("{other:?}"),
                }
                drop(spine);
                member
            })
        };
        commit(Change::new(
            key.slot,
            Expect::Tenant(key.tag),
            node(2, body),
        ));
        let grave = StagedNode::tombstone(key.tag, Arc::clone(&queue));
        commit(Change::new(key.slot, Expect::Tenant(key.tag), grave));
        let member = request.join().unwrap();
        assert_eq!(freed.load(Ordering::Relaxed), 1, "leaked, or freed twice");
        drop((member, main, Arc::into_inner(spine).expect("joined")));
    });
}

/// A set's bytes go before the next ones come: a request gets the old, the new, or is told that there
/// are none; and who waits for the generation in between is told that it has none to give back.
#[test]
fn vacate() {
    model("vacate", &["old", "none", "new"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| {
                        let mut gone: Vec<Arc<Vitals>> = Vec::new();
                        for change in [rig.vacate(key), rig.swap(key, 1)] {
                            let view = rig.spine.view(me);
                            view.commit(
                                &mut [change],
                                |_| (),
                                |_, node, _| {
                                    gone.push(Arc::clone(node.vitals()));
                                },
                            )
                            .unwrap();
                        }
                        gone[1].wait_drained(None).unwrap();
                        gone[1].wait_reclaimed(None).unwrap();
                    }),
                    act(move |rig, me| match rig.read(me, &[key]) {
                        Ok(values) => saw(["old", "new"][values[0] as usize]),
                        Err(Miss::NotResident { index: 0 }) => saw("none"),
                        Err(other) => panic!("{other:?}"),
                    }),
                ]
            },
            |rig, me, keys| assert_eq!(rig.read(me, keys), Ok(vec![1])),
        );
    });
}
