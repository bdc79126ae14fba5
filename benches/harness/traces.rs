//! What is asked for, drawn beforehand.
//!
//! What lives here: traces of indices. What does not: how they are gone through (`turns`).
//!
//! A trace is longer than a round of a fast route goes, and read in order, so that drawing costs nothing
//! and reading it next to nothing. The draws come from one seed: all routes are asked for the same.

use crate::Walk;

/// The draws are this fine: `1 / FINE` is far below the share of the least popular of a million.
const FINE: usize = 1 << 30;

/// Indices, in the order in which they are asked for.
pub struct Trace(pub Vec<u32>);

/// Which are asked for more often.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// The n-th most popular with a frequency of 1 / n. Which one that is has nothing to do with its
    /// index.
    Zipf,
    /// All alike.
    Uniform,
}

impl Law {
    /// Its name in a cell's.
    pub fn name(self) -> &'static str {
        match self {
            Law::Zipf => "Zipf",
            Law::Uniform => "uniform",
        }
    }
}

impl Trace {
    /// `draws` indices below `end`.
    pub fn drawn(law: Law, end: usize, draws: usize) -> Self {
        let mut walk = Walk::over(FINE);
        let mut below = |end: usize| (walk.step() * end) / FINE;
        match law {
            Law::Uniform => Trace((0..draws).map(|_| below(end) as u32).collect()),
            Law::Zipf => {
                let mut popular: Vec<u32> = (0..end as u32).collect();
                for at in (1..end).rev() {
                    popular.swap(at, below(at + 1));
                }
                let mut sum = 0.0;
                let sums: Vec<f64> = (1..=end)
                    .map(|rank| {
                        sum += 1.0 / rank as f64;
                        sum
                    })
                    .collect();
                let draw = |_| {
                    let drawn = below(FINE) as f64 / FINE as f64 * sum;
                    popular[sums.partition_point(|&sum| sum <= drawn).min(end - 1)]
                };
                Trace((0..draws).map(draw).collect())
            }
        }
    }

    /// One index, over and over.
    pub fn of_one(draws: usize) -> Self {
        Trace(vec![0; draws])
    }

    /// Of a tensor of an adapter: the adapter by Zipf, the tensor uniform, packed as [`packed`] does.
    pub fn of_tensors(adapters: usize, tensors: usize, draws: usize) -> Self {
        let adapters = Trace::drawn(Law::Zipf, adapters, draws);
        let mut walk = Walk::over(tensors);
        let both = adapters.0.into_iter();
        Trace(
            both.map(|adapter| packed(adapter as usize, walk.step()) as u32)
                .collect(),
        )
    }
}

/// A tensor of an adapter as one index: to take it apart is a shift, and costs no division.
pub fn packed(adapter: usize, tensor: usize) -> usize {
    debug_assert!(tensor < PACK);
    adapter * PACK + tensor
}

/// What was [`packed`].
#[inline]
pub fn unpacked(index: usize) -> (usize, usize) {
    (index / PACK, index % PACK)
}

/// More than there are tensors in an adapter; a power of two.
pub const PACK: usize = 512;
