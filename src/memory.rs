//! Memory: what the bytes of a set are in, and who gives it back.
//!
//! What lives here: [`Memory`], either an arena of ours or what an [`Owner`] brought, and the end of
//! both. What does not: how an arena is made (`arena`), what is where in it (`plan`), when it ends
//! (`core`), files that are mapped (`source::mapped`, one more owner).
//!
//! An owner is asked everything once, when its memory is offered. From then on reading is the same
//! array access as in an arena: no virtual call, and no code of the owner's that could change its
//! mind, panic, or take its time.

use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::NonNull;

use crate::arena::{Arena, UNMAP_STEP};
use crate::core::panics;
use crate::error::Error;
use crate::layout::OFFSET_BITS;

/// Memory that something else allocated: a device, another runtime, a file that is mapped.
///
/// The registry takes the owner over and drops it exactly once, after the last lease of the last
/// generation that is in it. The questions are asked once, when the memory is offered
/// ([`Memory::of`]); the answers of that moment hold.
///
/// # Where it ends
/// On the reclaimer's thread, which serves nobody. A panic there is caught and counted
/// ([`Stats::reclaimer_panics`](crate::Stats)). A destructor that takes long delays what that thread
/// does for the same registry: giving back other memory, and waking those who wait with
/// [`drained`](crate::Retirement::drained) or [`reclaimed`](crate::Retirement::reclaimed); the
/// registry's own drop waits for it. It delays no reader and no writer. So it must not wait for the
/// registry itself; it may use it, drop leases, even drop the registry. See
/// [`give_back`](Self::give_back) for long jobs.
///
/// Elsewhere only if nobody else can wait for it: a set that was staged and never published ends where
/// it is dropped, [`replace_drained`](crate::WeightRegistry::replace_drained) gives the old memory back
/// before it goes on, and after the registry is gone the last lease ends its memory itself. Panics are
/// contained there too: the panic hook hears of them, the caller does not.
///
/// # Examples
/// ```
/// use weighbridge::memory::Owner;
/// use weighbridge::{Dtype, WeightRegistry, source::Foreign};
///
/// /// Memory of a device: an address that means nothing to the host.
/// struct OnDevice {
///     pointer: u64,
///     bytes: u64,
/// }
///
/// impl Owner for OnDevice {
///     fn byte_len(&self) -> u64 {
///         self.bytes
///     }
///     fn address(&self) -> u64 {
///         self.pointer
///     }
/// }
///
/// impl Drop for OnDevice {
///     fn drop(&mut self) { /* the device's free */ }
/// }
///
/// let registry = WeightRegistry::builder().build()?;
/// let owner = OnDevice { pointer: 0xd000_0000, bytes: 4096 };
/// let source = Foreign::new(owner)?
///     .tensor("a", Dtype::F32, [256], 0)?
///     .tensor("b", Dtype::F32, [512], 1024)?;
/// let set = registry.publish("on the device", source)?;
///
/// let lease = registry.acquire(set)?;
/// let b = registry.weight_handle(set, "b")?;
/// assert!(lease.weight(b).is_err()); // the host cannot read it
/// assert_eq!(lease.place(b)?.address(), 0xd000_0400); // an engine can
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub trait Owner: Any + Send + Sync {
    /// How many bytes it is.
    fn byte_len(&self) -> u64;

    /// Where it is, for whoever can use it: an address of the device's or of the host's.
    fn address(&self) -> u64;

    /// The same memory as the host reads it, all of it. `None`: the host cannot.
    ///
    /// An implementation that makes the slice with `unsafe` vouches for what a slice means: until the
    /// owner is dropped the bytes stay readable, stay where they are, and nobody writes them.
    fn as_host(&self) -> Option<&[u8]> {
        None
    }

    /// What the registry's ledger is charged for it. Nothing unless you say so: the ledger counts host
    /// memory that the registry is answerable for.
    fn charged_bytes(&self) -> u64 {
        0
    }

    /// The end: drops the owner, unless you say otherwise. Between the pieces of a long job call
    /// `step`, and nobody waits longer than a piece for the news of another set.
    fn give_back(self: Box<Self>, step: &mut dyn FnMut()) {
        let _ = step;
    }
}

/// What the bytes of one set are in. Ends when it is dropped.
pub struct Memory {
    /// What the host can read of it, here and not behind the keeper: reading looks no further.
    base: NonNull<u8>,
    readable: usize,
    /// Bytes behind these, of an arena, that come and go: nobody has a slice of them but by the window's rules.
    window: usize,
    len: u64,
    address: u64,
    charged: u64,
    keeper: Keeper,
}

enum Keeper {
    Arena(Arena),
    Owner(Held),
}

// SAFETY: `base` points to what the keeper keeps, is only read through `&Memory`, and both keepers
// are `Send + Sync` themselves (`Owner` demands it).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

// An owner is asked nothing any more: no code of its own can be seen half done.
impl UnwindSafe for Memory {}
impl RefUnwindSafe for Memory {}

impl Memory {
    /// What `owner` brings. Asks it everything that is ever asked.
    ///
    /// # Errors
    /// [`Error::InvalidMemory`] if [`as_host`](Owner::as_host) is not what
    /// [`byte_len`](Owner::byte_len) says, or for 2^55 bytes and more. The owner ends here then.
    pub fn of<O: Owner>(owner: O) -> Result<Self, Error> {
        let held = Held::new(Box::new(owner));
        let refuse = |reason| Error::InvalidMemory {
            origin: std::any::type_name::<O>().to_owned(),
            reason,
        };
        let (len, address, charged) = {
            let owner = held.get();
            (owner.byte_len(), owner.address(), owner.charged_bytes())
        };
        if len >> OFFSET_BITS != 0 {
            return Err(refuse(format!(
                "its owner says that it has {len} bytes; less than 2^{OFFSET_BITS} are possible"
            )));
        }
        if address.checked_add(len).is_none() {
            return Err(refuse(format!(
                "{len} bytes from address {address:#x} on pass the end of all addresses"
            )));
        }
        let host = held.get().as_host();
        if let Some(host) = host.filter(|host| host.len() as u64 != len) {
            return Err(refuse(format!(
                "its owner says that it has {len} bytes, and gives the host {}",
                host.len()
            )));
        }
        let host = host.unwrap_or_default();
        Ok(Memory {
            base: NonNull::from(host).cast(),
            readable: host.len(),
            window: 0,
            len,
            address,
            charged,
            keeper: Keeper::Owner(held),
        })
    }

    /// How many bytes it is.
    pub fn byte_len(&self) -> u64 {
        self.len
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What the ledger is charged for it.
    pub fn charged_bytes(&self) -> u64 {
        self.charged
    }

    /// Can the host read it?
    pub fn is_host_readable(&self) -> bool {
        (self.readable + self.window) as u64 == self.len
    }

    /// Who brought it; `None` for an arena.
    pub fn owner(&self) -> Option<&dyn Owner> {
        match &self.keeper {
            Keeper::Arena(_) => None,
            Keeper::Owner(held) => Some(held.get()),
        }
    }

    /// The same arena, of which the first `readable` bytes stay and the rest is a window.
    pub(crate) fn windowed(arena: Arena, readable: usize) -> Self {
        let memory = Memory::from(arena);
        let readable = readable.min(memory.readable);
        Memory {
            readable,
            window: memory.readable - readable,
            ..memory
        }
    }

    /// Where the window is, and how long it is. What is in it is nobody's but by the window's rules.
    #[inline]
    pub(crate) fn window(&self) -> (NonNull<u8>, usize) {
        // SAFETY: `readable` bytes and the window behind them are in one arena (`windowed`); without a window this
        // is at most one past its end.
        (unsafe { self.base.add(self.readable) }, self.window)
    }

    /// What the host can read: all of it or nothing, but for what is in a window.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: an arena's bytes, valid and not written while it is only borrowed; or what `as_host`
        // gave for a borrow of the owner. That borrow may last until the owner is dropped, since
        // `Held` hands out nothing but shared borrows before that, and we drop it last. Guarded by
        // `tests/foreign.rs`, also under AddressSanitizer.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.readable) }
    }

    /// The arena, if it is one.
    pub(crate) fn arena(&self) -> Option<&Arena> {
        match &self.keeper {
            Keeper::Arena(arena) => Some(arena),
            Keeper::Owner(_) => None,
        }
    }

    /// The arena, if it is one, to be filled.
    pub(crate) fn arena_mut(&mut self) -> Option<&mut Arena> {
        match &mut self.keeper {
            Keeper::Arena(arena) => Some(arena),
            Keeper::Owner(_) => None,
        }
    }

    /// The arena, if it is one.
    pub(crate) fn into_arena(self) -> Result<Arena, Self> {
        match self.keeper {
            Keeper::Arena(arena) => Ok(arena),
            keeper @ Keeper::Owner(_) => Err(Memory { keeper, ..self }),
        }
    }

    /// Ends it, and lets an owner's panic through. Calls `step` between the pieces of a long job.
    pub(crate) fn give_back(self, step: &mut dyn FnMut()) {
        match self.keeper {
            Keeper::Arena(arena) => arena.free_in_steps(UNMAP_STEP, step),
            Keeper::Owner(held) => held.give_back(step),
        }
    }

    /// Ends it here, where nobody counts panics and nobody could do anything about one.
    pub(crate) fn give_back_here(self) {
        let _ = panics(|| self.give_back(&mut || {}));
    }
}

impl From<Arena> for Memory {
    fn from(arena: Arena) -> Self {
        let base = arena.as_ptr();
        let len = arena.as_slice().len();
        Memory {
            base,
            readable: len,
            window: 0,
            len: len as u64,
            // For engines that take it back to a pointer.
            address: base.as_ptr().expose_provenance() as u64,
            charged: arena.charged(),
            keeper: Keeper::Arena(arena),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("byte_len", &self.len)
            .field("address", &format_args!("{:#x}", self.address))
            .field("is_host_readable", &self.is_host_readable())
            .field("is_arena", &self.arena().is_some())
            .finish()
    }
}

/// An owner on the heap. A raw pointer, because a `Box` that moves would claim that nobody else points
/// to what is in it, and `Memory::base` may.
struct Held(NonNull<dyn Owner>);

impl Held {
    fn new(owner: Box<dyn Owner>) -> Self {
        Held(NonNull::from(Box::leak(owner)))
    }

    fn get(&self) -> &dyn Owner {
        // SAFETY: from `Box::leak`, freed only by `take`, which ends the `Held`.
        unsafe { self.0.as_ref() }
    }

    /// # Safety
    /// Called once, and nothing else afterwards.
    unsafe fn take(&self) -> Box<dyn Owner> {
        // SAFETY: from `Box::leak`; the caller gives the only right to it away.
        unsafe { Box::from_raw(self.0.as_ptr()) }
    }

    fn give_back(self, step: &mut dyn FnMut()) {
        let this = ManuallyDrop::new(self);
        // SAFETY: consumed here, and not dropped.
        unsafe { this.take() }.give_back(step);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the last thing that happens to it.
        let owner = unsafe { self.take() };
        // Often dropped while a failure is being handled: another panic would end the process.
        let _ = panics(|| owner.give_back(&mut || {}));
    }
}
