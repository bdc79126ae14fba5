//! Is there an order of these operations that explains what each of them answered?
//!
//! What lives here: the search of Wing and Gong (Testing and Verifying Concurrent Objects, 1993), with
//! Lowe's memo of what has been tried. What does not: what an operation means (`model`).

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What objects do one operation at a time.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Op: Debug;

    fn init() -> Self::State;

    /// The state after `op`, which says what it answered. `None`: it would have answered otherwise.
    fn step(state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// One operation and when it was under way, by a clock that all threads share.
#[derive(Debug, Clone)]
pub struct Span<Op> {
    pub thread: usize,
    pub from: u64,
    pub to: u64,
    pub op: Op,
}

/// How far the search came.
#[derive(Debug)]
pub struct Stuck<State> {
    /// The longest order that explains what it has, as indices into the history.
    pub order: Vec<usize>,
    /// The state after that.
    pub state: State,
}

/// An order of all operations in which each comes after those that ended before it began.
///
/// # Panics
/// If there are more than 128 operations.
pub fn linearize<M: Model>(history: &[Span<M::Op>]) -> Result<Vec<usize>, Stuck<M::State>> {
    assert!(history.len() <= 128, "one bit each");
    let mut search = Search::<M> {
        history,
        tried: HashSet::new(),
        order: Vec::new(),
        best: Stuck {
            order: Vec::new(),
            state: M::init(),
        },
    };
    if search.go(0, M::init()) {
        Ok(search.order)
    } else {
        Err(search.best)
    }
}

struct Search<'h, M: Model> {
    history: &'h [Span<M::Op>],
    /// What was done, and the state that it led to: from there on, nothing led to the end.
    tried: HashSet<(u128, M::State)>,
    order: Vec<usize>,
    best: Stuck<M::State>,
}

impl<M: Model> Search<'_, M> {
    fn go(&mut self, done: u128, state: M::State) -> bool {
        if self.order.len() == self.history.len() {
            return true;
        }
        if !self.tried.insert((done, state.clone())) {
            return false;
        }
        if self.order.len() > self.best.order.len() {
            self.best = Stuck {
                order: self.order.clone(),
                state: state.clone(),
            };
        }
        let open = |index: &usize| done & (1 << index) == 0;
        let history = self.history;
        let ends = (0..history.len())
            .filter(open)
            .map(|index| history[index].to);
        let first_end = ends.min().unwrap_or(u64::MAX);
        for index in (0..history.len()).filter(open) {
            // Whatever ended before this began comes first.
            if history[index].from > first_end {
                continue;
            }
            let Some(next) = M::step(&state, &history[index].op) else {
                continue;
            };
            self.order.push(index);
            if self.go(done | 1 << index, next) {
                return true;
            }
            self.order.pop();
        }
        false
    }
}
