//! What a plan says, what the ledger is charged, and what the system has given: the same number.
//!
//! One test in a process of its own: it reads how much memory the process has. WEIGHBRIDGE_MODELS names a
//! directory with further checkpoints, such as real ones, which are too big to be shipped.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use weighbridge::source::{Checkpoint, Evictable, PeftAdapter, Source};
use weighbridge::{Demand, Dtype, Error, Estimate, Plan, WeightRegistry};

/// Every checkpoint that there is here, and every adapter of the tiny one. Those of SmolLM2 have their base only where it
/// was fetched.
fn fixtures(visit: &mut dyn FnMut(&Path)) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut directories = vec![root];
    directories.extend(std::env::var_os("WEIGHBRIDGE_MODELS").map(PathBuf::from));
    while let Some(directory) = directories.pop() {
        visit(&directory);
        let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
        directories.extend(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir() && !path.ends_with("fixtures/smollm2")),
        );
    }
}

/// A set of so many bytes, each written.
struct Filled(Plan);

impl Source for Filled {
    fn plan(&self) -> &Plan {
        &self.0
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        arena.fill(7);
        Ok(())
    }

    fn declared(&self) -> Option<&str> {
        Some("filled")
    }
}

/// Anonymous memory of this process that is in memory, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    1024 * kilobytes.parse::<u64>().unwrap()
}

#[test]
fn what_is_planned_is_what_is_charged_and_what_is_taken() {
    let registry = WeightRegistry::builder().build().unwrap();
    let (mut checkpoints, mut adapters) = (0, 0);
    let tiny = registry.publish("base", support::tiny()).unwrap();
    fixtures(&mut |path| {
        let name = path.display().to_string();
        let check = |plan: &Plan, publish: &mut dyn FnMut()| {
            let charged = plan.charged_bytes();
            let estimate = registry.estimate(&Demand::new().plan("", plan)).unwrap();
            assert!(matches!(estimate, Estimate::Now { bytes, .. } if bytes == charged));
            let before = registry.ledger().total();
            publish();
            assert_eq!(registry.ledger().total() - before, charged, "{name}");
        };
        if let Ok(checkpoint) = Checkpoint::open(path)
            && !checkpoint.plan().tensors().is_empty()
        {
            checkpoints += 1;
            let plan = checkpoint.plan().clone();
            let mut source = Some(checkpoint);
            check(&plan, &mut || {
                registry
                    .publish(name.clone(), source.take().unwrap())
                    .unwrap();
            });
        }
        if let Ok(adapter) = PeftAdapter::open(path) {
            adapters += 1;
            let plan = adapter.plan().clone();
            let mut source = Some(adapter.on(tiny));
            check(&plan, &mut || {
                registry
                    .publish(name.clone(), source.take().unwrap())
                    .unwrap();
            });
        }
    });
    assert!(
        checkpoints >= 2 && adapters >= 3,
        "{checkpoints} and {adapters}"
    );

    // Of what is big the system is asked: within two per cent, for others are in this process, too.
    #[cfg(target_os = "linux")]
    {
        let plan = || Plan::of("big", [("w", Dtype::U8, vec![256 << 20])]).unwrap();
        let near = |figure: u64, wanted: u64| figure.abs_diff(wanted) * 50 <= 256 << 20;
        let charged = plan().charged_bytes();
        let (before, ledger) = (resident(), registry.ledger().total());
        let source = Evictable::opened_by(move || Ok(Filled(plan()))).unwrap();
        let big = registry.publish("big", source).unwrap();
        assert_eq!(registry.ledger().total() - ledger, charged);
        let with = resident();
        assert!(near(with - before, charged), "{before} and then {with}");
        registry.evict(big).unwrap();
        let without = resident();
        assert!(near(without, before), "{before} and then {without}");
        registry.load(big).unwrap();
        let again = resident();
        assert!(near(again - before, charged), "{before} and then {again}");
        registry
            .retire(big)
            .unwrap()
            .reclaimed(Duration::from_secs(60))
            .unwrap();
        let gone = resident();
        assert!(near(gone, before), "{before} and then {gone}");

        // What is kept for the next load is there, and is said to be there.
        let pooling = WeightRegistry::builder().pool_bytes(u64::MAX).build();
        let pooling = pooling.unwrap();
        let big = pooling.publish("big", Filled(plan())).unwrap();
        pooling
            .retire(big)
            .unwrap()
            .reclaimed(Duration::from_secs(60))
            .unwrap();
        let kept = resident();
        assert_eq!(pooling.ledger().pooled, charged);
        assert!(near(kept - before, charged), "{before} and then {kept}");
        pooling.publish("big", Filled(plan())).unwrap();
        let again = resident();
        assert!(near(again - before, charged), "{before} and then {again}");
        drop(pooling);
        let gone = resident();
        assert!(near(gone, before), "{before} and then {gone}");
    }
}
