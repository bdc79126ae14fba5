//! What runs now, by adapter generation.
//!
//! What lives here: the counts, and that they keep to the limits. What does not: who joins (`order`), the guards
//! that give places back (`place`).

use std::collections::BTreeMap;

/// `K` says which adapter generation; `None` is the base alone.
pub(crate) struct Batch<K> {
    requests: usize,
    /// How many requests of each; none that has none.
    adapters: BTreeMap<K, usize>,
    most_requests: usize,
    most_adapters: usize,
}

impl<K: Copy + Ord> Batch<K> {
    pub(crate) fn new(most_requests: usize, most_adapters: usize) -> Self {
        Batch {
            requests: 0,
            adapters: BTreeMap::new(),
            most_requests,
            most_adapters,
        }
    }

    /// Requests that run.
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    /// Requests that may still join.
    pub(crate) fn free(&self) -> usize {
        self.most_requests - self.requests
    }

    /// How many requests of each adapter generation run.
    pub(crate) fn adapters(&self) -> &BTreeMap<K, usize> {
        &self.adapters
    }

    /// Would it need no adapter place? The base never does.
    pub(crate) fn has(&self, adapter: Option<K>) -> bool {
        adapter.is_none_or(|adapter| self.adapters.contains_key(&adapter))
    }

    pub(crate) fn has_adapter_place(&self) -> bool {
        self.adapters.len() < self.most_adapters
    }

    /// One more. The answer: its adapter generation was not there.
    pub(crate) fn join(&mut self, adapter: Option<K>) -> bool {
        let swap = !self.has(adapter);
        assert!(
            self.free() > 0 && (!swap || self.has_adapter_place()),
            "one too many was let into the batch"
        );
        self.requests += 1;
        if let Some(adapter) = adapter {
            *self.adapters.entry(adapter).or_insert(0) += 1;
        }
        swap
    }

    /// One less.
    pub(crate) fn end(&mut self, adapter: Option<K>) {
        self.requests -= 1;
        if let Some(adapter) = adapter
            && let Some(count) = self.adapters.get_mut(&adapter)
        {
            *count -= 1;
            if *count == 0 {
                self.adapters.remove(&adapter);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_needs_no_adapter_place() {
        let mut batch = Batch::new(3, 1);
        assert!(batch.join(Some('a')));
        assert!(!batch.has_adapter_place());
        assert!(!batch.join(None), "the base is no swap");
        assert!(!batch.join(Some('a')), "it is there already");
        assert_eq!((batch.free(), batch.adapters().len()), (0, 1));
        batch.end(Some('a'));
        batch.end(None);
        assert!(batch.has(Some('a')) && !batch.has_adapter_place());
        batch.end(Some('a'));
        assert!(!batch.has(Some('a')) && batch.has_adapter_place());
        assert_eq!(batch.requests(), 0);
    }

    #[test]
    #[should_panic(expected = "one too many")]
    fn nobody_passes_the_limit_of_adapters() {
        let mut batch = Batch::new(3, 1);
        batch.join(Some('a'));
        batch.join(Some('b'));
    }

    #[test]
    #[should_panic(expected = "one too many")]
    fn nobody_passes_the_limit_of_requests() {
        let mut batch = Batch::<char>::new(1, 1);
        batch.join(None);
        batch.join(None);
    }
}
