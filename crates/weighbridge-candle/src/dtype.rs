//! What the registry holds, as candle holds it.
//!
//! What lives here: which dtype is which, and the one copy that makes a tensor of a weight's bytes. What does
//! not: which weights a model wants (`backend`).

use candle_core::{DType, Device, Tensor};
use weighbridge::{Dtype, Weight};

use crate::Error;

/// candle's name of a dtype; `None` if it has none.
///
/// ```
/// use weighbridge::Dtype;
/// use weighbridge_candle::candle_dtype;
///
/// assert_eq!(candle_dtype(Dtype::BF16), Some(candle_core::DType::BF16));
/// assert_eq!(candle_dtype(Dtype::U16), None);
/// ```
pub fn candle_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::U8 => DType::U8,
        Dtype::U32 => DType::U32,
        Dtype::I16 => DType::I16,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F8_E4M3 => DType::F8E4M3,
        // candle names smaller floats, too, but converts none of them.
        _ => return None,
    })
}

/// A weight as a tensor of its own dtype on `device`. This is the one copy that candle cannot do without: it
/// owns what it computes with.
///
/// # Errors
/// [`Error::NoSuchDtype`]; [`Error::Candle`] if `device` refuses.
///
/// ```
/// use candle_core::Device;
/// use weighbridge::{Dtype, WeightRegistry, source::InMemory};
///
/// let registry = WeightRegistry::builder().build()?;
/// let bytes: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
/// let set = registry.publish("s", InMemory::new().tensor("w", Dtype::F32, [2], bytes)?)?;
/// let lease = registry.acquire(set)?;
/// let w = weighbridge_candle::tensor(&lease.set(set)?.get("w")?, &Device::Cpu)?;
/// assert_eq!(w.to_vec1::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn tensor(weight: &Weight<'_>, device: &Device) -> Result<Tensor, Error> {
    let dtype = candle_dtype(weight.dtype()).ok_or_else(|| Error::NoSuchDtype {
        tensor: weight.name().to_owned(),
        dtype: weight.dtype(),
    })?;
    let made = Tensor::from_raw_buffer(weight.bytes(), dtype, weight.shape(), device);
    Ok(made?)
}
