//! Would it fit? The library's own estimate, in words.
//!
//! What lives here: asking, and what each answer is called. What does not: reserving anything.

use serde::Serialize;
use weighbridge::{Demand, Estimate, Plan, WeightRegistry};

use crate::failure::Failure;
use crate::sizes::exact;

/// What the library says of a limit.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fits {
    pub(crate) answer: Word,
    pub(crate) limit: u64,
    /// What it takes.
    pub(crate) needed: u64,
    /// By how many bytes it does not fit.
    pub(crate) missing: u64,
    /// What is in the way and could go.
    pub(crate) sets: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    Now,
    AfterEvicting,
    WhenReleased,
    Never,
}

/// Would all of `plans` fit together into a registry of `limit` bytes that holds nothing else?
pub(crate) fn ask(plans: &[&Plan], limit: u64) -> Result<Fits, Failure> {
    let registry = WeightRegistry::builder().limit_bytes(limit).build()?;
    let demand = plans
        .iter()
        .fold(Demand::new(), |demand, plan| demand.plan("", plan));
    say(registry.estimate(&demand)?, limit)
}

fn say(estimate: Estimate, limit: u64) -> Result<Fits, Failure> {
    let names = |sets: Vec<weighbridge::SetName>| sets.iter().map(ToString::to_string).collect();
    let (answer, needed, missing, sets) = match estimate {
        Estimate::Now { bytes, .. } => (Word::Now, bytes, 0, Vec::new()),
        Estimate::AfterEvicting { bytes, sets, .. } => (Word::AfterEvicting, bytes, 0, names(sets)),
        Estimate::WhenReleased {
            bytes,
            missing,
            leased,
            ..
        } => (Word::WhenReleased, bytes, missing, names(leased)),
        Estimate::Never { bytes, missing, .. } => (Word::Never, bytes, missing, Vec::new()),
        other => return Err(Failure::fault(format!("an unknown estimate: {other:?}"))),
    };
    Ok(Fits {
        answer,
        limit,
        needed,
        missing,
        sets,
    })
}

impl Fits {
    /// Into a registry that holds nothing else.
    pub(crate) fn fits(&self) -> bool {
        self.answer == Word::Now
    }

    /// For people.
    pub(crate) fn words(&self) -> String {
        let of = format!("{} of {}", exact(self.needed), exact(self.limit));
        let sets = self.sets.join(", ");
        match self.answer {
            Word::Now => format!("yes: {of}"),
            Word::AfterEvicting => format!("after evicting {sets}: {of}"),
            Word::WhenReleased => format!("when {sets} is released: {of}"),
            Word::Never => format!("never: {of}, {} too many", exact(self.missing)),
        }
    }
}

#[cfg(test)]
mod tests {
    use weighbridge::source::{Checkpoint, Evictable, Source};

    use super::*;

    fn open() -> Result<Checkpoint, weighbridge::Error> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-llama");
        Checkpoint::open(path)
    }

    #[test]
    fn a_limit_is_met_to_the_byte() {
        let checkpoint = open().unwrap();
        let plan = checkpoint.plan();
        let bytes = plan.charged_bytes();
        assert!(ask(&[plan], bytes).unwrap().fits());
        let short = ask(&[plan], bytes - 1).unwrap();
        assert_eq!((short.answer, short.missing), (Word::Never, 1));
        assert!(short.words().ends_with(", 1 too many"), "{}", short.words());
        assert!(!ask(&[plan, plan], bytes).unwrap().fits());
    }

    /// In a registry that holds something: no command asks that yet, every answer has its word.
    #[test]
    fn what_is_in_the_way_is_named() {
        let plan = open().unwrap().plan().clone();
        let limit = plan.charged_bytes();
        let registry = WeightRegistry::builder()
            .limit_bytes(limit)
            .build()
            .unwrap();
        let source = Evictable::opened_by(open).unwrap();
        let set = registry.publish("idle", source).unwrap();
        let demand = Demand::new().plan("", &plan);
        let ask = || say(registry.estimate(&demand).unwrap(), limit).unwrap();

        let idle = ask();
        assert_eq!((idle.answer, idle.missing), (Word::AfterEvicting, 0));
        assert!(
            idle.words().starts_with("after evicting idle: "),
            "{idle:?}"
        );
        let lease = registry.acquire(set).unwrap();
        let held = ask();
        assert_eq!((held.answer, held.missing), (Word::WhenReleased, limit));
        assert!(
            held.words().starts_with("when idle is released: "),
            "{held:?}"
        );
        drop(lease);
    }
}
