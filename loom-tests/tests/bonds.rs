//! Sets that stand on sets: adapters on bases.
#![cfg(weighbridge_loom)]

use weighbridge::__loom::{Bond, Change, Expect, Key, Refusal};
use weighbridge_loom_tests::{Moment, Rig, act, model, old_or_new, play, saw};

/// An adapter on the first generation of `base`, published before the threads start.
fn adapter_on(rig: &Rig, base: Key) -> Key {
    let me = rig.member();
    let adapter = rig.spine.allocate().unwrap();
    let bond = Bond {
        base,
        birth: Some(1),
    };
    let node = rig.node(adapter.tag, 0, Some(bond));
    rig.commit(
        &me.0,
        &mut [Change::new(adapter.slot, Expect::Vacant, node)],
    )
    .unwrap();
    adapter
}

/// An adapter is published while its base is retired: never an adapter on a base that is gone.
#[test]
fn bond() {
    model("bond", &["adapter first", "retire first"], || {
        play(
            1,
            |rig, keys| {
                let base = keys[0];
                let adapter = rig.spine.allocate().unwrap();
                [
                    act(move |rig, me| {
                        let bond = Bond {
                            base,
                            birth: Some(1),
                        };
                        let node = rig.node(adapter.tag, 5, Some(bond));
                        let change = Change::new(adapter.slot, Expect::Vacant, node);
                        match rig.commit(me, &mut [change]) {
                            Ok(_) => saw("adapter first"),
                            Err(refusal) => {
                                assert_eq!(refusal, Refusal::BaseGone { index: 0, bond });
                            }
                        }
                    }),
                    act(move |rig, me| match rig.commit(me, &mut [rig.bury(base)]) {
                        Ok(_) => saw("retire first"),
                        Err(refusal) => {
                            assert_eq!(refusal, Refusal::Dependants { index: 0, count: 1 });
                        }
                    }),
                ]
            },
            |rig, me, keys| {
                let base = rig.read(me, &keys[..1]).is_ok();
                assert_eq!(u32::from(base), rig.spine.dependants(keys[0]));
            },
        );
    });
}

/// A base is replaced together with the adapter that stands on it: who leases both has both old or
/// both new.
#[test]
fn rebind() {
    model("rebind", &["old", "new"], || {
        play(
            1,
            |rig, keys| {
                let base = keys[0];
                let adapter = adapter_on(rig, base);
                [
                    act(move |rig, me| {
                        let mut changes = [rig.swap(base, 1), rig.along(adapter, base, 1)];
                        rig.commit(me, &mut changes).unwrap();
                        assert_eq!(rig.spine.dependants(base), 1);
                    }),
                    act(move |rig, me| old_or_new(&rig.read(me, &[adapter, base]).unwrap())),
                ]
            },
            |_, _, _| {},
        );
    });
}

/// The same, while the adapter and then its base are retired: nothing stands on what is gone, and
/// whoever is refused is refused whole.
#[test]
fn rebind_retire() {
    model("rebind_retire", &["rebound", "in between", "gone"], || {
        play(
            1,
            |rig, keys| {
                let base = keys[0];
                let adapter = adapter_on(rig, base);
                [
                    act(move |rig, me| {
                        let mut changes = [rig.swap(base, 1), rig.along(adapter, base, 1)];
                        match rig.commit(me, &mut changes) {
                            Ok(_) => saw("rebound"),
                            Err(Refusal::Changed { index: 1, .. }) => saw("in between"),
                            Err(Refusal::Changed { index: 0, .. }) => saw("gone"),
                            Err(other) => panic!("{other:?}"),
                        }
                    }),
                    act(move |rig, me| {
                        let early = rig.commit(me, &mut [rig.bury(base)]);
                        assert_eq!(early, Err(Refusal::Dependants { index: 0, count: 1 }));
                        rig.commit(me, &mut [rig.bury(adapter)]).unwrap();
                        rig.commit(me, &mut [rig.bury(base)]).unwrap();
                    }),
                ]
            },
            |rig, _, keys| assert_eq!(rig.spine.dependants(keys[0]), 0),
        );
    });
}

/// A set that stands on two others (aliases), each of which is replaced by a writer of its own who takes
/// it along: it always stands on what is current, whoever comes second is refused and looks again.
#[test]
fn two_bonds() {
    model("two_bonds", &["at once", "looked again"], || {
        play(
            2,
            |rig, keys| {
                let (a, b) = (keys[0], keys[1]);
                let me = rig.member();
                let both = rig.spine.allocate().unwrap();
                let now = |rig: &Rig, me: &_, key| {
                    let birth = rig.spine.view(me).resolve(key).map(|node| node.birth());
                    Bond { base: key, birth }
                };
                let on = vec![now(rig, &me.0, a), now(rig, &me.0, b)];
                let first = rig.standing(both, Expect::Vacant, on, 0);
                rig.commit(&me.0, &mut [first]).unwrap();
                let writer = move |own: Key, other: Key| {
                    act(move |rig, me| {
                        for attempt in 0.. {
                            let along = Bond {
                                base: own,
                                birth: None,
                            };
                            // In either order: each bond counts.
                            let mut on = vec![along, now(rig, me, other)];
                            on.sort_by_key(|bond| bond.base.slot);
                            let follow = rig.standing(both, Expect::Tenant(both.tag), on, 1);
                            match rig.commit(me, &mut [rig.swap(own, 1), follow]) {
                                Ok(_) => {
                                    saw(["at once", "looked again"][attempt.min(1)]);
                                    break;
                                }
                                Err(Refusal::BaseGone { index: 1, bond }) => {
                                    assert_eq!(bond.base, other);
                                }
                                Err(refusal) => panic!("{refusal:?}"),
                            }
                        }
                    })
                };
                [writer(a, b), writer(b, a)]
            },
            |rig, me, keys| {
                for &key in keys {
                    assert_eq!(rig.spine.dependants(key), 1);
                    assert_eq!(
                        rig.commit(me, &mut [rig.bury(key)]),
                        Err(Refusal::Dependants { index: 0, count: 1 })
                    );
                }
                let view = rig.spine.view(me);
                view.for_each(|_, node| {
                    for bond in node.binds() {
                        let birth = bond.birth.unwrap_or(node.birth());
                        let current = view.resolve(bond.base).map(|base| base.birth());
                        assert_eq!(current, Some(birth), "it stands on what was");
                    }
                });
            },
        );
    });
}

/// An adapter cannot come along with a base that goes.
#[test]
fn along_with_nothing() {
    model(
        "along_with_nothing",
        &["refused", "refused first", "read first"],
        || {
            play(
                1,
                |rig, keys| {
                    let base = keys[0];
                    let adapter = adapter_on(rig, base);
                    let refusal = Moment::default();
                    let refused_now = refusal.clone();
                    [
                        act(move |rig, me| {
                            let mut changes = [rig.along(adapter, base, 1), rig.bury(base)];
                            match rig.commit(me, &mut changes) {
                                Err(Refusal::BaseGone { index: 0, .. }) => saw("refused"),
                                other => panic!("{other:?}"),
                            }
                            refused_now.happened();
                            let mut changes = [rig.along(adapter, base, 1)];
                            match rig.commit(me, &mut changes) {
                                Err(Refusal::BaseGone { index: 0, .. }) => (),
                                other => panic!("{other:?}"),
                            }
                        }),
                        act(move |rig, me| {
                            assert_eq!(rig.read(me, &[adapter, base]), Ok(vec![0, 0]));
                            refusal.saw("refused first", "read first");
                        }),
                    ]
                },
                |rig, _, keys| assert_eq!(rig.spine.dependants(keys[0]), 1),
            );
        },
    );
}
