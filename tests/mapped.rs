//! Checkpoints that are mapped: the same bytes as when they are read, unread until somebody reads them,
//! and what happens to files that somebody changes after all.
#![cfg(unix)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{SOON, bytes, fixture, registry, tiny};
use tempfile::TempDir;
use weighbridge::source::{Checkpoint, InMemory, Mapped, Source};
use weighbridge::{Dtype, Error, Identity, SetHandle, WeightRegistry};

/// Mapped, as the tests do it.
fn map(checkpoint: Checkpoint) -> Mapped {
    try_map(checkpoint).unwrap()
}

fn try_map(checkpoint: Checkpoint) -> Result<Mapped, Error> {
    // SAFETY: the fixtures are the repository's, and what a test makes for itself only that test
    // changes: by renaming, or when it does not read the mapping any more. (The one that shows what
    // happens otherwise does so in a process of its own, and dies.)
    unsafe { checkpoint.map_files_that_nobody_changes() }
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(path).unwrap()
}

/// A safetensors file of tensors of bytes.
fn encode(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, bytes) in tensors {
        let next = end + bytes.len();
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": [end, next]}),
        );
        end = next;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    tensors.iter().for_each(|(_, bytes)| file.extend(*bytes));
    file
}

/// A directory with such a file as its checkpoint.
fn checkpoint(tensors: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(model(&dir), encode(tensors)).unwrap();
    dir
}

fn model(dir: &TempDir) -> PathBuf {
    dir.path().join("model.safetensors")
}

/// A file of one tensor `w` of `len` zeros that take no room on the disk.
fn sparse(dir: &TempDir, len: u64) {
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    let mut file = File::create(model(dir)).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + len).unwrap();
}

fn identity(registry: &WeightRegistry, source: impl Source) -> Identity {
    registry.stage(source).unwrap().identity().clone()
}

/// Parts of this process's address space that are `path`'s.
#[cfg(target_os = "linux")]
fn mappings(path: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = path.canonicalize().unwrap();
    let path = path.to_str().unwrap();
    maps.lines().filter(|line| line.contains(path)).count()
}

#[test]
fn the_same_bytes_as_when_they_are_read() {
    for name in ["tiny-llama", "tiny-llama-sharded"] {
        let registry = registry();
        let read = registry.publish("read", open(fixture(name))).unwrap();
        let mapped = map(open(fixture(name)));
        assert_eq!(mapped.plan().tensors().len(), 39);
        let mapped = registry.publish("mapped", mapped).unwrap();
        let lease = registry.acquire([read, mapped]).unwrap();
        let (read, mapped) = (lease.set(read).unwrap(), lease.set(mapped).unwrap());
        assert_eq!(read.layout(), mapped.layout());
        for weight in read.iter() {
            let weight = weight.unwrap();
            let same = mapped.get(weight.name()).unwrap();
            assert_eq!(weight.bytes(), same.bytes(), "{}", weight.name());
            assert!(mapped.place(weight.name()).unwrap().owner().is_some());
        }
        let [head, embedding] = ["lm_head.weight", "model.embed_tokens.weight"]
            .map(|name| mapped.place(name).unwrap().address());
        assert_eq!(head, embedding, "a tie");
    }
}

#[test]
fn a_published_mapping_is_unread_until_somebody_reads_it() {
    const NAME: &str = "a_published_mapping_is_unread_until_somebody_reads_it";
    const CHILD: &str = "WEIGHBRIDGE_TEST_TRUNCATES_ITS_MAPPING";
    if std::env::var_os(CHILD).is_some() {
        let dir = tempfile::tempdir().unwrap();
        sparse(&dir, 1 << 20);
        let mapped = map(open(dir.path()));
        // What nobody may do. Whoever touches a byte from here on dies.
        File::options()
            .write(true)
            .open(model(&dir))
            .unwrap()
            .set_len(0)
            .unwrap();
        let registry = registry();
        let set = registry.publish("s", mapped).unwrap();
        let lease = registry.acquire(set).unwrap();
        drop(dir);
        println!("\npublished and leased");
        let sum: u64 = lease
            .set(set)
            .unwrap()
            .get("w")
            .unwrap()
            .bytes()
            .iter()
            .map(|byte| u64::from(*byte))
            .sum();
        println!("\nread {sum}");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(CHILD, "1")
        // AddressSanitizer, if this is built with it, leaves the signal alone: it is what is expected.
        .env("ASAN_OPTIONS", "handle_sigbus=0")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("published and leased"), "{text}");
    assert!(!text.contains("read "), "as documented: {text}");
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(libc::SIGBUS));
}

#[test]
fn the_ledger_has_the_mapped_length_until_the_mapping_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    // More than one piece of the unmapping.
    sparse(&dir, (150 << 20) + 1);
    let registry = WeightRegistry::builder()
        .limit_bytes(200 << 20)
        .build()
        .unwrap();
    let mapped = map(open(dir.path()));
    let charged = mapped.plan().charged_bytes();
    assert_eq!(charged, (150 << 20) + (64 << 10));
    #[cfg(target_os = "linux")]
    assert_eq!(mappings(&model(&dir)), 1);
    let set = registry.publish("s", mapped).unwrap();
    assert_eq!(registry.ledger().resident, charged);
    let lease = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().bytes(), charged);

    let refused = registry.replace(set, map(open(dir.path()))).unwrap_err();
    assert!(
        matches!(refused.error(), Error::OverLimit { .. }),
        "{refused}"
    );
    #[cfg(target_os = "linux")]
    assert_eq!(mappings(&model(&dir)), 1, "the refused one is gone");

    let going = registry.retire(set).unwrap();
    assert_eq!(
        lease.set(set).unwrap().get("w").unwrap().bytes()[150 << 20],
        0
    );
    drop(lease);
    going.reclaimed(SOON).unwrap();
    assert_eq!(
        (registry.ledger().total(), registry.ledger().peak),
        (0, charged)
    );
    #[cfg(target_os = "linux")]
    assert_eq!(mappings(&model(&dir)), 0);
    assert_eq!(registry.stats().reclaimer_panics, 0);
}

#[test]
fn identity_follows_the_files() {
    let registry = registry();
    let dir = checkpoint(&[("w", &[1; 100])]);
    let mapped = || map(open(dir.path()));
    let first = identity(&registry, mapped());
    assert!(first.to_string().starts_with("unread:files:"), "{first}");
    assert_eq!(identity(&registry, mapped()), first, "the same files");
    assert_eq!(
        identity(&registry, mapped().declared("r1")),
        Identity::Declared("r1".into())
    );
    assert_eq!(
        identity(&registry, map(open(dir.path()).declared("r2"))),
        Identity::Declared("r2".into())
    );
    // Replaced by a file with the same bytes: nobody has read either.
    let next = dir.path().join("next");
    fs::write(&next, encode(&[("w", &[1; 100])])).unwrap();
    fs::rename(&next, model(&dir)).unwrap();
    let second = identity(&registry, mapped());
    assert_ne!(second, first);
    // Written in place, while nobody has it mapped; the same length, and the old time of writing.
    let file = File::options().write(true).open(model(&dir)).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified - Duration::from_secs(1))
        .unwrap();
    assert_ne!(identity(&registry, mapped()), second);
    // Another set of the same file.
    let third = identity(&registry, mapped());
    fs::rename(model(&dir), dir.path().join("other")).unwrap();
    let pair = ["lm_head.weight", "model.embed_tokens.weight"];
    let tied = checkpoint(&pair.map(|name| (name, &[1; 4][..])));
    let untied = identity(&registry, map(open(tied.path())));
    fs::write(
        tied.path().join("config.json"),
        r#"{"tie_word_embeddings":true}"#,
    )
    .unwrap();
    let same_file = identity(&registry, map(open(tied.path())));
    assert_ne!(untied, same_file);
    assert_ne!(third, same_file);
}

#[test]
fn a_file_that_is_replaced_stays_what_it_was() {
    let registry = registry();
    let dir = checkpoint(&[("w", &[1; 5000])]);
    let set = registry.publish("s", map(open(dir.path()))).unwrap();
    let lease = registry.acquire(set).unwrap();
    let next = dir.path().join("next");
    fs::write(&next, encode(&[("w", &[2; 5000])])).unwrap();
    fs::rename(&next, model(&dir)).unwrap();
    registry.replace(set, map(open(dir.path()))).unwrap();
    let after = registry.acquire(set).unwrap();
    assert_eq!(lease.set(set).unwrap().get("w").unwrap().bytes(), [1; 5000]);
    assert_eq!(after.set(set).unwrap().get("w").unwrap().bytes(), [2; 5000]);
}

#[test]
fn a_file_that_changed_since_it_was_opened_is_refused() {
    let dir = checkpoint(&[("w", &[1; 5000])]);
    for len in [6000, 10] {
        fs::write(model(&dir), encode(&[("w", &[1; 5000])])).unwrap();
        let opened = open(dir.path());
        let file = File::options().write(true).open(model(&dir)).unwrap();
        file.set_len(len).unwrap();
        let error = try_map(opened).unwrap_err();
        assert!(
            matches!(&error, Error::SourceChanged { file, .. } if *file == model(&dir)),
            "{error}"
        );
        #[cfg(target_os = "linux")]
        assert_eq!(mappings(&model(&dir)), 0);
    }
}

#[test]
fn a_tied_pair_is_compared_although_it_is_mapped() {
    let pair = |head: &[u8]| {
        let dir = checkpoint(&[
            ("lm_head.weight", head),
            ("model.embed_tokens.weight", &[1; 4]),
        ]);
        fs::write(
            dir.path().join("config.json"),
            r#"{"tie_word_embeddings":true}"#,
        )
        .unwrap();
        dir
    };
    let differ = pair(&[2; 4]);
    assert!(matches!(
        Checkpoint::open(differ.path()).unwrap_err(),
        Error::Malformed { .. }
    ));
    let same = pair(&[1; 4]);
    let registry = registry();
    let set = registry.publish("s", map(open(same.path()))).unwrap();
    let lease = registry.acquire(set).unwrap();
    let leased = lease.set(set).unwrap();
    let [head, embedding] =
        ["lm_head.weight", "model.embed_tokens.weight"].map(|name| leased.get(name).unwrap());
    assert_eq!(head.bytes(), [1; 4]);
    assert_eq!(head.bytes().as_ptr(), embedding.bytes().as_ptr());
}

#[test]
fn aliases_of_and_into_mapped_sets_are_unread() {
    let registry = registry();
    let dir = checkpoint(&[("w", &[1; 9])]);
    let mapped = registry.publish("mapped", map(open(dir.path()))).unwrap();
    let w = registry.weight_handle(mapped, "w").unwrap();
    let alias = InMemory::new().alias("head", w).unwrap();
    let alias = registry.publish("alias", alias).unwrap();
    let lease = registry.acquire(alias).unwrap();
    let leased = lease.set(alias).unwrap();
    assert_eq!(leased.get("head").unwrap().bytes(), [1; 9]);
    assert!(!leased.identity().is_portable(), "{}", leased.identity());

    // The other way round: the set itself is mapped, its alias is read.
    let owner = registry.publish("owner", bytes(4, 3)).unwrap();
    let w = registry.weight_handle(owner, "w").unwrap();
    let both = || map(open(dir.path()).alias("head", w).unwrap());
    let set = registry.publish("both", both()).unwrap();
    let identity = |set| {
        let lease = registry.acquire(set).unwrap();
        lease.set(set).unwrap().identity().clone()
    };
    let before = identity(set);
    assert!(before.to_string().contains("+aliases:") && !before.is_portable());
    registry.replace(owner, bytes(4, 4)).unwrap();
    let after = identity(set);
    assert!(!after.is_portable());
    assert_ne!(after, before, "the alias has other bytes");
    registry.replace(owner, bytes(4, 3)).unwrap();
    assert_eq!(identity(set), before);
    // With a revision for the files and an alias that was read, all of it is known.
    let declared = registry.publish("declared", both().declared("r1")).unwrap();
    assert!(identity(declared).is_portable());
}

/// The first byte of `w`.
fn first_byte(registry: &WeightRegistry, set: SetHandle) -> u8 {
    let lease = registry.acquire(set).unwrap();
    lease.set(set).unwrap().get("w").unwrap().bytes()[0]
}

#[test]
fn rolled_back_like_others() {
    let registry = WeightRegistry::builder().keep_previous(1).build().unwrap();
    let dirs = [1, 2].map(|byte| checkpoint(&[("w", &[byte; 9])]));
    let set = registry.publish("s", map(open(dirs[0].path()))).unwrap();
    registry.replace(set, map(open(dirs[1].path()))).unwrap();
    assert_eq!(first_byte(&registry, set), 2);
    registry.rollback(set).unwrap();
    assert_eq!(first_byte(&registry, set), 1);
    assert_eq!(registry.ledger().kept, 1 << 16);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn drained_and_swapped_like_others() {
    let registry = WeightRegistry::builder()
        .limit_bytes(1 << 16)
        .build()
        .unwrap();
    let dirs = [1, 2].map(|byte| checkpoint(&[("w", &[byte; 9])]));
    let generation = |index: usize| map(open(dirs[index].path()));
    let set = registry.publish("s", generation(0)).unwrap();
    let refused = registry.replace(set, generation(1)).unwrap_err();
    assert!(refused.error().is_out_of_memory(), "{refused}");
    registry.replace_drained(set, generation(1), SOON).unwrap();
    assert_eq!(first_byte(&registry, set), 2);
    #[cfg(target_os = "linux")]
    assert_eq!(mappings(&model(&dirs[0])), 0);
    registry.retire(set).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0);
}

#[test]
fn a_checkpoint_without_files_is_legal() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        r#"{"weight_map":{}}"#,
    )
    .unwrap();
    let registry = registry();
    let set = registry.publish("s", map(open(dir.path()))).unwrap();
    let lease = registry.acquire(set).unwrap();
    assert!(lease.set(set).unwrap().layout().is_empty());
}

#[test]
fn it_is_not_read_into_an_arena() {
    let error = map(tiny()).read_into(&mut []).unwrap_err();
    assert!(matches!(error, Error::InvalidMemory { .. }), "{error}");
}

#[test]
fn a_thousand_tensors_in_three_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut map_of = serde_json::Map::new();
    for shard in 0..3u8 {
        let names: Vec<String> = (0..334).map(|at| format!("t{at:03}.{shard}")).collect();
        let file = format!("model-{shard}.safetensors");
        let content = vec![shard + 1; 13];
        let tensors: Vec<(&str, &[u8])> = names
            .iter()
            .map(|name| (name.as_str(), content.as_slice()))
            .collect();
        fs::write(dir.path().join(&file), encode(&tensors)).unwrap();
        for name in names {
            map_of.insert(name, file.clone().into());
        }
    }
    let index = serde_json::json!({ "weight_map": map_of });
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let registry = registry();
    let set = registry.publish("s", map(open(dir.path()))).unwrap();
    let lease = registry.acquire(set).unwrap();
    let mut count = 0;
    for weight in lease.set(set).unwrap().iter() {
        let weight = weight.unwrap();
        let shard = weight.name().as_bytes()[5] - b'0';
        assert_eq!(weight.bytes(), [shard + 1; 13], "{}", weight.name());
        assert_eq!(weight.dtype(), Dtype::U8);
        count += 1;
    }
    assert_eq!(count, 3 * 334);
}
