//! A set that is filled tensor by tensor, by as many threads as one likes: weights that come over the
//! wire, or out of a trainer.
//!
//! What lives here: [`Filling`], its writers, the check that nothing is missing. What does not: what
//! becomes of it (`staged`, `publish`), sources that read themselves (`source`).

use std::fmt;
use std::ptr;

use super::WeightRegistry;
use super::event::Operation;
use super::staged::{Room, Staged};
use crate::error::Error;
use crate::escape::Clean;
use crate::handle::SetHandle;
use crate::plan::{Plan, PlannedTensor};
use crate::sync::Mutex;

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
/// let set = registry.publish_staged("policy", filling.seal().map_err(|(error, _)| error)?)?;
/// assert_eq!(registry.acquire(set)?.set(set)?.get("b")?.bytes(), [1, 2, 3, 4]);
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct Filling {
    room: Room,
    /// By tensor, in the plan's order.
    progress: Box<[Mutex<Progress>]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    written: usize,
    taken: bool,
}

/// The right to write one tensor. Dropping it lets another writer go on where it stopped.
pub struct TensorWriter<'f> {
    filling: &'f Filling,
    index: usize,
    written: usize,
}

impl WeightRegistry {
    /// Memory for what `plan` describes, charged before it is allocated, to be filled by writers.
    /// `base`: the set it stands on, for an adapter.
    ///
    /// # Errors
    /// [`Error::OverLimit`], [`Error::OutOfMemory`], and for an adapter as
    /// [`stage`](WeightRegistry::stage).
    pub fn fill(&self, plan: Plan, base: Option<SetHandle>) -> Result<Filling, Error> {
        let origin = Clean(plan.origin().to_owned());
        let room = self
            .room(plan, base, |plan, base| self.fits_current(plan, base))
            .inspect_err(|error| self.note_refusal(Operation::Stage, origin, error))?;
        let progress = room.plan.tensors().iter();
        Ok(Filling {
            progress: progress.map(|_| Mutex::default()).collect(),
            room,
        })
    }
}

impl Filling {
    /// The tensors to be written.
    pub fn plan(&self) -> &Plan {
        &self.room.plan
    }

    /// The right to write `tensor`, from where the last writer of it stopped.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there is no such tensor, if it is a tie, or while somebody else
    /// writes it.
    pub fn writer(&self, tensor: &str) -> Result<TensorWriter<'_>, Error> {
        let refuse = |reason: String| Error::InvalidTensor {
            tensor: tensor.to_owned(),
            reason,
        };
        let plan = &self.room.plan;
        let index = plan
            .position(tensor)
            .ok_or_else(|| refuse(format!("{} has no such tensor", plan.origin())))?;
        if let Some(target) = plan.tensors()[index].tie {
            let target = plan.tensors()[target].name();
            return Err(refuse(format!("is a tie; write {target:?}")));
        }
        let mut progress = self.progress[index].lock(); // E18
        if progress.taken {
            return Err(refuse("is being written by another writer".to_owned()));
        }
        progress.taken = true;
        Ok(TensorWriter {
            filling: self,
            index,
            written: progress.written,
        })
    }

    /// Everything is in it: hashes the contents, and makes it a staged set.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for the first tensor that is not complete; the filling comes back.
    pub fn seal(self) -> Result<Staged, (Error, Box<Self>)> {
        self.seal_as(None)
    }

    /// [`seal`](Self::seal), where you vouch for the contents with a revision of your own (a training
    /// step, a commit). The bytes are then not hashed.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub fn seal_declared(self, revision: &str) -> Result<Staged, (Error, Box<Self>)> {
        self.seal_as(Some(revision))
    }

    fn seal_as(self, declared: Option<&str>) -> Result<Staged, (Error, Box<Self>)> {
        match self.missing() {
            Some(error) => Err((error, Box::new(self))),
            None => Ok(self.room.fill(declared)),
        }
    }

    fn missing(&self) -> Option<Error> {
        let tensors = self.room.plan.tensors().iter().zip(&self.progress);
        tensors
            .filter(|(tensor, _)| tensor.tie.is_none())
            .find_map(|(tensor, progress)| {
                let Progress { written, taken } = *progress.lock(); // E18
                let len = tensor.range().len();
                // A writer that was leaked with `mem::forget` still has the tensor.
                (written < len || taken).then(|| Error::InvalidTensor {
                    tensor: tensor.name().to_owned(),
                    reason: format!("{written} of its {len} bytes were written"),
                })
            })
    }
}

impl TensorWriter<'_> {
    fn tensor(&self) -> &PlannedTensor {
        &self.filling.room.plan.tensors()[self.index]
    }

    /// Bytes of the tensor that are still missing.
    pub fn remaining(&self) -> usize {
        self.tensor().range().len() - self.written
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
        let start = self.tensor().range().start + self.written;
        let arena = &self.filling.room.bytes.arena;
        debug_assert!(start + bytes.len() <= self.filling.room.plan.arena_bytes() as usize);
        // SAFETY: `start..start + bytes.len()` lies in this tensor's place, hence in the arena; places
        // of different tensors do not overlap (`Plan::new`; ties have no writer), and `taken` makes us
        // the only writer of this one (E18). Nobody reads the arena before `seal`, which consumes the
        // filling that we borrow. `bytes` is a shared slice, so it is not this memory. Guarded by
        // `tests/filling.rs`, also under AddressSanitizer.
        unsafe {
            let to = arena.as_ptr().add(start);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len());
        }
        self.written += bytes.len();
        Ok(())
    }
}

impl Drop for TensorWriter<'_> {
    fn drop(&mut self) {
        // E18: the next writer, and the seal, see what we wrote.
        *self.filling.progress[self.index].lock() = Progress {
            written: self.written,
            taken: false,
        };
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling")
            .field("origin", &self.room.plan.origin())
            .field("missing", &self.missing().map(|error| error.to_string()))
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
