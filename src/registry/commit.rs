//! Steps to a commit: from what a caller wants to generations, and from a refusal back.
//!
//! What lives here: the one way by which anything becomes or ceases to be current, for one set or
//! many, and what each refusal of the core means to a caller. What does not: the commit's protocol
//! (`core::commit`), what steps need to know before (`prepare`), names (`reserve`).

use std::sync::Arc;

use super::WeightRegistry;
use super::accounts::{assign, unassign};
use super::bind::Footing;
use super::content::{Bytes, Content};
use super::dependants::blocked_by;
use super::face::Face;
use super::generation::{Change, Hold, Meta, StagedNode, charged, generation};
use super::posting::Posting;
use super::prepare::There;
use super::record::{Bin, Going, Kept, SetRecord, Writing};
use super::retirement::Retirement;
use super::staged::{PublishError, Staged};
use super::step::{Act, Done, Step, Undone};
use crate::core::{Expect, Refusal, Storage, clear_away};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::identity::Identity;
use crate::layout::{Extents, Layout, OrdinalTable};
use crate::plan::Plan;

/// One attempt at a commit that did not go through.
struct Failed {
    why: Why,
    steps: Vec<Step>,
}

enum Why {
    Error(usize, Error),
    Refused(Refusal),
}

/// What is needed to turn a refused node back into the step that it came from.
enum Remains {
    /// A staged set, and its own table if its set has another.
    Staged {
        plan: Plan,
        own: Option<(Arc<Layout>, Extents)>,
        /// What it was staged as, if its aliases make it another now.
        identity: Option<Identity>,
    },
    Act {
        act: Act,
        restored: Option<Generation>,
    },
}

impl Remains {
    /// Names in it: it takes as long to drop.
    fn names(&self) -> usize {
        match self {
            Remains::Staged { plan, .. } => plan.tensors().len() + plan.aliases().len(),
            Remains::Act { .. } => 0,
        }
    }
}

/// What is left of the steps of a commit that went through: plans, and tables that their sets have others
/// for. All of it is ours, and to drop it takes as long as there are tensors.
struct Leftovers(Vec<Remains>);

impl Leftovers {
    /// So many names are dropped sooner than a thread is woken.
    const FEW: usize = 16;

    fn are_few(&self) -> bool {
        let mut names = 0;
        self.0.iter().all(|remains| {
            names += remains.names();
            names <= Self::FEW
        })
    }
}

impl Storage for Leftovers {
    fn dismantle(self, step: &mut dyn FnMut()) {
        for remains in self.0 {
            drop(remains);
            step();
        }
    }
}

/// A node and what comes with it.
struct Made {
    node: StagedNode,
    remains: Remains,
    names: Option<Arc<OrdinalTable>>,
    /// Until the commit is over: see [`Footing::leases`].
    leases: Vec<Hold>,
}

impl WeightRegistry {
    /// Takes all `steps` at one instant, or none. No two may be about one set.
    ///
    /// Sets whose tensors are aliases of a set that gets a new generation are bound to it in the same
    /// commit, whether or not they are among the steps.
    pub(super) fn commit(&self, mut steps: Vec<Step>) -> Result<Done, Box<Undone>> {
        let asked = steps.len();
        // Of each set that comes along by itself: the step that it follows.
        let mut led: Vec<usize> = Vec::new();
        let assigned = match assign(&steps) {
            Ok(assigned) => assigned,
            Err((index, error)) => {
                return Err(Box::new(Undone {
                    error,
                    index,
                    steps,
                }));
            }
        };
        loop {
            let failed = match self.attempt(steps) {
                Ok(mut done) => {
                    done.previous.truncate(asked);
                    return Ok(done);
                }
                Err(failed) => *failed,
            };
            steps = failed.steps;
            let (mut index, error) = match failed.why {
                // What it stands on got a new generation since it was looked at. Look at that one; if
                // it is gone altogether, the next attempt says so.
                Why::Refused(Refusal::BaseGone { bond, .. }) if bond.birth.is_some() => continue,
                Why::Refused(Refusal::Dependants { index, .. }) => {
                    let standing = self.standing_on(&steps[index].record, &steps);
                    if standing.is_empty() {
                        // They are gone by now.
                        continue;
                    }
                    let (follow, stay) = steps[index].followers(standing);
                    if !follow.is_empty() {
                        led.resize(led.len() + follow.len(), index);
                        steps.extend(follow);
                        continue;
                    }
                    (index, blocked_by(&steps[index].record, &stay))
                }
                Why::Refused(refusal) => self.refused(refusal, &steps),
                Why::Error(index, error) => (index, error),
            };
            if index >= asked
                && let Error::StaleHandle { handle } = &error
                && *handle == steps[index].record.handle
            {
                // A set that came along by itself was retired meanwhile: it need not come.
                steps.truncate(asked);
                led.clear();
                continue;
            }
            steps.truncate(asked);
            unassign(&steps, &assigned);
            // A set that came along by itself: blame what it follows.
            while let Some(&leader) = index.checked_sub(asked).and_then(|at| led.get(at)) {
                index = leader;
            }
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

    fn attempt(&self, steps: Vec<Step>) -> Result<Done, Box<Failed>> {
        let records: Vec<Arc<SetRecord>> =
            steps.iter().map(|step| Arc::clone(&step.record)).collect();
        let mut writings = write_all(&records);
        let prepared = self.there(&steps, &writings).and_then(|there| {
            let footings = self.footings(&steps, &there)?;
            Ok((there, footings))
        });
        let (there, footings) = match prepared {
            Ok(prepared) => prepared,
            Err((index, error)) => {
                let why = Why::Error(index, error);
                return Err(Box::new(Failed { why, steps }));
            }
        };
        let mut expected = Vec::with_capacity(steps.len());
        let mut remains = Vec::with_capacity(steps.len());
        let mut names = Vec::with_capacity(steps.len());
        let mut leases = Vec::new();
        let mut changes = Vec::with_capacity(steps.len());
        for (((step, there), footing), writing) in
            steps.into_iter().zip(there).zip(footings).zip(&writings)
        {
            let made = self.node(writing, step.act, there, footing);
            changes.push(Change::new(
                writing.record.handle.slot,
                step.expect,
                made.node,
            ));
            expected.push(step.expect);
            remains.push(made.remains);
            names.push(made.names);
            leases.extend(made.leases);
        }
        match self.apply(&mut writings, &mut changes, &remains) {
            Ok(done) => {
                for (writing, names) in writings.iter().zip(names) {
                    if let Some(names) = names {
                        writing.keep_names(names);
                    }
                }
                // Other writers of these sets need not wait for a wake-up.
                drop(writings);
                let leftovers = Leftovers(remains);
                if done.previous.iter().any(Option::is_some) || !leftovers.are_few() {
                    // We have let go of the epoch: from here on the reclaimer can move it past the commit.
                    clear_away(self.spine.reclaimer(), leftovers);
                }
                Ok(done)
            }
            Err(refusal) => {
                let steps = records
                    .iter()
                    .zip(expected)
                    .zip(changes.into_iter().zip(remains))
                    .map(|((record, expect), (change, remains))| Step {
                        record: Arc::clone(record),
                        expect,
                        act: self.unmake(change, remains),
                    })
                    .collect();
                // After the shares in their bytes.
                drop(leases);
                let why = Why::Refused(refusal);
                Err(Box::new(Failed { why, steps }))
            }
        }
    }

    /// A node of the set that is being written, and what is needed to take it back.
    fn node(
        &self,
        writing: &Writing<'_>,
        act: Act,
        there: Option<Box<There>>,
        footing: Footing,
    ) -> Made {
        let record = writing.record;
        let reclaimer = Arc::clone(self.spine.reclaimer());
        let restored = there.as_ref().and_then(|there| there.restored);
        let (mut facts, mut bytes, source) = match (act, there) {
            (Act::Become(staged), _) => {
                let Staged { plan, content, .. } = *staged;
                (content.facts, Some(content.bytes), Ok(plan))
            }
            (act, Some(there)) => (there.facts, there.bytes, Err(act)),
            (act, None) => {
                return Made {
                    node: StagedNode::tombstone(record.handle.tag, reclaimer),
                    remains: Remains::Act { act, restored },
                    names: None,
                    leases: Vec::new(),
                };
            }
        };
        let (mut own, mut names, mut identity) = (None, None, None);
        if let Some((layout, extents, table)) = writing.layout_for(&facts.layout, &facts.extents) {
            let layout = std::mem::replace(&mut facts.layout, self.layouts.intern(layout));
            let extents = facts.layout.share(extents);
            own = Some((layout, std::mem::replace(&mut facts.extents, extents)));
            names = Some(Arc::new(table));
        }
        if let (Some(bound), Some(aliases)) = (footing.aliases, facts.aliases.clone()) {
            let places = &mut facts.extents;
            aliases.targets.place(&bound, &facts.layout, places);
            let now = aliases.identity(&facts, &bound.aliased);
            identity = Some(std::mem::replace(&mut facts.identity, now));
            if let Some(bytes) = &mut bytes {
                bytes.lent = bound.lent;
            }
        }
        let charged_again = facts.charged_again();
        let face = Face::new(record.handle, &facts, bytes.as_ref());
        let meta = Meta {
            face,
            handle: record.handle,
            kind: facts.kind(),
            record: Arc::clone(record),
            facts,
            fit: footing.fit,
            bytes: bytes
                .as_ref()
                .map_or(charged_again, |bytes| bytes.own.charge.bytes()),
            shared: Arc::clone(&self.shared),
        };
        let (tag, bonds) = (record.handle.tag, footing.bonds);
        let node = match bytes {
            Some(bytes) => {
                // Before the commit: afterwards somebody may already have superseded it.
                bytes.own.charge.settle();
                StagedNode::new(tag, bonds, meta, bytes, reclaimer)
            }
            None => StagedNode::absent(tag, bonds, meta, reclaimer),
        };
        let remains = match source {
            Ok(plan) => Remains::Staged {
                plan,
                own,
                identity,
            },
            Err(act) => Remains::Act { act, restored },
        };
        Made {
            node,
            remains,
            names,
            leases: footing.leases,
        }
    }

    /// The way back of [`node`](Self::node).
    fn unmake(&self, change: Change, remains: Remains) -> Act {
        let parts = change.into_node().and_then(StagedNode::dismantle);
        if let Some((_, bytes)) = &parts {
            bytes.own.charge.unsettle();
        }
        match (remains, parts) {
            (Remains::Act { act, .. }, _) => act,
            (
                Remains::Staged {
                    plan,
                    own,
                    identity,
                },
                Some((meta, mut bytes)),
            ) => {
                let mut facts = meta.facts;
                if let Some((layout, extents)) = own {
                    facts.layout = layout;
                    facts.extents = extents;
                }
                if let Some(identity) = identity {
                    facts.identity = identity;
                }
                bytes.lent = Box::default();
                Act::Become(Box::new(Staged {
                    registry: self.id,
                    plan,
                    content: Content { facts, bytes },
                }))
            }
            (Remains::Staged { .. }, None) => unreachable!("a refused change keeps its node"),
        }
    }

    /// Commits, and tells what was superseded: of a set that goes, together with all its earlier
    /// generations that are still held or kept.
    fn apply(
        &self,
        writings: &mut [Writing<'_>],
        changes: &mut [Change],
        remains: &[Remains],
    ) -> Result<Done, Refusal> {
        let mut superseded: Vec<Option<Going>> = changes.iter().map(|_| None).collect();
        let mut kept: Vec<Option<Kept>> = changes.iter().map(|_| None).collect();
        let mut posting = Posting::new(&self.shared, changes);
        let (places, told) = (&mut posting.places, &mut posting.changes);
        let committed = |number| places.take(number);
        let number = self
            .view()
            .commit(changes, committed, |index, node, bytes| {
                // Before the generation refuses leases: the taker may come at once after that.
                let Some(meta) = node.meta() else { return };
                told.superseded(index, node, &self.shared);
                superseded[index] = Some(Going {
                    generation: generation(node),
                    bytes: charged(node),
                    vitals: Arc::clone(node.vitals()),
                });
                let Some(bytes) = bytes else { return };
                let keeps = match &remains[index] {
                    Remains::Staged { .. } => writings[index].history.keep > 0,
                    Remains::Act { act, .. } => match act {
                        Act::Restore(_) => writings[index].history.keep > 0,
                        Act::Vacate => true,
                        // The same bytes again, or none.
                        Act::Rebind(_) | Act::Become(_) | Act::Retire => false,
                    },
                };
                if keeps {
                    // Without what its aliases are in: they are bound anew if it comes back, and until
                    // then it must not keep another set's memory.
                    let bytes = Bytes {
                        own: bytes.own.clone(),
                        lent: Box::default(),
                    };
                    let facts = meta.facts.clone();
                    let content = Content { facts, bytes };
                    kept[index] = Some(Kept::new(generation(node), content));
                }
                bytes.own.charge.retire();
            })?;
        drop(posting);
        let queue = self.spine.reclaimer();
        let mut previous = Vec::with_capacity(superseded.len());
        let mut gone = Vec::new();
        let mut let_go = Vec::new();
        for (index, (superseded, kept)) in superseded.into_iter().zip(kept).enumerate() {
            let Writing { record, history } = &mut writings[index];
            let mut bin = Bin::new(queue);
            // Before the last generation is noted: that one is the newest, and is told of in any case.
            if let Remains::Act { act, .. } = &remains[index] {
                match act {
                    Act::Retire => {
                        history.sweep();
                        history.clear(&mut bin);
                    }
                    Act::Vacate => history.sweep(),
                    Act::Become(_) | Act::Restore(_) | Act::Rebind(_) => {}
                }
            }
            let retirement =
                |parts| Retirement::new(Arc::clone(record), parts, Arc::clone(&self.shared));
            let one = superseded.map(|going| {
                history.note(going.clone());
                retirement(vec![going])
            });
            gone.extend(one.clone());
            // Of a set that goes, or whose memory is wanted, all generations matter.
            let mut whole = false;
            match &remains[index] {
                Remains::Act { act, restored } => match act {
                    Act::Vacate => {
                        history.vacated = kept;
                        whole = true;
                    }
                    Act::Retire => whole = true,
                    Act::Become(_) | Act::Restore(_) | Act::Rebind(_) => {
                        if let Some(restored) = restored {
                            history.remove(*restored, &mut bin);
                            history.fill_place(&mut bin);
                        }
                        history.extend(kept, &mut bin);
                    }
                },
                Remains::Staged { .. } => {
                    history.fill_place(&mut bin);
                    history.extend(kept, &mut bin);
                }
            }
            let whole = whole.then(|| retirement(history.going().to_vec()));
            previous.push(one.map(|one| whole.unwrap_or(one)));
            let_go.extend(bin.gone.into_iter().map(|one| (Arc::clone(record), one)));
        }
        self.remember(gone, let_go);
        Ok(Done { number, previous })
    }

    #[cold]
    fn refused(&self, refusal: Refusal, steps: &[Step]) -> (usize, Error) {
        let index = match refusal {
            Refusal::Changed { index, .. }
            | Refusal::Dependants { index, .. }
            | Refusal::BaseGone { index, .. } => index,
            Refusal::Twice { index } => earlier_tenant(steps, index),
        };
        let Step { record, expect, .. } = &steps[index];
        let error = match refusal {
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
            Refusal::Changed { .. } | Refusal::Twice { .. } | Refusal::Dependants { .. } => {
                Error::StaleHandle {
                    handle: record.handle,
                }
            }
        };
        (index, error)
    }
}

/// Two steps are about one slot: since the first of its tenants was added, that was retired, and the slot
/// has another one, which was added, too. What is to blame is the step of the one that is gone.
fn earlier_tenant(steps: &[Step], index: usize) -> usize {
    let SetHandle { slot, tag, .. } = steps[index].record.handle;
    let earlier = steps.iter().position(|step| {
        let other = step.record.handle;
        other.slot == slot && other.tag < tag
    });
    earlier.unwrap_or(index)
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
