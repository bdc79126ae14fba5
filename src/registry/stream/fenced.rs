//! Parts that are given away until a fence has passed.
//!
//! What lives here: giving a part back behind a fence. What does not: the fences (`fence`), the thread that looks at them
//! (`core::keeper`), the same for leases (`registry::fenced`).

use std::mem::ManuallyDrop;
use std::sync::{Arc, Weak};

use super::part::Part;
use super::reader::{Held, Ward, nanoseconds, read_soon};
use super::{Lease, Stream};
use crate::core::{Bell, Kept};
use crate::fence::Fence;
use crate::registry::content::PartWindow;
use crate::registry::loaders::Loaders;

/// A part and what it waits for. Dropping it gives the part back first: a fence's destructor is foreign code, and may
/// take its time.
struct Fenced<F> {
    held: Holding,
    fence: F,
}

/// A part, and the lease that it is of.
struct Holding {
    lease: Lease,
    window: Arc<PartWindow>,
    part: u32,
    /// Not kept by this: an open stream keeps them.
    loaders: Weak<Loaders>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        // Somebody is wanted who reads only if a stream is open.
        if self.window.release_fenced(self.part)
            && let Some(loaders) = self.loaders.upgrade()
        {
            read_soon(&loaders, &self.window);
        }
    }
}

impl<F: Fence> Kept for Fenced<F> {
    fn listen(&mut self, bell: &Bell) -> bool {
        self.fence.listen(bell)
    }

    fn may_go(&mut self) -> bool {
        self.fence.has_passed()
    }

    fn broke(&mut self) {
        self.held.lease.mark_broken();
    }
}

impl Ward {
    /// Gives a part back when `fence` has passed.
    fn release_after(&self, held: &Held, fence: impl Fence) {
        let lease = self.lease().clone();
        let Some(since) = held.since() else {
            // It goes with the set only.
            return lease.release_after(fence);
        };
        if self.check_process().is_err() {
            // Nobody would look at the fence, and the locks may be held for ever.
            return std::mem::forget((lease, fence));
        }
        let call = self.window.fence(held.part, nanoseconds(since));
        let held = Holding {
            lease,
            window: Arc::clone(&self.window),
            part: held.part,
            loaders: Arc::downgrade(&self.loaders),
        };
        // The part is already inside: if anything here panics, it must not be given back by unwinding.
        let mut fenced = ManuallyDrop::new(Fenced { held, fence });
        let keeper = self.keeper();
        let name = keeper.guarded(|| fenced.fence.name().into_owned());
        let name = name.as_deref().unwrap_or("fence whose name panicked");
        fenced.held.lease.mark_fenced(name);
        keeper.keep(Box::new(ManuallyDrop::into_inner(fenced)));
        self.called(call);
    }
}

impl Part<'_> {
    /// Gives the part back when `fence` has passed, without waiting for it: for work that was queued on a device and reads
    /// the part after the caller is done. The stream goes on at once.
    ///
    /// Until then the part stays where it is, and so much less of the window is there for others: whoever wants what does not fit
    /// beside it waits for the fence (and is in nobody's way as long). A fence that passes only after work on the stream's next part
    /// wants a window that has room for that, too; where several streams do so at a time, for one part of each and one more. A lease of the set is kept as long, named by the fence as in
    /// [`Lease::release_after`](crate::Lease::release_after), which says what else holds.
    ///
    /// # Examples
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use weighbridge::{Order, Parts, WeightRegistry, WindowSize, source::{Checkpoint, Streamed}};
    /// use weighbridge::fence;
    /// # let registry = Arc::new(WeightRegistry::builder().build()?);
    /// # let checkpoint = Checkpoint::open("fixtures/tiny-llama")?;
    /// # let streamed = Streamed::new(checkpoint, &Parts::layers(), WindowSize::Parts(2))?;
    /// # let set = registry.publish("tiny", streamed)?;
    /// # let lease = registry.acquire(set)?;
    /// # let mut stream = registry.stream(&lease, set, Order::ring())?;
    /// # let soon = Duration::from_secs(5);
    /// let (copied, copy) = fence::signal("copy of layer 0");
    /// let layer = stream.part(0, soon)?;
    /// layer.release_after(copy); // the copy was queued, and goes on
    /// let next = stream.part(1, soon)?;
    /// # drop(next);
    /// copied.set(); // from now on its place is free
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn release_after(self, fence: impl Fence) {
        let (stream, held) = self.into_parts();
        stream.ward.release_after(&held, fence);
    }
}

impl Stream {
    /// [`leave`](Self::leave), for the part that it has [entered](Self::enter), as
    /// [`Part::release_after`]. Without such a part the fence is dropped.
    pub fn leave_after(&mut self, fence: impl Fence) {
        if let Some(held) = self.entered.take() {
            self.ward.release_after(&held, fence);
        }
    }
}
