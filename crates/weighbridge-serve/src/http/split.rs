//! From a prompt's text to tokens.
//!
//! What lives here: [`Splitters`]: how many are split at a time, and which are too long to be. What does not: prompts
//! that are tokens already (`completions`), text from tokens (`text`).

use std::sync::Arc;

use tokenizers::Tokenizer;
use tokio::sync::Semaphore;

use super::refusal::Refusal;
use crate::world::World;

/// In bytes. Shorter texts take less than finding a thread that serves nobody else.
const SHORT: usize = 2048;

pub(crate) struct Splitters {
    tokenizer: Arc<Tokenizer>,
    /// A core for each.
    cores: Arc<Semaphore>,
    /// For each long text, also while it waits for a core.
    places: Semaphore,
    /// No text of more characters is as few tokens as the model can see.
    longest: usize,
    context: usize,
}

impl Splitters {
    /// As many long texts as `places` may wait.
    pub(crate) fn new(world: &World, places: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let vocabulary = world.tokenizer.get_vocab(true);
        // As vLLM reckons (`max_chars_per_token`). A tokenizer that drops characters, or takes a run of unknown ones for one
        // token, could make less of a text; of one that is so much longer, nobody has a use.
        let longest = vocabulary.keys().map(|token| token.chars().count()).max();
        let context = world.model.config().max_position_embeddings;
        Splitters {
            tokenizer: Arc::clone(&world.tokenizer),
            cores: Arc::new(Semaphore::new(cores)),
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            longest: context.saturating_mul(longest.unwrap_or(1)),
            context,
        }
    }

    pub(super) async fn split(&self, text: String) -> Result<Vec<u32>, Refusal> {
        let wrong = |message: String| Refusal::field("prompt", format!("prompt: {message}"));
        let encode = |tokenizer: &Tokenizer, text: String| {
            let encoded = tokenizer.encode(text, true);
            let encoded = encoded.map_err(|error| error.to_string())?;
            Ok(encoded.get_ids().to_vec())
        };
        if text.len() > self.longest {
            let characters = text.chars().count();
            if characters > self.longest {
                return Err(wrong(format!(
                    "This model's maximum context length is {} tokens, and these {characters} characters are more \
                     in any case.",
                    self.context
                )));
            }
        }
        if text.len() <= SHORT {
            return encode(&self.tokenizer, text).map_err(wrong);
        }
        let _place = self.places.try_acquire().map_err(|_| {
            Refusal::too_many("as many long prompts as may wait are being split into tokens")
        })?;
        let core = Arc::clone(&self.cores).acquire_owned().await;
        let tokenizer = Arc::clone(&self.tokenizer);
        let done = tokio::task::spawn_blocking(move || {
            // Until it is done, also if whoever asked has gone.
            let _core = core;
            encode(&tokenizer, text)
        });
        let done = done.await;
        done.map_err(|_| Refusal::internal("the tokenizer panicked"))?
            .map_err(wrong)
    }
}
