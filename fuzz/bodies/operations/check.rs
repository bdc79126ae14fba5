//! Everything that can be asked of a registry, compared with the model.
//!
//! What lives here: that, and the end of a run. What does not: the answers of operations (`drive`).

use std::rc::Rc;
use std::time::Instant;

use weighbridge::{Account, Lease, LedgerSnapshot, SetHandle};

use super::super::ground::SOON;
use super::drive::Run;
use super::model::{Body, Books, Held};
use super::words::{At, NAMES, NAMESPACES};

impl Run<'_> {
    pub fn check(&self) {
        self.bytes_come_back();
        self.ledger();
        self.sets();
        self.names();
        for (lease, held) in self.leases.iter().zip(&self.state.leases) {
            self.lease(lease, held);
        }
    }

    /// What nobody has any more is freed on another thread: that is waited for, nothing else.
    fn bytes_come_back(&self) {
        let (expected, started) = (self.state.books(None), Instant::now());
        let waits = |ledger: LedgerSnapshot| {
            let pending = self.registry.stats().pending_fences;
            let fenced = self.state.fenced.iter().filter(|held| !held.is_empty());
            ledger.retired > expected.retired || pending > fenced.count() as u64
        };
        while waits(self.registry.ledger()) && started.elapsed() < SOON {
            std::thread::yield_now();
        }
    }

    fn ledger(&self) {
        let total = self.registry.ledger();
        same(total, self.state.books(None), "in all");
        assert!(
            total.total() <= total.peak && total.peak <= total.limit,
            "{total:?}"
        );
        assert_eq!(total.limit, self.state.limit);
        for (index, name) in NAMESPACES.iter().enumerate() {
            let account = self.registry.account(&Account::namespace(name));
            same(account, self.state.books(Some(index)), name);
        }
    }

    fn sets(&self) {
        let stats = self.registry.stats();
        assert_eq!(stats.commits, self.state.commits);
        assert_eq!(stats.sets, self.state.living().count());
        let catalog = self.registry.catalog();
        assert_eq!(catalog.entries().len(), stats.sets);
        for (index, set) in self.state.living() {
            let At(namespace, name) = set.at;
            let entry = catalog
                .get((NAMESPACES[namespace], NAMES[name]))
                .expect("it is there");
            assert_eq!(entry.handle, set.handle);
            assert_eq!(entry.generation.number(), set.now.number, "of {index}");
            assert_eq!(entry.resident, set.now.resident, "of {index}");
            assert_eq!(
                entry.base,
                set.now.content.base.map(|base| self.handle(base))
            );
            let own = if set.now.resident {
                set.now.content.own.charge
            } else {
                0
            };
            assert_eq!(entry.bytes, own, "of {index}");
            let kept = self.registry.kept(set.handle).expect("it is there");
            let kept: Vec<u64> = kept.iter().map(|kept| kept.generation.number()).collect();
            assert!(
                kept.iter().eq(set.kept.iter().map(|(number, _)| number)),
                "{kept:?} of {index}"
            );
            let mut standing = self
                .registry
                .dependants_of(set.handle)
                .expect("it is there");
            let mut expected = self.handles(self.state.dependants(index));
            standing.sort_unstable();
            expected.sort_unstable();
            assert_eq!(standing, expected, "on {index}");
        }
    }

    fn handles(&self, sets: Vec<usize>) -> Vec<SetHandle> {
        sets.into_iter().map(|set| self.handle(set)).collect()
    }

    fn names(&self) {
        for (index, namespace) in NAMESPACES.iter().enumerate() {
            for (name, text) in NAMES.iter().enumerate() {
                let expected = self
                    .state
                    .named(At(index, name))
                    .map(|set| self.handle(set));
                assert_eq!(self.registry.lookup((*namespace, *text)), expected);
            }
        }
    }

    fn lease(&self, lease: &Lease, held: &[Held]) {
        let mut superseded = false;
        for held in held {
            let of = &self.state.sets[held.set];
            superseded |= !of.alive || of.now.number != held.number;
            let set = lease.set(of.handle).expect("it is leased");
            assert_eq!(set.generation().number(), held.number);
            let filled = |tensor: &str, body: &Rc<Body>| {
                let weight = set.get(tensor).expect("it has it");
                assert_eq!(
                    weight.bytes(),
                    vec![body.fill; body.len],
                    "{tensor} of {}",
                    held.set
                );
            };
            match (&held.lent, held.content.base) {
                (Some(lent), _) => {
                    filled("own", &held.content.own);
                    filled("w", lent);
                }
                (None, Some(_)) => filled("base_model.model.more", &held.content.own),
                (None, None) => filled("w", &held.content.own),
            }
        }
        assert_eq!(lease.is_superseded(), superseded);
    }

    /// Everything is let go, and everything is back.
    pub fn finish(mut self) {
        self.leases.clear();
        self.state.leases.clear();
        self.fences.drain(..).for_each(|signal| signal.set());
        self.state.fenced.clear();
        self.staged.clear();
        self.state.staged.clear();
        self.check();
        for back in 0..self.state.sets.len() {
            self.cascade(back);
        }
        self.check();
        assert_eq!(self.registry.ledger().total(), 0);
        // Of what took no byte, no byte comes back: the ledger does not tell.
        let started = Instant::now();
        while !self.registry.retired().is_empty() {
            let late = started.elapsed() > SOON;
            assert!(!late, "{:?} is still there", self.registry.retired());
            std::thread::yield_now();
        }
    }
}

#[track_caller]
fn same(ledger: LedgerSnapshot, expected: Books, whose: &str) {
    let books = Books {
        reserved: ledger.reserved,
        resident: ledger.resident,
        kept: ledger.kept,
        retired: ledger.retired,
    };
    assert_eq!(books, expected, "{whose}");
}
