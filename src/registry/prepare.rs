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
pub(super) struct There {
    pub(super) facts: Facts,
    pub(super) bytes: Option<Bytes>,
    /// Which of the kept ones it is.
    pub(super) restored: Option<Generation>,
}

impl WeightRegistry {
    /// What is there already of the generations that `steps` make; `None`: nothing, which costs a commit of
    /// many new sets next to nothing. Their sets are being written by us, so it does not change any more.
    pub(super) fn there(
        &self,
        steps: &[Step],
        writings: &[Writing<'_>],
    ) -> Result<Vec<Option<Box<There>>>, (usize, Error)> {
        let each = steps.iter().zip(writings).enumerate();
        each.map(|(index, (step, writing))| {
            self.there_of(step, writing).map_err(|error| (index, error))
        })
        .collect()
    }

    fn there_of(&self, step: &Step, writing: &Writing<'_>) -> Result<Option<Box<There>>, Error> {
        let there = match &step.act {
            Act::Become(_) | Act::Retire => return Ok(None),
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
                let Content { facts, bytes } = content.clone();
                There {
                    facts,
                    bytes: Some(bytes),
                    restored: Some(kept.generation()),
                }
            }
            Act::Rebind(base) => {
                let mut there = self.current(step.record.handle)?;
                if base.is_some() {
                    there.facts.base = *base;
                }
                there
            }
            Act::Vacate => {
                let there = self.current(step.record.handle)?;
                if there.bytes.is_none() {
                    // Whoever emptied it has not filled it yet, and may have to go back.
                    let handle = step.record.handle;
                    return Err(Error::NotResident { handle });
                }
                There {
                    facts: Facts {
                        // Its place is for the next generation: these bytes do not come back by a load.
                        again: None,
                        ..there.facts
                    },
                    bytes: None,
                    restored: None,
                }
            }
        };
        Ok(Some(Box::new(there)))
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
        if let Some(facts) = empty {
            return Ok(There {
                facts,
                bytes: None,
                restored: None,
            });
        }
        let hold = self.hold(set)?;
        Ok(There {
            facts: hold.meta().facts.clone(),
            bytes: Some(hold.storage().clone()),
            restored: None,
        })
    }

    /// What each step's generation is going to stand on, if that fits.
    pub(super) fn footings(
        &self,
        steps: &[Step],
        there: &[Option<Box<There>>],
    ) -> Result<Vec<Footing>, (usize, Error)> {
        let facts = |index: usize| match &steps[index].act {
            Act::Become(staged) => Some(&staged.content.facts),
            _ => there[index].as_ref().map(|there| &there.facts),
        };
        let bytes = |index: usize| match &steps[index].act {
            Act::Become(staged) => Some(&staged.content.bytes),
            _ => there[index].as_ref().and_then(|there| there.bytes.as_ref()),
        };
        let stands = |facts: &Facts| facts.base.is_some() || facts.aliases.is_some();
        let asked = (0..steps.len()).any(|index| facts(index).is_some_and(stands));
        let along: HashMap<SetHandle, Along<'_>> = match steps {
            [_] => HashMap::new(),
            // Many sets that stand on nothing: nobody looks.
            _ if !asked => HashMap::new(),
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
