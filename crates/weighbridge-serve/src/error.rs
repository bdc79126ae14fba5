//! Why a server did not start.
//!
//! What lives here: [`StartError`]. What does not: what a request is answered with (`http::refusal`).

use std::net::SocketAddr;
use std::path::PathBuf;

/// See the variants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A file of the model cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The registry refuses the checkpoint or an adapter.
    #[error("{what}: {source}")]
    Weights {
        /// Which.
        what: String,
        /// Why.
        source: Box<weighbridge::Error>,
    },
    /// The model cannot be built of it.
    #[error("{}: {source}", path.display())]
    Model {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: Box<weighbridge_candle::Error>,
    },
    /// The tokenizer cannot be read, or is another model's.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An option that makes no sense.
    #[error("{option}: {reason}")]
    Option {
        /// Which.
        option: &'static str,
        /// Why.
        reason: String,
    },
    /// The address cannot be had.
    #[error("{address}: {source}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system gives no thread, or no runtime.
    #[error("cannot start: {0}")]
    System(std::io::Error),
}
