//! What somebody does between two looks, in tests of what cannot be met by luck.
//!
//! What lives here: the list of such acts. What does not: where they happen, which each module says
//! for itself.

use std::cell::RefCell;
use std::collections::VecDeque;

/// Acts of a test, one for each place that is come by, in their order. For a `thread_local`: they happen
/// on the thread that comes by.
pub(super) struct Meanwhile(RefCell<VecDeque<Box<dyn FnOnce()>>>);

impl Meanwhile {
    pub(super) const fn new() -> Self {
        Meanwhile(RefCell::new(VecDeque::new()))
    }

    pub(super) fn add(&self, act: impl FnOnce() + 'static) {
        self.0.borrow_mut().push_back(Box::new(act));
    }

    /// The next one happens, if there is one.
    pub(super) fn happens(&self) {
        let act = self.0.borrow_mut().pop_front();
        act.into_iter().for_each(|act| act());
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.borrow().is_empty()
    }
}
