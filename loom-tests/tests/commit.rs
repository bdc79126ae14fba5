//! The commit protocol: any number of sets change at one instant, and readers see one instant.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use weighbridge::__loom::sync::epoch::Participant;
use weighbridge::__loom::{Expect, Key, Miss, Refusal};
use weighbridge_loom_tests::{Moment, Rig, act, model, old_or_new, play, saw};

#[test]
fn txn2_acq() {
    model("txn2_acq", &["old", "new"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| old_or_new(&rig.read(me, &[a, b]).unwrap())),
                ]
            },
            |rig, me, keys| assert_eq!(rig.read(me, keys), Ok(vec![1, 1])),
        );
    });
}

#[test]
fn txn2_acq_rev() {
    model("txn2_acq_rev", &["old", "new"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| old_or_new(&rig.read(me, &[b, a]).unwrap())),
                ]
            },
            |_, _, _| {},
        );
    });
}

#[test]
fn txn2_get() {
    model("txn2_get", &["old", "new"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| {
                        let view = rig.spine.view(me);
                        let get = |key| Rig::peek(&view, key).unwrap();
                        old_or_new(&[get(b), get(a), get(b)]);
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// Time does not go back between two looks of one thread.
#[test]
fn txn2_after() {
    model("txn2_after", &["old old", "old new", "new new"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| {
                        let first = rig.read(me, &[a]).unwrap()[0];
                        let second = Rig::peek(&rig.spine.view(me), b).unwrap();
                        assert!(second >= first, "time went back");
                        let name = |value| if value == 0 { "old" } else { "new" };
                        saw(format!("{} {}", name(first), name(second)));
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// Two compare-and-swap transactions over the same sets: exactly one wins, the other leaves no trace.
#[test]
fn txn_txn_cas() {
    model("txn_txn_cas", &["first", "second"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [1u64, 2].map(|value| {
                    act(move |rig: &Rig, me: &Participant| {
                        let exactly = |key: Key, birth| Expect::Exactly {
                            tag: key.tag,
                            birth,
                        };
                        let mut changes = [
                            rig.put(a, exactly(a, 1), value),
                            rig.put(b, exactly(b, 2), value),
                        ];
                        match rig.commit(me, &mut changes) {
                            Ok(number) => assert_eq!(number, 3),
                            Err(refusal) => {
                                assert!(matches!(refusal, Refusal::Changed { index: 0, .. }));
                                assert!(changes.into_iter().all(|c| c.into_node().is_some()));
                            }
                        }
                    })
                })
            },
            |rig, me, keys| {
                let values = rig.read(me, keys).unwrap();
                assert_eq!(values[0], values[1]);
                saw(if values[0] == 1 { "first" } else { "second" });
            },
        );
    });
}

/// Two transactions without expectations: both go through, in one order for both sets.
#[test]
fn txn_txn_any() {
    model("txn_txn_any", &["1", "2"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(b, 2), rig.swap(a, 2)])
                            .unwrap();
                    }),
                ]
            },
            |rig, me, keys| {
                let values = rig.read(me, keys).unwrap();
                assert_eq!(values[0], values[1]);
                saw(values[0].to_string());
            },
        );
    });
}

/// Two sets retired at once, and a wait for both: drained is final for both.
#[test]
fn retire_both_drain() {
    model("retire_both_drain", &["both", "none"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        let mut ends = Vec::new();
                        let view = rig.spine.view(me);
                        view.commit(
                            &mut [rig.bury(a), rig.bury(b)],
                            |_| (),
                            |_, node, _| ends.push(Arc::clone(node.vitals())),
                        )
                        .unwrap();
                        drop(view);
                        for vitals in &ends {
                            vitals.wait_drained(None).unwrap();
                        }
                        assert_eq!(ends.len(), 2);
                        assert!(ends.iter().all(|vitals| vitals.state().is_drained()));
                    }),
                    act(move |rig, me| match rig.lease(me, &[a, b]) {
                        Ok(_) => saw("both"),
                        Err(miss) => {
                            assert_eq!(miss, Miss::Absent { index: 0 }, "one of two retired");
                            saw("none");
                        }
                    }),
                ]
            },
            |rig, _, _| assert_eq!(rig.freed(), 2),
        );
    });
}

#[test]
fn txn_retire_acq() {
    model("txn_retire_acq", &["both", "none"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.bury(a), rig.bury(b)]).unwrap();
                    }),
                    act(move |rig, me| match rig.read(me, &[a, b]) {
                        Ok(values) => {
                            assert_eq!(values, [0, 0]);
                            saw("both");
                        }
                        Err(miss) => {
                            assert_eq!(miss, Miss::Absent { index: 0 }, "one of two retired");
                            saw("none");
                        }
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// A replace that races a retire never brings the set back.
#[test]
fn txn_vs_retire() {
    model(
        "txn_vs_retire",
        &["replaced first", "retired first"],
        || {
            play(
                2,
                |_, keys| {
                    let (a, b) = (keys[0], keys[1]);
                    [
                        act(move |rig, me| {
                            let done = rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)]);
                            saw(if done.is_ok() {
                                "replaced first"
                            } else {
                                "retired first"
                            });
                        }),
                        act(move |rig, me| {
                            rig.commit(me, &mut [rig.bury(a)]).unwrap();
                        }),
                    ]
                },
                |rig, me, keys| {
                    assert_eq!(rig.read(me, &keys[..1]), Err(Miss::Absent { index: 0 }));
                },
            );
        },
    );
}

/// Successive transactions: never the first of one with the second of another.
#[test]
fn three_two() {
    model("three_two", &["0", "1", "2"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        for value in 1..=2 {
                            rig.commit(me, &mut [rig.swap(a, value), rig.swap(b, value)])
                                .unwrap();
                        }
                    }),
                    act(move |rig, me| {
                        let values = rig.read(me, &[a, b]).unwrap();
                        assert_eq!(values[0], values[1]);
                        saw(values[0].to_string());
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// Single commits in order: the later one is never seen without the earlier one.
#[test]
fn two_single() {
    model("two_single", &["00", "10", "11"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1)]).unwrap();
                        rig.commit(me, &mut [rig.swap(b, 1)]).unwrap();
                    }),
                    act(move |rig, me| {
                        let values = rig.read(me, &[a, b]).unwrap();
                        assert_ne!(values, [0, 1], "the later commit without the earlier");
                        saw(format!("{}{}", values[0], values[1]));
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// Three sets in one transaction, two of them read: the middle one is not what orders them.
#[test]
fn three_sub() {
    model("three_sub", &["old", "new"], || {
        play(
            3,
            |_, keys| {
                let (a, b, c) = (keys[0], keys[1], keys[2]);
                [
                    act(move |rig, me| {
                        let mut changes = [rig.swap(a, 1), rig.swap(b, 1), rig.swap(c, 1)];
                        rig.commit(me, &mut changes).unwrap();
                    }),
                    act(move |rig, me| old_or_new(&rig.read(me, &[c, a]).unwrap())),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// A transaction that is refused is never seen, and returns what it staged.
#[test]
fn conflict() {
    model("conflict", &["refused first", "read first"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                let refusal = Moment::default();
                let refused_now = refusal.clone();
                [
                    act(move |rig, me| {
                        let wrong = Expect::Exactly {
                            tag: b.tag,
                            birth: 99,
                        };
                        let mut changes = [rig.swap(a, 1), rig.put(b, wrong, 1)];
                        let refused = rig.commit(me, &mut changes);
                        refused_now.happened();
                        assert!(matches!(refused, Err(Refusal::Changed { index: 1, .. })));
                        assert!(changes.into_iter().all(|c| c.into_node().is_some()));
                    }),
                    act(move |rig, me| {
                        assert_eq!(rig.read(me, &[a, b]), Ok(vec![0, 0]));
                        refusal.saw("refused first", "read first");
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// A view is a snapshot of the whole registry, over two commits, and again after a refresh.
#[test]
fn scope() {
    model("scope", &["00", "01", "02", "11", "12", "22"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        for value in 1..=2 {
                            rig.commit(me, &mut [rig.swap(a, value), rig.swap(b, value)])
                                .unwrap();
                        }
                    }),
                    act(move |rig, me| {
                        let mut view = rig.spine.view(me);
                        let look = |view: &_| {
                            let first = Rig::peek(view, a).unwrap();
                            assert_eq!(Rig::peek(view, b), Some(first));
                            assert_eq!(Rig::peek(view, a), Some(first), "reads must repeat");
                            first
                        };
                        let before = look(&view);
                        view.refresh();
                        let after = look(&view);
                        assert!(after >= before);
                        saw(format!("{before}{after}"));
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// A slot's next tenant is never taken for the last one.
#[test]
fn reuse() {
    model("reuse", &["old", "absent"], || {
        play(
            1,
            |_, keys| {
                let old = keys[0];
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.bury(old)]).unwrap();
                        rig.spine.recycle(old);
                        let new = rig.spine.allocate().unwrap();
                        assert_eq!(new.slot, old.slot);
                        rig.commit(me, &mut [rig.put(new, Expect::Vacant, 7)])
                            .unwrap();
                    }),
                    act(move |rig, me| match rig.read(me, &[old]) {
                        Ok(values) => {
                            assert_eq!(values, [0], "another tenant's bytes");
                            saw("old");
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

/// Writers of unrelated sets: their numbers are unique and both are current afterwards.
#[test]
fn two_writers() {
    model("two_writers", &["a first", "b first"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [a, b].map(|key| {
                    act(move |rig: &Rig, me: &Participant| {
                        rig.commit(me, &mut [rig.swap(key, 1)]).unwrap();
                        assert_eq!(
                            rig.read(me, &[key]),
                            Ok(vec![1]),
                            "not visible to its writer"
                        );
                    })
                })
            },
            |rig, me, keys| {
                let view = rig.spine.view(me);
                let [a, b] = [0, 1].map(|n| view.resolve(keys[n]).unwrap().birth());
                assert_ne!(a, b, "one number for two commits");
                assert_eq!(view.number(), 4);
                saw(if a < b { "a first" } else { "b first" });
            },
        );
    });
}

/// Three threads: a transaction, a single commit, and a snapshot.
#[test]
fn txn_pub_acq() {
    model("txn_pub_acq", &["00", "11", "02", "12"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(b, 2)]).unwrap();
                    }),
                    act(move |rig, me| {
                        let values = rig.read(me, &[a, b]).unwrap();
                        let legal = [[0, 0], [1, 1], [0, 2], [1, 2]];
                        assert!(legal.iter().any(|pair| values == pair), "{values:?}");
                        saw(format!("{}{}", values[0], values[1]));
                    }),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// Three threads: two transactions and a snapshot.
#[test]
fn txn_txn_acq() {
    model("txn_txn_acq", &["0", "1", "2"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                let put = move |value| {
                    act(move |rig: &Rig, me: &Participant| {
                        rig.commit(me, &mut [rig.swap(a, value), rig.swap(b, value)])
                            .unwrap();
                    })
                };
                let look = act(move |rig, me| {
                    let values = rig.read(me, &[b, a]).unwrap();
                    assert_eq!(values[0], values[1], "mixed");
                    saw(values[0].to_string());
                });
                [put(1), put(2), look]
            },
            |_, _, _| {},
        );
    });
}

/// Four threads: two commits of different sets, and two that look at both in either order. They never contradict
/// each other on which came first.
#[test]
fn iriw() {
    model("iriw", &["00", "10", "01", "11"], || {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        play(
            2,
            move |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                let put = |key| {
                    act(move |rig: &Rig, me: &Participant| {
                        rig.commit(me, &mut [rig.swap(key, 1)]).unwrap();
                    })
                };
                let look = |first, second| {
                    let notes = Arc::clone(&notes);
                    act(move |rig: &Rig, me: &Participant| {
                        let view = rig.spine.view(me);
                        let one = Rig::peek(&view, first).unwrap();
                        let two = Rig::peek(&view, second).unwrap();
                        notes.lock().unwrap().push(if first == a {
                            (one, two)
                        } else {
                            (two, one)
                        });
                    })
                };
                [put(a), put(b), look(a, b), look(b, a)]
            },
            |_, _, _| {},
        );
        let seen = seen.lock().unwrap();
        assert!(
            !(seen.contains(&(1, 0)) && seen.contains(&(0, 1))),
            "two orders of two commits"
        );
        for (a, b) in &*seen {
            saw(format!("{a}{b}"));
        }
    });
}

/// Three threads: two snapshots and a transaction.
#[test]
fn acq2_txn() {
    model("acq2_txn", &["old", "new"], || {
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                [
                    act(move |rig, me| {
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| old_or_new(&rig.read(me, &[a, b]).unwrap())),
                    act(move |rig, me| old_or_new(&rig.read(me, &[b, a]).unwrap())),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// Retire and wait: once drained, nobody ever leases it again.
#[test]
fn retire_one_drain() {
    model("retire_one_drain", &["read", "absent"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| {
                        let mut vitals = None;
                        let view = rig.spine.view(me);
                        view.commit(
                            &mut [rig.bury(key)],
                            |_| (),
                            |_, node, _| {
                                vitals = Some(Arc::clone(node.vitals()));
                            },
                        )
                        .unwrap();
                        drop(view);
                        let vitals = vitals.unwrap();
                        vitals.wait_drained(None).unwrap();
                        assert!(vitals.state().is_drained());
                        assert_eq!(vitals.state().holds(), 0);
                    }),
                    act(move |rig, me| {
                        saw(if rig.read(me, &[key]).is_ok() {
                            "read"
                        } else {
                            "absent"
                        });
                    }),
                ]
            },
            |rig, _, _| assert_eq!(rig.freed(), 1, "the bytes do not wait for the registry"),
        );
    });
}

/// The table grows while somebody looks for the new slot.
#[test]
fn grow() {
    model("grow", &["there", "not yet"], || {
        play(
            1,
            |_, _| {
                [
                    act(move |rig, me| {
                        let key = rig.spine.allocate().unwrap();
                        assert_eq!(key, Key { slot: 1, tag: 1 });
                        rig.commit(me, &mut [rig.put(key, Expect::Vacant, 7)])
                            .unwrap();
                    }),
                    act(
                        move |rig, me| match rig.read(me, &[Key { slot: 1, tag: 1 }]) {
                            Ok(values) => {
                                assert_eq!(values, [7]);
                                saw("there");
                            }
                            Err(miss) => {
                                assert_eq!(miss, Miss::Absent { index: 0 });
                                saw("not yet");
                            }
                        },
                    ),
                ]
            },
            |_, _, _| {},
        );
    });
}
