//! The epoch itself, in the build at hand: that it reclaims, that it protects, and that the checker
//! sees its atomics at all.
#![cfg(weighbridge_loom)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::sync::atomic::{AtomicPtr, Ordering};
use weighbridge::__loom::sync::epoch::Collector;
use weighbridge_loom_tests::{Send2, model, saw};

struct Cell(UnsafeCell<u64>);
// SAFETY: written when made and when freed; the checker reports readers that are not ordered.
unsafe impl Sync for Cell {}
// SAFETY: as above.
unsafe impl Send for Cell {}

fn read(at: *const Cell) -> u64 {
    // SAFETY: under a guard; that this is enough is what is checked.
    unsafe { (*at).0.with(|value| *value) }
}

fn free(at: *mut Cell) {
    // SAFETY: unlinked and past its grace period; that this is enough is what is checked.
    let cell = unsafe { Box::from_raw(at) };
    // SAFETY: as above.
    cell.0.with_mut(|value| unsafe { *value = 99 });
}

/// A reader under a guard, a writer that unlinks and defers. `broken`: without the grace period.
fn body(broken: bool) {
    let collector = Collector::new();
    let slot = Arc::new(AtomicPtr::new(Box::into_raw(Box::new(Cell(
        UnsafeCell::new(0),
    )))));
    let (writer, reader) = (Send2(collector.register()), collector.register());
    drop(writer.0.pin());
    drop(reader.pin());
    let thread = {
        let slot = Arc::clone(&slot);
        thread::spawn(move || {
            let writer = writer;
            let guard = writer.0.pin();
            let new = Box::into_raw(Box::new(Cell(UnsafeCell::new(1))));
            let old = slot.swap(new, Ordering::AcqRel);
            if broken {
                free(old);
            } else {
                // SAFETY: unlinked above.
                unsafe { guard.defer(move || free(old)) };
            }
            drop(guard);
            for _ in 0..3 {
                writer.0.pin().flush();
            }
            writer
        })
    };
    let guard = reader.pin();
    saw(read(slot.load(Ordering::Acquire)).to_string());
    drop(guard);
    let writer = thread.join().unwrap();
    free(slot.load(Ordering::Acquire));
    drop((writer, reader, collector));
}

#[test]
fn epoch_protects() {
    model("epoch_protects", &["0", "1"], || body(false));
}

/// The twin: freeing at once must be reported. If it is not, the checker does not see the collector
/// or the slots, and no other model of this build means anything.
#[test]
#[should_panic(expected = "Causality violation")]
fn epoch_must_fail() {
    model("epoch_must_fail", &[], || body(true));
}

/// The second twin: reading after the guard is gone must be reported, which takes garbage that is
/// really collected inside the model.
#[test]
#[should_panic(expected = "Causality violation")]
fn epoch_guard_must_matter() {
    model("epoch_guard_must_matter", &[], || {
        let collector = Collector::new();
        let slot = Arc::new(AtomicPtr::new(Box::into_raw(Box::new(Cell(
            UnsafeCell::new(0),
        )))));
        let (writer, reader) = (Send2(collector.register()), collector.register());
        drop(writer.0.pin());
        drop(reader.pin());
        let thread = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || {
                let writer = writer;
                let guard = writer.0.pin();
                let new = Box::into_raw(Box::new(Cell(UnsafeCell::new(1))));
                let old = slot.swap(new, Ordering::AcqRel);
                // SAFETY: unlinked above.
                unsafe { guard.defer(move || free(old)) };
                drop(guard);
                for _ in 0..3 {
                    writer.0.pin().flush();
                }
                writer
            })
        };
        let guard = reader.pin();
        let at = slot.load(Ordering::Acquire);
        drop(guard);
        read(at);
        drop(thread.join().unwrap());
    });
}
