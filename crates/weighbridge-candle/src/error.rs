//! Every refusal of this crate.
//!
//! What lives here: [`Error`], and how it becomes one of candle's where candle calls us. What does not: the
//! registry's own refusals (`weighbridge::Error`).

use weighbridge::{Dtype, Generation, Identity, SetHandle, SetName};

/// Why a model, an adapter or a step was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry's, as it is.
    #[error(transparent)]
    Registry(#[from] weighbridge::Error),
    /// candle's, as it is.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// candle has no type for what the tensor holds.
    #[error("{tensor} is {dtype}, which candle cannot hold")]
    NoSuchDtype {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
    },
    /// Numbers that mean nothing without their scale.
    #[error("{tensor} is {dtype} with a scale, {scale}, which is not applied here")]
    Scaled {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// The tensor that has the scale.
        scale: String,
    },
    /// A matrix of an adapter holds no floats that are computed with here.
    #[error("{tensor} is {dtype}: matrices of adapters are read as F32, F16, BF16 or F64")]
    NoFloats {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
    },
    /// Numbers of one kind were asked for as the other.
    #[error(
        "{tensor} is {dtype}, and was asked for as {wanted:?}: integers are not turned into floats, nor floats into integers"
    )]
    OtherKind {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// What was asked for.
        wanted: candle_core::DType,
    },
    /// The adapter changes a module that the model does not read adapters for.
    #[error("{adapter} changes {module}, where this model reads no adapter. It does at: {sites}")]
    NoSuchSite {
        /// The adapter, and its generation if it has one.
        adapter: Box<str>,
        /// The module.
        module: String,
        /// The first of those that it reads adapters for.
        sites: String,
    },
    /// The adapter's matrices do not fit the layer.
    #[error(
        "{adapter} has A {a:?} and B {b:?} for {module}, a layer of {inputs} inputs and {outputs} outputs"
    )]
    Misfit {
        /// The adapter, and its generation if it has one.
        adapter: Box<str>,
        /// The module.
        module: Box<str>,
        /// Shape of A.
        a: Box<[usize]>,
        /// Shape of B.
        b: Box<[usize]>,
        /// Of the layer.
        inputs: usize,
        /// Of the layer.
        outputs: usize,
    },
    /// The adapter brings whole tensors in place of the base's, which this model has read already.
    #[error(
        "{adapter} replaces {tensor} of its base, which cannot be done for one request of a batch"
    )]
    Replaces {
        /// The adapter, and its generation if it has one.
        adapter: Box<str>,
        /// The base's tensor.
        tensor: String,
    },
    /// The set is no adapter.
    #[error("{set} is no adapter")]
    NoAdapter {
        /// The set.
        set: Box<str>,
    },
    /// The model was built from another version of its base than the request has leased.
    #[error(
        "the model was built from generation {built} of {base} ({built_identity}), the request has leased generation {leased} ({leased_identity}). Build the model again, or lease what it was built from"
    )]
    OtherBase {
        /// The base.
        base: SetName,
        /// What the model was built from.
        built: Generation,
        /// Its identity.
        built_identity: Box<Identity>,
        /// What the request has.
        leased: Generation,
        /// Its identity.
        leased_identity: Box<Identity>,
    },
    /// The rows of a step are not those of its requests.
    #[error("{module} was given {rows} rows, and the batch has {expected}")]
    OtherRows {
        /// The layer.
        module: String,
        /// How many rows it was given.
        rows: usize,
        /// How many the requests of the batch have.
        expected: usize,
    },
    /// A sequence or an adapter that was fitted to one model was used with another, also of the same base.
    #[error("it was fitted to another model than it is used with (their bases: {fitted}, {used})")]
    OtherModel {
        /// The base of the model that it was fitted to.
        fitted: SetHandle,
        /// The base of the model that it was used with.
        used: SetHandle,
    },
    /// The sequence would be longer than the model's positions.
    #[error("{there} tokens and {more} more are too many: the model has {positions} positions")]
    TooLong {
        /// Tokens that the sequence has.
        there: usize,
        /// Tokens that were to come.
        more: usize,
        /// What the model has.
        positions: usize,
    },
    /// A step without a token.
    #[error("a sequence was given no token")]
    NoToken,
    /// A token that the model does not know.
    #[error("there is no token {token}: the vocabulary has {vocabulary}")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// How many the model has.
        vocabulary: usize,
    },
    /// The configuration asks for what this model does not compute, or is none.
    #[error("config.json: {0}")]
    Config(String),
}

/// Where candle calls us, it wants an error of its own.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}
