//! The flat registry against a map.
//!
//! What lives here: weights by name, aliases, pins, what is done to them in the registry underneath, and
//! the totals. What does not: adapters that are sealed from slices (`tests/flat`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use weighbridge::flat::{FlatHandle, FlatKind, FlatRegistry, Pinned, Registered};
use weighbridge::source::InMemory;
use weighbridge::{Dtype, Error, WeightRegistry};

use super::run::{attempt, cases};
use super::world::see;

/// Adapter and name.
const NAMES: [(&str, &str); 6] = [
    ("", "x"),
    ("", "y"),
    ("", "z"),
    ("p", "x"),
    ("p", "y"),
    ("q", "x"),
];

#[derive(Debug, Clone)]
enum Op {
    /// Under this name, so many bytes of this value.
    Register(usize, usize, u8),
    RegisterAll(Vec<(usize, usize, u8)>),
    /// Under this name, for the weight of that one; rightly described or not.
    Alias(usize, usize, bool),
    Unregister(usize),
    Cascade(usize),
    UnregisterAdapter(usize),
    Pin(usize, usize),
    Unpin(usize),
    ReplaceUnderneath(usize, usize, u8),
    RetireUnderneath(usize),
    /// Of another registry's weight.
    Stranger,
}
use Op::*;

fn case() -> BoxedStrategy<Vec<Op>> {
    let name = || 0..NAMES.len();
    let one = || (name(), 0..4usize, 0..3u8);
    let op = prop_oneof![
        6 => one().prop_map(|(name, len, fill)| Register(name, len, fill)),
        1 => proptest::collection::vec(one(), 0..4).prop_map(RegisterAll),
        5 => (name(), name(), prop::bool::weighted(0.9)).prop_map(|(name, of, right)| Alias(name, of, right)),
        3 => name().prop_map(Unregister),
        1 => name().prop_map(Cascade),
        1 => (0..2usize).prop_map(UnregisterAdapter),
        4 => (0..3usize, name()).prop_map(|(place, name)| Pin(place, name)),
        2 => (0..3usize).prop_map(Unpin),
        2 => (name(), 0..4usize, 0..3u8).prop_map(|(name, len, fill)| ReplaceUnderneath(name, len, fill)),
        1 => name().prop_map(RetireUnderneath),
        1 => Just(Stranger),
    ];
    proptest::collection::vec(op, 1..60).boxed()
}

#[derive(Debug, Clone, PartialEq)]
enum Is {
    Weight(Vec<u8>),
    AliasOf(FlatHandle),
}

struct Flat {
    flat: FlatRegistry,
    stranger: FlatHandle,
    /// What each name means.
    there: BTreeMap<usize, (FlatHandle, Is)>,
    /// The last handle of each name, stale or not.
    met: [Option<FlatHandle>; NAMES.len()],
    pins: [Option<(Pinned, Vec<u8>, FlatHandle)>; 3],
}

fn said(error: &Error) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '('])
        .next()
        .unwrap_or_default()
        .to_owned()
}

impl Flat {
    fn name_of(&self, handle: FlatHandle) -> Option<usize> {
        self.there
            .iter()
            .find(|(_, there)| there.0 == handle)
            .map(|(&name, _)| name)
    }

    fn is(&self, handle: FlatHandle) -> Result<&Is, String> {
        let there = self.there.values().find(|there| there.0 == handle);
        there.map(|there| &there.1).ok_or("StaleHandle".to_owned())
    }

    fn root(&self, handle: FlatHandle) -> Result<FlatHandle, String> {
        Ok(match self.is(handle)? {
            Is::Weight(_) => handle,
            Is::AliasOf(target) => *target,
        })
    }

    fn aliases(&self, of: FlatHandle) -> Vec<usize> {
        let of = |there: &&(FlatHandle, Is)| there.1 == Is::AliasOf(of);
        let names = self.there.iter().filter(|(_, there)| of(there));
        names.map(|(&name, _)| name).collect()
    }

    fn compare<T>(
        &self,
        what: &str,
        answer: Result<T, Error>,
        expected: Result<(), String>,
    ) -> Option<T> {
        let is = answer.as_ref().err().map(said);
        assert_eq!(
            is,
            expected.clone().err(),
            "{what}: {:?}",
            answer.as_ref().err()
        );
        see(format!(
            "flat {what} {}",
            expected.err().unwrap_or("ok".to_owned())
        ));
        answer.ok()
    }

    /// What is offered under a name that may mean something.
    fn offered(&mut self, name: usize, is: Is, answer: Result<Registered, Error>, what: &str) {
        match self.there.get(&name).cloned() {
            None => {
                let made = self.compare(what, answer, Ok(())).unwrap();
                assert!(made.is_new(), "{made:?}");
                self.enter(name, made.handle(), is);
            }
            Some((handle, there)) if there == is => {
                let made = self.compare(what, answer, Ok(()));
                assert_eq!(made, Some(Registered::Reused(handle)));
                see(format!("flat {what} again"));
            }
            Some(_) => {
                self.compare(what, answer, Err("AlreadyRegistered".to_owned()));
            }
        }
    }

    fn enter(&mut self, name: usize, handle: FlatHandle, is: Is) {
        assert!(
            !self.met.contains(&Some(handle)),
            "{handle} means another weight already"
        );
        self.there.insert(name, (handle, is));
        self.met[name] = Some(handle);
    }

    fn address(name: usize) -> weighbridge::flat::Address<'static> {
        match NAMES[name] {
            ("", name) => name.into(),
            both => both.into(),
        }
    }

    fn act(&mut self, op: &Op) -> Option<()> {
        match *op {
            Register(name, len, fill) => {
                let bytes = vec![fill; len];
                let answer = self
                    .flat
                    .register(Self::address(name), Dtype::U8, [len], &bytes);
                self.offered(name, Is::Weight(bytes), answer, "register");
            }
            RegisterAll(ref all) => self.register_all(all),
            Alias(name, of, right) => self.alias(name, of, right)?,
            Unregister(name) => {
                let handle = self.met[name]?;
                let tied = !self.aliases(handle).is_empty();
                let expected = match self.is(handle) {
                    Ok(_) if tied => Err("WeightTied".to_owned()),
                    is => is.map(drop),
                };
                let answer = self.flat.unregister(handle);
                self.compare("unregister", answer, expected)?;
                self.there.remove(&name);
            }
            Cascade(name) => {
                let handle = self.met[name]?;
                let answer = self.flat.unregister_cascade(handle);
                let gone = self.compare("cascade", answer, self.is(handle).map(drop))?;
                let mut going = self.aliases(handle);
                going.push(name);
                assert_eq!(gone.len(), going.len());
                assert_eq!(gone[0].set(), handle.set());
                going.iter().for_each(|name| drop(self.there.remove(name)));
            }
            UnregisterAdapter(which) => self.unregister_adapter(["p", "q"][which])?,
            Pin(place, name) => {
                let handle = self.met[name]?;
                let root = self.root(handle);
                let answer = self.flat.get(handle);
                let pinned = self.compare("get", answer, root.clone().map(drop))?;
                let Ok(Is::Weight(bytes)) = self.is(root.ok()?).cloned() else {
                    unreachable!()
                };
                self.pins[place] = Some((pinned, bytes, self.root(handle).ok()?));
            }
            Unpin(place) => self.pins[place] = None,
            ReplaceUnderneath(name, len, fill) => {
                let handle = self.met[name]?;
                let next = InMemory::new().tensor("weight", Dtype::U8, [len], vec![fill; len]);
                let expected = match self.is(handle) {
                    Ok(Is::AliasOf(_)) => Err("KindMismatch".to_owned()),
                    Ok(Is::Weight(_)) => self.free(handle),
                    Err(why) => Err(why),
                };
                let answer = self.flat.registry().replace(handle.set(), next.unwrap());
                self.compare("replace underneath", answer.map_err(Error::from), expected)?;
                self.there
                    .insert(name, (handle, Is::Weight(vec![fill; len])));
            }
            RetireUnderneath(name) => {
                let handle = self.met[name]?;
                let expected = self.is(handle).map(drop).and_then(|()| self.free(handle));
                let answer = self.flat.registry().retire(handle.set());
                self.compare("retire underneath", answer, expected)?;
                self.there.remove(&name);
            }
            Stranger => {
                let stranger = self.stranger;
                let wrong = || Err("WrongRegistry".to_owned());
                self.compare("get of a stranger", self.flat.get(stranger), wrong());
                let answer = self.flat.alias("x", stranger, Dtype::U8, [1]);
                self.compare("alias of a stranger", answer, wrong());
                let answer = self.flat.unregister(stranger);
                self.compare("unregister a stranger", answer, wrong());
            }
        }
        Some(())
    }

    /// As the registry underneath says it.
    fn free(&self, handle: FlatHandle) -> Result<(), String> {
        match self.aliases(handle).is_empty() {
            true => Ok(()),
            false => Err("Dependants".to_owned()),
        }
    }

    fn alias(&mut self, name: usize, of: usize, right: bool) -> Option<()> {
        let target = self.met[of]?;
        let root = self.root(target);
        let len = match root.clone().and_then(|root| self.is(root).cloned()) {
            Ok(Is::Weight(bytes)) => bytes.len(),
            _ => 0,
        };
        let shape = [len + usize::from(!right)];
        let answer = self
            .flat
            .alias(Self::address(name), target, Dtype::U8, shape);
        match root {
            Ok(root) if right => self.offered(name, Is::AliasOf(root), answer, "alias"),
            root => {
                let expected = root.and(Err("InvalidTensor".to_owned()));
                self.compare("alias", answer, expected);
            }
        }
        Some(())
    }

    fn register_all(&mut self, all: &[(usize, usize, u8)]) {
        let bytes: Vec<Vec<u8>> = all.iter().map(|&(_, len, fill)| vec![fill; len]).collect();
        let shapes: Vec<[usize; 1]> = all.iter().map(|&(_, len, _)| [len]).collect();
        let batch = all.iter().zip(&bytes).zip(&shapes);
        let batch = batch
            .map(|((one, bytes), shape)| (Self::address(one.0), Dtype::U8, &shape[..], &bytes[..]));
        let answer = self.flat.register_all(batch);
        let mut expected = Ok(());
        for (at, (name, ..)) in all.iter().enumerate() {
            let is = Is::Weight(bytes[at].clone());
            if self.there.get(name).is_some_and(|there| there.1 != is) {
                expected = expected.and(Err("AlreadyRegistered".to_owned()));
            } else if all[..at].iter().any(|other| other.0 == *name) {
                expected = expected.and(Err("InvalidTensor".to_owned()));
            }
        }
        let Some(made) = self.compare("register_all", answer, expected) else {
            return;
        };
        for ((name, ..), (made, bytes)) in all.iter().zip(made.into_iter().zip(bytes)) {
            match self.there.get(name) {
                Some(there) => assert_eq!(made, Registered::Reused(there.0)),
                None => {
                    assert!(made.is_new());
                    self.enter(*name, made.handle(), Is::Weight(bytes));
                }
            }
        }
    }

    fn unregister_adapter(&mut self, adapter: &str) -> Option<()> {
        let own: Vec<usize> = self
            .there
            .keys()
            .copied()
            .filter(|&name| NAMES[name].0 == adapter)
            .collect();
        let tied = own.iter().any(|name| {
            let aliases = self.aliases(self.there[name].0);
            aliases.iter().any(|alias| !own.contains(alias))
        });
        let answer = self.flat.unregister_adapter(adapter);
        let expected = if tied {
            Err("WeightTied".to_owned())
        } else {
            Ok(())
        };
        let gone = self.compare("unregister_adapter", answer, expected)?;
        assert_eq!(gone.len(), own.len());
        own.iter().for_each(|name| drop(self.there.remove(name)));
        Some(())
    }

    /// Everything that can be asked.
    fn look(&self) {
        let bytes = |is: &Is| match is {
            Is::Weight(bytes) => bytes.len() as u64,
            Is::AliasOf(_) => 0,
        };
        let weights = |base: bool| {
            let some = self
                .there
                .iter()
                .filter(move |(name, _)| NAMES[**name].0.is_empty() == base);
            let some = some.filter(|(_, there)| matches!(there.1, Is::Weight(_)));
            some.map(|(_, there)| bytes(&there.1))
                .fold((0, 0), |sum, more| (sum.0 + 1, sum.1 + more))
        };
        let totals = self.flat.totals();
        assert_eq!(
            (totals.base.weights, totals.base.bytes),
            weights(true),
            "base"
        );
        assert_eq!(
            (totals.lora.weights, totals.lora.bytes),
            weights(false),
            "lora"
        );
        assert_eq!(
            totals.aliases,
            self.there.len() - weights(true).0 - weights(false).0
        );
        assert_eq!(self.flat.total_bytes(), weights(true).1 + weights(false).1);
        assert_eq!(self.flat.len(), weights(true).0 + weights(false).0);
        assert_eq!(self.flat.is_empty(), matches!(self.flat.len(), 0));
        let mut adapters: Vec<&str> = self.there.keys().map(|&name| NAMES[name].0).collect();
        adapters.retain(|adapter| !adapter.is_empty());
        adapters.dedup();
        assert!(
            self.flat
                .adapter_names()
                .iter()
                .map(|name| &**name)
                .eq(adapters.iter().copied())
        );
        for adapter in ["p", "q"] {
            let own = self
                .there
                .iter()
                .filter(|(name, _)| NAMES[**name].0 == adapter);
            let handles: Vec<FlatHandle> = own.clone().map(|(_, there)| there.0).collect();
            assert_eq!(self.flat.adapter_handles(adapter), handles, "{adapter}");
            let own: u64 = own.map(|(_, there)| bytes(&there.1)).sum();
            assert_eq!(self.flat.adapter_bytes(adapter), own);
        }
        for (name, met) in self.met.iter().enumerate() {
            let there = self.there.get(&name);
            assert_eq!(
                self.flat.lookup(Self::address(name)),
                there.map(|there| there.0)
            );
            let Some(handle) = *met else { continue };
            let entry = self.flat.entry(handle);
            let Some((_, is)) = there else {
                assert!(entry.unwrap_err().is_not_found());
                assert!(self.flat.pin_count(handle).unwrap_err().is_not_found());
                continue;
            };
            let entry = entry.unwrap();
            let lora = !NAMES[name].0.is_empty();
            let kind = match *is {
                Is::AliasOf(target) => FlatKind::TiedAlias { target },
                Is::Weight(_) if lora => FlatKind::Lora,
                Is::Weight(_) => FlatKind::Base,
            };
            assert_eq!((entry.kind, entry.bytes), (kind, bytes(is)));
            assert_eq!(entry.adapter.as_deref().unwrap_or(""), NAMES[name].0);
            let root = self.root(handle).unwrap();
            let now = self.flat.registry().acquire(root.set()).unwrap();
            let generation = now.set(root.set()).unwrap().generation();
            drop(now);
            let pins = self.pins.iter().flatten();
            let pins = pins
                .filter(|pin| pin.2 == root && pin.0.generation() == generation)
                .count();
            assert_eq!(
                self.flat.pin_count(handle).unwrap(),
                pins as u64,
                "pins of {:?}",
                NAMES[name]
            );
            assert_eq!(self.name_of(handle), Some(name));
        }
        for (pinned, bytes, _) in self.pins.iter().flatten() {
            assert_eq!(pinned.bytes(), bytes, "a pinned weight changed");
        }
    }
}

fn run(ops: &[Op]) {
    let registry = || Arc::new(WeightRegistry::builder().build().unwrap());
    let (core, other) = (registry(), FlatRegistry::new(registry()));
    let stranger = other.register("x", Dtype::U8, [1], &[1]).unwrap().handle();
    let mut flat = Flat {
        flat: FlatRegistry::new(Arc::clone(&core)),
        stranger,
        there: BTreeMap::new(),
        met: [None; _],
        pins: [const { None }; 3],
    };
    for op in ops {
        if flat.act(op).is_none() {
            see("flat skipped or refused".to_owned());
        }
        flat.look();
    }
    let names: Vec<usize> = flat.there.keys().copied().collect();
    for name in names {
        if flat.there.contains_key(&name) {
            flat.act(&Cascade(name));
            flat.look();
        }
    }
    flat.pins = [const { None }; 3];
    let deadline = Instant::now() + Duration::from_secs(60);
    while core.ledger().total() != 0 {
        assert!(Instant::now() < deadline, "{:?}", core.ledger());
        std::thread::yield_now();
    }
}

#[test]
fn the_flat_registry_is_a_map() {
    let show = |ops: &Vec<Op>| {
        let one = |op: &Op| format!("    {},\n", format!("{op:?}").replace('[', "vec!["));
        format!("run(&[\n{}]);", ops.iter().map(one).collect::<String>())
    };
    cases(150, &case(), show, |ops| {
        if let Err(why) = attempt(|| run(ops)) {
            panic!("{why}");
        }
    });
}
