//! A small Llama: the forward pass, one token at a time, in f32.
//!
//! What lives here: the arithmetic, and from which weight each step reads. What does not: where the
//! weights come from; that is the [`Access`] given to each step (a request's lease, in `worker`).
//!
//! LoRA is applied unmerged: `y = W x + scaling * B (A x)`.

use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::Value;
use weighbridge::{AdapterModule, Dtype, Error, SetHandle, Weight, WeightHandle, WeightRegistry};

/// What the forward pass needs of `config.json`.
#[derive(Debug, Clone)]
pub struct Config {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope_theta: f64,
    pub rms_eps: f32,
    pub max_positions: usize,
    pub eos: Vec<u32>,
}

impl Config {
    /// Reads and checks a model's configuration.
    pub fn read(model: &Path) -> Result<Self, String> {
        let path = model.join("config.json");
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let json: Value =
            serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let wrong = |what: &str| format!("{}: {what}", path.display());
        if json["model_type"] != "llama" {
            return Err(wrong("this example computes model_type \"llama\" only"));
        }
        let off = [Value::Null, Value::Bool(false)];
        for option in ["rope_scaling", "attention_bias", "mlp_bias"] {
            if !off.contains(&json[option]) {
                return Err(wrong(&format!(
                    "{option} = {} is not computed here",
                    json[option]
                )));
            }
        }
        let number = |name: &str| {
            json[name]
                .as_u64()
                .map(|n| n as usize)
                .ok_or_else(|| wrong(&format!("no {name}")))
        };
        let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
        Ok(Config {
            layers: number("num_hidden_layers")?,
            heads,
            kv_heads: number("num_key_value_heads").unwrap_or(heads),
            head_dim: number("head_dim").unwrap_or(hidden / heads),
            rope_theta: json["rope_theta"].as_f64().unwrap_or(10_000.0),
            rms_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6) as f32,
            max_positions: number("max_position_embeddings")?,
            eos: match &json["eos_token_id"] {
                Value::Array(ids) => ids
                    .iter()
                    .filter_map(Value::as_u64)
                    .map(|id| id as u32)
                    .collect(),
                id => id.as_u64().map(|id| id as u32).into_iter().collect(),
            },
        })
    }
}

/// The seven linear modules of a layer, in the order of their indices.
pub const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// Where a forward pass gets its weights from.
pub trait Access {
    /// Called before each layer of each step.
    fn before_layer(&mut self, _layer: usize) -> Result<(), Error> {
        Ok(())
    }

    /// Called before what comes ahead of the layers, and before what comes after them.
    fn before_ends(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// A tensor of the base.
    fn weight(&self, handle: WeightHandle) -> Result<Weight<'_>, Error>;

    /// What the request's adapter does to module `MODULES[module]` of `layer`.
    fn lora(&self, layer: usize, module: usize) -> Result<Option<AdapterModule<'_>>, Error>;
}

struct Layer {
    input_norm: WeightHandle,
    post_norm: WeightHandle,
    linear: [WeightHandle; 7],
}

/// A model's weights by handle: resolved once, good over every swap.
pub struct Model {
    pub config: Config,
    embedding: WeightHandle,
    norm: WeightHandle,
    head: WeightHandle,
    layers: Vec<Layer>,
}

/// The full name of a layer's module.
pub fn module_name(layer: usize, module: usize) -> String {
    format!("model.layers.{layer}.{}", MODULES[module])
}

impl Model {
    /// Resolves the names of a published base.
    pub fn resolve(
        registry: &WeightRegistry,
        base: SetHandle,
        config: Config,
    ) -> Result<Self, Error> {
        let handle = |name: &str| registry.weight_handle(base, name);
        let layers = (0..config.layers).map(|layer| {
            let norm = |which| handle(&format!("model.layers.{layer}.{which}_layernorm.weight"));
            let mut linear = Vec::with_capacity(MODULES.len());
            for module in 0..MODULES.len() {
                linear.push(handle(&format!("{}.weight", module_name(layer, module)))?);
            }
            let (input_norm, post_norm) = (norm("input")?, norm("post_attention")?);
            let linear = linear.try_into().expect("seven modules");
            Ok(Layer {
                input_norm,
                post_norm,
                linear,
            })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        Ok(Model {
            embedding: handle("model.embed_tokens.weight")?,
            norm: handle("model.norm.weight")?,
            head: handle("lm_head.weight")?,
            layers,
            config,
        })
    }

    /// An empty sequence.
    pub fn sequence(&self) -> Sequence {
        Sequence {
            keys: vec![Vec::new(); self.config.layers],
            values: vec![Vec::new(); self.config.layers],
            length: 0,
        }
    }

    /// Appends `token`; the logits after it, if they are wanted.
    pub fn step(
        &self,
        sequence: &mut Sequence,
        token: u32,
        access: &mut impl Access,
        want_logits: bool,
    ) -> Result<Vec<f32>, Error> {
        let Config {
            heads,
            kv_heads,
            head_dim,
            rms_eps,
            ..
        } = self.config;
        let position = sequence.length;
        sequence.length += 1;
        access.before_ends()?;
        let mut x = row(access.weight(self.embedding)?, token as usize);
        for (index, layer) in self.layers.iter().enumerate() {
            access.before_layer(index)?;
            let access = &*access;
            let linear = |module: usize, x: &[f32]| -> Result<Vec<f32>, Error> {
                let y = matvec(access.weight(layer.linear[module])?, x);
                Ok(match access.lora(index, module)? {
                    Some(lora) => add_lora(y, &lora, x),
                    None => y,
                })
            };
            let normed = rms_norm(&x, access.weight(layer.input_norm)?, rms_eps);
            let (mut q, mut k) = (linear(Q, &normed)?, linear(K, &normed)?);
            rotate(&mut q, head_dim, position, self.config.rope_theta);
            rotate(&mut k, head_dim, position, self.config.rope_theta);
            sequence.keys[index].extend(k);
            sequence.values[index].extend(linear(V, &normed)?);
            let (keys, values) = (&sequence.keys[index], &sequence.values[index]);
            let attended = attend(&q, keys, values, heads, kv_heads, head_dim);
            add(&mut x, &linear(O, &attended)?);
            let normed = rms_norm(&x, access.weight(layer.post_norm)?, rms_eps);
            let mut gate = linear(GATE, &normed)?;
            for (gate, up) in gate.iter_mut().zip(linear(UP, &normed)?) {
                *gate *= up / (1.0 + (-*gate).exp());
            }
            add(&mut x, &linear(DOWN, &gate)?);
        }
        if !want_logits {
            return Ok(Vec::new());
        }
        access.before_ends()?;
        let normed = rms_norm(&x, access.weight(self.norm)?, rms_eps);
        Ok(matvec(access.weight(self.head)?, &normed))
    }
}

/// What was computed so far for one request.
pub struct Sequence {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    length: usize,
}

impl Sequence {
    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.length
    }
}

/// Runs `f` with each row of a matrix in f32.
fn for_rows(weight: Weight<'_>, columns: usize, mut f: impl FnMut(usize, &[f32])) {
    let bytes = weight.bytes();
    let mut buffer = vec![0.0; columns];
    match weight.dtype() {
        Dtype::F32 => {
            let all: &[f32] = bytemuck::cast_slice(bytes);
            all.chunks_exact(columns)
                .enumerate()
                .for_each(|(at, row)| f(at, row));
        }
        Dtype::F16 => {
            let all: &[f16] = bytemuck::cast_slice(bytes);
            for (at, row) in all.chunks_exact(columns).enumerate() {
                row.convert_to_f32_slice(&mut buffer);
                f(at, &buffer);
            }
        }
        Dtype::BF16 => {
            let all: &[bf16] = bytemuck::cast_slice(bytes);
            for (at, row) in all.chunks_exact(columns).enumerate() {
                row.convert_to_f32_slice(&mut buffer);
                f(at, &buffer);
            }
        }
        other => panic!(
            "{}: this example computes with F32, F16 and BF16, not {other}",
            weight.name()
        ),
    }
}

fn row(weight: Weight<'_>, wanted: usize) -> Vec<f32> {
    let columns = weight.shape()[1];
    let width = weight.bytes().len() / weight.shape()[0];
    let bytes = &weight.bytes()[wanted * width..][..width];
    let mut out = vec![0.0; columns];
    match weight.dtype() {
        Dtype::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
        Dtype::F16 => {
            bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(&mut out);
        }
        Dtype::BF16 => {
            bytemuck::cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(&mut out);
        }
        other => panic!(
            "{}: this example computes with F32, F16 and BF16, not {other}",
            weight.name()
        ),
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let (a8, b8) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a8
        .remainder()
        .iter()
        .zip(b8.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a8.zip(b8) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

fn matvec(weight: Weight<'_>, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; weight.shape()[0]];
    for_rows(weight, x.len(), |at, row| y[at] = dot(row, x));
    y
}

fn add_lora(mut y: Vec<f32>, lora: &AdapterModule<'_>, x: &[f32]) -> Vec<f32> {
    let inner = matvec(lora.a, x);
    for (y, delta) in y.iter_mut().zip(matvec(lora.b, &inner)) {
        *y += lora.scaling as f32 * delta;
    }
    y
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn rms_norm(x: &[f32], weight: Weight<'_>, eps: f32) -> Vec<f32> {
    let mean = dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    let mut out = vec![0.0; x.len()];
    for_rows(weight, x.len(), |_, gain| {
        out.iter_mut()
            .zip(x)
            .zip(gain)
            .for_each(|((out, x), gain)| *out = x * scale * gain);
    });
    out
}

/// Rotary embedding, in halves as Hugging Face stores them.
fn rotate(x: &mut [f32], head_dim: usize, position: usize, theta: f64) {
    let half = head_dim / 2;
    for head in x.chunks_exact_mut(head_dim) {
        for at in 0..half {
            let frequency = theta.powf(-2.0 * at as f64 / head_dim as f64);
            let (sin, cos) = ((position as f64 * frequency) as f32).sin_cos();
            let (a, b) = (head[at], head[at + half]);
            head[at] = a * cos - b * sin;
            head[at + half] = b * cos + a * sin;
        }
    }
}

fn attend(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    let width = kv_heads * head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut out = vec![0.0; heads * head_dim];
    for (head, q) in q.chunks_exact(head_dim).enumerate() {
        let from = head / (heads / kv_heads) * head_dim;
        let scores = keys
            .chunks_exact(width)
            .map(|k| dot(q, &k[from..][..head_dim]) * scale);
        let mut scores: Vec<f32> = scores.collect();
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores
            .iter_mut()
            .for_each(|score| *score = (*score - highest).exp());
        let total: f32 = scores.iter().sum();
        let out = &mut out[head * head_dim..][..head_dim];
        for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
            let share = score / total;
            out.iter_mut()
                .zip(&value[from..][..head_dim])
                .for_each(|(o, v)| *o += share * v);
        }
    }
    out
}
