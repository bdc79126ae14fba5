//! The tiny model that is built in, so that a server can be tried with nothing to download.
//!
//! What lives here: [`BuiltIn`]: its files, and a directory that they are in while the server runs. What does not: where
//! they come from (fixtures/README.md).

use std::path::Path;

use tempfile::TempDir;

use crate::error::StartError;
use crate::options::Options;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../fixtures/", $path)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "tiny-llama/config.json",
    "tiny-llama/model.safetensors",
    "tiny-llama/tokenizer.json",
    "adapters/pirate-v1/adapter_config.json",
    "adapters/pirate-v1/adapter_model.safetensors",
    "adapters/pirate-v2/adapter_config.json",
    "adapters/pirate-v2/adapter_model.safetensors",
    "adapters/ranked/adapter_config.json",
    "adapters/ranked/adapter_model.safetensors",
    "adapters/robot/adapter_config.json",
    "adapters/robot/adapter_model.safetensors",
    "adapters/shout/adapter_config.json",
    "adapters/shout/adapter_model.safetensors",
];

/// Goes with the server: its adapters are read again when memory was short.
pub(crate) struct BuiltIn(TempDir);

impl BuiltIn {
    /// In a new directory.
    pub(crate) fn unpack() -> Result<Self, StartError> {
        let place = TempDir::with_prefix("weighbridge-").map_err(StartError::System)?;
        for (path, bytes) in FILES {
            let path = place.path().join(path);
            let parent = path.parent().unwrap_or(Path::new("."));
            let made = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes));
            made.map_err(|source| StartError::File { path, source })?;
        }
        Ok(BuiltIn(place))
    }

    /// What the options say, with this model: two adapters are loaded, and the others may be.
    pub(crate) fn of(&self, options: &Options) -> Options {
        let adapters = self.0.path().join("adapters");
        let mut options = Options {
            model: Some(self.0.path().join("tiny-llama")),
            ..options.clone()
        };
        let own = [("pirate", "pirate-v1"), ("robot", "robot")];
        let own = own.map(|(name, directory)| (name.to_owned(), adapters.join(directory)));
        options.adapters.splice(0..0, own);
        options.roots.push(adapters);
        options
    }
}
