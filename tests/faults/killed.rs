//! A process that is killed in the middle of a load, and one that is started after it: nothing is left on
//! disk, nothing was changed there, and the next one loads what there is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use weighbridge::source::{Checkpoint, Source};

use crate::faulty::{At, Faulty, Script, contents_of};
use crate::operations::{OPERATIONS, Operation};
use crate::support::copy;
use crate::world::{World, alone};

const NAME: &str = "killed::a_process_that_is_killed_anywhere_in_a_load_leaves_nothing";
const OPERATION: &str = "WEIGHBRIDGE_TEST_OPERATION";
const STEP: &str = "WEIGHBRIDGE_TEST_STEP";
const DIR: &str = "WEIGHBRIDGE_TEST_DIR";

/// Everything below a directory, with what it has and when it was written.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            let written = std::fs::metadata(&path).unwrap().modified().unwrap();
            found.insert(path.clone(), (std::fs::read(&path).unwrap(), written));
        }
    }
    found
}

/// Does the operation, which stops at a step; if it does not get there, loads the checkpoint as well.
fn child(operation: &Operation) {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let step: usize = std::env::var(STEP).unwrap().parse().unwrap();
    let world = World::new();
    // Its files have been read, and are open, when the process ends.
    let opened = Checkpoint::open(&dir).unwrap();
    let wanted = contents_of(&opened);
    let script = Script::new(At::Step(step), || {
        println!("\nat the step");
        // Until we are killed: nobody closes this before.
        let _ = std::io::stdin().read(&mut [0]);
        unreachable!("it was to be killed here")
    });
    (operation.load)(&world, Faulty::new(&world, operation.takes, &script)).unwrap();
    let last = Faulty::around(opened, Arc::new(wanted));
    let publish = OPERATIONS
        .iter()
        .find(|operation| operation.name == "publish");
    (publish.unwrap().load)(&world, last).unwrap();
    world.end();
    println!("\nloaded all of it");
}

/// Starts a child in directories of its own; everything that it might write would be below `home`.
fn start(home: &Path, operation: &Operation, step: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .envs([("HOME", home), ("TMPDIR", home), ("XDG_CACHE_HOME", home)])
        .env(DIR, home.join("model"))
        .env(OPERATION, operation.name)
        .env(STEP, step.to_string())
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the child says where it is. `true`: at the step, and there it stays.
fn stopped(child: &mut Child) -> bool {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut said = lines
        .map(Result::unwrap)
        .filter(|line| !line.starts_with("test "));
    said.find_map(|line| match line.as_str() {
        "at the step" => Some(true),
        "loaded all of it" => Some(false),
        _ => None,
    })
    .expect("the child failed")
}

#[test]
fn a_process_that_is_killed_anywhere_in_a_load_leaves_nothing() {
    if let Some(name) = std::env::var_os(OPERATION) {
        return child(
            OPERATIONS
                .iter()
                .find(|operation| name == operation.name)
                .unwrap(),
        );
    }
    let _alone = alone();
    let dir = copy("tiny-llama-sharded");
    let home = tempfile::tempdir().unwrap();
    std::fs::rename(dir.path(), home.path().join("model")).unwrap();
    let before = tree(home.path());
    let identity = identity(home.path());
    // Every step of one operation, and a step in the middle of each other one.
    let publish = |operation: &Operation| operation.name == "publish";
    for operation in OPERATIONS {
        let steps = if publish(operation) {
            0..usize::MAX
        } else {
            6..7
        };
        for step in steps {
            let mut child = start(home.path(), operation, step);
            let at_the_step = stopped(&mut child);
            if at_the_step {
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            if !at_the_step {
                assert!(
                    publish(operation) && step > 8 && status.success(),
                    "{}",
                    operation.name
                );
                break;
            }
            assert_eq!(status.signal(), Some(libc::SIGKILL));
            let after = tree(home.path());
            assert!(
                after == before,
                "{}, step {step}: {:?}",
                operation.name,
                after.keys()
            );
        }
    }
    // It is started again, without a fault.
    let mut last = start(home.path(), &OPERATIONS[1], usize::MAX);
    assert!(!stopped(&mut last) && last.wait().unwrap().success());
    assert_eq!(self::identity(home.path()), identity);
    assert!(tree(home.path()) == before);
}

fn identity(home: &Path) -> String {
    let checkpoint = Checkpoint::open(home.join("model")).unwrap();
    assert_eq!(checkpoint.plan().tensors().len(), 39);
    let registry = crate::support::registry();
    registry.stage(checkpoint).unwrap().identity().to_string()
}
