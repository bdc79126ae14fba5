//! A request's adapter, fitted to a model.
//!
//! What lives here: [`Fitting`]: the request's lease, and which module of its adapter each site reads. What does
//! not: the reading (`linear`, `delta`).

use std::collections::HashSet;

use weighbridge::{AdapterModule, AdapterView, Generation, Lease, LeasedSet, SetHandle};

use super::sites::{Layer, Site, Sites};
use crate::Error;

/// What one request runs with: its lease, and its adapter (or none) fitted to the model's layers. Made once, when
/// the request is admitted; its generation is what the lease says, whatever is published later.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use weighbridge::{WeightRegistry, source::{Checkpoint, PeftAdapter}};
/// use weighbridge_candle::{Batch, Fitting, LoraLinear, RegistryBackend};
///
/// # let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
/// let registry = WeightRegistry::builder().build()?;
/// let base = registry.publish("llama", Checkpoint::open(format!("{fixtures}/tiny-llama"))?)?;
/// let pirate = PeftAdapter::open(format!("{fixtures}/adapters/pirate-v1"))?.on(base);
/// let pirate = registry.publish("pirate", pirate)?;
///
/// let backend = RegistryBackend::new(registry.acquire(base)?, base)?;
/// let mut sites = backend.sites()?;
/// let vb = backend.var_builder(DType::F32, &Device::Cpu).pp("model.layers.0.self_attn");
/// let q_proj = LoraLinear::load(96, 96, vb.pp("q_proj"), &mut sites)?;
/// // ... and the model's other layers that adapters may change: each is a site.
/// # for (name, inputs, outputs) in [("self_attn.v_proj", 96, 48)] { for layer in 0..4 {
/// #     let vb = backend.var_builder(DType::F32, &Device::Cpu).pp(format!("model.layers.{layer}"));
/// #     if layer > 0 { LoraLinear::load(96, 96, vb.pp("self_attn.q_proj"), &mut sites)?; }
/// #     LoraLinear::load(inputs, outputs, vb.pp(name), &mut sites)?;
/// # }}
///
/// let one = Fitting::new(registry.acquire_as("request-1", [base, pirate])?, Some(pirate), &sites)?;
/// let other = Fitting::new(registry.acquire_as("request-2", base)?, None, &sites)?;
/// let x = Tensor::ones((3, 96), DType::F32, &Device::Cpu)?;
/// let y = q_proj.forward(&x, &Batch::new().rows(2, &one).rows(1, &other))?;
/// assert_eq!(y.dims(), [3, 96]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Fitting {
    lease: Lease,
    /// The sites that it was fitted to.
    sites: u64,
    base: SetHandle,
    adapter: Option<Adapter>,
}

#[derive(Debug)]
struct Adapter {
    set: SetHandle,
    generation: Generation,
    /// By site: which of the adapter's modules.
    modules: Box<[Option<u32>]>,
}

impl Fitting {
    /// Of the request that has `lease`, under `adapter`, in the model that has these sites.
    ///
    /// # Errors
    /// [`weighbridge::Error::NotInLease`] if the lease lacks the base or the adapter; [`Error::OtherBase`] if it has
    /// another version of the base than the model; [`Error::NoSuchSite`], [`Error::Misfit`], [`Error::Replaces`],
    /// [`Error::NoAdapter`] if the adapter would not be applied as a whole; [`Error::NoFloats`].
    pub fn new(lease: Lease, adapter: Option<SetHandle>, sites: &Sites) -> Result<Self, Error> {
        let base = lease.set(sites.base)?;
        // Another number with the same identity is the same bytes: a rebind, or a rollback to it.
        if base.generation() != sites.generation && *base.identity() != sites.identity {
            return Err(Error::OtherBase {
                base: sites.name.clone(),
                built: sites.generation,
                built_identity: Box::new(sites.identity.clone()),
                leased: base.generation(),
                leased_identity: Box::new(base.identity().clone()),
            });
        }
        let adapter = match adapter {
            Some(adapter) => Some(Adapter::new(lease.set(adapter)?, sites)?),
            None => None,
        };
        Ok(Fitting {
            lease,
            sites: sites.id,
            base: sites.base,
            adapter,
        })
    }

    /// The lease that it runs on.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The adapter and its generation; `None`: the base alone.
    pub fn adapter(&self) -> Option<(SetHandle, Generation)> {
        let adapter = self.adapter.as_ref()?;
        Some((adapter.set, adapter.generation))
    }

    /// Was it fitted to these sites?
    pub(crate) fn check(&self, sites: &Sites) -> Result<(), Error> {
        if self.sites != sites.id {
            return Err(self.elsewhere(sites.base));
        }
        Ok(())
    }

    fn elsewhere(&self, used: SetHandle) -> Error {
        Error::OtherModel {
            fitted: self.base,
            used,
        }
    }

    /// What the adapter changes at a site, read through the lease.
    pub(super) fn module(&self, site: Site) -> Result<Option<AdapterModule<'_>>, Error> {
        if site.id != self.sites {
            return Err(self.elsewhere(site.base));
        }
        let Some(adapter) = &self.adapter else {
            return Ok(None);
        };
        let Some(module) = adapter.modules.get(site.index) else {
            // The model was not complete when this was fitted to it.
            return Err(self.elsewhere(site.base));
        };
        let Some(module) = *module else {
            return Ok(None);
        };
        let view = self.lease.set(adapter.set)?.adapter();
        Ok(match view {
            Some(view) => Some(view.module(module as usize)?),
            None => None,
        })
    }
}

impl Adapter {
    fn new(set: LeasedSet<'_>, sites: &Sites) -> Result<Self, Error> {
        let name = || format!("{} (generation {})", set.name(), set.generation()).into_boxed_str();
        let view = set.adapter();
        let view = view.ok_or_else(|| Error::NoAdapter { set: name() })?;
        if let Some(replacement) = view.replacements().next() {
            return Err(Error::Replaces {
                adapter: name(),
                tensor: replacement?.base_tensor.to_owned(),
            });
        }
        let mut modules = vec![None; sites.all.len()];
        for (site, layer) in modules.iter_mut().zip(&sites.all) {
            if let Some(position) = view.position(&layer.module) {
                let module = view.module(position)?;
                layer.check(&module).map_err(|()| Error::Misfit {
                    adapter: name(),
                    module: layer.module.as_str().into(),
                    a: module.a.shape().into(),
                    b: module.b.shape().into(),
                    inputs: layer.inputs,
                    outputs: layer.outputs,
                })?;
                for matrix in [module.a, module.b] {
                    super::delta::check(&matrix)?;
                }
                *site = Some(position as u32);
            }
        }
        // Several layers may share a module.
        let read = modules.iter().flatten().collect::<HashSet<_>>().len();
        if read < view.len() {
            return Err(Error::NoSuchSite {
                adapter: name(),
                module: nowhere(view, &modules)?,
                sites: sites.some(),
            });
        }
        Ok(Adapter {
            set: set.handle(),
            generation: set.generation(),
            modules: modules.into(),
        })
    }
}

/// The first module that no site reads.
fn nowhere(view: AdapterView<'_>, modules: &[Option<u32>]) -> Result<String, Error> {
    let lost = (0..view.len()).find(|index| !modules.contains(&Some(*index as u32)));
    match lost {
        Some(lost) => Ok(view.module(lost)?.module.to_owned()),
        None => unreachable!("fewer are read than there are, and each is read"),
    }
}

impl Layer {
    fn check(&self, module: &AdapterModule<'_>) -> Result<(), ()> {
        let rank = module.rank as usize;
        let fits =
            module.a.shape() == [rank, self.inputs] && module.b.shape() == [self.outputs, rank];
        fits.then_some(()).ok_or(())
    }
}
