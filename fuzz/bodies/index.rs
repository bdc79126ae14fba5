//! Indices of sharded checkpoints.
//!
//! The input is one byte, then `model.safetensors.index.json`. The byte, modulo 3, says what is beside
//! it: shards that are always the same, and a link out of the directory (`0`); the shards that the index
//! asks for (`1`); those, but for one tensor (`2`). What the index says is read here a second time, in
//! the plainest way, and the verdict must follow from that.

use std::collections::BTreeMap;
use std::path::Path;

use weighbridge::source::{Checkpoint, Source};

use super::ground::{
    contents, file_of, folder, header_of, pattern, refusal, stage_and_leave, write,
};
use super::ordered::{Ordered, distinct, members, only};

const INDEX: &str = "model.safetensors.index.json";
/// More shards than these are not made for one input.
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
    let read = document.as_deref().and_then(read);
    let legal = read
        .as_ref()
        .filter(|read| read.legal)
        .map(|read| &read.shards);
    match (mode % 3, &read) {
        (0, _) => fixed(outside.path(), &dir, index, legal),
        (_, None) => drop(open(&dir, index).expect_err("no such index is legal")),
        (_, Some(read)) if !can_be_made(&read.shards) => {
            let opened = open(&dir, index);
            assert!(read.legal || opened.is_err(), "accepted: {opened:?}");
        }
        (1, Some(read)) => as_asked(&dir, index, read),
        (_, Some(read)) => one_is_missing(&dir, index, read),
    }
}

/// What an index says, and whether it may: every tensor once, in a file of the index's own directory.
struct Read<'i> {
    shards: Shards<'i>,
    legal: bool,
}

fn read(document: &[(String, Ordered)]) -> Option<Read<'_>> {
    let Ordered::Table(table) = only(document, "weight_map")? else {
        return None;
    };
    let mut legal = distinct(table.iter().map(|(tensor, _)| &**tensor));
    let mut shards = Shards::new();
    for (tensor, shard) in table {
        let Ordered::Text(shard) = shard else {
            return None;
        };
        legal &= is_name(tensor, 512) && is_name(shard, 255) && is_file(shard);
        let tensors = shards.entry(shard).or_default();
        if !tensors.contains(&&**tensor) {
            tensors.push(tensor);
        }
    }
    Some(Read { shards, legal })
}

fn is_file(shard: &str) -> bool {
    !shard.contains(['/', '\\']) && shard != "." && shard != ".."
}

fn is_name(name: &str, cap: usize) -> bool {
    (1..=cap).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Can these shards be there? A few that the system has files for, that are no other file of a
/// checkpoint, and whose tensors have entries of their own.
fn can_be_made(shards: &Shards<'_>) -> bool {
    let file = |name: &&str| {
        let other = [INDEX, "config.json"].contains(name);
        let named = (1..=255).contains(&name.len()) && ![".", ".."].contains(name);
        named && !name.contains(['/', '\0']) && !other
    };
    let metadata = |tensors: &Vec<&str>| tensors.contains(&"__metadata__");
    shards.len() <= MADE && shards.keys().all(file) && !shards.values().any(metadata)
}

fn shard(dir: &Path, name: &str, tensors: &[&str]) {
    let (header, data) = header_of(tensors.iter().map(|&tensor| (tensor, vec![1])));
    write(&dir.join(name), &file_of(&header, &pattern(data)));
}

fn open(dir: &Path, index: &[u8]) -> Result<Checkpoint, String> {
    write(&dir.join(INDEX), index);
    Checkpoint::open(dir).map_err(|error| refusal(&error))
}

/// The shards are there, whether or not they may be asked for.
fn as_asked(dir: &Path, index: &[u8], read: &Read<'_>) {
    let each = read.shards.iter();
    each.for_each(|(name, tensors)| shard(dir, name, tensors));
    match open(dir, index) {
        Ok(opened) => {
            assert!(read.legal, "accepted: {:?}", read.shards);
            found(opened, &read.shards);
        }
        Err(text) => assert!(!read.legal, "{text}: {:?}", read.shards),
    }
}

fn found(opened: Checkpoint, shards: &Shards<'_>) {
    let of = |tensors: &Vec<&str>| {
        let bytes = pattern(tensors.len());
        let each = tensors.iter().zip(bytes);
        each.map(|(tensor, byte)| (tensor.to_string(), vec![byte]))
            .collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = shards.values().flat_map(of).collect();
    expected.sort();
    assert_eq!(contents(&opened), expected);
    stage_and_leave(opened);
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
            let none = shards.is_some_and(Shards::is_empty);
            assert!(is_it || none, "accepted: {shards:?}");
            let tensors = opened.plan().tensors().iter().map(|tensor| tensor.name());
            let expected: &[&str] = if none { &[] } else { &["t0", "t1", "t2"] };
            assert!(tensors.eq(expected.iter().copied()));
        }
        Err(text) => assert!(!is_it, "{text}"),
    }
}

/// The index names a tensor that its shard does not have.
fn one_is_missing(dir: &Path, index: &[u8], Read { shards, legal }: &Read<'_>) {
    let last = shards.keys().last().copied();
    for (name, tensors) in shards {
        let missing = usize::from(Some(*name) == last);
        shard(dir, name, &tensors[missing..]);
    }
    match open(dir, index) {
        Ok(opened) => assert!(shards.is_empty(), "one is missing: {opened:?}"),
        Err(text) => {
            let says = text.contains("says it is here, but it is not");
            assert!(says || !legal, "{text}");
        }
    }
}
