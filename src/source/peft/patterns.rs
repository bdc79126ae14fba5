//! `rank_pattern` and `alpha_pattern`: which value goes for which module.
//!
//! What lives here: keys as PEFT matches them, and what they may cost. What does not: the other options
//! (`config`).
//!
//! PEFT takes the first key, in the file's order, for which
//! `re.match(rf"(.*\.)?({key})$", module)`: a key matches the whole name or what is after some dot.

use regex_lite::{Regex, RegexBuilder};

use super::super::json::InOrder;

/// Most keys of a table, and the longest one in bytes.
const KEY_CAP: usize = 2048;
const KEY_LEN_CAP: usize = 256;
/// Most keys of a table that are more than a name, and the most memory of one.
const REGEX_CAP: usize = 64;
const REGEX_BYTES: usize = 16 << 10;
/// What a regular expression costs, in names.
const REGEX_WORK: u64 = 256;
/// Most comparisons of names for an adapter.
const WORK_CAP: u64 = 1 << 24;

/// A table of keys with their values.
#[derive(Debug)]
pub(super) struct Patterns<T>(Vec<(Key, T)>);

#[derive(Debug)]
enum Key {
    Name(Name),
    Regex(Regex),
}

/// A key that is a name, as nearly all are. A dot stands for any character, as in every regular
/// expression.
#[derive(Debug)]
struct Name {
    /// Begins with `^`: no tail will do.
    whole: bool,
    /// `None` for any character.
    chars: Box<[Option<char>]>,
}

impl Name {
    fn parse(key: &str) -> Option<Self> {
        let (whole, text) = match key.strip_prefix('^') {
            Some(text) => (true, text),
            None => (false, key),
        };
        let mut given = text.chars();
        let mut chars = Vec::with_capacity(text.len());
        while let Some(char) = given.next() {
            chars.push(match char {
                '.' => None,
                '\\' if given.next() == Some('.') => Some('.'),
                '_' | '-' => Some(char),
                _ if char.is_ascii_alphanumeric() => Some(char),
                _ => return None,
            });
        }
        Some(Name {
            whole,
            chars: chars.into(),
        })
    }

    fn matches(&self, module: &str) -> bool {
        let mut from_end = module.chars().rev();
        for expected in self.chars.iter().rev() {
            match (from_end.next(), expected) {
                (Some(_), None) => {}
                (Some(found), Some(expected)) if found == *expected => {}
                _ => return false,
            }
        }
        match from_end.next() {
            None => true,
            Some(before) => before == '.' && !self.whole,
        }
    }
}

impl<T: Copy> Patterns<T> {
    /// Of a table as the file has it; `value` says what is wrong with a number.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn new(
        table: Option<InOrder<f64>>,
        value: impl Fn(f64) -> Result<T, String>,
    ) -> Result<Self, String> {
        let entries = table.map_or_else(Vec::new, |InOrder(entries)| entries);
        if entries.len() > KEY_CAP {
            return Err(format!(
                "has {} keys, at most {KEY_CAP} are accepted",
                entries.len()
            ));
        }
        let mut regexes = 0;
        let mut patterns = Vec::with_capacity(entries.len());
        for (text, number) in entries {
            if text.len() > KEY_LEN_CAP {
                return Err(format!(
                    "has a key of {} bytes, at most {KEY_LEN_CAP} are accepted",
                    text.len()
                ));
            }
            let key = if let Some(name) = Name::parse(&text) {
                Key::Name(name)
            } else {
                regexes += 1;
                if regexes > REGEX_CAP {
                    return Err(format!("has more than {REGEX_CAP} regular expressions"));
                }
                let regex = RegexBuilder::new(&format!(r"^(.*\.)?({text})$"))
                    .size_limit(REGEX_BYTES)
                    .build();
                Key::Regex(regex.map_err(|error| format!("[{text:?}]: {error}"))?)
            };
            let number = value(number).map_err(|reason| format!("[{text:?}]: {reason}"))?;
            patterns.push((key, number));
        }
        Ok(Patterns(patterns))
    }

    /// The value for a module, if there is one.
    pub(super) fn pick(&self, module: &str) -> Option<T> {
        let hit = self.0.iter().find(|(key, _)| match key {
            Key::Name(name) => name.matches(module),
            Key::Regex(regex) => regex.is_match(module),
        });
        hit.map(|&(_, value)| value)
    }

    /// Is it too much to match them with so many modules?
    ///
    /// # Errors
    /// A reason, with both sides.
    pub(super) fn check_work(&self, modules: usize) -> Result<(), String> {
        let names = |key: &Key| match key {
            Key::Name(_) => 1,
            Key::Regex(_) => REGEX_WORK,
        };
        let names: u64 = self.0.iter().map(|(key, _)| names(key)).sum();
        if names.saturating_mul(modules as u64) <= WORK_CAP {
            return Ok(());
        }
        Err(format!(
            "{} keys are too many to match with {modules} modules; write plain names, \
             or the rank itself where all modules have the same",
            self.0.len()
        ))
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    fn of(key: &str) -> Result<Patterns<f64>, String> {
        Patterns::new(Some(InOrder(vec![(key.to_owned(), 1.0)])), Ok)
    }

    /// Names are matched without a regular expression, with the same result.
    #[test]
    fn names_match_as_the_expressions_they_are() {
        let modules = [
            "",
            "q",
            "q_proj",
            "xq_proj",
            "a.q_proj",
            "a.b.q_proj",
            "q_proj.b",
            "layers.3.q",
            "model.layers.3.q",
            "model.layers.13.q",
            "layersX3.q",
            "model.layersX3.q",
            ".q",
            "é.q",
            "a.éq",
            "éq",
        ];
        for key in [
            "",
            "q",
            "q_proj",
            "layers.3.q",
            r"layers\.3\.q",
            "^model.layers.3.q",
            "^q",
            ".q",
            "..q",
            "^",
            "3.q",
            ".",
        ] {
            let name = Name::parse(key).expect(key);
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$")).unwrap();
            for module in modules {
                assert_eq!(
                    name.matches(module),
                    regex.is_match(module),
                    "{key:?} with {module:?}"
                );
            }
        }
        for key in ["a|b", "[ab]", "a+", r"\d", "a$", "(a)", "a^", "é", r"a\"] {
            assert!(Name::parse(key).is_none(), "{key:?}");
        }
    }

    #[test]
    fn tables_have_bounds() {
        let many = |len: usize, key: &str| {
            let entries = (0..len).map(|at| (format!("{key}{at}"), 1.0)).collect();
            Patterns::new(Some(InOrder(entries)), Ok::<f64, String>)
        };
        assert!(many(KEY_CAP, "q").is_ok());
        assert!(many(KEY_CAP + 1, "q").unwrap_err().contains("2049 keys"));
        assert!(many(REGEX_CAP, "[q]").is_ok());
        assert!(
            many(REGEX_CAP + 1, "[q]")
                .unwrap_err()
                .contains("64 regular")
        );
        assert!(of(&"q".repeat(257)).unwrap_err().contains("257 bytes"));
        assert!(of("(((a{50}){50}){50})").unwrap_err().contains("size"));
        assert!(of("(").is_err());
        let all = many(REGEX_CAP, "[q]").unwrap();
        assert!(all.check_work(1024).is_ok());
        assert!(all.check_work(1025).unwrap_err().contains("1025 modules"));
    }
}
