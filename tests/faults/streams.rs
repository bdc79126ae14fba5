//! Files that fail while their layers are streamed.
//!
//! What lives here: a checkpoint of several files, streamed with room for one layer, hashed and unhashed; one of the system's faults
//! at each of the calls by which a part is read; after it the same pass without the fault, the ledger and the process
//! as they were. What does not: sources that fail (`tests/streams`), files that are read whole (`files`, `pieces`).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, MutexGuard};

use tempfile::TempDir;
use weighbridge::source::{Checkpoint, Streamed};
use weighbridge::{Error, Lease, Order, Parts, SetHandle, Stream, WeightRegistry, WindowSize};

use crate::files::tick;
use crate::support::device::until;
use crate::support::{SOON, copy};
use crate::tap::{Answer, Call, tapped, works};
use crate::world::{Process, alone, threads};

const LAYERS: usize = 4;
/// Every call by which a part is read.
const TOUCHES: &[libc::c_long] = &[libc::SYS_openat, libc::SYS_statx, libc::SYS_pread64];
const HASHED: [bool; 2] = [true, false];

/// A checkpoint that is streamed by whoever asks, and what is in it.
struct Scene {
    registry: Arc<WeightRegistry>,
    set: SetHandle,
    lease: Lease,
    /// The bytes of each tensor.
    wanted: HashMap<String, Vec<u8>>,
    process: Process,
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(hashed: bool) -> Self {
        let alone = alone();
        until("threads of the test before this one", || threads() == 0);
        let dir = copy("tiny-llama-sharded");
        let open = || Checkpoint::open(dir.path()).unwrap();
        let registry = Arc::new(WeightRegistry::builder().readers(1).build().unwrap());
        let whole = registry.publish("whole", open()).unwrap();
        let lease = registry.acquire(whole).unwrap();
        let bytes = lease.set(whole).unwrap().iter().map(|weight| {
            let weight = weight.unwrap();
            (weight.name().to_owned(), weight.bytes().to_vec())
        });
        let wanted = bytes.collect();
        drop(lease);
        registry.retire(whole).unwrap().reclaimed(SOON).unwrap();
        let source = if hashed {
            open()
        } else {
            open().declared("the caller's word")
        };
        let streamed = Streamed::new(source, &Parts::layers(), WindowSize::Parts(1)).unwrap();
        let set = registry.publish("streamed", streamed).unwrap();
        until("only the reclaimer is left", || threads() == 1);
        Scene {
            lease: registry.acquire(set).unwrap(),
            registry,
            set,
            wanted,
            process: Process::now(),
            dir,
            _alone: alone,
        }
    }

    fn stream(&self) -> Stream {
        let order = Order::ring().ahead(0);
        self.registry.stream(&self.lease, self.set, order).unwrap()
    }

    /// One pass over the layers: which came, all of whose bytes are looked at, and which did not.
    fn pass(&self, stream: &mut Stream) -> Vec<Result<(), Error>> {
        let layer = |layer: usize| {
            let part = stream.part(layer, SOON)?;
            let mut seen = 0;
            for weight in part.iter() {
                let weight = weight?;
                assert!(
                    weight.bytes() == self.wanted[weight.name()],
                    "{}",
                    weight.name()
                );
                seen += 1;
            }
            assert_eq!(seen, 9);
            Ok(())
        };
        (0..LAYERS).map(layer).collect()
    }

    /// The same, and `answer` says what becomes of the calls.
    fn pass_tapped(
        &self,
        calls: &[libc::c_long],
        answer: impl FnMut(&Call) -> Answer,
    ) -> Vec<Result<(), Error>> {
        let pass = |mut stream| self.pass(&mut stream);
        tapped(calls, || self.stream(), pass, answer)
    }

    /// Nothing is left of a pass, and the next one is right.
    #[track_caller]
    fn intact(&self, what: &str) {
        for (layer, answer) in self.pass(&mut self.stream()).into_iter().enumerate() {
            answer.unwrap_or_else(|error| panic!("after {what}, layer {layer}: {error}"));
        }
        let ledger = self.registry.ledger();
        assert_eq!((ledger.reserved, ledger.retired), (0, 0), "{what}");
        until(what, || Process::now() == self.process);
    }
}

/// Why a layer did not come.
#[track_caller]
fn cause(what: &str, error: Error) -> Arc<Error> {
    match error {
        Error::PartFailed { cause, .. } => cause,
        error => panic!("{what}: {error}"),
    }
}

#[test]
fn any_read_of_a_part_may_fail() {
    for hashed in HASHED {
        let scene = Scene::new(hashed);
        if !works() {
            return;
        }
        for index in 0.. {
            let errno = [libc::EIO, libc::ENOMEM, libc::ESTALE][index % 3];
            let mut failed = false;
            let answers = scene.pass_tapped(TOUCHES, |call| {
                if call.index != index {
                    return Answer::Goes;
                }
                failed = true;
                Answer::Fails(errno)
            });
            let what = format!("hashed: {hashed}, call {index}");
            let errors: Vec<Error> = answers.into_iter().filter_map(Result::err).collect();
            if !failed {
                assert!(
                    errors.is_empty() && index > 3 * LAYERS,
                    "{what}: {errors:?}"
                );
                break;
            }
            // It surfaces at its layer, and at no other.
            let [error] =
                <[Error; 1]>::try_from(errors).unwrap_or_else(|all| panic!("{what}: {all:?}"));
            let cause = cause(&what, error);
            assert!(cause.is_io(), "{what}: {cause}");
            scene.intact(&what);
        }
    }
}

#[test]
fn short_and_interrupted_reads_of_a_part_are_finished() {
    for hashed in HASHED {
        let scene = Scene::new(hashed);
        if !works() {
            return;
        }
        let mut cut = 0;
        let answers = scene.pass_tapped(&[libc::SYS_pread64], |call| {
            if call.index % 3 == 0 {
                return Answer::Fails(libc::EINTR);
            }
            cut += 1;
            call.read_short(1 + call.index * 997)
        });
        for answer in answers {
            answer.unwrap();
        }
        assert!(cut > LAYERS, "{cut}");
        scene.intact("short reads");
    }
}

/// A file changes at any read of a layer: whatever comes is right, whoever cannot have it is told, now and later, and what is
/// published of the file as it is now is streamed again.
#[test]
fn a_file_that_changes_under_a_stream_is_never_mixed() {
    for hashed in HASHED {
        for index in 0.. {
            let scene = Scene::new(hashed);
            if !works() {
                return;
            }
            let path = scene.dir.path().join("model-00002-of-00003.safetensors");
            let healthy = fs::read(&path).unwrap();
            let (mut reads, mut changed) = (0, false);
            tick(&path);
            let answers = scene.pass_tapped(&[libc::SYS_pread64], |call| {
                if call.file() == path {
                    if reads == index {
                        let file = fs::File::options().write(true).open(&path).unwrap();
                        for at in (healthy.len() / 2..healthy.len()).step_by(64) {
                            file.write_all_at(&[!healthy[at]], at as u64).unwrap();
                        }
                        changed = true;
                    }
                    reads += 1;
                }
                Answer::Goes
            });
            if !changed {
                assert!(index > 1, "{index} reads");
                break;
            }
            let what = format!("hashed: {hashed}, read {index}");
            let errors: Vec<Error> = answers.into_iter().filter_map(Result::err).collect();
            assert!(!errors.is_empty(), "{what}: nobody noticed");
            let again = scene.pass(&mut scene.stream());
            assert!(again.iter().any(Result::is_err), "{what}: forgotten");
            for error in errors
                .into_iter()
                .chain(again.into_iter().filter_map(Result::err))
            {
                let cause = cause(&what, error);
                assert!(
                    matches!(*cause, Error::SourceChanged { .. }),
                    "{what}: {cause}"
                );
            }
            // As it was, but nobody can know that of a file that was written to.
            fs::write(&path, &healthy).unwrap();
            let checkpoint = Checkpoint::open(scene.dir.path()).unwrap();
            let streamed = Streamed::new(checkpoint, &Parts::layers(), WindowSize::Parts(1));
            let set = scene.registry.publish("anew", streamed.unwrap()).unwrap();
            let lease = scene.registry.acquire(set).unwrap();
            let mut stream = scene
                .registry
                .stream(&lease, set, Order::forward().ahead(0))
                .unwrap();
            for answer in scene.pass(&mut stream) {
                answer.unwrap_or_else(|error| panic!("after {what}: {error}"));
            }
        }
    }
}

/// Two streams at different positions, both read ahead for, from a disk that takes its time over everything.
#[test]
fn a_slow_disk_is_waited_for() {
    let scene = Scene::new(true);
    if !works() {
        return;
    }
    let dir = scene.dir.path();
    let mut reads = 0;
    let calls = &[libc::SYS_pread64];
    let act = |()| {
        // Of its own: its loaders are tapped, and end with it.
        let registry = Arc::new(WeightRegistry::builder().build().unwrap());
        let source = Checkpoint::open(dir).unwrap();
        let streamed = Streamed::new(source, &Parts::layers(), WindowSize::Parts(3)).unwrap();
        let set = registry.publish("streamed", streamed).unwrap();
        let lease = registry.acquire(set).unwrap();
        std::thread::scope(|threads| {
            for start in [0, 2] {
                let (registry, lease, wanted) = (&registry, &lease, &scene.wanted);
                threads.spawn(move || {
                    let mut stream = registry.stream(lease, set, Order::ring().ahead(1)).unwrap();
                    for step in 0..3 * LAYERS {
                        let part = stream.part((start + step) % LAYERS, SOON).unwrap();
                        for weight in part.iter() {
                            let weight = weight.unwrap();
                            assert!(weight.bytes() == wanted[weight.name()]);
                        }
                    }
                });
            }
        });
        let window = registry.ledger();
        assert_eq!(
            window.peak, window.resident,
            "more than the set was ever there"
        );
        drop(lease);
        registry.retire(set).unwrap().reclaimed(SOON).unwrap();
        assert_eq!(registry.ledger().total(), 0);
    };
    tapped(
        calls,
        || {},
        act,
        |_| {
            reads += 1;
            // The disk's own time.
            std::thread::sleep(std::time::Duration::from_micros(300));
            Answer::Goes
        },
    );
    assert!(reads > 3 * LAYERS, "{reads}");
    scene.intact("a slow disk");
}
