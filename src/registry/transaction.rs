//! Several sets at one instant.
//!
//! What lives here: [`Transaction`], its builder side and its answer. What does not: the commit
//! (`commit`), which is the same for one set.

use std::fmt;
use std::sync::Arc;

// Its hasher is the quicker one: handles are our own numbers.
use hashbrown::HashMap;

use super::WeightRegistry;
use super::accounts::Terms;
use super::bind::check_base;
use super::event::Operation;
use super::record::SetRecord;
use super::reserve::Reserved;
use super::retirement::Retirement;
use super::staged::{PublishError, Staged};
use super::step::{Act, Step};
use crate::core::Expect;
use crate::error::Error;
use crate::handle::{Generation, SetHandle};
use crate::modules::Fit;
use crate::names::SetName;
use crate::source::Source;

/// Publishes, replaces and retires any number of sets at one instant, or not at all.
///
/// Readers see all of it or none: a lease of several sets never mixes the two sides. A base may be
/// replaced if every adapter that stands on it is replaced or retired with it, and an adapter may be
/// bound to a base that is published or replaced by the same transaction.
///
/// The names of sets to be published are taken when they are added; dropping the transaction frees
/// them, gives the staged bytes back, and leaves no trace.
///
/// # Examples
/// A new base, and the adapter that was trained for it, with no instant in between:
/// ```
/// use weighbridge::WeightRegistry;
/// use weighbridge::source::{Checkpoint, PeftAdapter};
///
/// let registry = WeightRegistry::builder().build()?;
/// let base = registry.publish("base", Checkpoint::open("fixtures/tiny-llama")?)?;
/// let pirate = PeftAdapter::open("fixtures/adapters/pirate-v1")?;
/// let pirate = registry.publish("pirate", pirate.on(base))?;
///
/// let mut both = registry.transaction();
/// both.replace(base, registry.stage(Checkpoint::open("fixtures/tiny-llama-sharded")?)?)?;
/// let next = PeftAdapter::open("fixtures/adapters/pirate-v2")?;
/// both.replace(pirate, both.stage(next.on(base))?)?;
/// let done = both.commit()?;
///
/// let lease = registry.acquire([base, pirate])?;
/// assert!(lease.sets().all(|set| set.generation() == done.generation));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a transaction that is not committed changes nothing"]
pub struct Transaction<'r> {
    registry: &'r WeightRegistry,
    steps: Vec<Step>,
    /// Where each set's step is: a set changes once.
    places: HashMap<SetHandle, usize>,
    reserved: Vec<Reserved<'r>>,
}

/// A transaction that went through.
#[derive(Debug)]
#[non_exhaustive]
pub struct Committed {
    /// The generation that every published or replaced set has now.
    pub generation: Generation,
    /// The sets that were published, in the order in which they were added.
    pub published: Vec<SetHandle>,
    /// What the replaced and retired sets were before, in the order in which they were added.
    pub previous: Vec<Retirement>,
}

/// A transaction that changed nothing: why, which step is to blame, and what was staged.
#[derive(Debug)]
pub struct TransactionError(Box<(Error, usize, Vec<Staged>)>);

impl TransactionError {
    /// Why.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The step to blame, counted from 0 in the order in which steps were added.
    pub fn step(&self) -> usize {
        self.0.1
    }

    /// The staged sets, in the order in which they were added.
    pub fn into_staged(self) -> Vec<Staged> {
        self.0.2
    }
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing was changed; step {}: {}", self.0.1, self.0.0)
    }
}

impl std::error::Error for TransactionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.0.source()
    }
}

impl From<TransactionError> for Error {
    fn from(failed: TransactionError) -> Self {
        failed.0.0
    }
}

impl WeightRegistry {
    /// Starts a transaction. Nothing happens before [`Transaction::commit`].
    pub fn transaction(&self) -> Transaction<'_> {
        Transaction {
            registry: self,
            steps: Vec::new(),
            places: HashMap::new(),
            reserved: Vec::new(),
        }
    }
}

impl Transaction<'_> {
    /// [`WeightRegistry::stage`] for this transaction: an adapter's base may be a set that this
    /// transaction publishes or replaces, and is then checked against what it is going to be.
    ///
    /// # Errors
    /// As [`WeightRegistry::stage`].
    pub fn stage(&self, source: impl Source) -> Result<Staged, Error> {
        self.stage_on(Terms::default(), source)
    }

    /// [`stage`](Self::stage), on these terms.
    pub(super) fn stage_on(&self, terms: Terms<'_>, source: impl Source) -> Result<Staged, Error> {
        self.registry.stage_if(terms, source, |adapter, base| {
            let along = self.places.get(&base).map(|&place| &self.steps[place]);
            match along.map(|step| (&step.record, &step.act)) {
                Some((record, Act::Become(staged))) => {
                    check_base(adapter, record, &staged.content.facts)
                }
                Some((_, Act::Retire)) => Err(Error::BaseNotCurrent { base }),
                // What comes back or stays is looked at by the commit.
                Some(_) => Ok(Fit::default()),
                None => self.registry.fits_current(adapter, base),
            }
        })
    }

    /// A new set. Its name is taken from here on, its handle resolves from the commit on.
    ///
    /// # Errors
    /// As [`WeightRegistry::publish_staged`], and [`Error::TwiceInTransaction`] for a name that it
    /// publishes already; the transaction goes on without this step.
    pub fn publish(
        &mut self,
        name: impl Into<SetName>,
        staged: Staged,
    ) -> Result<SetHandle, PublishError> {
        let name = name.into();
        let reserved = match self.registry.reserve(name.clone(), &staged) {
            Ok(reserved) => reserved,
            Err(error) => {
                let ours = |one: &Reserved<'_>| one.record.name == name;
                let error = match error {
                    // Nobody else: trying again would not help.
                    Error::NameBusy { .. } if self.reserved.iter().any(ours) => {
                        Error::TwiceInTransaction { set: name.clone() }
                    }
                    other => other,
                };
                self.note_refusal(&name, &error);
                return Err(PublishError::new(error, Some(staged)));
            }
        };
        let handle = reserved.record.handle;
        let record = Arc::clone(&reserved.record);
        self.reserved.push(reserved);
        self.add(record, Expect::Vacant, Act::Become(Box::new(staged)));
        Ok(handle)
    }

    /// The next generation of a set.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::KindMismatch`],
    /// [`Error::ShardMismatch`], [`Error::StagedElsewhere`], [`Error::TwiceInTransaction`]; the transaction goes on without
    /// this step.
    pub fn replace(&mut self, set: SetHandle, staged: Staged) -> Result<(), PublishError> {
        self.replace_expecting(set, Expect::Tenant(set.tag), staged)
    }

    /// [`replace`](Self::replace), provided that `expected` is still current at the commit.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub fn replace_if(
        &mut self,
        set: SetHandle,
        expected: Generation,
        staged: Staged,
    ) -> Result<(), PublishError> {
        let (tag, birth) = (set.tag, expected.0);
        self.replace_expecting(set, Expect::Exactly { tag, birth }, staged)
    }

    /// A set goes.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::TwiceInTransaction`]; the
    /// transaction goes on without this step.
    pub fn retire(&mut self, set: SetHandle) -> Result<(), Error> {
        self.retire_expecting(set, Expect::Tenant(set.tag))
    }

    /// [`retire`](Self::retire), provided that `expected` is still current at the commit.
    ///
    /// # Errors
    /// As [`retire`](Self::retire).
    pub fn retire_if(&mut self, set: SetHandle, expected: Generation) -> Result<(), Error> {
        let (tag, birth) = (set.tag, expected.0);
        self.retire_expecting(set, Expect::Exactly { tag, birth })
    }

    /// A set goes, together with every set that is bound to it now, directly or not. Sets that are in
    /// this transaction already stay as they are in it.
    ///
    /// # Errors
    /// As [`retire`](Self::retire).
    pub fn retire_cascade(&mut self, set: SetHandle) -> Result<(), Error> {
        self.retire(set)?;
        let mut next = vec![set];
        while let Some(base) = next.pop() {
            for one in self.registry.dependants(base) {
                let handle = one.record.handle;
                if !self.places.contains_key(&handle) {
                    self.add(one.record, Expect::Tenant(handle.tag), Act::Retire);
                    next.push(handle);
                }
            }
        }
        Ok(())
    }

    /// An adapter moves to `base` as it is: the same bytes under a new generation, bound to the
    /// generation of `base` that is current after this transaction.
    ///
    /// # Errors
    /// [`Error::KindMismatch`] if it is no adapter, [`Error::StaleHandle`], [`Error::WrongRegistry`],
    /// [`Error::TwiceInTransaction`], [`Error::Forked`]; the transaction goes on without this step.
    pub fn rebind(&mut self, adapter: SetHandle, base: SetHandle) -> Result<(), Error> {
        let process = self.registry.shared.check_process();
        let record = process
            .and_then(|()| self.registry.key(base))
            .and_then(|_| self.registry.check_rebind(adapter))
            .and_then(|record| self.once(record))
            .inspect_err(|error| self.note_refusal(adapter, error))?;
        self.add(record, Expect::Tenant(adapter.tag), Act::Rebind(Some(base)));
        Ok(())
    }

    /// Every adapter on `base` that is not in this transaction yet moves to the generation of `base`
    /// that is current after it. Returns how many.
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::Forked`].
    pub fn rebind_adapters(&mut self, base: SetHandle) -> Result<usize, Error> {
        let process = self.registry.shared.check_process();
        process
            .and_then(|()| self.registry.record(base))
            .inspect_err(|error| self.note_refusal(base, error))?;
        let mut count = 0;
        for one in self.registry.dependants(base) {
            if one.adapter && !self.places.contains_key(&one.record.handle) {
                let step = one.rebind(None);
                self.add(step.record, step.expect, step.act);
                count += 1;
            }
        }
        Ok(count)
    }

    /// A set goes back to its latest kept generation, see [`WeightRegistry::rollback`].
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::TwiceInTransaction`],
    /// [`Error::Forked`]; the transaction goes on without this step. That nothing is kept is said by [`commit`](Self::commit).
    pub fn rollback(&mut self, set: SetHandle) -> Result<(), Error> {
        let record = self.there_once(set)?;
        self.add(record, Expect::Tenant(set.tag), Act::Restore(None));
        Ok(())
    }

    /// Makes all of it so, at one instant. An empty transaction is a commit, too.
    ///
    /// Waits for other writers, never for readers.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::StaleHandle`], [`Error::Dependants`], [`Error::AliasedBy`],
    /// [`Error::BaseNotCurrent`], [`Error::NotABase`], [`Error::AdapterMismatch`],
    /// [`Error::AliasMismatch`], [`Error::NotKept`], [`Error::NotResident`], [`Error::Forked`]; what a
    /// namespace has no room for, [`Error::OverAccountLimit`]. Nothing is changed then, and the staged
    /// sets come back.
    pub fn commit(self) -> Result<Committed, TransactionError> {
        let registry = self.registry;
        let subject = format!("{} set(s)", self.steps.len());
        let (operation, blame) = (Operation::Transaction, TransactionError::error);
        registry.observe(operation, subject, blame, || self.commit_all())
    }

    fn commit_all(self) -> Result<Committed, TransactionError> {
        let Transaction {
            registry,
            steps,
            reserved,
            places: _,
        } = self;
        if let Err(error) = registry.shared.check_process() {
            return Err(undone(error, 0, steps));
        }
        let going: Vec<Arc<SetRecord>> = steps
            .iter()
            .filter(|step| matches!(step.act, Act::Retire))
            .map(|step| Arc::clone(&step.record))
            .collect();
        let changes = steps.len();
        let done = registry
            .commit(steps)
            .map_err(|failed| undone(failed.error, failed.index, failed.steps))?;
        let published = registry.settle(reserved);
        for record in going {
            registry.free_name(&record);
        }
        registry.committed(done.number, changes);
        Ok(Committed {
            generation: Generation(done.number),
            published,
            previous: done.previous.into_iter().flatten().collect(),
        })
    }

    fn replace_expecting(
        &mut self,
        set: SetHandle,
        expect: Expect,
        staged: Staged,
    ) -> Result<(), PublishError> {
        let record = self.registry.check_replace(set, &staged);
        match record.and_then(|record| self.once(record)) {
            Ok(record) => {
                self.add(record, expect, Act::Become(Box::new(staged)));
                Ok(())
            }
            Err(error) => {
                self.note_refusal(set, &error);
                Err(PublishError::new(error, Some(staged)))
            }
        }
    }

    fn retire_expecting(&mut self, set: SetHandle, expect: Expect) -> Result<(), Error> {
        let record = self.there_once(set)?;
        self.add(record, expect, Act::Retire);
        Ok(())
    }

    /// A set that is there, and not in this transaction yet.
    fn there_once(&self, set: SetHandle) -> Result<Arc<SetRecord>, Error> {
        let process = self.registry.shared.check_process();
        process
            .and_then(|()| self.registry.record(set))
            .and_then(|record| self.once(record))
            .inspect_err(|error| self.note_refusal(set, error))
    }

    /// A step was not added.
    fn note_refusal(&self, subject: impl fmt::Display, error: &Error) {
        let operation = Operation::Transaction;
        self.registry.note_refusal(operation, subject, error);
    }

    /// A set changes once in a transaction.
    fn once(&self, record: Arc<SetRecord>) -> Result<Arc<SetRecord>, Error> {
        if self.places.contains_key(&record.handle) {
            return Err(Error::TwiceInTransaction {
                set: record.name.clone(),
            });
        }
        Ok(record)
    }

    fn add(&mut self, record: Arc<SetRecord>, expect: Expect, act: Act) {
        self.places.insert(record.handle, self.steps.len());
        self.steps.push(Step {
            record,
            expect,
            act,
        });
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.steps.iter().map(|step| &step.record.name);
        f.debug_list().entries(names).finish()
    }
}

fn undone(error: Error, index: usize, steps: Vec<Step>) -> TransactionError {
    let staged = steps.into_iter().filter_map(Step::into_staged).collect();
    TransactionError(Box::new((error, index, staged)))
}
