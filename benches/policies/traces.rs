//! Traces: which set is wanted next.
//!
//! What lives here: the traces, drawn from a seed, and the random numbers for them. What does not: what is
//! done with them (`policies`), how big a set is (there, too).

/// SplitMix64: the same numbers everywhere.
pub struct Random(u64);

impl Random {
    pub fn seeded(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// From 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at + 1));
        }
    }
}

/// What is wanted, and how often.
#[derive(Clone, Copy)]
pub enum Kind {
    /// The n-th most popular set with a frequency of 1 / n^s.
    Zipf(f64),
    Uniform,
    /// Zipf with s = 1. After every `SPELL` requests all popularities are dealt anew.
    Shifts,
    /// Zipf with s = 1. After every `STEP` requests one of the hundred most popular sets changes places with
    /// any other.
    Drifts,
    /// Zipf with s = 1, and one request of four is for a set of a second lot that is as big and wanted once:
    /// it is gone through in order, and takes so long that whatever was in memory is forgotten.
    OneTime,
    /// Zipf with s = 1. Before every `SPELL` requests all sets are wanted once, one after the other.
    Sweeps,
}

pub const SPELL: usize = 10_000;
pub const STEP: usize = 100;

impl Kind {
    pub fn name(self) -> String {
        match self {
            Kind::Zipf(exponent) => format!("Zipf {exponent:.1}"),
            Kind::Uniform => "uniform".to_owned(),
            Kind::Shifts => "Zipf 1.0, dealt anew".to_owned(),
            Kind::Drifts => "Zipf 1.0, drifts".to_owned(),
            Kind::OneTime => "Zipf 1.0, one-time".to_owned(),
            Kind::Sweeps => "Zipf 1.0, sweeps".to_owned(),
        }
    }

    /// How many sets it is about, if there are `sets` that are wanted again.
    pub fn population(self, sets: usize) -> usize {
        match self {
            Kind::OneTime => 2 * sets,
            _ => sets,
        }
    }

    /// So many requests among `sets` sets.
    pub fn draw(self, sets: usize, requests: usize, seed: u64) -> Vec<usize> {
        let mut random = Random::seeded(seed);
        let exponent = match self {
            Kind::Zipf(exponent) => exponent,
            Kind::Uniform => 0.0,
            _ => 1.0,
        };
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=sets)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        // Which set has which popularity.
        let mut deal: Vec<usize> = (0..sets).collect();
        random.shuffle(&mut deal);
        let mut trace = Vec::with_capacity(requests);
        let mut once = (sets..2 * sets).cycle();
        while trace.len() < requests {
            let at = trace.len();
            match self {
                Kind::Shifts if at % SPELL == 0 => random.shuffle(&mut deal),
                Kind::Drifts if at % STEP == 0 => {
                    let popular = random.below(sets.min(100));
                    deal.swap(popular, random.below(sets));
                }
                Kind::OneTime if random.below(4) == 0 => {
                    trace.extend(once.next());
                    continue;
                }
                Kind::Sweeps if at % (SPELL + sets) == 0 => {
                    trace.extend(0..sets);
                    continue;
                }
                _ => {}
            }
            let point = random.unit() * sum;
            let rank = sums.partition_point(|&sum| sum <= point).min(sets - 1);
            trace.push(deal[rank]);
        }
        trace.truncate(requests);
        trace
    }
}
