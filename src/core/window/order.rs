//! In which order somebody uses the parts of a set, and how far away the next use of each is.
//!
//! What lives here: [`Order`], and a place in it. What does not: what is read ahead or taken away because of
//! that (`state`).

use std::collections::HashMap;

/// A sequence of parts: once, or again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    steps: Box<[u32]>,
    /// Where each part is in it, from front to back.
    places: HashMap<u32, Vec<usize>>,
    ring: bool,
}

impl Order {
    /// These parts, one after the other; `ring`: after the last one the first again.
    pub fn new(steps: impl IntoIterator<Item = u32>, ring: bool) -> Self {
        let steps: Box<[u32]> = steps.into_iter().collect();
        let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
        for (place, part) in steps.iter().enumerate() {
            places.entry(*part).or_default().push(place);
        }
        Order {
            steps,
            places,
            ring,
        }
    }

    /// How many steps from `at` (`None`: before the first) to the next use of `part` after it; `None`: there is
    /// none.
    pub fn distance(&self, at: Option<usize>, part: u32) -> Option<usize> {
        let places = self.places.get(&part)?;
        let from = at.map_or(0, |at| at + 1);
        let next = places.partition_point(|place| *place < from);
        match places.get(next) {
            Some(place) => Some(place + 1 - from),
            None => self.ring.then(|| places[0] + self.steps.len() + 1 - from),
        }
    }

    /// What follows `at`, with how many steps away it is: in a ring all the way round, otherwise to the end.
    pub fn after(&self, at: Option<usize>) -> impl Iterator<Item = (usize, u32)> + '_ {
        let from = at.map_or(0, |at| at + 1);
        let round = if self.ring { from } else { 0 };
        let rest = self.steps[from..].iter().chain(&self.steps[..round]);
        (1..).zip(rest.copied())
    }

    /// Where somebody is that was at `at` and uses `part` now: still there if that is what it used, otherwise at
    /// its next use; if there is none, at its first one; if it is not in the order at all, where it was.
    pub fn step(&self, at: Option<usize>, part: u32) -> Option<usize> {
        if at.is_some_and(|at| self.steps[at] == part) {
            return at;
        }
        let Some(places) = self.places.get(&part) else {
            return at;
        };
        let from = at.map_or(0, |at| at + 1);
        let next = places.partition_point(|place| *place < from);
        Some(*places.get(next).unwrap_or(&places[0]))
    }

    /// The largest part that it names.
    pub fn largest(&self) -> Option<u32> {
        self.places.keys().max().copied()
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    #[test]
    fn distances_are_what_walking_counts() {
        for ring in [false, true] {
            for steps in [&[0, 1, 2, 3][..], &[2, 0, 2, 1, 1], &[5], &[]] {
                let order = Order::new(steps.iter().copied(), ring);
                for at in std::iter::once(None).chain((0..steps.len()).map(Some)) {
                    let after: Vec<_> = order.after(at).collect();
                    let rest = at.map_or(0, |at| at + 1);
                    let all = if ring {
                        steps.len()
                    } else {
                        steps.len() - rest
                    };
                    assert_eq!(after.len(), all);
                    for part in 0..7 {
                        let walked = after.iter().find(|(_, one)| *one == part);
                        let walked = walked.map(|(far, _)| *far);
                        assert_eq!(order.distance(at, part), walked, "{steps:?} {at:?} {part}");
                    }
                }
            }
        }
    }

    #[test]
    fn repeated_skipped_late_and_unknown_steps() {
        let order = Order::new([0, 1, 2, 1], false);
        assert_eq!(order.step(None, 0), Some(0));
        assert_eq!(order.step(Some(0), 0), Some(0), "repeated");
        assert_eq!(order.step(Some(0), 2), Some(2), "skipped one");
        assert_eq!(order.step(Some(2), 1), Some(3));
        assert_eq!(order.step(Some(3), 2), Some(2), "back");
        assert_eq!(order.step(Some(3), 9), Some(3), "not in it");
        let ring = Order::new([0, 1, 2], true);
        assert_eq!(ring.step(Some(2), 0), Some(0), "round");
        assert_eq!(ring.largest(), Some(2));
    }
}
