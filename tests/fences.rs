//! Fences: bytes stay until the device is done, whoever else has let go; a fence that hangs, panics
//! or comes late holds what it holds and nothing else.

mod support;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use support::{SOON, bytes, registry};
use weighbridge::fence::{self, Bell, Fence, Steps};
use weighbridge::{Error, Lease, WeightHandle, WeightRegistry};

/// Waits for what another thread is going to make true.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A device: reads the bytes of a lease that its owner has given away, when it is told to, and
/// says what it read.
struct Device {
    go: mpsc::Sender<()>,
    read: mpsc::Receiver<Vec<u8>>,
}

impl Device {
    /// Queues work on the bytes of `w` and gives the lease away behind the device's fence.
    fn queue(lease: Lease, w: WeightHandle, name: &str) -> Self {
        struct At(*const u8, usize);
        // SAFETY: the bytes are read-only and stay until the fence has passed: that is the test.
        unsafe impl Send for At {}
        impl At {
            /// # Safety
            /// The bytes are there.
            unsafe fn copy(&self) -> Vec<u8> {
                // SAFETY: the caller's.
                unsafe { std::slice::from_raw_parts(self.0, self.1) }.to_vec()
            }
        }
        let bytes = lease.weight(w).unwrap().bytes();
        let at = At(bytes.as_ptr(), bytes.len());
        let (done, fence) = fence::signal(name);
        let (go, start) = mpsc::channel::<()>();
        let (result, read) = mpsc::channel();
        std::thread::spawn(move || {
            if start.recv().is_ok() {
                // SAFETY: the signal is not set yet.
                let copied = unsafe { at.copy() };
                done.set();
                let _ = result.send(copied);
            }
        });
        lease.release_after(fence);
        Device { go, read }
    }

    fn finish(&self) -> Vec<u8> {
        self.go.send(()).unwrap();
        self.read.recv_timeout(SOON).unwrap()
    }
}

fn published(
    registry: &WeightRegistry,
    name: &str,
    fill: u8,
) -> (weighbridge::SetHandle, WeightHandle) {
    let set = registry.publish(name, bytes(1 << 16, fill)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    (set, w)
}

#[test]
fn bytes_stay_until_the_fence_has_passed_though_the_lease_is_gone() {
    let registry = registry();
    let (set, w) = published(&registry, "a", 7);
    let device = Device::queue(registry.acquire(set).unwrap(), w, "stream 0");
    let going = registry.retire(set).unwrap();
    assert_eq!((going.leases(), going.is_drained()), (1, false));
    // Other sets come and go meanwhile.
    for round in 0..10 {
        let other = registry.publish("other", bytes(64, round)).unwrap();
        registry.retire(other).unwrap().reclaimed(SOON).unwrap();
    }
    assert!(!going.is_reclaimed());
    assert!(registry.ledger().retired >= 1 << 16);
    assert_eq!(device.finish(), vec![7; 1 << 16]);
    going.drained(SOON).unwrap();
    going.reclaimed(SOON).unwrap();
    let ledger = registry.ledger();
    assert_eq!((ledger.retired, ledger.resident), (0, 0));
    until("the fence is still counted", || {
        registry.stats().pending_fences == 0
    });
    assert_eq!(registry.stats().oldest_fence, None);
}

#[test]
fn a_drain_names_the_fences_in_the_way() {
    let registry = registry();
    let (set, w) = published(&registry, "a", 7);
    let named = Device::queue(
        registry.acquire_as("request-42", set).unwrap(),
        w,
        "stream\n7",
    );
    let unnamed = Arc::new(AtomicBool::new(false));
    let passed = Arc::clone(&unnamed);
    registry
        .acquire(set)
        .unwrap()
        .release_after(move || passed.load(Ordering::Acquire));
    let held = registry.acquire_as("request-43", set).unwrap();
    let going = registry.retire(set).unwrap();
    let Err(Error::NotDrained(holdup)) = going.drained(Duration::ZERO) else {
        panic!("three leases are in the way")
    };
    assert_eq!(holdup.leases, 3);
    let labels: Vec<_> = holdup.holders.iter().map(|holder| &*holder.label).collect();
    assert_eq!(
        labels,
        ["request-43"],
        "a lease that was given away is its fence's"
    );
    let mut names: Vec<_> = holdup.fences.iter().map(|fence| &*fence.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["stream\n7 (request-42)", "unnamed fence"]);
    let text = holdup.to_string();
    for part in [
        "3 lease(s)",
        "\"request-43\" for",
        r#"fence "stream\n7 (request-42)" not passed for"#,
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert!(!text.contains('\n') && !text.contains("more"), "{text}");
    let stats = registry.stats();
    assert_eq!(stats.pending_fences, 2);
    assert_eq!(registry.fences().len(), 2);
    assert!(stats.oldest_fence >= registry.fences().last().map(|fence| fence.age));
    assert!(
        registry
            .fences()
            .iter()
            .all(|fence| fence.generation == going.generation())
    );
    named.finish();
    unnamed.store(true, Ordering::Release);
    until("a fence that passed is still named", || {
        going.fences().is_empty()
    });
    assert_eq!(going.leases(), 1);
    drop(held);
    going.reclaimed(SOON).unwrap();
}

#[test]
fn a_message_names_a_few_of_many_fences() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 7);
    let steps = Steps::new("stream");
    for step in 1..=20 {
        registry
            .acquire(set)
            .unwrap()
            .release_after(steps.after(step));
    }
    let going = registry.retire(set).unwrap();
    assert_eq!(going.fences().len(), 20);
    let text = going.drained(Duration::ZERO).unwrap_err().to_string();
    assert_eq!(text.matches("fence ").count(), 5, "{text}");
    assert!(text.ends_with("and 15 more"), "{text}");
    steps.complete(19);
    until("19 steps are completed", || going.leases() == 1);
    assert_eq!(going.fences()[0].name, "stream after step 20");
    steps.complete(7); // An old number changes nothing.
    steps.complete(20);
    going.reclaimed(SOON).unwrap();
}

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

#[test]
fn a_fence_outlives_the_registry_and_frees_what_it_held() {
    let registry = registry();
    let (retired, w) = published(&registry, "retired", 1);
    let first = Device::queue(registry.acquire(retired).unwrap(), w, "retired");
    let going = registry.retire(retired).unwrap();
    let (current, w) = published(&registry, "current", 2);
    let second = Device::queue(registry.acquire(current).unwrap(), w, "current");
    let late = registry.acquire(current).unwrap();
    drop(registry); // Does not wait for fences.
    assert!(!going.is_reclaimed());
    assert_eq!(going.fences().len(), 1);
    assert_eq!(first.finish(), vec![1; 1 << 16]);
    going.reclaimed(SOON).unwrap();
    assert_eq!(second.finish(), vec![2; 1 << 16]);
    // A lease that is given away when the registry is long gone.
    let third = Device::queue(late, w, "late");
    assert_eq!(third.finish(), vec![2; 1 << 16]);
}

/// Nothing else keeps what a fence kept: not the lease's metadata, not the ledger, not the keeper.
#[test]
fn after_the_last_fence_nothing_of_the_registry_is_left() {
    struct Canary(Arc<AtomicUsize>);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let (opens, gate) = mpsc::channel::<()>();
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let canary = Canary(Arc::clone(&dropped));
    registry.acquire(set).unwrap().release_after(move || {
        let _ = &canary;
        gate.try_recv() == Err(mpsc::TryRecvError::Disconnected)
    });
    let going = registry.retire(set).unwrap();
    drop(registry);
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    drop(opens);
    going.reclaimed(SOON).unwrap();
    until("the fence was not dropped", || {
        dropped.load(Ordering::Relaxed) == 1
    });
}

#[test]
fn a_thousand_fences_from_many_threads_pass_in_any_order() {
    const THREADS: usize = 8;
    const EACH: usize = 125;
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let barrier = Barrier::new(THREADS);
    let signals: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (registry, barrier) = (&registry, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let queue = |index| {
                        let (done, fence) = fence::signal(format!("{thread}-{index}"));
                        registry.acquire(set).unwrap().release_after(fence);
                        done
                    };
                    (0..EACH).map(queue).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let going = registry.retire(set).unwrap();
    assert_eq!(going.leases(), (THREADS * EACH) as u64);
    assert_eq!(registry.stats().pending_fences, (THREADS * EACH) as u64);
    assert_eq!(going.fences().len(), THREADS * EACH);
    // Every seventh first, from two threads.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let signals = &signals;
            scope.spawn(move || {
                for start in 0..7 {
                    for signal in signals.iter().skip(start).step_by(7).skip(half).step_by(2) {
                        assert!(!signals.is_empty());
                        signal.set();
                    }
                }
            });
        }
    });
    going.reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().retired, 0);
    until("all are gone", || registry.stats().pending_fences == 0);
}

#[test]
fn a_fence_that_has_passed_already_is_in_nobodys_way() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let (done, fence) = fence::signal("early");
    done.set();
    done.set();
    registry.acquire(set).unwrap().release_after(fence);
    registry.acquire(set).unwrap().release_after(|| true);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
}

#[test]
fn a_lease_of_several_sets_holds_all_of_them_until_its_fence_has_passed() {
    let registry = registry();
    let (a, w) = published(&registry, "a", 1);
    let (b, _) = published(&registry, "b", 2);
    let device = Device::queue(registry.acquire([a, b]).unwrap(), w, "both");
    let (a, b) = (registry.retire(a).unwrap(), registry.retire(b).unwrap());
    assert_eq!((a.fences().len(), b.fences().len()), (1, 1));
    assert_eq!(
        (registry.fences().len(), registry.stats().pending_fences),
        (2, 1)
    );
    device.finish();
    a.reclaimed(SOON).unwrap();
    b.reclaimed(SOON).unwrap();
}

#[test]
fn retire_after_holds_the_generation_that_was_current() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let (done, fence) = fence::signal("at retire");
    let going = registry.retire_after(set, fence).unwrap();
    assert!(matches!(
        registry.acquire(set),
        Err(Error::StaleHandle { .. })
    ));
    assert_eq!(going.fences()[0].name, "at retire");
    assert!(!going.is_drained());
    // The name is free at once.
    registry.publish("a", bytes(64, 2)).unwrap();
    done.set();
    going.reclaimed(SOON).unwrap();
}

#[test]
fn retire_after_retires_nothing_when_it_fails() {
    let registry = registry();
    let (set, _) = published(&registry, "a", 1);
    let first = registry
        .acquire(set)
        .unwrap()
        .sets()
        .next()
        .unwrap()
        .generation();
    let second = registry.replace(set, bytes(64, 2)).unwrap().generation;
    let dropped = Arc::new(());
    let fence = |token: &Arc<()>| {
        let token = Arc::clone(token);
        move || Arc::strong_count(&token) == 0
    };
    let error = registry
        .retire_after_if(set, first, fence(&dropped))
        .unwrap_err();
    let Error::Conflict {
        expected, current, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((expected, current), (first, second));
    assert_eq!(registry.stats().pending_fences, 0);
    assert_eq!(Arc::strong_count(&dropped), 1, "the fence is dropped");
    registry
        .retire_after_if(set, second, || true)
        .unwrap()
        .reclaimed(SOON)
        .unwrap();
    let error = registry.retire_after(set, fence(&dropped)).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(Arc::strong_count(&dropped), 1);
}

/// Whatever generation a racing replace leaves, the one that is retired is the one that is fenced.
#[test]
fn retire_after_fences_what_it_retires_while_replaces_race_it() {
    for _ in 0..200 {
        let registry = registry();
        let (set, _) = published(&registry, "a", 0);
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                for fill in 1..20 {
                    if registry.replace(set, bytes(64, fill)).is_err() {
                        break;
                    }
                }
            });
            barrier.wait();
            let (done, fence) = fence::signal("at retire");
            let going = registry.retire_after(set, fence).unwrap();
            let fences = going.fences();
            assert_eq!(fences.len(), 1);
            assert_eq!(fences[0].generation, going.generation());
            done.set();
            going.reclaimed(SOON).unwrap();
        });
    }
}

#[test]
fn a_revoked_lease_is_told_and_keeps_its_bytes() {
    let registry = registry();
    let (set, w) = published(&registry, "a", 1);
    let (other, _) = published(&registry, "b", 2);
    let lease = registry.acquire([set, other]).unwrap();
    assert!(!lease.is_revoked() && !lease.is_superseded());
    let replaced = registry.replace(set, bytes(1 << 16, 3)).unwrap();
    assert!(lease.is_superseded() && !lease.is_revoked());
    let twin = lease.clone();
    replaced.previous.revoke();
    assert!(lease.is_revoked() && twin.is_revoked());
    let told = |lease: &Lease| {
        let of = |at| lease.set(at).unwrap();
        (
            of(set).is_revoked(),
            of(set).is_superseded(),
            of(other).is_revoked(),
            of(other).is_superseded(),
        )
    };
    assert_eq!(told(&lease), (true, true, false, false));
    assert_eq!(
        lease.weight(w).unwrap().bytes(),
        vec![1; 1 << 16],
        "nothing is taken away"
    );
    let new = registry.acquire(set).unwrap();
    assert!(!new.is_revoked() && !new.is_superseded());
    let going = registry.revoke(set).unwrap();
    assert!(new.is_revoked() && new.is_superseded());
    assert!(registry.revoke(set).unwrap_err().is_not_found());
    assert_eq!(going.leases(), 3);
    drop((lease, twin, new));
    going.reclaimed(SOON).unwrap();
}
