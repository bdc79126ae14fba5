//! What headers say: an adapter's modules, whether it fits, and a set of which nothing but the headers is there.
//!
//! What lives here: the answers of a plan, and a source that brings a plan and no memory. What does not: reading
//! (`reading`).
//!
//! A registry into which an adapter is read with all checks needs a base that it stands on. If of that only the headers
//! are there, it is published in memory that the host cannot read and that is nowhere, and nothing is charged for it.

use serde::Serialize;
use weighbridge::layout::ModuleScale;
use weighbridge::memory::{Memory, Owner};
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Plan, PublishError, SetHandle, WeightRegistry};

use crate::failure::Failure;

/// A set with this plan, and without bytes.
#[derive(Debug)]
struct HeadersOnly(Plan);

impl Source for HeadersOnly {
    fn plan(&self) -> &Plan {
        &self.0
    }

    fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::InvalidMemory {
            origin: self.0.origin().to_owned(),
            reason: "only its headers are there".to_owned(),
        })
    }

    fn bring(&mut self) -> Option<Memory> {
        Memory::of(Nowhere(self.0.arena_bytes())).ok()
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
        Some(base) => registry.publish(NAME, HeadersOnly(base.clone())),
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
pub(crate) fn modules(adapter: &Plan) -> Vec<LoraModule> {
    let layout = adapter.layout();
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
    modules.collect()
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
    let (fits, reason, unchecked_modules) = match adapter.check_fit(&base.layout()) {
        Ok(fit) => {
            let layout = adapter.layout();
            let modules = fit.unchecked().iter();
            let modules = modules.filter_map(|&at| layout.modules().get(at as usize));
            let unchecked = modules.map(|pair| pair.module().to_owned()).collect();
            (true, None, unchecked)
        }
        Err(misfit @ Error::AdapterMismatch { .. }) => {
            (false, Some(misfit.to_string()), Vec::new())
        }
        Err(other) => return Err(other.into()),
    };
    Ok(Fit {
        path: base.origin().to_owned(),
        fits,
        reason,
        unchecked_modules,
    })
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
        let of = |name| modules(PeftAdapter::open(fixture(name)).unwrap().plan());
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
