//! One tenant's view of the registry.
//!
//! What lives here: [`Namespace`]. `confines` has the rule what a tenant may touch, `transaction` several
//! sets at once. What does not: the acts themselves, which are the registry's; limits and figures
//! (`accounts`).

mod transaction;

use std::fmt;
use std::time::Duration;

pub use transaction::NamespaceTransaction;

use super::WeightRegistry;
use super::accounts::{NamespaceStats, Terms};
use super::catalog::Catalog;
use super::confines::Confines;
use super::event::Operation;
use super::filling::Filling;
use super::lease::Lease;
use super::retirement::{Replaced, Retirement};
use super::rollback::KeptGeneration;
use super::staged::{PublishError, Staged};
use crate::error::Error;
use crate::handle::{Generation, SetHandle, WeightHandle};
use crate::ledger::Account;
use crate::names::{SetName, validate_namespace};
use crate::plan::Plan;
use crate::source::Source;

/// The registry as one tenant may see it.
///
/// Names are names within the namespace, whatever characters they have; no name reaches another one.
/// Whatever is loaded through it is charged to the namespace from the first byte on, and is refused
/// when that has no room, without regard to what others have.
///
/// Handles of other namespaces are refused ([`Error::WrongNamespace`]). One namespace is shared: sets of
/// the default one can be leased and stood on (an adapter's base, an alias's target) by whoever was
/// given their handle; they cannot be looked up, changed or listed through this view. What is not to be
/// shared does not belong in the default namespace. Its bytes stay charged to it, also while nobody but
/// a tenant holds them.
///
/// There is no scope and no reader here: those see the whole registry, and are the operator's like all
/// other methods of [`WeightRegistry`].
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [1], [byte]);
/// let (seven, eight) = (registry.namespace("tenant-7")?, registry.namespace("tenant-8")?);
/// let own = seven.publish("demo", version(7)?)?;
/// let other = eight.publish("demo", version(8)?)?;
///
/// assert_eq!(seven.lookup("demo"), Some(own));
/// assert!(seven.acquire(other).unwrap_err().is_misuse());
/// assert!(seven.retire(other).unwrap_err().is_misuse());
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Clone)]
pub struct Namespace<'r> {
    registry: &'r WeightRegistry,
    account: Account,
}

impl WeightRegistry {
    /// The view of one tenant. The namespace need not exist: it does as long as it has sets, bytes or
    /// [limits](Self::set_namespace_limits).
    ///
    /// # Errors
    /// [`Error::InvalidName`] if it is too long or has control characters, or is empty: the default
    /// namespace is the operator's.
    pub fn namespace(&self, name: &str) -> Result<Namespace<'_>, Error> {
        validate_namespace(name)?;
        if name.is_empty() {
            return Err(Error::InvalidName {
                name: "\"\"".to_owned(),
                reason: "the default namespace is no tenant's; use the registry itself",
            });
        }
        Ok(Namespace {
            registry: self,
            account: Account::namespace(name),
        })
    }
}

impl<'r> Namespace<'r> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.account.name()
    }

    /// What it has and may have.
    pub fn stats(&self) -> NamespaceStats {
        self.registry.namespace_stats(self.name())
    }

    /// Its sets, and only those: cut from the registry's [catalog](WeightRegistry::catalog), which
    /// costs O(all sets) after a commit, and O(its own sets) otherwise.
    pub fn catalog(&self) -> Catalog {
        self.registry.catalog().of_namespace(self.name())
    }

    /// The handle of one of its sets. Progress as [`WeightRegistry::lookup`].
    pub fn lookup(&self, name: &str) -> Option<SetHandle> {
        self.registry.lookup((self.name(), name))
    }

    /// [`WeightRegistry::acquire`], of its own sets and of the default namespace's.
    ///
    /// Progress: lock-free; one slot access per set more than the registry's.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`]; no lease of the set is taken then, not for a moment.
    pub fn acquire(&self, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        let lease = {
            let sets = sets.as_ref();
            let mut view = self.registry.view();
            let confines = self.confines();
            for &set in sets {
                confines.readable_in(&view, set)?;
            }
            self.registry.lease_from(&mut view, sets)?
        };
        drop(sets);
        Ok(lease)
    }

    /// [`WeightRegistry::acquire_as`], of its own sets and of the default namespace's.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_as(&self, label: &str, sets: impl AsRef<[SetHandle]>) -> Result<Lease, Error> {
        Ok(self.acquire(sets)?.labelled(label))
    }

    /// [`WeightRegistry::acquire_or_load`], of its own sets and of the default namespace's. What is loaded
    /// is charged to whom it belongs, and may evict any idle set to make room.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`]; nothing is leased and nothing loaded then.
    pub fn acquire_or_load(
        &self,
        sets: impl AsRef<[SetHandle]>,
        patience: Duration,
    ) -> Result<Lease, Error> {
        let lease = {
            let sets = sets.as_ref();
            let confines = self.confines();
            for &set in sets {
                confines.readable(set)?;
            }
            match self.registry.there_or_loaded(sets, patience) {
                Err(Error::NotLoaded(mut overdue)) => {
                    // Whoever else is in the way is no business of a tenant's.
                    overdue.leased.retain_mut(|holdup| {
                        if holdup.set.namespace() != self.name() {
                            (holdup.holders, holdup.fences) = (Vec::new(), Vec::new());
                        }
                        [self.name(), ""].contains(&holdup.set.namespace())
                    });
                    return Err(Error::NotLoaded(overdue));
                }
                answer => answer?,
            }
        };
        drop(sets);
        Ok(lease)
    }

    /// [`WeightRegistry::weight_handle`], of its own sets and of the default namespace's.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn weight_handle(&self, set: SetHandle, tensor: &str) -> Result<WeightHandle, Error> {
        self.confines().readable(set)?;
        self.registry.weight_handle(set, tensor)
    }

    /// [`WeightRegistry::stage`], charged to the namespace.
    ///
    /// # Errors
    /// Also [`Error::OverAccountLimit`]; [`Error::WrongNamespace`] if a base or the target of an alias is
    /// another namespace's.
    pub fn stage(&self, source: impl Source) -> Result<Staged, Error> {
        self.registry.stage_on(self.terms(), source)
    }

    /// [`WeightRegistry::fill`], charged to the namespace.
    ///
    /// # Errors
    /// As [`stage`](Self::stage).
    pub fn fill(&self, plan: Plan, base: Option<SetHandle>) -> Result<Filling, Error> {
        self.registry.fill_on(self.terms(), plan, base)
    }

    /// [`WeightRegistry::publish`], in the namespace.
    ///
    /// # Errors
    /// As [`stage`](Self::stage) and [`publish_staged`](Self::publish_staged). What the namespace has no
    /// room for is refused before any byte is read.
    pub fn publish(&self, name: &str, source: impl Source) -> Result<SetHandle, PublishError> {
        self.registry
            .publish_on(self.terms(), self.full(name), source)
    }

    /// [`WeightRegistry::publish_staged`], in the namespace.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`] if it stands on what is another namespace's,
    /// [`Error::ChargedElsewhere`] if it was staged for another one.
    pub fn publish_staged(&self, name: &str, staged: Staged) -> Result<SetHandle, PublishError> {
        let (name, allowed) = (self.full(name), self.confines().staged(&staged));
        let staged = self.admit(Operation::Publish, &name, allowed, staged)?;
        self.registry.publish_staged(name, staged)
    }

    /// [`WeightRegistry::replace`], of one of its sets.
    ///
    /// # Errors
    /// As [`stage`](Self::stage) and [`replace_staged`](Self::replace_staged).
    pub fn replace(&self, set: SetHandle, source: impl Source) -> Result<Replaced, PublishError> {
        self.own(Operation::Replace, set)?;
        self.registry.replace_on(self.terms(), set, None, source)
    }

    /// [`WeightRegistry::replace_if`], of one of its sets.
    ///
    /// # Errors
    /// As [`replace`](Self::replace), and [`Error::Conflict`].
    pub fn replace_if(
        &self,
        set: SetHandle,
        expected: Generation,
        source: impl Source,
    ) -> Result<Replaced, PublishError> {
        self.own(Operation::Replace, set)?;
        self.registry
            .replace_on(self.terms(), set, Some(expected), source)
    }

    /// [`WeightRegistry::replace_staged`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`] if the set is another namespace's or what was staged stands on
    /// one; [`Error::ChargedElsewhere`] if it was staged for another namespace.
    pub fn replace_staged(&self, set: SetHandle, staged: Staged) -> Result<Replaced, PublishError> {
        let staged = self.admit_for(set, staged)?;
        self.registry.replace_staged(set, staged)
    }

    /// [`WeightRegistry::replace_staged_if`], of one of its sets.
    ///
    /// # Errors
    /// As [`replace_staged`](Self::replace_staged), and [`Error::Conflict`].
    pub fn replace_staged_if(
        &self,
        set: SetHandle,
        expected: Generation,
        staged: Staged,
    ) -> Result<Replaced, PublishError> {
        let staged = self.admit_for(set, staged)?;
        self.registry.replace_staged_if(set, expected, staged)
    }

    /// [`WeightRegistry::replace_drained`], of one of its sets: also where the namespace's limit has no
    /// room for both.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn replace_drained(
        &self,
        set: SetHandle,
        source: impl Source,
        timeout: Duration,
    ) -> Result<Replaced, PublishError> {
        self.own(Operation::Replace, set)?;
        let terms = self.terms();
        self.registry
            .replace_drained_on(terms, set, source, timeout)
    }

    /// [`WeightRegistry::evict`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn evict(&self, set: SetHandle) -> Result<u64, Error> {
        self.own(Operation::Evict, set)?;
        self.registry.evict(set)
    }

    /// [`WeightRegistry::load`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn load(&self, set: SetHandle) -> Result<u64, Error> {
        self.own(Operation::Load, set)?;
        self.registry.load(set)
    }

    /// [`WeightRegistry::retire`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn retire(&self, set: SetHandle) -> Result<Retirement, Error> {
        self.own(Operation::Retire, set)?;
        self.registry.retire(set)
    }

    /// [`WeightRegistry::retire_if`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn retire_if(&self, set: SetHandle, expected: Generation) -> Result<Retirement, Error> {
        self.own(Operation::Retire, set)?;
        self.registry.retire_if(set, expected)
    }

    /// [`WeightRegistry::rebind`], of one of its adapters, to one of its sets or of the default
    /// namespace's.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn rebind(&self, adapter: SetHandle, base: SetHandle) -> Result<Replaced, Error> {
        self.own(Operation::Rebind, adapter)?;
        let readable = self.confines().readable(base);
        self.told(Operation::Rebind, adapter, readable)?;
        self.registry.rebind(adapter, base)
    }

    /// [`WeightRegistry::keep_previous`], of one of its sets. What is kept counts in the namespace.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn keep_previous(&self, set: SetHandle, n: usize) -> Result<(), Error> {
        self.confines().own(set)?;
        self.registry.keep_previous(set, n)
    }

    /// [`WeightRegistry::kept`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn kept(&self, set: SetHandle) -> Result<Vec<KeptGeneration>, Error> {
        self.confines().own(set)?;
        self.registry.kept(set)
    }

    /// [`WeightRegistry::rollback`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn rollback(&self, set: SetHandle) -> Result<Replaced, Error> {
        self.own(Operation::Rollback, set)?;
        self.registry.rollback(set)
    }

    /// [`WeightRegistry::rollback_to`], of one of its sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`].
    pub fn rollback_to(&self, set: SetHandle, generation: Generation) -> Result<Replaced, Error> {
        self.own(Operation::Rollback, set)?;
        self.registry.rollback_to(set, generation)
    }

    fn full(&self, name: &str) -> SetName {
        SetName::from((self.name(), name))
    }

    fn confines(&self) -> Confines<'_> {
        Confines {
            registry: self.registry,
            namespace: self.name(),
            coming: &[],
        }
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            account: Some(&self.account),
            confines: Some(self.confines()),
        }
    }

    /// What the namespace may not touch is told, like any refusal.
    fn told(
        &self,
        operation: Operation,
        subject: impl fmt::Display,
        allowed: Result<(), Error>,
    ) -> Result<(), Error> {
        allowed.inspect_err(|error| self.registry.note_refusal(operation, subject, error))
    }

    /// May it change this set?
    fn own(&self, operation: Operation, set: SetHandle) -> Result<(), Error> {
        self.told(operation, set, self.confines().own(set))
    }

    /// What was staged, if that is allowed.
    fn admit(
        &self,
        operation: Operation,
        subject: impl fmt::Display,
        allowed: Result<(), Error>,
        staged: Staged,
    ) -> Result<Staged, PublishError> {
        match self.told(operation, subject, allowed) {
            Ok(()) => Ok(staged),
            Err(error) => Err(PublishError::new(error, Some(staged))),
        }
    }

    /// May it follow this set?
    fn admit_for(&self, set: SetHandle, staged: Staged) -> Result<Staged, PublishError> {
        let allowed = self.confines().follow(set, &staged);
        self.admit(Operation::Replace, set, allowed, staged)
    }
}

impl fmt::Debug for Namespace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("name", &self.name())
            .field("stats", &self.stats())
            .finish()
    }
}
