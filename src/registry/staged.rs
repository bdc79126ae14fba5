//! What is in memory and not published yet, and how it comes back when a publish fails.
//!
//! What lives here: [`Staged`], the room it is filled in, [`PublishError`]. What does not: filling it
//! (`publish`, `filling`), making it current (`commit`).

use std::fmt;
use std::sync::Arc;

use super::WeightRegistry;
use super::alias::{Aliases, Own, Target, Targets, entry};
use super::generation::{Body, Bytes, Content, Facts};
use crate::arena::Arena;
use crate::error::Error;
use crate::handle::{SetHandle, SetKind};
use crate::identity::{Digest, Identity, content_identity, digests};
use crate::layout::{Extents, Layout};
use crate::ledger::Charge;
use crate::plan::{AdapterPlan, Plan};

/// What a set will be, laid out, without memory.
pub(super) struct Room {
    /// Whose ledger is charged.
    pub(super) registry: u32,
    pub(super) plan: Plan,
    pub(super) layout: Arc<Layout>,
    pub(super) extents: Extents,
    pub(super) targets: Targets,
    /// What these are now.
    pub(super) aliased: Vec<Digest>,
    pub(super) base: Option<SetHandle>,
}

/// The same with memory, and nothing in it yet.
pub(super) struct Furnished {
    pub(super) room: Room,
    pub(super) body: Body,
}

impl Room {
    pub(super) fn kind(&self) -> SetKind {
        SetKind::of(self.base)
    }

    /// What the ledger must be charged before it is furnished.
    pub(super) fn charged(&self) -> Result<u64, Error> {
        Arena::charge_for(self.plan.arena_bytes())
    }

    pub(super) fn furnish(self, charge: Charge) -> Result<Furnished, Error> {
        let arena = Arena::allocate(self.plan.arena_bytes())?;
        Ok(Furnished {
            room: self,
            body: Body { arena, charge },
        })
    }
}

/// A set whose bytes are in memory, charged and identified, and which nobody can see yet.
///
/// Dropping it gives the bytes back and leaves no trace.
pub struct Staged {
    /// Whose ledger is charged.
    pub(super) registry: u32,
    pub(super) plan: Plan,
    /// As a first generation would have it: made here, so that a commit need not.
    pub(super) content: Content,
}

impl Furnished {
    /// Everything is in it: it is what `declared` says, or what its contents are.
    pub(super) fn fill(self, declared: Option<&str>) -> Staged {
        let Furnished { room, body } = self;
        let Room {
            registry,
            plan,
            layout,
            extents,
            targets,
            aliased,
            base,
        } = room;
        let arena = body.arena.as_slice();
        let mut facts = Facts {
            origin: plan.origin().into(),
            layout,
            extents,
            identity: Identity::declared(&plan, declared.unwrap_or_default()),
            adapter: plan.adapter().map(AdapterPlan::info),
            base,
            aliases: None,
        };
        if targets.0.is_empty() {
            if declared.is_none() {
                facts.identity = content_identity(&plan, arena);
            }
        } else {
            let own = match declared {
                Some(_) => Own::Declared(facts.identity.clone()),
                None => {
                    let names = plan.tensors().iter().map(|tensor| Arc::clone(&tensor.name));
                    Own::Digests(names.zip(digests(&plan, arena)).collect())
                }
            };
            let aliases = Arc::new(Aliases { targets, own });
            facts.identity = aliases.identity(&facts, &aliased);
            facts.aliases = Some(aliases);
        }
        Staged {
            registry,
            plan,
            content: Content {
                facts,
                bytes: Bytes::new(body),
            },
        }
    }
}

impl WeightRegistry {
    /// What the plan's aliases stand for, and their entries in the table of tensors.
    pub(super) fn targets(&self, plan: &Plan) -> Result<(Targets, Layout), Error> {
        let (mut targets, mut entries) = (Vec::new(), Vec::new());
        for alias in plan.aliases() {
            let handle = alias.target();
            let view = self.view();
            let stale = Error::StaleHandle { handle: handle.set };
            let node = view.resolve(self.key(handle.set)?).ok_or(stale)?;
            let Some(meta) = node.meta() else { continue };
            let Some(info) = meta.facts.layout.tensor(handle.ordinal) else {
                return Err(Error::NoSuchTensor {
                    set: meta.record.name.clone(),
                    generation: super::generation::generation(node),
                    tensor: meta.record.tensor_name(handle.ordinal),
                });
            };
            entries.push(entry(&alias.name, info));
            // An alias of an alias is an alias of what that one is.
            let further = meta.facts.aliases.iter().flat_map(|own| &own.targets.0);
            let further = further.into_iter().find(|target| target.name == info.name);
            targets.push(match further {
                Some(further) => Target {
                    name: Arc::clone(&alias.name),
                    ..further.clone()
                },
                None => Target {
                    name: Arc::clone(&alias.name),
                    set: handle.set,
                    tensor: Arc::clone(&info.name),
                },
            });
        }
        Ok((Targets(targets), plan.layout().and(entries)))
    }
}

impl Staged {
    /// What the bytes are. If some are another set's, this is as of the staging: the set is bound to
    /// the other's current generation when it is published.
    pub fn identity(&self) -> &Identity {
        &self.content.facts.identity
    }

    /// The tensors.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes that the ledger is charged for it.
    pub fn bytes(&self) -> u64 {
        self.content.bytes.own.charge.bytes()
    }

    pub(super) fn kind(&self) -> SetKind {
        self.content.facts.kind()
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("origin", &self.plan.origin())
            .field("identity", self.identity())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// A publish or replace that failed: why, and the staged set, if it got that far.
#[derive(Debug)]
pub struct PublishError(Box<(Error, Option<Staged>)>);

impl PublishError {
    pub(super) fn new(error: Error, staged: Option<Staged>) -> Self {
        PublishError(Box::new((error, staged)))
    }

    /// Why it failed.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The staged set, to be published elsewhere or later; `None` if staging itself failed.
    pub fn into_staged(self) -> Option<Staged> {
        self.0.1
    }

    /// Both.
    pub fn into_parts(self) -> (Error, Option<Staged>) {
        *self.0
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.0.source()
    }
}

impl From<PublishError> for Error {
    fn from(failed: PublishError) -> Self {
        failed.0.0
    }
}

impl From<Error> for PublishError {
    fn from(error: Error) -> Self {
        PublishError::new(error, None)
    }
}
