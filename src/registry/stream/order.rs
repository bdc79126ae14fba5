//! In which order the parts of a set are going to be used, as a user says it.
//!
//! What lives here: [`Order`]. What does not: what follows from it (`core::window`).

use std::sync::Arc;

use crate::core::window;

/// How many parts are read ahead unless somebody says so.
const AHEAD: usize = 2;

/// The order in which a [`Stream`](crate::Stream) is going to use the parts of a set.
///
/// # Examples
/// ```
/// use weighbridge::Order;
///
/// let prefill = Order::forward();
/// let decode = Order::ring().ahead(3); // again and again, one round for each token
/// let shared = Order::list([0, 1, 2, 1, 3]); // a layer that is used twice
/// let experts = Order::unknown(); // each is read when it is asked for
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    steps: Steps,
    ring: bool,
    ahead: usize,
}

#[derive(Debug, Clone)]
enum Steps {
    All,
    These(Arc<[usize]>),
}

impl Order {
    fn new(steps: Steps, ring: bool) -> Self {
        Order {
            steps,
            ring,
            ahead: AHEAD,
        }
    }

    /// From the first part to the last.
    pub fn forward() -> Self {
        Self::new(Steps::All, false)
    }

    /// From the first part to the last, and again: what a model does that makes one token after the other.
    pub fn ring() -> Self {
        Self::new(Steps::All, true)
    }

    /// These parts, in this order; one may be there more than once.
    pub fn list(parts: impl IntoIterator<Item = usize>) -> Self {
        Self::new(Steps::These(parts.into_iter().collect()), false)
    }

    /// These parts, in this order, and again.
    pub fn ring_of(parts: impl IntoIterator<Item = usize>) -> Self {
        Self::new(Steps::These(parts.into_iter().collect()), true)
    }

    /// None that is known: nothing is read ahead, and what was used longest ago goes first.
    pub fn unknown() -> Self {
        Self::list([])
    }

    /// How many parts are read ahead of the one that is used, of those that are missing. Two unless you say so; zero:
    /// each is read when it is asked for. The window must have room for one more than that, or fewer are; and what is not
    /// [worth it](crate::Stream) is not read ahead.
    pub fn ahead(mut self, parts: usize) -> Self {
        self.ahead = parts;
        self
    }

    /// The same for a set of so many parts, and how many are read ahead.
    pub(super) fn steps(&self, parts: usize) -> (window::Order, usize) {
        let number = |part: usize| u32::try_from(part).unwrap_or(u32::MAX);
        let order = match &self.steps {
            Steps::All => window::Order::new((0..parts).map(number), self.ring),
            Steps::These(steps) => window::Order::new(steps.iter().copied().map(number), self.ring),
        };
        (order, self.ahead)
    }
}
