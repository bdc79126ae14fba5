//! Which files are opened at all, and what happens when they change: links, kinds of files, other
//! formats, shards, rewrites.

mod support;

use std::fs::File;
use std::path::Path;

use support::{adapter, copy, copy_into, file_of, fixture, refused, registry, rewrite};
use tempfile::TempDir;
use weighbridge::Error;
use weighbridge::source::{Checkpoint, OpenOptions, PeftAdapter, Source};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[track_caller]
fn refused_checkpoint(dir: &Path, words: &[&str]) -> Error {
    refused(dir, words, || Checkpoint::open(dir))
}

#[test]
fn directories_that_are_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    refused_checkpoint(dir.path(), &["has neither", SINGLE, INDEX]);
    let nowhere = dir.path().join("nowhere");
    let error = refused(dir.path(), &["nowhere"], || Checkpoint::open(&nowhere));
    assert!(error.is_io(), "{error}");
    let error = refused(dir.path(), &["nowhere"], || PeftAdapter::open(&nowhere));
    assert!(error.is_io(), "{error}");
    refused(dir.path(), &["has no adapter_config.json"], || {
        PeftAdapter::open(dir.path())
    });
    let dir = copy("adapters/pirate-v1");
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    refused(dir.path(), &["has no adapter_model.safetensors"], || {
        PeftAdapter::open(dir.path())
    });
    let dir = copy("tiny-llama");
    for config in [
        "{",
        "[]",
        r#"{"tie_word_embeddings":"yes"}"#,
        r#"{"tie_word_embeddings":1}"#,
    ] {
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        refused_checkpoint(dir.path(), &["config.json"]);
    }
    for config in ["{}", r#"{"tie_word_embeddings":null}"#] {
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        assert_eq!(
            Checkpoint::open(dir.path()).unwrap().plan().tensors().len(),
            38
        );
    }
}

#[test]
fn other_formats_are_refused_by_name() {
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    for name in pickles {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), b"x").unwrap();
        let words = [name, "pickle", "safe_serialization"];
        assert!(refused_checkpoint(dir.path(), &words).is_unsupported());
    }
    let dir = copy("adapters/pirate-v1");
    let path = dir.path().join("adapter_model.safetensors");
    std::fs::rename(&path, dir.path().join("adapter_model.bin")).unwrap();
    let words = ["adapter_model.bin", "pickle", "safe_serialization"];
    let error = refused(dir.path(), &words, || PeftAdapter::open(dir.path()));
    assert!(error.is_unsupported());
    // Under the right name, or given as a file.
    let zip = b"PK\x03\x04\0\0\x08\x08 and so on";
    let pickle = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    for (bytes, format) in [
        (&zip[..], "pickle"),
        (pickle, "pickle"),
        (b"GGUF\x03\0\0\0", "GGUF"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = refused(dir.path(), &[format], || PeftAdapter::open(dir.path()));
        assert!(error.is_unsupported());
        let error = refused(dir.path(), &[format], || Checkpoint::open(&path));
        assert!(error.is_unsupported());
    }
}

#[test]
fn shards_that_are_missing_or_disagree_with_the_index() {
    const FIRST: &str = "model-00001-of-00003.safetensors";
    let dir = copy("tiny-llama-sharded");
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    std::fs::remove_file(&shard).unwrap();
    let error = refused_checkpoint(dir.path(), &["model-00002", "not there"]);
    assert!(
        matches!(&error, Error::MissingShard { file } if *file == shard),
        "{error}"
    );

    let embedding = "\"model.embed_tokens.weight\": \"model-0000";
    let norm = "\"model.norm.weight\":";
    for (from, to, words) in [
        // Mapped to another shard, to none, or not at all.
        (
            &*format!("{embedding}1"),
            &*format!("{embedding}2"),
            &["model.embed_tokens.weight", FIRST][..],
        ),
        (
            norm,
            "\"model.other.weight\":",
            &["model.norm.weight", "not in"],
        ),
        (
            norm,
            &format!("\"lost\": \"{FIRST}\", {norm}"),
            &["\"lost\"", FIRST, "but it is not"],
        ),
        (
            norm,
            &format!("\"lost\": \"no.safetensors\", {norm}"),
            &["no.safetensors", "not there"],
        ),
        (
            norm,
            "\"model.embed_tokens.weight\":",
            &["model.embed_tokens.weight", "twice", INDEX],
        ),
        (norm, "\"model.norm\\nweight\":", &["control", INDEX]),
        (norm, "\"\":", &["1 to 512 bytes", INDEX]),
        // No index.
        ("\"weight_map\"", "\"weights\"", &[INDEX, "weight_map"]),
        (
            "\"weight_map\": {",
            "\"weight_map\": null, \"x\": {",
            &[INDEX, "file names"],
        ),
        (
            "\"weight_map\": {",
            "\"weight_map\": {}, \"weight_map\": {",
            &[INDEX, "weight_map", "twice"],
        ),
        (
            norm,
            "\"x\": 1, \"model.norm.weight\":",
            &[INDEX, "integer `1`"],
        ),
        ("{", "", &[INDEX]),
    ] {
        let dir = copy("tiny-llama-sharded");
        rewrite(&dir.path().join(INDEX), from, to);
        refused_checkpoint(dir.path(), words);
    }
    // Out of the directory.
    let long = "n".repeat(256);
    for name in [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "./model.safetensors",
        "a/",
        "..",
        ".",
        "",
        "a\\\\b",
        "..\\\\b",
        "a\\u0000b",
        "a\\u002fb",
        "a\\nb",
        &long,
    ] {
        let dir = copy("tiny-llama-sharded");
        rewrite(&dir.path().join(INDEX), FIRST, name);
        refused_checkpoint(dir.path(), &[INDEX, "without a path"]);
    }
    // A tensor in two shards, of which the index names one.
    let dir = copy("tiny-llama-sharded");
    let second = dir.path().join("model-00002-of-00003.safetensors");
    let header = r#"{"model.embed_tokens.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    std::fs::write(&second, file_of(header, 1)).unwrap();
    refused_checkpoint(
        dir.path(),
        &["model-00002", "model.embed_tokens.weight", FIRST],
    );
    // The index of a checkpoint without tensors.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(INDEX), r#"{"metadata":{},"weight_map":{}}"#).unwrap();
    assert!(
        Checkpoint::open(dir.path())
            .unwrap()
            .plan()
            .tensors()
            .is_empty()
    );
}

#[test]
fn what_is_no_file_is_neither_read_nor_waited_for() {
    let dir = copy("tiny-llama");
    for name in ["config.json", SINGLE] {
        let dir = copy("tiny-llama");
        std::fs::remove_file(dir.path().join(name)).unwrap();
        std::fs::create_dir(dir.path().join(name)).unwrap();
        refused_checkpoint(dir.path(), &[name, "not a regular file"]);
    }
    std::fs::create_dir(dir.path().join(INDEX)).unwrap();
    refused_checkpoint(dir.path(), &[INDEX, "not a regular file"]);
}

#[cfg(target_os = "linux")]
#[test]
fn pipes_and_devices_are_neither_read_nor_waited_for() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let fifo =
        |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for name in ["config.json", SINGLE, INDEX] {
        let dir = copy("tiny-llama");
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        fifo(&path);
        refused_checkpoint(dir.path(), &[name, "not a regular file"]);
    }
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let dir = copy("adapters/pirate-v1");
        let path = dir.path().join(name);
        std::fs::remove_file(&path).unwrap();
        fifo(&path);
        refused(dir.path(), &[name, "not a regular file"], || {
            PeftAdapter::open(dir.path())
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    fifo(&path);
    refused(dir.path(), &["pipe", "not a regular file"], || {
        Checkpoint::open(&path)
    });
    refused(dir.path(), &["not a regular file"], || {
        Checkpoint::open("/dev/zero")
    });
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(dir.path(), &["socket", "not a regular file"], || {
        Checkpoint::open(&socket)
    });
}

/// Moves `name` from one directory to another, and leaves a link to it.
#[cfg(unix)]
fn link_out(name: &str, from: &Path, to: &Path) {
    std::fs::rename(from.join(name), to.join(name)).unwrap();
    std::os::unix::fs::symlink(to.join(name), from.join(name)).unwrap();
}

#[cfg(unix)]
#[test]
fn links_lead_no_further_than_their_directory() {
    use std::os::unix::fs::symlink;
    type Open = fn(&Path, &OpenOptions) -> Result<(), Error>;
    let checkpoint: Open = |dir, options| Checkpoint::open_with(dir, options).map(drop);
    let adapter: Open = |dir, options| PeftAdapter::open_with(dir, options).map(drop);
    let as_is = OpenOptions::new();
    for (fixture, name, open) in [
        ("tiny-llama", SINGLE, checkpoint),
        ("tiny-llama", "config.json", checkpoint),
        ("tiny-llama-sharded", INDEX, checkpoint),
        (
            "tiny-llama-sharded",
            "model-00002-of-00003.safetensors",
            checkpoint,
        ),
        ("adapters/pirate-v1", "adapter_config.json", adapter),
        ("adapters/pirate-v1", "adapter_model.safetensors", adapter),
    ] {
        let (dir, above) = (copy(fixture), tempfile::tempdir().unwrap());
        let [elsewhere, sibling] = ["store-2", "store"].map(|name| above.path().join(name));
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::create_dir(&sibling).unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        // To a file of the directory itself, or below it.
        link_out(name, dir.path(), &inside);
        open(dir.path(), &as_is).unwrap();
        // Through a link that leads out, in one step or in two.
        link_out(name, &inside, &elsewhere);
        let error = open(dir.path(), &as_is).unwrap_err();
        let text = error.to_string();
        assert!(error.is_malformed(), "{text}");
        let target = elsewhere.canonicalize().unwrap();
        for word in [
            name,
            "link out of",
            target.to_str().unwrap(),
            "follow_links_into",
        ] {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
        std::fs::remove_file(dir.path().join(name)).unwrap();
        symlink(elsewhere.join(name), dir.path().join(name)).unwrap();
        open(dir.path(), &as_is).unwrap_err();
        // A directory whose name begins with an admitted one's is another.
        let sibling = OpenOptions::new().follow_links_into(sibling);
        open(dir.path(), &sibling).unwrap_err();
        // Admitted by the caller, or given by the caller.
        let admitted = OpenOptions::new().follow_links_into(&elsewhere);
        open(dir.path(), &admitted).unwrap();
        let alias = elsewhere.join("alias");
        symlink(dir.path(), &alias).unwrap();
        open(&alias, &admitted).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link.safetensors");
    symlink(fixture("tiny-llama").join(SINGLE), &link).unwrap();
    Checkpoint::open(&link).expect("the caller gave this path");
    #[cfg(target_os = "linux")]
    {
        // A file that has no name at all.
        use std::os::fd::AsRawFd;
        let bytes = std::fs::read(&link).unwrap();
        let unnamed = rustix::fs::memfd_create("weights", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let unnamed = File::from(unnamed);
        std::os::unix::fs::FileExt::write_all_at(&unnamed, &bytes, 0).unwrap();
        let path = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
        registry()
            .publish("x", Checkpoint::open(path).unwrap())
            .unwrap();
    }
    let nowhere = OpenOptions::new().follow_links_into(dir.path().join("nowhere"));
    let error = Checkpoint::open_with(fixture("tiny-llama"), &nowhere).unwrap_err();
    assert!(
        error.is_io() && error.to_string().contains("nowhere"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_not_absent_files() {
    use std::os::unix::fs::symlink;
    for (target, name) in [("gone", SINGLE), ("config.json", "config.json")] {
        let dir = copy("tiny-llama");
        std::fs::remove_file(dir.path().join(name)).unwrap();
        symlink(target, dir.path().join(name)).unwrap();
        let error = refused_checkpoint(dir.path(), &["cannot follow", name]);
        assert!(error.is_io(), "{error}");
    }
}

/// The hub's cache: `snapshots/<revision>/` has links to `../../blobs/<hash>`.
#[cfg(unix)]
struct Cache(TempDir);

#[cfg(unix)]
impl Cache {
    /// Of a fixture, as the subdirectory `under` of its revision.
    fn of(fixture: &str, under: &str) -> Self {
        let cache = Cache(tempfile::tempdir().unwrap());
        let revision = cache.revision().join(under);
        std::fs::create_dir_all(&revision).unwrap();
        let blobs = cache.repository().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        copy_into(fixture, &blobs);
        let up = if under.is_empty() {
            "../../blobs"
        } else {
            "../../../blobs"
        };
        for file in std::fs::read_dir(&blobs).unwrap() {
            let name = file.unwrap().file_name();
            std::os::unix::fs::symlink(Path::new(up).join(&name), revision.join(&name)).unwrap();
        }
        cache
    }

    fn repository(&self) -> std::path::PathBuf {
        self.0.path().join("models--tiny--llama")
    }

    fn revision(&self) -> std::path::PathBuf {
        self.repository().join("snapshots/0123abcd")
    }
}

#[cfg(unix)]
#[test]
fn the_hubs_cache_is_read_as_it_is() {
    for name in ["tiny-llama", "tiny-llama-sharded"] {
        let cache = Cache::of(name, "");
        let cached = Checkpoint::open(cache.revision()).unwrap();
        let plain = Checkpoint::open(fixture(name)).unwrap();
        let (a, b) = (registry().stage(cached), registry().stage(plain));
        assert_eq!(a.unwrap().identity(), b.unwrap().identity());
    }
    let cache = Cache::of("adapters/pirate-v1", "v1");
    PeftAdapter::open(cache.revision().join("v1")).unwrap();

    // Into another repository's blobs, or the repository itself.
    let cache = Cache::of("tiny-llama", "");
    let other = Cache::of("tiny-llama", "");
    let link = cache.revision().join(SINGLE);
    for target in [other.repository().join("blobs"), cache.repository()] {
        std::fs::remove_file(&link).unwrap();
        let _ = std::fs::copy(fixture("tiny-llama").join(SINGLE), target.join(SINGLE));
        std::os::unix::fs::symlink(target.join(SINGLE), &link).unwrap();
        refused_checkpoint(&cache.revision(), &["link out of"]);
    }
    // Blobs that are elsewhere themselves.
    let cache = Cache::of("tiny-llama", "");
    let elsewhere = tempfile::tempdir().unwrap();
    let blobs = cache.repository().join("blobs");
    std::fs::rename(&blobs, elsewhere.path().join("blobs")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("blobs"), &blobs).unwrap();
    refused_checkpoint(&cache.revision(), &["link out of"]);
}

/// Waits until a change of `path` would show in its ctime: file systems' clocks tick.
#[cfg(unix)]
fn tick(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let changed = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let probe = path.with_extension("tick");
    while {
        std::fs::write(&probe, b"tick").unwrap();
        changed(&probe) <= changed(path)
    } {}
    std::fs::remove_file(&probe).unwrap();
}

#[cfg(unix)]
#[test]
fn a_file_that_changes_after_its_header_was_read() {
    type Change = fn(&Path, &[u8]);
    let changes: [(&str, Change); 5] = [
        ("truncated", |path, bytes| {
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap()
        }),
        ("emptied", |path, _| std::fs::write(path, []).unwrap()),
        ("longer", |path, bytes| {
            std::fs::write(path, [bytes, &[0]].concat()).unwrap()
        }),
        ("rewritten", |path, bytes| {
            let mut bytes = bytes.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(path, bytes).unwrap();
        }),
        // In place, as long as before, and dated as before.
        ("rewritten in secret", |path, bytes| {
            use std::os::unix::fs::FileExt;
            let modified = std::fs::metadata(path).unwrap().modified().unwrap();
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[bytes[bytes.len() - 1] ^ 1], bytes.len() as u64 - 1)
                .unwrap();
            file.set_modified(modified).unwrap();
        }),
    ];
    let registry = registry();
    let base = registry
        .publish("base", Checkpoint::open(fixture("tiny-llama")).unwrap())
        .unwrap();
    let before = registry.ledger().total();
    for (what, change) in changes {
        for (fixture, name) in [
            ("tiny-llama", SINGLE),
            ("tiny-llama-sharded", "model-00002-of-00003.safetensors"),
            ("adapters/pirate-v1", "adapter_model.safetensors"),
        ] {
            let dir = copy(fixture);
            let path = dir.path().join(name);
            let bytes = std::fs::read(&path).unwrap();
            tick(&path);
            let error = if fixture.starts_with("adapters") {
                let source = PeftAdapter::open(dir.path()).unwrap().on(base);
                change(&path, &bytes);
                registry.publish("x", source).unwrap_err()
            } else {
                let source = Checkpoint::open(dir.path()).unwrap();
                change(&path, &bytes);
                registry.publish("x", source).unwrap_err()
            };
            let text = error.to_string();
            assert!(
                matches!(error.error(), Error::SourceChanged { .. }),
                "{what}: {text}"
            );
            assert!(
                text.contains(name) && text.contains("rename"),
                "{what}: {text}"
            );
            assert_eq!(registry.ledger().total(), before, "{what}");
            assert_eq!(registry.lookup("x"), None, "{what}");
        }
    }
}

/// Replaced by a rename, or removed: whoever has it open reads what it was.
#[cfg(unix)]
#[test]
fn a_file_that_is_replaced_as_it_should_be_stays_what_it_was() {
    let registry = registry();
    let path = fixture("adapters/pirate-v1");
    let base = registry
        .publish("base", Checkpoint::open(fixture("tiny-llama")).unwrap())
        .unwrap();
    let expected = registry
        .stage(adapter("pirate-v1", base))
        .unwrap()
        .identity()
        .clone();
    for remove in [false, true] {
        let dir = copy("adapters/pirate-v1");
        let name = dir.path().join("adapter_model.safetensors");
        tick(&name);
        let source = PeftAdapter::open(dir.path()).unwrap().on(base);
        if remove {
            std::fs::remove_dir_all(dir.path()).unwrap();
        } else {
            let new = dir.path().join("new");
            std::fs::copy(
                path.with_file_name("pirate-v2")
                    .join("adapter_model.safetensors"),
                &new,
            )
            .unwrap();
            std::fs::rename(&new, &name).unwrap();
        }
        let staged = registry.stage(source).unwrap();
        assert_eq!(staged.identity(), &expected, "removed: {remove}");
    }
}

/// A path that is no UTF-8 is a path.
#[cfg(target_os = "linux")]
#[test]
fn directories_may_have_any_name() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join(OsStr::from_bytes(b"t\xffny\n"));
    std::fs::create_dir(&dir).unwrap();
    copy_into("tiny-llama", &dir);
    registry()
        .publish("x", Checkpoint::open(&dir).unwrap())
        .unwrap();
    std::fs::write(dir.join(SINGLE), b"").unwrap();
    refused_checkpoint(&dir, &[SINGLE, "at least 8"]);
}
