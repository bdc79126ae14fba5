//! Attention of a ragged batch.
//!
//! What lives here: what a layer's heads make of each sequence's rows, and where a token is turned to. What does
//! not: the rest of a layer (`mod`), what was seen before (`sequence`).

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::{Turn, rows};
use crate::{Error, LoraLinear, Sites};

#[derive(Debug)]
pub(super) struct Attention {
    q: LoraLinear,
    k: LoraLinear,
    v: LoraLinear,
    o: LoraLinear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Cosines and sines by position.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    pub(super) fn new(config: &Config, device: &Device) -> Result<Self, Error> {
        let dim = config.head_dim();
        let theta = config.rope_theta as f32;
        let frequencies: Vec<f32> = (0..dim)
            .step_by(2)
            .map(|at| 1.0 / theta.powf(at as f32 / dim as f32))
            .collect();
        let positions = config.max_position_embeddings;
        let frequencies = Tensor::from_vec(frequencies, (1, dim / 2), device)?;
        let positions = Tensor::arange(0, positions as u32, device)?
            .to_dtype(DType::F32)?
            .reshape((positions, 1))?;
        let angles = positions.matmul(&frequencies)?;
        Ok(Rotation {
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    /// `x`, `[heads, tokens, head dim]`, whose first token is at `position`.
    fn turn(&self, x: &Tensor, position: usize) -> Result<Tensor, Error> {
        let tokens = x.dim(1)?;
        let cos = self.cos.narrow(0, position, tokens)?;
        let sin = self.sin.narrow(0, position, tokens)?;
        let turned = candle_nn::rotary_emb::rope(&x.unsqueeze(0)?.contiguous()?, &cos, &sin)?;
        Ok(turned.squeeze(0)?)
    }
}

impl Attention {
    pub(super) fn load(config: &Config, vb: VarBuilder, sites: &mut Sites) -> Result<Self, Error> {
        let (heads, kv_heads, head_dim) = (
            config.num_attention_heads,
            config.kv_heads(),
            config.head_dim(),
        );
        let (hidden, asked, answered) = (config.hidden_size, heads * head_dim, kv_heads * head_dim);
        Ok(Attention {
            q: LoraLinear::load(hidden, asked, vb.pp("q_proj"), sites)?,
            k: LoraLinear::load(hidden, answered, vb.pp("k_proj"), sites)?,
            v: LoraLinear::load(hidden, answered, vb.pp("v_proj"), sites)?,
            o: LoraLinear::load(asked, hidden, vb.pp("o_proj"), sites)?,
            heads,
            kv_heads,
            head_dim,
        })
    }

    /// Of layer `at`: `x` has all sequences' rows, one after the other.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        at: usize,
        rotation: &Rotation,
        turns: &mut [Turn<'_>],
    ) -> Result<Tensor, Error> {
        let batch = rows(turns);
        let q = self.q.forward(x, &batch)?;
        let k = self.k.forward(x, &batch)?;
        let v = self.v.forward(x, &batch)?;
        let mut first = 0;
        let mut attended = Vec::with_capacity(turns.len());
        for turn in turns.iter_mut() {
            let count = turn.tokens.len();
            let by_head = |x: &Tensor, heads| {
                let own = x.narrow(0, first, count)?;
                own.reshape((count, heads, self.head_dim))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let position = turn.sequence.len();
            let q = rotation.turn(&by_head(&q, self.heads)?, position)?;
            let k = rotation.turn(&by_head(&k, self.kv_heads)?, position)?;
            let v = by_head(&v, self.kv_heads)?;
            let (k, v) = turn.sequence.append(at, &k, &v)?;
            attended.push(self.attend(&q, &k, &v, position)?);
            first += count;
        }
        let attended = Tensor::cat(&attended, 0)?;
        self.o.forward(&attended, &rows(turns))
    }

    /// One sequence: `q` are the heads that ask, `[heads, tokens, dim]`, the first at `position`; `k` and `v` all
    /// that was seen, `[kv heads, seen, dim]`. The answer has a row per token.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, position: usize) -> Result<Tensor, Error> {
        let (count, seen) = (q.dim(1)?, k.dim(1)?);
        // Heads that share a key are rows of one product: neighbours, in Llama's order.
        let shared = self.heads / self.kv_heads;
        let q = q.reshape((self.kv_heads, shared * count, self.head_dim))?;
        let scores = (q.matmul(&k.transpose(1, 2)?)? / (self.head_dim as f64).sqrt())?;
        let scores = if count == 1 {
            scores
        } else {
            let mask = later(count, seen, position, q.device())?;
            let scores = scores.reshape((self.kv_heads, shared, count, seen))?;
            scores
                .broadcast_add(&mask)?
                .reshape((self.kv_heads, shared * count, seen))?
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let mixed = weights.matmul(&v.contiguous()?)?;
        let mixed = mixed
            .reshape((self.heads, count, self.head_dim))?
            .transpose(0, 1)?;
        Ok(mixed.contiguous()?.flatten_from(D::Minus2)?)
    }
}

/// Minus infinity where a token would see a later one.
fn later(count: usize, seen: usize, position: usize, device: &Device) -> Result<Tensor, Error> {
    let mask = (0..count).flat_map(|asks| {
        (0..seen).map(move |at| {
            if at > position + asks {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        })
    });
    Ok(Tensor::from_vec(
        mask.collect::<Vec<_>>(),
        (count, seen),
        device,
    )?)
}
