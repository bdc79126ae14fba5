//! Plans of LoRA adapters that no file describes.
//!
//! What lives here: [`Plan::of_adapter`], what PEFT calls the matrices of a module, and the rank that
//! two shapes have. What does not: adapters from files (`source::peft`).

use super::{Plan, PlannedTensor};
use crate::Dtype;
use crate::error::Error;
use crate::layout::ModuleScale;
use crate::tensor::{ADAPTER_PREFIX, WeightKind, byte_len};

impl Plan {
    /// The plan of an adapter of your own: LoRA modules by the names that they have in the base, each
    /// with the shapes of A, `[rank, in_features]`, and B, `[out_features, rank]`, and its alpha. The
    /// factor for `B (A x)` is `alpha / rank`.
    ///
    /// The tensors are named as PEFT names them:
    /// `base_model.model.{module}.lora_A.weight` and `.lora_B.weight`.
    ///
    /// # Errors
    /// [`Error::InvalidTensor`] for a module that is there twice, or sizes that overflow;
    /// [`Error::AdapterMismatch`] if the ranks differ or are 0.
    ///
    /// # Examples
    /// ```
    /// use weighbridge::{Dtype, Plan, WeightRegistry, source::InMemory};
    ///
    /// let registry = WeightRegistry::builder().build()?;
    /// let base = InMemory::new().tensor("up.weight", Dtype::F32, [6, 4], [0; 96])?;
    /// let base = registry.publish("base", base)?;
    /// let modules = [("up", Dtype::F32, [2, 4], [6, 2], 4.0)];
    /// let filling = registry.fill(Plan::of_adapter("step 7", modules)?, Some(base))?;
    /// for matrix in ["lora_A", "lora_B"] {
    ///     let mut writer = filling.writer(&format!("base_model.model.up.{matrix}.weight"))?;
    ///     let bytes = vec![0; writer.remaining()];
    ///     writer.write(&bytes)?;
    /// }
    /// let adapter = registry.publish_staged("policy", filling.seal()?)?;
    /// let lease = registry.acquire([base, adapter])?;
    /// let up = lease.set(adapter)?.adapter().unwrap().module(0)?;
    /// assert_eq!((up.module, up.rank, up.scaling), ("up", 2, 2.0));
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn of_adapter<N: AsRef<str>>(
        origin: &str,
        modules: impl IntoIterator<Item = (N, Dtype, [usize; 2], [usize; 2], f64)>,
    ) -> Result<Self, Error> {
        let (mut tensors, mut scales) = (Vec::new(), Vec::new());
        for (module, dtype, a_shape, b_shape, alpha) in modules {
            let module = module.as_ref();
            let rank = lora_rank(origin, module, a_shape, b_shape)?;
            let [a, b] = lora_names(module);
            let kinds = [WeightKind::LoraA, WeightKind::LoraB];
            for ((name, shape), kind) in [(a, a_shape), (b, b_shape)].into_iter().zip(kinds) {
                let len = byte_len(dtype, &shape).map_err(|reason| Error::InvalidTensor {
                    tensor: name.clone(),
                    reason,
                })?;
                let tensor = PlannedTensor::new(&name, dtype.into(), shape.to_vec(), len);
                tensors.push(tensor.of_kind(kind));
            }
            scales.push((module.to_owned(), ModuleScale::new(rank, alpha, false)));
        }
        let plan = Self::new(origin, tensors, &[])?;
        let modules = scales.into_iter().filter_map(|(module, scale)| {
            let [a, b] = lora_names(&module).map(|name| plan.position(&name));
            Some((module, a?, b?, scale))
        });
        let modules = modules.collect();
        plan.with_modules(modules)
    }
}

/// The rank of a LoRA module whose matrices have these shapes.
pub(crate) fn lora_rank(
    origin: &str,
    module: &str,
    a_shape: [usize; 2],
    b_shape: [usize; 2],
) -> Result<u32, Error> {
    match (u32::try_from(a_shape[0]), a_shape[0] == b_shape[1]) {
        (Ok(rank @ 1..), true) => Ok(rank),
        _ => Err(Error::AdapterMismatch {
            origin: origin.to_owned(),
            module: module.to_owned(),
            reason: format!(
                "A has shape {a_shape:?} ([rank, in] expected) and B {b_shape:?} \
                 ([out, rank] expected); the ranks must agree and not be 0"
            ),
        }),
    }
}

/// What PEFT calls the A and the B of a module.
pub(crate) fn lora_names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|matrix| format!("{ADAPTER_PREFIX}{module}.{matrix}.weight"))
}
