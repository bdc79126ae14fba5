//! How fast something grows, from samples that are noisy.
//!
//! The slope is Theil and Sen's: the median of the slopes of all pairs, which a few odd samples do not
//! move. Its interval comes from the same pairs (Kendall's variance) and supposes that the samples'
//! errors are independent of each other.

/// Bytes per hour, and the interval that has the true slope 95 times of 100.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    pub low: f64,
    pub slope: f64,
    pub high: f64,
}

/// What can be said of a slope that must not pass a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Below,
    Above,
    /// Fewer samples or more noise than a verdict takes.
    CannotTell,
}

/// The slope of `(hours, bytes)`; `None` if there are fewer than eight samples.
pub fn slope(samples: &[(f64, f64)]) -> Option<Slope> {
    let n = samples.len();
    if n < 8 {
        return None;
    }
    let pairs = samples.iter().enumerate().flat_map(|(at, a)| {
        let later = samples[at + 1..].iter();
        later.map(move |b| (b.1 - a.1) / (b.0 - a.0))
    });
    let mut pairs: Vec<f64> = pairs.filter(|slope| slope.is_finite()).collect();
    pairs.sort_by(f64::total_cmp);
    let last = pairs.len().checked_sub(1)?;
    let n = n as f64;
    let spread = 1.96 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
    let half = (spread / 2.0).ceil() as usize;
    let middle = pairs.len() / 2;
    Some(Slope {
        low: pairs[middle.saturating_sub(half)],
        slope: pairs[middle],
        high: pairs[(middle + half).min(last)],
    })
}

impl Slope {
    pub fn against(&self, limit: f64) -> Verdict {
        if self.low > limit {
            Verdict::Above
        } else if self.high <= limit {
            Verdict::Below
        } else {
            Verdict::CannotTell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn line(per_hour: f64, noise: f64) -> Vec<(f64, f64)> {
        let mut random = Random::of(1, 2);
        let sample = |at: i32| {
            let hours = f64::from(at) / 60.0;
            let off = random.below(1000) as f64 / 500.0 - 1.0;
            (hours, 5e6 + per_hour * hours + noise * off)
        };
        (0..60).map(sample).collect()
    }

    #[test]
    fn a_line_has_its_slope() {
        let found = slope(&line(4096.0, 0.0)).unwrap();
        assert!((found.slope - 4096.0).abs() < 1e-3, "{found:?}");
        assert_eq!(found.against(4000.0), Verdict::Above);
        assert_eq!(found.against(5000.0), Verdict::Below);
    }

    #[test]
    fn noise_widens_the_interval_until_nothing_can_be_said() {
        let quiet = slope(&line(0.0, 1e3)).unwrap();
        let loud = slope(&line(0.0, 1e8)).unwrap();
        assert!(quiet.low < 0.0 && quiet.high > 0.0, "{quiet:?}");
        assert_eq!(quiet.against(1e6), Verdict::Below);
        assert_eq!(loud.against(1e6), Verdict::CannotTell);
    }

    #[test]
    fn odd_samples_do_not_move_it() {
        let mut samples = line(1e6, 1e3);
        for at in [3, 30, 59] {
            samples[at].1 += 1e9;
        }
        let found = slope(&samples).unwrap();
        assert!((found.slope - 1e6).abs() < 1e4, "{found:?}");
    }

    #[test]
    fn a_few_samples_say_nothing() {
        assert_eq!(slope(&line(1.0, 0.0)[..7]), None);
    }
}
