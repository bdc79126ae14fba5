//! The event ring: order, exact gaps, no lost wake-up, an end that comes last.
#![cfg(weighbridge_loom)]

use std::sync::Arc;
use std::time::Instant;

use loom::thread;
use weighbridge::__loom::Node;
use weighbridge::__loom::events::{Found, Ring};
use weighbridge::__loom::sync::atomic::{AtomicU64, Ordering};
use weighbridge_loom_tests::{Load, Meta, Moment, act, model, play, saw};

/// Two publishers post as they come; a subscriber sees each place once, in order, and what is in it.
#[test]
fn events_order() {
    model("events_order", &["0", "1", "2"], || {
        let ring = Arc::new(Ring::new(4));
        let mut cursor = ring.now();
        let publishers = [10, 20].map(|event| {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let place = ring.reserve(1).unwrap();
                ring.post([(place, event + place)]);
            })
        });
        let mut seen = 0;
        let mut events = Vec::new();
        let mut look = |seen: &mut u64| match ring.read(&mut cursor) {
            Found::Event(place, event) => {
                *seen += 1;
                assert_eq!((place, event % 10), (*seen, place), "order");
                events.push(event / 10);
                true
            }
            Found::Nothing => false,
            other => panic!("{other:?}"),
        };
        while look(&mut seen) {}
        saw(seen.to_string());
        for publisher in publishers {
            publisher.join().unwrap();
        }
        while look(&mut seen) {}
        events.sort_unstable();
        assert_eq!(events, [1, 2], "an event is lost, or there twice");
    });
}

/// A subscriber that is overtaken: what it reads and what it missed add up, nothing is torn.
#[test]
fn events_overwrite() {
    model("events_overwrite", &["0", "1", "2"], || {
        let ring = Arc::new(Ring::new(2));
        let mut cursor = ring.now();
        let publisher = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                for _ in 0..4 {
                    let place = ring.reserve(1).unwrap();
                    ring.post([(place, place * 10)]);
                }
            })
        };
        let mut expected = 1;
        let mut missed_in_all = 0;
        let mut look = || match ring.read(&mut cursor) {
            Found::Event(place, event) => {
                assert_eq!((place, event), (expected, expected * 10));
                expected += 1;
                true
            }
            Found::Missed(missed) => {
                assert!(missed > 0, "an empty gap");
                expected += missed;
                missed_in_all += missed;
                true
            }
            Found::Nothing => false,
            Found::Closed => panic!("closed"),
        };
        (0..2).for_each(|_| drop(look()));
        publisher.join().unwrap();
        while look() {}
        assert_eq!(expected, 5, "read and missed do not add up");
        saw(missed_in_all.to_string());
    });
}

/// A publisher that stops between its reservation and its post, and is overtaken by a whole round.
#[test]
fn events_overtaken() {
    model("events_overtaken", &["both", "second"], || {
        let ring = Arc::new(Ring::new(1));
        let mut cursor = ring.now();
        let publishers = [(); 2].map(|()| {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let place = ring.reserve(1).unwrap();
                ring.post([(place, place)]);
            })
        });
        let first = ring.read(&mut cursor);
        let early = matches!(first, Found::Event(1, 1));
        for publisher in publishers {
            publisher.join().unwrap();
        }
        if first == Found::Nothing {
            assert_eq!(ring.read(&mut cursor), Found::Missed(1));
        }
        assert!(early || matches!(first, Found::Nothing | Found::Missed(1)));
        assert_eq!(
            ring.read(&mut cursor),
            Found::Event(2, 2),
            "the past came back"
        );
        saw(if early { "both" } else { "second" });
    });
}

/// A subscriber sleeps; the post wakes it. A lost wake-up is a deadlock, which the checker reports.
#[test]
fn events_wait() {
    model("events_wait", &["1 of 2", "2 of 2", "both", "one"], || {
        let ring = Arc::new(Ring::new(2));
        let mut cursor = ring.now();
        let both = Moment::default();
        let publishers = [1, 2].map(|who| {
            let (ring, both) = (Arc::clone(&ring), both.clone());
            thread::spawn(move || {
                let place = ring.reserve(1).unwrap();
                ring.post([(place, place)]);
                if place == 1 {
                    saw(format!("{who} of 2"));
                } else {
                    both.happened();
                }
            })
        });
        for place in 1..=2 {
            assert_eq!(ring.wait(&mut cursor, None), Found::Event(place, place));
            if place == 1 {
                both.saw("both", "one");
            }
        }
        // A wait that gives up disturbs nobody.
        let past = Some(Instant::now());
        assert_eq!(ring.wait(&mut cursor, past), Found::Nothing);
        for publisher in publishers {
            publisher.join().unwrap();
        }
    });
}

/// The end comes after everything that got a place, also if that is posted later; and it wakes.
#[test]
fn events_close() {
    model("events_close", &["event", "refused"], || {
        let ring = Arc::new(Ring::new(2));
        let mut cursor = ring.now();
        let publisher = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let place = ring.reserve(1);
                if let Some(place) = place {
                    ring.post([(place, 7)]);
                }
                place.is_some()
            })
        };
        let owner = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.close())
        };
        let first = ring.wait(&mut cursor, None);
        let delivered = first == Found::Event(1, 7);
        if delivered {
            assert_eq!(ring.wait(&mut cursor, None), Found::Closed);
        } else {
            assert_eq!(first, Found::Closed);
        }
        owner.join().unwrap();
        let posted = publisher.join().unwrap();
        assert_eq!(posted, delivered, "what was posted is delivered");
        saw(if delivered { "event" } else { "refused" });
    });
}

/// Subscribe, then look: whoever looks at the clock after subscribing sees everything that the
/// events before tell of. Likewise after a gap.
#[test]
fn events_clock() {
    model("events_clock", &["before", "after", "gap"], || {
        let ring = Arc::new(Ring::new(1));
        let clock = Arc::new(AtomicU64::new(0));
        let early = ring.now();
        let publisher = {
            let (ring, clock) = (Arc::clone(&ring), Arc::clone(&clock));
            thread::spawn(move || {
                for number in 1..=2 {
                    clock.store(number, Ordering::Relaxed);
                    let place = ring.reserve(1).unwrap();
                    ring.post([(place, number)]);
                }
            })
        };
        // Place n tells of commit n.
        let late = ring.now();
        let now = clock.load(Ordering::Relaxed);
        assert!(now >= late - 1, "subscribed at {late}, saw {now}");
        saw(if late > early { "after" } else { "before" });
        let mut cursor = early;
        match ring.read(&mut cursor) {
            Found::Missed(missed) => {
                let now = clock.load(Ordering::Relaxed);
                assert!(now >= missed, "missed {missed}, saw {now}");
                saw("gap");
            }
            Found::Event(_, number) => assert!(clock.load(Ordering::Relaxed) >= number),
            Found::Nothing => {}
            Found::Closed => panic!("closed"),
        }
        publisher.join().unwrap();
    });
}

/// Commits of two writers that post as they come: the stream has them in the order of their numbers.
#[test]
fn events_commits() {
    model("events_commits", &["first", "second"], || {
        let ring = Arc::new(Ring::new(4));
        let mut cursor = ring.now();
        let stream = Arc::clone(&ring);
        play(
            2,
            move |_, keys| {
                [0, 1].map(|writer| {
                    let (ring, key) = (Arc::clone(&stream), keys[writer]);
                    act(move |rig, me| {
                        let mut place = None;
                        let reserve = |_| place = ring.reserve(1);
                        let view = rig.spine.view(me);
                        let changes = &mut [rig.swap(key, 1)];
                        let number = view.commit(changes, reserve, |_, _, _| ()).unwrap();
                        ring.post([(place.unwrap(), (number, writer))]);
                    })
                })
            },
            |_, _, _| {
                let numbers = [1, 2].map(|place| match ring.read(&mut cursor) {
                    Found::Event(at, (number, writer)) if at == place => {
                        if place == 1 {
                            saw(if writer == 0 { "first" } else { "second" });
                        }
                        number
                    }
                    other => panic!("{other:?}"),
                });
                assert!(numbers[0] < numbers[1], "the stream is not in commit order");
            },
        );
    });
}

/// Bytes that come back after a commit are told of after it, once, and before a wait for them ends.
#[test]
fn events_reclaimed() {
    model("events_reclaimed", &["leased", "free"], || {
        let ring = Arc::new(Ring::new(4));
        let mut cursor = ring.now();
        let stream = Arc::clone(&ring);
        play(
            1,
            move |_, keys| {
                let key = keys[0];
                [
                    act(move |rig, me| {
                        let lease = rig.lease(me, &[key]).unwrap();
                        saw(if lease[0].node().birth() == 1 {
                            "leased"
                        } else {
                            "free"
                        });
                    }),
                    act(move |rig, me| {
                        let mut place = None;
                        let reserve = |_| place = stream.reserve(1);
                        let mut going = None;
                        let note = |_, node: &Node<Meta, Load>, _: Option<&Load>| {
                            let ring = Arc::clone(&stream);
                            node.vitals().on_reclaimed(Box::new(move || {
                                let place = ring.reserve(1).unwrap();
                                ring.post([(place, "reclaimed")]);
                            }));
                            going = Some(Arc::clone(node.vitals()));
                        };
                        let view = rig.spine.view(me);
                        view.commit(&mut [rig.swap(key, 1)], reserve, note).unwrap();
                        drop(view);
                        stream.post([(place.unwrap(), "replaced")]);
                        going.unwrap().wait_reclaimed(None).unwrap();
                        for what in ["replaced", "reclaimed"] {
                            match stream.read(&mut cursor) {
                                Found::Event(_, found) => assert_eq!(found, what, "order"),
                                other => panic!("{what}: {other:?}"),
                            }
                        }
                        assert_eq!(stream.read(&mut cursor), Found::Nothing, "told twice");
                    }),
                ]
            },
            |_, _, _| (),
        );
        drop(ring);
    });
}
