//! One request: a lease from prefill to the last token, and the answer computed through it.
//!
//! What lives here: [`Request`], greedy decoding. What does not: who asks (`main`), what the answer
//! should have been (`oracle`).

use weighbridge::{
    AdapterModule, Error, Identity, Lease, SetHandle, Weight, WeightHandle, WeightRegistry,
};

use crate::llama::{Access, MODULES, Model, module_name};

/// What was answered, and with what.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The new tokens; the last one is EOS if it was reached.
    pub ids: Vec<u32>,
    /// The logits after the prompt's last token.
    pub logits: Vec<f32>,
    /// The adapter's identity as the request's lease reports it; `None` for the base alone.
    pub adapter: Option<Identity>,
    /// The adapter's generation, for people.
    pub generation: Option<u64>,
}

/// A request's weights: one lease of the base and its adapter, as of one instant.
pub struct Request {
    lease: Lease,
    adapter: Option<SetHandle>,
    /// Which of the adapter's modules changes which of the model's, by layer and module.
    modules: Vec<Option<usize>>,
}

impl Request {
    /// Takes the lease.
    pub fn admit(
        registry: &WeightRegistry,
        base: SetHandle,
        adapter: Option<SetHandle>,
        model: &Model,
    ) -> Result<Self, Error> {
        let lease = match adapter {
            Some(adapter) => registry.acquire([base, adapter])?,
            None => registry.acquire(base)?,
        };
        Self::over(lease, adapter, model)
    }

    /// Serves from a lease that was taken elsewhere.
    pub fn over(lease: Lease, adapter: Option<SetHandle>, model: &Model) -> Result<Self, Error> {
        let view = match adapter {
            Some(adapter) => lease.set(adapter)?.adapter(),
            None => None,
        };
        let all = (0..model.config.layers)
            .flat_map(|layer| (0..MODULES.len()).map(move |module| module_name(layer, module)));
        let modules = all
            .map(|name| view.and_then(|view| view.position(&name)))
            .collect();
        Ok(Request {
            lease,
            adapter,
            modules,
        })
    }

    /// Identity and generation of the leased adapter.
    pub fn provenance(&self) -> Result<(Option<Identity>, Option<u64>), Error> {
        let Some(adapter) = self.adapter else {
            return Ok((None, None));
        };
        let set = self.lease.set(adapter)?;
        Ok((
            Some(set.identity().clone()),
            Some(set.generation().number()),
        ))
    }
}

impl Access for Request {
    fn weight(&self, handle: WeightHandle) -> Result<Weight<'_>, Error> {
        self.lease.weight(handle)
    }

    fn lora(&self, layer: usize, module: usize) -> Result<Option<AdapterModule<'_>>, Error> {
        let (Some(adapter), Some(index)) =
            (self.adapter, self.modules[layer * MODULES.len() + module])
        else {
            return Ok(None);
        };
        match self.lease.set(adapter)?.adapter() {
            Some(view) => view.module(index).map(Some),
            None => Ok(None),
        }
    }
}

/// Greedy decoding, until EOS or `max_new` tokens.
pub fn answer(
    model: &Model,
    access: &mut impl Access,
    prompt: &[u32],
    max_new: usize,
) -> Result<(Vec<u32>, Vec<f32>), Error> {
    let mut sequence = model.sequence();
    let mut logits = Vec::new();
    for (at, &token) in prompt.iter().enumerate() {
        logits = model.step(&mut sequence, token, access, at + 1 == prompt.len())?;
    }
    let first = logits.clone();
    let mut ids = Vec::new();
    while ids.len() < max_new && sequence.len() < model.config.max_positions {
        let next = argmax(&logits);
        ids.push(next);
        if model.config.eos.contains(&next) || ids.len() == max_new {
            break;
        }
        logits = model.step(&mut sequence, next, access, true)?;
    }
    Ok((ids, first))
}

/// A whole request: admit, compute, report with what.
pub fn serve(
    registry: &WeightRegistry,
    model: &Model,
    base: SetHandle,
    adapter: Option<SetHandle>,
    prompt: &[u32],
    max_new: usize,
) -> Result<Answer, Error> {
    let mut request = Request::admit(registry, base, adapter, model)?;
    let (adapter, generation) = request.provenance()?;
    let (ids, logits) = answer(model, &mut request, prompt, max_new)?;
    Ok(Answer {
        ids,
        logits,
        adapter,
        generation,
    })
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(at, _)| at as u32)
}
