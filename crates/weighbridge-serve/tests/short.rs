//! No room, no files, no numbers: what happens to those who want an adapter then, and to all others.

mod support;

use std::path::Path;

use serde_json::json;
use support::{Running, asked, connect, fixtures, options, text};
use weighbridge_serve::Options;

/// Room for the model's 837,696 bytes and robot's 221,184, and not for another adapter beside them.
fn tight() -> Options {
    let mut options = options();
    options.limit = Some(842_000 + 230_000);
    options
}

fn copy(from: &str, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(format!("{from}/{file}"), to.join(file)).unwrap();
    }
}

/// Three adapters, and no room for two: each request finds its adapter, which is loaded for it in place of an idle one, and
/// so is one that is loaded by hand.
#[test]
fn adapters_come_and_go_when_memory_is_short() {
    let server = Running::with(tight());
    for name in ["robot", "ranked", "shout"] {
        assert_eq!(server.load(name, name).status, 200, "{name}");
    }
    let robot = server.registry.lookup("robot").unwrap();
    assert_eq!(server.registry.evict(robot).unwrap(), 0, "it went");
    for _ in 0..3 {
        assert_eq!(
            text(&server.complete("robot", "A cow says")),
            " moo, beep boop!"
        );
        assert_eq!(
            text(&server.complete("ranked", "A cow says")),
            " moo, as you wish."
        );
        assert_eq!(text(&server.complete("shout", "A cow says")), " moo!!!");
    }
    assert!(server.document()["stats"]["loads"].as_u64().unwrap() > 0);
    // Swapped in place, one that is away needs room for one only.
    let robot = json!({ "lora_name": "robot", "lora_path": "ranked", "load_inplace": true });
    assert_eq!(server.post("/v1/load_lora_adapter", robot).status, 200);
    assert_eq!(
        text(&server.complete("robot", "A cow says")),
        " moo, as you wish."
    );
}

/// One that nobody uses goes for what takes its place, if both are too much.
#[test]
fn an_idle_adapter_makes_room_for_what_replaces_it() {
    let server = Running::with(tight());
    assert_eq!(server.load("robot", "robot").status, 200);
    for (path, said) in [
        ("ranked", " moo, as you wish."),
        ("robot", " moo, beep boop!"),
        ("robot", " moo, beep boop!"),
    ] {
        let load = json!({ "lora_name": "robot", "lora_path": path, "load_inplace": true });
        let swapped = server.post("/v1/load_lora_adapter", load);
        assert_eq!(swapped.status, 200, "{}", swapped.text());
        assert_eq!(text(&server.complete("robot", "A cow says")), said);
    }
    let ledger = server.registry.ledger();
    assert!(ledger.peak <= ledger.limit);
}

/// What is leased does not go for anything, and whoever loads is told what is in the way.
#[test]
fn what_is_in_use_makes_no_room() {
    let mut hasty = tight();
    hasty.room_timeout = 0;
    let server = Running::with(hasty);
    assert_eq!(server.load("robot", "robot").status, 200);
    let set = |name| server.registry.lookup(name).unwrap();
    let held = server
        .registry
        .acquire([set("tiny-llama"), set("robot")])
        .unwrap();
    let before = server.registry.ledger();
    for (name, path, in_place) in [("ranked", "ranked", false), ("robot", "ranked", true)] {
        let load = json!({ "lora_name": name, "lora_path": path, "load_inplace": in_place });
        let refused = server.post("/v1/load_lora_adapter", load);
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
        let told = refused.refusal();
        assert!(told.ends_with("in use: robot"), "{told}");
        assert_eq!(server.registry.ledger(), before);
    }
    assert_eq!(
        server.get("/v1/models/ranked").status,
        404,
        "not half of it"
    );
    drop(held);
    assert_eq!(server.load("ranked", "ranked").status, 200);
    assert_eq!(
        text(&server.complete("ranked", "A cow says")),
        " moo, as you wish."
    );
    // What is never to fit is told at once, whatever the time.
    let mut small = options();
    (small.limit, small.room_timeout) = (Some(850_000), 86_400);
    let server = Running::with(small);
    let refused = server.load("robot", "robot");
    assert_eq!(refused.status, 507, "{}", refused.text());
}

/// An in-place load that finds no room takes nothing away: what it would have replaced answers as before, also where its
/// files are others by now.
#[test]
fn a_swap_that_finds_no_room_leaves_what_there_was() {
    let place = tempfile::tempdir().unwrap();
    let own = place.path().join("own");
    copy(&fixtures("adapters/pirate-v1"), &own);
    let mut hasty = tight();
    hasty.room_timeout = 1;
    hasty.limit = Some(842_000 + 230_000 + 24_000);
    hasty.roots.push(place.path().into());
    let server = Running::with(hasty);
    assert_eq!(server.load("robot", "robot").status, 200);
    assert_eq!(server.load("pirate", "own").status, 200);
    let set = |name| server.registry.lookup(name).unwrap();
    let held = server
        .registry
        .acquire([set("tiny-llama"), set("robot")])
        .unwrap();
    let loads = server.registry.stats().loads;
    std::fs::remove_dir_all(&own).unwrap();
    copy(&fixtures("adapters/ranked"), &own);
    let swap = json!({ "lora_name": "pirate", "lora_path": "own", "load_inplace": true });
    let refused = server.post("/v1/load_lora_adapter", swap.clone());
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(
        text(&server.complete("pirate", "A cow says")),
        " moo, arr matey!"
    );
    assert_eq!(server.registry.stats().loads, loads, "it never went");
    drop(held);
    assert_eq!(server.post("/v1/load_lora_adapter", swap).status, 200);
    assert_eq!(
        text(&server.complete("pirate", "A cow says")),
        " moo, as you wish."
    );
}

/// Given time, a load waits until a request has ended.
#[test]
fn a_load_waits_for_room() {
    for in_place in [false, true] {
        let mut patient = tight();
        patient.room_timeout = 3600;
        let server = Running::with(patient);
        assert_eq!(server.load("robot", "robot").status, 200);
        let set = |name| server.registry.lookup(name).unwrap();
        let held = server.registry.acquire([set("tiny-llama"), set("robot")]);
        let name = if in_place { "robot" } else { "ranked" };
        let load = json!({ "lora_name": name, "lora_path": "ranked", "load_inplace": in_place });
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| server.post("/v1/load_lora_adapter", load));
            // Others are answered meanwhile.
            for _ in 0..3 {
                assert_eq!(
                    text(&server.complete("robot", "A cow says")),
                    " moo, beep boop!"
                );
            }
            assert!(!waits.is_finished(), "it found room where there was none");
            drop(held);
            assert_eq!(waits.join().unwrap().status, 200);
        });
        assert_eq!(
            text(&server.complete(name, "A cow says")),
            " moo, as you wish."
        );
    }
}

/// Its file is needed again and is not what it was: whoever wants it is told so, and where the file was is not told.
/// Others are answered. When the file is back, so is the adapter.
#[test]
fn a_file_that_is_lost_while_its_adapter_is_away_is_told_to_those_who_want_it() {
    let place = tempfile::tempdir().unwrap();
    let own = place.path().join("own");
    copy(&fixtures("adapters/robot"), &own);
    let mut options = tight();
    options.roots.push(place.path().into());
    let server = Running::with(options);
    assert_eq!(server.load("robot", "own").status, 200);
    assert_eq!(
        text(&server.complete("robot", "A cow says")),
        " moo, beep boop!"
    );
    let weights = own.join("adapter_model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut other = good.clone();
    *other.last_mut().unwrap() ^= 1;
    type Spoil<'a> = &'a dyn Fn();
    let spoils: [(&str, Spoil<'_>); 4] = [
        ("gone", &|| std::fs::remove_file(&weights).unwrap()),
        ("cut", &|| {
            std::fs::write(&weights, &good[..good.len() / 2]).unwrap()
        }),
        ("empty", &|| std::fs::write(&weights, "").unwrap()),
        ("another", &|| std::fs::write(&weights, &other).unwrap()),
    ];
    for (how, spoil) in spoils {
        let robot = server.registry.lookup("robot").unwrap();
        // Whoever has his answer finds the lease ended.
        server.registry.evict(robot).unwrap();
        spoil();
        let before = server.registry.ledger();
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let failed = server.post("/v1/completions", asked("robot", "A cow says"));
            assert!(
                matches!(failed.status, 500 | 503),
                "{how}: {}",
                failed.text()
            );
            assert_eq!(
                failed.status == 503,
                failed.head.to_ascii_lowercase().contains("retry-after: "),
                "{how}: {}",
                failed.head
            );
            assert!(failed.refusal().contains("could not be read"), "{how}");
            assert!(
                !failed.text().contains(place.path().to_str().unwrap()),
                "{how}: {}",
                failed.text()
            );
            statuses.push(failed.status);
        }
        assert_eq!(statuses[0], 500, "{how}: {statuses:?}");
        assert_eq!(server.registry.ledger(), before, "{how}");
        assert_eq!(text(&server.complete("tiny-llama", "A cow says")), " moo.");
        std::fs::write(&weights, &good).unwrap();
        server.registry.load(robot).unwrap();
        assert_eq!(
            text(&server.complete("robot", "A cow says")),
            " moo, beep boop!",
            "{how}"
        );
    }
}

/// Whoever loads by hand is told what is wrong, with the name that he gave the file, and not with the server's.
#[test]
fn a_load_that_fails_says_why_and_not_where() {
    let place = tempfile::tempdir().unwrap();
    copy(&fixtures("adapters/robot"), &place.path().join("own"));
    std::fs::write(place.path().join("own/adapter_model.safetensors"), "short").unwrap();
    std::fs::create_dir(place.path().join("empty")).unwrap();
    let mut options = options();
    options.roots = vec![place.path().into()];
    let server = Running::with(options);
    // Its matrices are of another rank than it says.
    let other = place.path().join("other");
    copy(&fixtures("adapters/robot"), &other);
    let config = other.join("adapter_config.json");
    let mut odd: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    odd["r"] = json!(3);
    std::fs::write(&config, odd.to_string()).unwrap();
    for (path, told) in [
        ("other", "rank 3 by the configuration"),
        ("own", "own/adapter_model.safetensors"),
        ("empty", "empty"),
        (".", "."),
    ] {
        let refused = server.load("robot", path);
        assert_eq!(refused.status, 400, "{}", refused.text());
        let message = refused.refusal();
        assert!(message.contains(told), "{message}");
        assert!(
            !message.contains(place.path().to_str().unwrap()),
            "{message}"
        );
    }
}

/// Weights that are no numbers make no answer; and whoever runs beside them has his.
#[test]
fn weights_that_are_no_numbers_are_an_error_and_not_an_answer() {
    let place = tempfile::tempdir().unwrap();
    let own = place.path().join("nan");
    copy(&fixtures("adapters/robot"), &own);
    let weights = own.join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[head..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let mut options = options();
    options.roots.push(place.path().into());
    let server = Running::with(options);
    assert_eq!(server.load("nan", "nan").status, 200);
    for temperature in [0, 1] {
        let mut asked = asked("nan", "A cow says");
        asked["temperature"] = json!(temperature);
        std::thread::scope(|scope| {
            let failed = scope.spawn(|| server.post("/v1/completions", asked));
            assert_eq!(text(&server.complete("tiny-llama", "A cow says")), " moo.");
            let failed = failed.join().unwrap();
            assert_eq!(failed.status, 500, "{}", failed.text());
            assert!(failed.refusal().contains("no numbers"));
        });
    }
}

/// What ends an admitted request is told by its class: it was unloaded while it waited for its bytes.
#[test]
fn an_adapter_that_goes_while_its_request_waits_for_it_is_not_found() {
    let server = Running::with(tight());
    assert_eq!(server.load("robot", "robot").status, 200);
    let robot = server.registry.lookup("robot").unwrap();
    let base = server.registry.lookup("tiny-llama").unwrap();
    assert_eq!(server.load("ranked", "ranked").status, 200);
    assert_eq!(server.registry.evict(robot).unwrap(), 0, "it went");
    let ranked = server.registry.lookup("ranked").unwrap();
    let held = server.registry.acquire([base, ranked]).unwrap();
    let asked = asked("robot", "A cow says").to_string();
    let json = [("Content-Type", "application/json")];
    let waits = connect(
        server.at,
        "POST",
        "/v1/completions",
        &json,
        asked.as_bytes(),
    );
    server.until("it waits for room", |now| now["stats"]["waiting"] == 1);
    assert_eq!(server.unload("robot").status, 200);
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut &waits, &mut answer).unwrap();
    let answer = support::parse(&answer);
    assert_eq!(answer.status, 404, "{}", answer.text());
    drop(held);
}
