//! Several of a tenant's sets at one instant.
//!
//! What lives here: [`NamespaceTransaction`], which asks the rule (`confines`) and passes on. What does
//! not: the transaction itself (`registry::transaction`).

use std::fmt;

use super::{Confines, Namespace};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::registry::accounts::Terms;
use crate::registry::event::Operation;
use crate::registry::staged::{PublishError, Staged};
use crate::registry::transaction::{Committed, Transaction, TransactionError};
use crate::source::Source;

/// A [`Transaction`] of the sets of one namespace.
///
/// Retiring or moving along whatever stands on a set is the operator's: what does may be in another
/// namespace.
#[must_use = "a transaction that is not committed changes nothing"]
pub struct NamespaceTransaction<'r> {
    namespace: Namespace<'r>,
    inner: Transaction<'r>,
    /// The sets that it publishes.
    coming: Vec<SetHandle>,
}

impl<'r> Namespace<'r> {
    /// Starts a transaction of its sets. Nothing happens before [`NamespaceTransaction::commit`].
    pub fn transaction(&self) -> NamespaceTransaction<'r> {
        NamespaceTransaction {
            namespace: self.clone(),
            inner: self.registry.transaction(),
            coming: Vec::new(),
        }
    }
}

impl NamespaceTransaction<'_> {
    /// [`Transaction::stage`], charged to the namespace.
    ///
    /// # Errors
    /// As [`Namespace::stage`].
    pub fn stage(&self, source: impl Source) -> Result<Staged, Error> {
        let terms = Terms {
            account: Some(&self.namespace.account),
            confines: Some(self.confines()),
        };
        self.inner.stage_on(terms, source)
    }

    /// [`Transaction::publish`], in the namespace.
    ///
    /// # Errors
    /// As [`Namespace::publish_staged`]; the transaction goes on without this step.
    pub fn publish(&mut self, name: &str, staged: Staged) -> Result<SetHandle, PublishError> {
        let (name, allowed) = (self.namespace.full(name), self.confines().staged(&staged));
        let staged = self
            .namespace
            .admit(Operation::Transaction, &name, allowed, staged)?;
        let set = self.inner.publish(name, staged)?;
        self.coming.push(set);
        Ok(set)
    }

    /// [`Transaction::replace`], of one of the namespace's sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`]; the transaction goes on without this step.
    pub fn replace(&mut self, set: SetHandle, staged: Staged) -> Result<(), PublishError> {
        let staged = self.admit_for(set, staged)?;
        self.inner.replace(set, staged)
    }

    /// [`Transaction::replace_if`], of one of the namespace's sets.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub fn replace_if(
        &mut self,
        set: SetHandle,
        expected: Generation,
        staged: Staged,
    ) -> Result<(), PublishError> {
        let staged = self.admit_for(set, staged)?;
        self.inner.replace_if(set, expected, staged)
    }

    /// [`Transaction::retire`], of one of the namespace's sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`]; the transaction goes on without this step.
    pub fn retire(&mut self, set: SetHandle) -> Result<(), Error> {
        self.told(set, self.confines().own(set))?;
        self.inner.retire(set)
    }

    /// [`Transaction::retire_if`], of one of the namespace's sets.
    ///
    /// # Errors
    /// As [`retire`](Self::retire).
    pub fn retire_if(&mut self, set: SetHandle, expected: Generation) -> Result<(), Error> {
        self.told(set, self.confines().own(set))?;
        self.inner.retire_if(set, expected)
    }

    /// [`Transaction::rebind`], of one of the namespace's adapters, to one of its sets (also one that
    /// this transaction publishes) or of the default namespace's.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`]; the transaction goes on without this step.
    pub fn rebind(&mut self, adapter: SetHandle, base: SetHandle) -> Result<(), Error> {
        self.told(adapter, self.confines().own(adapter))?;
        self.told(adapter, self.confines().readable(base))?;
        self.inner.rebind(adapter, base)
    }

    /// [`Transaction::rollback`], of one of the namespace's sets.
    ///
    /// # Errors
    /// Also [`Error::WrongNamespace`]; the transaction goes on without this step.
    pub fn rollback(&mut self, set: SetHandle) -> Result<(), Error> {
        self.told(set, self.confines().own(set))?;
        self.inner.rollback(set)
    }

    /// [`Transaction::commit`].
    ///
    /// # Errors
    /// As there. Nothing is changed then, and the staged sets come back.
    pub fn commit(self) -> Result<Committed, TransactionError> {
        self.inner.commit()
    }

    fn confines(&self) -> Confines<'_> {
        Confines {
            coming: &self.coming,
            ..self.namespace.confines()
        }
    }

    fn told(&self, subject: SetHandle, allowed: Result<(), Error>) -> Result<(), Error> {
        self.namespace
            .told(Operation::Transaction, subject, allowed)
    }

    fn admit_for(&self, set: SetHandle, staged: Staged) -> Result<Staged, PublishError> {
        let allowed = self.confines().follow(set, &staged);
        self.namespace
            .admit(Operation::Transaction, set, allowed, staged)
    }
}

impl fmt::Debug for NamespaceTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamespaceTransaction")
            .field("namespace", &self.namespace.name())
            .field("sets", &self.inner)
            .finish()
    }
}
