//! Indices of sharded checkpoints.
//!
//! The input is one byte, then `model.safetensors.index.json`. The byte, modulo 3, says what is beside
//! it: shards that are always the same, and a link out of the directory (`0`); the shards that the index
//! asks for (`1`); those, but for one tensor (`2`). What the index says is read here a second time, in
//! the plainest way, and the verdict must follow from that.

use std::collections::BTreeMap;
use std::path::Path;

use weighbridge::source::{Checkpoint, Source};

use super::ground::{file_of, folder, header_of, pattern, publish_and_leave, refusal, write};
use super::ordered::{Ordered, distinct, members, only};

const INDEX: &str = "model.safetensors.index.json";
/// More shards than these are not made for an input.
const MADE: usize = 8;
const FIXED: [(&str, &[&str]); 2] = [("a.safetensors", &["t0", "t1"]), ("b.safetensors", &["t2"])];
const LINK: &str = "link.safetensors";

/// By shard, its tensors.
type Shards<'i> = BTreeMap<&'i str, Vec<&'i str>>;

pub fn run(data: &[u8]) {
    let Some((&mode, index)) = data.split_first() else {
        return;
    };
    let outside = folder();
    let dir = outside.path().join("model");
    std::fs::create_dir(&dir).expect("a directory of our own");
    let document = members(index);
    let shards = document.as_deref().and_then(read);
    match (mode % 3, &shards) {
        (0, _) => fixed(outside.path(), &dir, index, shards.as_ref()),
        (_, None) => drop(open(&dir, index).expect_err("no such index is legal")),
        (_, Some(shards)) if shards.len() > MADE || !can_be_made(shards) => {
            let _ = open(&dir, index);
        }
        (1, Some(shards)) => {
            shards
                .iter()
                .for_each(|(name, tensors)| shard(&dir, name, tensors));
            let opened = open(&dir, index);
            found(
                opened.unwrap_or_else(|text| panic!("{text}: {shards:?}")),
                shards,
            );
        }
        (_, Some(shards)) => one_is_missing(&dir, index, shards),
    }
}

/// What an index says, if it is legal: every tensor once, in a file of the index's own directory.
fn read(document: &[(String, Ordered)]) -> Option<Shards<'_>> {
    let Ordered::Table(table) = only(document, "weight_map")? else {
        return None;
    };
    if !distinct(table.iter().map(|(tensor, _)| &**tensor)) {
        return None;
    }
    let mut shards = Shards::new();
    for (tensor, shard) in table {
        let Ordered::Text(shard) = shard else {
            return None;
        };
        let plain =
            is_name(shard, 255) && !shard.contains(['/', '\\']) && shard != "." && shard != "..";
        if !plain || !is_name(tensor, 512) {
            return None;
        }
        shards.entry(shard).or_default().push(tensor);
    }
    Some(shards)
}

fn is_name(name: &str, cap: usize) -> bool {
    (1..=cap).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Not those that would be another file of a checkpoint, or whose tensor has no entry of its own.
fn can_be_made(shards: &Shards<'_>) -> bool {
    let other = |name: &&str| [INDEX, "config.json"].contains(name);
    let metadata = |tensors: &Vec<&str>| tensors.contains(&"__metadata__");
    !shards.keys().any(other) && !shards.values().any(metadata)
}

fn shard(dir: &Path, name: &str, tensors: &[&str]) {
    let (header, data) = header_of(tensors.iter().map(|&tensor| (tensor, vec![1])));
    write(&dir.join(name), &file_of(&header, &pattern(data)));
}

fn open(dir: &Path, index: &[u8]) -> Result<Checkpoint, String> {
    write(&dir.join(INDEX), index);
    Checkpoint::open(dir).map_err(|error| refusal(&error))
}

fn found(opened: Checkpoint, shards: &Shards<'_>) {
    let mut expected: Vec<&str> = shards.values().flatten().copied().collect();
    expected.sort_unstable();
    let tensors = opened.plan().tensors();
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name()).collect();
    assert_eq!(names, expected);
    publish_and_leave(opened, |lease| {
        let set = lease.sets().next().expect("a set");
        for tensors in shards.values() {
            for (tensor, byte) in tensors.iter().zip(pattern(tensors.len())) {
                assert_eq!(set.get(tensor).expect("it is there").bytes(), [byte]);
            }
        }
    });
}

fn sorted(mut shards: Shards<'_>) -> Shards<'_> {
    shards
        .values_mut()
        .for_each(|tensors| tensors.sort_unstable());
    shards
}

/// Shards that are there whatever the index says.
fn fixed(outside: &Path, dir: &Path, index: &[u8], shards: Option<&Shards<'_>>) {
    FIXED
        .iter()
        .for_each(|(name, tensors)| shard(dir, name, tensors));
    shard(outside, "outside.safetensors", &["t2"]);
    #[cfg(unix)]
    std::os::unix::fs::symlink("../outside.safetensors", dir.join(LINK)).expect("a link");
    let expected: Shards<'_> = FIXED
        .iter()
        .map(|&(name, tensors)| (name, tensors.to_vec()))
        .collect();
    let is_it = shards.cloned().map(sorted) == Some(expected);
    match open(dir, index) {
        Ok(opened) => {
            assert!(is_it, "accepted: {shards:?}");
            let tensors = opened.plan().tensors();
            assert!(
                tensors
                    .iter()
                    .map(|tensor| tensor.name())
                    .eq(["t0", "t1", "t2"])
            );
        }
        Err(text) => assert!(!is_it, "{text}"),
    }
}

/// The index names a tensor that its shard does not have.
fn one_is_missing(dir: &Path, index: &[u8], shards: &Shards<'_>) {
    let last = shards.keys().last().copied();
    for (name, tensors) in shards {
        let missing = usize::from(Some(*name) == last);
        shard(dir, name, &tensors[missing..]);
    }
    match open(dir, index) {
        Ok(opened) => assert!(shards.is_empty(), "one is missing: {opened:?}"),
        Err(text) => assert!(text.contains("says it is here, but it is not"), "{text}"),
    }
}
