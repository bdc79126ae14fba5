//! A set that is filled tensor by tensor, by as many threads as one likes: weights that come over the
//! wire, or out of a trainer.
//!
//! What lives here: [`Filling`], its writers, the check that nothing is missing, [`SealError`]. What
//! does not: what becomes of it (`staged`, `publish`), sources that read themselves (`source`).

use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::WeightRegistry;
use super::accounts::Terms;
use super::event::Operation;
use super::shared::Shared;
use super::staged::{Furnished, Staged, Vouched};
use crate::error::Error;
use crate::escape::Clean;
use crate::handle::SetHandle;
use crate::plan::{Plan, PlannedTensor};
use crate::reading::clear_gaps;
use crate::turns::{Progress, Turn, Turns};

/// A set whose memory is there and whose bytes are on their way.
///
/// Each tensor is written front to back, each byte once, by one [`TensorWriter`] at a time; different
/// tensors by any number of threads. Ties are written under their target's name.
/// [`seal`](Self::seal) makes it a [`Staged`] set, if nothing is missing. Dropping it at any time gives
/// the bytes back and leaves no trace.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, Plan, WeightRegistry};
///
/// let registry = WeightRegistry::builder().build()?;
/// let tensors = ["a", "b"].map(|name| (name, Dtype::U8, vec![4]));
/// let filling = registry.fill(Plan::of("step 1", tensors)?, None)?;
/// std::thread::scope(|scope| {
///     for name in ["a", "b"] {
///         let filling = &filling;
///         scope.spawn(move || {
///             let mut writer = filling.writer(name).unwrap();
///             writer.write(&[1, 2]).unwrap();
///             writer.write(&[3, 4]).unwrap();
///         });
///     }
/// });
/// let set = registry.publish_staged("policy", filling.seal()?)?;
/// assert_eq!(registry.acquire(set)?.set(set)?.get("b")?.bytes(), [1, 2, 3, 4]);
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct Filling {
    furnished: Furnished,
    shared: Arc<Shared>,
    /// By tensor, in the plan's order.
    turns: Turns,
}

/// The right to write one tensor. Dropping it lets another writer go on where it stopped.
pub struct TensorWriter<'f> {
    filling: &'f Filling,
    index: usize,
    turn: Turn<'f>,
}

impl WeightRegistry {
    /// Memory for what `plan` describes, charged before it is allocated, to be filled by writers.
    /// `base`: the set it stands on, for an adapter ([`Plan::of_adapter`], or the plan of a source that
    /// has one).
    ///
    /// # Errors
    /// [`Error::OverLimit`], [`Error::OutOfMemory`], [`Error::Forked`], [`Error::InvalidMemory`] for a
    /// plan of tensors that have a place already, and for an adapter as
    /// [`stage`](WeightRegistry::stage).
    pub fn fill(&self, plan: Plan, base: Option<SetHandle>) -> Result<Filling, Error> {
        self.fill_on(Terms::default(), plan, base)
    }

    /// [`fill`](Self::fill), on these terms.
    pub(super) fn fill_on(
        &self,
        terms: Terms<'_>,
        plan: Plan,
        base: Option<SetHandle>,
    ) -> Result<Filling, Error> {
        let origin = Clean(plan.origin().to_owned());
        let furnished = self
            .furnish_for_writers(terms, plan, base)
            .inspect_err(|error| self.note_refusal(Operation::Stage, origin, error))?;
        Ok(Filling {
            turns: Turns::new(furnished.room.plan.tensors().len()),
            shared: Arc::clone(&self.shared),
            furnished,
        })
    }

    fn furnish_for_writers(
        &self,
        terms: Terms<'_>,
        plan: Plan,
        base: Option<SetHandle>,
    ) -> Result<Furnished, Error> {
        if plan.parts().is_some() {
            return Err(Error::InvalidParts {
                origin: plan.origin().to_owned(),
                reason: "whoever writes its tensors would have to write them again and again"
                    .to_owned(),
            });
        }
        let room = self.room(terms, plan, base, |adapter, base| {
            self.fits_current(adapter, base)
        })?;
        let charged = room.charged(None)?;
        let taken = self.take_for(terms, &room, None, charged)?;
        let mut furnished = self.furnish(room, None, taken)?;
        if let Some(arena) = furnished
            .body
            .memory
            .arena_mut()
            .filter(|_| furnished.stale)
        {
            clear_gaps(&furnished.room.plan, arena.as_mut_slice());
        }
        Ok(furnished)
    }
}

impl Filling {
    /// The tensors to be written.
    pub fn plan(&self) -> &Plan {
        &self.furnished.room.plan
    }

    /// The right to write `tensor`, from where the last writer of it stopped.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there is no such tensor, or if it is a tie;
    /// [`Error::TensorBusy`] while somebody else writes it; [`Error::Forked`].
    pub fn writer(&self, tensor: &str) -> Result<TensorWriter<'_>, Error> {
        self.shared.check_process()?;
        let refuse = |reason: String| Error::InvalidTensor {
            tensor: tensor.to_owned(),
            reason,
        };
        let plan = &self.furnished.room.plan;
        let index = plan
            .position(tensor)
            .ok_or_else(|| refuse(format!("{} has no such tensor", plan.origin())))?;
        if let Some(target) = plan.tensors()[index].tie {
            let target = plan.tensors()[target].name();
            return Err(refuse(format!("is a tie; write {target:?}")));
        }
        let turn = self.turns.take(index).ok_or_else(|| Error::TensorBusy {
            tensor: tensor.to_owned(),
        })?;
        Ok(TensorWriter {
            filling: self,
            index,
            turn,
        })
    }

    /// Everything is in it: hashes the contents, and makes it a staged set.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for the first tensor that is not complete; [`Error::TensorBusy`] if
    /// its writer was leaked (`mem::forget`); [`Error::Forked`]. The filling comes back.
    pub fn seal(self) -> Result<Staged, SealError> {
        self.seal_as(None)
    }

    /// [`seal`](Self::seal), where you vouch for the contents with a revision of your own (a training
    /// step, a commit). The bytes are then not hashed.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub fn seal_declared(self, revision: &str) -> Result<Staged, SealError> {
        self.seal_as(Some(revision))
    }

    fn seal_as(mut self, declared: Option<&str>) -> Result<Staged, SealError> {
        let complete = self.shared.check_process().and_then(|()| self.complete());
        match complete.and_then(|()| self.furnished.protect()) {
            Ok(()) => Ok(self.furnished.fill(Vouched::or_read(declared), None)),
            Err(error) => Err(SealError(Box::new((error, self)))),
        }
    }

    /// Is every byte there?
    fn complete(&self) -> Result<(), Error> {
        let tensors = self.furnished.room.plan.tensors().iter().enumerate();
        for (index, tensor) in tensors.filter(|(_, tensor)| tensor.tie.is_none()) {
            let Progress { written, taken } = self.turns.progress(index);
            let name = || tensor.name().to_owned();
            let len = tensor.range().len();
            if taken {
                return Err(Error::TensorBusy { tensor: name() });
            }
            if written < len {
                return Err(Error::InvalidTensor {
                    tensor: name(),
                    reason: format!("{written} of its {len} bytes were written"),
                });
            }
        }
        Ok(())
    }
}

/// A filling that could not be sealed: why, and the filling, to be completed.
#[derive(Debug)]
pub struct SealError(Box<(Error, Filling)>);

impl SealError {
    /// Why.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The filling, as it was.
    pub fn into_filling(self) -> Filling {
        self.0.1
    }
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl std::error::Error for SealError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.0.source()
    }
}

impl From<SealError> for Error {
    fn from(failed: SealError) -> Self {
        failed.0.0
    }
}

impl TensorWriter<'_> {
    fn tensor(&self) -> &PlannedTensor {
        &self.filling.furnished.room.plan.tensors()[self.index]
    }

    /// Bytes of the tensor that are still missing.
    pub fn remaining(&self) -> usize {
        self.tensor().range().len() - self.turn.written()
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there are more than are missing; none of them is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > self.remaining() {
            return Err(Error::InvalidTensor {
                tensor: self.tensor().name().to_owned(),
                reason: format!(
                    "{} bytes were to follow, {} of {} are missing",
                    bytes.len(),
                    self.remaining(),
                    self.tensor().range().len()
                ),
            });
        }
        let start = self.tensor().range().start + self.turn.written();
        let Some(arena) = self.filling.furnished.body.memory.arena() else {
            unreachable!("`fill` furnishes with an arena")
        };
        debug_assert!(
            start + bytes.len() <= self.filling.furnished.room.plan.arena_bytes() as usize
        );
        // SAFETY: `start..start + bytes.len()` lies in this tensor's place, hence in the arena; places
        // of different tensors do not overlap (`Plan::new`; ties have no writer), and our turn makes us
        // the only writer of this one (E18, model `filling`). Nobody reads the arena before `seal`,
        // which consumes the filling that we borrow. `bytes` is a shared slice, so it is not this
        // memory. Guarded by `tests/filling.rs`, also under AddressSanitizer.
        unsafe {
            let to = arena.as_ptr().add(start);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len());
        }
        self.turn.wrote(bytes.len());
        Ok(())
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling")
            .field("origin", &self.furnished.room.plan.origin())
            .field(
                "complete",
                &self.complete().map_err(|error| error.to_string()),
            )
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TensorWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorWriter")
            .field("tensor", &self.tensor().name())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
