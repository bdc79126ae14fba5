//! Where in a region something may go, and what goes for it.
//!
//! What lives here: the choice of a place, given what is there and when each is used next. What does not: doing it
//! (`state`).

use std::cmp::Reverse;
use std::ops::Range;

use super::pace::Ahead;

/// Something that is in the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    pub at: u64,
    pub len: u64,
    pub stay: Stay,
}

/// How much is lost if it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// It cannot go.
    Fixed,
    /// It is used again after so many steps (`None`: as far as one knows, never), and was used last at this time.
    Idle { next: Option<usize>, last: u64 },
}

/// A place, and who is to go: indices of tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    pub at: u64,
    pub gone: Range<usize>,
}

/// The best place for `len` bytes among `tenants`, which are in order of their places and do not overlap. `ahead`: nobody goes
/// who is used as soon, and nothing for which it is not worth to read ahead; `None`: whoever is idle may go.
///
/// Best is where nobody goes; then where what goes has to be read again at the lowest rate: its bytes, over the steps until
/// it is used again. Of parts of one size that is the one that is used furthest in the future (Belady 1966). Of those that
/// nobody is known to use again the one goes that was used longest ago; then where the fewest bytes go. Of equals, what is at
/// least half as long as the region is goes to its front, and what is shorter to its back: so that the long find room
/// together with the short.
pub fn spot(capacity: u64, len: u64, tenants: &[Tenant], ahead: Option<Ahead>) -> Option<Spot> {
    let last = capacity.checked_sub(len)?;
    let ends = tenants.iter().map(|one| one.at + one.len);
    let starts = tenants.iter().filter_map(|one| one.at.checked_sub(len));
    let mut places: Vec<u64> = ends.chain(starts).chain([0, last]).collect();
    places.retain(|at| *at <= last);
    places.sort_unstable();
    places.dedup();
    let later = |next: Option<usize>| match (next, ahead) {
        (Some(next), Some(ahead)) => next > ahead.far,
        (None, _) | (_, None) => true,
    };
    let front = len.saturating_mul(2) >= capacity;
    let mut best = None;
    for at in places {
        let from = tenants.partition_point(|one| one.at + one.len <= at);
        let mut gone = from..from;
        let (mut rate, mut latest, mut bytes) = (0, 0, 0);
        // What has to be read again, and when the first of it.
        let (mut again, mut soonest) = (0, usize::MAX);
        let stays = loop {
            let Some(one) = tenants.get(gone.end).filter(|one| one.at < at + len) else {
                break false;
            };
            match one.stay {
                Stay::Idle { next, last } if later(next) => {
                    if let Some(next) = next {
                        rate += read_again(one.len, next);
                        again += one.len;
                        soonest = soonest.min(next);
                    }
                    latest = latest.max(last);
                    bytes += one.len;
                    gone.end += 1;
                }
                Stay::Fixed | Stay::Idle { .. } => break true,
            }
        };
        if stays || ahead.is_some_and(|ahead| !ahead.is_worth(len, again, soonest)) {
            continue;
        }
        let order = if front { u64::MAX - at } else { at };
        let worth = (Reverse(rate), Reverse(latest), Reverse(bytes), order);
        if best.as_ref().is_none_or(|(than, _)| *than < worth) {
            best = Some((worth, Spot { at, gone }));
        }
    }
    best.map(|(_, spot)| spot)
}

/// Bytes per step, in units that make whole numbers of them.
fn read_again(len: u64, steps: usize) -> u128 {
    (u128::from(len) << 32) / (steps as u128).max(1)
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::super::pace::Pace;
    use super::*;

    fn idle(at: u64, len: u64, next: Option<usize>) -> Tenant {
        let stay = Stay::Idle { next, last: 0 };
        Tenant { at, len, stay }
    }

    fn fixed(at: u64, len: u64) -> Tenant {
        let stay = Stay::Fixed;
        Tenant { at, len, stay }
    }

    /// Reading is so fast, compared with uses, that it is worth anything.
    fn within(far: usize) -> Option<Ahead> {
        let mut pace = Pace::default();
        pace.used(u64::MAX);
        pace.read(1 << 20, 1);
        Some(Ahead { far, pace })
    }

    fn found(at: u64, gone: Range<usize>) -> Option<Spot> {
        Some(Spot { at, gone })
    }

    #[test]
    fn room_that_is_free_comes_first_and_then_what_is_used_last() {
        assert_eq!(
            spot(10, 4, &[], within(0)),
            found(6, 0..0),
            "the short to the back"
        );
        assert_eq!(
            spot(10, 5, &[], within(0)),
            found(0, 0..0),
            "the long to the front"
        );
        assert_eq!(spot(10, 11, &[], within(0)), None);
        let two = [idle(0, 5, Some(3)), idle(5, 5, Some(4))];
        assert_eq!(spot(10, 4, &two, within(0)).unwrap().gone, 1..2);
        assert_eq!(spot(10, 4, &two, within(3)).unwrap().gone, 1..2);
        assert_eq!(spot(10, 4, &two, within(4)), None, "both are wanted sooner");
        assert_eq!(spot(10, 4, &two, None).unwrap().gone, 1..2);
        assert_eq!(spot(10, 6, &two, within(3)), None);
        assert_eq!(spot(10, 6, &two, within(2)).unwrap().gone, 0..2);
        // What is short and used sooner goes, if what is long would have to be read again for it.
        let mixed = [idle(0, 8, Some(31)), idle(8, 1, Some(30)), fixed(9, 1)];
        assert_eq!(spot(10, 1, &mixed, within(1)), found(8, 1..2));
        let never = [idle(0, 5, None), idle(5, 5, Some(100))];
        assert_eq!(spot(10, 5, &never, within(0)), found(0, 0..1));
    }

    #[test]
    fn nobody_goes_who_is_fixed() {
        let all = [
            idle(0, 2, None),
            fixed(2, 2),
            idle(4, 2, None),
            idle(6, 2, None),
        ];
        assert_eq!(spot(8, 4, &all, within(0)), found(4, 2..4));
        assert_eq!(spot(8, 5, &all, within(0)), None);
        assert_eq!(spot(8, 1, &[fixed(1, 6)], within(0)), found(7, 1..1));
        assert_eq!(spot(8, 1, &[fixed(1, 7)], within(0)), found(0, 0..0));
    }

    #[test]
    fn of_those_whose_next_use_nobody_knows_the_one_that_was_used_first_goes() {
        let tenant = |at, last| Tenant {
            at,
            len: 2,
            stay: Stay::Idle { next: None, last },
        };
        let all = [tenant(0, 7), tenant(2, 5), tenant(4, 6)];
        assert_eq!(spot(6, 2, &all, within(0)), found(2, 1..2));
    }

    /// Against every place that there is.
    #[test]
    fn no_place_is_better() {
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..20_000 {
            let capacity = 1 + next(24);
            let (mut at, mut tenants) = (next(3), Vec::new());
            while at < capacity {
                let len = (1 + next(5)).min(capacity - at);
                tenants.push(match next(4) {
                    0 => fixed(at, len),
                    1 => idle(at, len, None),
                    _ => idle(at, len, Some(1 + next(6) as usize)),
                });
                at += len + next(3);
            }
            let (len, ahead) = (
                1 + next(capacity),
                next(7).checked_sub(1).map(|far| {
                    let mut pace = Pace::default();
                    if next(3) > 0 {
                        pace.used(next(9));
                        pace.read(1, next(9));
                    }
                    let far = far as usize;
                    Ahead { far, pace }
                }),
            );
            let loss = |at: u64| {
                let hit = |one: &&Tenant| one.at < at + len && at < one.at + one.len;
                let (mut rate, mut again, mut soonest) = (0, 0, usize::MAX);
                for one in tenants.iter().filter(hit) {
                    match one.stay {
                        Stay::Fixed => return None,
                        Stay::Idle { next: None, .. } => {}
                        Stay::Idle {
                            next: Some(next), ..
                        } => {
                            if ahead.is_some_and(|ahead| next <= ahead.far) {
                                return None;
                            }
                            (again, soonest) = (again + one.len, soonest.min(next));
                            rate += read_again(one.len, next);
                        }
                    }
                }
                let worth = ahead.is_none_or(|ahead| ahead.is_worth(len, again, soonest));
                worth.then_some(rate)
            };
            let best = (0..=capacity - len).filter_map(loss).min();
            let spot = spot(capacity, len, &tenants, ahead);
            assert_eq!(spot.as_ref().and_then(|spot| loss(spot.at)), best);
            if let Some(Spot { at, gone }) = spot {
                assert!(at + len <= capacity);
                let hit = |one: &Tenant| one.at < at + len && at < one.at + one.len;
                let hits = tenants.iter().filter(|one| hit(one)).count();
                assert!(hits == gone.len() && tenants[gone].iter().all(hit));
            }
        }
    }
}
