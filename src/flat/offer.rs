//! Both sides of a conflict, and a refusal on its way out.
//!
//! What lives here: what is offered under a name, whether that is what stands there, and how both are
//! described; [`Refused`]. What does not: looking it up (`registry`).

use crate::error::Error;
use crate::handle::SetHandle;
use crate::identity::Identity;
use crate::plan::{Plan, PlannedTensor};
use crate::registry::{SetView, Staged, TransactionError};

/// The blame of what fails with an [`Error`].
pub(super) fn itself(error: &Error) -> &Error {
    error
}

/// A refusal that may have staged bytes with it: they are freed by whoever turns it into an [`Error`], not
/// where the lock is held and nobody is told anything.
pub(super) enum Refused {
    Alone(Error),
    Commit(TransactionError),
}

impl Refused {
    pub(super) fn error(&self) -> &Error {
        match self {
            Refused::Alone(error) => error,
            Refused::Commit(failed) => failed.error(),
        }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Alone(error)
    }
}

impl From<TransactionError> for Refused {
    fn from(failed: TransactionError) -> Self {
        Refused::Commit(failed)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Alone(error) => error,
            Refused::Commit(failed) => failed.into(),
        }
    }
}

/// What is offered under a name, to be compared with what stands there.
pub(super) struct Offer<'o> {
    pub(super) identity: &'o Identity,
    pub(super) base: Option<SetHandle>,
    pub(super) plan: &'o Plan,
}

impl<'o> Offer<'o> {
    /// What is staged. `base`: the set that it is to stand on.
    pub(super) fn of(staged: &'o Staged, base: Option<SetHandle>) -> Self {
        Offer {
            identity: staged.identity(),
            base,
            plan: staged.plan(),
        }
    }

    /// Is it what stands there? A declared revision vouches for contents, not for what they mean, so
    /// dtypes and shapes are compared too. Those of aliases are their targets', which are in the identity.
    pub(super) fn is(&self, there: &SetView<'_>) -> bool {
        let layout = there.layout();
        let names = self.plan.tensors().len() + self.plan.aliases().len();
        let found = |tensor: &PlannedTensor| {
            let info = layout.tensor(layout.ordinal(tensor.name())?)?;
            let found = (info.dtype_name(), info.shape());
            Some(found == (tensor.dtype().name(), tensor.shape()))
        };
        (there.identity(), there.base()) == (self.identity, self.base)
            && layout.len() == names
            && (self.plan.aliases().iter()).all(|alias| layout.ordinal(alias.name()).is_some())
            && (self.plan.tensors().iter()).all(|tensor| found(tensor) == Some(true))
    }

    /// What is offered, in words. `base`: the name of what it would stand on.
    pub(super) fn described(&self, base: Option<String>) -> String {
        let only = match self.plan.tensors() {
            [only] => Some((only.dtype().name(), only.shape())),
            _ => None,
        };
        described(self.plan.tensors().len(), only, self.identity, base)
    }
}

/// What stands there, in words. `base`: the name of what it stands on.
pub(super) fn standing(view: &SetView<'_>, base: Option<String>) -> String {
    let mut tensors = view.layout().tensors();
    let only = tensors.next().filter(|_| view.layout().len() == 1);
    let only = only.map(|(_, info)| (info.dtype_name(), info.shape()));
    described(view.layout().len(), only, view.identity(), base)
}

fn described(
    tensors: usize,
    only: Option<(&str, &[usize])>,
    identity: &Identity,
    base: Option<String>,
) -> String {
    match (only, base) {
        (Some((dtype, shape)), None) => format!("{dtype} {shape:?}, {identity}"),
        (_, None) => format!("{tensors} tensors, {identity}"),
        (_, Some(base)) if tensors == 0 => format!("an alias of {base}"),
        (_, Some(base)) => format!("an adapter of {tensors} tensors on {base}, {identity}"),
    }
}
