//! Files that fail under the library's own reader: at every call that opens, looks at, or reads them, with
//! each error that a system has; short reads; files that change in the middle of a read; and that nothing
//! is ever written.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use weighbridge::Error;
use weighbridge::source::{Checkpoint, PeftAdapter};

use crate::faulty::{Faulty, contents_of};
use crate::operations::{OPERATIONS, Operation, Takes};
use crate::support::copy;
use crate::tap::{Answer, Call, tapped, works};
use crate::world::{Contents, TARGET, World};

/// Every call by which the library touches a file.
const TOUCHES: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_mmap,
];

/// Every call that writes to a file or a directory.
const WRITES: &[libc::c_long] = &[
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_fsync,
    libc::SYS_flock,
];

/// Files for an operation, in a directory of the test's own, and what they have.
struct Files {
    dir: TempDir,
    takes: Takes,
    wanted: Arc<Contents>,
}

impl Files {
    fn new(world: &World, takes: Takes) -> Self {
        let dir = match takes {
            Takes::Checkpoint => copy("tiny-llama-sharded"),
            Takes::Adapter => copy("adapters/pirate-v1"),
            Takes::Tensor => {
                let dir = tempfile::tempdir().unwrap();
                let header = r#"{"w":{"dtype":"U8","shape":[4096],"data_offsets":[0,4096]}}"#;
                let file = crate::support::file_of(header, TARGET);
                fs::write(dir.path().join("model.safetensors"), file).unwrap();
                dir
            }
        };
        let mut files = Files {
            dir,
            takes,
            wanted: Arc::default(),
        };
        files.wanted = Arc::new(match takes {
            Takes::Adapter => {
                contents_of(&PeftAdapter::open(files.dir.path()).unwrap().on(world.base))
            }
            _ => contents_of(&Checkpoint::open(files.dir.path()).unwrap()),
        });
        files
    }

    /// Opens them. Part of the load: what fails here, fails it.
    fn open(&self, world: &World) -> Result<Faulty, Error> {
        let (dir, wanted) = (self.dir.path(), Arc::clone(&self.wanted));
        Ok(match self.takes {
            Takes::Adapter => Faulty::around(PeftAdapter::open(dir)?.on(world.base), wanted),
            _ => Faulty::around(Checkpoint::open(dir)?, wanted),
        })
    }

    /// The last file with tensors, which is read when others are in memory already.
    fn last(&self) -> PathBuf {
        let name = match self.takes {
            Takes::Checkpoint => "model-00003-of-00003.safetensors",
            Takes::Adapter => "adapter_model.safetensors",
            Takes::Tensor => "model.safetensors",
        };
        self.dir.path().join(name)
    }

    fn load(&self, world: &World, operation: &Operation) -> Result<(), Error> {
        (operation.load)(world, self.open(world)?)
    }
}

/// Opens and loads with `calls` tapped. Where the answer does not depend on the library, the operation is
/// one of the table's that take files as they are.
fn load_tapped(
    world: &World,
    files: &Files,
    operation: &Operation,
    calls: &[libc::c_long],
    answer: impl FnMut(&Call) -> Answer,
) -> Result<(), Error> {
    tapped(calls, || {}, |()| files.load(world, operation), answer)
}

/// Operations whose sources read themselves, with their files.
fn each(world: &World, mut test: impl FnMut(&Operation, &Files)) {
    for operation in OPERATIONS
        .iter()
        .filter(|operation| !operation.name.contains("fill"))
    {
        test(operation, &Files::new(world, operation.takes));
    }
}

fn name_of(number: libc::c_long) -> &'static str {
    match number {
        libc::SYS_openat => "openat",
        libc::SYS_statx => "statx",
        libc::SYS_pread64 => "pread64",
        libc::SYS_read => "read",
        libc::SYS_mmap => "mmap",
        _ => "another call",
    }
}

/// The `index`-th call fails with `errno`. The load is refused or (where a look failed that only asks
/// whether something is there) goes through; it never panics, and nothing is left.
#[test]
fn any_call_that_touches_a_file_may_fail() {
    let world = World::new();
    if !works() {
        return;
    }
    each(&world, |operation, files| {
        let mut refused = 0;
        for index in 0.. {
            let mut failed = None;
            let errno = [libc::EIO, libc::EMFILE, libc::ENOMEM, libc::ESTALE][index % 4];
            let answer = load_tapped(&world, files, operation, TOUCHES, |call| {
                if call.index != index {
                    return Answer::Goes;
                }
                failed = Some(call.number);
                Answer::Fails(errno)
            });
            let Some(number) = failed else {
                answer.unwrap();
                assert!(index > 8, "{}: only {index} calls", operation.name);
                break;
            };
            let what = format!("{}, call {index} ({})", operation.name, name_of(number));
            refused += usize::from(answer.is_err());
            if let Err(error) = &answer {
                assert!(!error.is_misuse(), "{what}: {error}");
            }
            if number == libc::SYS_pread64 {
                let error = answer.expect_err(&what);
                let io = matches!(&error, Error::Emptied { cause, .. } if cause.is_io());
                assert!(error.is_io() || io, "{what}: {error}");
            }
            world.intact(&what, operation.empties.map(|set| set(&world)));
            files
                .load(&world, operation)
                .unwrap_or_else(|error| panic!("after {what}: {error}"));
            world.intact(&format!("after {what}"), None);
        }
        println!("{}: {refused} refusals", operation.name);
        assert!(refused > 4, "{}", operation.name);
    });
    world.end();
}

/// Every read is cut short, and interrupted by a signal before it begins: what is loaded is right.
#[test]
fn short_and_interrupted_reads_are_finished() {
    let world = World::new();
    if !works() {
        return;
    }
    each(&world, |operation, files| {
        let (mut cut, mut interrupted) = (0, 0);
        load_tapped(&world, files, operation, &[libc::SYS_pread64], |call| {
            if call.index % 3 == 0 {
                interrupted += 1;
                return Answer::Fails(libc::EINTR);
            }
            cut += 1;
            call.read_short(1 + call.index * 997)
        })
        .unwrap_or_else(|error| panic!("{}: {error}", operation.name));
        assert!(cut > 3 && interrupted > 1, "{}", operation.name);
        world.intact(operation.name, None);
    });
    world.end();
}

type Change = (&'static str, fn(&Path));

/// What others do to a file that is being read, other than replacing it as they should.
const CHANGES: &[Change] = &[
    ("truncated", |path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }),
    ("emptied", |path| fs::write(path, []).unwrap()),
    ("made longer", |path| {
        let file = fs::File::options().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut &file, &[7; 64]).unwrap();
    }),
    ("written in place", |path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0xEE], file.metadata().unwrap().len() - 1)
            .unwrap();
    }),
    // So that what is read of it is no header any more: that is not its author's mistake.
    ("written over at its head", |path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"[", 8).unwrap();
    }),
];

/// A file changes at the moment of its `index`-th read, for every one; the library says so.
#[test]
fn a_file_that_changes_at_any_read_is_refused() {
    let world = World::new();
    if !works() {
        return;
    }
    each(&world, |operation, files| {
        let path = files.last();
        let healthy = fs::read(&path).unwrap();
        let (name, change) = CHANGES[operation.name.len() % CHANGES.len()];
        let mut refused = 0;
        for index in 0.. {
            fs::write(&path, &healthy).unwrap();
            tick(&path);
            let (mut reads, mut changed) = (0, false);
            let answer = load_tapped(&world, files, operation, &[libc::SYS_pread64], |call| {
                if call.file() == path {
                    if reads == index {
                        change(&path);
                        changed = true;
                    }
                    reads += 1;
                }
                Answer::Goes
            });
            fs::write(&path, &healthy).unwrap();
            if !changed {
                answer.unwrap();
                break;
            }
            let what = format!("{}, {name} at read {index}", operation.name);
            let error = answer.expect_err(&what);
            let error = match error {
                Error::Emptied { cause, .. } => *cause,
                error => error,
            };
            let noticed = matches!(error, Error::SourceChanged { .. });
            assert!(noticed, "{what}: {error}");
            refused += 1;
            world.intact(&what, operation.empties.map(|set| set(&world)));
            files
                .load(&world, operation)
                .unwrap_or_else(|error| panic!("after {what}: {error}"));
            world.intact(&format!("after {what}"), None);
        }
        println!("{}: {refused} refusals, {name}", operation.name);
        assert!(refused > 2, "{}: {name}", operation.name);
    });
    world.end();
}

/// Replaced by a rename, as it should be, at the moment of any read: the load has the one or, if the file
/// had not been opened, the other, and never some of both.
#[test]
fn a_file_that_is_replaced_at_any_call_is_the_old_or_the_new_one() {
    let world = World::new();
    if !works() {
        return;
    }
    let operation = OPERATIONS
        .iter()
        .find(|one| one.name == "a flat weight")
        .unwrap();
    let files = Files::new(&world, operation.takes);
    let (path, next) = (files.last(), files.dir.path().join("next"));
    let old = fs::read(&path).unwrap();
    let mut new = old.clone();
    let data = new.len() - TARGET;
    new[data..].fill(0x55);
    let mut seen = [0; 2];
    for index in 0.. {
        fs::write(&path, &old).unwrap();
        let mut replaced = false;
        let loaded = tapped(
            TOUCHES,
            || {},
            |()| {
                let source = Checkpoint::open(files.dir.path())?;
                let weight = world.flat.register_from("new", source)?.handle();
                let bytes = world.flat.get(weight)?.bytes().to_vec();
                world
                    .flat
                    .unregister(weight)?
                    .reclaimed(crate::support::SOON)?;
                Ok::<_, Error>(bytes)
            },
            |call| {
                if call.index == index {
                    fs::write(&next, &new).unwrap();
                    fs::rename(&next, &path).unwrap();
                    replaced = true;
                }
                Answer::Goes
            },
        );
        let bytes = loaded.unwrap_or_else(|error| panic!("at call {index}: {error}"));
        let which = [7, 0x55].iter().position(|&fill| bytes == [fill; TARGET]);
        seen[which.expect("some of both")] += 1;
        world.intact("replaced", None);
        if !replaced {
            break;
        }
    }
    assert!(seen.iter().all(|&count| count > 1), "{seen:?}");
    drop(files); // To remove them takes descriptors.
    world.end();
}

/// There is no room on any disk and all are read-only, for all the library cares.
#[test]
fn nothing_is_ever_written() {
    let world = World::new();
    if !works() {
        return;
    }
    let calls = [WRITES, &[libc::SYS_openat]].concat();
    each(&world, |operation, files| {
        let mut opened = 0;
        load_tapped(&world, files, operation, &calls, |call| {
            assert_eq!(call.number, libc::SYS_openat, "{} writes", operation.name);
            let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
            assert_eq!(
                call.open_flags() & writes,
                0,
                "{} opens to write",
                operation.name
            );
            opened += 1;
            Answer::Goes
        })
        .unwrap();
        assert!(opened > 0, "{}", operation.name);
        world.intact(operation.name, None);
    });
    world.end();
}

/// Waits until a change of `path` would show in its ctime: file systems' clocks tick.
pub fn tick(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let changed = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let probe = path.with_extension("tick");
    while {
        fs::write(&probe, b"tick").unwrap();
        changed(&probe) <= changed(path)
    } {}
    fs::remove_file(&probe).unwrap();
}
