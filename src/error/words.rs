//! Parts of messages.
//!
//! What lives here: words for what an error has, where it is optional, or one of several, or many. What does not:
//! the messages, which are with their errors.

use crate::handle::{Generation, SetKind};
use crate::ledger::account::Account;
use crate::names::SetName;
use crate::tensor::Shard;

/// With its article.
pub(super) fn a(kind: SetKind) -> &'static str {
    match kind {
        SetKind::Checkpoint => "a checkpoint",
        SetKind::Adapter => "an adapter",
    }
}

/// The first few of a list that may be long.
pub(super) fn some(names: &[impl ToString]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<String> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    if names.len() > SHOWN {
        text.push(format!("and {} more", names.len() - SHOWN));
    }
    text.join(", ")
}

pub(super) fn whose(account: &Option<Account>) -> String {
    account.as_ref().map_or_else(
        || "the limit".to_owned(),
        |account| format!("the limit of {account}"),
    )
}

pub(super) fn wanted(generation: &Option<Generation>) -> String {
    generation.map_or_else(
        || "earlier generation".to_owned(),
        |number| format!("generation {number}"),
    )
}

pub(super) fn other(leased: &Option<SetName>) -> String {
    leased
        .as_ref()
        .map_or_else(|| "another base".to_owned(), ToString::to_string)
}

pub(super) fn part(shard: &Option<Shard>) -> String {
    shard.map_or_else(|| "the whole".to_owned(), |shard| shard.to_string())
}

pub(super) fn of_tensor(tensor: &Option<String>) -> String {
    tensor
        .as_ref()
        .map_or_else(String::new, |tensor| format!(": tensor {tensor:?}"))
}
