//! The names of sets: (namespace, name).
//!
//! What lives here: the owned and the borrowed form, and what a legal name is. What does not: who
//! owns one (`names`).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::error::Error;

/// Longest namespace and longest name, in bytes.
pub(super) const CAP: usize = 512;

/// A set's full name. Namespaces separate tenants: the same name in two of them means two sets.
///
/// `"llama"` is in the default namespace, `("tenant-7", "llama")` in another. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct SetName {
    /// Namespace and name, one after the other in one allocation.
    text: Arc<str>,
    /// Where the name begins.
    split: usize,
}

impl SetName {
    /// The namespace; empty for the default one.
    pub fn namespace(&self) -> &str {
        &self.text[..self.split]
    }

    /// The name within it.
    pub fn name(&self) -> &str {
        &self.text[self.split..]
    }

    /// The borrowed form.
    #[allow(
        clippy::should_implement_trait,
        reason = "AsRef returns a reference, this is a value"
    )]
    pub fn as_ref(&self) -> NameRef<'_> {
        NameRef {
            namespace: self.namespace(),
            name: self.name(),
        }
    }

    /// Is it a legal name? Not empty, at most 512 bytes each, no control characters.
    ///
    /// # Errors
    /// [`Error::InvalidName`].
    pub fn validate(&self) -> Result<(), Error> {
        let reason = if self.name().is_empty() {
            "it is empty"
        } else {
            let both = [self.namespace(), self.name()];
            let Some(reason) = both.into_iter().find_map(illegal) else {
                return Ok(());
            };
            reason
        };
        Err(invalid(&format!("{self:?}"), reason))
    }
}

/// Is it a legal name of something that has one: a namespace, an account?
///
/// # Errors
/// [`Error::InvalidName`].
pub(crate) fn validate_namespace(name: &str) -> Result<(), Error> {
    let quoted = || format!("{name:?}");
    illegal(name).map_or(Ok(()), |reason| Err(invalid(&quoted(), reason)))
}

fn illegal(part: &str) -> Option<&'static str> {
    if part.len() > CAP {
        Some("name and namespace have at most 512 bytes each")
    } else if part.chars().any(char::is_control) {
        Some("it has control characters")
    } else {
        None
    }
}

fn invalid(name: &str, reason: &'static str) -> Error {
    let name = name.chars().take(80).collect();
    Error::InvalidName { name, reason }
}

impl From<&str> for SetName {
    fn from(name: &str) -> Self {
        SetName::from(("", name))
    }
}

impl From<String> for SetName {
    fn from(name: String) -> Self {
        SetName::from(name.as_str())
    }
}

impl From<(&str, &str)> for SetName {
    fn from((namespace, name): (&str, &str)) -> Self {
        SetName {
            text: [namespace, name].concat().into(),
            split: namespace.len(),
        }
    }
}

impl From<&SetName> for SetName {
    fn from(name: &SetName) -> Self {
        name.clone()
    }
}

impl Hash for SetName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

impl Ord for SetName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_ref().cmp(&other.as_ref())
    }
}

impl PartialOrd for SetName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// `name`, or `namespace/name`. Whatever does not print is escaped, so this is fit for logs, and no two
/// names print alike: a slash in a namespace is escaped, too, a name with slashes in the default
/// namespace begins with one (`/meta/llama`), and what has spaces is quoted.
impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

/// As it prints, always quoted.
impl fmt::Debug for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_ref(), f)
    }
}

/// `{"namespace": .., "name": ..}`, exact.
impl Serialize for SetName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("SetName", 2)?;
        fields.serialize_field("namespace", self.namespace())?;
        fields.serialize_field("name", self.name())?;
        fields.end()
    }
}

/// A borrowed set name, for lookups that allocate nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameRef<'n> {
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
}

impl<'n> From<&'n str> for NameRef<'n> {
    #[inline]
    fn from(name: &'n str) -> Self {
        NameRef {
            namespace: "",
            name,
        }
    }
}

impl<'n> From<(&'n str, &'n str)> for NameRef<'n> {
    #[inline]
    fn from((namespace, name): (&'n str, &'n str)) -> Self {
        NameRef { namespace, name }
    }
}

impl<'n> From<&'n SetName> for NameRef<'n> {
    fn from(name: &'n SetName) -> Self {
        name.as_ref()
    }
}

impl Hash for NameRef<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.feed(state);
        // Whatever follows is not taken for a part of it.
        state.write_usize(self.name.len());
    }
}

impl NameRef<'_> {
    /// To a hash that nothing else goes into.
    #[inline]
    pub(super) fn feed(&self, state: &mut impl Hasher) {
        state.write(self.name.as_bytes());
        if !self.namespace.is_empty() {
            state.write(self.namespace.as_bytes());
            // Where one ends and the other begins: its bytes are such as no name has, so no two names are fed alike.
            state.write_usize(self.namespace.len());
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() || self.name.contains('/') {
            for (index, part) in self.namespace.split('/').enumerate() {
                let lead = if index == 0 { "" } else { "\\u{2f}" };
                write!(f, "{lead}{}", part.escape_debug())?;
            }
            f.write_str("/")?;
        }
        write!(f, "{}", self.name.escape_debug())
    }
}

/// As [`SetName`] prints.
impl fmt::Display for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Other blanks do not print.
        if [self.namespace, self.name]
            .iter()
            .any(|text| text.contains(' '))
        {
            fmt::Debug::fmt(self, f)
        } else {
            self.write(f)
        }
    }
}

/// As it prints, always quoted.
impl fmt::Debug for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        self.write(f)?;
        f.write_str("\"")
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::collections::HashMap;

    use super::SetName;

    #[test]
    fn names_print_on_one_line_and_no_two_alike() {
        for (namespace, name, shown) in [
            ("", "llama-3.1:8b", "llama-3.1:8b"),
            ("", "meta/llama", "/meta/llama"),
            ("meta", "llama", "meta/llama"),
            ("a/b", "c/d", "a\\u{2f}b/c/d"),
            ("", "a b", "\"a b\""),
            ("", "x is stale\nERROR", "\"x is stale\\nERROR\""),
            ("t\u{202e}", "\u{200b}", "t\\u{202e}/\\u{200b}"),
            ("", "caf\u{e9} \u{1f999}", "\"caf\u{e9} \u{1f999}\""),
        ] {
            assert_eq!(SetName::from((namespace, name)).to_string(), shown);
        }
        // All names of up to three of these, in all splits.
        let parts = ["", "a", "/", "\\", "\"", " ", "\n", "u{2f}", "\u{202e}"];
        let mut texts = vec![String::new()];
        for _ in 0..3 {
            texts = texts
                .iter()
                .flat_map(|text| parts.map(|part| format!("{text}{part}")))
                .collect();
        }
        texts.sort();
        texts.dedup();
        let mut seen = HashMap::new();
        for namespace in texts.iter().filter(|text| text.len() < 6) {
            for name in &texts {
                let full = SetName::from((namespace.as_str(), name.as_str()));
                let shown = full.to_string();
                assert!(!shown.contains(['\n', '\u{202e}']), "{shown}");
                if let Some(other) = seen.insert(shown, full.clone()) {
                    assert_eq!(other, full, "two names print alike");
                }
            }
        }
    }
}
