//! Tensors in memory that somebody else owns.
//!
//! What lives here: [`Foreign`]: which tensor is where in what an owner brings, checked. What does not:
//! owners and their end (`memory`).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::Source;
use super::memory::there_already;
use crate::Dtype;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::layout::ModuleScale;
use crate::memory::{Memory, Owner};
use crate::plan::{Plan, PlannedTensor, lora_names, lora_rank};
use crate::tensor::{WeightKind, byte_len};

/// A set whose tensors are where an [`Owner`] has them: in a device, in another runtime. Nothing is
/// copied.
///
/// If the host can read the memory, the bytes are read once, and hashed. Otherwise, or with
/// [`unread`](Self::unread), they are never read and the set is
/// [`Identity::Unread`](crate::Identity::Unread); with [`declared`](Self::declared) you vouch for them.
/// Tensors have the alignment that you give them; none is asked for.
///
/// The owner ends with the source, also when a step of the building is refused.
///
/// # Examples
/// Memory that another runtime keeps alive, and the host can read:
/// ```
/// use weighbridge::memory::Owner;
/// use weighbridge::{Dtype, WeightRegistry, source::Foreign};
///
/// struct Theirs(Box<[u8]>);
///
/// impl Owner for Theirs {
///     fn byte_len(&self) -> u64 {
///         self.0.len() as u64
///     }
///     fn address(&self) -> u64 {
///         self.0.as_ptr().expose_provenance() as u64
///     }
///     fn as_host(&self) -> Option<&[u8]> {
///         Some(&self.0)
///     }
/// }
///
/// let registry = WeightRegistry::builder().build()?;
/// let source = Foreign::new(Theirs([1, 2, 3, 4].into()))?
///     .tensor("a", Dtype::U8, [2], 0)?
///     .tensor("b", Dtype::U8, [2], 2)?
///     .tie("also b", "b")?;
/// let set = registry.publish("theirs", source)?;
/// let lease = registry.acquire(set)?;
/// assert_eq!(lease.set(set)?.get("also b")?.bytes(), [3, 4]);
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug)]
pub struct Foreign {
    memory: Option<Memory>,
    /// By name: the tensor and where it starts.
    tensors: BTreeMap<String, (PlannedTensor, u64)>,
    /// The same by start: end and name. Without those that have no bytes.
    taken: BTreeMap<u64, (u64, String)>,
    /// Alias and target.
    ties: Vec<(String, String)>,
    modules: BTreeMap<String, ModuleScale>,
    declared: Option<String>,
    unread: Option<String>,
    base: Option<SetHandle>,
    /// Made when it is first asked for, forgotten when a tensor is added.
    plan: OnceLock<Plan>,
}

const ORIGIN: &str = "foreign memory";

impl Foreign {
    /// What `owner` brings, with no tensor in it yet.
    ///
    /// # Errors
    /// As [`Memory::of`].
    pub fn new(owner: impl Owner) -> Result<Self, Error> {
        Ok(Foreign {
            memory: Some(Memory::of(owner)?),
            tensors: BTreeMap::new(),
            taken: BTreeMap::new(),
            ties: Vec::new(),
            modules: BTreeMap::new(),
            declared: None,
            unread: None,
            base: None,
            plan: OnceLock::new(),
        })
    }

    /// Says that a tensor starts at `offset`.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if it does not lie in the memory, if some of its bytes are another
    /// tensor's (declare a [`tie`](Self::tie) if all are), or if the name is taken.
    pub fn tensor(
        self,
        name: impl AsRef<str>,
        dtype: Dtype,
        shape: impl AsRef<[usize]>,
        offset: u64,
    ) -> Result<Self, Error> {
        let (name, shape) = (name.as_ref(), shape.as_ref());
        self.push(WeightKind::Base, name, dtype, shape, offset)
    }

    /// Says where a LoRA module of an adapter is: A is `[rank, in_features]`, B is
    /// `[out_features, rank]`, each with its offset. The factor for `B (A x)` is `alpha / rank`.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); [`Error::AdapterMismatch`].
    pub fn lora(
        self,
        module: impl AsRef<str>,
        dtype: Dtype,
        (a_shape, a_offset): ([usize; 2], u64),
        (b_shape, b_offset): ([usize; 2], u64),
        alpha: f64,
    ) -> Result<Self, Error> {
        let module = module.as_ref();
        let rank = lora_rank(ORIGIN, module, a_shape, b_shape)?;
        let [a, b] = lora_names(module);
        let mut set = self
            .push(WeightKind::LoraA, &a, dtype, &a_shape, a_offset)?
            .push(WeightKind::LoraB, &b, dtype, &b_shape, b_offset)?;
        set.modules
            .insert(module.to_owned(), ModuleScale::new(rank, alpha, false));
        Ok(set)
    }

    /// A second name for a tensor of this set.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] if there is no such tensor yet, or the name is taken.
    pub fn tie(mut self, alias: &str, target: &str) -> Result<Self, Error> {
        self.check_name(alias)?;
        if !self.tensors.contains_key(target) {
            return Err(Error::InvalidTensor {
                tensor: alias.to_owned(),
                reason: format!("is tied to {target:?}, which is not there"),
            });
        }
        self.ties.push((alias.to_owned(), target.to_owned()));
        self.plan = OnceLock::new();
        Ok(self)
    }

    /// Binds an adapter to its base.
    pub fn on(mut self, base: SetHandle) -> Self {
        self.base = Some(base);
        self
    }

    /// Vouches for the contents with a revision; the bytes are then not read.
    pub fn declared(mut self, revision: impl Into<String>) -> Self {
        self.declared = Some(revision.into());
        self
    }

    /// Leaves the bytes unread, with a fingerprint of yours that tells them from others in this process.
    /// Without one, unreadable memory gets a fingerprint that nothing else has.
    pub fn unread(mut self, fingerprint: impl Into<String>) -> Self {
        self.unread = Some(fingerprint.into());
        self
    }

    fn check_name(&self, name: &str) -> Result<(), Error> {
        let tied = self.ties.iter().any(|(alias, _)| alias == name);
        if tied || self.tensors.contains_key(name) {
            return Err(there_already(name));
        }
        Ok(())
    }

    fn push(
        mut self,
        kind: WeightKind,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        offset: u64,
    ) -> Result<Self, Error> {
        let wrong = |reason| Error::InvalidTensor {
            tensor: name.to_owned(),
            reason,
        };
        self.check_name(name)?;
        let len = byte_len(dtype, shape).map_err(wrong)?;
        let there = self.memory.as_ref().map_or(0, Memory::byte_len);
        let end = offset.checked_add(len).filter(|end| *end <= there);
        let Some(end) = end else {
            return Err(wrong(format!(
                "{dtype} x {shape:?} is {len} bytes, and at {offset} that passes the end of the \
                 {there} bytes that are there"
            )));
        };
        if len > 0 {
            // Those that are there do not overlap: only the last one that starts before our end can.
            let before = self.taken.range(..end).next_back();
            if let Some((start, (their_end, theirs))) = before.filter(|(_, (end, _))| *end > offset)
            {
                return Err(wrong(format!(
                    "is at {offset}..{end}, and {theirs:?} is at {start}..{their_end}; if it is the \
                     same tensor, declare a tie"
                )));
            }
            self.taken.insert(offset, (end, name.to_owned()));
        }
        let tensor = PlannedTensor::new(name, dtype.into(), shape.to_vec(), len).of_kind(kind);
        self.tensors.insert(name.to_owned(), (tensor, offset));
        self.plan = OnceLock::new();
        Ok(self)
    }

    fn make_plan(&self) -> Result<Plan, Error> {
        let tensors = self.tensors.values().map(|(tensor, _)| tensor.clone());
        let mut plan = Plan::new(ORIGIN, tensors.collect(), &self.ties)?;
        if let Some(memory) = &self.memory {
            plan = plan.placed(memory, |name| self.tensors[name].1);
        }
        if self.modules.is_empty() {
            return Ok(plan);
        }
        let modules = self.modules.iter().filter_map(|(module, scale)| {
            let [a, b] = lora_names(module).map(|name| plan.position(&name));
            Some((module.clone(), a?, b?, *scale))
        });
        let modules = modules.collect();
        plan.with_modules(modules)
    }
}

impl Source for Foreign {
    fn plan(&self) -> &Plan {
        // Names are distinct, ties have targets, places lie in the memory, ranks were checked: nothing
        // is left that could make a plan fail.
        self.plan
            .get_or_init(|| self.make_plan().expect("checked tensor by tensor"))
    }

    fn bring(&mut self) -> Option<Memory> {
        // The plan is that of the memory, also when that is gone.
        self.plan();
        self.memory.take()
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err(super::not_to_be_read(ORIGIN))
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }

    fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }

    fn base(&self) -> Option<SetHandle> {
        self.base
    }
}
