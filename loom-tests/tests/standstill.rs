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

/// A writer of names stands still before one of its writes, with its shard's lock: lookups of the name that it is
/// about to change, of another one and of none have their answers.
fn name_stalled_before(
    name: &'static str,
    writes: usize,
    before: impl Fn(&Index) + Send + Sync + 'static,
    change: impl Fn(&Index) + Send + Sync + Clone + 'static,
    after: Option<u64>,
) {
    model(name, &["stands still", "not there yet"], move || {
        let index = Arc::new(Index::new());
        index.claim(&SetName::from("a")).ok().unwrap().settle(1);
        before(&index);
        let (gate, stands) = (Arc::new(Gate::default()), Moment::default());
        let writer = {
            let (index, gate) = (Arc::clone(&index), Arc::clone(&gate));
            let (stands, change) = (stands.clone(), change.clone());
            thread::spawn(move || {
                before_write(writes, move || {
                    stands.happened();
                    gate.pass();
                });
                change(&index);
                assert_eq!(index.lookup("b".into()), after);
            })
        };
        let b = index.lookup("b".into());
        assert!(b.is_none() || after.is_none(), "found before it was shown");
        assert_eq!(index.lookup("a".into()), Some(1));
        assert_eq!(index.lookup("c".into()), None);
        stands.saw("stands still", "not there yet");
        gate.open();
        writer.join().unwrap();
        assert_eq!(index.lookup("b".into()), after);
    });
}

/// All is in place, and not shown.
#[test]
fn name_stalled() {
    let settle = |index: &Index| {
        let claim = index.claim(&SetName::from("b")).ok().unwrap();
        claim.settle(2);
    };
    // Record, lengths, text; block, hash, where the bucket goes on; the version.
    name_stalled_before("name_stalled", 6, |_| (), settle, Some(2));
}

/// The name is buried, and its place still leads to it.
#[test]
fn name_stalled_gone() {
    let settle = |index: &Index| {
        let claim = index.claim(&SetName::from("b")).ok().unwrap();
        claim.settle(2);
    };
    let unlink = |index: &Index| {
        index.unlink(&SetName::from("b"), |record| record == 2);
    };
    // The version; the hash.
    name_stalled_before("name_stalled_gone", 1, settle, unlink, None);
}
