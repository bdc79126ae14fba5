//! Bytes that go and come back while their generation stays current.
#![cfg(weighbridge_loom)]

use weighbridge::__loom::sync::epoch::Participant;
use weighbridge::__loom::{Key, Miss, Stays, Storage};
use weighbridge_loom_tests::{Rig, act, bytes, model, play, saw, value};

/// The number of the only commit on `key`.
fn birth(rig: &Rig, me: &Participant, key: Key) -> u64 {
    let view = rig.spine.view(me);
    view.resolve(key).expect("published").birth()
}

/// Evicts for good.
fn evict(rig: &Rig, me: &Participant, key: Key) -> Result<(), Stays> {
    let birth = birth(rig, me, key);
    let load = rig.evict(me, key, birth, false)?;
    load.dismantle(&mut || {});
    Ok(())
}

/// An acquire comes first and the bytes stay, or after the eviction and is told so.
#[test]
fn evict_acq() {
    model("evict_acq", &["leased", "evicted", "too late"], || {
        play(
            1,
            |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| match rig.read(me, &[key]) {
                        Ok(read) => assert_eq!(read, [0]),
                        Err(miss) => {
                            assert_eq!(miss, Miss::NotResident { index: 0 });
                            saw("too late");
                        }
                    }),
                    act(move |rig, me| match evict(rig, me, key) {
                        Ok(()) => saw("evicted"),
                        Err(stays) => {
                            assert_eq!(stays, Stays::Leased);
                            saw("leased");
                        }
                    }),
                ]
            },
            |rig, me, keys| {
                let resident = rig.read(me, keys).is_ok();
                assert_eq!(rig.freed(), usize::from(!resident));
            },
        );
    });
}

/// Bytes that are taken away are nobody's any more: two leases end while somebody tries to.
#[test]
fn evict_rel() {
    model("evict_rel", &["leased", "evicted"], || {
        play(
            1,
            |rig, keys| {
                let key = keys[0];
                let member = rig.member();
                let [one, two] = [(); 2].map(|()| rig.hold(&member.0, key).unwrap());
                let user = move |hold| {
                    act(move |_: &Rig, _: &Participant| {
                        assert_eq!(value(&hold), 0);
                        drop(hold);
                    })
                };
                [
                    user(one),
                    user(two),
                    act(move |rig, me| match evict(rig, me, key) {
                        Ok(()) => saw("evicted"),
                        Err(stays) => {
                            assert_eq!(stays, Stays::Leased);
                            saw("leased");
                        }
                    }),
                ]
            },
            |rig, me, keys| {
                // Nobody has it any more, so it goes if it has not gone.
                let now = evict(rig, me, keys[0]);
                assert!(matches!(now, Ok(()) | Err(Stays::Absent)), "{now:?}");
                assert_eq!(rig.freed(), 1);
            },
        );
    });
}

/// Whoever gets a lease of what came back reads what came back.
#[test]
fn restore_acq() {
    model("restore_acq", &["not yet", "7"], || {
        play(
            1,
            |rig, keys| {
                let key = keys[0];
                let main = rig.member();
                let birth = birth(rig, &main.0, key);
                let load = rig.evict(&main.0, key, birth, false).unwrap();
                let reader = move || {
                    act(move |rig: &Rig, me: &Participant| match rig.hold(me, key) {
                        // The metadata says 0: these are other bytes so that the model sees them.
                        Ok(hold) => saw(bytes(&hold).to_string()),
                        Err(miss) => {
                            assert_eq!(miss, Miss::NotResident { index: 0 });
                            saw("not yet");
                        }
                    })
                };
                [
                    reader(),
                    act(move |rig, me| {
                        assert!(rig.restore(me, key, birth, load, 7).is_ok());
                    }),
                ]
            },
            |rig, me, keys| {
                assert_eq!(bytes(&rig.hold(me, keys[0]).unwrap()), 7);
                assert_eq!(rig.freed(), 0);
            },
        );
    });
}

/// Who brings bytes back has them until it lets go: nobody takes them away before it has used them.
#[test]
fn restore_held() {
    model("restore_held", &["held", "evicted"], || {
        play(
            1,
            |rig, keys| {
                let key = keys[0];
                let member = rig.member();
                let birth = birth(rig, &member.0, key);
                let load = rig.evict(&member.0, key, birth, false).unwrap();
                [
                    act(move |rig, me| {
                        let hold = {
                            let _writing = rig.writing.lock();
                            rig.restore(me, key, birth, load, 7)
                        };
                        let Ok(hold) = hold else {
                            unreachable!("it is absent and current")
                        };
                        assert_eq!(bytes(&hold), 7);
                    }),
                    act(move |rig, me| {
                        let _writing = rig.writing.lock();
                        match evict(rig, me, key) {
                            Ok(()) => saw("evicted"),
                            Err(Stays::Leased) => saw("held"),
                            Err(stays) => assert_eq!(stays, Stays::Absent),
                        }
                    }),
                ]
            },
            |rig, me, keys| {
                let now = evict(rig, me, keys[0]);
                assert!(matches!(now, Ok(()) | Err(Stays::Absent)), "{now:?}");
                assert_eq!(rig.freed(), 1);
            },
        );
    });
}

/// Away and back under a reader that looks twice, and clones: each lease has bytes for as long as it lives.
#[test]
fn evict_restore() {
    model("evict_restore", &["0", "7", "absent", "leased"], || {
        play(
            1,
            |rig, keys| {
                let key = keys[0];
                let birth = birth(rig, &rig.member().0, key);
                [
                    act(move |rig, me| {
                        for _ in 0..2 {
                            match rig.hold(me, key) {
                                Ok(hold) => {
                                    let twin = hold.clone();
                                    let seen = bytes(&hold);
                                    drop(hold);
                                    assert_eq!(bytes(&twin), seen);
                                    saw(seen.to_string());
                                }
                                Err(miss) => {
                                    assert_eq!(miss, Miss::NotResident { index: 0 });
                                    saw("absent");
                                }
                            }
                        }
                    }),
                    act(move |rig, me| match rig.evict(me, key, birth, false) {
                        Ok(load) => assert!(rig.restore(me, key, birth, load, 7).is_ok()),
                        Err(stays) => {
                            assert_eq!(stays, Stays::Leased);
                            saw("leased");
                        }
                    }),
                ]
            },
            |rig, me, keys| {
                drop(rig.hold(me, keys[0]).unwrap());
                assert_eq!(rig.freed(), 0);
            },
        );
    });
}

/// Two sets are leased or none: what was taken before the absent one is given back.
#[test]
fn evict_two() {
    model("evict_two", &["both", "none"], || {
        play(
            2,
            |_, keys| {
                let [first, second] = [keys[0], keys[1]];
                [
                    act(move |rig, me| match rig.read(me, &[first, second]) {
                        Ok(_) => saw("both"),
                        Err(miss) => {
                            assert_eq!(miss, Miss::NotResident { index: 1 });
                            saw("none");
                        }
                    }),
                    act(move |rig, me| {
                        let _ = evict(rig, me, second);
                    }),
                ]
            },
            |rig, me, keys| {
                assert_eq!(evict(rig, me, keys[0]), Ok(()), "a lease was left behind");
            },
        );
    });
}

/// A replace and an eviction by two writers of one set: the bytes of each generation go once, and nobody
/// reads what has gone.
#[test]
fn evict_sup() {
    model(
        "evict_sup",
        &["evicted", "superseded", "leased", "old", "new", "absent"],
        || {
            play(
                1,
                |rig, keys| {
                    let key = keys[0];
                    let birth = birth(rig, &rig.member().0, key);
                    [
                        act(move |rig, me| match rig.hold(me, key) {
                            Ok(hold) => saw(if value(&hold) == 0 { "old" } else { "new" }),
                            Err(miss) => {
                                assert_eq!(miss, Miss::NotResident { index: 0 });
                                saw("absent");
                            }
                        }),
                        act(move |rig, me| {
                            let _writing = rig.writing.lock();
                            match rig.evict(me, key, birth, false) {
                                Ok(load) => {
                                    load.dismantle(&mut || {});
                                    saw("evicted");
                                }
                                Err(Stays::Dead) => saw("superseded"),
                                Err(stays) => {
                                    assert_eq!(stays, Stays::Leased);
                                    saw("leased");
                                }
                            }
                        }),
                        act(move |rig, me| {
                            let _writing = rig.writing.lock();
                            rig.commit(me, &mut [rig.swap(key, 1)]).unwrap();
                        }),
                    ]
                },
                |rig, me, keys| {
                    assert_eq!(rig.read(me, keys).unwrap(), [1]);
                    assert_eq!(rig.freed(), 1);
                },
            );
        },
    );
}

/// What comes back too late finds another generation, and stays with who brought it.
#[test]
fn restore_sup() {
    model(
        "restore_sup",
        &["in time", "too late", "old", "new", "absent"],
        || {
            play(
                1,
                |rig, keys| {
                    let key = keys[0];
                    let member = rig.member();
                    let birth = birth(rig, &member.0, key);
                    let load = rig.evict(&member.0, key, birth, false).unwrap();
                    [
                        act(move |rig, me| match rig.hold(me, key) {
                            Ok(hold) => saw(if value(&hold) == 0 { "old" } else { "new" }),
                            Err(miss) => {
                                assert_eq!(miss, Miss::NotResident { index: 0 });
                                saw("absent");
                            }
                        }),
                        act(move |rig, me| {
                            let _writing = rig.writing.lock();
                            match rig.restore(me, key, birth, load, 0) {
                                Ok(_) => saw("in time"),
                                Err(load) => {
                                    load.dismantle(&mut || {});
                                    saw("too late");
                                }
                            }
                        }),
                        act(move |rig, me| {
                            let _writing = rig.writing.lock();
                            rig.commit(me, &mut [rig.swap(key, 1)]).unwrap();
                        }),
                    ]
                },
                |rig, me, keys| {
                    assert_eq!(rig.read(me, keys).unwrap(), [1]);
                    assert_eq!(rig.freed(), 1);
                },
            );
        },
    );
}

/// Who was used since the last look is spared when only the idle are to go.
#[test]
fn evict_idle() {
    model("evict_idle", &["spared", "leased", "evicted"], || {
        play(
            1,
            |rig, keys| {
                let key = keys[0];
                let birth = birth(rig, &rig.member().0, key);
                [
                    act(move |rig, me| {
                        let _ = rig.read(me, &[key]);
                    }),
                    act(move |rig, me| match rig.evict(me, key, birth, true) {
                        Ok(load) => {
                            load.dismantle(&mut || {});
                            saw("evicted");
                        }
                        Err(Stays::Visited) => saw("spared"),
                        Err(stays) => {
                            assert_eq!(stays, Stays::Leased);
                            saw("leased");
                        }
                    }),
                ]
            },
            |rig, me, keys| {
                let key = keys[0];
                let birth = birth(rig, me, key);
                let view = rig.spine.view(me);
                let node = view.resolve(key).unwrap();
                let evicted = node.is_absent();
                assert_eq!(node.vitals().state().clear_visited(), !evicted);
                drop(view);
                if let Ok(load) = rig.evict(me, key, birth, true) {
                    load.dismantle(&mut || {});
                }
                assert_eq!(rig.freed(), 1, "nobody used it since the last look");
            },
        );
    });
}
