//! The usual peers in every cell: five maps, and what cannot be beaten.
//!
//! What lives here: the keys, values and hashers they have in which cell. What does not: the maps
//! themselves (`maps`), the crate whose registry this one is to replace (`benches/seed`).
//!
//! Names come from tenants, so a map of names has the hasher that the registry has, SipHash-1-3 with random
//! keys. Integer keys have foldhash, which favours the maps: nobody would do without.

use std::collections::hash_map::RandomState;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::allocated::during;
use super::cells::{Contenders, Question, newcomer};
use super::maps::{Dash, Hashes, Locked, Papaya, Plain, Scc, Shared, Swapped, Value, each_map};
use super::traces::unpacked;
use super::turns::{Route, Turn};
use crate::{Entry, Hasher};

/// dashmap, papaya, scc, `RwLock<HashMap>` and `ArcSwap<HashMap>`.
pub struct Usual;

/// As large as our handle of a set.
type Handle = [u32; 3];
const SIP: &str = "SipHash-1-3";
const FOLD: &str = "foldhash";

impl Contenders for Usual {
    fn lookup<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        let mut all = by_name::<RandomState, Handle>(names, SIP);
        all.push(alone::<RandomState>(names, SIP));
        all
    }

    fn lookup_otherwise<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        by_name::<Hasher, Handle>(names, FOLD)
    }

    fn tensors<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        by_name::<RandomState, (u32, u32)>(names, SIP)
    }

    fn get(&self, sets: usize) -> Vec<Route<'static>> {
        let entries = || (0..sets as u32).map(|key| (key, entry()));
        let mut all = each_map!(Hasher; entries(); map => getting(map).hashing(FOLD));
        // A scope that is held all the time is set beside guards that are.
        let papaya: Papaya<u32, Entry, Hasher> = Papaya::filled(entries());
        all.push(held("papaya, pin held", move |turn| {
            let map = papaya.0.pin();
            turn.each(|key| {
                black_box(map.get(&(key as u32)).expect("there").len());
            });
        }));
        let swapped: Swapped<u32, Entry, Hasher> = Swapped::filled(entries());
        all.push(held("ArcSwap<HashMap>, guard held", move |turn| {
            let map = swapped.0.load();
            turn.each(|key| {
                black_box(map[&(key as u32)].len());
            });
        }));
        let plain: Plain<u32, Entry, Hasher> = Plain::filled(entries());
        let limit = move |turn: &mut Turn<'_>| {
            turn.each(|key| {
                plain.see(&(key as u32), |entry| {
                    black_box(entry.len());
                });
            })
        };
        all.push(Route::new("plain HashMap", limit).hashing(FOLD).limit());
        all
    }

    fn weight(&self, adapters: usize, tensors: usize) -> Vec<Route<'static>> {
        let entries = || {
            (0..adapters * tensors).map(|at| {
                let key = ((at / tensors) as u32, (at % tensors) as u32);
                (key, Arc::<[u8]>::from([0; 16]))
            })
        };
        each_map!(Hasher; entries(); map => reading(map).hashing(FOLD))
    }

    fn acquire(&self, sets: usize) -> Vec<Route<'static>> {
        let entries = || (0..sets as u32).map(|key| (key, entry()));
        let mut all = match sets {
            1 => each_map!(Hasher; entries(); map => keeping(map, [0])),
            2 => each_map!(Hasher; entries(); map => keeping(map, [0, 1])),
            _ => unreachable!("one or two"),
        };
        all = all.into_iter().map(|route| route.hashing(FOLD)).collect();
        // No map at all.
        let pointers: Arc<Vec<ArcSwap<Vec<u8>>>> =
            Arc::new((0..sets).map(|_| ArcSwap::new(entry())).collect());
        let last = Arc::clone(&pointers);
        let alone = move |turn: &mut Turn<'_>| match &pointers[..] {
            [one] => turn.each(|_| drop(black_box(one.load_full()))),
            several => {
                turn.each(|_| drop(black_box((several[0].load_full(), several[1].load_full()))))
            }
        };
        let alone = Route::new("ArcSwap<Entry>", alone);
        all.push(alone.writing(move |_| last[last.len() - 1].store(entry())));
        all
    }

    fn publish<'n>(&self, names: &'n [String], times: usize) -> Vec<Route<'n>> {
        let entries = || names.iter().map(|name| (name.clone(), entry()));
        each_map!(RandomState; entries(); map => replacing(map, names, times).hashing(SIP))
    }

    fn register<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        let none = || std::iter::empty::<(String, Arc<[u8]>)>();
        each_map!(RandomState; none(); map => filling(map, names).hashing(SIP))
    }

    fn queries(&self, _: usize) -> Vec<Box<dyn Fn(Question) -> Route<'static>>> {
        // No map answers them without going over all of it.
        Vec::new()
    }

    fn held(&self, names: &[String]) -> Vec<(String, f64)> {
        let of_payload = (names.len() * 16) as f64;
        let (dash, of_dash) = during(|| {
            let map = Dash::<String, Arc<[u8]>, RandomState>::with_room(0);
            drop(map.put_all(from_nothing(names)));
            map
        });
        drop(dash);
        let (locked, of_locked) = during(|| {
            let map = Locked::<String, Arc<[u8]>, RandomState>::with_room(0);
            drop(map.put_all(from_nothing(names)));
            map
        });
        drop(locked);
        [("dashmap", of_dash), ("RwLock<HashMap>", of_locked)]
            .map(|(who, bytes)| (who.to_owned(), bytes - of_payload))
            .into()
    }
}

fn entry() -> Entry {
    Arc::new(vec![0; 16])
}

/// Entries of which the map gets copies of its own.
fn from_nothing(names: &[String]) -> impl Iterator<Item = (String, Arc<[u8]>)> {
    let payload = black_box([7; 16]);
    names
        .iter()
        .map(move |name| (name.clone(), Arc::from(payload)))
}

fn held(name: &str, work: impl Fn(&mut Turn<'_>) + Sync + 'static) -> Route<'static> {
    Route::new(name, work)
        .hashing(FOLD)
        .beside(super::cells::HELD)
}

/// Names that are not empty, each with a value.
fn named<V: Value + Default>(names: &[String]) -> std::vec::IntoIter<(String, V)> {
    let there = names.iter().filter(|name| !name.is_empty());
    let all: Vec<_> = there.map(|name| (name.clone(), V::default())).collect();
    all.into_iter()
}

fn by_name<'n, S: Hashes, V: Value + Default>(
    names: &'n [String],
    hasher: &'static str,
) -> Vec<Route<'n>> {
    each_map!(S; named::<V>(names); map => looking_up(map, names).hashing(hasher))
}

fn looking_up<'n, M: Shared<String, V>, V: Value + Default>(
    map: M,
    names: &'n [String],
) -> Route<'n> {
    let map = Arc::new(map);
    let written = Arc::clone(&map);
    let work = move |turn: &mut Turn<'_>| {
        turn.each(|index| {
            map.see([names[index].as_str()], |value| {
                black_box(value.clone());
            });
        })
    };
    Route::new(M::NAME, work).writing(move |number| {
        let name = newcomer(number);
        written.put(name.clone(), V::default());
        written.take(name.as_str());
    })
}

/// A map that nobody shares has no writer beside its readers: there it only says what its size costs.
fn alone<'n, S: Hashes>(names: &'n [String], hasher: &'static str) -> Route<'n> {
    let map: Plain<String, Handle, S> = Plain::filled(named(names));
    let work = move |turn: &mut Turn<'_>| {
        turn.each(|index| {
            map.see(names[index].as_str(), |value| {
                black_box(*value);
            });
        })
    };
    Route::new("plain HashMap", work)
        .writing(|_| {})
        .hashing(hasher)
        .limit()
}

fn getting<M: Shared<u32, Entry>>(map: M) -> Route<'static> {
    Route::new(M::NAME, move |turn| {
        turn.each(|key| {
            map.see([&(key as u32)], |entry| {
                black_box(entry.len());
            });
        })
    })
}

fn reading<M: Shared<(u32, u32), Arc<[u8]>>>(map: M) -> Route<'static> {
    Route::new(M::NAME, move |turn| {
        turn.each(|index| {
            let (adapter, tensor) = unpacked(index);
            map.see([&(adapter as u32, tensor as u32)], |bytes| {
                black_box((bytes.as_ptr(), bytes.len()));
            });
        })
    })
}

/// The entries outlive the guard.
fn keeping<M: Shared<u32, Entry>, const N: usize>(map: M, keys: [u32; N]) -> Route<'static> {
    let map = Arc::new(map);
    let written = Arc::clone(&map);
    let work = move |turn: &mut Turn<'_>| {
        turn.each(|_| {
            let mut kept = [const { None }; N];
            let mut places = kept.iter_mut();
            map.see(black_box(&keys).each_ref(), |entry| {
                *places.next().expect("as many") = Some(Arc::clone(entry));
            });
            drop(black_box(kept));
        })
    };
    Route::new(M::NAME, work).writing(move |_| written.put(keys[N - 1], entry()))
}

fn replacing<'n, M: Shared<String, Entry>>(map: M, names: &'n [String], times: usize) -> Route<'n> {
    Route::once(M::NAME, move || {
        let entries = || names.iter().map(|name| (name.clone(), entry())).collect();
        let all: Vec<Vec<_>> = (0..times).map(|_| entries()).collect();
        let mut before = Vec::with_capacity(times);
        let started = Instant::now();
        for entries in all {
            before.push(map.put_all(entries.into_iter()));
        }
        started.elapsed().as_nanos() as f64 / times as f64
    })
}

/// Fills one that is empty each time; the one it is given only says of what kind.
fn filling<'n, M: Shared<String, Arc<[u8]>>>(_: M, names: &'n [String]) -> Route<'n> {
    Route::once(M::NAME, move || {
        let map = M::with_room(0);
        let started = Instant::now();
        let left = map.put_all(from_nothing(names));
        let took = started.elapsed().as_nanos() as f64 / names.len() as f64;
        drop(left);
        took
    })
}
