//! Sets of which nothing but the headers is there: enough for a registry to say whether an adapter fits.
//!
//! What lives here: a source that brings a plan and no memory, the look at an adapter through it. What
//! does not: reading (`reading`).
//!
//! Whether an adapter fits is asked of a [`Layout`](weighbridge::Layout), and only a registry makes one of
//! a plan. So both are published, in memory that the host cannot read and that is nowhere: the registry
//! checks everything that it can check without a byte, and is charged nothing.

use serde::Serialize;
use weighbridge::layout::ModuleScale;
use weighbridge::memory::{Memory, Owner};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Plan, PublishError, SetHandle, WeightRegistry};

use crate::failure::Failure;

/// A set with this plan, and without bytes.
#[derive(Debug)]
pub(crate) struct HeadersOnly {
    plan: Plan,
    base: Option<SetHandle>,
}

impl HeadersOnly {
    pub(crate) fn new(plan: &Plan) -> Self {
        HeadersOnly {
            plan: plan.clone(),
            base: None,
        }
    }

    fn on(self, base: SetHandle) -> Self {
        HeadersOnly {
            base: Some(base),
            ..self
        }
    }
}

impl Source for HeadersOnly {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::InvalidMemory {
            origin: self.plan.origin().to_owned(),
            reason: "only its headers are there".to_owned(),
        })
    }

    fn bring(&mut self) -> Option<Memory> {
        Memory::of(Nowhere(self.plan.arena_bytes())).ok()
    }

    fn base(&self) -> Option<SetHandle> {
        self.base
    }
}

/// So many bytes that nobody reads.
struct Nowhere(u64);

impl Owner for Nowhere {
    fn byte_len(&self) -> u64 {
        self.0
    }

    fn address(&self) -> u64 {
        0
    }
}

/// Publishes the base of `adapter`: the headers of the given one, or else one that has its modules and
/// says nothing of them. Nothing is charged for either.
pub(crate) fn publish_base(
    registry: &WeightRegistry,
    adapter: &Plan,
    base: Option<&Plan>,
) -> Result<SetHandle, Failure> {
    const NAME: &str = "base";
    let published = match base {
        Some(base) => registry.publish(NAME, HeadersOnly::new(base)),
        None => registry.publish(NAME, stand_in(adapter)?),
    };
    published.map_err(without_staged)
}

/// A base that has something of no bytes in every module of `adapter`: what that module is, is unknown,
/// which is what can be said without a base.
fn stand_in(adapter: &Plan) -> Result<InMemory, Failure> {
    let modules = adapter.adapter().into_iter().flat_map(|of| of.modules());
    let mut base = InMemory::new();
    for (module, _) in modules {
        base = base.tensor(format!("{module}.unknown"), Dtype::U8, [0], [])?;
    }
    Ok(base)
}

/// Lets go of the bytes that a failed publish hands back.
pub(crate) fn without_staged(error: PublishError) -> Failure {
    error.into_parts().0.into()
}

/// A LoRA module, from the headers.
#[derive(Debug, Serialize)]
pub(crate) struct LoraModule {
    pub(crate) name: String,
    pub(crate) rank: u32,
    pub(crate) alpha: f64,
    pub(crate) scaling: f64,
    pub(crate) rslora: bool,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
}

/// The modules of an adapter.
pub(crate) fn modules(adapter: &Plan) -> Result<Vec<LoraModule>, Failure> {
    let registry = WeightRegistry::builder().limit_bytes(0).build()?;
    let base = publish_base(&registry, adapter, None)?;
    let set = HeadersOnly::new(adapter).on(base);
    let set = registry.publish("adapter", set).map_err(without_staged)?;
    let lease = registry.acquire([base, set])?;
    let layout = lease.set(set)?.layout();
    let scales = adapter.adapter().into_iter().flat_map(|of| of.modules());
    let modules = layout.modules().iter().zip(scales);
    let modules = modules.filter_map(|(pair, (name, scale))| {
        let (a, b) = (layout.tensor(pair.a())?, layout.tensor(pair.b())?);
        Some(LoraModule {
            name: name.to_owned(),
            rank: scale.rank,
            alpha: scale.alpha,
            scaling: scale.scaling,
            rslora: is_rank_stabilised(scale),
            in_features: *a.shape().get(1)?,
            out_features: *b.shape().first()?,
        })
    });
    Ok(modules.collect())
}

/// The library has resolved the option away. Of rank 1 both factors are the same.
fn is_rank_stabilised(scale: ModuleScale) -> bool {
    let by = |stabilised| ModuleScale::new(scale.rank, scale.alpha, stabilised);
    scale == by(true) && scale != by(false)
}

/// Whether an adapter fits a base.
#[derive(Debug, Serialize)]
pub(crate) struct Fit {
    pub(crate) path: String,
    pub(crate) fits: bool,
    /// Why not.
    pub(crate) reason: Option<String>,
    /// Modules of which the base's headers do not say what they are.
    pub(crate) unchecked_modules: Vec<String>,
}

/// Does `adapter` fit `base`, by all that their headers say?
pub(crate) fn fit(adapter: &Plan, base: &Plan) -> Result<Fit, Failure> {
    let registry = WeightRegistry::builder().limit_bytes(0).build()?;
    let handle = publish_base(&registry, adapter, Some(base))?;
    let path = base.origin().to_owned();
    match registry.publish("adapter", HeadersOnly::new(adapter).on(handle)) {
        Ok(set) => Ok(Fit {
            path,
            fits: true,
            reason: None,
            unchecked_modules: unchecked(&registry, set)?,
        }),
        Err(error) => match error.into_parts().0 {
            misfit @ Error::AdapterMismatch { .. } => Ok(Fit {
                path,
                fits: false,
                reason: Some(misfit.to_string()),
                unchecked_modules: Vec::new(),
            }),
            other => Err(other.into()),
        },
    }
}

/// The modules of a published adapter that could not be checked against its base.
pub(crate) fn unchecked(
    registry: &WeightRegistry,
    adapter: SetHandle,
) -> Result<Vec<String>, Failure> {
    registry.scope(|scope| {
        let view = scope.get(adapter)?;
        Ok(view.unchecked_modules().map(str::to_owned).collect())
    })
}

#[cfg(test)]
mod tests {
    use weighbridge::source::{Checkpoint, PeftAdapter};

    use super::*;

    fn fixture(name: &str) -> String {
        format!("{}/../../fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn a_fit_is_told_without_a_byte() {
        let base = Checkpoint::open(fixture("tiny-llama")).unwrap();
        let adapter = PeftAdapter::open(fixture("adapters/robot")).unwrap();
        let fit = fit(adapter.plan(), base.plan()).unwrap();
        assert!(fit.fits && fit.unchecked_modules.is_empty(), "{fit:?}");
    }

    #[test]
    fn a_misfit_is_an_answer() {
        let base = InMemory::new().tensor("other.weight", Dtype::U8, [1], [0]);
        let adapter = PeftAdapter::open(fixture("adapters/robot")).unwrap();
        let fit = fit(adapter.plan(), base.unwrap().plan()).unwrap();
        assert!(!fit.fits);
        assert!(fit.reason.unwrap().contains("another base"));
    }

    #[test]
    fn rank_stabilised_modules_are_told_by_their_scaling() {
        let of = |name| modules(PeftAdapter::open(fixture(name)).unwrap().plan()).unwrap();
        let shout = of("adapters/shout");
        assert!(shout.iter().all(|module| module.rslora));
        let first = &shout[0];
        assert_eq!(
            (first.rank, first.in_features, first.out_features),
            (4, 96, 96)
        );
        assert!(of("adapters/ranked").iter().all(|module| !module.rslora));
    }

    /// A base of which nothing is known checks nothing, and says so.
    #[test]
    fn a_stand_in_leaves_every_module_unchecked() {
        let adapter = PeftAdapter::open(fixture("adapters/robot")).unwrap();
        let base = stand_in(adapter.plan()).unwrap();
        let fit = fit(adapter.plan(), base.plan()).unwrap();
        assert!(fit.fits);
        assert_eq!(fit.unchecked_modules.len(), 28);
    }
}
