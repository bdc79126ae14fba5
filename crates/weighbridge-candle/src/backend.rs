//! Any candle model from a registry.
//!
//! What lives here: [`RegistryBackend`], which answers a `VarBuilder`. What does not: layers that read adapters
//! while they run (`lora`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use weighbridge::{Dtype, Lease, SetHandle, Weight};

use crate::{Error, Sites, candle_dtype, tensor};

/// One leased set, as what candle builds models from.
///
/// Names are the checkpoint's, shapes are compared with what the layer wants, floats become the dtype that the
/// `VarBuilder` was given, and integers stay what they are. Tensors that are tied in the registry come out as one
/// candle tensor with one storage, whichever of their names is asked for, and so does a tensor that is asked for
/// twice. The lease ends with the last clone: candle has copied by then.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_transformers::models::llama::{Llama, LlamaConfig};
/// use weighbridge::{WeightRegistry, source::Checkpoint};
/// use weighbridge_candle::RegistryBackend;
///
/// # let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-llama");
/// let registry = WeightRegistry::builder().limit_bytes(1 << 20).build()?;
/// let base = registry.publish("llama", Checkpoint::open(directory)?)?;
/// let backend = RegistryBackend::new(registry.acquire(base)?, base)?;
///
/// let config = std::fs::read(format!("{directory}/config.json"))?;
/// let config: LlamaConfig = serde_json::from_slice(&config)?;
/// let vb = backend.var_builder(DType::F32, &Device::Cpu);
/// let model = Llama::load(vb, &config.into_config(false))?; // candle's own
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RegistryBackend {
    lease: Lease,
    set: SetHandle,
    made: Arc<Mutex<HashMap<Place, Tensor>>>,
}

/// Where a tensor's bytes are, and as what they were asked for. Two names with one place are tied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    start: usize,
    len: usize,
    shape: Box<[usize]>,
    dtype: DType,
    device: DeviceLocation,
}

impl RegistryBackend {
    /// Of the checkpoint `set`, which `lease` has.
    ///
    /// # Errors
    /// [`weighbridge::Error::NotInLease`].
    pub fn new(lease: Lease, set: SetHandle) -> Result<Self, Error> {
        lease.set(set)?;
        Ok(RegistryBackend {
            lease,
            set,
            made: Arc::default(),
        })
    }

    /// What a model is built with: floats become `dtype`, everything is on `device`.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// For a model that reads adapters: where, and of which base.
    ///
    /// # Errors
    /// [`weighbridge::Error::NotInLease`].
    pub fn sites(&self) -> Result<Sites, Error> {
        Ok(Sites::of(self.lease.set(self.set)?))
    }

    /// The dtype that a tensor has in the checkpoint, as candle names it: for models that stay in it.
    ///
    /// # Errors
    /// [`Error::NoSuchDtype`]; [`Error::Candle`] if there is no such tensor.
    pub fn dtype_of(&self, name: &str) -> Result<DType, Error> {
        let weight = self.find(name)?;
        candle_dtype(weight.dtype()).ok_or_else(|| Error::NoSuchDtype {
            tensor: name.to_owned(),
            dtype: weight.dtype(),
        })
    }

    /// Bytes of the tensors that were made so far: candle's own copies, each once. Something to
    /// [reserve](weighbridge::WeightRegistry::reserve_in), if one budget is to cover all.
    pub fn copied_bytes(&self) -> u64 {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        made.values().map(bytes).sum::<usize>() as u64
    }

    fn find(&self, name: &str) -> Result<Weight<'_>, Error> {
        let set = self.lease.set(self.set)?;
        if set.layout().ordinal(name).is_none() {
            let path = name.to_owned();
            return Err(candle_core::Error::CannotFindTensor { path }.bt().into());
        }
        Ok(set.get(name)?)
    }

    /// Eight bits are numbers only together with their scale, which models of this kind do not ask for.
    fn check_scale(&self, weight: &Weight<'_>) -> Result<(), Error> {
        if weight.dtype() != Dtype::F8_E4M3 {
            return Ok(());
        }
        let set = self.lease.set(self.set)?;
        // As compressed-tensors and FP8 checkpoints name them.
        let scales = ["_scale", "_scale_inv"].map(|end| format!("{}{end}", weight.name()));
        let mut there = scales.into_iter();
        match there.find(|scale| set.layout().ordinal(scale).is_some()) {
            Some(scale) => Err(Error::Scaled {
                tensor: weight.name().to_owned(),
                dtype: weight.dtype(),
                scale,
            }),
            None => Ok(()),
        }
    }

    fn tensor_as(
        &self,
        weight: &Weight<'_>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, Error> {
        let (bytes, shape) = (weight.bytes(), weight.shape());
        let place = Place {
            start: bytes.as_ptr() as usize,
            len: bytes.len(),
            shape: shape.into(),
            dtype,
            device: device.location(),
        };
        // Models are built by one thread, nearly always; if not, the second waits for the first's copy.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = made.get(&place) {
            return Ok(there.clone());
        }
        self.check_scale(weight)?;
        let own = tensor(weight, device)?;
        if own.dtype().is_int() != dtype.is_int() {
            return Err(Error::OtherKind {
                tensor: weight.name().to_owned(),
                dtype: weight.dtype(),
                wanted: dtype,
            });
        }
        let wanted = own.to_dtype(dtype)?;
        made.insert(place, wanted.clone());
        Ok(wanted)
    }
}

impl SimpleBackend for RegistryBackend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let weight = self.find(name)?;
        if weight.shape() != shape.dims() {
            return Err(candle_core::Error::UnexpectedShape {
                msg: format!("shape mismatch for {name}"),
                expected: shape,
                got: weight.shape().into(),
            }
            .bt());
        }
        Ok(self.tensor_as(&weight, dtype, device)?)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let weight = self.find(name)?;
        Ok(self.tensor_as(&weight, dtype, device)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let set = self.lease.set(self.set);
        set.is_ok_and(|set| set.layout().ordinal(name).is_some())
    }
}
