//! What a generation stands on: the generations of other sets that are current together with it.
//!
//! What lives here: an adapter's base, the targets of aliases, and whether they fit. What does not:
//! that it stays so (the commit itself, `core::spine`), what an alias does to its set (`alias`).

use std::collections::HashMap;
use std::sync::Arc;

use super::WeightRegistry;
use super::alias::{Bound, Lender};
use super::content::{Bytes, Facts, Targets};
use super::generation::{Hold, Node};
use super::record::SetRecord;
use crate::core::{Bond, Miss};
use crate::error::Error;
use crate::handle::{SetHandle, SetKind};
use crate::layout::Layout;
use crate::modules::{Fit, check_fit};

/// What is about to become current together with others: seen by those that stand on it.
pub(super) struct Along<'s> {
    pub(super) record: &'s Arc<SetRecord>,
    /// `None`: the set goes.
    pub(super) facts: Option<&'s Facts>,
    pub(super) bytes: Option<&'s Bytes>,
}

/// What one generation stands on.
#[derive(Default)]
pub(super) struct Footing {
    /// Each other set once.
    pub(super) bonds: Vec<Bond>,
    pub(super) aliases: Option<Bound>,
    /// How an adapter fits its base.
    pub(super) fit: Fit,
    /// Leases of the sets that aliases are in, longer than the shares in their bytes: so whoever
    /// retires one of them meanwhile, and waits for its bytes, waits for the shares.
    pub(super) leases: Vec<Hold>,
}

impl WeightRegistry {
    /// Binds what `facts` describe to the generations that will be current with it: those that come
    /// along, or else those that are current now. Whether they still are at the commit, the commit
    /// checks.
    ///
    /// `own`: the set that it is a generation of, if that is known yet.
    pub(super) fn footing(
        &self,
        facts: &Facts,
        own: Option<SetHandle>,
        along: &HashMap<SetHandle, Along<'_>>,
    ) -> Result<Footing, Error> {
        let mut footing = Footing::default();
        if let Some(base) = facts.base {
            let (bond, fit) = self.base_bond(facts, base, along.get(&base))?;
            footing.bonds.push(bond);
            footing.fit = fit;
        }
        if let Some(aliases) = &facts.aliases {
            self.lend(&mut footing, &aliases.targets, &facts.layout, own, along)?;
        }
        Ok(footing)
    }

    /// The same for the aliases of a set with this layout.
    pub(super) fn lend(
        &self,
        footing: &mut Footing,
        targets: &Targets,
        layout: &Layout,
        own: Option<SetHandle>,
        along: &HashMap<SetHandle, Along<'_>>,
    ) -> Result<(), Error> {
        let mut lenders = Vec::new();
        for set in targets.sets() {
            if own == Some(set) {
                return Err(targets.of_itself(set));
            }
            let (lender, bond) = self.lender(set, along.get(&set), &mut footing.leases)?;
            lenders.push(lender);
            if !footing.bonds.contains(&bond) {
                footing.bonds.push(bond);
            }
        }
        footing.aliases = Some(targets.bind(layout, &lenders)?);
        Ok(())
    }

    fn base_bond(
        &self,
        adapter: &Facts,
        base: SetHandle,
        along: Option<&Along<'_>>,
    ) -> Result<(Bond, Fit), Error> {
        let key = self.key(base)?;
        let adapter = (&*adapter.origin, &*adapter.layout);
        if let Some(along) = along {
            let facts = along.facts.ok_or(Error::BaseNotCurrent { base })?;
            let fit = check_base(adapter, along.record, facts)?;
            let bond = Bond {
                base: key,
                birth: None,
            };
            return Ok((bond, fit));
        }
        let view = self.view();
        let node = view.resolve(key).ok_or(Error::BaseNotCurrent { base })?;
        let fit = check_node(adapter, node)?;
        let bond = Bond {
            base: key,
            birth: Some(node.birth()),
        };
        Ok((bond, fit))
    }

    /// The generation of `set` that an alias is bound to.
    fn lender(
        &self,
        set: SetHandle,
        along: Option<&Along<'_>>,
        leases: &mut Vec<Hold>,
    ) -> Result<(Lender, Bond), Error> {
        let base = self.key(set)?;
        if let Some(along) = along {
            let facts = along.facts.ok_or(Error::BaseNotCurrent { base: set })?;
            let bytes = along.bytes.ok_or(Error::NotResident { handle: set })?;
            let lender = Lender {
                set,
                name: along.record.name.clone(),
                facts: facts.clone(),
                body: bytes.own.clone(),
            };
            return Ok((lender, Bond { base, birth: None }));
        }
        let hold = self.hold(set)?;
        let meta = hold.meta();
        let lender = Lender {
            set,
            name: meta.record.name.clone(),
            facts: meta.facts.clone(),
            body: hold.storage().own.clone(),
        };
        let birth = Some(hold.node().birth());
        leases.push(hold);
        Ok((lender, Bond { base, birth }))
    }

    /// A lease of the current generation of `set`.
    pub(super) fn hold(&self, set: SetHandle) -> Result<Hold, Error> {
        let key = self.key(set)?;
        match self.view().acquire_one(key) {
            Ok(hold) => Ok(hold),
            Err(Miss::NotResident { .. }) => Err(Error::NotResident { handle: set }),
            Err(Miss::Absent { .. } | Miss::Superseded { .. }) => {
                Err(Error::StaleHandle { handle: set })
            }
        }
    }
}

/// Does an adapter (where it comes from, its layout) fit a base that is made of `facts`?
pub(super) fn check_base(
    (origin, adapter): (&str, &Layout),
    base: &SetRecord,
    facts: &Facts,
) -> Result<Fit, Error> {
    if facts.kind() == SetKind::Adapter {
        return Err(Error::NotABase {
            base: base.name.clone(),
        });
    }
    check_fit(origin, adapter, &facts.layout)
}

/// The same for the base's current generation.
pub(super) fn check_node(adapter: (&str, &Layout), base: &Node) -> Result<Fit, Error> {
    base.meta().map_or(Ok(Fit::default()), |base| {
        check_base(adapter, &base.record, &base.facts)
    })
}
