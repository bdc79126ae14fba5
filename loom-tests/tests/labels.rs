//! Labels: no torn label, no shared entry, no label of a lease that has ended.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::thread;
use weighbridge::__loom::labels::Labels;
use weighbridge::__loom::sync::atomic::{AtomicU64, Ordering};
use weighbridge_loom_tests::{Moment, model, saw};

/// An observer reads whole labels while they come and go, under the right generation.
#[test]
fn label_torn() {
    model("label_torn", &["a", "b", "nobody"], || {
        let labels = Arc::new(Labels::new());
        let first = labels.claim("aaaaaaaa", 1, 1, 11).unwrap();
        let writer = {
            let labels = Arc::clone(&labels);
            thread::spawn(move || {
                labels.release(first);
                let second = labels.claim("bbbbbbbb", 1, 2, 22).unwrap();
                labels.release(second);
            })
        };
        let mut nobody = true;
        for (birth, label, since_ns) in [(1, "aaaaaaaa", 11), (2, "bbbbbbbb", 22)] {
            for entry in labels.holders(1, birth) {
                assert_eq!(
                    (entry.label.as_str(), entry.since_ns),
                    (label, since_ns),
                    "torn"
                );
                saw(&label[..1]);
                nobody = false;
            }
        }
        if nobody {
            saw("nobody");
        }
        writer.join().unwrap();
        assert!(labels.holders(1, 1).is_empty() && labels.holders(1, 2).is_empty());
    });
}

/// Claims and releases race on the free list, in the way that a list without change counts gets
/// wrong: no two leases share an entry, none is lost.
#[test]
fn label_entries() {
    model("label_entries", &["churned", "not yet"], || {
        let labels = Arc::new(Labels::new());
        // All three entries exist and are free.
        let all = [0, 1, 2].map(|slot| labels.claim("x", slot, 0, 0).unwrap());
        all.into_iter().for_each(|id| labels.release(id));
        let churned = Moment::default();
        let churn = {
            let (labels, churned) = (Arc::clone(&labels), churned.clone());
            thread::spawn(move || {
                let first = labels.claim("x", 1, 1, 0).unwrap();
                let second = labels.claim("x", 1, 2, 0).unwrap();
                labels.release(first);
                churned.happened();
                second
            })
        };
        let mine = labels.claim("x", 2, 1, 0).unwrap();
        churned.saw("churned", "not yet");
        let theirs = churn.join().unwrap();
        assert_ne!(mine, theirs, "two leases share an entry");
        let third = labels.claim("x", 3, 1, 0).expect("an entry was lost");
        assert!(
            third != mine && third != theirs,
            "two leases share an entry"
        );
        assert!(
            labels.claim("x", 4, 1, 0).is_none(),
            "an entry was made twice"
        );
    });
}

/// Growth: every entry up to the capacity is given out, whoever else is growing the slab. Nobody is
/// told "full" while entries are about to appear.
#[test]
fn label_grow() {
    model("label_grow", &["grown", "not yet"], || {
        let labels = Arc::new(Labels::new());
        let other = Arc::clone(&labels);
        let grown = Moment::default();
        let growing = grown.clone();
        let grower = thread::spawn(move || {
            let first = other.claim("x", 1, 1, 0).expect("told full too early");
            let second = other.claim("x", 1, 2, 0).expect("told full too early");
            assert_ne!(first, second, "two leases share an entry");
            growing.happened();
            [first, second]
        });
        let mine = labels.claim("x", 2, 1, 0).expect("told full too early");
        grown.saw("grown", "not yet");
        let theirs = grower.join().unwrap();
        assert!(!theirs.contains(&mine), "two leases share an entry");
        assert!(
            labels.claim("x", 3, 1, 0).is_none(),
            "an entry was made twice"
        );
        for slot_birth in [(1, 1), (1, 2), (2, 1)] {
            assert_eq!(labels.holders(slot_birth.0, slot_birth.1).len(), 1);
        }
    });
}

/// A clone has the label and start of its lease while its neighbours come and go. Who knows that a
/// lease has ended no longer finds its label.
#[test]
fn label_clone() {
    model("label_clone", &["2", "1"], || {
        let labels = Arc::new(Labels::new());
        let ended = Arc::new(AtomicU64::new(0));
        let first = labels.claim("aaaaaaaa", 1, 1, 11).unwrap();
        let holder = {
            let (labels, ended) = (Arc::clone(&labels), Arc::clone(&ended));
            thread::spawn(move || {
                let twin = labels.clone_label(first).expect("there is room");
                labels.release(first);
                ended.store(1, Ordering::Release);
                twin
            })
        };
        let over = ended.load(Ordering::Acquire) == 1;
        let found = labels.holders(1, 1);
        assert!(found.len() == 1 || !over, "a lease that ended is named");
        for entry in &found {
            assert_eq!(
                (entry.label.as_str(), entry.since_ns),
                ("aaaaaaaa", 11),
                "torn"
            );
        }
        saw(found.len().to_string());
        let twin = holder.join().unwrap();
        labels.release(twin);
        assert!(labels.holders(1, 1).is_empty());
    });
}
