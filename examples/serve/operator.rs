//! The operator: swaps, loads, retires and awaits adapters while requests run.
//!
//! What lives here: one thread's work against the registry. What does not: the requests (`main`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use weighbridge::{Error, SetHandle, WeightRegistry, source::PeftAdapter};

/// Longest wait for the last lease of a generation; a request is done long before.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was done so far.
#[derive(Debug, Default)]
pub struct Deeds {
    pub swaps: AtomicU64,
    pub loads: AtomicU64,
    pub retires: AtomicU64,
}

impl Deeds {
    fn count(deed: &AtomicU64) {
        deed.fetch_add(1, Ordering::Relaxed);
    }
}

/// One adapter under the operator's hands.
struct Adapter<'a> {
    name: &'a str,
    dirs: &'a [PathBuf],
    set: Option<SetHandle>,
    next: usize,
}

impl Adapter<'_> {
    fn source(&mut self, base: SetHandle) -> Result<PeftAdapter, Error> {
        let dir = &self.dirs[self.next % self.dirs.len()];
        self.next += 1;
        Ok(PeftAdapter::open(dir)?.on(base))
    }

    fn publish(&mut self, registry: &WeightRegistry, base: SetHandle) -> Result<(), Error> {
        let source = self.source(base)?;
        self.set = Some(registry.publish(self.name, source)?);
        Ok(())
    }

    fn retire(&mut self, registry: &WeightRegistry) -> Result<(), Error> {
        let Some(set) = self.set.take() else {
            return Ok(());
        };
        let going = registry.retire(set)?;
        going.drained(PATIENCE)?;
        going.reclaimed(PATIENCE)
    }
}

/// The operator's whole shift: everything is published, then `work` until `stop`, then everything is
/// retired and awaited.
pub struct Operator<'a> {
    registry: &'a WeightRegistry,
    base: SetHandle,
    adapters: Vec<Adapter<'a>>,
}

impl<'a> Operator<'a> {
    /// Publishes the first version of every adapter.
    pub fn start(
        registry: &'a WeightRegistry,
        base: SetHandle,
        adapters: &'a [(String, Vec<PathBuf>)],
    ) -> Result<Self, Error> {
        let adapters = adapters.iter().map(|(name, dirs)| {
            let mut adapter = Adapter {
                name,
                dirs,
                set: None,
                next: 0,
            };
            adapter.publish(registry, base)?;
            Ok(adapter)
        });
        Ok(Operator {
            registry,
            base,
            adapters: adapters.collect::<Result<_, Error>>()?,
        })
    }

    /// Swaps the first adapter all the time; now and then retires another one, or loads it again.
    pub fn work(&mut self, stop: &AtomicBool, deeds: &Deeds) -> Result<(), Error> {
        let Some(hot) = self.adapters.first().and_then(|hot| hot.set) else {
            return Ok(());
        };
        for round in 1.. {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let source = self.adapters[0].source(self.base)?;
            let replaced = self.registry.replace(hot, source)?;
            Deeds::count(&deeds.swaps);
            // Running requests keep the old generation; its bytes come back with the last of them.
            replaced.previous.reclaimed(PATIENCE)?;
            let others = self.adapters.len() - 1;
            if round % 4 == 0 && others > 0 {
                let other = &mut self.adapters[1 + round / 4 % others];
                if other.set.is_some() {
                    other.retire(self.registry)?;
                    Deeds::count(&deeds.retires);
                } else {
                    other.publish(self.registry, self.base)?;
                    Deeds::count(&deeds.loads);
                }
            }
        }
        Ok(())
    }

    /// Retires everything and waits until the bytes are back.
    pub fn finish(mut self) -> Result<(), Error> {
        for adapter in &mut self.adapters {
            adapter.retire(self.registry)?;
        }
        let going = self.registry.retire(self.base)?;
        going.drained(PATIENCE)?;
        going.reclaimed(PATIENCE)
    }
}
