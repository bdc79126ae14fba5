//! Fences that hang, block or panic hold what they hold, and nothing else.

mod support;

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use support::device::{Device, published, until};
use support::{SOON, bytes, registry};
use weighbridge::fence::{self, Bell, Fence};

#[test]
fn a_fence_that_never_passes_holds_its_generation_and_nothing_else() {
    let registry = registry();
    let (hung, _) = published(&registry, "hung", 1);
    let (fine, w) = published(&registry, "fine", 2);
    // The signal is dropped without having been set.
    let (_, fence) = fence::signal("hung device");
    registry.acquire(hung).unwrap().release_after(fence);
    let stuck = registry.retire(hung).unwrap();
    for _ in 0..100 {
        let device = Device::queue(registry.acquire(fine).unwrap(), w, "fine device");
        let replaced = registry.replace(fine, bytes(1 << 16, 2)).unwrap();
        assert_eq!(device.finish(), vec![2; 1 << 16]);
        replaced.previous.drained(SOON).unwrap();
        replaced.previous.reclaimed(SOON).unwrap();
    }
    registry.retire(fine).unwrap().reclaimed(SOON).unwrap();
    assert!(!stuck.is_drained());
    assert_eq!(stuck.fences()[0].name, "hung device");
    assert_eq!(registry.retired().len(), 1);
    until("only the hung one is pending", || {
        registry.stats().pending_fences == 1
    });
}

/// A fence that blocks in its query stops other fences only.
#[test]
fn a_fence_that_blocks_stops_no_frees_and_no_drains() {
    let registry = registry();
    let (blocked, _) = published(&registry, "blocked", 1);
    let (fine, _) = published(&registry, "fine", 2);
    let (inside, entered) = mpsc::channel();
    let (unblock, gate) = mpsc::channel::<()>();
    registry.acquire(blocked).unwrap().release_after(move || {
        let _ = inside.send(());
        let _ = gate.recv();
        true
    });
    entered.recv_timeout(SOON).unwrap();
    let waiting = registry.retire(blocked).unwrap();
    let lease = registry.acquire_as("request", fine).unwrap();
    let going = registry.retire(fine).unwrap();
    drop(lease);
    going.drained(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
    // Another fence is not looked at, but it is accepted, counted and named.
    let (next, _) = published(&registry, "next", 3);
    let lease = registry.acquire(next).unwrap();
    lease.release_after(fence::named("behind it", || true));
    assert_eq!(registry.retire(next).unwrap().fences()[0].name, "behind it");
    assert!(!waiting.is_drained());
    drop(unblock);
    waiting.reclaimed(SOON).unwrap();
    until("the one behind it passes", || {
        registry.stats().pending_fences == 0
    });
}

struct Panics {
    looks: Arc<AtomicUsize>,
}

impl Fence for Panics {
    fn has_passed(&mut self) -> bool {
        self.looks.fetch_add(1, Ordering::Relaxed);
        panic!("on purpose: has_passed")
    }

    fn name(&self) -> Cow<'_, str> {
        "driver that is gone".into()
    }
}

#[test]
fn a_fence_that_panics_never_passes_and_says_so() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let looks = Arc::new(AtomicUsize::new(0));
    let lease = registry.acquire(set).unwrap();
    lease.release_after(Panics {
        looks: Arc::clone(&looks),
    });
    let going = registry.retire(set).unwrap();
    until("it is looked at", || registry.stats().fence_panics == 1);
    until("it is marked", || {
        going.fences().iter().any(|fence| fence.broken)
    });
    // Others pass, which takes the keeper past it many times.
    for _ in 0..20 {
        let (other, w) = published(&registry, "b", 2);
        let device = Device::queue(registry.acquire(other).unwrap(), w, "b");
        let other = registry.retire(other).unwrap();
        device.finish();
        other.reclaimed(SOON).unwrap();
    }
    assert_eq!(
        looks.load(Ordering::Relaxed),
        1,
        "asked again after it panicked"
    );
    assert!(!going.is_drained());
    let text = going.drained(Duration::ZERO).unwrap_err().to_string();
    assert!(
        text.contains(r#"fence "driver that is gone" panicked"#),
        "{text}"
    );
    assert_eq!(registry.fences().len(), 1, "one entry, not two");
}

struct Rude(&'static str);

impl Fence for Rude {
    fn has_passed(&mut self) -> bool {
        true
    }

    fn listen(&mut self, _: &Bell) -> bool {
        assert!(self.0 != "listen", "on purpose: listen");
        false
    }

    fn name(&self) -> Cow<'_, str> {
        assert!(self.0 != "name", "on purpose: name");
        self.0.into()
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        assert!(self.0 != "drop", "on purpose: drop");
    }
}

#[test]
fn panics_in_a_fences_other_methods_stay_where_they_are() {
    let registry = registry();
    for (panics, method, passes) in [(1, "name", true), (2, "drop", true), (3, "listen", false)] {
        let (set, _) = published(&registry, method, 1);
        registry.acquire(set).unwrap().release_after(Rude(method));
        let going = registry.retire(set).unwrap();
        until("it is looked at", || {
            registry.stats().fence_panics == panics
        });
        if passes {
            going.reclaimed(SOON).unwrap();
        } else {
            assert!(!going.is_drained() && going.fences()[0].name == "listen");
        }
    }
}

/// Then the registry is dropped by the thread that looks at fences.
#[test]
fn a_fence_may_own_the_registry() {
    let registry = Arc::new(registry());
    let gone = Arc::downgrade(&registry);
    let (opens, gate) = mpsc::channel::<()>();
    let (set, _) = published(&registry, "a", 1);
    let (current, _) = published(&registry, "current", 2);
    let mine = Arc::clone(&registry);
    registry
        .acquire([set, current])
        .unwrap()
        .release_after(move || {
            assert!(mine.stats().pending_fences > 0);
            gate.try_recv() == Err(mpsc::TryRecvError::Disconnected)
        });
    let going = registry.retire(set).unwrap();
    drop(registry);
    assert!(!going.is_drained() && gone.upgrade().is_some());
    drop(opens);
    going.reclaimed(SOON).unwrap();
    until("the registry is still there", || gone.strong_count() == 0);
}
