//! Refusals in words: which, and what they say of both sides.
//!
//! What lives here: [`said`], and the cause that subscribers are told with it, written down here a second
//! time. What does not: when there is one (`model`, `asks`).

use weighbridge::Error;

/// Every refusal that a case can meet.
pub fn said(error: &Error) -> String {
    let texts = |names: &[weighbridge::SetName]| -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    };
    match error {
        Error::InvalidName { .. } => "InvalidName".to_owned(),
        Error::AlreadyPublished {
            name,
            current,
            identity,
            offered,
        } => format!("AlreadyPublished {name} {current} {identity} {offered}"),
        Error::NameBusy { name } => format!("NameBusy {name}"),
        Error::StaleHandle { handle } => format!("StaleHandle {handle}"),
        Error::WrongRegistry { handle, .. } => format!("WrongRegistry {handle}"),
        Error::StagedElsewhere { .. } => "StagedElsewhere".to_owned(),
        Error::WrongNamespace { handle, namespace } => {
            format!("WrongNamespace {handle} {namespace}")
        }
        Error::ChargedElsewhere {
            charged_to,
            offered_to,
        } => format!("ChargedElsewhere {charged_to} {offered_to}"),
        Error::TooManySets { set, in_use, limit } => format!("TooManySets {set} {in_use} {limit}"),
        Error::NotResident { handle } => format!("NotResident {handle}"),
        Error::NotEvictable { set } => format!("NotEvictable {set}"),
        Error::BytesShared { set } => format!("BytesShared {set}"),
        Error::Pinned { set, by } => format!("Pinned {set} {by:?}"),
        Error::Leased(holdup) => format!("Leased {} {}", holdup.set, holdup.leases),
        Error::NeverFits {
            requested,
            immovable,
            limit,
            account,
        } => {
            let account = account.as_ref().map(ToString::to_string);
            format!("NeverFits {account:?} {requested} {immovable} {limit}")
        }
        Error::NotLoaded(_) => "NotLoaded".to_owned(),
        Error::Conflict {
            set,
            expected,
            current,
        } => format!("Conflict {set} {expected} {current}"),
        Error::Emptied { set, cause } => format!("Emptied {set} {}", said(cause)),
        Error::TwiceInTransaction { set } => format!("TwiceInTransaction {set}"),
        Error::Dependants { set, dependants } => {
            format!("Dependants {set} {:?}", texts(dependants))
        }
        Error::AliasedBy { set, aliases } => format!("AliasedBy {set} {:?}", texts(aliases)),
        Error::AliasMismatch {
            alias, set, tensor, ..
        } => format!("AliasMismatch {alias} {set} {tensor}"),
        Error::NotKept {
            set,
            generation,
            kept,
        } => {
            let wanted = generation.map(|one| one.number());
            let kept: Vec<u64> = kept.iter().map(|one| one.number()).collect();
            format!("NotKept {set} {wanted:?} {kept:?}")
        }
        Error::BaseNotCurrent { base } => format!("BaseNotCurrent {base}"),
        Error::AdapterWithoutEffect { tensors, .. } => format!("AdapterWithoutEffect {tensors}"),
        Error::NotABase { base } => format!("NotABase {base}"),
        Error::WrongBase {
            adapter,
            bound_to,
            base,
            leased,
        } => {
            let name = |name: &Option<weighbridge::SetName>| name.as_ref().map(ToString::to_string);
            format!(
                "WrongBase {adapter} {bound_to} {:?} {:?}",
                name(base),
                name(leased)
            )
        }
        Error::KindMismatch {
            set,
            current,
            offered,
        } => format!("KindMismatch {set} {current} {offered}"),
        Error::NotInLease { set, leased } => format!("NotInLease {set} {leased:?}"),
        Error::NoSuchTensor {
            set,
            generation,
            tensor,
        } => format!("NoSuchTensor {set} {generation} {tensor}"),
        Error::Superseded { handle } => format!("Superseded {handle}"),
        Error::NotDrained(holdup) => format!("NotDrained {} {}", holdup.set, holdup.leases),
        Error::NotReclaimed(holdup) => format!("NotReclaimed {} {}", holdup.set, holdup.leases),
        Error::OverLimit {
            requested,
            in_use,
            limit,
        } => format!("OverLimit {requested} {in_use} {limit}"),
        Error::OverAccountLimit {
            account,
            requested,
            in_use,
            limit,
        } => format!("OverAccountLimit {account} {requested} {in_use} {limit}"),
        Error::InvalidTensor { tensor, .. } => format!("InvalidTensor {tensor}"),
        Error::AdapterMismatch { module, .. } => format!("AdapterMismatch {module}"),
        other => panic!("a refusal that nobody thought of: {other:?}"),
    }
}

/// Which kind of refusal subscribers are told.
pub fn cause(said: &str) -> &'static str {
    let kind = said.split(' ').next().unwrap_or_default();
    match kind {
        "Emptied" => cause(said.splitn(3, ' ').nth(2).unwrap_or_default()),
        "StaleHandle" | "NoSuchTensor" | "BaseNotCurrent" | "NotKept" => "not_found",
        "AlreadyPublished" | "NameBusy" | "Conflict" | "Dependants" | "AliasedBy"
        | "AliasMismatch" | "Superseded" | "NotResident" | "KindMismatch" | "Leased" | "Pinned"
        | "BytesShared" => "conflict",
        "OverLimit" | "OverAccountLimit" | "NeverFits" => "out_of_memory",
        "TooManySets" => "exhausted",
        "InvalidTensor" | "InvalidName" | "AdapterMismatch" => "malformed",
        "WrongRegistry"
        | "WrongNamespace"
        | "ChargedElsewhere"
        | "WrongBase"
        | "NotInLease"
        | "AdapterWithoutEffect"
        | "NotABase"
        | "NotEvictable"
        | "TwiceInTransaction"
        | "StagedElsewhere" => "misuse",
        _ => "other",
    }
}
