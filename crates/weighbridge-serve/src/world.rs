//! What all of a server shares.
//!
//! What lives here: [`World`]: the registry, the model that was built from it, the tokenizer. What does not: who
//! changes adapters (`adapters`), who computes (`engine`), who talks (`http`).

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use tokenizers::Tokenizer;
use weighbridge::ledger::Charge;
use weighbridge::source::Checkpoint;
use weighbridge::{Account, SetHandle, WeightRegistry};
use weighbridge_candle::RegistryBackend;
use weighbridge_candle::llama::{Config, Llama};

use crate::error::StartError;
use crate::options::Options;

pub(crate) struct World {
    pub(crate) registry: Arc<WeightRegistry>,
    pub(crate) base: SetHandle,
    pub(crate) name: String,
    pub(crate) model: Llama,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// What is not the registry's memory, in accounts of its own, so that it is seen.
    _copies: [Charge; 2],
}

impl World {
    pub(crate) fn open(options: &Options) -> Result<Self, StartError> {
        let directory = options.model.as_ref().ok_or_else(|| StartError::Option {
            option: "--model",
            reason: "there is none".into(),
        })?;
        let name = name(options, directory)?;
        let weights = |source| StartError::Weights {
            what: directory.display().to_string(),
            source: Box::new(source),
        };
        let model_error = |source| StartError::Model {
            path: directory.clone(),
            source: Box::new(source),
        };
        let config = config(directory, model_error)?;
        let tokenizer = tokenizer(&directory.join("tokenizer.json"), &config)?;

        let mut builder = WeightRegistry::builder();
        if let Some(limit) = options.limit {
            builder = builder.limit_bytes(limit);
        }
        let registry = Arc::new(builder.build().map_err(weights)?);
        let checkpoint = Checkpoint::open(directory).map_err(weights)?;
        let base = registry
            .publish(name.as_str(), checkpoint)
            .map_err(|error| weights(error.into_parts().0))?;
        let lease = registry.acquire_as("model", base).map_err(weights)?;
        let backend = RegistryBackend::new(lease, base).map_err(model_error)?;
        let model = Llama::load(&backend, config, &Device::Cpu).map_err(model_error)?;
        let longest = model.config().max_position_embeddings as u64;
        let caches = (options.running as u64)
            .checked_mul(longest)
            .and_then(|tokens| tokens.checked_mul(model.config().cache_bytes_per_token()))
            .ok_or_else(|| StartError::Option {
                option: "--running",
                reason: "no machine has room for so many".into(),
            })?;
        let reserve = |what, bytes| {
            let account = Account::foreign(what);
            registry.reserve_in(&account, bytes).map_err(weights)
        };
        let copies = [
            reserve("candle", backend.copied_bytes())?,
            reserve("kv-caches", caches)?,
        ];
        Ok(World {
            registry,
            base,
            name,
            model,
            tokenizer: Arc::new(tokenizer),
            created: now(),
            _copies: copies,
        })
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn name(options: &Options, directory: &Path) -> Result<String, StartError> {
    if let Some(name) = &options.name {
        return Ok(name.clone());
    }
    let real = directory
        .canonicalize()
        .map_err(|source| StartError::File {
            path: directory.to_owned(),
            source,
        })?;
    let last = real.file_name().and_then(|name| name.to_str());
    last.map(str::to_owned).ok_or_else(|| StartError::Option {
        option: "--name",
        reason: "the model's directory has no name that is text; give one".into(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|source| StartError::File {
        path: path.to_owned(),
        source,
    })
}

fn config(
    directory: &Path,
    wrong: impl Fn(weighbridge_candle::Error) -> StartError,
) -> Result<Config, StartError> {
    let config = read(&directory.join("config.json"))?;
    let mut config = Config::from_json(&config).map_err(&wrong)?;
    // Not every model has one.
    let generation = directory.join("generation_config.json");
    if generation.exists() {
        config.also_ends(&read(&generation)?).map_err(&wrong)?;
    }
    Ok(config)
}

fn tokenizer(path: &Path, config: &Config) -> Result<Tokenizer, StartError> {
    let wrong = |reason: String| StartError::Tokenizer {
        path: path.to_owned(),
        reason,
    };
    let mut tokenizer =
        Tokenizer::from_bytes(read(path)?).map_err(|error| wrong(error.to_string()))?;
    // What a training run left in the file: a prompt must not be cut or filled up for it.
    tokenizer
        .with_padding(None)
        .with_truncation(None)
        .map_err(|error| wrong(error.to_string()))?;
    let (has, may) = (tokenizer.get_vocab_size(true), config.vocab_size);
    if has > may {
        return Err(wrong(format!("it has {has} tokens, and the model {may}")));
    }
    Ok(tokenizer)
}
