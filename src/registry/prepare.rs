//! What a commit needs to know before it makes generations.
//!
//! What lives here: what is there already of the generations that steps make, and what each of them is
//! going to stand on. What does not: whether that fits (`bind`), making and committing them (`commit`).

use std::collections::HashMap;

use super::WeightRegistry;
use super::bind::{Along, Footing};
use super::content::{Bytes, Content, Facts};
use super::record::{Kept, Writing};
use super::step::{Act, Step};
use crate::error::Error;
use crate::handle::{Generation, SetHandle};

/// What a step's generation is made of, where that is there already.
#[derive(Default)]
pub(super) struct There {
    pub(super) facts: Option<Facts>,
    pub(super) bytes: Option<Bytes>,
    /// Which of the kept ones it is.
    pub(super) restored: Option<Generation>,
}

impl WeightRegistry {
    /// What is there already of the generations that `steps` make. Their sets are being written by us,
    /// so it does not change any more.
    pub(super) fn there(
        &self,
        steps: &[Step],
        writings: &[Writing<'_>],
    ) -> Result<Vec<There>, (usize, Error)> {
        let each = steps.iter().zip(writings).enumerate();
        each.map(|(index, (step, writing))| {
            self.there_of(step, writing).map_err(|error| (index, error))
        })
        .collect()
    }

    fn there_of(&self, step: &Step, writing: &Writing<'_>) -> Result<There, Error> {
        let of = |content: Content, restored| There {
            facts: Some(content.facts),
            bytes: Some(content.bytes),
            restored,
        };
        match &step.act {
            Act::Become(_) | Act::Retire => Ok(There::default()),
            Act::Restore(wanted) => {
                let kept = writing.history.find(*wanted);
                let Some((kept, content)) = kept.and_then(|kept| Some((kept, kept.content()?)))
                else {
                    // A set that was retired keeps nothing; what is wrong is that it is gone.
                    self.record(step.record.handle)?;
                    return Err(Error::NotKept {
                        set: step.record.name.clone(),
                        generation: *wanted,
                        kept: writing.history.kept.iter().map(Kept::generation).collect(),
                    });
                };
                Ok(of(content.clone(), Some(kept.generation())))
            }
            Act::Rebind(base) => {
                let mut there = self.current(step.record.handle)?;
                if let (Some(facts), Some(_)) = (&mut there.facts, base) {
                    facts.base = *base;
                }
                Ok(there)
            }
            Act::Vacate => {
                let there = self.current(step.record.handle)?;
                if there.bytes.is_none() {
                    // Whoever emptied it has not filled it yet, and may have to go back.
                    let handle = step.record.handle;
                    return Err(Error::NotResident { handle });
                }
                let facts = there.facts.map(|facts| Facts {
                    // Its place is for the next generation: these bytes do not come back by a load.
                    again: None,
                    ..facts
                });
                Ok(There {
                    facts,
                    bytes: None,
                    restored: None,
                })
            }
        }
    }

    /// What the current generation of a set is made of: no bytes, if its place is empty. For a writer of
    /// that set: it stays current.
    fn current(&self, set: SetHandle) -> Result<There, Error> {
        let key = self.key(set)?;
        let empty = {
            let view = self.view();
            let stale = Error::StaleHandle { handle: set };
            let node = view.resolve(key).ok_or(stale)?;
            let facts = node.meta().map(|meta| meta.facts.clone());
            facts.filter(|_| node.is_absent())
        };
        if empty.is_some() {
            return Ok(There {
                facts: empty,
                ..There::default()
            });
        }
        let hold = self.hold(set)?;
        Ok(There {
            facts: Some(hold.meta().facts.clone()),
            bytes: Some(hold.storage().clone()),
            restored: None,
        })
    }

    /// What each step's generation is going to stand on, if that fits.
    pub(super) fn footings(
        &self,
        steps: &[Step],
        there: &[There],
    ) -> Result<Vec<Footing>, (usize, Error)> {
        let facts = |index: usize| match &steps[index].act {
            Act::Become(staged) => Some(&staged.content.facts),
            _ => there[index].facts.as_ref(),
        };
        let bytes = |index: usize| match &steps[index].act {
            Act::Become(staged) => Some(&staged.content.bytes),
            _ => there[index].bytes.as_ref(),
        };
        let along: HashMap<SetHandle, Along<'_>> = match steps {
            [_] => HashMap::new(),
            _ => (0..steps.len())
                .map(|index| {
                    let along = Along {
                        record: &steps[index].record,
                        facts: facts(index),
                        bytes: bytes(index),
                    };
                    (steps[index].record.handle, along)
                })
                .collect(),
        };
        let footing = |index: usize| match facts(index) {
            None => Ok(Footing::default()),
            Some(facts) => self
                .footing(facts, Some(steps[index].record.handle), &along)
                .map_err(|error| (index, error)),
        };
        (0..steps.len()).map(footing).collect()
    }
}
