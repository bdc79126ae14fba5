//! A writer that stands still in the middle: who reads does not wait for it. Who did would wait for ever here, and the
//! checker says so.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::thread;
use weighbridge::__loom::names::{Index, SetName};
use weighbridge::__loom::sync::stop::before_write;
use weighbridge_loom_tests::{Gate, Moment, Rig, act, model, old_or_new, play, saw};

/// A writer stands still before one of its writes until a reader has finished.
fn stalled_before(name: &'static str, writes: usize) {
    model(name, &["old", "new"], move || {
        let gate = Arc::new(Gate::default());
        play(
            2,
            |_, keys| {
                let (a, b) = (keys[0], keys[1]);
                let (closed, open) = (Arc::clone(&gate), gate);
                [
                    act(move |rig, me| {
                        before_write(writes, move || closed.pass());
                        rig.commit(me, &mut [rig.swap(a, 1), rig.swap(b, 1)])
                            .unwrap();
                    }),
                    act(move |rig, me| {
                        let view = rig.spine.view(me);
                        let seen = Rig::peek(&view, a);
                        drop(view);
                        assert_eq!(seen, Some(0), "seen before the clock moved");
                        assert_eq!(rig.read(me, &[b, a]), Ok(vec![0, 0]));
                        drop(rig.lease(me, &[a]).unwrap().clone());
                        saw("old");
                        open.open();
                    }),
                ]
            },
            |rig, me, keys| old_or_new(&rig.read(me, keys).unwrap()),
        );
    });
}

/// Between the slots of one commit.
#[test]
fn stalled_half() {
    stalled_before("stalled_half", 1);
}

/// Between the last slot and the clock, W4 and W5.
#[test]
fn stalled() {
    stalled_before("stalled", 2);
}

/// A writer stands still before it shows its table: who looks a name up, of the same shard or not yet there, does
/// not wait for it.
#[test]
fn name_stalled() {
    model("name_stalled", &["stands still", "not there yet"], || {
        let index = Arc::new(Index::new());
        index.claim(&SetName::from("a")).ok().unwrap().settle(1);
        let (gate, stands) = (Arc::new(Gate::default()), Moment::default());
        let writer = {
            let (index, gate) = (Arc::clone(&index), Arc::clone(&gate));
            let stands = stands.clone();
            thread::spawn(move || {
                let claim = index.claim(&SetName::from("b")).ok().unwrap();
                before_write(0, move || {
                    stands.happened();
                    gate.pass();
                });
                claim.settle(2);
                assert_eq!(index.lookup("b".into()), Some(2));
            })
        };
        assert_eq!(index.lookup("a".into()), Some(1));
        assert_eq!(index.lookup("b".into()), None, "found before it was shown");
        stands.saw("stands still", "not there yet");
        gate.open();
        writer.join().unwrap();
        assert_eq!(index.lookup("b".into()), Some(2));
    });
}
