//! The one error type.
//!
//! What lives here: every way the library says no. Each message names both sides of a conflict and
//! what to do next, on one line: text from outside is escaped where it does not print. What does not:
//! what a caller is to do about it (`classes`), parts of messages (`words`), `PublishError` (in
//! `registry::publish`), which adds the staged set to one of these.

mod classes;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::escape::Clean;
use crate::handle::{Generation, SetHandle, SetKind};
use crate::holdup::{Holdup, Overdue};
use crate::ledger::account::Account;
use crate::names::SetName;
use crate::tensor::Shard;
use words::{a, of_tensor, other, part, some, wanted, whose};

/// Everything that can go wrong.
///
/// Match on variants where you must, on the `is_*` predicates where you can: they stay when
/// variants are added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- the registry ----
    /// A set's name is empty, too long, or has control characters.
    #[error("invalid name {name}: {reason}")]
    InvalidName {
        /// The name, quoted and escaped, cut after 80 characters.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A set of this name exists.
    #[error(
        "{name} is already published: generation {current}, {}; offered: {}. \
         Use replace to give it a new generation, or retire it first",
        Clean(identity),
        Clean(offered)
    )]
    AlreadyPublished {
        /// The name.
        name: SetName,
        /// Its current generation.
        current: Generation,
        /// What that generation is.
        identity: String,
        /// What was offered under the same name.
        offered: String,
    },
    /// A flat registry has another weight of this name.
    #[error(
        "{name} is already registered: generation {current}, {}; offered: {}. \
         Unregister it first, or register under another name",
        Clean(identity),
        Clean(offered)
    )]
    AlreadyRegistered {
        /// The name.
        name: SetName,
        /// Its current generation.
        current: Generation,
        /// What that generation is.
        identity: String,
        /// What was offered under the same name.
        offered: String,
    },
    /// Another publish or retire of this name is under way, or an open transaction has it.
    #[error(
        "{name} is taken: it is being published or retired, or a transaction that is still open \
         publishes it. Try again when that is over"
    )]
    NameBusy {
        /// The name.
        name: SetName,
    },
    /// The handle's set was retired, or the transaction that gave the handle out did not commit (yet).
    #[error(
        "{handle} is stale: its set was retired, or its transaction has not committed. \
         Look its name up again"
    )]
    StaleHandle {
        /// The handle.
        handle: SetHandle,
    },
    /// The handle was made by another registry.
    #[error("{handle} belongs to registry {}, this is registry {registry}", handle.registry)]
    WrongRegistry {
        /// The handle.
        handle: SetHandle,
        /// The registry that was asked.
        registry: u32,
    },
    /// A staged set was offered to another registry than the one whose ledger is charged for it.
    #[error(
        "staged in registry {staged_in}, offered to registry {registry}; \
         its bytes are charged to the first. Stage it where it is to be published"
    )]
    StagedElsewhere {
        /// The registry that staged it.
        staged_in: u32,
        /// The registry that was asked to publish it.
        registry: u32,
    },
    /// A namespace was asked about a set that is not its own.
    #[error(
        "{handle} is not in namespace {namespace:?}, through which it was asked for. Use the \
         namespace that it is in; of another one, only the default namespace's sets can be read and \
         stood on"
    )]
    WrongNamespace {
        /// The set. Not its name: that is its own namespace's business.
        handle: SetHandle,
        /// The namespace that was asked.
        namespace: Box<str>,
    },
    /// A staged set was offered to another namespace than the one that is charged for it.
    #[error(
        "charged to {charged_to}, offered to {offered_to}. Publish it there, or stage it again here"
    )]
    ChargedElsewhere {
        /// Whose bytes they are.
        charged_to: Account,
        /// Whose they were to be.
        offered_to: Account,
    },
    /// A namespace has as many sets as it may.
    #[error(
        "{set} is one set too many for its namespace: {in_use} of {limit} are there. \
         Retire one, or raise the limit"
    )]
    TooManySets {
        /// The set that was to be published.
        set: SetName,
        /// Sets that are published, and publishes under way.
        in_use: usize,
        /// The limit.
        limit: usize,
    },
    /// The set is published but its bytes are not in memory: it was
    /// [evicted](crate::WeightRegistry::evict), or a
    /// [`replace_drained`](crate::WeightRegistry::replace_drained) is under way, or its source failed.
    #[error(
        "{handle} is not resident: it was evicted (load brings it back), or its next generation is being \
         read, or could not be (replace_drained gives it one)"
    )]
    NotResident {
        /// The handle.
        handle: SetHandle,
    },
    /// Bytes that are leased are not taken away.
    #[error("leased: {0}. Wait for its requests, or choose another set")]
    Leased(Box<Holdup>),
    /// Bytes that others have, too, are not taken away: nothing would come back.
    #[error(
        "{set}: others have its bytes, too: aliases, or requests that still have the same bytes under an \
         earlier number. Retire those aliases first, or try again"
    )]
    BytesShared {
        /// The set.
        set: SetName,
    },
    /// Bytes that could not be read again are not taken away.
    #[error(
        "{set}: its source was read once and is gone, or its tensors are in memory of others; \
         publish what is to be evicted from a source::Evictable"
    )]
    NotEvictable {
        /// The set.
        set: SetName,
    },
    /// A source that was to be read again has something else.
    #[error(
        "{set} generation {generation} was {was}, and its source has {now} now; \
         it stays without bytes. Give the set a new generation with replace"
    )]
    ReloadDiffers {
        /// The set.
        set: SetName,
        /// Its current generation.
        generation: Generation,
        /// What that is.
        was: String,
        /// What the source has.
        now: String,
    },
    /// A set is pinned: it is not evicted.
    #[error(
        "{set} is pinned by {}. Drop those pins first, or choose another set",
        some(by)
    )]
    Pinned {
        /// The set.
        set: SetName,
        /// Who pinned it, first come first.
        by: Vec<Arc<str>>,
    },
    /// A set could not be loaded. Everybody who waited for that load is told the same.
    #[error("{set} could not be loaded: {cause}")]
    LoadFailed {
        /// The set.
        set: SetName,
        /// Why.
        cause: Arc<Error>,
    },
    /// A set's load failed a moment ago, and requests do not cause another one yet.
    #[error(
        "{set} is left alone for another {retry_in:.1?}: {failures} load(s) of it failed, the last with: \
         {cause}. Try again then, or use load, which does not wait"
    )]
    BackingOff {
        /// The set.
        set: SetName,
        /// Loads that failed, one after the other.
        failures: u32,
        /// When requests may cause the next one.
        retry_in: Duration,
        /// Why the last one failed.
        cause: Arc<Error>,
    },
    /// The source panicked while it was read, or whoever was to read it is gone.
    #[error("reading {set} was not brought to its end: its source panicked, or its reader is gone")]
    LoadBroken {
        /// The set.
        set: SetName,
    },
    /// What a source or a policy does on behalf of a load would wait for that very load.
    #[error(
        "a source that is being read cannot load sets, and a policy that is being asked can neither load nor \
         evict any: it could wait for itself. Load what a source needs before it is read"
    )]
    LoadInsideLoad,
    /// What is wanted does not fit, whatever is evicted.
    #[error(
        "{requested} bytes do not fit into {} of {limit} bytes beside {immovable} bytes that cannot be \
         evicted: sets that are pinned, wanted as well, or cannot be read again. Raise the limit, or \
         retire or unpin some",
        whose(account)
    )]
    NeverFits {
        /// Bytes that were asked for.
        requested: u64,
        /// Bytes of sets that cannot go.
        immovable: u64,
        /// The limit.
        limit: u64,
        /// Whose limit; `None`: the total's.
        account: Option<Account>,
    },
    /// What is wanted was not there in time.
    #[error("{0}")]
    NotLoaded(Box<Overdue>),
    /// A compare-and-swap found another generation.
    #[error(
        "{set}: expected generation {expected}, found {current}; \
         somebody replaced it meanwhile. Look at the new one and decide again"
    )]
    Conflict {
        /// The set.
        set: SetName,
        /// What the caller expected.
        expected: Generation,
        /// What is current.
        current: Generation,
    },
    /// A drained swap failed after the set had given up its memory.
    #[error(
        "{cause}. {set} has given up its memory for this and has no bytes now: call replace_drained \
         again, or retire it"
    )]
    Emptied {
        /// The set.
        set: SetName,
        /// Why there is no next generation.
        cause: Box<Error>,
    },
    /// A set was to change twice at one instant.
    #[error("{set} is in this transaction already; a set changes once in a transaction")]
    TwiceInTransaction {
        /// The set.
        set: SetName,
    },
    /// Adapters are bound to this set.
    #[error(
        "{set} has dependant adapters: {}. Retire them first, \
         or replace, rebind or retire them in the same transaction",
        some(dependants)
    )]
    Dependants {
        /// The set.
        set: SetName,
        /// The living adapters that are bound to it, by name.
        dependants: Vec<SetName>,
    },
    /// Tensors of other sets are this set's.
    #[error(
        "{set} has aliases in {}. Retire those first, in the same transaction, \
         or use retire_cascade",
        some(aliases)
    )]
    AliasedBy {
        /// The set that has the bytes.
        set: SetName,
        /// The living sets that share them, by name.
        aliases: Vec<SetName>,
    },
    /// Other weights of a flat registry are aliases of this one.
    #[error(
        "{weight} has aliases: {}. Unregister those first; \
         unregister_cascade takes a weight and all its aliases at one instant",
        some(aliases)
    )]
    WeightTied {
        /// The weight that has the bytes.
        weight: SetName,
        /// Its aliases, by name.
        aliases: Vec<SetName>,
    },
    /// Sets that are no weights of the flat registry stand on one of its weights: adapters that are bound
    /// to it, sets with aliases of its tensor.
    #[error(
        "{weight} has dependants in the registry underneath: {}. Retire those there first",
        some(sets)
    )]
    WeightBound {
        /// The weight.
        weight: SetName,
        /// The living sets that stand on it, by name.
        sets: Vec<SetName>,
    },
    /// A tensor is not, or no longer, what its alias says it is.
    #[error("alias {alias:?} of {set}, tensor {tensor:?}: {reason}")]
    AliasMismatch {
        /// The alias.
        alias: String,
        /// The set that it is an alias into.
        set: SetName,
        /// The tensor there.
        tensor: String,
        /// What does not fit, with both sides.
        reason: String,
    },
    /// The generation is not kept for a rollback.
    #[error(
        "{set} keeps no {}; kept: {kept:?}. See keep_previous",
        wanted(generation)
    )]
    NotKept {
        /// The set.
        set: SetName,
        /// What was asked for; `None`: any.
        generation: Option<Generation>,
        /// What is kept, oldest first.
        kept: Vec<Generation>,
    },
    /// A flat registry was given the handle of a set that is not one of its weights.
    #[error(
        "{set} is not a weight of the flat registry in namespace {namespace:?}; \
         use the registry that it was registered in"
    )]
    OtherNamespace {
        /// The set.
        set: SetName,
        /// The namespace of the flat registry that was asked.
        namespace: String,
    },
    /// An adapter's base was retired before the adapter could be published.
    #[error("{base}, the base this adapter is bound to, is not current; publish the base first")]
    BaseNotCurrent {
        /// The base.
        base: SetHandle,
    },
    /// An adapter was offered without a base.
    #[error(
        "the adapter from {} names no base; bind it with .on(base)",
        Clean(origin)
    )]
    AdapterWithoutBase {
        /// Where it comes from.
        origin: String,
    },
    /// A set that is bound to a base has tensors, and none of them changes anything of the base.
    #[error(
        "{} is bound to a base and changes nothing of it: {tensors} tensor(s), no LoRA module, no \
         replacement, no alias. Read adapters with PeftAdapter, or add their matrices with lora",
        Clean(origin)
    )]
    AdapterWithoutEffect {
        /// Where it comes from.
        origin: String,
        /// How many tensors it has.
        tensors: usize,
    },
    /// Something was to be bound to a set that is itself bound to a base.
    #[error("{base} is an adapter; bind to the checkpoint that it stands on")]
    NotABase {
        /// What was given as the base.
        base: SetName,
    },
    /// An adapter was leased together with another base than its own.
    #[error(
        "adapter {adapter} is bound to {}, but it was leased with {}",
        base.as_ref().map_or_else(|| bound_to.to_string(), ToString::to_string),
        other(leased)
    )]
    WrongBase {
        /// The adapter.
        adapter: SetName,
        /// The base it is bound to.
        bound_to: SetHandle,
        /// That base's name, if it is still published.
        base: Option<SetName>,
        /// A base it was leased with.
        leased: Option<SetName>,
    },
    /// A replace would turn a checkpoint into an adapter, or the other way round.
    #[error(
        "{set} is {}; {} cannot replace it. Publish it under its own name",
        a(*current),
        a(*offered)
    )]
    KindMismatch {
        /// The set.
        set: SetName,
        /// What it is.
        current: SetKind,
        /// What was offered.
        offered: SetKind,
    },
    /// A replace would put another part of a tensor where one part of it is.
    #[error(
        "{set}, tensor {tensor:?}: {} is current, {} is offered. \
         Publish it under its own name",
        part(current),
        part(offered)
    )]
    ShardMismatch {
        /// The set.
        set: SetName,
        /// The first tensor that differs.
        tensor: String,
        /// Which part is current; `None` if it is the whole.
        current: Option<Shard>,
        /// Which part was offered; `None` if it is the whole.
        offered: Option<Shard>,
    },
    /// The lease does not hold this set.
    #[error("{set} is not part of this lease, which holds {leased:?}; acquire them together")]
    NotInLease {
        /// The set that was asked for.
        set: SetHandle,
        /// The sets that are leased.
        leased: Vec<SetHandle>,
    },
    /// The generation has no tensor of this name.
    #[error("{set} generation {generation} has no tensor {tensor:?}")]
    NoSuchTensor {
        /// The set.
        set: SetName,
        /// Its generation.
        generation: Generation,
        /// The tensor.
        tensor: String,
    },
    /// The tensor is there, but its dtype is not known, so its bytes cannot be interpreted.
    #[error("{set}: tensor {tensor:?} has the unknown dtype {dtype:?} and cannot be read")]
    UnreadableTensor {
        /// The set.
        set: SetName,
        /// The tensor.
        tensor: String,
        /// The dtype as the file names it.
        dtype: String,
    },
    /// The tensor is in memory that the host cannot read.
    #[error(
        "{set}: tensor {tensor:?} is in memory that the host cannot read; \
         give an engine its place (Lease::place)"
    )]
    NotHostReadable {
        /// The set.
        set: SetName,
        /// The tensor.
        tensor: String,
    },
    /// A scope asked to lease what is no longer current.
    #[error("{handle} was superseded since this scope was opened; refresh the scope")]
    Superseded {
        /// The handle.
        handle: SetHandle,
    },
    /// A wait for the last lease timed out.
    #[error("not drained: {0}")]
    NotDrained(Box<Holdup>),
    /// A wait for the bytes timed out.
    #[error("not reclaimed: {0}")]
    NotReclaimed(Box<Holdup>),
    /// The process was forked.
    #[error("this registry was made in process {made_in}, this is process {now}; make a new one")]
    Forked {
        /// Where it was made.
        made_in: u32,
        /// The calling process.
        now: u32,
    },
    /// All slots, tags or registry numbers of this process are used up.
    #[error("out of slots: 2^32 have been used in this process")]
    Spent,

    // ---- memory ----
    /// The ledger's limit would be passed.
    #[error(
        "{requested} bytes do not fit: {in_use} of {limit} are in use. Retire something, raise the \
         limit, or use replace_drained for the next generation of a set"
    )]
    OverLimit {
        /// What was asked for.
        requested: u64,
        /// What is reserved, resident, kept and retired together.
        in_use: u64,
        /// The limit.
        limit: u64,
    },
    /// The limit of one account would be passed. What other accounts have does not matter.
    #[error(
        "{requested} bytes do not fit in {account}: {in_use} of {limit} are in use. \
         Retire something there, raise its limit, or use replace_drained for the next generation of \
         a set"
    )]
    OverAccountLimit {
        /// The account.
        account: Account,
        /// What was asked for.
        requested: u64,
        /// What is reserved, resident, kept and retired there together.
        in_use: u64,
        /// Its limit.
        limit: u64,
    },
    /// The operating system has no memory for an arena.
    #[error("the operating system refused {bytes} bytes")]
    OutOfMemory {
        /// The size of the arena.
        bytes: u64,
    },
    /// Memory that somebody else owns is not what its owner, or its plan, says.
    #[error("memory of {origin}: {reason}")]
    InvalidMemory {
        /// Where it comes from.
        origin: String,
        /// What is wrong, with both sides.
        reason: String,
    },

    // ---- parts ----
    /// A plan cannot be cut into parts that are streamed.
    #[error("{origin} cannot be streamed: {reason}")]
    InvalidParts {
        /// Where it comes from.
        origin: String,
        /// What is in the way, with both sides.
        reason: String,
    },
    /// A tensor of a set that is streamed is not in memory all the time.
    #[error(
        "{tensor:?} of {set} is in its part {part:?}, which is streamed: read it through a stream"
    )]
    InPart {
        /// The set.
        set: SetName,
        /// The tensor.
        tensor: String,
        /// The part that it is in.
        part: String,
    },
    /// A set that was asked for its parts has none.
    #[error("{set} is not streamed: all of it is in memory. Publish it as source::Streamed")]
    NotStreamed {
        /// The set.
        set: SetName,
    },
    /// A set has no such part.
    #[error("{set} has {parts} parts, counted from 0; there is no part {part}")]
    NoSuchPart {
        /// The set.
        set: SetName,
        /// The part that was asked for.
        part: usize,
        /// How many it has.
        parts: usize,
    },
    /// A part could not be read.
    #[error("part {part:?} of {set} could not be read: {cause}")]
    PartFailed {
        /// The set.
        set: SetName,
        /// The part.
        part: String,
        /// Why.
        cause: Arc<Error>,
    },
    /// A part was not there in time.
    #[error(
        "part {part:?} of {set} was not there after {waited:.1?}: {}",
        if *reading {
            "it is being read".to_owned()
        } else {
            format!("{held} parts are held in its window; give them back, or use a larger one")
        }
    )]
    PartNotLoaded {
        /// The set.
        set: SetName,
        /// The part.
        part: String,
        /// How long was waited.
        waited: Duration,
        /// It has a place, and is being read. Otherwise it found none, or nobody who would read it.
        reading: bool,
        /// How many parts are held in the window.
        held: usize,
    },

    // ---- sources ----
    /// The operating system refused something.
    #[error("cannot {op} {}: {}", Clean(path.display()), Clean(source))]
    Io {
        /// The file, directory, or thing.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// A file is not what its format demands.
    #[error("{}{}: {}", Clean(file.display()), of_tensor(tensor), Clean(reason))]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The tensor, if one is to blame.
        tensor: Option<String>,
        /// What is wrong, with both sides.
        reason: String,
    },
    /// A tensor given in memory is not consistent.
    #[error("tensor {tensor:?}: {}", Clean(reason))]
    InvalidTensor {
        /// The tensor.
        tensor: String,
        /// What is wrong, with both sides.
        reason: String,
    },
    /// A tensor is written by one writer at a time, and another one has it.
    #[error(
        "tensor {tensor:?} is being written by another writer; it is free when that is dropped"
    )]
    TensorBusy {
        /// The tensor.
        tensor: String,
    },
    /// A file that an index names is not there.
    #[error("{}: the index names it, but it is not there", Clean(file.display()))]
    MissingShard {
        /// The shard.
        file: PathBuf,
    },
    /// A file changed between its header and its last byte.
    #[error(
        "{} changed while it was read: {}. Write new files and rename them",
        Clean(file.display()),
        Clean(what)
    )]
    SourceChanged {
        /// The file.
        file: PathBuf,
        /// What changed.
        what: String,
    },
    /// An option whose meaning is not implemented; ignoring it would give wrong results.
    #[error(
        "{}: {} = {} is not supported. {advice}",
        Clean(file.display()),
        Clean(option),
        Clean(value)
    )]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What to do.
        advice: &'static str,
    },
    /// An adapter does not fit its base, or its own configuration.
    #[error("adapter {}, module {module:?}: {}", Clean(origin), Clean(reason))]
    AdapterMismatch {
        /// Where the adapter comes from.
        origin: String,
        /// The module.
        module: String,
        /// What does not fit, with both sides.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_small_and_travel() {
        fn travels<T: Send + Sync + 'static>() {}
        travels::<Error>();
        assert!(size_of::<Error>() <= 128, "{}", size_of::<Error>());
    }
}
