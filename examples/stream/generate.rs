//! The same tokens from a model in memory and from one that is streamed.
//!
//! What lives here: where a forward pass reads its weights in each case, and the comparison. What does not: the
//! arithmetic (`llama`).

use std::sync::Arc;
use std::time::Instant;

use weighbridge::source::{Checkpoint, Source};
use weighbridge::{
    AdapterModule, Error, Lease, Order, SetHandle, Stream, Weight, WeightHandle, WeightRegistry,
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

/// Where the weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In memory.
    Resident,
    /// In a file that is mapped: the system pages.
    Mapped,
    /// Streamed, with layers read ahead.
    Streamed,
    /// Streamed, with none.
    Unread,
}

impl Way {
    pub const ALL: [(&str, Way); 4] = [
        ("resident", Way::Resident),
        ("mapped", Way::Mapped),
        ("streamed", Way::Streamed),
        ("none-ahead", Way::Unread),
    ];

    pub fn of(name: &str) -> Option<Self> {
        let named = Self::ALL.iter().find(|(one, _)| *one == name);
        named.map(|(_, way)| *way)
    }

    fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(_, way)| *way == self);
        named.map_or("", |(name, _)| name)
    }
}

/// A model, published in one way.
struct Published {
    way: Way,
    registry: Arc<WeightRegistry>,
    set: SetHandle,
    model: Model,
    /// What the ledger is charged.
    bytes: u64,
}

impl Published {
    fn new(way: Way, options: &Options) -> Result<Self, String> {
        let say = |error: Error| error.to_string();
        let registry = Arc::new(WeightRegistry::builder().build().map_err(say)?);
        let open = || Checkpoint::open(&options.model).map_err(say);
        let set = match way {
            Way::Resident => registry.publish("model", open()?.declared("as it is")),
            #[cfg(unix)]
            Way::Mapped => {
                // SAFETY: nobody changes the files of a model that is in use; who runs this says so.
                let mapped = unsafe { open()?.map_files_that_nobody_changes() };
                registry.publish("model", mapped.map_err(say)?)
            }
            #[cfg(not(unix))]
            Way::Mapped => return Err("files are mapped on Unix only".to_owned()),
            Way::Streamed | Way::Unread => {
                registry.publish("model", streamed(options).map_err(say)?.0)
            }
        };
        let set = set.map_err(|failed| failed.to_string())?;
        let config = Config::read(&options.model)?;
        let model = Model::resolve(&registry, set, config).map_err(say)?;
        let bytes = registry.ledger().total();
        Ok(Published {
            way,
            registry,
            set,
            model,
            bytes,
        })
    }

    fn tokens(&self, options: &Options, wanted: usize) -> Result<(Vec<u32>, f64), Error> {
        let lease = self.registry.acquire(self.set)?;
        let prompt = &options.prompt;
        let ahead = match self.way {
            Way::Resident | Way::Mapped => {
                return tokens(&self.model, prompt, wanted, &mut Resident(lease));
            }
            Way::Streamed => options.ahead,
            Way::Unread => 0,
        };
        // The end of a token is the beginning of the next one: head and embedding are one step.
        let order = Order::ring().ahead(ahead);
        let stream = self.registry.stream(&lease, self.set, order)?;
        let ends = options.rest.then(|| stream.len() - 1);
        tokens(&self.model, prompt, wanted, &mut Streaming { stream, ends })
    }
}

/// Were the tokens the same?
pub fn compare(options: &Options, wanted: usize) -> Result<bool, String> {
    let whole = Checkpoint::open(&options.model).map_err(|error| error.to_string())?;
    let whole = whole.plan().charged_bytes();
    let ways = options.ways.iter().map(|way| Published::new(*way, options));
    let ways = ways.collect::<Result<Vec<_>, String>>()?;
    let mut speeds = vec![Vec::new(); ways.len()];
    let mut all = Vec::new();
    for _ in 0..options.rounds {
        for (way, speeds) in ways.iter().zip(&mut speeds) {
            let (ids, speed) = way
                .tokens(options, wanted)
                .map_err(|error| error.to_string())?;
            speeds.push(speed);
            all.push(ids);
        }
    }
    let same = all.windows(2).all(|pair| pair[0] == pair[1]);
    let medians: Vec<f64> = speeds.iter_mut().map(|speeds| median(speeds)).collect();
    if options.json {
        let of = |(way, speed): (&Published, &f64)| {
            format!(
                "\"{}\": {{\"bytes\": {}, \"tokens_per_second\": {speed:.3}}}",
                way.way.name(),
                way.bytes
            )
        };
        let of: Vec<String> = ways.iter().zip(&medians).map(of).collect();
        println!(
            "{{\"model_bytes\": {whole}, \"tokens\": {:?}, \"same_tokens\": {same}, {}}}",
            all[0],
            of.join(", ")
        );
    } else {
        println!("{}: {whole} bytes", options.model.display());
        println!(
            "tokens {:?}, {}",
            all[0],
            if same {
                "the same in every way"
            } else {
                "NOT THE SAME"
            }
        );
        for (way, speed) in ways.iter().zip(&medians) {
            println!(
                "{:>12}  {:>12} bytes  {speed:8.2} tokens per second, median of {}",
                way.way.name(),
                way.bytes,
                options.rounds
            );
        }
    }
    Ok(same)
}
