//! Devices that read behind the back of whoever leased.

use std::sync::Arc;

use weighbridge::fence::{self, Steps};
use weighbridge::{Lease, SetHandle, WeightRegistry};

use super::Size;
use super::crew::Crew;
use super::oracle::{LEN, Stamp, close, registry, source};

/// Bytes that a device works on, without a lease of its own.
struct Work {
    at: *const u8,
    stamp: Stamp,
}

// SAFETY: the bytes are read-only, and there until the fence has passed: that is the test.
unsafe impl Send for Work {}

impl Work {
    /// Queues the bytes of `w` of a lease.
    fn queue(lease: &Lease, set: SetHandle) -> Self {
        let bytes = lease.set(set).unwrap().get("w").unwrap().bytes();
        Work {
            at: bytes.as_ptr(),
            stamp: Stamp::of(bytes),
        }
    }

    /// # Safety
    /// The fence that the lease was given away with has not passed.
    unsafe fn run(&self) {
        // SAFETY: `w` has so many bytes, and they are there, says the caller.
        let bytes = unsafe { std::slice::from_raw_parts(self.at, LEN) };
        assert_eq!(
            Stamp::of(bytes),
            self.stamp,
            "the bytes changed under a device"
        );
    }
}

/// One request after the other gives its lease away, in one of two ways, and works on.
fn devices(registry: &WeightRegistry, set: SetHandle, steps: &Steps, step: u64) {
    let lease = registry.acquire(set).unwrap();
    let work = Work::queue(&lease, set);
    if step.is_multiple_of(2) {
        let (done, fence) = fence::signal("device");
        lease.release_after(fence);
        // SAFETY: the signal is not set.
        unsafe { work.run() };
        done.set();
    } else {
        lease.release_after(steps.after(step));
        // SAFETY: the step is not completed.
        unsafe { work.run() };
        steps.complete(step);
    }
}

pub fn fences(size: Size) {
    let registry = registry();
    let set = registry.publish("s", source(1, 0)).unwrap();
    let mut crew = Crew::new();
    let writer = Arc::clone(&registry);
    crew.lead(move || {
        for version in 1..=size.rounds {
            writer.replace(set, source(1, version)).unwrap();
        }
    });
    for thread in 0..size.threads {
        let registry = Arc::clone(&registry);
        let (steps, mut step) = (Steps::new("stream"), thread as u64);
        crew.follow(move || {
            step += 1;
            devices(&registry, set, &steps, step);
        });
    }
    crew.work();
    close(&registry);
}

/// The registry goes while devices work; what they work on stays.
pub fn keeper_shutdown(size: Size) {
    for round in 0..size.rounds {
        let registry = registry();
        let set = registry.publish("s", source(1, round)).unwrap();
        // Held by nobody but fences when the registry goes.
        let going = registry.acquire(set).unwrap();
        let work = Work::queue(&going, set);
        let (done, fence) = fence::signal("the last one");
        going.release_after(fence);
        let going = registry.retire(set).unwrap();
        let other = registry.publish("other", source(1, round)).unwrap();
        let mut crew = Crew::new();
        crew.lead(move || {
            // SAFETY: the signal is not set.
            unsafe { work.run() };
            done.set();
            going.reclaimed(super::oracle::LONG).unwrap();
        });
        for thread in 0..size.threads.min(4) as u64 {
            let registry = Arc::clone(&registry);
            crew.lead(move || {
                let steps = Steps::new("stream");
                (0..2).for_each(|step| devices(&registry, other, &steps, thread + step + 1));
            });
        }
        drop(registry);
        crew.work();
    }
}
