//! The table: weighbridge beside the registry of rlx-runtime.
//!
//! `benches/run` starts it; the options are those of the bench `table`. That registry is one thread's, so
//! it stands behind a lock, as its callers have to do it. Only what its documentation shows is called.
//!
//! What lives here: its side of the cells. What does not: ours, and the cells
//! (`weighbridge_benches::harness`).

use std::hint::black_box;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use rlx_runtime::weight_registry::{WeightHandle, WeightKind, WeightRegistry};
use rlx_runtime::{DType, Shape};
use weighbridge_benches::harness::allocated::{Counted, during};
use weighbridge_benches::harness::cells::{ADAPTERS, Contenders, OF_EACH, Question, newcomer, run};
use weighbridge_benches::harness::options::Options;
use weighbridge_benches::harness::rows::Report;
use weighbridge_benches::harness::traces::{packed, unpacked};
use weighbridge_benches::harness::turns::{Route, Turn, end_on_panic};

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// The most tensors it is asked about: each question takes as long as there are tensors.
const MOST: usize = 500_000;

/// A lock around it, and around what belongs to it.
trait Lock<T>: Send + Sync + 'static {
    const NAME: &'static str;
    fn around(inside: T) -> Self;
    fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R;
    fn write<R>(&self, write: impl FnOnce(&mut T) -> R) -> R;
}

const BY_MUTEX: &str = "rlx-runtime, Mutex";

impl<T: Send + 'static> Lock<T> for Mutex<T> {
    const NAME: &'static str = BY_MUTEX;

    fn around(inside: T) -> Self {
        Mutex::new(inside)
    }

    #[inline]
    fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.lock().expect("not poisoned"))
    }

    fn write<R>(&self, write: impl FnOnce(&mut T) -> R) -> R {
        write(&mut self.lock().expect("not poisoned"))
    }
}

impl<T: Send + Sync + 'static> Lock<T> for RwLock<T> {
    const NAME: &'static str = "rlx-runtime, RwLock";

    fn around(inside: T) -> Self {
        RwLock::new(inside)
    }

    #[inline]
    fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&RwLock::read(self).expect("not poisoned"))
    }

    fn write<R>(&self, write: impl FnOnce(&mut T) -> R) -> R {
        write(&mut RwLock::write(self).expect("not poisoned"))
    }
}

fn register(registry: &mut WeightRegistry, name: &str, kind: WeightKind) -> WeightHandle {
    let bytes: Arc<[u8]> = Arc::from(black_box([7; 16]));
    registry.register(name, Shape::new(&[4], DType::F32), bytes, kind)
}

/// One with all of `names` that are not empty, and their handles, by index.
fn filled(names: &[String]) -> (WeightRegistry, Vec<Option<WeightHandle>>) {
    let mut registry = WeightRegistry::new();
    let handle =
        |name: &String| (!name.is_empty()).then(|| register(&mut registry, name, WeightKind::Base));
    let handles = names.iter().map(handle).collect();
    (registry, handles)
}

fn numbered(count: usize) -> (WeightRegistry, Vec<WeightHandle>) {
    let names: Vec<String> = (0..count).map(|at| format!("weight-{at}")).collect();
    let (registry, handles) = filled(&names);
    (registry, handles.into_iter().flatten().collect())
}

/// Behind the one lock and behind the other.
struct Seed;

impl Contenders for Seed {
    fn lookup<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        vec![
            looking_up::<Mutex<_>>(names),
            looking_up::<RwLock<_>>(names),
        ]
    }

    fn lookup_otherwise<'n>(&self, _: &'n [String]) -> Vec<Route<'n>> {
        Vec::new()
    }

    fn tensors<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        self.lookup(names)
    }

    fn get(&self, sets: usize) -> Vec<Route<'static>> {
        vec![getting::<Mutex<_>>(sets), getting::<RwLock<_>>(sets)]
    }

    fn weight(&self, adapters: usize, tensors: usize) -> Vec<Route<'static>> {
        let size = (adapters, tensors);
        vec![reading::<Mutex<_>>(size), reading::<RwLock<_>>(size)]
    }

    fn acquire(&self, sets: usize) -> Vec<Route<'static>> {
        vec![keeping::<Mutex<_>>(sets), keeping::<RwLock<_>>(sets)]
    }

    fn publish<'n>(&self, _: &'n [String], _: usize) -> Vec<Route<'n>> {
        // It has no second version of a name: what is there has to go first.
        Vec::new()
    }

    fn register<'n>(&self, names: &'n [String]) -> Vec<Route<'n>> {
        // No lock is in the way of whoever fills it alone.
        vec![Route::once("rlx-runtime", || {
            let started = Instant::now();
            let made = filled(names);
            let took = started.elapsed().as_nanos() as f64 / names.len() as f64;
            drop(made);
            took
        })]
    }

    fn queries(&self, tensors: usize) -> Vec<Box<dyn Fn(Question) -> Route<'static>>> {
        if tensors > MOST {
            return Vec::new();
        }
        let mut registry = WeightRegistry::new();
        for index in 0..tensors {
            let (adapter, name) = Question::tensor(index);
            // One space of names for all: an adapter's are told apart by its own.
            match adapter {
                Some(adapter) => {
                    let name = format!("{adapter}/{name}");
                    register(&mut registry, &name, WeightKind::LoraAdapter { adapter })
                }
                None => register(&mut registry, &name, WeightKind::Base),
            };
        }
        let registry = Arc::new(Mutex::new(registry));
        vec![Box::new(move |question| asking(&registry, question))]
    }

    fn held(&self, names: &[String]) -> Vec<(String, f64)> {
        let (registry, bytes) = during(|| filled(names).0);
        drop(registry);
        vec![("rlx-runtime".to_owned(), bytes - (names.len() * 16) as f64)]
    }
}

fn looking_up<'n, L: Lock<WeightRegistry>>(names: &'n [String]) -> Route<'n> {
    let lock = Arc::new(L::around(filled(names).0));
    let written = Arc::clone(&lock);
    let work = move |turn: &mut Turn<'_>| {
        turn.each(|index| {
            let name = names[index].as_str();
            black_box(lock.read(|it| it.lookup(name)).expect("there"));
        })
    };
    Route::new(L::NAME, work).writing(move |number| {
        let name = newcomer(number);
        let handle = written.write(|it| register(it, &name, WeightKind::Base));
        drop(written.write(|it| it.unregister(handle)));
    })
}

fn getting<L: Lock<WeightRegistry>>(sets: usize) -> Route<'static> {
    let (registry, handles) = numbered(sets);
    let lock = L::around(registry);
    Route::new(L::NAME, move |turn| {
        turn.each(|index| {
            lock.read(|it| {
                black_box(it.get(handles[index]).expect("there").bytes.len());
            })
        })
    })
}

fn reading<L: Lock<WeightRegistry>>((adapters, tensors): (usize, usize)) -> Route<'static> {
    let mut names = vec![String::new(); packed(adapters, 0)];
    for (index, name) in names.iter_mut().enumerate() {
        let (adapter, tensor) = unpacked(index);
        if tensor < tensors {
            *name = format!("{adapter}/{tensor}");
        }
    }
    let (registry, handles) = filled(&names);
    let lock = L::around(registry);
    Route::new(L::NAME, move |turn| {
        turn.each(|index| {
            let handle = handles[index].expect("asked for");
            lock.read(|it| {
                let bytes = &it.get(handle).expect("there").bytes;
                black_box((bytes.as_ptr(), bytes.len()));
            })
        })
    })
}

/// An entry is kept by a clone of its `Arc`, for which the lock is taken once; with `pin` and `release` it
/// would be taken twice. What is replaced has another handle then: the handles are behind the same lock.
fn keeping<L: Lock<(WeightRegistry, Vec<WeightHandle>)>>(sets: usize) -> Route<'static> {
    let lock = Arc::new(L::around(numbered(sets)));
    let written = Arc::clone(&lock);
    let work = move |turn: &mut Turn<'_>| {
        turn.each(|_| {
            let kept = lock.read(|(it, handles)| {
                let keep = |&handle| it.get(handle).map(Arc::clone);
                [keep(&handles[0]), handles.get(1).and_then(keep)]
            });
            drop(black_box(kept));
        })
    };
    Route::new(L::NAME, work).writing(move |_| {
        written.write(|(it, handles)| {
            let last = handles.last_mut().expect("one at least");
            if let Some(name) = it.unregister(*last) {
                *last = register(it, &name, WeightKind::Base);
            }
        })
    })
}

fn asking(registry: &Arc<Mutex<WeightRegistry>>, question: Question) -> Route<'static> {
    let registry = Arc::clone(registry);
    let work = move |turn: &mut Turn<'_>| match question {
        Question::TotalBytes => turn.each(|_| {
            black_box(registry.read(|it| it.total_bytes()));
        }),
        Question::AdapterHandles => {
            let adapter = Question::adapter(ADAPTERS / 2);
            let count = registry.read(|it| it.lora_adapter_handles(&adapter).len());
            assert_eq!(count, OF_EACH);
            turn.each(|_| {
                black_box(registry.read(|it| it.lora_adapter_handles(&adapter)));
            });
        }
        Question::AdapterNames => turn.each(|_| {
            black_box(registry.read(|it| it.lora_adapter_names()));
        }),
    };
    Route::new(BY_MUTEX, work).batch(1)
}

fn main() {
    end_on_panic();
    let mut report = Report::new(Options::read());
    run(&mut report, &Seed);
    report.write();
}
