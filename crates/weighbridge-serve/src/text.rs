//! From tokens to text, piece by piece.
//!
//! What lives here: [`Text`]: what a client may be shown so far, and whether a stop string has come. What does not:
//! who chooses the tokens (`engine`).

use std::sync::Arc;

use tokenizers::Tokenizer;
use tokenizers::tokenizer::step_decode_stream;

/// Tokens of the prompt that what follows is decoded with.
const BEFORE: usize = 4;

/// The text of one answer.
pub(crate) struct Text {
    tokenizer: Arc<Tokenizer>,
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    stops: Stops,
}

/// Cuts a text before the first of some strings.
struct Stops {
    strings: Vec<String>,
    /// Not shown yet: it may be the beginning of one.
    held: String,
}

/// What a token added.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// Text to be shown; often empty.
    Text(String),
    /// The last text to be shown: a stop string came after it.
    Stop(String),
}

impl Text {
    /// Of what follows `prompt`, and ends before any of `stops`.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32], stops: Vec<String>) -> Self {
        // Some tokenizers drop the space that a text begins with: the answer begins in the middle of one.
        let end = &prompt[prompt.len().saturating_sub(BEFORE)..];
        let whole = tokenizer.decode(end, true);
        // A prompt that ends within a character would be shown with it.
        let ids = match whole {
            Ok(text) if !text.ends_with(char::REPLACEMENT_CHARACTER) => end.to_vec(),
            _ => Vec::new(),
        };
        Text {
            tokenizer,
            ids,
            prefix: String::new(),
            prefix_index: 0,
            stops: Stops {
                strings: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
                held: String::new(),
            },
        }
    }

    /// One token more.
    pub(crate) fn push(&mut self, token: u32) -> tokenizers::Result<Added> {
        let text = step_decode_stream(
            &self.tokenizer,
            vec![token],
            true,
            &mut self.ids,
            &mut self.prefix,
            &mut self.prefix_index,
        );
        let text = match text {
            // `None`: no whole character yet.
            Ok(text) => text.unwrap_or_default(),
            // Bytes that are no character, after all, can change what was decoded before. That was shown: on from here.
            Err(_) => {
                self.ids.clear();
                self.prefix.clear();
                self.prefix_index = 0;
                self.tokenizer.decode(&[token], true)?
            }
        };
        Ok(self.stops.push(&text))
    }

    /// What was held back, now that nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.stops.held)
    }
}

impl Stops {
    fn push(&mut self, text: &str) -> Added {
        self.held.push_str(text);
        let first = self
            .strings
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Added::Stop(std::mem::take(&mut self.held));
        }
        let kept = self
            .strings
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max();
        let rest = self.held.split_off(self.held.len() - kept.unwrap_or(0));
        Added::Text(std::mem::replace(&mut self.held, rest))
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at);
    ends.rev()
        .find(|&at| text.ends_with(&stop[..at]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let strings = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stops = Stops {
            strings,
            held: String::new(),
        };
        let mut shown = String::new();
        for piece in pieces {
            match stops.push(piece) {
                Added::Text(text) => shown += &text,
                Added::Stop(text) => return (shown + &text, true),
            }
        }
        (shown + &stops.held, false)
    }

    #[test]
    fn a_stop_string_is_never_shown_however_it_is_cut() {
        for pieces in [
            &["a STOP b"][..],
            &["a S", "TO", "P b"],
            &["a", " ", "S", "T", "O", "P", " b"],
        ] {
            assert_eq!(shown(&["STOP"], pieces), ("a ".into(), true));
        }
        assert_eq!(
            shown(&["STOP"], &["a ST", "ORE"]),
            ("a STORE".into(), false)
        );
        assert_eq!(shown(&["STOP"], &["a STO"]), ("a STO".into(), false));
        assert_eq!(
            shown(&["b", "ab"], &["xa", "b"]),
            ("x".into(), true),
            "the earliest"
        );
        assert_eq!(
            shown(&["aab"], &["aaa", "b"]),
            ("a".into(), true),
            "one that overlaps itself"
        );
        assert_eq!(shown(&["éa"], &["xé", "b"]), ("xéb".into(), false));
        assert_eq!(shown(&[], &["x", ""]), ("x".into(), false));
    }

    #[test]
    fn what_may_be_shown_is_shown_at_once() {
        let mut stops = Stops {
            strings: vec!["STOP".into()],
            held: String::new(),
        };
        assert_eq!(stops.push("abc S"), Added::Text("abc ".into()));
        assert_eq!(stops.push("x"), Added::Text("Sx".into()));
    }

    #[test]
    fn characters_of_several_tokens_come_whole() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/tiny-llama/tokenizer.json"
        );
        let tokenizer = Arc::new(Tokenizer::from_file(file).unwrap());
        let mut text = Text::new(Arc::clone(&tokenizer), &[128, 65], vec![]);
        let ids = tokenizer.encode("moo, arr", false).unwrap();
        let mut shown = String::new();
        for &id in ids.get_ids().iter().chain(&[129]) {
            match text.push(id).unwrap() {
                Added::Text(piece) => shown += &piece,
                Added::Stop(_) => unreachable!(),
            }
        }
        assert_eq!(
            shown + &text.finish(),
            "moo, arr",
            "and not the token that ends it"
        );
    }

    /// What a Llama 2 has: a space is a mark, the first of a text is dropped, rare characters are bytes.
    fn sentencepiece() -> Arc<Tokenizer> {
        let tokens = ["<0x0A>", "<0xE2>", "\u{2581}moo", "x", "\u{2581}A"];
        let vocabulary: Vec<String> = (0..)
            .zip(tokens)
            .map(|(id, token)| format!("{token:?}: {id}"))
            .collect();
        let json = format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {{"type": "Sequence", "decoders": [
                {{"type": "Replace", "pattern": {{"String": "\u2581"}}, "content": " "}},
                {{"type": "ByteFallback"}}, {{"type": "Fuse"}},
                {{"type": "Strip", "content": " ", "start": 1, "stop": 0}}]}},
            "model": {{"type": "BPE", "byte_fallback": true, "vocab": {{{}}}, "merges": []}}}}"#,
            vocabulary.join(", ")
        );
        Arc::new(Tokenizer::from_bytes(json).unwrap())
    }

    fn answer(prompt: &[u32], tokens: &[u32]) -> String {
        let mut text = Text::new(sentencepiece(), prompt, vec![]);
        let mut shown = String::new();
        for &token in tokens {
            match text.push(token).unwrap() {
                Added::Text(piece) => shown += &piece,
                Added::Stop(_) => unreachable!(),
            }
        }
        shown + &text.finish()
    }

    #[test]
    fn an_answer_goes_on_in_the_middle_of_a_text() {
        assert_eq!(answer(&[4], &[2]), " moo", "its space is there");
        assert_eq!(answer(&[4], &[3, 2]), "x moo");
        assert_eq!(answer(&[], &[2]), "moo", "the beginning of one has none");
        assert_eq!(answer(&[4, 1], &[3]), "x", "after half a character");
    }

    #[test]
    fn bytes_that_are_no_character_spoil_nothing() {
        let said = answer(&[4], &[0, 1, 3, 2]);
        assert!(
            said.starts_with('\n') && said.contains('x') && said.ends_with("moo"),
            "{said:?}"
        );
    }
}
