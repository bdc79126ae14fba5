//! A sequence, and what it has seen.
//!
//! What lives here: [`Sequence`]: the request's fitting and its keys and values, which belong together: what was
//! computed under one generation is never continued under another. What does not: how they are computed
//! (`attention`).

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;

use super::config::Config;
use crate::{Error, Fitting};

/// One request's sequence: made by [`Llama::sequence`](super::Llama::sequence). Its lease ends when it is dropped.
#[derive(Debug)]
pub struct Sequence {
    fitting: Fitting,
    caches: Vec<KvCache>,
    len: usize,
    /// Tokens of a step that has begun and not ended.
    coming: usize,
}

/// The first piece of memory for keys and values, in tokens. It grows by as much.
const PIECE: usize = 64;

impl Sequence {
    pub(super) fn new(fitting: Fitting, config: &Config) -> Self {
        let piece = PIECE.min(config.max_position_embeddings);
        Sequence {
            fitting,
            // Dimension 1 of `[kv heads, tokens, head dim]`.
            caches: vec![KvCache::new(1, piece); config.num_hidden_layers],
            len: 0,
            coming: 0,
        }
    }

    /// What it runs with: its lease and its adapter.
    pub fn fitting(&self) -> &Fitting {
        &self.fitting
    }

    /// How many tokens it has seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None so far?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn begin(&mut self, tokens: usize) {
        self.coming = tokens;
    }

    pub(super) fn end(&mut self) {
        self.len += std::mem::take(&mut self.coming);
    }

    /// Did every step that began end?
    pub(super) fn check_whole(&self) -> Result<(), Error> {
        if self.coming > 0 {
            let why = "a step of this sequence failed halfway: begin it anew";
            return Err(candle_core::Error::msg(why).into());
        }
        Ok(())
    }

    /// Keys and values of a layer, these included.
    pub(super) fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor), Error> {
        Ok(self.caches[layer].append(k, v)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sites;
    use weighbridge::source::InMemory;
    use weighbridge::{Dtype, WeightRegistry};

    #[test]
    fn a_sequence_whose_step_did_not_end_refuses() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/tiny-llama/config.json"
        );
        let config = Config::from_json(&std::fs::read(file).unwrap()).unwrap();
        let registry = WeightRegistry::builder().build().unwrap();
        let tensor = InMemory::new().tensor("w", Dtype::U8, [1], [0]).unwrap();
        let set = registry.publish("s", tensor).unwrap();
        let lease = registry.acquire(set).unwrap();
        let sites = Sites::of(lease.set(set).unwrap());
        let fitting = Fitting::new(lease.clone(), None, &sites).unwrap();
        let mut sequence = Sequence::new(fitting, &config);
        sequence.begin(2);
        let refused = sequence.check_whole().unwrap_err();
        assert!(refused.to_string().contains("halfway"), "{refused}");
        sequence.end();
        sequence.check_whole().unwrap();
        assert_eq!(sequence.len(), 2);
    }
}
