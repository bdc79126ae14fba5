//! The registry as a few lists, one operation after the other.
//!
//! What lives here: what is there, and whose bytes are in which state. What does not: what a commit does
//! to it (`commit`).

use std::cell::Cell;
use std::rc::Rc;

use weighbridge::SetHandle;

use super::words::{At, NAMESPACES};

/// Why something is refused: the name of the error.
pub type Reason = &'static str;

/// Bytes that are charged once.
#[derive(Debug)]
pub struct Body {
    pub charge: u64,
    pub len: usize,
    pub fill: u8,
    /// The namespace that they count in.
    pub account: Cell<Option<usize>>,
}

/// What a generation is made of. Sets are numbers.
#[derive(Debug, Clone)]
pub struct Content {
    pub own: Rc<Body>,
    pub base: Option<usize>,
    pub alias: Option<Alias>,
}

/// `w` is this set's.
#[derive(Debug, Clone, Copy)]
pub struct Alias {
    pub target: usize,
    pub len: usize,
}

#[derive(Debug, Clone)]
pub struct Current {
    pub number: u64,
    pub content: Content,
    pub resident: bool,
}

#[derive(Debug)]
pub struct Set {
    pub handle: SetHandle,
    pub at: At,
    pub alive: bool,
    pub now: Current,
    pub keep: usize,
    /// Oldest first.
    pub kept: Vec<(u64, Content)>,
}

/// One set of a lease.
#[derive(Debug, Clone)]
pub struct Held {
    pub set: usize,
    pub number: u64,
    pub content: Content,
    /// What its alias is in.
    pub lent: Option<Rc<Body>>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub bytes: Option<u64>,
    pub sets: Option<usize>,
}

/// Bytes by state, in the ledger's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Books {
    pub reserved: u64,
    pub resident: u64,
    pub kept: u64,
    pub retired: u64,
}

impl Books {
    pub fn total(&self) -> u64 {
        self.reserved + self.resident + self.kept + self.retired
    }
}

#[derive(Debug)]
pub struct State {
    pub commits: u64,
    pub sets: Vec<Set>,
    pub leases: Vec<Vec<Held>>,
    /// Leases that were given away.
    pub fenced: Vec<Vec<Held>>,
    pub staged: Vec<Content>,
    pub limit: u64,
    pub limits: [Limits; NAMESPACES.len()],
    pub keep: usize,
}

impl State {
    pub fn new(limit: u64, keep: usize) -> Self {
        State {
            commits: 0,
            sets: Vec::new(),
            leases: Vec::new(),
            fenced: Vec::new(),
            staged: Vec::new(),
            limit,
            limits: Default::default(),
            keep,
        }
    }

    pub fn alive(&self, set: usize) -> Option<&Set> {
        Some(&self.sets[set]).filter(|set| set.alive)
    }

    pub fn living(&self) -> impl Iterator<Item = (usize, &Set)> {
        self.sets.iter().enumerate().filter(|(_, set)| set.alive)
    }

    pub fn named(&self, at: At) -> Option<usize> {
        self.living()
            .find(|(_, set)| set.at == at)
            .map(|(index, _)| index)
    }

    /// Adapters on it, and sets with an alias of it.
    pub fn dependants(&self, set: usize) -> Vec<usize> {
        let on = |content: &Content| {
            content.base == Some(set) || content.alias.is_some_and(|alias| alias.target == set)
        };
        let found = self.living().filter(|(_, one)| on(&one.now.content));
        found.map(|(index, _)| index).collect()
    }

    pub fn is_adapter(&self, set: usize) -> bool {
        self.sets[set].now.content.base.is_some()
    }

    /// What a lease of it would hold.
    pub fn hold(&self, set: usize) -> Held {
        let Current {
            number, content, ..
        } = self.sets[set].now.clone();
        let target = content.alias.map(|alias| &self.sets[alias.target]);
        let lent = target.map(|target| Rc::clone(&target.now.content.own));
        Held {
            set,
            number,
            content,
            lent,
        }
    }

    pub fn held(&self) -> impl Iterator<Item = &Held> {
        self.leases.iter().chain(&self.fenced).flatten()
    }

    /// Every body that is there, and the strongest of its uses: 0 is reserved, 3 retired.
    fn bodies(&self) -> Vec<(&Rc<Body>, usize)> {
        let mut found: Vec<(&Rc<Body>, usize)> = Vec::new();
        let mut used = |body, state| {
            if !found.iter().any(|(other, _)| Rc::ptr_eq(other, body)) {
                found.push((body, state));
            }
        };
        self.staged.iter().for_each(|content| used(&content.own, 0));
        let resident = self.living().filter(|(_, set)| set.now.resident);
        resident.for_each(|(_, set)| used(&set.now.content.own, 1));
        let kept = self.living().flat_map(|(_, set)| &set.kept);
        kept.for_each(|(_, content)| used(&content.own, 2));
        for held in self.held() {
            used(&held.content.own, 3);
            held.lent.iter().for_each(|lent| used(lent, 3));
        }
        found
    }

    /// The bytes of a namespace, or all.
    pub fn books(&self, account: Option<usize>) -> Books {
        let mut sums = [0; 4];
        for (body, state) in self.bodies() {
            if account.is_none() || account == body.account.get() {
                sums[state] += body.charge;
            }
        }
        let [reserved, resident, kept, retired] = sums;
        Books {
            reserved,
            resident,
            kept,
            retired,
        }
    }

    /// Why so many bytes more are too many, in all and in a namespace. Nothing always fits, also where a
    /// limit was lowered below what is in use.
    pub fn no_room(&self, account: Option<usize>, bytes: u64) -> Option<Reason> {
        let limit = account.and_then(|account| self.limits[account].bytes);
        let over = |limit: u64, books: Books| bytes > limit.saturating_sub(books.total());
        if limit.is_some_and(|limit| over(limit, self.books(account))) {
            Some("OverAccountLimit")
        } else if over(self.limit, self.books(None)) {
            Some("OverLimit")
        } else {
            None
        }
    }

    /// Why this cannot be staged now, whatever room there is.
    pub fn unfounded(&self, base: Option<usize>, alias: Option<Alias>) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(base) = base {
            match self.alive(base) {
                None => reasons.push("StaleHandle"),
                Some(_) if self.is_adapter(base) => reasons.push("NotABase"),
                Some(_) => {}
            }
        }
        if let Some(alias) = alias {
            match self.alive(alias.target) {
                None => reasons.push("StaleHandle"),
                Some(target) if !target.now.resident => reasons.push("NotResident"),
                Some(_) => {}
            }
        }
        reasons
    }

    /// The sets of a lease, and why there can be none.
    pub fn acquire(&self, sets: &[usize]) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for &set in sets {
            match self.alive(set) {
                None => reasons.push("StaleHandle"),
                Some(set) if !set.now.resident => reasons.push("NotResident"),
                Some(_) => {}
            }
        }
        let bases: Vec<usize> = sets
            .iter()
            .copied()
            .filter(|&set| !self.is_adapter(set))
            .collect();
        let strays = |&set: &usize| {
            let base = self.sets[set].now.content.base;
            base.is_some_and(|base| !bases.is_empty() && !bases.contains(&base))
        };
        if sets.iter().any(strays) {
            reasons.push("WrongBase");
        }
        reasons
    }
}
