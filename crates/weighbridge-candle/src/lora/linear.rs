//! A linear layer that reads adapters.
//!
//! What lives here: [`LoraLinear`], and which way its delta is computed. What does not: the arithmetic on bytes
//! (`delta`).

use candle_core::{DType, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use weighbridge::AdapterModule;

use super::batch::Batch;
use super::delta::{Delta, Part};
use super::sites::{Layer, Site, Sites};
use crate::{Error, tensor};

/// `y = W x + b + scaling * B (A x)`, where A, B and scaling are those of the request whose row x is, and are read
/// through its lease on each forward.
///
/// On a CPU in f32 A and B are read where they are, in the lease's memory. Elsewhere they are copied to the device
/// for each forward.
#[derive(Clone, Debug)]
pub struct LoraLinear {
    linear: Linear,
    module: String,
    site: Site,
}

impl LoraLinear {
    /// Without a bias; adapters know the layer by the path that `vb` has.
    ///
    /// # Errors
    /// candle's, if the weight is not there or has another shape.
    pub fn load(
        inputs: usize,
        outputs: usize,
        vb: VarBuilder,
        sites: &mut Sites,
    ) -> Result<Self, Error> {
        let linear = candle_nn::linear_no_bias(inputs, outputs, vb.clone())?;
        Self::new(linear, vb.prefix(), sites)
    }

    /// Of a layer that is there, which adapters know as `module`.
    ///
    /// # Errors
    /// candle's, if its weight is no matrix.
    pub fn new(linear: Linear, module: String, sites: &mut Sites) -> Result<Self, Error> {
        let (outputs, inputs) = linear.weight().dims2()?;
        let site = sites.add(Layer {
            module: module.clone(),
            inputs,
            outputs,
        });
        Ok(LoraLinear {
            linear,
            module,
            site,
        })
    }

    /// The base's own part.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    /// `x` has the rows of the batch, and the layer's inputs as last dimension.
    ///
    /// # Errors
    /// [`Error::OtherRows`]; [`Error::OtherModel`] if a request was fitted to another model; candle's; the
    /// registry's.
    pub fn forward(&self, x: &Tensor, batch: &Batch<'_>) -> Result<Tensor, Error> {
        let (_, inputs) = self.linear.weight().dims2()?;
        let rows = x.elem_count().checked_div(inputs).unwrap_or(0);
        if rows != batch.len() {
            return Err(Error::OtherRows {
                module: self.module.clone(),
                rows,
                expected: batch.len(),
            });
        }
        let mut parts = Vec::new();
        let mut first = 0;
        for span in batch.spans() {
            if let Some(module) = span.fitting.module(self.site)? {
                parts.push((first, span.rows, module));
            }
            first += span.rows;
        }
        let y = self.linear.forward(x)?;
        if parts.is_empty() {
            return Ok(y);
        }
        if x.device().is_cpu() && x.dtype() == DType::F32 {
            here(&y, x, &parts)?;
            return Ok(y);
        }
        elsewhere(y, x, &parts)
    }
}

/// Adds to `y`, which is nobody else's, where A and B are.
fn here(y: &Tensor, x: &Tensor, parts: &[(usize, usize, AdapterModule<'_>)]) -> Result<(), Error> {
    let parts = parts
        .iter()
        .map(|(first, rows, module)| Part::new(*first, *rows, module));
    let delta = Delta::new(parts.collect::<Result<_, Error>>()?);
    y.inplace_op2(&x.contiguous()?, &delta)?;
    Ok(())
}

/// With A and B as tensors on the device of `x`.
fn elsewhere(
    y: Tensor,
    x: &Tensor,
    parts: &[(usize, usize, AdapterModule<'_>)],
) -> Result<Tensor, Error> {
    let (inputs, outputs) = (
        x.dim(candle_core::D::Minus1)?,
        y.dim(candle_core::D::Minus1)?,
    );
    let x = x.reshape(((), inputs))?;
    let flat = y.reshape(((), outputs))?;
    let mut done = 0;
    let mut rows_of = Vec::with_capacity(2 * parts.len() + 1);
    for (first, rows, module) in parts {
        if *first > done {
            rows_of.push(flat.narrow(0, done, first - done)?);
        }
        let matrix = |weight| tensor(weight, x.device())?.to_dtype(x.dtype())?.t();
        let low = x.narrow(0, *first, *rows)?.matmul(&matrix(&module.a)?)?;
        let delta = (low.matmul(&matrix(&module.b)?)? * module.scaling)?;
        rows_of.push((flat.narrow(0, *first, *rows)? + delta)?);
        done = first + rows;
    }
    let all = flat.dim(0)?;
    if done < all {
        rows_of.push(flat.narrow(0, done, all - done)?);
    }
    Ok(Tensor::cat(&rows_of, 0)?.reshape(y.shape())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fitting, RegistryBackend};
    use candle_core::Device;
    use weighbridge::source::InMemory;
    use weighbridge::{Dtype, SetHandle, WeightRegistry};

    const INPUTS: usize = 19; // no multiple of the lanes
    const OUTPUTS: usize = 7;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state % 2001) as f32 / 1000.0 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn bytes(numbers: &[f32], dtype: Dtype) -> Vec<u8> {
        let each = numbers.iter();
        match dtype {
            Dtype::F32 => each.flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F64 => each.flat_map(|x| f64::from(*x).to_le_bytes()).collect(),
            Dtype::F16 => each
                .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
                .collect(),
            Dtype::BF16 => each
                .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
                .collect(),
            other => panic!("{other}"),
        }
    }

    fn adapter(base: SetHandle, rank: usize, dtype: Dtype, seed: u32) -> InMemory {
        let a = bytes(&numbers(rank * INPUTS, seed), dtype);
        let b = bytes(&numbers(OUTPUTS * rank, seed + 1), dtype);
        let source =
            InMemory::new().lora("m", dtype, ([rank, INPUTS], a), ([OUTPUTS, rank], b), 2.0);
        source.unwrap().on(base)
    }

    fn base() -> InMemory {
        let w = bytes(&numbers(OUTPUTS * INPUTS, 1), Dtype::F32);
        InMemory::new()
            .tensor("m.weight", Dtype::F32, [OUTPUTS, INPUTS], w)
            .unwrap()
    }

    /// `y` by the definition, in f64.
    fn expected(x: &[f32], adapter: Option<(usize, Dtype, u32)>) -> Vec<f64> {
        let w = numbers(OUTPUTS * INPUTS, 1);
        let dot =
            |a: &[f32], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum() };
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mut y: Vec<f64> = w.chunks(INPUTS).map(|row| dot(row, &x)).collect();
        if let Some((rank, dtype, seed)) = adapter {
            let rounded = |numbers: Vec<f32>| -> Vec<f32> {
                match dtype {
                    Dtype::F16 => numbers
                        .iter()
                        .map(|x| half::f16::from_f32(*x).to_f32())
                        .collect(),
                    Dtype::BF16 => numbers
                        .iter()
                        .map(|x| half::bf16::from_f32(*x).to_f32())
                        .collect(),
                    _ => numbers,
                }
            };
            let a = rounded(numbers(rank * INPUTS, seed));
            let b = rounded(numbers(OUTPUTS * rank, seed + 1));
            let low: Vec<f64> = a.chunks(INPUTS).map(|row| dot(row, &x)).collect();
            for (y, row) in y.iter_mut().zip(b.chunks(rank)) {
                *y += 2.0 / rank as f64 * dot(row, &low);
            }
        }
        y
    }

    #[test]
    fn each_row_has_its_own_request_s_adapter_whichever_way_it_is_computed() {
        let registry = WeightRegistry::builder().build().unwrap();
        let base = registry.publish("base", base()).unwrap();
        let backend = RegistryBackend::new(registry.acquire(base).unwrap(), base).unwrap();
        let mut sites = backend.sites().unwrap();
        let vb = backend.var_builder(DType::F32, &Device::Cpu);
        let layer = LoraLinear::load(INPUTS, OUTPUTS, vb.pp("m"), &mut sites).unwrap();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let name = format!("adapter {dtype}");
            let set = registry
                .publish(name.as_str(), adapter(base, 3, dtype, 10))
                .unwrap();
            let old =
                Fitting::new(registry.acquire([base, set]).unwrap(), Some(set), &sites).unwrap();
            // The other generation has another rank, too.
            registry.replace(set, adapter(base, 12, dtype, 20)).unwrap();
            let new =
                Fitting::new(registry.acquire([base, set]).unwrap(), Some(set), &sites).unwrap();
            let none = Fitting::new(registry.acquire(base).unwrap(), None, &sites).unwrap();
            assert_ne!(old.adapter(), new.adapter());

            let who = [
                (1, &none, None),
                (2, &old, Some((3, dtype, 10))),
                (1, &new, Some((12, dtype, 20))),
                (1, &none, None),
                (1, &old, Some((3, dtype, 10))),
            ];
            let mut batch = Batch::new();
            let mut wanted = Vec::new();
            let rows: usize = who.iter().map(|(rows, ..)| rows).sum();
            let numbers = numbers(rows * INPUTS, 5);
            let mut inputs = numbers.chunks(INPUTS);
            for (rows, fitting, adapter) in who {
                batch = batch.rows(rows, fitting);
                for x in inputs.by_ref().take(rows) {
                    wanted.extend(expected(x, adapter));
                }
            }
            let x = Tensor::from_slice(&numbers, (rows, INPUTS), &Device::Cpu).unwrap();
            let near = |y: Tensor, tolerance: f64| {
                let y = y.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
                for (got, wanted) in y.to_vec1::<f64>().unwrap().iter().zip(&wanted) {
                    assert!(
                        (got - wanted).abs() < tolerance,
                        "{dtype}: {got} for {wanted}"
                    );
                }
            };
            let y = layer.forward(&x, &batch).unwrap();
            assert_eq!(y.dims(), [rows, OUTPUTS]);
            near(y, 1e-5);
            let y = layer
                .forward(&x.reshape((2, rows / 2, INPUTS)).unwrap(), &batch)
                .unwrap();
            assert_eq!(y.dims(), [2, rows / 2, OUTPUTS]);
            near(y, 1e-5);
            let parts: Vec<_> = [(1, 2, &old), (3, 1, &new), (5, 1, &old)]
                .into_iter()
                .map(|(first, rows, fitting)| {
                    (first, rows, fitting.module(layer.site).unwrap().unwrap())
                })
                .collect();
            near(
                elsewhere(layer.linear.forward(&x).unwrap(), &x, &parts).unwrap(),
                1e-5,
            );
        }
    }

    #[test]
    fn rows_that_are_nobody_s_are_refused() {
        let registry = WeightRegistry::builder().build().unwrap();
        let set = registry.publish("base", base()).unwrap();
        let backend = RegistryBackend::new(registry.acquire(set).unwrap(), set).unwrap();
        let mut sites = backend.sites().unwrap();
        let vb = backend.var_builder(DType::F32, &Device::Cpu);
        let layer = LoraLinear::load(INPUTS, OUTPUTS, vb.pp("m"), &mut sites).unwrap();
        let fitting = Fitting::new(registry.acquire(set).unwrap(), None, &sites).unwrap();
        let x = Tensor::zeros((2, INPUTS), DType::F32, &Device::Cpu).unwrap();
        for rows in [0, 1, 3] {
            let refused = layer
                .forward(&x, &Batch::new().rows(rows, &fitting))
                .unwrap_err();
            assert!(
                matches!(refused, Error::OtherRows { rows: 2, expected, .. } if expected == rows),
                "{refused}"
            );
        }
        let other = registry.publish("other", base()).unwrap();
        let backend = RegistryBackend::new(registry.acquire(other).unwrap(), other).unwrap();
        let fitting = Fitting::new(
            registry.acquire(other).unwrap(),
            None,
            &backend.sites().unwrap(),
        );
        let refused = layer
            .forward(&x, &Batch::new().rows(2, &fitting.unwrap()))
            .unwrap_err();
        assert!(matches!(refused, Error::OtherModel { .. }), "{refused}");
    }
}
