//! What the operating system refuses a whole process: descriptors, address space, threads. In a child
//! process of the test's own.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, mpsc};

use weighbridge::source::{Checkpoint, Evictable, InMemory, Streamed};
use weighbridge::{Dtype, Error, Order, Parts, WeightRegistry, WindowSize, fence};

use crate::support::{SOON, block_on, bytes, fixture};
use crate::tap::{Answer, not_run, tapped, works};
use crate::world::{World, alone};

const CHILD: &str = "WEIGHBRIDGE_TEST_IS_THE_CHILD";

/// Runs the test `name` again, in a process of its own, where this returns true.
fn in_a_child(name: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let _alone = alone();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// Runs `f` while the process may have no more than `most` of `resource`.
fn limited<R>(resource: libc::__rlimit_resource_t, most: u64, f: impl FnOnce() -> R) -> R {
    let set = |limit: &libc::rlimit| {
        // SAFETY: a place that was filled, as large as asked for.
        assert_eq!(unsafe { libc::setrlimit(resource, limit) }, 0);
    };
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut before) }, 0);
    set(&libc::rlimit {
        rlim_cur: most,
        ..before
    });
    let answer = f();
    set(&before);
    answer
}

/// One descriptor more each time, until there are enough for a checkpoint in three files.
#[test]
fn descriptors_run_out() {
    if !in_a_child("limits::descriptors_run_out") {
        return;
    }
    let world = World::new();
    let dir = fixture("tiny-llama-sharded");
    // Numbers below the limit that nobody has are filled.
    let highest = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    let mut refused = 0;
    for spare in 0.. {
        let answer = limited(libc::RLIMIT_NOFILE, highest + spare, || {
            let source = Checkpoint::open(&dir)?;
            Ok::<_, Error>(world.registry.publish("new", source)?)
        });
        match answer {
            Ok(set) => {
                world.registry.retire(set).unwrap().reclaimed(SOON).unwrap();
                break;
            }
            Err(Error::Io { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "{source}");
                refused += 1;
            }
            Err(error) => panic!("{spare} descriptors: {error}"),
        }
        world.intact(&format!("{spare} descriptors"), None);
        let again = world
            .registry
            .publish("new", Checkpoint::open(&dir).unwrap())
            .unwrap();
        world
            .registry
            .retire(again)
            .unwrap()
            .reclaimed(SOON)
            .unwrap();
        world.intact(&format!("after {spare} descriptors"), None);
    }
    assert!(refused >= 3, "{refused}");
    // Of what is open already, everything works: nothing needs a descriptor but opening.
    let opened = Checkpoint::open(&dir).unwrap();
    limited(libc::RLIMIT_NOFILE, 0, || {
        let set = world.registry.publish("new", opened).unwrap();
        world.serves("without descriptors", None);
        world.registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    });
    world.intact("without descriptors", None);
    world.end();
}

/// Sets of a mebibyte and more are mappings of their own. The system refuses one; what is smaller is had.
#[test]
fn address_space_runs_out() {
    if cfg!(weighbridge_asan) {
        // The tool's own allocator maps anew for every size it sees first, and ends the process if it cannot.
        not_run("no room for AddressSanitizer where there is none for anybody");
        return;
    }
    if !in_a_child("limits::address_space_runs_out") {
        return;
    }
    let world = World::new();
    let big = || bytes(4 << 20, 3).declared("big");
    // Both are made before the limit: it is about the arena.
    let (first, second) = (big(), big());
    let used = address_space();
    let failed = limited(libc::RLIMIT_AS, used + (2 << 20), || {
        let failed = world.registry.publish("new", first).unwrap_err();
        let small = world.registry.publish("first", bytes(64, 1)).unwrap();
        world
            .registry
            .retire(small)
            .unwrap()
            .reclaimed(SOON)
            .unwrap();
        failed
    });
    assert!(
        matches!(failed.error(), Error::OutOfMemory { .. }),
        "{failed}"
    );
    world.intact("without address space", None);
    let set = world.registry.publish("new", second).unwrap();
    world.registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    world.intact("afterwards", None);
    world.end();
}

/// The pool is not in the way of the system's limit, either.
#[test]
fn memory_that_is_kept_goes_when_the_system_has_no_more() {
    if cfg!(weighbridge_asan) {
        not_run("no room for AddressSanitizer where there is none for anybody");
        return;
    }
    if !in_a_child("limits::memory_that_is_kept_goes_when_the_system_has_no_more") {
        return;
    }
    const MIB: usize = 1 << 20;
    let registry = WeightRegistry::builder().pool_bytes(1 << 40);
    let registry = registry.build().unwrap();
    let set = registry.publish("before", bytes(64 * MIB, 1)).unwrap();
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().pooled, 64 << 20);
    // One that it does not serve for, and for which there is no room beside it.
    let source = bytes(32 * MIB, 2);
    let used = address_space();
    let published = limited(libc::RLIMIT_AS, used + (16 << 20), || {
        registry.publish("after", source)
    });
    published.unwrap();
    let now = registry.ledger();
    assert_eq!((now.resident, now.pooled), (32 << 20, 0));
}

/// What this process has of it, in bytes.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
    pages * rustix_page()
}

fn rustix_page() -> u64 {
    // SAFETY: a number is asked for.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// No thread for a registry: it is not made, and nothing is left. No thread for its fences: whoever gives a
/// lease away waits for the fence, for the bytes must not go earlier.
#[test]
fn threads_run_out() {
    let world = World::new();
    if !works() {
        return;
    }
    let no_threads = &[libc::SYS_clone3, libc::SYS_clone];
    let error = tapped(
        no_threads,
        || {},
        |()| WeightRegistry::builder().build().err(),
        |_| Answer::Fails(libc::EAGAIN),
    );
    let Some(Error::Io {
        op: "start",
        source,
        ..
    }) = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(source.raw_os_error(), Some(libc::EAGAIN));
    world.intact("without a thread for a registry", None);

    let registry = Arc::clone(&world.registry);
    let set = registry.publish("new", bytes(64, 1)).unwrap();
    let lease = registry.acquire(set).unwrap();
    let going = registry.retire(set).unwrap();
    let (mut look, (looks, seen)) = (0, mpsc::channel());
    let waited = tapped(
        no_threads,
        || {},
        |()| {
            lease.release_after(move || {
                look += 1;
                looks.send(look).unwrap();
                look == 3
            });
            // (A retirement that stays would keep what the thread for fences is part of.)
            let going = going;
            going.reclaimed(SOON)
        },
        |_| Answer::Fails(libc::EAGAIN),
    );
    waited.unwrap();
    assert_eq!(seen.iter().count(), 3, "it did not wait for the fence");
    world.intact("without a thread for fences", None);
    // With one: as always.
    let (signal, fence) = fence::signal("device");
    let tensor = InMemory::new().tensor("w", Dtype::U8, [1], [1]).unwrap();
    let set = registry.publish("new", tensor).unwrap();
    registry.acquire(set).unwrap().release_after(fence);
    let going = registry.retire(set).unwrap();
    assert!(!going.is_drained());
    signal.set();
    going.reclaimed(SOON).unwrap();
    world.intact("with a thread for fences", None);
    drop((registry, going));
    world.end();
}

/// No thread for the loaders: whoever asks reads, what is wanted ahead of it, too.
#[test]
fn loaders_without_threads() {
    let _alone = alone();
    if !works() {
        return;
    }
    let registry = Arc::new(WeightRegistry::builder().build().unwrap());
    let tiny = || Checkpoint::open(fixture("tiny-llama")).unwrap();
    let away = registry.publish("away", Evictable::new(tiny())).unwrap();
    registry.evict(away).unwrap();
    let parts = Streamed::new(tiny(), &Parts::layers(), WindowSize::Parts(3)).unwrap();
    let set = registry.publish("streamed", parts).unwrap();
    let read = tapped(
        &[libc::SYS_clone3, libc::SYS_clone],
        || {},
        |()| {
            block_on(registry.acquire_or_load_async(away))?;
            let lease = registry.acquire(set)?;
            let mut stream = registry.stream(&lease, set, Order::ring())?;
            for layer in (0..4).cycle().take(40) {
                block_on(stream.part_async(layer))?;
            }
            stream.tally()
        },
        |_| Answer::Fails(libc::EAGAIN),
    );
    let tally = read.unwrap();
    assert_eq!((tally.failures, tally.hits + tally.misses), (0, 40));
    assert!(tally.reads >= 4, "{tally:?}");
}
