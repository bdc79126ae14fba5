//! `rank_pattern` and `alpha_pattern`: which value goes for which module.
//!
//! What lives here: keys as PEFT matches them, and what they may cost. What does not: the other options
//! (`config`).
//!
//! PEFT takes the first key, in the file's order, for which
//! `re.match(rf"(.*\.)?({key})$", module)`: a key matches the whole name or what is after some dot.

use std::fmt;

use regex_lite::{Regex, RegexBuilder};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::super::header::shown;

/// Most keys of a table, and the longest one in bytes.
const KEY_CAP: usize = 2048;
const KEY_LEN_CAP: usize = 256;
/// Most keys of a table that are more than a name, and the most memory of one.
const REGEX_CAP: usize = 64;
const REGEX_BYTES: usize = 8 << 10;
/// Most comparisons of plain keys with modules for an adapter ...
const NAME_WORK: u64 = 1 << 24;
/// ... and most bytes of modules' names for its regular expressions to run over. A usual one takes
/// some 30 nanoseconds for a byte, the worst that was found one or two microseconds.
const REGEX_WORK: u64 = 1 << 20;

/// A table as the file has it, in its order, with distinct keys.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = Vec::<(String, f64)>::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.len() == KEY_CAP {
                        return Err(A::Error::custom(format_args!("more than {KEY_CAP} keys")));
                    }
                    if key.len() > KEY_LEN_CAP {
                        let reason = format_args!("a key of more than {KEY_LEN_CAP} bytes");
                        return Err(A::Error::custom(reason));
                    }
                    let value = map.next_value();
                    let about = |error| A::Error::custom(format_args!("[{key:?}]: {error}"));
                    let value = value.map_err(about)?;
                    entries.push((key, value));
                }
                let mut keys: Vec<&str> = entries.iter().map(|(key, _)| &**key).collect();
                keys.sort_unstable();
                match keys.windows(2).find(|pair| pair[0] == pair[1]) {
                    Some(pair) => {
                        let reason = format_args!("{:?} is there twice", pair[0]);
                        Err(A::Error::custom(reason))
                    }
                    None => Ok(Table(entries)),
                }
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// A table of keys with their values, ready to be matched.
#[derive(Debug)]
pub(super) struct Patterns<T>(Vec<(Key, T)>);

#[derive(Debug)]
enum Key {
    Name(String),
    Regex(Regex),
}

/// Is a key a name, as nearly all are? A dot stands for any character, as in every regular expression,
/// unless there is a backslash before it.
fn is_name(key: &str) -> bool {
    let mut rest = key.strip_prefix('^').unwrap_or(key).chars();
    while let Some(char) = rest.next() {
        let plain = match char {
            '\\' => rest.next() == Some('.'),
            _ => char.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&char),
        };
        if !plain {
            return false;
        }
    }
    true
}

/// Does a key that is a name match?
fn name_matches(key: &str, module: &str) -> bool {
    let (whole, key) = match key.strip_prefix('^') {
        Some(key) => (true, key),
        None => (false, key),
    };
    let (mut key, mut module) = (key.chars().rev().peekable(), module.chars().rev());
    while let Some(expected) = key.next() {
        let any = expected == '.' && key.next_if_eq(&'\\').is_none();
        match module.next() {
            Some(found) if any || found == expected => {}
            _ => return false,
        }
    }
    match module.next() {
        None => true,
        Some(before) => before == '.' && !whole,
    }
}

impl<T: Copy> Patterns<T> {
    /// `value` says what is wrong with a number.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn new(
        Table(entries): Table,
        value: impl Fn(f64) -> Result<T, String>,
    ) -> Result<Self, String> {
        let mut regexes = 0;
        let mut patterns = Vec::with_capacity(entries.len());
        for (text, number) in entries {
            let about = |reason: String| format!("[{:?}]: {reason}", shown(&text));
            let value = value(number).map_err(about)?;
            let key = if is_name(&text) {
                Key::Name(text)
            } else {
                regexes += 1;
                if regexes > REGEX_CAP {
                    return Err(format!("has more than {REGEX_CAP} regular expressions"));
                }
                let regex = RegexBuilder::new(&format!(r"^(.*\.)?({text})$"))
                    .size_limit(REGEX_BYTES)
                    .build();
                Key::Regex(regex.map_err(|error| about(error.to_string()))?)
            };
            patterns.push((key, value));
        }
        Ok(Patterns(patterns))
    }

    /// The value for a module, if there is one.
    pub(super) fn pick(&self, module: &str) -> Option<T> {
        let hit = self.0.iter().find(|(key, _)| match key {
            Key::Name(name) => name_matches(name, module),
            Key::Regex(regex) => regex.is_match(module),
        });
        hit.map(|&(_, value)| value)
    }

    /// Is it too much to match them with so many modules, whose names have so many bytes together?
    ///
    /// # Errors
    /// A reason, with both sides.
    pub(super) fn check_work(&self, modules: usize, bytes: usize) -> Result<(), String> {
        let is_regex = |(key, _): &&(Key, T)| matches!(key, Key::Regex(_));
        let regexes = self.0.iter().filter(is_regex).count();
        let names = self.0.len() - regexes;
        let within = |count: usize, by: usize, cap| (count as u64).saturating_mul(by as u64) <= cap;
        if within(names, modules, NAME_WORK) && within(regexes, bytes, REGEX_WORK) {
            return Ok(());
        }
        Err(format!(
            "{names} plain keys and {regexes} regular expressions are too many to match with \
             {modules} modules, whose names have {bytes} bytes; leave out what all have in common"
        ))
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    fn of(key: &str) -> Result<Patterns<f64>, String> {
        Patterns::new(Table(vec![(key.to_owned(), 1.0)]), Ok)
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
            assert!(is_name(key), "{key:?}");
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$")).unwrap();
            for module in modules {
                assert_eq!(
                    name_matches(key, module),
                    regex.is_match(module),
                    "{key:?} with {module:?}"
                );
            }
        }
        for key in ["a|b", "[ab]", "a+", r"\d", "a$", "(a)", "a^", "é", r"a\"] {
            assert!(!is_name(key), "{key:?}");
        }
    }

    #[test]
    fn tables_have_bounds() {
        let many = |len: usize, key: &str| {
            let entries = (0..len).map(|at| (format!("{key}{at}"), 1.0)).collect();
            Patterns::new(Table(entries), Ok::<f64, String>)
        };
        assert!(many(REGEX_CAP, "[q]").is_ok());
        assert!(
            many(REGEX_CAP + 1, "[q]")
                .unwrap_err()
                .contains("64 regular")
        );
        assert!(of("(((a{50}){50}){50})").unwrap_err().contains("size"));
        assert!(of("(").is_err());
        let layers: Vec<String> = (0..32).map(|layer| layer.to_string()).collect();
        let usual = format!(r"layers\.({})\.self_attn\.(q|k|v|o)_proj", layers.join("|"));
        let usual = of(&usual).unwrap();
        assert_eq!(usual.pick("model.layers.31.self_attn.v_proj"), Some(1.0));
        assert_eq!(usual.pick("model.layers.32.self_attn.v_proj"), None);
        let all = many(REGEX_CAP, "[q]").unwrap();
        assert!(all.check_work(1 << 30, 1 << 14).is_ok());
        let refused = all.check_work(9, (1 << 14) + 1).unwrap_err();
        assert!(
            refused.contains("64 regular") && refused.contains("16385 bytes"),
            "{refused}"
        );
        let all = many(KEY_CAP, "q").unwrap();
        assert!(all.check_work(1 << 13, 1 << 30).is_ok());
        let refused = all.check_work((1 << 13) + 1, 9).unwrap_err();
        assert!(
            refused.contains("2048 plain") && refused.contains("8193 modules"),
            "{refused}"
        );

        let read = |keys: &[String]| {
            let entries: Vec<String> = keys.iter().map(|key| format!("{key:?}:1")).collect();
            serde_json::from_str::<Table>(&format!("{{{}}}", entries.join(",")))
        };
        let names: Vec<String> = (0..=KEY_CAP).map(|at| at.to_string()).collect();
        assert!(read(&names[..KEY_CAP]).is_ok());
        let refused = read(&names).unwrap_err().to_string();
        assert!(refused.contains("2048 keys"), "{refused}");
        let long = "q".repeat(KEY_LEN_CAP + 1);
        assert!(read(&[long[1..].to_owned()]).is_ok());
        let refused = read(&[long]).unwrap_err().to_string();
        assert!(refused.contains("256 bytes"), "{refused}");
    }
}
