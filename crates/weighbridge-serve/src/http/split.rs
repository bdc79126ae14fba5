//! From a prompt's text to tokens.
//!
//! What lives here: [`Splitters`]: how many are split at a time, and which are too long to be. What does not: prompts
//! that are tokens already (`completions`), text from tokens (`text`).

use std::sync::Arc;

use tokenizers::Tokenizer;
use tokio::sync::Semaphore;

use super::refusal::Refusal;

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
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>, context: usize, places: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let vocabulary = tokenizer.get_vocab(true);
        // As vLLM reckons (`max_chars_per_token`). A tokenizer that drops characters, or takes a run of unknown ones for one
        // token, could make less of a text; of one that is so much longer, nobody has a use.
        let longest = vocabulary.keys().map(|token| token.chars().count()).max();
        Splitters {
            tokenizer: Arc::clone(tokenizer),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn as_many_long_texts_as_may_wait_for_a_core_and_who_goes_makes_room() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/tiny-llama/tokenizer.json"
        );
        let tokenizer = Arc::new(Tokenizer::from_file(file).unwrap());
        let splitters = Splitters::new(&tokenizer, 1 << 20, 1);
        let long = || splitters.split("moo ".repeat(SHORT));
        let all = splitters.cores.available_permits() as u32;
        let busy = splitters.cores.acquire_many(all).await.unwrap();
        for _ in 0..2 {
            let mut waits = Box::pin(long());
            let polled = tokio::time::timeout(Duration::ZERO, &mut waits).await;
            assert!(polled.is_err(), "it found a core where there was none");
            let refused = long().await.unwrap_err().to_json();
            assert_eq!(refused["error"]["code"], 429);
            // A short one needs no place.
            assert!(splitters.split("moo".into()).await.is_ok());
        }
        drop(busy);
        assert!(long().await.is_ok());
        // Of so few tokens as the model can see, no text is as long.
        let few = Splitters::new(&tokenizer, 16, 1);
        let refused = few.split("moo ".repeat(SHORT)).await.unwrap_err();
        assert_eq!(refused.to_json()["error"]["code"], 400);
    }
}
