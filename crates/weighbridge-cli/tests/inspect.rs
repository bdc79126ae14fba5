//! `weighbridge inspect`, on the fixtures and on broken copies of them.

mod common;

use std::fs;

use common::{IDENTITY, checkpoint, copy_of, fixture, refused, run, safetensors, steers};

#[test]
fn a_checkpoint_is_told_to_the_byte() {
    let said = run(["inspect", "fixtures/tiny-llama", "--json"]);
    assert_eq!((said.code, &*said.stderr), (0, ""));
    let report = said.json();
    assert_eq!(report["kind"], "checkpoint");
    let on_disk = fs::metadata(fixture("tiny-llama/model.safetensors")).unwrap();
    assert_eq!(report["files"][0]["name"], "model.safetensors");
    assert_eq!(report["files"][0]["bytes"], on_disk.len());
    assert_eq!(report["bytes"]["files"], on_disk.len());
    assert_eq!(report["bytes"]["tensors"], 837_696);
    assert_eq!(report["bytes"]["charged"], 837_696);
    assert_eq!(report["dtypes"][0]["dtype"], "F16");
    assert_eq!(report["dtypes"][0]["tensors"], 38);
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 39);
    assert_eq!(tensors[0]["name"], "lm_head.weight");
    assert_eq!(tensors[0]["tied_to"], "model.embed_tokens.weight");
    assert_eq!(tensors[1]["tied_to"], serde_json::Value::Null);
    assert_eq!(tensors[3]["shape"], serde_json::json!([96, 256]));
    for unasked in ["identity", "fits", "base", "modules"] {
        assert!(report[unasked].is_null(), "{unasked}");
    }
}

#[test]
fn shards_are_the_same_checkpoint_and_hashing_says_so() {
    let report = run(["inspect", "fixtures/tiny-llama-sharded", "--hash", "--json"]).json();
    assert_eq!(report["files"].as_array().unwrap().len(), 3);
    assert_eq!(report["bytes"]["files"], 841_672);
    assert_eq!(report["identity"], IDENTITY);
    let one = run(["inspect", "fixtures/tiny-llama", "--hash"]);
    assert!(one.stdout.contains(IDENTITY), "{}", one.stdout);
}

#[test]
fn a_single_file_is_a_checkpoint_without_ties() {
    let report = run(["inspect", "fixtures/tiny-llama/model.safetensors", "--json"]).json();
    assert_eq!(report["tensors"].as_array().unwrap().len(), 38);
    assert_eq!(report["files"][0]["name"], "model.safetensors");
}

#[test]
fn an_adapter_has_modules_with_rank_and_scale() {
    let report = run(["inspect", "fixtures/adapters/shout", "--json"]).json();
    assert_eq!(report["kind"], "adapter");
    assert_eq!(report["made_for"], "tiny-llama");
    let modules = report["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 8);
    let first = serde_json::json!({
        "name": "model.layers.0.self_attn.q_proj", "rank": 4, "alpha": 8.0, "scaling": 4.0,
        "rslora": true, "in_features": 96, "out_features": 96,
    });
    assert_eq!(modules[0], first);
    let ranked = run(["inspect", "fixtures/adapters/ranked", "--json"]).json();
    let last_down = &ranked["modules"][12];
    assert_eq!(
        (&last_down["rank"], &last_down["scaling"]),
        (&2.into(), &3.0.into())
    );
    assert_eq!(last_down["rslora"], false);
}

#[test]
fn a_limit_is_answered_by_the_byte_and_by_the_exit_code() {
    let ask = |limit: &str| run(["inspect", "fixtures/tiny-llama", "--json", "--limit", limit]);
    let enough = ask("837696");
    assert_eq!(
        (enough.code, &enough.json()["fits"]["answer"]),
        (0, &"now".into())
    );
    let short = ask("837695");
    let fits = &short.json()["fits"];
    assert_eq!((short.code, &fits["answer"]), (1, &"never".into()));
    assert_eq!(
        (&fits["missing"], &fits["needed"]),
        (&1.into(), &837_696.into())
    );
    let text = run(["inspect", "fixtures/tiny-llama", "--limit", "800KiB"]);
    assert_eq!(text.code, 1);
    let words =
        "fits        never: 837696 (818.1 KiB) of 819200 (800.0 KiB), 18496 (18.1 KiB) too many";
    assert!(text.stdout.contains(words), "{}", text.stdout);
}

#[test]
fn an_adapter_and_its_base_are_asked_for_together() {
    let (base, adapter) = ("fixtures/tiny-llama", "fixtures/adapters/robot");
    let charged = |path| {
        let report = run(["inspect", path, "--json"]).json();
        report["bytes"]["charged"].as_u64().unwrap()
    };
    let both = charged(base) + charged(adapter);
    let ask = |limit: u64| {
        let limit = limit.to_string();
        run([
            "inspect", adapter, "--base", base, "--json", "--limit", &limit,
        ])
    };
    let enough = ask(both);
    assert_eq!(enough.code, 0, "{enough:?}");
    let fit = &enough.json()["base"];
    assert_eq!((&fit["fits"], &fit["path"]), (&true.into(), &base.into()));
    let short = ask(both - 1);
    assert_eq!(
        (short.code, &short.json()["fits"]["missing"]),
        (1, &1.into())
    );
}

#[test]
fn an_adapter_for_another_base_does_not_fit_and_is_shown_all_the_same() {
    let header = r#"{"other.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let base = checkpoint(&safetensors(header, &[0; 16]));
    let base = base.path().to_str().unwrap();
    let json = run([
        "inspect",
        "fixtures/adapters/robot",
        "--base",
        base,
        "--json",
    ]);
    let fit = &json.json()["base"];
    assert_eq!((json.code, &fit["fits"]), (1, &false.into()));
    let reason = fit["reason"].as_str().unwrap();
    assert!(
        reason.contains("is this adapter meant for another base?"),
        "{reason}"
    );
    let text = run(["inspect", "fixtures/adapters/robot", "--base", base]);
    assert_eq!(text.code, 1);
    assert!(text.stdout.contains("does not fit"), "{}", text.stdout);
}

/// A base whose module has tensors that do not tell its features.
#[test]
fn what_cannot_be_checked_is_said() {
    let robot = run(["inspect", "fixtures/adapters/robot", "--json"]).json();
    let names = robot["modules"].as_array().unwrap().iter();
    let names = names.map(|module| module["name"].as_str().unwrap());
    let packed =
        |name| format!(r#""{name}.packed":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let tensors: Vec<String> = names.map(packed).collect();
    let base = checkpoint(&safetensors(&format!("{{{}}}", tensors.join(",")), &[]));
    let base = base.path().to_str().unwrap();
    let said = run(["inspect", "fixtures/adapters/robot", "--base", base]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.stdout
            .contains("as far as it can be known: 28 modules unchecked"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout
            .contains("warning: 28 modules could not be checked"),
        "{}",
        said.stdout
    );
    let verified = run([
        "verify",
        "fixtures/adapters/robot",
        "--base",
        base,
        "--json",
    ])
    .json();
    let unchecked = verified["base"]["unchecked_modules"].as_array().unwrap();
    assert_eq!(unchecked.len(), 28);
}

#[test]
fn names_from_files_do_not_reach_the_terminal_raw() {
    // Control characters are refused by the library; these only print strangely.
    let header = "{\"a\u{202e}b\u{200b}.weight\":{\"dtype\":\"F32\u{2066}\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    let folder = checkpoint(&safetensors(header, &[]));
    let path = folder.path().to_str().unwrap();
    let said = run(["inspect", path]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!steers(&said.stdout), "{said:?}");
    assert!(
        said.stdout.contains("a\\u{202e}b\\u{200b}.weight"),
        "{}",
        said.stdout
    );
    assert!(
        said.stdout.contains("dtype that is not known"),
        "{}",
        said.stdout
    );
    let json = run(["inspect", path, "--json"]).json();
    assert_eq!(json["tensors"][0]["name"], "a\u{202e}b\u{200b}.weight");

    let adapter = copy_of("adapters/shout");
    let config = adapter.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let hostile = text.replace("\"tiny-llama\"", "\"\\u001b[2J\\u009b31m\"");
    assert_ne!(text, hostile);
    fs::write(&config, hostile).unwrap();
    let said = run(["inspect", adapter.path().to_str().unwrap()]);
    assert!(
        !steers(&said.stdout) && said.stdout.contains("\\u{1b}[2J"),
        "{said:?}"
    );
}

#[test]
fn what_is_no_source_is_refused() {
    refused(
        "inspect",
        &fixture("nowhere"),
        &[],
        3,
        &["cannot open", "nowhere"],
    );
    let empty = tempfile::tempdir().unwrap();
    refused(
        "inspect",
        empty.path(),
        &[],
        1,
        &["has neither model.safetensors"],
    );
    refused(
        "inspect",
        &fixture("expected.json"),
        &[],
        1,
        &["expected.json"],
    );

    let without_config = copy_of("adapters/shout");
    fs::remove_file(without_config.path().join("adapter_config.json")).unwrap();
    refused(
        "inspect",
        without_config.path(),
        &[],
        1,
        &["has no adapter_config.json"],
    );

    let pickle = tempfile::tempdir().unwrap();
    fs::write(pickle.path().join("pytorch_model.bin"), "x").unwrap();
    refused(
        "inspect",
        pickle.path(),
        &[],
        1,
        &["pytorch_model.bin", "pickle"],
    );

    let dora = copy_of("adapters/shout");
    let config = dora.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"use_dora\": false", "\"use_dora\": true"),
    )
    .unwrap();
    refused(
        "inspect",
        dora.path(),
        &[],
        1,
        &["use_dora", "not supported"],
    );
}

#[test]
fn a_base_is_a_checkpoint_and_only_adapters_have_one() {
    let tiny = fixture("tiny-llama");
    let base = tiny.to_str().unwrap();
    refused(
        "inspect",
        &tiny,
        &["--base", base],
        2,
        &["only an adapter has a base"],
    );
    let shout = fixture("adapters/shout");
    let adapter = shout.to_str().unwrap();
    refused(
        "inspect",
        &shout,
        &["--base", adapter],
        2,
        &["is an adapter"],
    );
    refused("inspect", &shout, &["--base", "nowhere"], 3, &["nowhere"]);
}

#[test]
fn the_weights_of_an_adapter_alone_are_no_adapter() {
    let said = run([
        "inspect",
        "fixtures/adapters/shout/adapter_model.safetensors",
    ]);
    assert_eq!(said.code, 0);
    assert!(
        said.stdout
            .contains("warning: by its name this file is an adapter's")
    );
}

#[test]
fn a_directory_that_is_both_is_an_adapter_and_says_so() {
    let both = copy_of("adapters/shout");
    let weights = fixture("tiny-llama/model.safetensors");
    fs::copy(weights, both.path().join("model.safetensors")).unwrap();
    let said = run(["inspect", both.path().to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("kind        adapter"), "{said:?}");
    let warning = "warning: there is a checkpoint in this directory, too";
    assert!(said.stdout.contains(warning), "{said:?}");
}
