//! Tensors that are another set's.
//!
//! What lives here: what an alias is bound to, at staging and again at each commit, and what that does
//! to places and identity. What does not: which generation that is (`bind`), storage (`content`).
//!
//! An alias names a tensor of another set, is bound to the generation of that set which is current
//! together with its own, and shares that generation's memory: held, not leased, charged to the target.
//! An alias of an alias is an alias of what that one is, so a chain has one link, the target owns its
//! bytes, and there is no circle.

use std::collections::HashMap;
use std::sync::Arc;

use super::content::{Aliases, Body, Facts, Own, Target, Targets};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::identity::{
    Digest, Identity, Seen, declared_with_aliases, digest, digest_unread, identity_of,
};
use crate::layout::{Extents, LENDERS, Layout, TensorInfo};
use crate::names::SetName;
use crate::sync::share::Share;
use crate::tensor::WeightKind;

/// A generation that aliases are bound to.
pub(super) struct Lender {
    pub(super) set: SetHandle,
    pub(super) name: SetName,
    pub(super) facts: Facts,
    pub(super) body: Share<Body>,
}

/// What a set's aliases are now.
#[derive(Default)]
pub(super) struct Aliased {
    /// In the targets' order. Of one that was not read: of what is known of it.
    digests: Vec<Digest>,
    /// Some were not read.
    unread: bool,
}

/// What binding gives.
pub(super) struct Bound {
    pub(super) lent: Box<[Share<Body>]>,
    pub(super) aliased: Aliased,
    /// Lender and offset of each.
    places: Vec<(u8, u64)>,
}

impl Targets {
    /// The sets that they are in, each once.
    pub(super) fn sets(&self) -> Vec<SetHandle> {
        let mut sets: Vec<SetHandle> = self.0.iter().map(|target| target.set).collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    /// An alias of the same set would stand on the generation that it replaces.
    #[cold]
    pub(super) fn of_itself(&self, set: SetHandle) -> Error {
        let target = self.0.iter().find(|target| target.set == set);
        Error::InvalidTensor {
            tensor: target.map_or_else(String::new, |target| target.name.to_string()),
            reason: format!("is an alias of {set}, which is this very set; declare a tie instead"),
        }
    }

    /// Binds the aliases of a set with this layout to `lenders`, which have all of [`sets`](Self::sets).
    pub(super) fn bind(&self, layout: &Layout, lenders: &[Lender]) -> Result<Bound, Error> {
        if lenders.len() > LENDERS {
            return Err(Error::InvalidTensor {
                tensor: self.0[0].name.to_string(),
                reason: format!(
                    "is one of aliases into {} sets; at most {LENDERS} are possible",
                    lenders.len()
                ),
            });
        }
        let mut places = Vec::with_capacity(self.0.len());
        let mut aliased = Aliased::default();
        for target in &self.0 {
            let found = (0..)
                .zip(lenders)
                .find(|(_, lender)| lender.set == target.set);
            let Some((index, lender)) = found else {
                return Err(Error::StaleHandle { handle: target.set });
            };
            let (offset, bytes) = target.look(layout, lender)?;
            places.push((index, offset));
            aliased.unread |= bytes.is_none();
            aliased.digests.push(match bytes {
                Some(bytes) => digest(bytes),
                None => digest_unread(&lender.facts.identity, &target.tensor),
            });
        }
        Ok(Bound {
            lent: lenders.iter().map(|lender| lender.body.clone()).collect(),
            aliased,
            places,
        })
    }

    /// Enters the places by the ordinals of `layout`.
    pub(super) fn place(&self, bound: &Bound, layout: &Layout, extents: &mut Extents) {
        for (target, &(lender, offset)) in self.0.iter().zip(&bound.places) {
            let here = layout.ordinal(&target.name);
            if let Some((ordinal, info)) = here.and_then(|at| Some((at, layout.tensor(at)?))) {
                extents.lend(ordinal, lender, offset, info.byte_len());
            }
        }
    }
}

impl Target {
    /// Where it is in its lender and what is there, if it is still what the alias says it is. `None`:
    /// what is there is not read, because the host cannot, or because nobody has read the lender.
    fn look<'l>(
        &self,
        layout: &Layout,
        lender: &'l Lender,
    ) -> Result<(u64, Option<&'l [u8]>), Error> {
        let mismatch = |reason: String| Error::AliasMismatch {
            alias: self.name.to_string(),
            set: lender.name.clone(),
            tensor: self.tensor.to_string(),
            reason,
        };
        let Facts {
            layout: theirs,
            extents,
            ..
        } = &lender.facts;
        let ordinal = theirs.ordinal(&self.tensor);
        let there =
            ordinal.and_then(|ordinal| Some((theirs.tensor(ordinal)?, extents.place(ordinal)?)));
        let Some((there, place)) = there else {
            return Err(mismatch("it has no such tensor".to_owned()));
        };
        let here = layout
            .ordinal(&self.name)
            .and_then(|own| layout.tensor(own));
        if let Some(here) = here
            && (here.dtype_name(), here.shape()) != (there.dtype_name(), there.shape())
        {
            return Err(mismatch(format!(
                "it is {} {:?} there, {} {:?} here",
                there.dtype_name(),
                there.shape(),
                here.dtype_name(),
                here.shape()
            )));
        }
        if ordinal.is_some_and(|ordinal| extents.in_part(ordinal).is_some()) {
            return Err(mismatch(
                "it is in a part that is streamed, and not in memory all the time".to_owned(),
            ));
        }
        if place.lender.is_some() {
            return Err(mismatch(
                "it is an alias itself; alias the tensor that it stands for".to_owned(),
            ));
        }
        let memory = &lender.body.memory;
        if !memory.is_host_readable() || matches!(lender.facts.identity, Identity::Unread(_)) {
            return Ok((place.offset, None));
        }
        let (start, len) = (place.offset as usize, there.byte_len() as usize);
        match memory.as_slice().get(start..start + len) {
            Some(bytes) => Ok((place.offset, Some(bytes))),
            None => Err(mismatch("its bytes are not there".to_owned())),
        }
    }
}

impl Aliases {
    /// What the set that `facts` describe is, when its aliases are `aliased`. If it is not vouched for
    /// that is what a set would be that has all these bytes itself. If not all of them were read,
    /// nobody has read the whole.
    pub(super) fn identity(&self, facts: &Facts, aliased: &Aliased) -> Identity {
        let unread = aliased.unread || matches!(self.own, Own::Declared(Identity::Unread(_)));
        let identity = self.identity_if_read(facts, &aliased.digests);
        if unread { identity.unread() } else { identity }
    }

    fn identity_if_read(&self, facts: &Facts, aliased: &[Digest]) -> Identity {
        let aliased: HashMap<&str, Digest> = self
            .targets
            .0
            .iter()
            .zip(aliased)
            .map(|(target, digest)| (&*target.name, *digest))
            .collect();
        let mut tensors: Vec<&TensorInfo> = facts.layout.tensors().map(|(_, info)| info).collect();
        tensors.sort_by(|a, b| a.name().cmp(b.name()));
        let seen = |digest_of: &dyn Fn(&str) -> Option<Digest>| -> Vec<Seen<'_>> {
            let mut seen = Vec::with_capacity(tensors.len());
            for info in &tensors {
                if let Some(digest) = digest_of(info.name()) {
                    seen.push(Seen {
                        name: info.name(),
                        dtype: info.dtype_name(),
                        shape: info.shape(),
                        shard: info.shard(),
                        digest,
                    });
                }
            }
            seen
        };
        match &self.own {
            Own::Digests(own) => {
                let all = seen(&|name| aliased.get(name).or_else(|| own.get(name)).copied());
                let modules = facts.adapter.as_ref().map(|adapter| {
                    // As many scales as modules: both come from one plan.
                    let pairs = facts.layout.modules().iter().map(|pair| pair.module());
                    pairs.zip(adapter.scales().iter().copied())
                });
                identity_of(&all, modules)
            }
            Own::Declared(declared) => {
                let only = seen(&|name| aliased.get(name).copied());
                declared_with_aliases(declared, &only)
            }
        }
    }
}

/// The table entry of an alias of `of`.
pub(super) fn entry(name: &Arc<str>, of: &TensorInfo) -> TensorInfo {
    TensorInfo {
        name: Arc::clone(name),
        kind: WeightKind::TiedAlias,
        tie: None,
        replaces: None,
        ..of.clone()
    }
}
