//! What a server says of its registry.
//!
//! What lives here: the fields that are used, and which of them may be missing. What does not: what they
//! mean, which the library's docs/JSON.md says of `stats` and `catalog`.
//!
//! Fields that nobody knows are passed over. One that is missing is `None` or nothing; one of another type
//! is an error, and so is another schema.

use serde::{Deserialize, Serialize};

const SCHEMA: u64 = 1;

/// `GET /v1/registry`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Registry {
    pub(super) model: Option<String>,
    pub(super) stats: Option<Stats>,
    pub(super) catalog: Option<Catalog>,
    /// `None`: the server does not say who is leased.
    pub(super) leases: Option<Vec<Leased>>,
    pub(super) going: Option<Vec<Going>>,
    pub(super) serving: Option<Serving>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Stats {
    pub(super) ledger: Ledger,
    pub(super) commits: u64,
    pub(super) oldest_lease: Option<Holder>,
    pub(super) waiting: u64,
    pub(super) pending_fences: u64,
    pub(super) loads: u64,
    pub(super) evictions: u64,
    pub(super) streams: u64,
    pub(super) part_failures: u64,
    pub(super) fence_panics: u64,
    pub(super) reclaimer_panics: u64,
    pub(super) observer_panics: u64,
    pub(super) stranded_bytes: u64,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Ledger {
    pub(super) limit: Option<u64>,
    pub(super) soft_limit: Option<u64>,
    pub(super) reserved: u64,
    pub(super) resident: u64,
    pub(super) kept: u64,
    pub(super) retired: u64,
    pub(super) pooled: u64,
    pub(super) peak: u64,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Catalog {
    pub(super) commit: u64,
    pub(super) sets: Vec<Set>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Set {
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) generation: u64,
    #[serde(default)]
    pub(super) identity: String,
    #[serde(default)]
    pub(super) bytes: u64,
    pub(super) resident: Option<bool>,
}

/// Leases of one generation.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Leased {
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) generation: u64,
    #[serde(default)]
    pub(super) leases: u64,
}

/// A generation on its way out.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Going {
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) generation: u64,
    #[serde(default)]
    pub(super) bytes: u64,
    #[serde(default)]
    pub(super) leases: u64,
    #[serde(default)]
    pub(super) holders: Vec<Holder>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Holder {
    pub(super) label: String,
    #[serde(default)]
    pub(super) age_seconds: f64,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Serving {
    pub(super) running: u64,
    pub(super) waiting: u64,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) swaps: u64,
    pub(super) tokens: u64,
    pub(super) tokens_per_second: Option<f64>,
    pub(super) oldest_request_seconds: Option<f64>,
}

impl Ledger {
    /// The bytes of every state, with a letter for each. A server may say numbers that no registry has.
    pub(super) fn states(&self) -> [(&'static str, char, u64); 5] {
        [
            ("resident", '#', self.resident),
            ("kept", 'k', self.kept),
            ("retired", 'r', self.retired),
            ("reserved", '+', self.reserved),
            ("pooled", 'p', self.pooled),
        ]
    }

    pub(super) fn total(&self) -> u64 {
        let bytes = self.states().map(|(_, _, bytes)| bytes);
        bytes.into_iter().fold(0, u64::saturating_add)
    }
}

impl Registry {
    /// What is in `body`.
    ///
    /// # Errors
    /// What is wrong with it. The text may quote it, and is not clean.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        /// Looked at first: of another schema nothing else is known.
        #[derive(Deserialize)]
        struct Version {
            schema: Option<u64>,
            #[serde(default)]
            stats: Option<Inner>,
            #[serde(default)]
            catalog: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            schema: Option<u64>,
        }
        let version: Version = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let schema = version.schema.ok_or("it has no schema number")?;
        // Parts that have a number are documents of the library, under its own promise.
        let inner = [version.stats, version.catalog].into_iter().flatten();
        let schemas = inner.filter_map(|part| part.schema).chain([schema]);
        if let Some(other) = schemas.into_iter().find(|schema| *schema != SCHEMA) {
            return Err(format!(
                "it is of schema {other}, and {SCHEMA} is known here"
            ));
        }
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    /// How many leases a set's current generation has, if the server says.
    pub(super) fn leases_of(&self, set: &Set) -> Option<u64> {
        let leases = self.leases.as_ref()?;
        let of = (&set.namespace, &set.name, set.generation);
        let own = leases
            .iter()
            .filter(|one| (&one.namespace, &one.name, one.generation) == of);
        Some(own.fold(0, |sum, one| sum.saturating_add(one.leases)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_demanded() {
        let empty = Registry::parse(br#"{"schema":1}"#).unwrap();
        assert!(empty.stats.is_none() && empty.leases.is_none());
        let nulls = br#"{"schema":1,"stats":null,"catalog":{"sets":[{"name":"s"}]},"new":[{}]}"#;
        let set = &Registry::parse(nulls).unwrap().catalog.unwrap().sets[0];
        assert_eq!((&*set.namespace, &*set.name, set.resident), ("", "s", None));
    }

    #[test]
    fn another_schema_is_an_error_and_so_is_another_type() {
        for (body, word) in [
            (r#"{"schema":2,"model":7}"#, "schema 2"),
            (r#"{"schema":1,"stats":{"schema":9}}"#, "schema 9"),
            (r#"{"model":"m"}"#, "no schema"),
            (r#"{"schema":"1"}"#, "invalid type"),
            (
                r#"{"schema":1,"catalog":{"sets":[{"name":7}]}}"#,
                "invalid type",
            ),
            (r#"{"schema":1,"catalog":{"sets":[{}]}}"#, "name"),
            (
                r#"{"schema":1,"stats":{"ledger":{"resident":-1}}}"#,
                "invalid value",
            ),
            (r#"{"schema":1"#, "EOF"),
            ("[]", "invalid"),
        ] {
            let told = Registry::parse(body.as_bytes()).unwrap_err();
            assert!(told.contains(word), "{body}: {told}");
        }
        let deep = "[".repeat(100_000);
        assert!(Registry::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn leases_belong_to_a_generation() {
        let registry = Registry::parse(
            br#"{"schema":1,
                "catalog":{"sets":[{"name":"a","generation":3},{"name":"b","generation":1}]},
                "leases":[{"name":"a","generation":3,"leases":2},{"name":"a","generation":2,"leases":5}]}"#,
        );
        let registry = registry.unwrap();
        let sets = &registry.catalog.as_ref().unwrap().sets;
        assert_eq!(registry.leases_of(&sets[0]), Some(2));
        assert_eq!(registry.leases_of(&sets[1]), Some(0));
    }

    #[test]
    fn sums_of_impossible_numbers_do_not_overflow() {
        let ledger = Ledger {
            resident: u64::MAX,
            kept: 1,
            ..Ledger::default()
        };
        assert_eq!(ledger.total(), u64::MAX);
    }
}
