//! The same tokens from a model in memory and from one that is streamed.
//!
//! What lives here: where a forward pass reads its weights in each case, and the comparison. What does not: the
//! arithmetic (`llama`).

use std::sync::Arc;
use std::time::Instant;

use weighbridge::source::{Checkpoint, Source};
use weighbridge::{
    AdapterModule, Error, Lease, Order, Stream, Weight, WeightHandle, WeightRegistry,
};

use super::llama::{Access, Config, Model};
use super::{Options, PATIENCE, streamed};

/// All of it is in memory.
struct Resident(Lease);

impl Access for Resident {
    fn weight(&self, handle: WeightHandle) -> Result<Weight<'_>, Error> {
        self.0.weight(handle)
    }

    fn lora(&self, _: usize, _: usize) -> Result<Option<AdapterModule<'_>>, Error> {
        Ok(None)
    }
}

/// A layer at a time.
struct Streaming {
    stream: Stream,
    /// The part that has embeddings and head, if these are streamed.
    ends: Option<usize>,
}

impl Access for Streaming {
    fn before_layer(&mut self, layer: usize) -> Result<(), Error> {
        self.stream.enter(layer, PATIENCE)
    }

    fn before_ends(&mut self) -> Result<(), Error> {
        match self.ends {
            Some(part) => self.stream.enter(part, PATIENCE),
            None => Ok(()),
        }
    }

    fn weight(&self, handle: WeightHandle) -> Result<Weight<'_>, Error> {
        self.stream.weight(handle)
    }

    fn lora(&self, _: usize, _: usize) -> Result<Option<AdapterModule<'_>>, Error> {
        Ok(None)
    }
}

/// Greedy; how many tokens per second, the prompt's included.
fn tokens(
    model: &Model,
    prompt: &[u32],
    wanted: usize,
    access: &mut impl Access,
) -> Result<(Vec<u32>, f64), Error> {
    let started = Instant::now();
    let mut sequence = model.sequence();
    let mut ids = Vec::new();
    let mut logits = Vec::new();
    for (at, &token) in prompt.iter().enumerate() {
        logits = model.step(&mut sequence, token, access, at + 1 == prompt.len())?;
    }
    loop {
        let best = logits
            .iter()
            .enumerate()
            .max_by(|(_, a), (_, b)| a.total_cmp(b));
        ids.push(best.map_or(0, |(id, _)| id as u32));
        if ids.len() == wanted {
            let speed = sequence.len() as f64 / started.elapsed().as_secs_f64();
            return Ok((ids, speed));
        }
        logits = model.step(&mut sequence, ids[ids.len() - 1], access, true)?;
    }
}

fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Were the tokens the same?
pub fn compare(options: &Options, wanted: usize) -> Result<bool, String> {
    let say = |error: Error| error.to_string();
    let config = Config::read(&options.model)?;
    let registry = Arc::new(WeightRegistry::builder().build().map_err(say)?);
    let checkpoint = Checkpoint::open(&options.model)
        .map_err(say)?
        .declared("as it is");
    let resident = registry.publish("resident", checkpoint);
    let resident = resident.map_err(|failed| failed.to_string())?;
    let (source, whole) = streamed(options).map_err(say)?;
    let budget = source.plan().charged_bytes();
    let set = registry.publish("streamed", source);
    let set = set.map_err(|failed| failed.to_string())?;
    let [resident_model, streamed_model] =
        [resident, set].map(|set| Model::resolve(&registry, set, config.clone()));
    let (resident_model, streamed_model) =
        (resident_model.map_err(say)?, streamed_model.map_err(say)?);

    let run = |ahead: usize| -> Result<(Vec<u32>, f64), Error> {
        let lease = registry.acquire(set)?;
        let parts = registry.stream(&lease, set, Order::unknown())?.len();
        let ends = options.rest.then(|| parts - 1);
        // Head and embedding are one step: the end of a token is the beginning of the next.
        let order = Order::ring().ahead(ahead);
        let stream = registry.stream(&lease, set, order)?;
        tokens(
            &streamed_model,
            &options.prompt,
            wanted,
            &mut Streaming { stream, ends },
        )
    };
    let ways = ["resident", "streamed", "streamed, none ahead"];
    let mut speeds: [Vec<f64>; 3] = Default::default();
    let mut all = Vec::new();
    for _ in 0..options.rounds {
        for (way, speeds) in speeds.iter_mut().enumerate() {
            let answer = match way {
                0 => {
                    let lease = registry.acquire(resident).map_err(say)?;
                    tokens(
                        &resident_model,
                        &options.prompt,
                        wanted,
                        &mut Resident(lease),
                    )
                }
                1 => run(options.ahead),
                _ => run(0),
            };
            let (ids, speed) = answer.map_err(say)?;
            speeds.push(speed);
            all.push(ids);
        }
    }
    let same = all.windows(2).all(|pair| pair[0] == pair[1]);
    let [fast, ahead, none] = speeds.map(|mut speeds| median(&mut speeds));
    if options.json {
        println!(
            "{{\"model_bytes\": {whole}, \"budget_bytes\": {budget}, \"tokens\": {:?}, \"same_tokens\": {same}, \
             \"resident_tokens_per_second\": {fast:.3}, \"streamed_tokens_per_second\": {ahead:.3}, \
             \"none_ahead_tokens_per_second\": {none:.3}}}",
            all[0]
        );
    } else {
        println!(
            "{}: {whole} bytes, streamed in {budget}",
            options.model.display()
        );
        println!(
            "tokens {:?}, {}",
            all[0],
            if same {
                "the same in every way"
            } else {
                "NOT THE SAME"
            }
        );
        for (way, speed) in ways.iter().zip([fast, ahead, none]) {
            println!(
                "{way:>22}  {speed:8.2} tokens per second, median of {}",
                options.rounds
            );
        }
    }
    Ok(same)
}
