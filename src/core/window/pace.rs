//! How fast parts are read and used, and whether it is worth to read one ahead.
//!
//! What lives here: two averages, and what follows from them. What does not: who measures (`registry::stream`), who
//! would go (`place`).

/// How much of an average its newest sample is: an eighth.
const SHARE: u32 = 3;

/// What was measured so far, in nanoseconds. 0: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// How long somebody has a part.
    use_ns: u64,
    /// How long it takes to read 2^20 bytes.
    mib_ns: u64,
}

/// A read ahead of its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// In so many steps it is used.
    pub far: usize,
    pub pace: Pace,
}

impl Pace {
    /// Somebody had a part for so long. One that had it through a pause is no measure of the others.
    pub fn used(&mut self, ns: u64) {
        let most = match self.use_ns {
            0 => u64::MAX,
            so_far => so_far.saturating_mul(4),
        };
        self.use_ns = average(self.use_ns, ns.min(most));
    }

    /// So many bytes were read in this time.
    pub fn read(&mut self, bytes: u64, ns: u64) {
        if bytes > 0 {
            let mib = u128::from(ns) * (1 << 20) / u128::from(bytes);
            self.mib_ns = average(self.mib_ns, u64::try_from(mib).unwrap_or(u64::MAX));
        }
    }

    fn reading(&self, bytes: u64) -> u128 {
        u128::from(bytes) * u128::from(self.mib_ns) / (1 << 20)
    }
}

impl Ahead {
    /// Is it worth to read `len` bytes ahead, if `gone` bytes have to be read again for it, the first of them in
    /// `next` steps?
    ///
    /// Whoever asks for the part in its turn can have it read over the one that it had just before. So what a read ahead costs is
    /// what has to be read again beyond that. It is worth it as long as this takes no longer than what is gained: the read is
    /// hidden behind the uses before it, and the one that it causes behind what these leave of the time until then.
    pub fn is_worth(&self, len: u64, gone: u64, next: usize) -> bool {
        let Ahead { far, pace } = *self;
        let more = gone.saturating_sub(len);
        if more == 0 {
            return true;
        }
        if pace == Pace::default() {
            return false;
        }
        let (step, read) = (u128::from(pace.use_ns), pace.reading(len));
        let hidden = read.min(step.saturating_mul(far as u128));
        let spare = step.saturating_sub(read).saturating_mul(next as u128);
        pace.reading(more) <= hidden.saturating_add(spare)
    }
}

fn average(before: u64, sample: u64) -> u64 {
    let sample = sample.max(1);
    if before == 0 {
        return sample;
    }
    let sum = (u128::from(before) << SHARE) - u128::from(before) + u128::from(sample);
    // Upwards, so that the smallest can grow.
    u64::try_from(sum.div_ceil(1 << SHARE)).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ahead(use_ns: u64, mib_ns: u64) -> Ahead {
        let pace = Pace { use_ns, mib_ns };
        Ahead { far: 1, pace }
    }

    /// Layers of 7 MiB, and an embedding of 56 that is used once in a round of 31 steps.
    #[test]
    fn a_long_part_goes_for_a_short_one_only_where_reading_is_the_faster_half() {
        let worth = |use_ns, mib_ns| ahead(use_ns, mib_ns).is_worth(7 * MIB, 56 * MIB, 29);
        assert!(worth(1_600_000, 100_000), "from the page cache");
        assert!(!worth(1_600_000, 660_000), "from the disk");
        // Nothing is known: not more than it reads.
        assert!(!ahead(0, 0).is_worth(7, 8, 1));
        assert!(ahead(0, 0).is_worth(7, 7, 1));
        // Parts that differ by little are as good as equal, whatever the pace is.
        for (use_ns, mib_ns) in [(1, u64::MAX), (u64::MAX, 1), (1_000_000, 1_000_000)] {
            assert!(ahead(use_ns, mib_ns).is_worth(7 * MIB, 7 * MIB, 1));
        }
        assert!(ahead(1_000_000, 1_000_000).is_worth(7 * MIB, 7 * MIB + 64, 3));
        // It is read long before the next use of what goes, or just before.
        assert!(ahead(1_000, 100).is_worth(MIB, 9 * MIB, 1));
        assert!(!ahead(1_000, 400).is_worth(MIB, 9 * MIB, 1));
        assert!(ahead(1_000, 400).is_worth(MIB, 9 * MIB, 5));
    }

    #[test]
    fn averages_follow_what_is_measured() {
        let mut pace = Pace::default();
        pace.used(0);
        assert_eq!(pace.use_ns, 1, "something was measured");
        pace.read(0, 5);
        assert_eq!(pace.mib_ns, 0);
        pace.read(2 * MIB, 1_000);
        assert_eq!(pace.mib_ns, 500);
        (0..200).for_each(|_| pace.used(1_000));
        assert_eq!(pace.use_ns, 1_000);
        pace.used(u64::MAX);
        assert_eq!(pace.use_ns, 1_375, "a pause is no measure");
        pace.read(1, u64::MAX);
        (0..1_000).for_each(|_| pace.read(MIB, 0));
        assert!(pace.mib_ns < 16, "{pace:?}");
        assert_eq!(average(u64::MAX, u64::MAX), u64::MAX);
    }
}
