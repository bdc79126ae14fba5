//! A Llama whose linear layers read adapters.
//!
//! candle's own Llama builds from a registry, too (see [`RegistryBackend`]); it has no place where an adapter
//! could be read. This one has: every linear layer of it is a [`LoraLinear`]. A step takes any number of sequences,
//! each with tokens of its own number, position and adapter: prompts and single tokens together.
//!
//! What lives here: [`Llama`] and one step of it. What does not: its configuration (`config`), a sequence and
//! what it has seen (`sequence`), attention (`attention`), how tokens are chosen and whose turn it is.

mod attention;
mod config;
mod sequence;

use candle_core::{Device, Tensor};
use candle_nn::{Embedding, Module, RmsNorm, VarBuilder};
use weighbridge::{Lease, SetHandle};

use self::attention::{Attention, Rotation};
pub use self::config::Config;
pub use self::sequence::Sequence;
use crate::{Batch, Error, Fitting, LoraLinear, RegistryBackend, Sites};

/// See the [module](self).
///
/// ```
/// use candle_core::Device;
/// use weighbridge::{WeightRegistry, source::{Checkpoint, PeftAdapter}};
/// use weighbridge_candle::{RegistryBackend, llama::{Config, Llama, Turn}};
///
/// # let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
/// # let directory = format!("{fixtures}/tiny-llama");
/// let registry = WeightRegistry::builder().build()?;
/// let base = registry.publish("llama", Checkpoint::open(&directory)?)?;
/// let pirate = PeftAdapter::open(format!("{fixtures}/adapters/pirate-v1"))?.on(base);
/// let pirate = registry.publish("pirate", pirate)?;
///
/// let backend = RegistryBackend::new(registry.acquire(base)?, base)?;
/// let config = Config::from_json(&std::fs::read(format!("{directory}/config.json"))?)?;
/// let model = Llama::load(&backend, config, &Device::Cpu)?; // once
///
/// let mut one = model.sequence(registry.acquire([base, pirate])?, Some(pirate))?;
/// let mut other = model.sequence(registry.acquire(base)?, None)?;
/// let ids = |text: &str| [128].into_iter().chain(text.bytes().map(u32::from)).collect::<Vec<_>>();
/// let logits = model.step(&mut [
///     Turn { sequence: &mut one, tokens: &ids("A cow says") },
///     Turn { sequence: &mut other, tokens: &ids("Two plus three is") },
/// ])?;
/// assert_eq!(logits.dims(), [2, 130]); // after each one's last token
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Llama {
    config: Config,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: LoraLinear,
    rotation: Rotation,
    sites: Sites,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    before_attention: RmsNorm,
    attention: Attention,
    before_mlp: RmsNorm,
    gate: LoraLinear,
    up: LoraLinear,
    down: LoraLinear,
}

/// What one sequence does in a step: it sees these tokens next.
#[derive(Debug)]
pub struct Turn<'a> {
    /// Whose turn it is.
    pub sequence: &'a mut Sequence,
    /// At least one.
    pub tokens: &'a [u32],
}

impl Llama {
    /// From what `backend` has leased, in f32 on `device`.
    ///
    /// # Errors
    /// candle's, if a tensor is not there or has another shape.
    pub fn load(backend: &RegistryBackend, config: Config, device: &Device) -> Result<Self, Error> {
        let vb = backend.var_builder(candle_core::DType::F32, device);
        let mut sites = backend.sites()?;
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let embedding = candle_nn::embedding(vocabulary, hidden, vb.pp("model.embed_tokens"))?;
        let layers = (0..config.num_hidden_layers)
            .map(|at| Layer::load(&config, vb.pp(format!("model.layers.{at}")), &mut sites))
            .collect::<Result<_, _>>()?;
        let norm = candle_nn::rms_norm(hidden, config.rms_norm_eps, vb.pp("model.norm"))?;
        // Of a checkpoint that ties them this is the embedding's own tensor: the registry knows.
        let head = LoraLinear::load(hidden, vocabulary, vb.pp("lm_head"), &mut sites)?;
        let rotation = Rotation::new(&config, device)?;
        Ok(Llama {
            config,
            embedding,
            layers,
            norm,
            head,
            rotation,
            sites,
            device: device.clone(),
        })
    }

    /// What it was built by.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it reads adapters, and what it was built from.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// A sequence of the request that has `lease`, under `adapter`.
    ///
    /// # Errors
    /// As [`Fitting::new`].
    pub fn sequence(&self, lease: Lease, adapter: Option<SetHandle>) -> Result<Sequence, Error> {
        let fitting = Fitting::new(lease, adapter, &self.sites)?;
        Ok(Sequence::new(fitting, &self.config))
    }

    /// One step of all these sequences: each has seen its tokens then. The answer has a row per sequence: the
    /// logits after its last token, in f32.
    ///
    /// # Errors
    /// [`Error::NoToken`], [`Error::NoSuchToken`], [`Error::TooLong`], [`Error::OtherModel`]: no sequence has seen
    /// anything then. candle's, the registry's: the sequences are of no use any more then, and refuse.
    pub fn step(&self, turns: &mut [Turn<'_>]) -> Result<Tensor, Error> {
        let mut tokens = Vec::new();
        for turn in turns.iter() {
            self.check(turn)?;
            tokens.extend_from_slice(turn.tokens);
        }
        let count = tokens.len();
        let mut x = self
            .embedding
            .forward(&Tensor::from_vec(tokens, count, &self.device)?)?;
        // A step that ends halfway leaves some layers' caches longer than others.
        turns
            .iter_mut()
            .for_each(|turn| turn.sequence.begin(turn.tokens.len()));
        for (at, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, at, &self.rotation, turns)?;
        }
        let last = turns.iter().scan(0, |end, turn| {
            *end += turn.tokens.len();
            Some(*end as u32 - 1)
        });
        let last = Tensor::from_vec(last.collect::<Vec<u32>>(), turns.len(), &self.device)?;
        let x = self.norm.forward(&x.index_select(&last, 0)?)?;
        let batch = turns.iter().fold(Batch::new(), |batch, turn| {
            batch.rows(1, turn.sequence.fitting())
        });
        let logits = self.head.forward(&x, &batch)?;
        turns.iter_mut().for_each(|turn| turn.sequence.end());
        Ok(logits)
    }

    fn check(&self, turn: &Turn<'_>) -> Result<(), Error> {
        let (sequence, tokens) = (&turn.sequence, turn.tokens);
        sequence.fitting().check(&self.sites)?;
        sequence.check_whole()?;
        if tokens.is_empty() {
            return Err(Error::NoToken);
        }
        let (vocabulary, positions) = (self.config.vocab_size, self.config.max_position_embeddings);
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::NoSuchToken { token, vocabulary });
        }
        if tokens.len() > positions.saturating_sub(sequence.len()) {
            return Err(Error::TooLong {
                there: sequence.len(),
                more: tokens.len(),
                positions,
            });
        }
        Ok(())
    }
}

impl Layer {
    fn load(config: &Config, vb: VarBuilder, sites: &mut Sites) -> Result<Self, Error> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| candle_nn::rms_norm(hidden, config.rms_norm_eps, vb.pp(name));
        Ok(Layer {
            before_attention: norm("input_layernorm")?,
            attention: Attention::load(config, vb.pp("self_attn"), sites)?,
            before_mlp: norm("post_attention_layernorm")?,
            gate: LoraLinear::load(hidden, inner, vb.pp("mlp.gate_proj"), sites)?,
            up: LoraLinear::load(hidden, inner, vb.pp("mlp.up_proj"), sites)?,
            down: LoraLinear::load(inner, hidden, vb.pp("mlp.down_proj"), sites)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        at: usize,
        rotation: &Rotation,
        turns: &mut [Turn<'_>],
    ) -> Result<Tensor, Error> {
        let attended = self.before_attention.forward(x)?;
        let x = (x + self.attention.forward(&attended, at, rotation, turns)?)?;
        let batch = rows(turns);
        let normed = self.before_mlp.forward(&x)?;
        let gate = self.gate.forward(&normed, &batch)?.silu()?;
        let inner = (gate * self.up.forward(&normed, &batch)?)?;
        Ok((x + self.down.forward(&inner, &batch)?)?)
    }
}

/// Each sequence's tokens are rows of its own.
fn rows<'a>(turns: &'a [Turn<'_>]) -> Batch<'a> {
    turns.iter().fold(Batch::new(), |batch, turn| {
        batch.rows(turn.tokens.len(), turn.sequence.fitting())
    })
}
