//! What kind of error it is.
//!
//! What lives here: the predicates, by which a caller decides what to do. Of all but `is_over_limit` exactly one
//! holds. What does not: the errors.

use super::Error;

impl Error {
    /// What the predicates are about.
    fn cause(&self) -> &Error {
        match self {
            Error::Emptied { cause, .. } => cause.cause(),
            Error::LoadFailed { cause, .. } => cause.cause(),
            Error::PartFailed { cause, .. } => cause.cause(),
            other => other,
        }
    }

    /// What was asked for is not there (any more): a stale handle, an unknown tensor.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.cause(),
            Error::StaleHandle { .. }
                | Error::NoSuchTensor { .. }
                | Error::BaseNotCurrent { .. }
                | Error::NotKept { .. }
                | Error::NoSuchPart { .. }
        )
    }

    /// Somebody else was first, or something stands in the way; a new look may help. A set that is not
    /// resident is one that may be loaded, or whose next generation is on its way.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self.cause(),
            Error::AlreadyPublished { .. }
                | Error::AlreadyRegistered { .. }
                | Error::NameBusy { .. }
                | Error::TensorBusy { .. }
                | Error::Conflict { .. }
                | Error::Dependants { .. }
                | Error::AliasedBy { .. }
                | Error::WeightTied { .. }
                | Error::WeightBound { .. }
                | Error::AliasMismatch { .. }
                | Error::Superseded { .. }
                | Error::NotResident { .. }
                | Error::Leased(_)
                | Error::BytesShared { .. }
                | Error::Pinned { .. }
                | Error::BackingOff { .. }
                | Error::LoadBroken { .. }
                | Error::KindMismatch { .. }
                | Error::ShardMismatch { .. }
        )
    }

    /// Memory does not suffice: the ledger's limit, an account's, or the operating system's.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self.cause(),
            Error::OverLimit { .. }
                | Error::OverAccountLimit { .. }
                | Error::NeverFits { .. }
                | Error::OutOfMemory { .. }
        )
    }

    /// Something other than memory is used up: the sets that a namespace may have, the slots, tags or
    /// registry numbers of this process.
    pub fn is_exhausted(&self) -> bool {
        matches!(self.cause(), Error::TooManySets { .. } | Error::Spent)
    }

    /// A limit that the operator has set is in the way: of bytes, of an account, of sets. This goes
    /// across the other predicates, of which exactly one holds: such an error
    /// [is also](Self::is_out_of_memory) [one of those](Self::is_exhausted).
    pub fn is_over_limit(&self) -> bool {
        matches!(
            self.cause(),
            Error::OverLimit { .. }
                | Error::OverAccountLimit { .. }
                | Error::NeverFits { .. }
                | Error::TooManySets { .. }
        )
    }

    /// A wait reached its deadline.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.cause(),
            Error::NotDrained(_)
                | Error::NotReclaimed(_)
                | Error::NotLoaded(_)
                | Error::PartNotLoaded { .. }
        )
    }

    /// The input is broken, incomplete or inconsistent.
    pub fn is_malformed(&self) -> bool {
        matches!(
            self.cause(),
            Error::Malformed { .. }
                | Error::InvalidTensor { .. }
                | Error::InvalidMemory { .. }
                | Error::MissingShard { .. }
                | Error::AdapterMismatch { .. }
                | Error::InvalidName { .. }
                | Error::SourceChanged { .. }
                | Error::ReloadDiffers { .. }
                | Error::InvalidParts { .. }
        )
    }

    /// The input is legal but needs what is not implemented.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.cause(),
            Error::Unsupported { .. }
                | Error::UnreadableTensor { .. }
                | Error::NotHostReadable { .. }
        )
    }

    /// The operating system refused.
    pub fn is_io(&self) -> bool {
        matches!(self.cause(), Error::Io { .. })
    }

    /// The caller mixed things up that do not belong together.
    pub fn is_misuse(&self) -> bool {
        matches!(
            self.cause(),
            Error::WrongRegistry { .. }
                | Error::WrongNamespace { .. }
                | Error::ChargedElsewhere { .. }
                | Error::WrongBase { .. }
                | Error::NotInLease { .. }
                | Error::AdapterWithoutBase { .. }
                | Error::AdapterWithoutEffect { .. }
                | Error::NotABase { .. }
                | Error::TwiceInTransaction { .. }
                | Error::StagedElsewhere { .. }
                | Error::OtherNamespace { .. }
                | Error::NotEvictable { .. }
                | Error::InPart { .. }
                | Error::NotStreamed { .. }
                | Error::LoadInsideLoad
                | Error::Forked { .. }
        )
    }
}
