//! LoRA slices on their way to an adapter.
//!
//! What lives here: [`LoraGroup`]: which slices are the A and B of which module, and the one commit
//! that makes an adapter set of them. What does not: registering slices (`registry`), what an adapter
//! is to a request (`registry::lease`).

use std::collections::BTreeMap;

use super::address::FlatHandle;
use super::offer::Refused;
use super::pinned::Pinned;
use super::registry::{FlatRegistry, bound};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::layout::ModuleScale;
use crate::names::SetName;
use crate::plan::{Plan, PlannedTensor, lora_names};
use crate::registry::{Operation, Retirement, Staged, Transaction};
use crate::source::Source;
use crate::tensor::WeightKind;

/// The slices of one adapter, paired.
///
/// Naming a pair pins its slices: what is sealed is what was paired. Dropping the group changes
/// nothing; the slices stay registered.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use weighbridge::flat::FlatRegistry;
/// use weighbridge::layout::ModuleScale;
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = Arc::new(WeightRegistry::builder().build()?);
/// let base = InMemory::new().tensor("proj.weight", Dtype::U8, [2, 3], [0; 6])?;
/// let base = registry.publish("base", base)?;
/// let flat = FlatRegistry::new(registry);
/// let a = flat.register(("pirate", "proj.A"), Dtype::U8, [1, 3], &[1; 3])?.handle();
/// let b = flat.register(("pirate", "proj.B"), Dtype::U8, [2, 1], &[2; 2])?.handle();
///
/// let mut group = flat.lora_group("pirate");
/// group.module("proj", ModuleScale::new(1, 16.0, false), a, b)?;
/// let sealed = group.seal("pirate", base)?; // one commit: the set is there, the slices are gone
/// let lease = flat.registry().acquire([base, sealed.set])?;
/// let module = lease.set(sealed.set)?.adapter().unwrap().module(0)?;
/// assert_eq!((module.scaling, module.a.bytes()), (16.0, [1; 3].as_slice()));
/// assert!(flat.adapter_names().is_empty());
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a group that is not sealed changes nothing"]
pub struct LoraGroup<'f> {
    flat: &'f FlatRegistry,
    adapter: String,
    modules: BTreeMap<String, Module>,
}

#[derive(Debug)]
struct Module {
    scale: ModuleScale,
    slices: [Slice; 2],
}

#[derive(Debug)]
struct Slice {
    handle: FlatHandle,
    /// The generation that was current when it was paired; of an alias: its own.
    seen: Generation,
    bytes: Pinned,
}

/// An adapter that was put together from slices.
#[derive(Debug)]
#[non_exhaustive]
pub struct Sealed {
    /// The adapter's set.
    pub set: SetHandle,
    /// Its generation.
    pub generation: Generation,
    /// What went in the same commit: the generation that was replaced, if one was, then the slices.
    pub previous: Vec<Retirement>,
}

impl FlatRegistry {
    /// Begins to pair the slices of an adapter.
    pub fn lora_group(&self, adapter: &str) -> LoraGroup<'_> {
        LoraGroup {
            flat: self,
            adapter: adapter.to_owned(),
            modules: BTreeMap::new(),
        }
    }
}

impl LoraGroup<'_> {
    /// Says that `a`, `[rank, in_features]`, and `b`, `[out_features, rank]`, are the slices of
    /// `module`, a module of the base such as `model.layers.0.self_attn.q_proj`.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] if the module has a pair already, a slice is registered for
    /// something else, or the rank is 0; [`Error::StaleHandle`], [`Error::WrongRegistry`].
    pub fn module(
        &mut self,
        module: &str,
        scale: ModuleScale,
        a: FlatHandle,
        b: FlatHandle,
    ) -> Result<(), Error> {
        if self.modules.contains_key(module) {
            return Err(self.mismatch(module, "has its slices already".to_owned()));
        }
        if scale.rank == 0 {
            return Err(self.mismatch(module, "the rank is 0".to_owned()));
        }
        let slices = [self.slice(module, a)?, self.slice(module, b)?];
        self.modules
            .insert(module.to_owned(), Module { scale, slices });
        Ok(())
    }

    /// Publishes the adapter under a new name, bound to `base`, and unregisters its slices, at one
    /// instant. The bytes are copied into one block, for which there must be room beside the slices.
    ///
    /// # Errors
    /// [`Error::AdapterMismatch`] if a pair does not agree with its rank or does not fit the base,
    /// if there is no pair, or if a slice of this adapter is in none; [`Error::StaleHandle`] if a
    /// slice or the base was retired meanwhile, [`Error::Conflict`] if a slice was replaced since it was
    /// paired; [`Error::WeightTied`] if something else is an alias of a slice, [`Error::WeightBound`] if
    /// sets of the registry underneath stand on one; otherwise as
    /// [`WeightRegistry::publish`](crate::WeightRegistry::publish). Nothing is changed then.
    pub fn seal(self, name: impl Into<SetName>, base: SetHandle) -> Result<Sealed, Error> {
        let name = name.into();
        self.seal_with(base, |transaction, staged| {
            Ok(transaction.publish(name, staged)?)
        })
    }

    /// Makes the adapter the next generation of `set`, on the base that `set` stands on, and
    /// unregisters its slices, at one instant. Running requests keep the generation they leased.
    ///
    /// # Errors
    /// As [`seal`](Self::seal), and as
    /// [`WeightRegistry::replace`](crate::WeightRegistry::replace); [`Error::Conflict`] if `set` gets
    /// another generation meanwhile: it may then stand on another base.
    pub fn seal_over(self, set: SetHandle) -> Result<Sealed, Error> {
        let (on, seen) = self.flat.registry().scope(|scope| {
            let there = scope.get(set)?;
            Ok::<_, Error>((there.base(), there.generation()))
        })?;
        let Some(base) = on else {
            return Err(Error::AdapterWithoutBase {
                origin: self.adapter,
            });
        };
        self.seal_with(base, |transaction, staged| {
            transaction.replace_if(set, seen, staged)?;
            Ok(set)
        })
    }

    fn seal_with(
        self,
        base: SetHandle,
        step: impl FnOnce(&mut Transaction<'_>, Staged) -> Result<SetHandle, Error>,
    ) -> Result<Sealed, Error> {
        let (flat, adapter) = (self.flat, self.adapter.clone());
        let registry = &**flat.registry();
        let slices = self.modules.values().flat_map(|module| &module.slices);
        let mut paired: Vec<(SetHandle, Generation)> =
            slices.map(|slice| (slice.handle.0, slice.seen)).collect();
        // Of a slice that is in two modules, what was paired first.
        paired.sort_unstable();
        paired.dedup_by_key(|slice| slice.0);
        let staged = registry.stage(self.gathered(base)?)?;
        let mut transaction = registry.transaction();
        let set = step(&mut transaction, staged)?;
        for &(slice, seen) in &paired {
            transaction.retire_if(slice, seen)?;
        }
        let going: Vec<SetHandle> = paired.into_iter().map(|(slice, _)| slice).collect();
        let subject = flat.all_of(&adapter);
        // A transaction that fails is dropped when the lock is free again.
        let mut transaction = Some(transaction);
        let operation = Operation::Transaction;
        let done = registry.observe_whole(operation, subject, Refused::error, || {
            let mut books = flat.books();
            if let Some(tied) = books.aliased(&going) {
                return Err(tied.into());
            }
            let members = books.members(&adapter);
            if let Some(left) = members.iter().find(|set| going.binary_search(set).is_err()) {
                let name = books.get(*left).map(|entry| entry.name().to_string());
                let reason = format!("the slice {} is in no module", name.unwrap_or_default());
                return Err(Refused::Alone(Error::AdapterMismatch {
                    origin: adapter,
                    module: String::new(),
                    reason,
                }));
            }
            let Some(transaction) = transaction.take() else {
                unreachable!("it is committed once")
            };
            let done = transaction.commit()?;
            books.strike(registry, done.generation, &going);
            Ok(done)
        });
        drop(transaction);
        let done = done.map_err(|refused| bound(refused.into()))?;
        Ok(Sealed {
            set,
            generation: done.generation,
            previous: done.previous,
        })
    }

    fn slice(&self, module: &str, handle: FlatHandle) -> Result<Slice, Error> {
        let entry = self.flat.entry(handle)?;
        if entry.adapter.as_deref() != Some(&*self.adapter) {
            let name = &entry.name;
            return Err(self.mismatch(module, format!("{name} is not a slice of this adapter")));
        }
        // Before it is pinned: if it is replaced in between, it is not sealed.
        let registry = self.flat.registry();
        let seen = registry.scope(|scope| Ok::<_, Error>(scope.get(handle.0)?.generation()))?;
        Ok(Slice {
            handle,
            seen,
            bytes: self.flat.get(handle)?,
        })
    }

    /// The source of the adapter.
    fn gathered(self, base: SetHandle) -> Result<Gathered, Error> {
        if self.modules.is_empty() {
            return Err(self.mismatch("", "there is no module in the group".to_owned()));
        }
        let mut slices = BTreeMap::new();
        let mut tensors = Vec::new();
        let mut scales = Vec::new();
        for (module, Module { scale, slices: two }) in self.modules {
            let names = lora_names(&module);
            let kinds = [WeightKind::LoraA, WeightKind::LoraB];
            for ((name, kind), slice) in names.iter().zip(kinds).zip(two) {
                let weight = slice.bytes.weight();
                let shape = weight.shape().to_vec();
                let len = weight.bytes().len() as u64;
                let tensor = PlannedTensor::new(name, weight.dtype().into(), shape, len);
                tensors.push(tensor.of_kind(kind));
                slices.insert(name.clone(), slice.bytes);
            }
            scales.push((module, names, scale));
        }
        let plan = Plan::new(&self.adapter, tensors, &[])?;
        let modules = scales.into_iter().filter_map(|(module, [a, b], scale)| {
            Some((module, plan.position(&a)?, plan.position(&b)?, scale))
        });
        let modules = modules.collect();
        Ok(Gathered {
            plan: plan.with_modules(modules)?,
            slices,
            base,
        })
    }

    fn mismatch(&self, module: &str, reason: String) -> Error {
        Error::AdapterMismatch {
            origin: self.adapter.clone(),
            module: module.to_owned(),
            reason,
        }
    }
}

/// Pinned slices, as the source of an adapter.
struct Gathered {
    plan: Plan,
    /// By tensor name, which is the plan's order.
    slices: BTreeMap<String, Pinned>,
    base: SetHandle,
}

impl Source for Gathered {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        for (planned, slice) in self.plan.tensors().iter().zip(self.slices.values()) {
            arena[planned.range()].copy_from_slice(slice.bytes());
        }
        Ok(())
    }

    fn base(&self) -> Option<SetHandle> {
        Some(self.base)
    }
}
