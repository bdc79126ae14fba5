//! `weighbridge verify`, on the fixtures and on broken copies of them.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::{IDENTITY, checkpoint, copy_of, fixture, refused, run, safetensors};

#[test]
fn good_files_are_good_and_nothing_stays() {
    for path in ["fixtures/tiny-llama", "fixtures/tiny-llama-sharded"] {
        let said = run(["verify", path, "--json"]);
        assert_eq!((said.code, &*said.stderr), (0, ""), "{said:?}");
        let report = said.json();
        assert_eq!(
            (&report["good"], &report["identity"]),
            (&true.into(), &IDENTITY.into())
        );
        let bytes = serde_json::json!({
            "read": 837_696, "charged": 837_696, "peak": 837_696, "left": 0,
        });
        assert_eq!(report["bytes"], bytes);
        assert_eq!(report["tensors"], 39);
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        assert!(report["bytes_per_second"].as_f64().unwrap() > 0.0);
        assert_eq!(report["warnings"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn an_adapter_is_read_with_and_without_its_base() {
    let shout = |more: &[&str]| {
        let args = ["verify", "fixtures/adapters/shout", "--json"];
        let said = run(args.iter().chain(more));
        assert_eq!(said.code, 0, "{said:?}");
        said.json()
    };
    let with = shout(&["--base", "fixtures/tiny-llama"]);
    assert_eq!(with["base"]["path"], "fixtures/tiny-llama");
    assert_eq!(
        with["base"]["unchecked_modules"].as_array().unwrap().len(),
        0
    );
    assert_eq!(with["warnings"].as_array().unwrap().len(), 0);
    // The base's bytes are not read, and not charged.
    assert_eq!(with["bytes"]["peak"], 21_504);
    let without = shout(&[]);
    assert_eq!(with["identity"], without["identity"]);
    assert!(without["base"].is_null());
    let warning = without["warnings"][0].as_str().unwrap();
    assert!(warning.contains("--base"), "{warning}");
}

#[test]
fn an_expected_identity_is_compared_whole() {
    let expect = |identity: &str| run(["verify", "fixtures/tiny-llama", "--expect", identity]);
    assert_eq!(expect(IDENTITY).code, 0);
    let other = format!("blake3:{}", "0".repeat(64));
    let differs = expect(&other);
    assert_eq!((differs.code, &*differs.stderr), (1, ""), "{differs:?}");
    assert!(
        differs.stdout.contains("not what was expected"),
        "{differs:?}"
    );
    assert!(differs.stdout.contains(&other) && differs.stdout.contains(IDENTITY));
    let json = run([
        "verify",
        "fixtures/tiny-llama",
        "--json",
        "--expect",
        &other,
    ]);
    let report = json.json();
    assert_eq!((json.code, &report["good"]), (1, &false.into()));
    assert_eq!(
        (&report["expected"], &report["identity"]),
        (&other.into(), &IDENTITY.into())
    );
    assert_eq!(expect("blake3:00").code, 2);
}

#[test]
fn a_revision_that_is_declared_is_the_identity() {
    let args = ["verify", "fixtures/tiny-llama", "--declared", "step 100"];
    let said = run(args
        .iter()
        .chain(&["--expect", "declared:step 100", "--json"]));
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.json()["identity"], "declared:step 100");
    assert_eq!(run(args.iter().chain(&["--expect", IDENTITY])).code, 1);
}

/// One bit of one weight: the files are sound, and other weights.
#[test]
fn one_flipped_bit_is_another_identity() {
    let copy = copy_of("tiny-llama");
    let file = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.last_mut().unwrap();
    *last ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = run([
        "verify",
        copy.path().to_str().unwrap(),
        "--expect",
        IDENTITY,
        "--json",
    ]);
    assert_eq!((said.code, &said.json()["good"]), (1, &false.into()));
    let untouched = copy_of("tiny-llama");
    let said = run([
        "verify",
        untouched.path().to_str().unwrap(),
        "--expect",
        IDENTITY,
    ]);
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn broken_files_are_refused_by_name() {
    let truncated = copy_of("tiny-llama");
    let file = truncated.path().join("model.safetensors");
    OpenOptions::new()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(800_000)
        .unwrap();
    refused(
        "verify",
        truncated.path(),
        &[],
        1,
        &["model.safetensors", "is it truncated?"],
    );

    let shard = copy_of("tiny-llama-sharded");
    fs::remove_file(shard.path().join("model-00002-of-00003.safetensors")).unwrap();
    refused(
        "verify",
        shard.path(),
        &[],
        1,
        &["model-00002-of-00003.safetensors", "the index names it"],
    );

    let long = copy_of("tiny-llama");
    let file = long.path().join("model.safetensors");
    let mut file = OpenOptions::new().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&(200_000_000u64).to_le_bytes()).unwrap();
    refused(
        "verify",
        long.path(),
        &[],
        1,
        &["model.safetensors", "header", "200000000"],
    );

    let twice = r#"{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},
                    "t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let twice = checkpoint(&safetensors(twice, &[]));
    refused("verify", twice.path(), &[], 1, &["\"t\"", "twice"]);
}

#[test]
fn an_adapter_for_another_base_does_not_fit() {
    let header = r#"{"other.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let other = checkpoint(&safetensors(header, &[0; 16]));
    let other = other.path().to_str().unwrap();
    let robot = fixture("adapters/robot");
    refused("verify", &robot, &["--base", other], 1, &["another base"]);

    // The same names, and other features.
    let header = r#"{"model.layers.0.self_attn.q_proj.weight":
        {"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let smaller = checkpoint(&safetensors(header, &[0; 16]));
    let smaller = smaller.path().to_str().unwrap();
    let shout = fixture("adapters/shout");
    refused(
        "verify",
        &shout,
        &["--base", smaller],
        1,
        &["96 features to 96", "maps 2 to 2"],
    );
}

#[test]
fn what_cannot_be_read_is_no_verdict() {
    refused("verify", Path::new("nowhere"), &[], 3, &["nowhere"]);
    let empty = tempfile::tempdir().unwrap();
    refused("verify", empty.path(), &[], 1, &["has neither"]);
}

#[test]
fn a_set_without_tensors_is_good_and_named() {
    let empty = checkpoint(&safetensors("{}", &[]));
    let said = run(["verify", empty.path().to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.stdout.contains("warning: it has no tensors"),
        "{}",
        said.stdout
    );
}

/// Nobody's files but root's: as root the program is run as nobody, from a copy that nobody may run.
#[cfg(unix)]
#[test]
fn files_that_may_not_be_read_are_no_verdict() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    const NOBODY: u32 = 65_534;
    let copy = copy_of("tiny-llama");
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    set(copy.path(), 0o755);
    set(&copy.path().join("model.safetensors"), 0o000);
    let program = copy.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_weighbridge"), &program).unwrap();
    set(&program, 0o755);

    let mut command = Command::new(&program);
    command
        .arg("verify")
        .arg(copy.path())
        .arg("--json")
        .current_dir("/");
    if fs::metadata(copy.path()).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let said: common::Said = command.output().unwrap().into();
    assert_eq!(said.code, 3, "{said:?}");
    let error = &said.json()["error"];
    assert_eq!(
        (&error["class"], &error["kind"]),
        (&"unreadable".into(), &"io".into())
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("model.safetensors: Permission denied"),
        "{message}"
    );
}
