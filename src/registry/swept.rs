//! A list of what goes by itself.
//!
//! What lives here: [`Swept`], which forgets what is gone, at a cost that does not grow with how much is still
//! going. What does not: when something is gone (`record`, `retirement`), and its end: what was forgotten is the
//! caller's, to be dropped where no lock is held.

/// See the module documentation.
pub(super) struct Swept<T> {
    all: Vec<T>,
    /// Looked through when it is so long: twice what was left then, and a few. So each is looked at about twice.
    sweep_at: usize,
    few: usize,
}

impl<T> Swept<T> {
    /// Of which so `few` are kept without a look.
    pub(super) fn new(few: usize) -> Self {
        Swept {
            all: Vec::new(),
            sweep_at: few,
            few,
        }
    }

    /// Adds one. Perhaps those go that are `gone`: these.
    #[must_use]
    pub(super) fn add(&mut self, one: T, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut forgotten = Vec::new();
        if self.all.len() >= self.sweep_at {
            forgotten = self.sweep(gone);
        }
        self.all.push(one);
        forgotten
    }

    /// Forgets those that are `gone`: these.
    #[must_use]
    pub(super) fn sweep(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let forgotten = self.all.extract_if(.., |one| gone(one)).collect();
        self.sweep_at = 2 * self.all.len() + self.few;
        forgotten
    }

    /// Those that are there; some may be gone that were not looked at since.
    pub(super) fn all(&self) -> &[T] {
        &self.all
    }

    /// One of these.
    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.all.get_mut(at)
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn each_is_looked_at_a_few_times_however_many_stay() {
        let looks = Cell::new(0u32);
        let mut swept = Swept::new(16);
        for number in 0..10_000u32 {
            let forgotten = swept.add(number, |_| {
                looks.set(looks.get() + 1);
                false
            });
            assert!(forgotten.is_empty());
        }
        assert_eq!(swept.all().len(), 10_000);
        assert!(looks.get() <= 20_000, "{}", looks.get());
    }

    #[test]
    fn what_is_gone_does_not_pile_up() {
        let mut swept = Swept::new(1);
        for number in 0..10_000u32 {
            let forgotten = swept.add(number, |_| true);
            assert_eq!(swept.all(), [number], "more than the last");
            assert_eq!(forgotten.first().copied(), number.checked_sub(1));
        }
        assert!(swept.sweep(|number| *number != 9_999).is_empty());
        assert_eq!(swept.all(), [9_999]);
    }
}
