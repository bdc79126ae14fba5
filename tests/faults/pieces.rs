//! Files that several threads read piece by piece, and that fail while they do.
//!
//! What lives here: a file large enough for three readers, read for a publish and to load a set again, hashed
//! and unhashed; one of the system's faults in a piece that comes late, or in all of them; after it the ledger
//! and the process as they were, and the same again without the fault. What does not: files that one thread
//! reads, whose every call fails in turn (`files`); what is in the pieces (`src/reading.rs` has tests of that).
//!
//! Several threads take part for certain: the first read of each is held until all of them have come to theirs.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;
use weighbridge::source::{Checkpoint, Evictable};
use weighbridge::{Error, Lease, SetHandle, WeightRegistry};

use crate::files::tick;
use crate::heap;
use crate::support::device::until;
use crate::support::{SOON, bytes, file_of};
use crate::tap::{Answer, Call, tapped, works};
use crate::world::{Process, alone, threads};

const MIB: usize = 1 << 20;
/// Threads that read. There is one for each eight mebibytes.
const READERS: usize = 3;
/// The tensors: one of five pieces, and one that ends in the middle of its second.
const A: usize = 20 * MIB;
const B: usize = 4 * MIB + 12_345;
const BYSTANDER: usize = 4096;

/// What is to be done with the file.
#[derive(Debug, Clone, Copy)]
enum Load {
    Publish,
    /// Of a set that was evicted.
    Again,
}

/// One load: what, and whether its bytes are hashed or the caller vouches for them.
#[derive(Debug, Clone, Copy)]
struct Way(Load, Hashed);

#[derive(Debug, Clone, Copy)]
enum Hashed {
    Hashed,
    Unhashed,
}

const WAYS: [Way; 4] = [
    Way(Load::Publish, Hashed::Hashed),
    Way(Load::Publish, Hashed::Unhashed),
    Way(Load::Again, Hashed::Hashed),
    Way(Load::Again, Hashed::Unhashed),
];

/// What both tensors have: no step of it is like another.
fn content() -> Vec<u8> {
    let byte = |at: usize| (at ^ (at >> 9) ^ (at >> 17)) as u8;
    (0..A + B).map(byte).collect()
}

fn checkpoint(dir: &Path, hashed: Hashed) -> Result<Checkpoint, Error> {
    let source = Checkpoint::open(dir)?;
    Ok(match hashed {
        Hashed::Hashed => source,
        Hashed::Unhashed => source.declared("the caller's word"),
    })
}

/// A registry with three readers, a set that has nothing to do with it, two that are away, and their file.
struct Scene {
    registry: Arc<WeightRegistry>,
    bystander: SetHandle,
    away: [SetHandle; 2],
    path: PathBuf,
    file: Vec<u8>,
    /// Where the tensors begin.
    data: u64,
    process: Process,
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// With room for so many bytes.
    fn new(limit: usize) -> Self {
        let alone = alone();
        until("threads of the test before this one", || threads() == 0);
        let dir = tempfile::tempdir().unwrap();
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[{A}],"data_offsets":[0,{A}]}},"b":{{"dtype":"U8","shape":[{B}],"data_offsets":[{A},{}]}}}}"#,
            A + B
        );
        let mut file = file_of(&header, 0);
        let data = file.len() as u64;
        file.extend(content());
        let path = dir.path().join("model.safetensors");
        fs::write(&path, &file).unwrap();
        let builder = WeightRegistry::builder()
            .limit_bytes(limit as u64)
            .readers(READERS)
            .load_backoff(Duration::ZERO, Duration::ZERO);
        let registry = Arc::new(builder.build().unwrap());
        let bystander = registry.publish("bystander", bytes(BYSTANDER, 5)).unwrap();
        let away = [
            ("away", Hashed::Hashed),
            ("away unhashed", Hashed::Unhashed),
        ];
        let away = away.map(|(name, hashed)| {
            let dir = dir.path().to_owned();
            let source = Evictable::opened_by(move || checkpoint(&dir, hashed)).unwrap();
            let set = registry.publish(name, source).unwrap();
            registry.evict(set).unwrap();
            set
        });
        tick(&path);
        // The reclaimer. A reader's thread may end a little later than its load.
        until("only one thread is left", || threads() == 1);
        Scene {
            process: Process::now(),
            registry,
            bystander,
            away,
            path,
            file,
            data,
            dir,
            _alone: alone,
        }
    }

    fn away(&self, hashed: Hashed) -> SetHandle {
        self.away[hashed as usize]
    }

    fn load(&self, Way(load, hashed): Way) -> Result<Lease, Error> {
        match load {
            Load::Publish => {
                let source = checkpoint(self.dir.path(), hashed)?;
                let set = self.registry.publish("new", source)?;
                self.registry.acquire(set)
            }
            Load::Again => self.registry.acquire_or_load(self.away(hashed), SOON),
        }
    }

    /// Is what was loaded what is in the file? Afterwards it is not there any more.
    #[track_caller]
    fn right(&self, what: &str, Way(load, _): Way, lease: Lease) {
        let set = lease.sets().next().unwrap().handle();
        for (name, range) in [("a", 0..A), ("b", A..A + B)] {
            let there = lease.set(set).unwrap().get(name).unwrap();
            let data = self.data as usize;
            let wanted = &self.file[data + range.start..data + range.end];
            assert!(there.bytes() == wanted, "{what}: other bytes in {name}");
        }
        drop(lease);
        match load {
            Load::Publish => {
                let going = self.registry.retire(set).unwrap();
                going.reclaimed(SOON).unwrap();
            }
            Load::Again => assert!(self.registry.evict(set).unwrap() > 0),
        }
    }

    /// Nothing is there of what was wanted, and everything of what was there.
    #[track_caller]
    fn intact(&self, what: &str) {
        let registry = &self.registry;
        until(what, || registry.ledger().retired == 0);
        let ledger = registry.ledger();
        let all = (ledger.reserved, ledger.resident, ledger.kept);
        assert_eq!(all, (0, BYSTANDER as u64, 0), "{what}");
        let accounts = registry.accounts();
        let accounts: u64 = accounts.iter().map(|(_, one)| one.total()).sum();
        assert_eq!(accounts, BYSTANDER as u64, "{what}: the accounts together");
        until(what, || Process::now() == self.process);
        assert_eq!(registry.lookup("new"), None, "{what}");
        let stats = registry.stats();
        assert_eq!((stats.sets, stats.waiting), (3, 0), "{what}");
        for set in self.away {
            let refused = registry.acquire(set).unwrap_err();
            assert!(matches!(refused, Error::NotResident { .. }), "{what}");
        }
        let lease = registry.acquire(self.bystander).unwrap();
        let there = lease.set(self.bystander).unwrap().get("w").unwrap();
        assert!(there.bytes() == [5; BYSTANDER], "{what}");
    }

    /// Loads while `answer` says what becomes of the reads of the tensors; everything else goes.
    fn loads(&self, way: Way, mut answer: impl FnMut(&Call) -> Answer) -> Result<Lease, Error> {
        let calls = &[libc::SYS_pread64];
        let answer = |call: &Call| match self.is_of_tensors(call) {
            true => answer(call),
            false => Answer::Goes,
        };
        tapped(calls, || {}, |()| self.load(way), answer)
    }

    fn is_of_tensors(&self, call: &Call) -> bool {
        let range = call.range();
        call.file() == self.path && range.start >= self.data && !range.is_empty()
    }

    /// Does this read the byte that is so far from where the tensors begin?
    fn reads(&self, call: &Call, at: usize) -> bool {
        call.range().contains(&(self.data + at as u64))
    }

    /// The file as it was.
    fn mend(&self) {
        fs::write(&self.path, &self.file).unwrap();
        tick(&self.path);
    }

    /// The same once more, and nobody does anything to it.
    #[track_caller]
    fn again(&self, what: &str, way: Way) {
        let what = format!("after {what}");
        let lease = self.load(way);
        let lease = lease.unwrap_or_else(|error| panic!("{what}: {error}"));
        self.right(&what, way, lease);
        self.intact(&what);
    }

    fn end(self) {
        let Scene {
            registry, process, ..
        } = self;
        let registry = Arc::into_inner(registry).expect("somebody has the registry");
        drop(registry);
        until("the library's threads end", || threads() == 0);
        assert_eq!(heap::arenas(), process.arenas - BYSTANDER);
    }
}

/// The readers. Each is held at its first read until all have come.
#[derive(Default)]
struct Readers(HashSet<u32>);

impl Readers {
    fn all_read(&mut self, call: &Call) -> bool {
        self.0.insert(call.thread);
        self.0.len() >= READERS
    }
}

/// Why a load failed; of one that was shared, what everybody is told of it.
#[track_caller]
fn cause(what: &str, Way(load, hashed): Way, answer: Result<Lease, Error>) -> Arc<Error> {
    let error = answer.map(drop).expect_err(what);
    match (load, error) {
        (Load::Publish, error) => Arc::new(error),
        (Load::Again, Error::LoadFailed { set, cause }) => {
            let name = ["away", "away unhashed"][hashed as usize];
            assert_eq!(set.name(), name, "{what}");
            cause
        }
        (Load::Again, error) => panic!("{what}: {error}"),
    }
}

/// The bytes at which faults strike: in the first piece, in the fifth, and the last of all.
const PLACES: [usize; 3] = [1, 17 * MIB, A + B - 1];

#[test]
fn a_read_of_any_piece_may_fail() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    for way in WAYS {
        for (at, errno) in PLACES
            .into_iter()
            .zip([libc::EIO, libc::ESTALE, libc::ENOMEM])
        {
            let what = format!("{way:?}, {errno} at {at}");
            let mut readers = Readers::default();
            let answer = scene.loads(way, |call| {
                if !readers.all_read(call) {
                    return Answer::Waits;
                }
                match scene.reads(call, at) {
                    true => Answer::Fails(errno),
                    false => Answer::Goes,
                }
            });
            let cause = cause(&what, way, answer);
            let Error::Io { path, op, source } = &*cause else {
                panic!("{what}: {cause}")
            };
            assert_eq!((&**path, *op), (&*scene.path, "read"), "{what}");
            assert_eq!(source.raw_os_error(), Some(errno), "{what}");
            scene.intact(&what);
            scene.again(&what, way);
        }
    }
    scene.end();
}

/// Every reader's first piece fails, each in its own way: what is told is the first in the order of the file.
#[test]
fn of_several_failures_the_first_in_order_is_told() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    for way in WAYS {
        let what = format!("{way:?}");
        let mut readers = Readers::default();
        let mut failed = Vec::new();
        let answer = scene.loads(way, |call| {
            if !readers.all_read(call) {
                return Answer::Waits;
            }
            let piece = (call.range().start - scene.data) as usize / (4 * MIB);
            failed.push(piece);
            Answer::Fails([libc::EIO, libc::ESTALE, libc::ENOMEM][piece])
        });
        failed.sort_unstable();
        assert_eq!(failed, [0, 1, 2], "{what}");
        let cause = cause(&what, way, answer);
        let first =
            matches!(&*cause, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EIO));
        assert!(first, "{what}: {cause}");
        scene.intact(&what);
        scene.again(&what, way);
    }
    scene.end();
}

/// All that is read comes in parts, and signals come in between, on every thread.
#[test]
fn short_and_interrupted_reads_of_pieces_are_finished() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    for way in WAYS {
        let what = format!("{way:?}");
        let mut readers = Readers::default();
        let mut reads: HashMap<u32, usize> = HashMap::new();
        let answer = scene.loads(way, |call| {
            if !readers.all_read(call) {
                return Answer::Waits;
            }
            let reads = reads.entry(call.thread).or_default();
            *reads += 1;
            match *reads % 3 {
                1 => Answer::Fails(libc::EINTR),
                _ => call.read_short(100_003 + call.index * 997),
            }
        });
        let lease = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        scene.right(&what, way, lease);
        assert_eq!(reads.len(), READERS, "{what}");
        assert!(reads.values().all(|&reads| reads > 3), "{what}: {reads:?}");
        scene.intact(&what);
    }
    scene.end();
}

type Change = (&'static str, fn(&Path));

/// What others do to the file, and what is then said of it.
const CHANGES: &[(Change, &str)] = &[
    (
        ("cut in two", |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len((12 * MIB) as u64).unwrap();
        }),
        "bytes",
    ),
    (
        ("made longer", |path| {
            let file = File::options().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut &file, &[7; 64]).unwrap();
        }),
        "now has",
    ),
    (
        ("written in place, and its time put back", |path| {
            let file = File::options().write(true).open(path).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(&[0xEE], (5 * MIB) as u64).unwrap();
            file.set_modified(modified).unwrap();
        }),
        "it was written to",
    ),
];

#[test]
fn a_file_that_changes_while_its_pieces_are_read_is_refused() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    for way in WAYS {
        for (at, &((name, change), said)) in PLACES.into_iter().zip(CHANGES.iter().cycle()) {
            let what = format!("{way:?}, {name} at {at}");
            let (mut readers, mut changed) = (Readers::default(), false);
            let answer = scene.loads(way, |call| {
                if !readers.all_read(call) {
                    return Answer::Waits;
                }
                if !changed && scene.reads(call, at) {
                    change(&scene.path);
                    changed = true;
                }
                Answer::Goes
            });
            assert!(changed, "{what}");
            let cause = cause(&what, way, answer);
            let Error::SourceChanged { file, what: how } = &*cause else {
                panic!("{what}: {cause}")
            };
            assert_eq!(*file, scene.path, "{what}");
            assert!(how.contains(said), "{what}: {how}");
            scene.intact(&what);
            scene.mend();
            scene.again(&what, way);
        }
    }
    scene.end();
}

/// A rename, as it should be: what is open stays what it was.
#[test]
fn a_file_that_is_replaced_while_its_pieces_are_read_is_the_old_one() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    let next = scene.dir.path().join("next");
    for way in WAYS {
        let what = format!("{way:?}");
        fs::write(&next, &scene.file[..scene.file.len() - 1]).unwrap();
        let (mut readers, mut replaced) = (Readers::default(), false);
        let answer = scene.loads(way, |call| {
            if !readers.all_read(call) {
                return Answer::Waits;
            }
            if !replaced {
                fs::rename(&next, &scene.path).unwrap();
                replaced = true;
            }
            Answer::Goes
        });
        let lease = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        scene.right(&what, way, lease);
        scene.mend();
        scene.intact(&what);
    }
    scene.end();
}

/// The look at the file when all is read is refused.
#[test]
fn the_last_look_at_a_file_may_fail() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    for way in WAYS {
        let what = format!("{way:?}");
        let mut reads = false;
        let calls = &[libc::SYS_pread64, libc::SYS_statx];
        let answer = tapped(
            calls,
            || {},
            |()| scene.load(way),
            |call| {
                if call.number == libc::SYS_pread64 {
                    reads = reads || scene.is_of_tensors(call);
                    return Answer::Goes;
                }
                match reads {
                    true => Answer::Fails(libc::EIO),
                    false => Answer::Goes,
                }
            },
        );
        let cause = cause(&what, way, answer);
        let looked =
            matches!(&*cause, Error::Io { path, op: "look at", .. } if *path == scene.path);
        assert!(looked, "{what}: {cause}");
        scene.intact(&what);
        scene.again(&what, way);
    }
    scene.end();
}

/// A reader that the system has no thread for is one less.
#[test]
fn readers_without_threads_are_not_missed() {
    let scene = Scene::new(64 * MIB);
    if !works() {
        return;
    }
    let calls = &[libc::SYS_pread64, libc::SYS_clone3, libc::SYS_clone];
    for way in WAYS {
        for granted in 0..READERS {
            let what = format!("{way:?}, {granted} threads more");
            let (mut asked, mut readers) = (0, HashSet::new());
            let answer = tapped(
                calls,
                || {},
                |()| scene.load(way),
                |call| {
                    if call.number != libc::SYS_pread64 {
                        asked += 1;
                        return match asked <= granted {
                            true => Answer::Goes,
                            false => Answer::Fails(libc::EAGAIN),
                        };
                    }
                    if scene.is_of_tensors(call) {
                        readers.insert(call.thread);
                        if readers.len() <= granted {
                            return Answer::Waits;
                        }
                    }
                    Answer::Goes
                },
            );
            let lease = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
            scene.right(&what, way, lease);
            assert_eq!((asked, readers.len()), (READERS - 1, granted + 1), "{what}");
            scene.intact(&what);
        }
    }
    scene.end();
}

/// A load that has another set's memory fails in a late piece: both sets are away, nothing is charged for
/// either, and both come back.
#[test]
fn a_read_that_fails_in_memory_of_another_set() {
    let scene = Scene::new(A + B + 2 * MIB);
    if !works() {
        return;
    }
    for hashed in [Hashed::Hashed, Hashed::Unhashed] {
        let what = format!("{hashed:?}");
        let other = match hashed {
            Hashed::Hashed => Hashed::Unhashed,
            Hashed::Unhashed => Hashed::Hashed,
        };
        let (way, other) = (Way(Load::Again, hashed), Way(Load::Again, other));
        drop(scene.load(other).unwrap());
        let mut readers = Readers::default();
        let answer = scene.loads(way, |call| {
            if !readers.all_read(call) {
                return Answer::Waits;
            }
            match scene.reads(call, PLACES[1]) {
                true => Answer::Fails(libc::EIO),
                false => Answer::Goes,
            }
        });
        let cause = cause(&what, way, answer);
        assert!(matches!(&*cause, Error::Io { op: "read", .. }), "{cause}");
        scene.intact(&what);
        scene.again(&what, way);
        scene.again(&what, other);
    }
    scene.end();
}
