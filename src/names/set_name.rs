//! The names of sets: (namespace, name).
//!
//! What lives here: the owned and the borrowed form, and what a legal name is. What does not: who
//! owns one (`names`).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::error::Error;

/// Longest namespace and longest name, in bytes.
const CAP: usize = 512;

/// A set's full name. Namespaces separate tenants: the same name in two of them means two sets.
///
/// `"llama"` is in the default namespace, `("tenant-7", "llama")` in another. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct SetName {
    /// Namespace and name, one after the other in one block: a lookup compares one of these, and
    /// every further block would be a cache miss.
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
        Err(invalid(&self.to_string(), reason))
    }
}

/// Is it a legal name of something that has one: a namespace, an account?
///
/// # Errors
/// [`Error::InvalidName`].
pub(crate) fn validate_namespace(name: &str) -> Result<(), Error> {
    illegal(name).map_or(Ok(()), |reason| Err(invalid(name, reason)))
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

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            "" => f.write_str(self.name()),
            namespace => write!(f, "{namespace}/{}", self.name()),
        }
    }
}

impl fmt::Debug for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// A borrowed set name, for lookups that allocate nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameRef<'n> {
    namespace: &'n str,
    name: &'n str,
}

impl<'n> From<&'n str> for NameRef<'n> {
    fn from(name: &'n str) -> Self {
        NameRef {
            namespace: "",
            name,
        }
    }
}

impl<'n> From<(&'n str, &'n str)> for NameRef<'n> {
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
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.namespace.hash(state);
        self.name.hash(state);
    }
}
