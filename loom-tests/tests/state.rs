//! The state word: bytes go at lease zero, exactly once; the node goes when nobody can touch it.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::sync::epoch::Participant;
use weighbridge::__loom::sync::{Condvar, Mutex};
use weighbridge::__loom::{
    Change, Expect, Key, Miss, Node, Reclaimer, Spine, StagedNode, Storage, Vitals,
};
use weighbridge_loom_tests::{Moment, Rig, act, model, play, saw, value};

/// Replaces `key` and returns what waits for the old generation.
fn supersede(rig: &Rig, me: &Participant, key: Key, next: u64) -> Arc<Vitals> {
    let mut vitals = None;
    let view = rig.spine.view(me);
    view.commit(
        &mut [rig.swap(key, next)],
        |_| (),
        |_, node, _| vitals = Some(Arc::clone(node.vitals())),
    )
    .unwrap();
    vitals.unwrap()
}

#[test]
fn acq_sup() {
    model("acq_sup", &["0", "1"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| drop(supersede(rig, me, key, 1))),
                    act(move |rig, me| {
                        // Always published: "absent" would be wrong.
                        saw(rig.read(me, &[key]).unwrap()[0].to_string());
                    }),
                ]
            },
            |rig, _, _| assert_eq!(rig.freed(), 1),
        );
    });
}

#[test]
fn acq_sup2() {
    model("acq_sup2", &["0", "1", "2"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| {
                        drop(supersede(rig, me, key, 1));
                        drop(supersede(rig, me, key, 2));
                    }),
                    act(move |rig, me| {
                        saw(rig.read(me, &[key]).unwrap()[0].to_string());
                    }),
                ]
            },
            |rig, _, _| assert_eq!(rig.freed(), 2),
        );
    });
}

#[test]
fn two_acq_sup() {
    model("two_acq_sup", &["0", "1"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                let reader = move || {
                    act(move |rig: &Rig, me: &Participant| {
                        saw(rig.read(me, &[key]).unwrap()[0].to_string());
                    })
                };
                [
                    reader(),
                    reader(),
                    act(move |rig, me| drop(supersede(rig, me, key, 1))),
                ]
            },
            |rig, _, _| assert_eq!(rig.freed(), 1),
        );
    });
}

/// Leases taken before the threads start, so that the release is all that races.
fn released<const N: usize>(name: &'static str, split: bool, extra: bool) {
    model(name, &["handed over"], move || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let mut threads = Vec::new();
        let mut members = Vec::new();
        for _ in 0..N {
            let hold = rig.hold(&main.0, key).unwrap();
            threads.push(thread::spawn(move || {
                assert_eq!(value(&hold), 0);
                if split {
                    // A clone, after DEAD too, and two drops.
                    let twin = hold.clone();
                    drop(hold);
                    assert_eq!(value(&twin), 0);
                }
            }));
        }
        let acquirer = extra.then(|| {
            let (rig, member) = (Arc::clone(&rig), rig.member());
            thread::spawn(move || {
                let member = member;
                assert!(rig.read(&member.0, &[key]).is_ok());
                drop(rig);
                member
            })
        });
        let vitals = supersede(&rig, &main.0, key, 1);
        for thread in threads {
            thread.join().unwrap();
        }
        members.extend(acquirer.map(|thread| thread.join().unwrap()));
        assert!(vitals.state().is_drained());
        assert_eq!(rig.freed(), 1, "the bytes did not come back at lease zero");
        saw("handed over");
        members.push(main);
        Arc::into_inner(rig).unwrap().finish(members);
    });
}

#[test]
fn last_rel() {
    released::<1>("last_rel", false, false);
}

#[test]
fn two_rel() {
    released::<2>("two_rel", false, false);
}

#[test]
fn undo_last() {
    released::<1>("undo_last", false, true);
}

#[test]
fn clone_two() {
    released::<2>("clone_two", true, false);
}

/// A lease of a dead generation is cloned; the two drops race each other.
#[test]
fn clone_split() {
    model("clone_split", &["here", "there"], || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        drop(supersede(&rig, &main.0, key, 1));
        let twin = hold.clone();
        let thread = thread::spawn(move || assert_eq!(value(&twin), 0));
        assert_eq!(value(&hold), 0);
        drop(hold);
        // Who was last.
        saw(if rig.freed() == 1 { "here" } else { "there" });
        thread.join().unwrap();
        assert_eq!(rig.freed(), 1);
        Arc::into_inner(rig).unwrap().finish(vec![main]);
    });
}

/// Wait for the drain while the last lease goes: no lost wake-up.
#[test]
fn drain() {
    model("drain", &["drained", "leased"], || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let thread = thread::spawn(move || drop(hold));
        let vitals = supersede(&rig, &main.0, key, 1);
        // What the wait will find.
        saw(if rig.freed() == 1 {
            "drained"
        } else {
            "leased"
        });
        vitals.wait_drained(None).unwrap();
        // Frees happen on the spot here, after the announcement.
        vitals.wait_reclaimed(None).unwrap();
        assert_eq!(rig.freed(), 1);
        thread.join().unwrap();
        Arc::into_inner(rig).unwrap().finish(vec![main]);
    });
}

/// Who sees, without waiting, that no lease is left may touch what the lease's holder touched.
fn nobody_holds(name: &'static str, drained: fn(&Vitals) -> bool) {
    model(name, &["drained", "not yet"], move || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let vitals = supersede(&rig, &main.0, key, 1);
        let scratch = Arc::new(Scratch(UnsafeCell::new(0)));
        let theirs = Arc::clone(&scratch);
        let thread = thread::spawn(move || {
            // SAFETY: under the lease.
            theirs.0.with_mut(|at| unsafe { *at = 1 });
            drop(hold);
        });
        if drained(&vitals) {
            // SAFETY: no lease is left; the checker reports it if that is not enough.
            assert_eq!(scratch.0.with(|at| unsafe { *at }), 1);
            saw("drained");
        } else {
            saw("not yet");
        }
        thread.join().unwrap();
        Arc::into_inner(rig).unwrap().finish(vec![main]);
    });
}

#[test]
fn drained_reads() {
    nobody_holds("drained_reads", |vitals| vitals.state().is_drained());
}

/// The same for the count of a generation that takes no more leases.
#[test]
fn drained_count() {
    nobody_holds("drained_count", |vitals| vitals.state().holds() == 0);
}

/// Who sees that its generation is superseded finds the next one.
#[test]
fn superseded_next() {
    model("superseded_next", &["superseded", "not yet"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| drop(supersede(rig, me, key, 1))),
                    act(move |rig, me| {
                        let hold = rig.hold(me, key).unwrap();
                        if hold.node().vitals().state().is_dead() {
                            let next = Rig::peek(&rig.spine.view(me), key);
                            assert_eq!(next, Some(1), "told before it can be found");
                            saw("superseded");
                        } else {
                            saw("not yet");
                        }
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// What a lease's holder uses beside the bytes.
struct Scratch(UnsafeCell<u64>);
// SAFETY: that its accesses are ordered is what the model checks.
unsafe impl Sync for Scratch {}
// SAFETY: as above.
unsafe impl Send for Scratch {}

/// Two waiters, and one whose deadline has passed: it goes, the others hear the call.
#[test]
fn drain_waiters() {
    model("drain_waiters", &["late", "in time"], || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let vitals = supersede(&rig, &main.0, key, 1);
        let other = Arc::clone(&vitals);
        let waiter = thread::spawn(move || other.wait_drained(None).unwrap());
        let releaser = thread::spawn(move || drop(hold));
        let passed = std::time::Instant::now();
        saw(if vitals.wait_drained(Some(passed)).is_ok() {
            "in time"
        } else {
            "late"
        });
        vitals.wait_drained(None).unwrap();
        waiter.join().unwrap();
        releaser.join().unwrap();
        Arc::into_inner(rig).unwrap().finish(vec![main]);
    });
}

/// As `drain`, while somebody tries to lease the set that goes.
#[test]
fn drain_acq() {
    model("drain_acq", &["leased", "absent"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| {
                        let mut vitals = None;
                        rig.spine
                            .view(me)
                            .commit(
                                &mut [rig.bury(key)],
                                |_| (),
                                |_, node, _| {
                                    vitals = Some(Arc::clone(node.vitals()));
                                },
                            )
                            .unwrap();
                        let vitals = vitals.unwrap();
                        vitals.wait_drained(None).unwrap();
                        vitals.wait_reclaimed(None).unwrap();
                        assert_eq!(rig.freed(), 1);
                    }),
                    act(move |rig, me| match rig.lease(me, &[key]) {
                        Ok(holds) => {
                            let twin = holds[0].clone();
                            drop(holds);
                            assert_eq!(value(&twin), 0);
                            saw("leased");
                        }
                        Err(miss) => {
                            assert_eq!(miss, Miss::Absent { index: 0 });
                            saw("absent");
                        }
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// As `drain_acq`, with the last lease of somebody else going at the same time.
#[test]
fn drain_undo() {
    model("drain_undo", &["leased", "absent"], || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let release = thread::spawn(move || drop(hold));
        let acquire = {
            let (rig, member) = (Arc::clone(&rig), rig.member());
            thread::spawn(move || {
                let member = member;
                match rig.hold(&member.0, key) {
                    Ok(hold) => {
                        assert_eq!(value(&hold), 0);
                        saw("leased");
                    }
                    Err(miss) => {
                        assert_eq!(miss, Miss::Absent { index: 0 });
                        saw("absent");
                    }
                }
                drop(rig);
                member
            })
        };
        let mut vitals = None;
        let view = rig.spine.view(&main.0);
        view.commit(
            &mut [rig.bury(key)],
            |_| (),
            |_, node, _| vitals = Some(Arc::clone(node.vitals())),
        )
        .unwrap();
        drop(view);
        let vitals = vitals.unwrap();
        vitals.wait_drained(None).unwrap();
        vitals.wait_reclaimed(None).unwrap();
        assert_eq!(rig.freed(), 1);
        release.join().unwrap();
        let member = acquire.join().unwrap();
        assert!(vitals.state().is_drained(), "leased after it was drained");
        Arc::into_inner(rig).unwrap().finish(vec![main, member]);
    });
}

/// A reader's guard and the last lease end in any order. Whoever is later frees the node, after the other's last
/// look at it.
#[test]
fn guard_and_lease() {
    model("guard_and_lease", &["0", "1"], || {
        let rig = Arc::new(Rig::new());
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let (theirs, member) = (Arc::clone(&rig), rig.member());
        let reader = thread::spawn(move || {
            let member = member;
            let view = theirs.spine.view(&member.0);
            saw(Rig::peek(&view, key).unwrap().to_string());
            drop(view);
            drop(theirs);
            member
        });
        drop(supersede(&rig, &main.0, key, 1));
        assert_eq!(value(&hold), 0);
        drop(hold);
        assert_eq!(rig.freed(), 1);
        let member = reader.join().unwrap();
        Arc::into_inner(rig).unwrap().finish(vec![main, member]);
    });
}

/// A guard is open all the time: the bytes come back, the node waits.
#[test]
fn idle_guard() {
    model("idle_guard", &["drained", "leased"], || {
        let rig = Arc::new(Rig::new());
        let (main, idle) = (rig.member(), rig.member());
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let view = rig.spine.view(&idle.0);
        let thread = thread::spawn(move || drop(hold));
        let vitals = supersede(&rig, &main.0, key, 1);
        // What the wait will find.
        saw(if rig.freed() == 1 {
            "drained"
        } else {
            "leased"
        });
        vitals.wait_reclaimed(None).unwrap();
        thread.join().unwrap();
        assert_eq!(rig.freed(), 1);
        assert_eq!(
            Rig::peek(&view, key),
            Some(0),
            "the view's snapshot must stay"
        );
        drop(view);
        Arc::into_inner(rig).unwrap().finish(vec![main, idle]);
    });
}

/// Two of three sets superseded by two commits while both are acquired.
#[test]
fn two_set_two() {
    model("two_set_two", &["00", "10", "11"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        drop(supersede(rig, me, a, 1));
                        drop(supersede(rig, me, b, 1));
                    }),
                    act(move |rig, me| {
                        let holds = rig.lease(me, &[a, b]).unwrap();
                        let values: Vec<u64> = holds.iter().map(value).collect();
                        assert_ne!(values, [0, 1]);
                        saw(format!("{}{}", values[0], values[1]));
                    }),
                ]
            },
            |rig, _, _| assert_eq!(rig.freed(), 2),
        );
    });
}

/// The registry goes while a lease of its current generation goes.
#[test]
fn regdrop() {
    model("regdrop", &["lease first", "registry first"], || {
        let rig = Rig::new();
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let thread = thread::spawn(move || assert_eq!(value(&hold), 0));
        let tally = rig.sweep(vec![main]);
        saw(if tally.freed() == 1 {
            "lease first"
        } else {
            "registry first"
        });
        thread.join().unwrap();
        tally.settle();
    });
}

/// The same with a lease of an old and one of the current generation.
#[test]
fn regdrop2() {
    model("regdrop2", &["0", "1", "2"], || {
        let rig = Rig::new();
        let main = rig.member();
        let key = rig.publish(&main.0);
        let old = rig.hold(&main.0, key).unwrap();
        drop(supersede(&rig, &main.0, key, 1));
        let new = rig.hold(&main.0, key).unwrap();
        let threads = [
            thread::spawn(move || assert_eq!(value(&old), 0)),
            thread::spawn(move || assert_eq!(value(&new), 1)),
        ];
        let tally = rig.sweep(vec![main]);
        // How many of the leases were gone when the registry was.
        saw(tally.freed().to_string());
        for thread in threads {
            thread.join().unwrap();
        }
        tally.settle();
    });
}

/// The reclaimer's thread, asleep or not, and the last lease: everything is freed, there.
#[test]
fn reclaimer() {
    model("reclaimer", &["back", "not yet"], || {
        let queue = Arc::new(Reclaimer::open());
        let worker = Arc::clone(&queue);
        let worker = thread::spawn(move || worker.run(|| false));
        queue.staff(worker.thread().clone());
        let rig = Arc::new(Rig::with(Arc::clone(&queue)));
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let thread = thread::spawn(move || drop(hold));
        let vitals = supersede(&rig, &main.0, key, 1);
        vitals.wait_drained(None).unwrap();
        // What the other wait will find.
        saw(if rig.freed() == 1 { "back" } else { "not yet" });
        vitals.wait_reclaimed(None).unwrap();
        assert_eq!(rig.freed(), 1);
        thread.join().unwrap();
        let tally = Arc::into_inner(rig).unwrap().sweep(vec![main]);
        queue.close();
        worker.join().unwrap();
        tally.settle();
    });
}

/// Bytes whose free waits until somebody has heard that they are drained.
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Storage for Gate {
    fn dismantle(self, _: &mut dyn FnMut()) {
        let (open, changed) = &*self.0;
        let mut guard = open.lock();
        while !*guard {
            guard = changed.wait_deadline(guard, None).0;
        }
    }
}

/// "Drained" is announced before the bytes are freed, however long that takes.
#[test]
fn drain_before_free() {
    model(
        "drain_before_free",
        &["released first", "retired first"],
        || {
            let queue = Arc::new(Reclaimer::open());
            let worker = Arc::clone(&queue);
            let worker = thread::spawn(move || worker.run(|| false));
            queue.staff(worker.thread().clone());
            let spine: Spine<u64, Gate> = Spine::new(Arc::clone(&queue));
            let me = spine.register();
            let gate = Arc::new((Mutex::new(false), Condvar::default()));
            let key = spine.allocate().unwrap();
            let node = StagedNode::new(
                key.tag,
                Vec::new(),
                0,
                Gate(Arc::clone(&gate)),
                Arc::clone(&queue),
            );
            let mut vitals = None;
            let mut commit = |change| {
                let old = |_, node: &Node<u64, Gate>, _: Option<&Gate>| {
                    vitals = Some(Arc::clone(node.vitals()));
                };
                spine.view(&me).commit(&mut [change], |_| (), old).unwrap();
            };
            commit(Change::new(key.slot, Expect::Vacant, node));
            let lease = spine.view(&me).acquire(&[key]).unwrap();
            let released = Moment::default();
            let release = released.clone();
            let releaser = thread::spawn(move || {
                drop(lease);
                release.happened();
            });
            let grave = StagedNode::tombstone(key.tag, Arc::clone(&queue));
            commit(Change::new(key.slot, Expect::Tenant(key.tag), grave));
            released.saw("released first", "retired first");
            let vitals = vitals.unwrap();
            vitals.wait_drained(None).unwrap();
            *gate.0.lock() = true;
            gate.1.notify_all();
            vitals.wait_reclaimed(None).unwrap();
            releaser.join().unwrap();
            drop((spine, me));
            queue.close();
            worker.join().unwrap();
        },
    );
}

/// The queue is closed while the last lease of a dead generation goes: whoever comes too late frees
/// by itself.
#[test]
fn reclaimer_close() {
    model("reclaimer_close", &["0", "1"], || {
        let queue = Arc::new(Reclaimer::open());
        let worker = Arc::clone(&queue);
        let worker = thread::spawn(move || worker.run(|| false));
        queue.staff(worker.thread().clone());
        let rig = Rig::with(Arc::clone(&queue));
        let main = rig.member();
        let key = rig.publish(&main.0);
        let hold = rig.hold(&main.0, key).unwrap();
        let thread = thread::spawn(move || assert_eq!(value(&hold), 0));
        let tally = rig.sweep(vec![main]);
        queue.close();
        // Whether its bytes were back when the queue was closed.
        saw(tally.freed().to_string());
        worker.join().unwrap();
        thread.join().unwrap();
        tally.settle();
    });
}
