//! Whose bytes: which account a set is charged to, and what each may have.
//!
//! What lives here: the terms on which something is staged, the move of a staged set's charge into the
//! namespace that it is published in, limits and figures of accounts and namespaces. What does not: the
//! books (`ledger`), what a tenant may do (`namespace`).

use super::WeightRegistry;
use super::confines::Confines;
use super::content::Targets;
use super::event::Operation;
use super::staged::Staged;
use super::step::{Act, Step};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::ledger::{Account, Charge, LedgerSnapshot};
use crate::names::validate_namespace;
use crate::plan::Plan;

/// What a namespace may have. Nothing is limited unless you say so.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, NamespaceLimits, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// registry.set_namespace_limits("tenant-7", NamespaceLimits::none().bytes(4096).sets(1))?;
/// let tenant = registry.namespace("tenant-7")?;
/// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [1], [byte]);
/// tenant.publish("demo", version(1)?)?;
/// let refused = tenant.publish("another", version(2)?).unwrap_err();
/// assert!(refused.error().is_over_limit());
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct NamespaceLimits {
    /// Bytes of its sets, in whichever state, also while they are loaded.
    pub bytes: Option<u64>,
    /// Sets that are published, and publishes under way.
    pub sets: Option<usize>,
}

impl NamespaceLimits {
    /// No limits.
    pub fn none() -> Self {
        Self::default()
    }

    /// With a limit of bytes.
    #[must_use]
    pub fn bytes(mut self, limit: u64) -> Self {
        self.bytes = Some(limit);
        self
    }

    /// With a limit of sets.
    #[must_use]
    pub fn sets(mut self, limit: usize) -> Self {
        self.sets = Some(limit);
        self
    }
}

/// What a namespace has. Each part is exact at the moment it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamespaceStats {
    /// Sets that are published, and publishes under way.
    pub sets: usize,
    /// Its bytes by state.
    pub bytes: LedgerSnapshot,
    /// What it may have.
    pub limits: NamespaceLimits,
}

/// On what terms something is staged.
#[derive(Clone, Copy, Default)]
pub(super) struct Terms<'t> {
    /// Where it is charged; `None`: in the total only, until it is published.
    pub(super) account: Option<&'t Account>,
    /// What it may stand on; `None`: anything.
    pub(super) confines: Option<Confines<'t>>,
}

impl<'t> Terms<'t> {
    /// The operator's, where it is known who has it.
    pub(super) fn charged(account: &'t Account) -> Self {
        Terms {
            account: Some(account),
            confines: None,
        }
    }

    /// May it have this base and these aliases? Asked before anything is said about those.
    pub(super) fn allow(&self, base: Option<SetHandle>, plan: &Plan) -> Result<(), Error> {
        let Some(confines) = &self.confines else {
            return Ok(());
        };
        let aliases = plan.aliases().iter().map(|alias| alias.target().set());
        base.into_iter()
            .chain(aliases)
            .try_for_each(|set| confines.readable(set))
    }

    /// The same for what its aliases stand for, if they are aliases of aliases.
    pub(super) fn allow_targets(&self, targets: &Targets) -> Result<(), Error> {
        match &self.confines {
            Some(confines) => confines.targets(targets),
            None => Ok(()),
        }
    }
}

fn charge(staged: &Staged) -> &Charge {
    &staged.content.bytes.own.charge
}

/// Charges what is about to be published to the namespaces that it goes to. Returns which steps'
/// charges were not there before.
pub(super) fn assign(steps: &[Step]) -> Result<Vec<usize>, (usize, Error)> {
    let mut assigned = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let Act::Become(staged) = &step.act else {
            continue;
        };
        match charge(staged).assign(step.record.name.namespace()) {
            Ok(true) => assigned.push(index),
            Ok(false) => {}
            Err(error) => {
                unassign(steps, &assigned);
                return Err((index, error));
            }
        }
    }
    Ok(assigned)
}

/// It was not published: as it was before [`assign`].
pub(super) fn unassign(steps: &[Step], assigned: &[usize]) {
    for &index in assigned {
        if let Act::Become(staged) = &steps[index].act {
            charge(staged).unassign();
        }
    }
}

impl WeightRegistry {
    /// The account that pays for what follows this set.
    pub(super) fn account_to_replace(&self, set: SetHandle) -> Result<Account, Error> {
        let record = self
            .record(set)
            .inspect_err(|error| self.note_refusal(Operation::Replace, set, error))?;
        Ok(Account::namespace(record.name.namespace()))
    }

    /// What a namespace may have from here on; `""` is the default one. A limit below what it has
    /// refuses what comes, and takes nothing away.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::Forked`].
    pub fn set_namespace_limits(
        &self,
        namespace: &str,
        limits: NamespaceLimits,
    ) -> Result<(), Error> {
        self.set_account_limit(&Account::namespace(namespace), limits.bytes)?;
        self.seats.set_limit(namespace, limits.sets);
        Ok(())
    }

    /// What a namespace has; `""` is the default one. Takes two short locks.
    pub fn namespace_stats(&self, namespace: &str) -> NamespaceStats {
        let bytes = self.account(&Account::namespace(namespace));
        let (sets, limit) = self.seats.count(namespace);
        NamespaceStats {
            sets,
            bytes,
            limits: NamespaceLimits {
                bytes: (bytes.limit != u64::MAX).then_some(bytes.limit),
                sets: limit,
            },
        }
    }

    /// Takes `bytes` of an account for something that the registry does not manage: a cache on a
    /// device, another runtime's buffers. They count as reserved until the charge is dropped. Foreign
    /// memory counts in its own account only, a namespace's also in the [total](Self::ledger).
    ///
    /// # Errors
    /// [`Error::OverAccountLimit`], [`Error::OverLimit`], [`Error::InvalidName`], [`Error::Forked`];
    /// nothing was taken then.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{Account, WeightRegistry};
    ///
    /// let registry = WeightRegistry::builder().build()?;
    /// let gpu = Account::foreign("gpu0");
    /// registry.set_account_limit(&gpu, Some(1 << 30))?;
    /// let cache = registry.reserve_in(&gpu, 900 << 20)?;
    /// assert!(registry.reserve_in(&gpu, 200 << 20).unwrap_err().is_over_limit());
    /// drop(cache);
    /// assert_eq!(registry.account(&gpu).total(), 0);
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn reserve_in(&self, account: &Account, bytes: u64) -> Result<Charge, Error> {
        self.shared.check_process()?;
        validate_namespace(account.name())?;
        self.shared.pool.take(Some(account), bytes)
    }

    /// Gives the memory that is kept for the next load ([`Builder::pool_bytes`](crate::Builder::pool_bytes)) back
    /// to the system. Returns how many bytes that was. Nobody needs to call this to have room: it goes back before
    /// anything is refused. Takes as long as unmapping it, on the calling thread.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub fn empty_pool(&self) -> Result<u64, Error> {
        self.shared.check_process()?;
        Ok(self.shared.pool.empty())
    }

    /// The limit of one account from here on; `None`: none of its own. A limit below what it has
    /// refuses what comes, and takes nothing away.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::Forked`].
    pub fn set_account_limit(&self, account: &Account, limit: Option<u64>) -> Result<(), Error> {
        self.shared.check_process()?;
        validate_namespace(account.name())?;
        self.shared.ledger.set_limit(account, limit);
        Ok(())
    }

    /// One account. One that has neither limit nor charges is empty.
    pub fn account(&self, account: &Account) -> LedgerSnapshot {
        self.shared.ledger.account(account)
    }

    /// Every account that has a limit or a charge, by kind and name, all at one instant. An account
    /// without both is forgotten, and its peak with it. O(accounts), under the ledger's lock.
    pub fn accounts(&self) -> Vec<(Account, LedgerSnapshot)> {
        self.shared.ledger.accounts()
    }
}
