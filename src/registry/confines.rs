//! What a namespace may touch.
//!
//! What lives here: the rule, for one handle and for what a staged set stands on. What does not: where
//! it is asked (`namespace`, and `Terms` for what is about to be staged).
//!
//! A set is in one namespace from its publish to its retire, and a handle never means another set. So
//! what was allowed once stays so, and the rule may be asked before the act.

use super::WeightRegistry;
use super::content::Targets;
use super::generation::View;
use super::staged::Staged;
use crate::error::Error;
use crate::handle::SetHandle;

/// See the module documentation.
#[derive(Clone, Copy)]
pub(super) struct Confines<'n> {
    pub(super) registry: &'n WeightRegistry,
    pub(super) namespace: &'n str,
    /// Sets of this namespace that a transaction is about to publish: they do not resolve yet.
    pub(super) coming: &'n [SetHandle],
}

impl Confines<'_> {
    /// Is it one of the namespace's own?
    pub(super) fn own(&self, set: SetHandle) -> Result<(), Error> {
        self.check(&self.registry.view(), set, |namespace| {
            namespace == self.namespace
        })
    }

    /// May this follow that set?
    pub(super) fn follow(&self, set: SetHandle, staged: &Staged) -> Result<(), Error> {
        self.own(set).and_then(|()| self.staged(staged))
    }

    /// May it be read and stood on? Its own, and those of the default namespace.
    pub(super) fn readable(&self, set: SetHandle) -> Result<(), Error> {
        self.readable_in(&self.registry.view(), set)
    }

    /// [`readable`](Self::readable), for whoever has a view already.
    #[inline]
    pub(super) fn readable_in(&self, view: &View<'_>, set: SetHandle) -> Result<(), Error> {
        self.check(view, set, |namespace| {
            namespace == self.namespace || namespace.is_empty()
        })
    }

    /// Is all readable that these aliases stand for?
    pub(super) fn targets(&self, targets: &Targets) -> Result<(), Error> {
        targets
            .sets()
            .into_iter()
            .try_for_each(|set| self.readable(set))
    }

    /// Is all readable that this stands on?
    pub(super) fn staged(&self, staged: &Staged) -> Result<(), Error> {
        let facts = &staged.content.facts;
        if let Some(base) = facts.base {
            self.readable(base).map_err(|error| match error {
                Error::StaleHandle { .. } => Error::BaseNotCurrent { base },
                other => other,
            })?;
        }
        match &facts.aliases {
            Some(aliases) => self.targets(&aliases.targets),
            None => Ok(()),
        }
    }

    #[inline]
    fn check(
        &self,
        view: &View<'_>,
        set: SetHandle,
        allowed: impl FnOnce(&str) -> bool,
    ) -> Result<(), Error> {
        if self.coming.contains(&set) {
            return Ok(());
        }
        let node = view.resolve(self.registry.key(set)?);
        match node.and_then(|node| node.meta()) {
            Some(meta) if allowed(meta.record.name.namespace()) => Ok(()),
            Some(_) => Err(Error::WrongNamespace {
                handle: set,
                namespace: self.namespace.into(),
            }),
            None => Err(Error::StaleHandle { handle: set }),
        }
    }
}
