//! Slots of an engine's own: which parts are in which, and what has to be copied.
//!
//! What lives here: [`Slots`], a plan of copies. What does not: the copies, the memory that they go to, and where the
//! parts come from (`registry::stream`): an engine that keeps experts on its device owns both.

use std::collections::{HashMap, HashSet};

/// Which of a set's parts are in which of an engine's own slots, on a device for example.
///
/// It holds no memory and copies nothing: [`need`](Self::need) says what an engine has to copy so that all of the parts
/// that it is about to use are there, and no more than that. What was needed longest ago goes first.
///
/// # Examples
/// ```
/// use weighbridge::{SlotCopy, Slots};
///
/// let mut slots = Slots::new(2);
/// let copy = |part, slot, evicts| SlotCopy { part, slot, evicts };
/// assert_eq!(slots.need(&[7, 3]).unwrap(), [copy(7, 0, None), copy(3, 1, None)]);
/// assert_eq!(slots.need(&[3]).unwrap(), []); // it is there
/// assert_eq!(slots.need(&[3, 9]).unwrap(), [copy(9, 0, Some(7))]);
/// assert_eq!(slots.slot(9), Some(0));
/// assert!(slots.need(&[1, 2, 3]).is_none()); // more than there are slots
/// ```
#[derive(Debug, Clone)]
pub struct Slots {
    /// The part in each, and when it was needed last.
    slots: Box<[Option<(usize, u64)>]>,
    places: HashMap<usize, usize>,
    now: u64,
}

/// One copy: a part into a slot, in place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotCopy {
    /// What is to be copied.
    pub part: usize,
    /// Where to.
    pub slot: usize,
    /// What is there until then.
    pub evicts: Option<usize>,
}

impl Slots {
    /// So many slots, all of them empty.
    pub fn new(slots: usize) -> Self {
        Slots {
            slots: vec![None; slots].into(),
            places: HashMap::new(),
            now: 0,
        }
    }

    /// What has to be copied so that all of `parts` are there at the same time, in their order; a part that is named twice
    /// is needed once. From here on they count as being there. `None`: there are not so many slots; nothing has changed then.
    ///
    /// No part of these goes for another one of them, and nothing is copied that is there.
    pub fn need(&mut self, parts: &[usize]) -> Option<Vec<SlotCopy>> {
        let needed: HashSet<usize> = parts.iter().copied().collect();
        if needed.len() > self.slots.len() {
            return None;
        }
        self.now += 1;
        let mut copies = Vec::new();
        for &part in parts {
            if let Some(&slot) = self.places.get(&part) {
                self.slots[slot] = Some((part, self.now));
                continue;
            }
            let free = |there: &Option<(usize, u64)>| match there {
                None => Some(0),
                Some((other, _)) if needed.contains(other) => None,
                Some((_, used)) => Some(*used),
            };
            let slots = self.slots.iter().enumerate();
            let slot = slots
                .filter_map(|(slot, there)| Some((free(there)?, slot)))
                .min();
            let Some((_, slot)) = slot else {
                unreachable!("there are as many slots as parts are needed")
            };
            let evicts = self.slots[slot].take().map(|(other, _)| other);
            if let Some(other) = evicts {
                self.places.remove(&other);
            }
            self.slots[slot] = Some((part, self.now));
            self.places.insert(part, slot);
            copies.push(SlotCopy { part, slot, evicts });
        }
        Some(copies)
    }

    /// Where a part is.
    pub fn slot(&self, part: usize) -> Option<usize> {
        self.places.get(&part).copied()
    }

    /// A part is not there any more, or its copy has failed: its slot is empty.
    pub fn forget(&mut self, part: usize) {
        if let Some(slot) = self.places.remove(&part) {
            self.slots[slot] = None;
        }
    }

    /// Nothing is there any more: the set has another generation, for example.
    pub fn clear(&mut self) {
        self.slots.fill(None);
        self.places.clear();
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    /// Against a model that keeps the whole history, and against the fewest copies that there can be.
    #[test]
    fn copies_are_few_and_right() {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        for _ in 0..200 {
            let count = 1 + next(6);
            let mut slots = Slots::new(count);
            let mut device: Vec<Option<usize>> = vec![None; count];
            let mut last: HashMap<usize, usize> = HashMap::new();
            for step in 0..200 {
                let parts: Vec<usize> = (0..next(8)).map(|_| next(12)).collect();
                let needed: HashSet<usize> = parts.iter().copied().collect();
                let before = device.clone();
                let Some(copies) = slots.need(&parts) else {
                    assert!(needed.len() > count);
                    assert!(
                        before
                            .iter()
                            .flatten()
                            .all(|part| slots.slot(*part).is_some())
                    );
                    continue;
                };
                let missing = needed.iter().filter(|part| !before.contains(&Some(**part)));
                assert_eq!(copies.len(), missing.count(), "no more than are missing");
                for SlotCopy { part, slot, evicts } in copies {
                    assert_eq!(device[slot], evicts);
                    if let Some(gone) = evicts {
                        assert!(!needed.contains(&gone));
                        // Whatever stays and is not needed now was needed no earlier.
                        let others = device.iter().flatten();
                        let mut others = others.filter(|part| !needed.contains(part));
                        assert!(others.all(|other| last[other] >= last[&gone]));
                        assert!(
                            device.iter().all(Option::is_some),
                            "room that is free comes first"
                        );
                    }
                    device[slot] = Some(part);
                }
                for part in &needed {
                    assert_eq!(device[slots.slot(*part).unwrap()], Some(*part));
                    last.insert(*part, step);
                }
                if next(20) == 0 {
                    let gone = next(12);
                    slots.forget(gone);
                    device.iter_mut().for_each(|there| {
                        there.take_if(|part| *part == gone);
                    });
                }
                if next(50) == 0 {
                    slots.clear();
                    device.fill(None);
                }
            }
        }
    }
}
