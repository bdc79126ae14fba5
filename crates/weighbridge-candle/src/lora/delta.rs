//! `y += scaling * B (A x)`, with A and B where they are: in a lease's memory.
//!
//! What lives here: the arithmetic in f32, on a CPU. What does not: whose rows are whose (`batch`), devices
//! (`linear`).
//!
//! Each matrix is read once per row of x, so what it costs is reading it: a step of one token under an adapter of
//! rank 8 reads what a copy of it would read, and writes nothing. Half precision becomes f32 in rows of scratch.

use std::borrow::Cow;

use candle_core::{CpuStorage, InplaceOp2, Layout};
use half::slice::HalfFloatSliceExt;
use weighbridge::{AdapterModule, Dtype, Weight};

use crate::Error;

/// What is to be added to which rows.
pub(super) struct Delta<'a> {
    parts: Vec<Part<'a>>,
}

/// The rows of one request.
pub(super) struct Part<'a> {
    first: usize,
    rows: usize,
    rank: usize,
    scaling: f32,
    a: Cow<'a, [f32]>,
    b: Cow<'a, [f32]>,
}

impl<'a> Delta<'a> {
    pub(super) fn new(parts: Vec<Part<'a>>) -> Self {
        Delta { parts }
    }
}

impl<'a> Part<'a> {
    pub(super) fn new(
        first: usize,
        rows: usize,
        module: &AdapterModule<'a>,
    ) -> Result<Self, Error> {
        Ok(Part {
            first,
            rows,
            rank: module.rank as usize,
            scaling: module.scaling as f32,
            a: floats(&module.a)?,
            b: floats(&module.b)?,
        })
    }

    fn add(&self, y: &mut [f32], x: &[f32], outputs: usize, inputs: usize) {
        let mut low = vec![0.0; self.rank];
        let rows = self.first..self.first + self.rows;
        let x = &x[rows.start * inputs..rows.end * inputs];
        let y = &mut y[rows.start * outputs..rows.end * outputs];
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
            for (low, a) in low.iter_mut().zip(self.a.chunks_exact(inputs)) {
                *low = self.scaling * dot(a, x);
            }
            for (y, b) in y.iter_mut().zip(self.b.chunks_exact(self.rank)) {
                *y += dot(b, &low);
            }
        }
    }
}

impl InplaceOp2 for Delta<'_> {
    fn name(&self) -> &'static str {
        "lora-delta"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(y), CpuStorage::F32(x)) = (y, x) else {
            candle_core::bail!("lora-delta is computed in f32");
        };
        let ends = (y_layout.contiguous_offsets(), x_layout.contiguous_offsets());
        let (Some((y_start, y_end)), Some((x_start, x_end))) = ends else {
            candle_core::bail!("lora-delta needs contiguous tensors");
        };
        let (Some(&outputs), Some(&inputs)) = (y_layout.dims().last(), x_layout.dims().last())
        else {
            candle_core::bail!("lora-delta needs rows");
        };
        for part in &self.parts {
            part.add(&mut y[y_start..y_end], &x[x_start..x_end], outputs, inputs);
        }
        Ok(())
    }
}

/// Can they be computed with?
pub(super) fn has_floats(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// Could [`Part::new`] read it?
pub(super) fn check(weight: &Weight<'_>) -> Result<(), Error> {
    if has_floats(weight.dtype()) {
        return Ok(());
    }
    Err(Error::NoFloats {
        tensor: weight.name().to_owned(),
        dtype: weight.dtype(),
    })
}

/// A matrix's numbers: where they are, if they are f32 and aligned, as they are in a registry's own memory.
fn floats<'a>(weight: &Weight<'a>) -> Result<Cow<'a, [f32]>, Error> {
    check(weight)?;
    let bytes = weight.bytes();
    let halves = || {
        bytes
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
    };
    Ok(match weight.dtype() {
        Dtype::F32
            if cfg!(target_endian = "little")
                && bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok() =>
        {
            Cow::Borrowed(bytemuck::cast_slice(bytes))
        }
        Dtype::F32 => {
            let each = bytes.chunks_exact(4);
            Cow::Owned(
                each.map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                    .collect(),
            )
        }
        Dtype::F16 => Cow::Owned(
            halves()
                .map(half::f16::from_bits)
                .collect::<Vec<_>>()
                .to_f32_vec(),
        ),
        Dtype::BF16 => Cow::Owned(
            halves()
                .map(half::bf16::from_bits)
                .collect::<Vec<_>>()
                .to_f32_vec(),
        ),
        _ => {
            let each = bytes.chunks_exact(8);
            let double = |eight: &[u8]| f64::from_le_bytes(std::array::from_fn(|at| eight[at]));
            Cow::Owned(each.map(|eight| double(eight) as f32).collect())
        }
    })
}

/// In eight sums, so that the compiler may use vectors: it may not reorder additions by itself.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a
        .remainder()
        .iter()
        .zip(b.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}
