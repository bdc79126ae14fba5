//! Fences: what waits for one is let go when it has passed, once, never before, and always.
#![cfg(weighbridge_loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::thread;
use weighbridge::__loom::fence::{Fence, Steps, signal};
use weighbridge::__loom::sync::{Condvar, Mutex};
use weighbridge::__loom::{
    Bell, Change, Expect, Hold, Keeper, Kept, Key, Node, Reclaimer, Spine, StagedNode, Storage,
    Vitals,
};
use weighbridge_loom_tests::{Moment, model, saw};

/// Memory that a device reads without a lease. If its read is not ordered before the free, the
/// checker reports it.
#[derive(Clone)]
struct Memory(Arc<Cells>);

struct Cells {
    value: UnsafeCell<u64>,
    freed: AtomicUsize,
}

// SAFETY: read by the device, overwritten by the free; that these are ordered is what is checked.
unsafe impl Send for Cells {}
// SAFETY: as above.
unsafe impl Sync for Cells {}

impl Memory {
    fn new() -> Self {
        Memory(Arc::new(Cells {
            value: UnsafeCell::new(7),
            freed: AtomicUsize::new(0),
        }))
    }

    /// What the device does.
    fn read(&self) {
        // SAFETY: see `Cells`.
        assert_eq!(self.0.value.with(|at| unsafe { *at }), 7, "freed memory");
    }

    fn freed(&self) -> usize {
        self.0.freed.load(Relaxed)
    }
}

impl Storage for Memory {
    fn dismantle(self, _: &mut dyn FnMut()) {
        // SAFETY: see `Cells`.
        self.0.value.with_mut(|at| unsafe { *at = 0 });
        self.0.freed.fetch_add(1, Relaxed);
    }
}

/// What becomes true when the keeper has let go, for those who wait for it.
#[derive(Clone, Default)]
struct Gone(Arc<(Mutex<usize>, Condvar)>);

impl Gone {
    fn wait(&self, count: usize) {
        let mut gone = self.0.0.lock();
        while *gone < count {
            gone = self.0.1.wait_deadline(gone, None).0;
        }
    }
}

/// A lease behind a fence, as the registry keeps it.
struct Fenced<L> {
    /// Dropped first.
    lease: Option<L>,
    fence: Box<dyn Fence>,
    looks: usize,
    gone: Gone,
}

impl<L: Send + 'static> Kept for Fenced<L> {
    fn listen(&mut self, bell: &Bell) -> bool {
        self.fence.listen(bell)
    }

    fn may_go(&mut self) -> bool {
        self.looks += 1;
        let passed = self.fence.has_passed();
        if passed {
            saw(if self.looks == 1 { "at once" } else { "later" });
        }
        passed
    }

    fn broke(&mut self) {}
}

impl<L> Drop for Fenced<L> {
    fn drop(&mut self) {
        drop(self.lease.take());
        *self.gone.0.0.lock() += 1;
        self.gone.0.1.notify_all();
    }
}

fn fenced<L: Send + 'static>(lease: L, fence: impl Fence, gone: &Gone) -> Box<dyn Kept> {
    Box::new(Fenced {
        lease: Some(lease),
        fence: Box::new(fence),
        looks: 0,
        gone: gone.clone(),
    })
}

/// As in the registry.
type Keeping = Keeper<Box<dyn Kept>>;

/// A set of one generation whose bytes a device reads, and a lease of it.
struct Stage {
    spine: Spine<u64, Memory>,
    memory: Memory,
    key: Key,
    lease: Hold<u64, Memory>,
}

impl Stage {
    fn new() -> Self {
        let spine: Spine<u64, Memory> = Spine::new(Arc::new(Reclaimer::closed()));
        let memory = Memory::new();
        let key = spine.allocate().unwrap();
        let queue = Arc::clone(spine.reclaimer());
        let node = StagedNode::new(key.tag, Vec::new(), 0, memory.clone(), queue);
        let me = spine.register();
        spine
            .view(&me)
            .commit(
                &mut [Change::new(key.slot, Expect::Vacant, node)],
                |_| (),
                |_, _, _| {},
            )
            .unwrap();
        let lease = spine.view(&me).acquire_one(key).unwrap();
        Stage {
            spine,
            memory,
            key,
            lease,
        }
    }
}

fn retire(spine: &Spine<u64, Memory>, key: Key) -> Arc<Vitals> {
    let grave = StagedNode::tombstone(key.tag, Arc::clone(spine.reclaimer()));
    let change = Change::new(key.slot, Expect::Tenant(key.tag), grave);
    let mut vitals = None;
    let old = |_, node: &Node<u64, Memory>, _: Option<&Memory>| {
        vitals = Some(Arc::clone(node.vitals()));
    };
    let me = spine.register();
    spine.view(&me).commit(&mut [change], |_| (), old).unwrap();
    vitals.unwrap()
}

/// A lease is given away behind a fence and its set is retired, while the device still reads: the
/// bytes go once, after the device has said that it is done.
#[test]
fn fence_release() {
    model("fence_release", &["at once", "later"], || {
        let stage = Stage::new();
        let keeper = Arc::new(Keeping::new());
        let gone = Gone::default();
        let (done, fence) = signal("device");
        let memory = stage.memory.clone();
        let device = thread::spawn(move || {
            memory.read();
            done.set();
        });
        keeper.keep(fenced(stage.lease, fence, &gone));
        let vitals = retire(&stage.spine, stage.key);
        vitals.wait_drained(None).unwrap();
        vitals.wait_reclaimed(None).unwrap();
        assert_eq!(stage.memory.freed(), 1);
        gone.wait(1);
        assert_eq!(keeper.panics(), 0);
        device.join().unwrap();
    });
}

/// The registry goes while a lease waits for its fence: the fence holds all the same, then the keeper
/// frees by itself, and its thread ends.
#[test]
fn fence_close() {
    model("fence_close", &["at once", "later"], || {
        let stage = Stage::new();
        let keeper = Arc::new(Keeping::new());
        let gone = Gone::default();
        let (done, fence) = signal("device");
        let memory = stage.memory.clone();
        let device = thread::spawn(move || {
            memory.read();
            done.set();
        });
        keeper.keep(fenced(stage.lease, fence, &gone));
        drop(stage.spine);
        drop(keeper);
        gone.wait(1);
        assert_eq!(stage.memory.freed(), 1);
        device.join().unwrap();
    });
}

/// A signal against the keeper's sleep: no wake-up is lost. Two things are kept, so that one comes
/// while the keeper sleeps on the other.
#[test]
fn fence_wake() {
    model("fence_wake", &["at once", "later"], || {
        let keeper = Arc::new(Keeping::new());
        let gone = Gone::default();
        let (first, fence) = signal("first");
        let (second, last) = signal("second");
        keeper.keep(fenced((), fence, &gone));
        let device = thread::spawn(move || {
            first.set();
            second.set();
        });
        keeper.keep(fenced((), last, &gone));
        gone.wait(2);
        assert_eq!(keeper.panics(), 0);
        drop(keeper);
        device.join().unwrap();
    });
}

/// A fence that nobody rings for: the keeper finds it by looking, and its answer is enough to free.
/// Another one comes, and is rung for, while it naps.
#[test]
fn fence_poll() {
    model("fence_poll", &["at once", "later"], || {
        let memory = Memory::new();
        let keeper = Arc::new(Keeping::new());
        let gone = Gone::default();
        let steps = Steps::new("stream");
        let (done, signalled) = signal("device");
        let fence = steps.after(2);
        let device = {
            let memory = memory.clone();
            thread::spawn(move || {
                memory.read();
                steps.complete(2);
                done.set();
            })
        };
        keeper.keep(fenced(Bytes(Some(memory.clone())), fence, &gone));
        keeper.keep(fenced((), signalled, &gone));
        gone.wait(2);
        assert_eq!((memory.freed(), keeper.panics()), (1, 0));
        drop(keeper);
        device.join().unwrap();
    });
}

/// Frees when it is dropped.
struct Bytes(Option<Memory>);

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(memory) = self.0.take() {
            memory.dismantle(&mut || {});
        }
    }
}

/// The first two fences of a registry come at once: one thread is started, both are kept.
#[test]
fn fence_start() {
    model(
        "fence_start",
        &["at once", "kept before", "kept after"],
        || {
            let keeper = Arc::new(Keeping::new());
            let gone = Gone::default();
            let passed = |keeper: &Arc<Keeping>, gone: &Gone| {
                keeper.keep(fenced((), || true, gone));
            };
            let kept = Moment::default();
            let other = {
                let (keeper, gone, kept) = (Arc::clone(&keeper), gone.clone(), kept.clone());
                thread::spawn(move || {
                    passed(&keeper, &gone);
                    kept.happened();
                })
            };
            passed(&keeper, &gone);
            kept.saw("kept before", "kept after");
            gone.wait(2);
            other.join().unwrap();
        },
    );
}

/// Who sees that its lease is revoked sees what the revoker did before.
#[test]
fn revoke() {
    model("revoke", &["revoked", "not yet"], || {
        let vitals = Arc::new(Vitals::new());
        let memory = Memory::new();
        let revoker = {
            let (vitals, memory) = (Arc::clone(&vitals), memory.clone());
            thread::spawn(move || {
                // SAFETY: the other side reads it after it has seen the flag, or the checker says so.
                memory.0.value.with_mut(|at| unsafe { *at = 7 });
                vitals.revoke();
            })
        };
        if vitals.is_revoked() {
            memory.read();
            saw("revoked");
        } else {
            saw("not yet");
        }
        revoker.join().unwrap();
    });
}
