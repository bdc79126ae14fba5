//! What is in memory and not published yet, and how it comes back when a publish fails.
//!
//! What lives here: [`Staged`], the room it is filled in, [`PublishError`]. What does not: filling it
//! (`publish`, `filling`), making it current (`commit`).

use std::fmt;
use std::sync::Arc;

use super::WeightRegistry;
use super::alias::{Aliased, entry};
use super::content::{Again, Aliases, Body, Bytes, Content, Facts, Own, Parts, Target, Targets};
use crate::arena::Arena;
use crate::error::Error;
use crate::handle::{SetHandle, SetKind};
use crate::identity::{Digest, Identity, digests, identity_by, unique};
use crate::layout::{Extents, Layout};
use crate::memory::Memory;
use crate::plan::{AdapterPlan, Plan};
use crate::pool::{Pool, Supply};
use crate::source::Source;

/// What a set will be, laid out, without memory.
pub(super) struct Room {
    /// Whose ledger is charged.
    pub(super) registry: u32,
    pub(super) plan: Plan,
    pub(super) layout: Arc<Layout>,
    pub(super) extents: Extents,
    pub(super) targets: Targets,
    /// What these are now.
    pub(super) aliased: Aliased,
    pub(super) base: Option<SetHandle>,
}

/// The same with memory, and nothing in it yet.
pub(super) struct Furnished {
    pub(super) room: Room,
    pub(super) body: Body,
    /// There is something in it, of which nothing may be left.
    pub(super) stale: bool,
    /// It is to be protected when it is filled.
    protect: bool,
}

impl Room {
    pub(super) fn kind(&self) -> SetKind {
        SetKind::of(self.base)
    }

    /// What the ledger must be charged before it is furnished: with what its source `brought`, or else
    /// with an arena.
    pub(super) fn charged(&self, brought: Option<&Memory>) -> Result<u64, Error> {
        let needed = self.plan.arena_bytes();
        let refuse = |reason| Error::InvalidMemory {
            origin: self.plan.origin().to_owned(),
            reason,
        };
        match brought {
            Some(memory) if memory.byte_len() < needed => Err(refuse(format!(
                "{needed} bytes are planned, {} were brought",
                memory.byte_len()
            ))),
            // Where memory that others own is charged to another account than the host's, this is the
            // place that says to which.
            Some(memory) => Ok(memory.charged_bytes()),
            None if self.plan.is_placed() => Err(refuse(
                "its tensors are where their owner put them, and that memory was not brought: stage \
                 the source that has it, and forward `bring` if you wrap it"
                    .to_owned(),
            )),
            None => Arena::charge_for(needed),
        }
    }

    pub(super) fn furnish(
        self,
        brought: Option<Memory>,
        Supply { arena, charge }: Supply,
        pool: Pool,
        protect: bool,
    ) -> Result<Furnished, Error> {
        let (body, stale) = match (brought, arena) {
            (Some(memory), _) => {
                let body = Body {
                    memory,
                    charge,
                    pool,
                    window: None,
                };
                (body, false)
            }
            (None, arena) => {
                let stale = arena.is_some();
                let fresh = || pool.allocate(self.plan.arena_bytes());
                let arena = arena.map_or_else(fresh, Ok)?;
                (Body::new(arena, charge, pool, self.plan.parts()), stale)
            }
        };
        Ok(Furnished {
            // What comes and goes is written again and again.
            protect: protect && self.plan.parts().is_none(),
            room: self,
            body,
            stale,
        })
    }
}

/// Who says what the bytes are.
pub(super) enum Vouched {
    /// The bytes themselves: they are hashed.
    ByThemselves,
    /// The caller, by a revision.
    By(Arc<str>),
    /// Nobody: a fingerprint of where they come from must do.
    Unread(Arc<str>),
}

impl Vouched {
    pub(super) fn or_read(revision: Option<&str>) -> Self {
        revision.map_or(Vouched::ByThemselves, |revision| {
            Vouched::By(revision.into())
        })
    }

    pub(super) fn by(source: &(impl Source + ?Sized)) -> Self {
        match (source.declared(), source.unread()) {
            (None, Some(fingerprint)) => Vouched::Unread(fingerprint.into()),
            (declared, _) => Self::or_read(declared),
        }
    }

    /// Are the bytes to be hashed?
    pub(super) fn needs_digests(&self) -> bool {
        matches!(self, Vouched::ByThemselves)
    }

    /// What a set of this plan is, without aliases, if these are its bytes, and these their digests as far
    /// as they are known.
    pub(super) fn identify(
        self,
        plan: &Plan,
        bytes: &[u8],
        known: Option<Vec<Digest>>,
    ) -> Identity {
        match self {
            Vouched::ByThemselves => {
                identity_by(plan, known.unwrap_or_else(|| digests(plan, bytes)))
            }
            Vouched::By(revision) => Identity::declared(plan, &revision),
            Vouched::Unread(fingerprint) => Identity::Unread(fingerprint),
        }
    }
}

/// A set whose bytes are in memory, charged and identified, and which nobody can see yet.
///
/// Dropping it gives the bytes back and leaves no trace.
///
/// # Examples
/// ```
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let version = |byte| InMemory::new().tensor("w", Dtype::U8, [1], [byte]);
/// registry.publish("demo", version(1)?)?;
///
/// let staged = registry.stage(version(2)?)?; // the slow part: read, hashed, charged
/// assert_eq!(registry.ledger().reserved, staged.bytes());
/// let refused = registry.publish_staged("demo", staged).unwrap_err();
/// println!("{refused}"); // the name is taken
/// let staged = refused.into_staged().expect("it comes back");
/// registry.publish_staged("another", staged)?;
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct Staged {
    /// Whose ledger is charged.
    pub(super) registry: u32,
    pub(super) plan: Plan,
    /// As a first generation would have it: made here, so that a commit need not.
    pub(super) content: Content,
}

impl Furnished {
    /// How its bytes can be read once more: not if the source has brought them, and not if some of them
    /// are other sets'.
    pub(super) fn again(&self, source: &impl Source) -> Option<Again> {
        let own = self.body.memory.arena().is_some() && self.room.targets.0.is_empty();
        let from = own.then(|| source.reload()).flatten()?;
        Some(Again::new(from, &self.room.plan))
    }

    /// Nothing will be written to it any more.
    ///
    /// # Errors
    /// It cannot be protected.
    pub(super) fn protect(&mut self) -> Result<(), Error> {
        let arena = self.body.memory.arena_mut();
        arena
            .filter(|_| self.protect)
            .map_or(Ok(()), Arena::protect)
    }

    /// Everything is in it: it is what somebody vouches for, or what its contents are.
    /// `known`: the digests of the tensors in it, if they were hashed on the way.
    pub(super) fn fill(self, vouched: Vouched, known: Option<Vec<Digest>>) -> Staged {
        let Furnished { room, body, .. } = self;
        let Room {
            registry,
            plan,
            layout,
            extents,
            targets,
            aliased,
            base,
        } = room;
        let bytes = body.memory.as_slice();
        let vouched = match vouched {
            Vouched::ByThemselves if !body.memory.is_host_readable() => Vouched::Unread(unique()),
            vouched => vouched,
        };
        let mut facts = Facts {
            origin: plan.origin().into(),
            layout,
            extents,
            identity: Identity::Declared(Arc::default()),
            adapter: plan.adapter().map(AdapterPlan::info),
            base,
            aliases: None,
            again: None,
            parts: plan.parts.clone().map(|planned| Parts {
                planned,
                digests: known.as_deref().map(Arc::from),
            }),
        };
        if targets.0.is_empty() {
            facts.identity = vouched.identify(&plan, bytes, known);
        } else {
            let own = match vouched {
                Vouched::ByThemselves => {
                    let names = plan.tensors().iter().map(|tensor| Arc::clone(&tensor.name));
                    let all = known.unwrap_or_else(|| digests(&plan, bytes));
                    Own::Digests(names.zip(all).collect())
                }
                Vouched::By(revision) => Own::Declared(Identity::declared(&plan, &revision)),
                Vouched::Unread(fingerprint) => Own::Declared(Identity::Unread(fingerprint)),
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
            let stale = Error::StaleHandle {
                handle: handle.set(),
            };
            let node = view.resolve(self.key(handle.set())?).ok_or(stale)?;
            let Some(meta) = node.meta() else { continue };
            let Some(info) = meta.facts.layout.tensor(handle.ordinal()) else {
                return Err(Error::NoSuchTensor {
                    set: meta.record.name.clone(),
                    generation: super::generation::generation(node),
                    tensor: meta.record.tensor_name(handle.ordinal()),
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
                    set: handle.set(),
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
///
/// While this is kept, so are the bytes of the staged set, and their charge in the ledger.
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
