//! Keeping the books equal to the registry, whoever changes it.
//!
//! What lives here: [`Books`], the index together with the commit as of which it is exact, and how it
//! catches up with what others committed. What does not: the tables themselves (`index`), the lock that
//! guards all of it (`registry`, E30).
//!
//! A set of ours can be retired, replaced, rolled back or bound anew in the registry underneath. The
//! books hear of it as any subscriber does, from the event stream, and look at what was changed: a
//! question costs what others changed since the last one. An event may be missing: the stream is bounded,
//! its writer may be between its commit and its post, and a commit of nothing has none. Then every weight
//! is looked at once.

use std::ops::{Deref, DerefMut};

use super::index::{Entry, Index, Now};
use crate::handle::{Generation, SetHandle};
use crate::names::SetName;
use crate::registry::{EventKind, Next, Scope, Subscription, WeightRegistry};

/// How often it is tried to follow the events before every weight is looked at.
const TRIES: usize = 3;

/// See the module documentation.
pub(super) struct Books {
    index: Index,
    /// The index is exact as of this commit.
    as_of: Generation,
    /// What others do: the events of all commits after `heard` are still to be read.
    events: Subscription,
    heard: Generation,
}

/// A weight that was just published, to be entered.
pub(super) struct Coming<'n> {
    pub(super) set: SetHandle,
    pub(super) name: SetName,
    pub(super) adapter: Option<&'n str>,
}

impl Deref for Books {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

impl DerefMut for Books {
    fn deref_mut(&mut self) -> &mut Index {
        &mut self.index
    }
}

impl Books {
    /// Of nothing, which is right as of any commit.
    pub(super) fn new(registry: &WeightRegistry) -> Self {
        let (events, now) = from_here(registry, |scope| scope.number());
        Books {
            index: Index::default(),
            as_of: now,
            events,
            heard: now,
        }
    }

    /// Makes the index exact as of a commit that is not older than this call.
    pub(super) fn catch_up(&mut self, registry: &WeightRegistry) {
        let mut now = registry.scope(|scope| scope.number());
        if now == self.as_of {
            return;
        }
        let mut changed = Vec::new();
        for _ in 0..TRIES {
            if !self.hear(now, &mut changed) {
                break;
            }
            #[cfg(all(test, not(weighbridge_loom)))]
            tests::MEANWHILE.take().into_iter().for_each(|act| act());
            now = registry.scope(|scope| {
                changed.drain(..).for_each(|set| self.look(scope, set));
                scope.number()
            });
            // Everything that was changed up to here was looked at since; what comes later is heard later.
            if now == self.heard {
                self.as_of = now;
                return;
            }
        }
        let (events, now) = from_here(registry, |scope| {
            for set in self.index.sets() {
                self.look(scope, set);
            }
            scope.number()
        });
        (self.events, self.heard, self.as_of) = (events, now, now);
    }

    /// Reads the events of all commits up to `now`, and notes which of our sets they changed. `false`:
    /// some are missing.
    fn hear(&mut self, now: Generation, changed: &mut Vec<SetHandle>) -> bool {
        while self.heard < now {
            let Next::Event(event) = self.events.try_next() else {
                return false;
            };
            let (set, commit, more) = match event.kind {
                EventKind::Published { commit, more, now } => (now.handle, commit, more),
                EventKind::Replaced {
                    commit, more, now, ..
                } => (now.handle, commit, more),
                EventKind::Retired {
                    commit,
                    more,
                    previous,
                } => (previous.handle, commit, more),
                EventKind::Reclaimed { .. }
                | EventKind::Evicted { .. }
                | EventKind::Loaded { .. }
                | EventKind::Refused { .. } => continue,
            };
            if self.index.get(set).is_some() {
                changed.push(set);
            }
            if more == 0 {
                self.heard = self.heard.max(commit);
            }
        }
        true
    }

    /// What has become of a set of ours?
    fn look(&mut self, scope: &Scope<'_>, set: SetHandle) {
        #[cfg(all(test, not(weighbridge_loom)))]
        tests::LOOKED.with(|looked| looked.set(looked.get() + 1));
        match scope.get(set) {
            Ok(view) => self.index.revise(set, Now::of(&view)),
            Err(_) => self.index.remove(set),
        }
    }

    /// Enters what we published in the commit `number`; `None`: in that of the first one. What somebody
    /// retired since is not entered.
    pub(super) fn enter<'n>(
        &mut self,
        registry: &WeightRegistry,
        number: Option<Generation>,
        all: impl IntoIterator<Item = Coming<'n>>,
    ) {
        let number = registry.scope(|scope| {
            let mut first = None;
            for Coming { set, name, adapter } in all {
                let Ok(view) = scope.get(set) else { continue };
                let now = Now::of(&view);
                first.get_or_insert(now.generation);
                self.index.insert(set, Entry::new(name, now), adapter);
            }
            number.or(first)
        });
        if let Some(number) = number {
            self.committed(registry, number);
        }
    }

    /// We published a set that is no weight: there is nothing to enter.
    pub(super) fn beside(&mut self, registry: &WeightRegistry, set: SetHandle) {
        let number = registry.scope(|scope| Some(scope.get(set).ok()?.generation()));
        if let Some(number) = number {
            self.committed(registry, number);
        }
    }

    /// Strikes out what we retired in the commit `number`.
    pub(super) fn strike(
        &mut self,
        registry: &WeightRegistry,
        number: Generation,
        sets: &[SetHandle],
    ) {
        sets.iter().for_each(|&set| self.index.remove(set));
        self.committed(registry, number);
    }

    /// The index has what we did in the commit `number`, or in none if it was not ours. If it was the
    /// next one, nothing is to be caught up with, and our own events need not be read.
    fn committed(&mut self, registry: &WeightRegistry, number: Generation) {
        if self.as_of.number() + 1 != number.number() {
            return;
        }
        self.as_of = number;
        let (events, now) = from_here(registry, |scope| scope.number());
        if now == number {
            (self.events, self.heard) = (events, number);
        }
    }
}

/// A place in the stream, and what `look` sees then: every commit that is newer than what it sees has its
/// events behind that place. (A commit gets their places when the clock shows it already, and who sees
/// the places sees the clock: E25.)
fn from_here<R>(
    registry: &WeightRegistry,
    look: impl FnOnce(&mut Scope<'_>) -> R,
) -> (Subscription, R) {
    let events = registry.events();
    (events, registry.scope(look))
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;

    use super::Coming;
    use crate::Dtype;
    use crate::flat::FlatRegistry;
    use crate::flat::pinned::TENSOR;
    use crate::names::SetName;
    use crate::registry::{Retirement, WeightRegistry};
    use crate::source::InMemory;

    thread_local! {
        /// What somebody does on this thread between the reading of events and the look.
        pub(super) static MEANWHILE: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
        /// How many weights were looked at on this thread.
        pub(super) static LOOKED: Cell<u64> = const { Cell::new(0) };
    }

    /// What others change costs a look at what they changed, however many weights there are; what we
    /// change costs none.
    #[test]
    fn a_question_looks_at_what_others_changed_and_at_nothing_else() {
        let core = WeightRegistry::builder()
            .event_capacity(64)
            .build()
            .unwrap();
        let flat = FlatRegistry::new(Arc::new(core));
        let core = flat.registry();
        let looked = || LOOKED.with(|looked| looked.replace(0));
        // More than the stream holds.
        let weights: Vec<_> = (0..200)
            .map(|name| flat.register(&name.to_string(), Dtype::U8, [4], &[1; 4]))
            .map(|made| made.unwrap().handle())
            .collect();
        assert_eq!((flat.len(), looked()), (200, 0));
        // A question never waits for an event that somebody is about to post, and looks at everything
        // instead: so we wait for the reclaimer's.
        let back = |gone: Retirement| gone.reclaimed(Duration::from_secs(60)).unwrap();
        back(flat.unregister(weights[0]).unwrap());
        assert_eq!((flat.len(), looked()), (199, 0));
        for _ in 0..40 {
            let other = core.publish("other", weight()).unwrap();
            back(core.retire(other).unwrap());
            assert_eq!((flat.len(), looked()), (199, 0));
        }
        back(core.retire(weights[1].set()).unwrap());
        let other = core.publish("other", weight()).unwrap();
        assert_eq!((flat.len(), looked()), (198, 1));
        // What the stream no longer holds: once at each, and what it still holds not again.
        for _ in 0..80 {
            back(core.replace(weights[2].set(), weight()).unwrap().previous);
        }
        assert_eq!((flat.len(), looked()), (198, 198));
        assert_eq!((flat.total_bytes(), looked()), (197 * 4 + 1, 0));
        back(core.retire(other).unwrap());
        assert_eq!((flat.len(), looked()), (198, 0));
    }

    fn weight() -> InMemory {
        InMemory::new().tensor(TENSOR, Dtype::U8, [1], [1]).unwrap()
    }

    /// Somebody retires a weight between two steps of ours: when the books have caught up and we have not
    /// committed yet, or when we have committed and not entered it yet.
    #[test]
    fn what_happens_between_our_steps_is_heard_of() {
        for before in [true, false] {
            let core = WeightRegistry::builder().build().unwrap();
            let flat = FlatRegistry::new(Arc::new(core));
            let core = flat.registry();
            let w = flat.register("w", Dtype::U8, [4], &[1; 4]).unwrap();
            let meanwhile = || drop(core.retire(w.handle().set()).unwrap());
            let mut books = flat.books();
            if before {
                meanwhile();
            }
            let name = SetName::from(("flat", "new"));
            let set = core.publish(&name, weight()).unwrap();
            if !before {
                meanwhile();
            }
            let adapter = None;
            books.enter(core, None, [Coming { set, name, adapter }]);
            drop(books);
            core.publish("something else", weight()).unwrap();
            assert_eq!((flat.len(), flat.total_bytes()), (1, 1), "{before}");
        }
    }

    /// Or while the books catch up: the question has it, or the next one.
    #[test]
    fn what_happens_while_the_books_catch_up_is_heard_of() {
        let core = Arc::new(WeightRegistry::builder().build().unwrap());
        let flat = FlatRegistry::new(Arc::clone(&core));
        let [v, w] = ["v", "w"].map(|name| {
            let made = flat.register(name, Dtype::U8, [4], &[1; 4]);
            made.unwrap().handle().set()
        });
        let other = core.publish("something else", weight()).unwrap();
        core.retire(v).unwrap();
        let registry = Arc::clone(&core);
        MEANWHILE.set(Some(Box::new(move || drop(registry.retire(w).unwrap()))));
        assert!(flat.len() <= 1);
        assert!(MEANWHILE.take().is_none());
        assert_eq!(flat.len(), 0);
        core.retire(other).unwrap();
        assert_eq!(flat.len(), 0);
    }
}
