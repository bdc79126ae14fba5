//! Steps to a commit: from staged sets to generations, from a refusal back to staged sets.
//!
//! What lives here: the one way by which anything becomes or ceases to be current, for one set or
//! many, and what each refusal of the core means to a caller. What does not: the commit's protocol
//! (`core::commit`), names (`publish`, `transaction`).

use std::collections::HashMap;
use std::sync::Arc;

use super::WeightRegistry;
use super::generation::{Change, Going, Meta, Node, SetRecord, StagedNode, Writing, generation};
use super::posting::Posting;
use super::retirement::Retirement;
use super::staged::{PublishError, Staged};
use crate::core::{Bond, Expect, Refusal};
use crate::error::Error;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::layout::{Layout, OrdinalTable};
use crate::plan::{AdapterPlan, Plan};

/// What becomes of one set.
pub(super) struct Step {
    pub(super) record: Arc<SetRecord>,
    pub(super) expect: Expect,
    pub(super) act: Act,
}

impl Step {
    /// What would have become current.
    pub(super) fn into_staged(self) -> Option<Staged> {
        match self.act {
            Act::Become(staged) => Some(*staged),
            Act::Retire => None,
        }
    }
}

pub(super) enum Act {
    /// This is its next generation.
    Become(Box<Staged>),
    /// It goes.
    Retire,
}

/// A commit that went through.
pub(super) struct Done {
    pub(super) number: u64,
    /// What each step superseded.
    pub(super) previous: Vec<Option<Retirement>>,
}

/// A commit that did not: why, which step is to blame, and everything as it was.
pub(super) struct Undone {
    pub(super) error: Error,
    pub(super) index: usize,
    pub(super) steps: Vec<Step>,
}

/// What is needed to turn a refused node back into a staged set.
struct Remains {
    plan: Plan,
    own: Arc<Layout>,
    base: Option<SetHandle>,
    ordinals: Option<OrdinalTable>,
}

impl WeightRegistry {
    /// Takes all `steps` at one instant, or none. No two may be about one set.
    pub(super) fn commit(&self, mut steps: Vec<Step>) -> Result<Done, Box<Undone>> {
        let records: Vec<Arc<SetRecord>> =
            steps.iter().map(|step| Arc::clone(&step.record)).collect();
        let mut writings = write_all(&records);
        loop {
            let bonds = match self.bonds(&steps) {
                Ok(bonds) => bonds,
                Err((index, error)) => {
                    return Err(Box::new(Undone {
                        error,
                        index,
                        steps,
                    }));
                }
            };
            let mut remains = Vec::with_capacity(steps.len());
            let mut expected = Vec::with_capacity(steps.len());
            let mut changes = Vec::with_capacity(steps.len());
            for ((step, writing), bond) in steps.into_iter().zip(&writings).zip(bonds) {
                let (node, left) = match step.act {
                    Act::Become(staged) => {
                        let (node, left) = self.node(writing, bond, *staged);
                        (node, Some(left))
                    }
                    Act::Retire => {
                        let reclaimer = Arc::clone(self.spine.reclaimer());
                        let tag = writing.record.handle.tag;
                        (StagedNode::tombstone(tag, reclaimer), None)
                    }
                };
                changes.push(Change::new(writing.record.handle.slot, step.expect, node));
                expected.push(step.expect);
                remains.push(left);
            }
            let refusal = match self.apply(&mut writings, &mut changes, &remains) {
                Ok(done) => {
                    for (writing, left) in writings.iter().zip(remains) {
                        if let Some(ordinals) = left.and_then(|left| left.ordinals) {
                            writing.keep(ordinals);
                        }
                    }
                    return Ok(done);
                }
                Err(refusal) => refusal,
            };
            steps = records
                .iter()
                .zip(expected)
                .zip(changes.into_iter().zip(remains))
                .map(|((record, expect), (change, left))| Step {
                    record: Arc::clone(record),
                    expect,
                    act: left.map_or(Act::Retire, |left| {
                        Act::Become(Box::new(self.unstage(change, left)))
                    }),
                })
                .collect();
            if let Refusal::BaseGone { bond, .. } = refusal
                && bond.birth.is_some()
            {
                // The base got a new generation since it was checked. Check against that one; if it
                // is gone altogether, `bonds` says so.
                continue;
            }
            let (index, error) = self.refused(refusal, &steps);
            return Err(Box::new(Undone {
                error,
                index,
                steps,
            }));
        }
    }

    /// [`commit`](Self::commit) of one set.
    pub(super) fn commit_one(
        &self,
        record: &Arc<SetRecord>,
        expect: Expect,
        act: Act,
    ) -> Result<(u64, Option<Retirement>), PublishError> {
        let step = Step {
            record: Arc::clone(record),
            expect,
            act,
        };
        match self.commit(vec![step]) {
            Ok(mut done) => Ok((done.number, done.previous.pop().flatten())),
            Err(undone) => {
                let staged = undone.steps.into_iter().find_map(Step::into_staged);
                Err(PublishError::new(undone.error, staged))
            }
        }
    }

    /// A staged node of the set that is being written, and what is needed to take it back.
    fn node(
        &self,
        writing: &Writing<'_>,
        bond: Option<Bond>,
        staged: Staged,
    ) -> (StagedNode, Remains) {
        let record = writing.record;
        let kind = staged.kind();
        let Staged {
            registry: _,
            plan,
            layout: own,
            mut extents,
            base,
            identity,
            bytes,
        } = staged;
        let mut layout = Arc::clone(&own);
        let mut ordinals = None;
        if let Some((other, names)) = writing.layout_for(&plan, &own) {
            layout = self.layouts.intern(other);
            extents = plan.extents(&layout);
            ordinals = Some(names);
        }
        let meta = Meta {
            handle: record.handle,
            kind,
            record: Arc::clone(record),
            extents,
            adapter: plan.adapter().map(AdapterPlan::info),
            layout,
            identity,
            base,
            bytes: bytes.charge.bytes(),
            shared: Arc::clone(&self.shared),
        };
        // Before the commit: afterwards somebody may already have superseded it.
        bytes.charge.settle();
        let reclaimer = Arc::clone(self.spine.reclaimer());
        let node = StagedNode::new(record.handle.tag, bond, meta, bytes, reclaimer);
        let remains = Remains {
            plan,
            own,
            base,
            ordinals,
        };
        (node, remains)
    }

    /// The way back of [`node`](Self::node).
    fn unstage(&self, change: Change, remains: Remains) -> Staged {
        let parts = change.into_node().and_then(StagedNode::dismantle);
        let Some((meta, bytes)) = parts else {
            unreachable!("a refused change keeps its node")
        };
        bytes.charge.unsettle();
        let Remains {
            plan, own, base, ..
        } = remains;
        Staged {
            registry: self.id,
            extents: if Arc::ptr_eq(&own, &meta.layout) {
                meta.extents
            } else {
                plan.extents(&own)
            },
            plan,
            layout: own,
            base,
            identity: meta.identity,
            bytes,
        }
    }

    /// Commits, and tells what was superseded: of a set that goes, together with all its earlier
    /// generations that are still held.
    fn apply(
        &self,
        writings: &mut [Writing<'_>],
        changes: &mut [Change],
        remains: &[Option<Remains>],
    ) -> Result<Done, Refusal> {
        let mut superseded: Vec<Option<Going>> = changes.iter().map(|_| None).collect();
        let mut posting = Posting::new(&self.shared, changes);
        let committed = |number| posting.places.take(number);
        let number = self
            .view()
            .commit(changes, committed, |index, node, bytes| {
                // Before the generation refuses leases: the taker may come at once after that.
                if let (Some(_), Some(bytes)) = (node.meta(), bytes) {
                    bytes.charge.retire();
                    posting.changes.superseded(index, node, &self.shared);
                    superseded[index] = Some(Going {
                        generation: generation(node),
                        bytes: bytes.charge.bytes(),
                        vitals: Arc::clone(node.vitals()),
                    });
                }
            })?;
        drop(posting);
        if superseded.iter().any(Option::is_some) {
            // We have let go of the epoch: from here on the reclaimer can move it past the commit.
            self.spine.reclaimer().nudge();
        }
        let mut previous = Vec::with_capacity(superseded.len());
        for ((superseded, writing), left) in superseded.into_iter().zip(writings).zip(remains) {
            previous.push(superseded.map(|going| self.note(writing, going, left.is_none())));
        }
        Ok(Done { number, previous })
    }

    /// Enters a superseded generation in the books. `whole`: the set goes, too.
    fn note(&self, writing: &mut Writing<'_>, superseded: Going, whole: bool) -> Retirement {
        let Writing { record, going } = writing;
        going.retain(|one| !one.vitals.is_reclaimed());
        going.push(superseded.clone());
        let retirement =
            |parts| Retirement::new(Arc::clone(record), parts, Arc::clone(&self.shared));
        let whole = whole.then(|| retirement(going.clone()));
        let one = retirement(vec![superseded]);
        self.remember(one.clone());
        whole.unwrap_or(one)
    }

    /// What each step's generation is going to stand on, if that fits.
    fn bonds(&self, steps: &[Step]) -> Result<Vec<Option<Bond>>, (usize, Error)> {
        let along: HashMap<SetHandle, &Step> = match steps {
            [_] => HashMap::new(),
            _ => steps
                .iter()
                .map(|step| (step.record.handle, step))
                .collect(),
        };
        let bond = |(index, step): (usize, &Step)| match &step.act {
            Act::Retire => Ok(None),
            Act::Become(staged) => staged
                .base
                .map(|base| self.bond(&staged.plan, base, along.get(&base).copied()))
                .transpose()
                .map_err(|error| (index, error)),
        };
        steps.iter().enumerate().map(bond).collect()
    }

    /// Binds an adapter to the generation of its base that will be current with it: the one that
    /// comes along, or else the one that is current now.
    fn bond(&self, plan: &Plan, base: SetHandle, along: Option<&Step>) -> Result<Bond, Error> {
        let key = self.key(base)?;
        if let Some(along) = along {
            let Act::Become(staged) = &along.act else {
                return Err(Error::BaseNotCurrent { base });
            };
            check_base(plan, &along.record, staged.kind(), &staged.layout)?;
            return Ok(Bond {
                base: key,
                birth: None,
            });
        }
        let view = self.view();
        let node = view.resolve(key).ok_or(Error::BaseNotCurrent { base })?;
        check_node(plan, node)?;
        Ok(Bond {
            base: key,
            birth: Some(node.birth()),
        })
    }

    #[cold]
    fn refused(&self, refusal: Refusal, steps: &[Step]) -> (usize, Error) {
        let (Refusal::Changed { index, .. }
        | Refusal::Twice { index }
        | Refusal::Dependants { index, .. }
        | Refusal::BaseGone { index, .. }) = refusal;
        let Step { record, expect, .. } = &steps[index];
        let error = match refusal {
            Refusal::Dependants { count, .. } => Error::Dependants {
                set: record.name.clone(),
                count,
            },
            Refusal::BaseGone { bond, .. } => Error::BaseNotCurrent {
                base: SetHandle {
                    registry: self.id,
                    slot: bond.base.slot,
                    tag: bond.base.tag,
                },
            },
            Refusal::Changed {
                seen: Some(seen), ..
            } if !seen.retired && seen.tag == record.handle.tag => {
                let expected = match expect {
                    Expect::Exactly { birth, .. } => *birth,
                    Expect::Tenant(_) | Expect::Vacant => 0,
                };
                Error::Conflict {
                    set: record.name.clone(),
                    expected: Generation(expected),
                    current: Generation(seen.birth),
                }
            }
            Refusal::Changed { .. } | Refusal::Twice { .. } => Error::StaleHandle {
                handle: record.handle,
            },
        };
        (index, error)
    }
}

/// The right to write each of `records`, in their order. Taken in the order of handles, so that two
/// transactions never wait for each other.
fn write_all(records: &[Arc<SetRecord>]) -> Vec<Writing<'_>> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_unstable_by_key(|&index| records[index].handle);
    let mut writings: Vec<Option<Writing<'_>>> = records.iter().map(|_| None).collect();
    for index in order {
        writings[index] = Some(records[index].write());
    }
    writings.into_iter().flatten().collect()
}

/// Does what `plan` describes fit a base of this kind and layout?
pub(super) fn check_base(
    plan: &Plan,
    base: &SetRecord,
    kind: SetKind,
    layout: &Layout,
) -> Result<(), Error> {
    if kind == SetKind::Adapter {
        return Err(Error::NotABase {
            base: base.name.clone(),
        });
    }
    plan.adapter()
        .map_or(Ok(()), |adapter| adapter.check_against(layout))
}

/// The same for the base's current generation.
pub(super) fn check_node(plan: &Plan, base: &Node) -> Result<(), Error> {
    base.meta().map_or(Ok(()), |base| {
        check_base(plan, &base.record, base.kind, &base.layout)
    })
}
