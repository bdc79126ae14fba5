//! Bytes that go and come back, in the registry and in the model.
//!
//! What lives here: evict, load, pins, and acquiring what may be away, with what was said about it before. What
//! does not: what the answers are (`rooms`).
//!
//! Which sets go is the policy's: the events say so, and the model says whether they could, whether they
//! were enough, and whether each of them was needed. Not asked: what goes for an account whose limit was set
//! below what it has.

use std::time::Duration;

use weighbridge::{Demand, Estimate, EventKind, Next, SetHandle};

use super::asks::{Answer, OPERATOR};
use super::model::{self, Told};
use super::ops::Who;
use super::rooms::Missing;
use super::world::{World, see};

/// What becomes of a request.
enum Outcome {
    Refused(String),
    /// It fits, maybe in place of others.
    Comes(Missing),
    NotLoaded,
}

impl World<'_> {
    pub fn evict(&mut self, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        let answer = self.registry.evict(set);
        let expected = self.model.evict(set);
        self.compare("evict", &answer, &expected);
        assert_eq!(answer.ok(), expected.ok(), "bytes that went");
        Some(())
    }

    pub fn load(&mut self, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        let answer = self.registry.load(set);
        let expected = self.model.load(set);
        self.compare("load", &answer, &expected);
        assert_eq!(answer.ok(), expected.ok(), "bytes that came");
        Some(())
    }

    pub fn pin(&mut self, place: usize, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        self.unpin(place);
        let by = format!("pin {place}");
        let answer = self.registry.pin(set, &by);
        let expected = self.model.pin(set, &by);
        self.compare("pin", &answer, &expected);
        self.pins[place] = answer.ok().map(|pin| (pin, set));
        Some(())
    }

    pub fn unpin(&mut self, place: usize) -> Option<()> {
        let (pin, set) = self.pins[place].take()?;
        drop(pin);
        self.model.unpin(set, &format!("pin {place}"));
        Some(())
    }

    pub fn acquire_or_load(&mut self, place: usize, sets: &[Who]) -> Option<()> {
        let sets: Vec<SetHandle> = sets.iter().filter_map(|&who| self.handle(who)).collect();
        if sets.is_empty() {
            return None;
        }
        let view = self.model.view();
        let at_once = self.model.acquire(OPERATOR, &view, &sets);
        let expected = match at_once {
            Err(why) if why.starts_with("NotResident") => self.wanted(&sets),
            Err(why) => {
                let answer = self.registry.acquire_or_load(&sets, Duration::ZERO);
                self.compare("acquire_or_load", &answer, &Answer::<()>::Err(why));
                return Some(());
            }
            Ok(lease) => {
                let answer = self.registry.acquire_or_load(&sets, Duration::ZERO);
                self.compare("acquire_or_load", &answer, &Ok(()));
                self.put(place, answer.expect("as compared"), lease);
                return Some(());
            }
        };
        self.estimated(&sets, &expected);
        let answer = self.registry.acquire_or_load(&sets, Duration::ZERO);
        let moved = self.moved();
        let subject: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let subject = subject.join(", ");
        let refused = match expected {
            Outcome::Refused(why) => {
                assert!(moved.is_empty(), "nothing moves for what is refused");
                why
            }
            Outcome::NotLoaded => {
                self.moved_in_vain(&sets, &moved);
                "NotLoaded".to_owned()
            }
            Outcome::Comes(missing) => {
                self.compare("acquire_or_load", &answer, &Ok(()));
                self.came(&sets, &missing, &moved);
                let view = self.model.view();
                let mirror = self.model.acquire(OPERATOR, &view, &sets);
                let mirror: model::Lease = mirror.expect("all of it is there");
                self.put(place, answer.expect("as compared"), mirror);
                return Some(());
            }
        };
        let expected: Answer = self.model.tell("load", subject, Err(refused));
        self.compare("acquire_or_load", &answer, &expected);
        Some(())
    }

    fn wanted(&self, sets: &[SetHandle]) -> Outcome {
        let missing = match self
            .model
            .pairing(sets)
            .and_then(|()| self.model.missing(sets))
        {
            Ok(missing) => missing,
            Err(why) => return Outcome::Refused(why),
        };
        if self.model.fits_in_place_of(&missing, &[]) {
            return Outcome::Comes(missing);
        }
        if let Some(why) = self.model.never_fits(&missing, sets) {
            return Outcome::Refused(why);
        }
        match self
            .model
            .fits_in_place_of(&missing, &self.model.could_go(sets))
        {
            true => Outcome::Comes(missing),
            false => Outcome::NotLoaded,
        }
    }

    /// What is said beforehand is what happens then.
    fn estimated(&mut self, sets: &[SetHandle], expected: &Outcome) {
        let demand = sets
            .iter()
            .fold(Demand::new(), |demand, &set| demand.set(set));
        let estimate = self.registry.estimate(&demand);
        let model = &self.model;
        self.estimate = None;
        match (estimate, expected) {
            (Err(error), Outcome::Refused(why)) => {
                // It does not look at who goes with whom.
                let said = super::said::said(&error);
                assert!(
                    said == *why || why.starts_with("WrongBase"),
                    "{said}, and {why}"
                );
                see("estimate refused".to_owned());
            }
            (Ok(_), Outcome::Refused(why)) if why.starts_with("WrongBase") => {}
            (
                Ok(Estimate::Never {
                    missing,
                    immovable,
                    limit,
                    account,
                    ..
                }),
                Outcome::Refused(why),
            ) => {
                let account = account.map(|account| account.to_string());
                let wanted = missing + limit - immovable;
                let said = format!("NeverFits {account:?} {wanted} {immovable} {limit}");
                assert_eq!(said, *why, "the estimate (left)");
                see("estimate never".to_owned());
            }
            (Ok(Estimate::Now { bytes, .. }), Outcome::Comes(missing)) => {
                assert!(model.fits_in_place_of(missing, &[]), "it does not fit now");
                assert_eq!(bytes, missing.bytes(), "what it takes");
                see("estimate now".to_owned());
            }
            (
                Ok(Estimate::AfterEvicting {
                    bytes, sets, freed, ..
                }),
                Outcome::Comes(missing),
            ) => {
                assert_eq!(bytes, missing.bytes(), "what it takes");
                if !model.some_are_shared() {
                    let mut names: Vec<String> = sets.iter().map(ToString::to_string).collect();
                    names.sort();
                    self.estimate = Some((names, freed));
                }
                see("estimate after evicting".to_owned());
            }
            (Ok(Estimate::WhenReleased { .. }), Outcome::NotLoaded) => {
                see("estimate when released".to_owned());
            }
            // What others have, too, is no room, and an estimate does not know it.
            (Ok(Estimate::AfterEvicting { .. }), Outcome::NotLoaded) if model.some_are_shared() => {
            }
            (estimate, Outcome::Refused(why)) => panic!("estimated {estimate:?}, and then {why}"),
            (estimate, Outcome::Comes(missing)) => {
                panic!("estimated {estimate:?}, and {missing:?} comes")
            }
            (estimate, Outcome::NotLoaded) => panic!("estimated {estimate:?}, and nothing comes"),
        }
    }

    /// What went and came since the last look, in that order: `true`, it came.
    fn moved(&mut self) -> Vec<(SetHandle, bool)> {
        let mut moved = Vec::new();
        while let Next::Event(event) = self.events.try_next() {
            match &event.kind {
                EventKind::Evicted { now, .. } => moved.push((now.handle, false)),
                EventKind::Loaded { now, .. } => moved.push((now.handle, true)),
                _ => {}
            }
            self.early.push(event);
        }
        moved
    }

    /// Those that went could go, were enough, and each of them was needed; then came what was wanted.
    fn came(&mut self, sets: &[SetHandle], missing: &Missing, moved: &[(SetHandle, bool)]) {
        let (went, came): (Vec<_>, Vec<_>) = moved.iter().partition(|one| !one.1);
        assert!(moved.iter().is_sorted_by_key(|one| one.1), "{moved:?}");
        let index = |one: &(SetHandle, bool)| self.model.set(one.0).expect("a set");
        let went: Vec<usize> = went.into_iter().map(index).collect();
        let came: Vec<usize> = came.into_iter().map(index).collect();
        let could = self.model.could_go(sets);
        let fits = |gone: &[usize]| self.model.fits_in_place_of(missing, gone);
        assert!(
            went.iter().all(|set| could.contains(set)),
            "{went:?} of {could:?}"
        );
        assert!(fits(&went), "{went:?} are not enough");
        for &needless in &went {
            let others: Vec<usize> = went
                .iter()
                .copied()
                .filter(|&set| set != needless)
                .collect();
            assert!(!fits(&others), "{needless} went for nothing");
        }
        if let Some((names, freed)) = self.estimate.take() {
            let mut gone: Vec<String> = went.iter().map(|&set| self.model.name(set)).collect();
            gone.sort();
            assert_eq!(gone, names, "what went, and what the estimate said");
            let freed_now: u64 = went.iter().map(|&set| self.model.takes(set)).sum();
            assert_eq!(
                freed_now, freed,
                "bytes that went, and what the estimate said"
            );
        }
        let wanted = {
            let (mut wanted, mut came) = (missing.sets.clone(), came.clone());
            wanted.sort_unstable();
            came.sort_unstable();
            (wanted, came)
        };
        assert_eq!(wanted.0, wanted.1, "what was wanted, and what came");
        let evicts = !went.is_empty();
        self.model.evictions += went.len() as u64;
        for set in went {
            self.model.goes(set);
        }
        // What goes stays in the books until what comes has its place: no peak shows a moment in between.
        let bodies = missing
            .needs
            .iter()
            .map(|(account, bytes)| self.model.take(Some(account), *bytes).expect("it fits"));
        let bodies: Vec<usize> = bodies.collect();
        for set in came {
            let at = missing.sets.iter().position(|&other| other == set);
            self.model.comes(set, bodies[at.expect("it was missing")]);
        }
        see(if evicts {
            "room by evicting"
        } else {
            "room as it is"
        }
        .to_owned());
        if evicts {
            self.peaks_are_newer();
        }
    }

    /// What was taken was not enough, and went back.
    fn moved_in_vain(&mut self, sets: &[SetHandle], moved: &[(SetHandle, bool)]) {
        let could = self.model.could_go(sets);
        let mut away: Vec<usize> = Vec::new();
        for &(handle, came) in moved {
            let set = self.model.set(handle).expect("a set");
            let node = self.model.sets[set].current.expect("it is there");
            if came {
                let at = away.iter().position(|&other| other == set);
                away.swap_remove(at.expect("it had gone"));
            } else {
                assert!(could.contains(&set), "{handle} could not go");
                away.push(set);
            }
            let what = if came { "loaded" } else { "evicted" };
            let told = format!("{what} {}", self.model.residency_in_words(node, came));
            self.model.told.push(Told::Moved(told));
        }
        assert!(away.is_empty(), "what went in vain is back");
    }

    /// A sum may have been higher while what went was still there; it was never over its limit.
    fn peaks_are_newer(&mut self) {
        let now = self.registry.ledger();
        assert!(
            (self.model.peak..=self.model.limit).contains(&now.peak),
            "{now:?}"
        );
        self.model.peak = now.peak;
    }
}
