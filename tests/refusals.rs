//! Bad input: a typed error that names file, tensor and reason, and nothing left behind.

mod support;

use std::path::Path;

use support::{adapter, fixture, registry, tiny};
use tempfile::TempDir;
use weighbridge::source::{Checkpoint, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error};

fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 7);
    file
}

/// Opens `bytes` as a checkpoint file.
fn open(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(path)
}

/// The refusal of a header, which must name the file and every one of `words`.
#[track_caller]
fn refused(header: &str, data: usize, words: &[&str]) {
    let error = open(&file_of(header, data)).expect_err("a bad header was accepted");
    let text = error.to_string();
    assert!(matches!(error, Error::Malformed { .. }), "{text}");
    for word in words.iter().chain(&["bad.safetensors"]) {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

const T: &str = r#"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;

#[test]
fn headers_that_lie() {
    assert!(open(&file_of(T, 4)).is_ok(), "the control");
    refused(
        T,
        3,
        &["\"t\"", "ends at 4", "3 bytes of data", "truncated"],
    );
    refused(T, 5, &["5 bytes of data", "end at 4"]);
    refused("not json", 0, &["header"]);
    refused("[]", 0, &["object"]);
    let one = |dtype, shape, offsets| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    refused(
        &one("U8", "[4]", "[0,3]"),
        3,
        &["\"t\"", "4 bytes", "are 3"],
    );
    refused(
        &one("U8", "[4]", "[4,0]"),
        4,
        &["\"t\"", "before it begins"],
    );
    refused(&one("U8", "[4]", "[1,5]"), 5, &["\"t\"", "hole"]);
    refused(&one("F4", "[3]", "[0,1]"), 1, &["\"t\"", "within a byte"]);
    refused(&one("U8", "[-1]", "[0,4]"), 4, &["\"t\""]);
    refused(
        &one("U8", "[4294967296,4294967296,4]", "[0,4]"),
        4,
        &["\"t\"", "2^64"],
    );
    refused(
        &one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"),
        1,
        &["9 dimensions"],
    );
    refused(
        &one("U8", "[4]", "[18446744073709551612,18446744073709551615]"),
        4,
        &["\"t\""],
    );
    refused(
        r#"{"t":{"dtype":"U8","shape":[4]}}"#,
        4,
        &["\"t\"", "data_offsets"],
    );
    refused(
        r#"{"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
        0,
        &["control"],
    );
    refused(r#"{"__metadata__":{"n":1}}"#, 0, &["__metadata__"]);
    let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    refused(two, 6, &["\"b\"", "overlaps"]);
    let twice = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}"#;
    refused(twice, 4, &["\"a\"", "twice"]);
}

#[test]
fn lengths_that_lie() {
    for (bytes, word) in [
        (vec![], "at least 8"),
        (vec![0; 7], "at least 8"),
        (100u64.to_le_bytes().to_vec(), "header of 100 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "at most"),
        ((17u64 << 20).to_le_bytes().to_vec(), "at most"),
    ] {
        let text = open(&bytes).unwrap_err().to_string();
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

/// Every byte of a small file flipped, and every prefix of it: refused, or read with the right sizes;
/// never a panic.
#[test]
fn a_damaged_header_never_panics() {
    let good = file_of(
        r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}}"#,
        7,
    );
    let check = |bytes: &[u8]| {
        if let Ok(source) = InMemory::from_safetensors(bytes) {
            let plan = source.plan();
            let mut arena = vec![0; plan.arena_bytes() as usize];
            source.read_into(&mut arena).unwrap();
            let total: u64 = plan.tensors().iter().map(|tensor| tensor.byte_len()).sum();
            assert_eq!(total, 7, "accepted, but not all of the data is somebody's");
        }
    };
    check(&good);
    for cut in 0..good.len() {
        assert!(
            InMemory::from_safetensors(&good[..cut]).is_err(),
            "a prefix of {cut} was accepted"
        );
    }
    for at in 0..good.len() - 7 {
        for flip in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            check(&bad);
        }
    }
}

/// A copy of a fixture directory that a test may damage.
fn copy(fixture_dir: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(fixture_dir)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn rewrite(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_truncated_file_is_refused_before_anything_is_reserved() {
    let dir = copy("tiny-llama");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let text = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(
        text.contains("model.safetensors") && text.contains("truncated"),
        "{text}"
    );
}

#[test]
fn shards_that_are_missing_or_disagree_with_the_index() {
    const INDEX: &str = "model.safetensors.index.json";
    let dir = copy("tiny-llama-sharded");
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    std::fs::remove_file(&shard).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::MissingShard { file } if *file == shard),
        "{error}"
    );

    let index = |from: &str, to: &str| {
        let dir = copy("tiny-llama-sharded");
        rewrite(&dir.path().join(INDEX), from, to);
        Checkpoint::open(dir.path()).unwrap_err().to_string()
    };
    // Mapped to the wrong shard, or to none, or there without being mapped.
    let text = index(
        "\"model.embed_tokens.weight\": \"model-00001",
        "\"model.embed_tokens.weight\": \"model-00002",
    );
    assert!(text.contains("model.embed_tokens.weight"), "{text}");
    let text = index("\"model.norm.weight\"", "\"model.other.weight\"");
    assert!(
        text.contains("model.norm.weight") || text.contains("model.other.weight"),
        "{text}"
    );
    // Out of the directory.
    for path in [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "a\\\\b",
    ] {
        let text = index("model-00001-of-00003.safetensors", path);
        assert!(text.contains("without a path"), "{path:?}: {text}");
    }
    let text = index("\"weight_map\"", "\"weights\"");
    assert!(
        text.contains(INDEX) && text.contains("weight_map"),
        "{text}"
    );
}

#[test]
fn directories_that_are_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let text = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("model.safetensors"), "{text}");
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    let text = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(text.contains("pickle"), "{text}");
    let error = Checkpoint::open(dir.path().join("nowhere")).unwrap_err();
    assert!(
        error.is_io() && error.to_string().contains("nowhere"),
        "{error}"
    );
    let dir = copy("tiny-llama");
    std::fs::write(dir.path().join("config.json"), b"{").unwrap();
    assert!(
        Checkpoint::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("config.json")
    );
}

#[test]
fn a_file_that_changes_after_its_header_was_read() {
    let registry = registry();
    for change in ["truncated", "longer", "rewritten"] {
        let dir = copy("tiny-llama");
        let path = dir.path().join("model.safetensors");
        let source = Checkpoint::open(dir.path()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        match change {
            "truncated" => bytes.truncate(bytes.len() / 2),
            "longer" => bytes.push(0),
            _ => *bytes.last_mut().unwrap() ^= 1,
        }
        // In place, as a careless copy does.
        std::fs::write(&path, bytes).unwrap();
        let error = registry.publish("x", source).unwrap_err();
        assert!(
            matches!(error.error(), Error::SourceChanged { .. }),
            "{change}: {error}"
        );
        assert_eq!(registry.ledger().total(), 0, "{change}");
    }
    // Replaced by rename, the opened file stays what it was.
    let dir = copy("tiny-llama");
    let path = dir.path().join("model.safetensors");
    let source = Checkpoint::open(dir.path()).unwrap();
    std::fs::write(dir.path().join("new"), b"other").unwrap();
    std::fs::rename(dir.path().join("new"), &path).unwrap();
    let error = registry.publish("x", source);
    // Some file systems change the old inode's ctime at unlink; both answers are sound.
    if let Err(error) = error {
        assert!(
            matches!(error.error(), Error::SourceChanged { .. }),
            "{error}"
        );
    }
}

#[test]
fn adapters_that_cannot_be_right() {
    const CONFIG: &str = "adapter_config.json";
    let open = |dir: &TempDir| PeftAdapter::open(dir.path()).unwrap_err();
    let dir = copy("adapters/pirate-v1");
    rewrite(
        &dir.path().join(CONFIG),
        "\"use_dora\": false",
        "\"use_dora\": true",
    );
    let error = open(&dir);
    assert!(
        matches!(&error, Error::Unsupported { option, .. } if option == "use_dora"),
        "{error}"
    );

    let dir = copy("adapters/pirate-v1");
    rewrite(&dir.path().join(CONFIG), "\"r\": 4", "\"r\": 8");
    let error = open(&dir);
    let text = error.to_string();
    assert!(matches!(error, Error::AdapterMismatch { .. }), "{text}");
    assert!(
        text.contains("rank 8") && text.contains("[4, 96]"),
        "{text}"
    );

    let dir = copy("adapters/pirate-v1");
    std::fs::remove_file(dir.path().join(CONFIG)).unwrap();
    assert!(open(&dir).to_string().contains(CONFIG));

    let dir = copy("adapters/pirate-v1");
    let weights = dir.path().join("adapter_model.safetensors");
    std::fs::rename(&weights, dir.path().join("adapter_model.bin")).unwrap();
    let error = open(&dir);
    assert!(
        error.is_unsupported() && error.to_string().contains("pickle"),
        "{error}"
    );

    // A without B.
    let bytes = std::fs::read(fixture("adapters/pirate-v1/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let dir = copy("adapters/pirate-v1");
    let missing = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight";
    let rest = file.iter().filter(|(name, _)| *name != missing);
    let written = safetensors::serialize(rest, None).unwrap();
    std::fs::write(dir.path().join("adapter_model.safetensors"), written).unwrap();
    let text = open(&dir).to_string();
    assert!(
        text.contains("model.layers.2.self_attn.v_proj") && text.contains("no B"),
        "{text}"
    );
}

#[test]
fn adapters_that_do_not_fit_their_base() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let zeros = |len: usize| vec![0u8; len];
    let lora = |module: &str, inputs: usize, outputs: usize| {
        let a = ([2, inputs], zeros(2 * inputs));
        let b = ([outputs, 2], zeros(2 * outputs));
        InMemory::new()
            .lora(module, Dtype::U8, a, b, 1.0)
            .unwrap()
            .on(base)
    };
    let q = "model.layers.0.self_attn.q_proj";
    registry.publish("fits", lora(q, 96, 96)).unwrap();
    let before = registry.ledger();
    for (adapter, words) in [
        (
            lora("model.layers.9.self_attn.q_proj", 96, 96),
            ["layers.9", "no tensor of this module"],
        ),
        (lora(q, 95, 96), ["95", "96"]),
        (lora(q, 96, 97), ["97", "96"]),
    ] {
        let error = registry.publish("x", adapter).unwrap_err();
        assert!(
            matches!(error.error(), Error::AdapterMismatch { .. }),
            "{error}"
        );
        for word in words {
            assert!(
                error.to_string().contains(word),
                "{word:?} is missing in: {error}"
            );
        }
    }
    let other = registry.publish("other", support::bytes(4, 1)).unwrap();
    let error = registry
        .publish("x", adapter("pirate-v1", other))
        .unwrap_err();
    assert!(
        matches!(error.error(), Error::AdapterMismatch { .. }),
        "{error}"
    );
    assert_eq!(registry.ledger().reserved, before.reserved);
    assert_eq!(registry.lookup("x"), None);
}

#[test]
fn tensors_in_memory_that_cannot_be_right() {
    let new = InMemory::new;
    let of = |error: Error| error.to_string();
    let text = of(new().tensor("w", Dtype::F32, [2], [0; 7]).unwrap_err());
    assert!(
        text.contains("\"w\"") && text.contains("8 bytes") && text.contains('7'),
        "{text}"
    );
    let twice = new().tensor("w", Dtype::U8, [1], [0]).unwrap();
    assert!(of(twice.tensor("w", Dtype::U8, [1], [0]).unwrap_err()).contains("already"));
    let text = of(new()
        .tensor("w", Dtype::F64, [usize::MAX, 2], [])
        .unwrap_err());
    assert!(text.contains("2^64"), "{text}");
    let ranks = new()
        .lora("m", Dtype::U8, ([2, 1], [0; 2]), ([1, 3], [0; 3]), 1.0)
        .unwrap_err();
    assert!(matches!(ranks, Error::AdapterMismatch { .. }));
}
