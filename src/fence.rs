//! Fences: how a device, or whoever else works behind the CPU's back, says that it has finished.
//!
//! What lives here: [`Fence`] and ready-made ones: a query, a signal, a count of steps. What does
//! not: what a fence holds back ([`Lease::release_after`](crate::Lease::release_after)), who looks
//! at it (`core::keeper`).
//!
//! A request that has queued work on a device is done with its lease before the device is done with
//! the bytes. It gives its lease away together with a fence; the lease ends when the fence has
//! passed, and until then it is an ordinary lease: it is counted, it is in the way of a drain, and
//! the drain names the fence.
//!
//! ```
//! use std::time::Duration;
//! use weighbridge::{Dtype, WeightRegistry, fence, source::InMemory};
//!
//! let registry = WeightRegistry::builder().build()?;
//! let set = registry.publish("s", InMemory::new().tensor("w", Dtype::U8, [1], [7])?)?;
//!
//! let lease = registry.acquire(set)?;
//! let (signal, queued) = fence::signal("copy to device 0");
//! // ... queue the copy, and `signal.set()` as its completion callback ...
//! lease.release_after(queued); // does not wait
//!
//! let going = registry.retire(set)?;
//! let error = going.drained(Duration::ZERO).unwrap_err();
//! assert!(error.to_string().contains("copy to device 0"));
//! signal.set();
//! going.reclaimed(Duration::from_secs(5))?;
//! # Ok::<(), weighbridge::Error>(())
//! ```
//!
//! Work that runs without a lease, such as a captured graph that is replayed, is fenced where the
//! weights are taken away: at a retire with
//! [`retire_after`](crate::WeightRegistry::retire_after), at a replace by a lease that is taken
//! before:
//!
//! ```
//! # use std::time::Duration;
//! # use weighbridge::{Dtype, WeightRegistry, fence, source::InMemory};
//! # let registry = WeightRegistry::builder().build()?;
//! # let version = |byte| InMemory::new().tensor("w", Dtype::U8, [1], [byte]);
//! # let set = registry.publish("s", version(1)?)?;
//! let steps = fence::Steps::new("stream 0"); // `complete(n)` when step n is
//! let lease = registry.acquire(set)?;
//! let current = lease.set(set)?.generation();
//! let swap = registry.replace_if(set, current, version(2)?)?;
//! lease.release_after(steps.after(17)); // the last step that was queued with the old weights
//! # assert!(!swap.previous.is_drained());
//! steps.complete(17);
//! swap.previous.reclaimed(Duration::from_secs(5))?;
//! # Ok::<(), weighbridge::Error>(())
//! ```

use std::borrow::Cow;
use std::sync::Arc;

pub use crate::core::Bell;
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Says when nothing uses the bytes of a lease any more.
///
/// Its methods are called on a thread of the registry's own (but see
/// [`release_after`](crate::Lease::release_after) for a system without one), never on the
/// reclaimer's; [`name`](Self::name) on the caller's. They must not block: while one does, other
/// fences of the registry wait. Frees, drains and everything else go on. A panic is caught and
/// counted; such a fence never passes, for a leak is better than a device that reads freed memory.
pub trait Fence: Send + 'static {
    /// Has it passed? Asked until it says yes; then the fence is dropped.
    ///
    /// Whatever used the bytes must happen before a yes: a flag that is set elsewhere needs a
    /// release there and an acquire here.
    fn has_passed(&mut self) -> bool;

    /// Called once, before the first look. A fence that keeps the bell and rings it when it has
    /// passed returns `true`; it is seen to have passed at once, and is not looked at in between. Any
    /// other is looked at after 50 microseconds, then ever less often, down to every 5 milliseconds.
    fn listen(&mut self, bell: &Bell) -> bool {
        let _ = bell;
        false
    }

    /// What a drain that waits for it calls it.
    fn name(&self) -> Cow<'_, str> {
        "unnamed fence".into()
    }
}

/// A query, such as of a device's event.
impl<F: FnMut() -> bool + Send + 'static> Fence for F {
    fn has_passed(&mut self) -> bool {
        self()
    }
}

impl Fence for Box<dyn Fence> {
    fn has_passed(&mut self) -> bool {
        (**self).has_passed()
    }

    fn listen(&mut self, bell: &Bell) -> bool {
        (**self).listen(bell)
    }

    fn name(&self) -> Cow<'_, str> {
        (**self).name()
    }
}

/// Gives a fence a name: `named("stream 0", move || event.query())`.
pub fn named<F: Fence>(name: impl Into<String>, fence: F) -> Named<F> {
    Named(name.into(), fence)
}

/// A fence under another name, see [`named`].
#[derive(Debug)]
pub struct Named<F>(String, F);

impl<F: Fence> Fence for Named<F> {
    fn has_passed(&mut self) -> bool {
        self.1.has_passed()
    }

    fn listen(&mut self, bell: &Bell) -> bool {
        self.1.listen(bell)
    }

    fn name(&self) -> Cow<'_, str> {
        self.0.as_str().into()
    }
}

const WAITING: u32 = 0;
/// Somebody left a bell.
const LISTENED: u32 = 1;
const PASSED: u32 = 2;

struct Wire {
    state: AtomicU32,
    bell: OnceLock<Bell>,
}

/// A fence that is passed by a call, and is seen to have passed without delay: for completion
/// callbacks. The [`Signal`] is set there, the [`SignalFence`] goes to `release_after`.
pub fn signal(name: impl Into<String>) -> (Signal, SignalFence) {
    let wire = Arc::new(Wire {
        state: AtomicU32::new(WAITING),
        bell: OnceLock::new(),
    });
    let fence = SignalFence {
        wire: Arc::clone(&wire),
        name: name.into(),
    };
    (Signal(wire), fence)
}

/// The side of [`signal`] that is set.
///
/// A signal that is dropped without having been set never passes: nobody knows whether the device
/// has finished.
pub struct Signal(Arc<Wire>);

impl Signal {
    /// The fence has passed. Everything that this thread, or the device as far as it told this
    /// thread, did with the bytes is over. Lock-free, allocates nothing; may be called again.
    pub fn set(&self) {
        // E22: AcqRel: all uses come before the look that sees this; the bell that was left is seen.
        // One word: either `listen` sees PASSED, or we see that it left a bell.
        if self.0.state.swap(PASSED, Ordering::AcqRel) == LISTENED
            && let Some(bell) = self.0.bell.get()
        {
            bell.ring();
        }
    }
}

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

/// The side of [`signal`] that passes.
pub struct SignalFence {
    wire: Arc<Wire>,
    name: String,
}

impl Fence for SignalFence {
    fn has_passed(&mut self) -> bool {
        // E22: Acquire: pairs with `Signal::set`.
        self.wire.state.load(Ordering::Acquire) == PASSED
    }

    fn listen(&mut self, bell: &Bell) -> bool {
        let _ = self.wire.bell.set(bell.clone());
        // E22: Release: the bell, for `set`. If it fails, the next look sees PASSED.
        let _ = self.wire.state.compare_exchange(
            WAITING,
            LISTENED,
            Ordering::Release, // E22
            Ordering::Relaxed, // E22
        );
        true
    }

    fn name(&self) -> Cow<'_, str> {
        self.name.as_str().into()
    }
}

impl std::fmt::Debug for SignalFence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SignalFence").field(&self.name).finish()
    }
}

/// A count of steps that are completed in order, such as a stream's or a decode loop's: one counter
/// instead of one signal per lease.
///
/// ```
/// use weighbridge::fence::{Fence, Steps};
///
/// let steps = Steps::new("stream 0");
/// let mut fence = steps.after(2);
/// steps.complete(1);
/// assert!(!fence.has_passed());
/// steps.complete(2);
/// assert!(fence.has_passed());
/// ```
#[derive(Clone)]
pub struct Steps(Arc<StepCount>);

struct StepCount {
    completed: AtomicU64,
    name: String,
}

impl Steps {
    /// No step is completed. Its fences carry `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Steps(Arc::new(StepCount {
            completed: AtomicU64::new(0),
            name: name.into(),
        }))
    }

    /// All steps up to `step` are completed; the highest number counts. Wait-free.
    pub fn complete(&self, step: u64) {
        // E22: Release: all uses in these steps come before the look that sees this. A
        // read-modify-write, so that what earlier calls published is not cut off.
        self.0.completed.fetch_max(step, Ordering::Release);
    }

    /// A fence that passes when `step` is completed. It is looked at from time to time.
    pub fn after(&self, step: u64) -> impl Fence + use<> {
        AfterStep {
            steps: self.clone(),
            step,
        }
    }
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Steps").field(&self.0.name).finish()
    }
}

struct AfterStep {
    steps: Steps,
    step: u64,
}

impl Fence for AfterStep {
    fn has_passed(&mut self) -> bool {
        // E22: Acquire: pairs with `complete`.
        self.steps.0.completed.load(Ordering::Acquire) >= self.step
    }

    fn name(&self) -> Cow<'_, str> {
        format!("{} after step {}", self.steps.0.name, self.step).into()
    }
}
