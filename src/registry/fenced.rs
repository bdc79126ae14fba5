//! Leases that are given away until a fence has passed.
//!
//! What lives here: releasing and retiring behind a fence, and who waits for one. What does not: the
//! fences (`fence`), the thread that looks at them (`core::keeper`).
//!
//! A fence needs no state of its own in a generation: what waits for it is an ordinary lease.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::WeightRegistry;
use super::event::Operation;
use super::generation::{Hold, Meta};
use super::lease::Lease;
use super::observe::itself;
use super::retirement::Retirement;
use super::shared::Shared;
use crate::core::{Bell, Kept};
use crate::error::Error;
use crate::fence::Fence;
use crate::handle::{Generation, SetHandle};
use crate::holdup::FenceHolder;
use crate::labels::{LabelId, Labelled};

/// A lease and what it waits for. Dropping it releases the lease first: a fence's destructor is
/// foreign code, and may take its time.
struct Fenced<F> {
    lease: Lease,
    fence: F,
}

impl<F: Fence> Kept for Fenced<F> {
    fn listen(&mut self, bell: &Bell) -> bool {
        self.fence.listen(bell)
    }

    fn may_go(&mut self) -> bool {
        self.fence.has_passed()
    }

    fn broke(&mut self) {
        self.lease.mark_broken();
    }
}

impl Lease {
    /// Ends this lease when `fence` has passed, without waiting for it: for work that was queued on a
    /// device and reads the bytes after the caller is done.
    ///
    /// Until then the lease counts as any other. A drain names the fence; if the lease had a label,
    /// it is named together with it. One fence that never passes holds what this lease held, and
    /// nothing else. The registry may be dropped meanwhile: a fence holds, whoever else is gone.
    ///
    /// Progress: lock-free, allocates a few small blocks. The first fence of a registry starts the
    /// thread that looks at fences, and others that come at this moment wait for it; if the system
    /// refuses that thread, this waits for the fence itself, for the bytes must not go earlier.
    /// After a `fork` the child has no such thread and starts none: what it gives away there is kept,
    /// and the fence is asked nothing.
    ///
    /// # Examples
    /// See [`fence`](crate::fence).
    pub fn release_after(self, fence: impl Fence) {
        let Some(shared) = self.shared().map(Arc::clone) else {
            return; // It holds nothing.
        };
        if shared.check_process().is_err() {
            // Nobody would look at the fence, and the lock for starting who does may be held for ever.
            return std::mem::forget((self, fence));
        }
        // The lease is already inside: if anything here panics, it must not end by unwinding.
        let mut fenced = ManuallyDrop::new(Fenced { lease: self, fence });
        let name = shared.keeper.guarded(|| fenced.fence.name().into_owned());
        fenced
            .lease
            .mark_fenced(name.as_deref().unwrap_or("fence whose name panicked"));
        let fenced = ManuallyDrop::into_inner(fenced);
        shared.keeper.keep(Box::new(fenced));
    }

    /// The account core; `None` if the lease holds no set.
    fn shared(&self) -> Option<&Arc<Shared>> {
        self.holds.first().map(|hold| &hold.meta().shared)
    }

    /// Enters every generation of this lease under a fence's name, in place of its label.
    pub(super) fn mark_fenced(&mut self, name: &str) {
        let enter = |(hold, old): (&Hold, Option<LabelId>)| {
            let Meta { shared, handle, .. } = hold.meta();
            let label = old.and_then(|old| shared.labels.get(old));
            let birth = hold.node().birth();
            let entry = match label {
                Some(Labelled { label, .. }) => {
                    shared.label_fence(&format!("{name} ({label})"), handle.slot, birth)
                }
                None => shared.label_fence(name, handle.slot, birth),
            };
            if let Some(old) = old {
                shared.labels.release(old);
            }
            entry
        };
        self.labels = self
            .holds
            .iter()
            .zip(self.labels.iter().copied().chain(std::iter::repeat(None)))
            .map(enter)
            .collect();
    }

    /// The fence panicked: say so in its entries.
    pub(super) fn mark_broken(&mut self) {
        for (hold, entry) in self.holds.iter().zip(self.labels.iter_mut()) {
            let Meta { shared, handle, .. } = hold.meta();
            if let Some(broken) = entry.and_then(|old| shared.label_broken(old, handle.slot)) {
                *entry = Some(broken);
            }
        }
    }
}

impl WeightRegistry {
    /// [`retire`](Self::retire), and keeps the bytes of the retired generation until `fence` has
    /// passed: for work on a device that runs without a lease.
    ///
    /// It covers the generation that was current. Earlier ones that are still held are held by their
    /// own leases. To fence a generation that a replace supersedes, hold a lease of it, replace with
    /// [`replace_if`](Self::replace_if) and the lease's generation, then
    /// [`release_after`](Lease::release_after).
    ///
    /// # Errors
    /// As [`retire`](Self::retire) and [`acquire`](Self::acquire). Then nothing was retired, and the
    /// fence is dropped.
    pub fn retire_after(&self, set: SetHandle, fence: impl Fence) -> Result<Retirement, Error> {
        self.retire_and_fence(set, None, fence)
    }

    /// [`retire_after`](Self::retire_after), provided that `expected` is still current.
    ///
    /// # Errors
    /// Also [`Error::Conflict`].
    pub fn retire_after_if(
        &self,
        set: SetHandle,
        expected: Generation,
        fence: impl Fence,
    ) -> Result<Retirement, Error> {
        self.retire_and_fence(set, Some(expected), fence)
    }

    fn retire_and_fence(
        &self,
        set: SetHandle,
        expected: Option<Generation>,
        fence: impl Fence,
    ) -> Result<Retirement, Error> {
        // One call, however often it looks; and the fence, which is foreign, is not touched in it.
        let retired = self.observe_whole(Operation::Retire, set, itself, || {
            self.retire_leased(set, expected)
        });
        let (lease, retirement) = retired?;
        lease.release_after(fence);
        Ok(retirement)
    }

    /// Retires exactly the generation that the lease is of.
    fn retire_leased(
        &self,
        set: SetHandle,
        expected: Option<Generation>,
    ) -> Result<(Lease, Retirement), Error> {
        loop {
            let lease = self.acquire(set)?;
            let current = generation_of(&lease);
            if let Some(expected) = expected
                && expected != current
            {
                let record = self.record(set)?;
                return Err(Error::Conflict {
                    set: record.name.clone(),
                    expected,
                    current,
                });
            }
            match self.retire_if(set, current) {
                // Replaced meanwhile: that generation is not the last.
                Err(Error::Conflict { .. }) if expected.is_none() => {}
                Err(error) => return Err(error),
                Ok(retirement) => return Ok((lease, retirement)),
            }
        }
    }

    /// [`retire`](Self::retire), and asks whoever holds a lease of it to end it; see
    /// [`Retirement::revoke`].
    ///
    /// # Errors
    /// As [`retire`](Self::retire).
    pub fn revoke(&self, set: SetHandle) -> Result<Retirement, Error> {
        let retirement = self.retire(set)?;
        retirement.revoke();
        Ok(retirement)
    }

    /// The leases that wait for fences, one entry for each set of each, oldest first: what to look at
    /// when a device hangs. As complete as labels are, see [`acquire_as`](Self::acquire_as);
    /// [`Stats::pending_fences`](super::Stats) is exact.
    pub fn fences(&self) -> Vec<FenceHolder> {
        self.shared.fences()
    }
}

/// Of a lease of one set.
fn generation_of(lease: &Lease) -> Generation {
    lease
        .sets()
        .next()
        .map_or(Generation(0), |set| set.generation())
}
