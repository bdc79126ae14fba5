//! What clients are answered: OpenAI's completions, vLLM's adapters, while requests run.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Running, SOON, asked, connect, events, first_event, options, text};

#[test]
fn answers_are_those_of_the_model_and_of_each_adapter() {
    let server = Running::start();
    for (name, directory) in [
        ("pirate", "pirate-v1"),
        ("robot", "robot"),
        ("shout", "shout"),
        ("ranked", "ranked"),
    ] {
        let loaded = server.load(name, directory);
        assert_eq!(loaded.status, 200, "{}", loaded.text());
        assert_eq!(
            loaded.text(),
            format!("Success: LoRA adapter '{name}' added successfully.")
        );
    }
    let expected: Value =
        serde_json::from_slice(&std::fs::read(support::fixtures("expected.json")).unwrap())
            .unwrap();
    let mut seen = 0;
    for case in expected["cases"].as_array().unwrap() {
        let model = match case["adapter"].as_str() {
            None => "tiny-llama",
            Some("pirate-v1") => "pirate",
            Some("pirate-v2") => continue,
            Some(other) => other,
        };
        let answer = server.complete(model, case["prompt"].as_str().unwrap());
        assert_eq!(text(&answer), case["completion"], "{model}");
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["model"], model);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let ids = case["completion_ids"].as_array().unwrap().len() as u64;
        assert_eq!(answer["usage"]["completion_tokens"], ids);
        assert!(
            answer["system_fingerprint"]
                .as_str()
                .unwrap()
                .starts_with(&format!("{model}@"))
        );
        seen += 1;
    }
    assert_eq!(seen, 40);
}

#[test]
fn a_swap_is_seen_by_the_next_request_and_models_say_so() {
    let server = Running::start();
    server.load("pirate", "pirate-v1");
    let before = server.complete("pirate", "A cow says");
    assert_eq!(text(&before), " moo, arr matey!");
    let again = server.load("pirate", "pirate-v2");
    assert_eq!(again.status, 400);
    assert!(
        again.refusal().contains("already been loaded") && again.refusal().contains("load_inplace")
    );
    assert_eq!(
        text(&server.complete("pirate", "A cow says")),
        " moo, arr matey!"
    );
    let inplace = json!({ "lora_name": "pirate", "lora_path": "pirate-v2", "load_inplace": true });
    assert_eq!(server.post("/v1/load_lora_adapter", inplace).status, 200);
    let after = server.complete("pirate", "A cow says");
    assert_eq!(text(&after), " moo, yo ho ho!");
    assert_ne!(before["system_fingerprint"], after["system_fingerprint"]);

    let models = server.get("/v1/models").json();
    let ids: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["tiny-llama", "pirate"]);
    assert_eq!(models["data"][1]["parent"], "tiny-llama");
    assert_eq!(models["data"][1]["root"], "pirate", "and no path");
    assert_eq!(
        server.get("/v1/models/pirate").json(),
        models["data"][1],
        "one by one they are the same"
    );
    assert_eq!(
        server.get("/v1/models/tiny-llama").json(),
        models["data"][0]
    );
    let none = server.get("/v1/models/nobody");
    assert_eq!(
        (none.status, none.refusal().as_str()),
        (404, "The model `nobody` does not exist.")
    );
    let generation = models["data"][1]["generation"].as_u64().unwrap();
    assert_eq!(after["system_fingerprint"], format!("pirate@{generation}"));

    assert_eq!(
        server.unload("pirate").text(),
        "Success: LoRA adapter 'pirate' removed successfully."
    );
    let gone = server.post("/v1/completions", asked("pirate", "A cow says"));
    assert_eq!(
        (gone.status, gone.refusal().as_str()),
        (404, "The model `pirate` does not exist.")
    );
    let gone = server.unload("pirate");
    assert_eq!(gone.status, 404);
    assert!(gone.refusal().contains("cannot be found"));
    assert_eq!(
        server.get("/v1/models").json()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_stream_says_the_same_in_pieces() {
    let server = Running::start();
    server.load("robot", "robot");
    let mut asked = asked("robot", "The capital of France is");
    let whole = server.post("/v1/completions", asked.clone()).json();
    asked["stream"] = true.into();
    for usage in [false, true] {
        if usage {
            asked["stream_options"] = json!({ "include_usage": true });
        }
        let streamed = server.post("/v1/completions", asked.clone());
        assert!(
            streamed.head.contains("text/event-stream"),
            "{}",
            streamed.head
        );
        let mut events = events(&streamed);
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        let mut events: Vec<Value> = events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        if usage {
            let last = events.pop().unwrap();
            assert_eq!(
                (&last["choices"], &last["usage"]),
                (&json!([]), &whole["usage"])
            );
        }
        assert!(events.len() > 5, "token by token");
        let said: String = events.iter().map(text).collect();
        assert_eq!(said, text(&whole));
        let reasons: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0]["finish_reason"])
            .collect();
        assert!(
            reasons[..reasons.len() - 1]
                .iter()
                .all(|reason| reason.is_null())
        );
        assert_eq!(*reasons[reasons.len() - 1], "stop");
        assert!(
            events
                .iter()
                .all(|event| event["system_fingerprint"] == whole["system_fingerprint"])
        );
    }
}

#[test]
fn answers_end_where_they_are_told_to() {
    let server = Running::start();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut asked = asked("tiny-llama", "The capital of France is");
        change(&mut asked);
        let answer = server.post("/v1/completions", asked);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let short = with(&|asked| asked["max_tokens"] = 3.into());
    assert_eq!(
        (text(&short), &short["choices"][0]["finish_reason"]),
        (" Pa", &json!("length"))
    );
    assert_eq!(short["usage"]["completion_tokens"], 3);
    let stopped = with(&|asked| asked["stop"] = "ris".into());
    assert_eq!(
        (text(&stopped), &stopped["choices"][0]["finish_reason"]),
        (" Pa", &json!("stop"))
    );
    let stopped = with(&|asked| asked["stop"] = json!(["nowhere", "is.", "ar"]));
    assert_eq!(text(&stopped), " P");
    // Tokens are a prompt, too, and a list of one.
    let ids: Vec<u32> = [128]
        .into_iter()
        .chain("The capital of France is".bytes().map(u32::from))
        .collect();
    assert_eq!(
        text(&with(&|asked| asked["prompt"] = json!(ids))),
        " Paris."
    );
    assert_eq!(
        text(&with(&|asked| asked["prompt"] = json!([ids]))),
        " Paris."
    );
    assert_eq!(
        text(&with(
            &|asked| asked["prompt"] = json!(["The capital of France is"])
        )),
        " Paris."
    );
    // A seed makes chance repeatable.
    let chance = |seed: i64| {
        let answer = with(&|asked| {
            asked["temperature"] = 2.into();
            asked["top_p"] = 0.99.into();
            asked["seed"] = seed.into();
            asked["prompt"] = "xyz".into();
        });
        text(&answer).to_owned()
    };
    assert_eq!(chance(7), chance(7));
    assert!(
        (0..20).any(|seed| chance(seed) != chance(7)),
        "chance has no part in it"
    );
}

/// An adapter that is unloaded, and one that is swapped, while requests run: each ends as it began.
#[test]
fn requests_that_were_admitted_end_on_their_leases() {
    let mut slow = options();
    slow.running = 1; // The second waits, on a lease.
    let server = Running::with(slow);
    server.load("pirate", "pirate-v1");
    // It never ends by itself: noise at a high temperature.
    let long = json!({ "model": "tiny-llama", "prompt": "x", "temperature": 0, "max_tokens": 250, "stream": true });
    let running = connect(
        server.at,
        "POST",
        "/v1/completions",
        &[("Content-Type", "application/json")],
        long.to_string().as_bytes(),
    );
    first_event(&running);
    let waits = std::thread::scope(|scope| {
        let waits = scope.spawn(|| server.complete("pirate", "A cow says"));
        server.until("one waits", |now| {
            now["serving"]["waiting"] == 1 || now["serving"]["requests"] == 2
        });
        assert_eq!(server.unload("pirate").status, 200);
        assert_eq!(
            server
                .post("/v1/completions", asked("pirate", "A cow says"))
                .status,
            404
        );
        assert_eq!(
            server.load("pirate", "pirate-v2").status,
            200,
            "the name is free"
        );
        waits.join().unwrap()
    });
    assert_eq!(text(&waits), " moo, arr matey!");
    assert_eq!(
        text(&server.complete("pirate", "A cow says")),
        " moo, yo ho ho!"
    );
    drop(running);
    server.until("all bytes of the first are back", |now| {
        now["going"] == json!([])
    });
}

#[test]
fn a_client_that_goes_takes_its_request_along() {
    let mut slow = options();
    slow.running = 1;
    let server = Running::with(slow);
    server.load("robot", "robot");
    let ask = |stream: bool, and: &str| {
        let long = json!({ "model": "robot", "prompt": "x", "temperature": 2, "max_tokens": 250, "stream": stream });
        let mut asked = connect(
            server.at,
            "POST",
            "/v1/completions",
            &[("Content-Type", "application/json")],
            long.to_string().as_bytes(),
        );
        std::io::Write::write_all(&mut asked, and.as_bytes()).unwrap();
        asked
    };
    // Also where bytes follow that nobody has read yet.
    for (stream, and) in [(true, ""), (false, ""), (true, "\r\n"), (false, "GET / HT")] {
        let runs = ask(stream, and);
        let waits = ask(stream, and);
        server.until("one runs", |now| now["serving"]["running"] == 1);
        drop((runs, waits));
        server.until("none is left", |now| {
            now["serving"]["running"] == 0 && now["serving"]["waiting"] == 0
        });
    }
    server.unload("robot");
    server.until("no lease is left", |now| now["going"] == json!([]));
    assert_eq!(text(&server.complete("tiny-llama", "A cow says")), " moo.");
}

#[test]
fn the_registry_is_shown_as_it_is() {
    let server = Running::start();
    let bytes = server.document()["stats"]["ledger"]["resident"]
        .as_u64()
        .unwrap();
    server.load("pirate", "pirate-v1");
    server.complete("pirate", "A cow says");
    let shown = server.document();
    assert_eq!(shown["schema"], 1);
    assert_eq!(shown["model"], "tiny-llama");
    let sets = shown["catalog"]["sets"].as_array().unwrap();
    assert_eq!(
        (sets[0]["name"].as_str(), sets[1]["name"].as_str()),
        (Some("pirate"), Some("tiny-llama"))
    );
    assert_eq!(
        shown["stats"]["ledger"]["resident"],
        bytes + sets[0]["bytes"].as_u64().unwrap()
    );
    // 837,696 bytes in F16 are twice that in f32, the tie once.
    assert_eq!(shown["accounts"]["candle"], 2 * 837_696);
    assert_eq!(shown["serving"]["requests"], 1);
    assert!(shown["serving"]["tokens"].as_u64().unwrap() > 10);

    // Whoever has his answer finds the place free.
    let metrics = server.get("/metrics").text();
    for line in [
        "vllm:num_requests_running 0",
        "weighbridge_serve_requests_total 1",
        "vllm:lora_requests_info{max_lora=\"8\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"}",
        "weighbridge_bytes{",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    let page = server.get("/");
    assert!(
        page.head.contains("text/html") && page.head.contains("default-src 'none'"),
        "{}",
        page.head
    );
    assert_eq!(server.get("/healthz").text(), "ok\n");
    let odd = server.get("/v1/models/%FF");
    assert_eq!((odd.status, odd.refusal().is_empty()), (400, false));

    server.unload("pirate");
    let left = server.until("its bytes are back", |now| {
        now["stats"]["ledger"]["resident"] == bytes
    });
    assert_eq!(left["catalog"]["sets"].as_array().unwrap().len(), 1);
}

#[test]
fn the_model_that_is_built_in_needs_nothing() {
    let mut built_in = weighbridge_serve::Options::built_in();
    built_in.listen = options().listen;
    let mut server = Running::with(built_in);
    assert_eq!(text(&server.complete("tiny-llama", "A cow says")), " moo.");
    assert_eq!(
        text(&server.complete("pirate", "A cow says")),
        " moo, arr matey!"
    );
    assert_eq!(server.load("shout", "shout").status, 200);
    assert_eq!(text(&server.complete("shout", "A cow says")), " moo!!!");
    // An adapter that went is read again from where it was unpacked.
    server
        .registry
        .evict(server.registry.lookup("robot").unwrap())
        .unwrap();
    assert_eq!(
        text(&server.complete("robot", "A cow says")),
        " moo, beep boop!"
    );
    server.stop();
}

/// A real model with real adapters gives the texts that transformers, PEFT and candle agree on.
#[test]
fn smollm2_says_what_it_says_elsewhere() {
    let Some(directory) = std::env::var_os("WEIGHBRIDGE_SMOLLM2") else {
        println!(
            "skipped: WEIGHBRIDGE_SMOLLM2 is not the directory that fixtures/smollm2/fetch made"
        );
        return;
    };
    let mut real = options();
    real.model = Some(directory.into());
    real.name = Some("smollm2".into());
    real.roots = vec![support::fixtures("smollm2/adapters").into()];
    let server = Running::with(real);
    let expected = std::fs::read(support::fixtures("smollm2/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    for name in ["smollm2", "pirate", "robot"] {
        if name != "smollm2" {
            assert_eq!(server.load(name, name).status, 200);
        }
        let mut asked = asked(name, expected["prompt"].as_str().unwrap());
        asked["max_tokens"] = 16.into();
        let answer = server.post("/v1/completions", asked).json();
        let case = if name == "smollm2" { "base" } else { name };
        assert_eq!(text(&answer), expected[case]["text"], "{name}");
        assert_eq!(answer["usage"]["prompt_tokens"], 5);
    }
}

#[test]
fn a_server_that_is_told_to_stop_lets_answers_end() {
    let mut server = Running::start();
    let long = json!({ "model": "tiny-llama", "prompt": "x", "temperature": 0, "max_tokens": 100, "stream": true });
    let stream = connect(
        server.at,
        "POST",
        "/v1/completions",
        &[("Content-Type", "application/json")],
        long.to_string().as_bytes(),
    );
    let registry = std::sync::Arc::clone(&server.registry);
    first_event(&stream);
    server.stop();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &stream, &mut rest).unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("[DONE]"));
    let base = registry.lookup("tiny-llama").unwrap();
    registry.retire(base).unwrap().reclaimed(SOON).unwrap();
    assert_eq!(registry.ledger().total(), 0, "every lease has ended");
}

#[test]
fn a_server_that_may_not_wait_says_why_it_cuts_answers_off() {
    let mut hasty = options();
    hasty.grace = 0;
    let mut server = Running::with(hasty);
    let long = json!({ "model": "tiny-llama", "prompt": "x", "temperature": 2, "max_tokens": 254, "stream": true });
    let stream = connect(
        server.at,
        "POST",
        "/v1/completions",
        &[("Content-Type", "application/json")],
        long.to_string().as_bytes(),
    );
    first_event(&stream);
    server.stop();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &stream, &mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(
        rest.contains("stopping") || rest.contains("\"finish_reason\":\""),
        "{rest}"
    );
}

/// Those that wait are told, too, and at once; so is whoever comes on a connection that is still open. Who has sent half
/// a request keeps nobody.
#[test]
fn whoever_waits_when_the_server_stops_is_told_so() {
    let mut hasty = options();
    (hasty.grace, hasty.running) = (0, 1);
    let mut server = Running::with(hasty);
    let long = json!({ "model": "tiny-llama", "prompt": "x", "temperature": 2, "max_tokens": 250 });
    let body = long.to_string();
    let json = [("Content-Type", "application/json")];
    let asking: Vec<_> = (0..40)
        .map(|_| connect(server.at, "POST", "/v1/completions", &json, body.as_bytes()))
        .collect();
    let half = std::net::TcpStream::connect(server.at).unwrap();
    std::io::Write::write_all(&mut &half, b"POST /v1/comp").unwrap();
    server.until("some wait", |now| {
        now["serving"]["waiting"].as_u64() > Some(4)
    });
    let began = std::time::Instant::now();
    server.stop();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "half a request held it"
    );
    let mut told = 0;
    for stream in asking {
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut &stream, &mut answer).unwrap();
        let answer = support::parse(&answer); // there is one
        match answer.status {
            200 => {}
            503 => {
                assert!(answer.refusal().contains("stopping"));
                told += 1;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(told > 3, "{told} were told");
}

/// Who is in the middle of a request has the grace, too, also if the scheduler has not heard of him.
#[test]
fn whoever_is_still_asking_when_the_server_stops_is_answered() {
    for (grace, status) in [(60, 200), (0, 503)] {
        let mut options = options();
        options.grace = grace;
        let mut server = Running::with(options);
        let body = asked("tiny-llama", "A cow says").to_string();
        let (first, second) = body.split_at(10);
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{first}",
            server.at,
            body.len()
        );
        let mut half = std::net::TcpStream::connect(server.at).unwrap();
        half.set_read_timeout(Some(SOON)).unwrap();
        std::io::Write::write_all(&mut half, head.as_bytes()).unwrap();
        let at = server.at;
        // So that it is let in before nobody is any more.
        assert_eq!(server.get("/healthz").status, 200);
        let stops = std::thread::spawn(move || server.stop());
        while std::net::TcpStream::connect(at).is_ok() {}
        if status == 200 {
            std::io::Write::write_all(&mut half, second.as_bytes()).unwrap();
        }
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut half, &mut answer).unwrap();
        let answer = support::parse(&answer);
        assert_eq!(answer.status, status, "{}", answer.text());
        stops.join().unwrap();
    }
}

/// Whoever has a connection and asks for nothing keeps nobody.
#[test]
fn connections_that_ask_for_nothing_do_not_hold_up_a_stop() {
    let mut options = options();
    (options.grace, options.client_timeout) = (3600, 3600);
    let mut server = Running::with(options);
    let mut silent = std::net::TcpStream::connect(server.at).unwrap();
    let mut idle = std::net::TcpStream::connect(server.at).unwrap();
    let asks = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", server.at);
    std::io::Write::write_all(&mut idle, asks.as_bytes()).unwrap();
    for one in [&silent, &idle] {
        one.set_read_timeout(Some(SOON)).unwrap();
    }
    let mut first = [0; 1];
    std::io::Read::read_exact(&mut idle, &mut first).unwrap();
    server.stop();
    let mut nothing = Vec::new();
    std::io::Read::read_to_end(&mut silent, &mut nothing).unwrap();
    assert!(nothing.is_empty());
    std::io::Read::read_to_end(&mut idle, &mut nothing).unwrap();
    assert!(nothing.ends_with(b"ok\n"));
}
