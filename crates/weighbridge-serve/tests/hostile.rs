//! What nobody should send: every answer is an error that says why, and the server goes on.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use support::{Running, ask, asked, connect, fixtures, options, text};

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn what_a_completion_cannot_be_is_refused_with_a_reason() {
    let server = Running::start();
    let with = |field: &str, value: Value| {
        let mut asked = asked("tiny-llama", "A cow says");
        asked[field] = value;
        server.post("/v1/completions", asked)
    };
    for (field, value) in [
        ("n", json!(2)),
        ("best_of", json!(3)),
        ("echo", json!(true)),
        ("logprobs", json!(1)),
        ("suffix", json!("x")),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-0.5)),
        ("logit_bias", json!({ "5": 1 })),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("top_p", json!(1.1)),
        ("top_p", json!(0)),
        ("top_p", json!(1e-50)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(100_000)),
        ("max_tokens", json!(u64::MAX)),
        ("prompt", json!([])),
        ("prompt", json!([[1], [2]])),
        ("prompt", json!(["a", "b"])),
        ("prompt", json!([130])),
        ("prompt", json!([u32::MAX])),
        ("prompt", json!("x".repeat(256))),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!("x".repeat(1025))),
        ("top_k", json!(1)),
        ("min_p", json!(0.1)),
        ("repetition_penalty", json!(1.1)),
        ("ignore_eos", json!(true)),
        ("min_tokens", json!(5)),
        ("stop_token_ids", json!([129])),
        ("add_special_tokens", json!(false)),
        ("truncate_prompt_tokens", json!(5)),
        ("response_format", json!({ "type": "json_object" })),
        ("guided_regex", json!("a*")),
        ("return_token_ids", json!(true)),
        ("spaces_between_special_tokens", json!(false)),
        ("structural_tag", json!("{}")),
        ("stream_options", json!({ "include_usage": true })),
    ] {
        let refused = with(field, value.clone());
        assert_eq!(refused.status, 400, "{field} = {value}");
        let param = &refused.json()["error"]["param"];
        assert_eq!(*param, field, "{}", refused.text());
        assert!(refused.refusal().len() > 10);
    }
    // Of the wrong type altogether.
    for (field, value) in [
        ("prompt", json!({})),
        ("prompt", json!([-1])),
        ("prompt", json!([u64::from(u32::MAX) + 1])),
        ("prompt", Value::Null),
        ("model", json!(5)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!("many")),
        ("temperature", json!("hot")),
        ("stop", json!([5])),
        ("stream", json!("yes")),
    ] {
        let refused = with(field, value.clone());
        assert_eq!(refused.status, 400, "{field} = {value}");
        refused.refusal();
    }
    // What asks for nothing is passed over, and so is what nobody knows.
    for (field, value) in [
        ("top_k", json!(-1)),
        ("repetition_penalty", json!(1.0)),
        ("ignore_eos", json!(false)),
        ("stop_token_ids", json!([])),
        ("prompt_logprobs", Value::Null),
        ("response_format", json!({ "type": "text" })),
        ("user", json!("somebody")),
    ] {
        assert_eq!(with(field, value).status, 200, "{field}");
    }
    // An empty stop string stops nothing.
    assert_eq!(text(&with("stop", json!("")).json()), " moo.");
    for model in [
        "",
        "nothing",
        "../tiny-llama",
        "tiny-llama\0",
        &"x".repeat(100_000),
    ] {
        let refused = server.post("/v1/completions", asked(model, "A cow says"));
        assert_eq!(refused.status, 404, "{}", refused.text());
    }
    assert_eq!(text(&server.complete("tiny-llama", "A cow says")), " moo.");
}

#[test]
fn what_is_no_request_is_refused() {
    let server = Running::start();
    let post = |headers: &[(&str, &str)], body: &[u8]| {
        ask(server.at, "POST", "/v1/completions", headers, body)
    };
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{\"model\": \"tiny-llama\"}",
        &[b'['; 100_000],
    ] {
        let refused = post(&[JSON], body);
        assert_eq!(refused.status, 400, "{}", refused.text());
        refused.refusal();
    }
    // A list is no object, although its items could be taken for the fields.
    let list = json!(["robot", "robot", false]).to_string();
    let refused = ask(
        server.at,
        "POST",
        "/v1/load_lora_adapter",
        &[JSON],
        list.as_bytes(),
    );
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.refusal().contains("object"));
    // A form of another site's page sends other types.
    let good = asked("tiny-llama", "A cow says").to_string();
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "application/jsonx",
    ] {
        assert_eq!(
            post(&[("Content-Type", kind)], good.as_bytes()).status,
            415,
            "{kind}"
        );
    }
    assert_eq!(
        post(
            &[("Content-Type", "application/json; charset=utf-8")],
            good.as_bytes()
        )
        .status,
        200
    );
    assert_eq!(post(&[JSON], &vec![b' '; (1 << 20) + 1]).status, 413);
    assert_eq!(server.get("/nothing").status, 404);
    assert_eq!(server.get("/v1/completions").status, 405);
    // Names of other sites that lead here.
    for host in ["evil.example", "127.0.0.1.evil.example:80", ""] {
        let refused = ask(server.at, "GET", "/v1/registry", &[("Host", host)], b"");
        assert_eq!(refused.status, 421, "{host}");
    }
    // Not even HTTP, and half of it.
    for bytes in [
        &b"\x16\x03\x01"[..],
        b"GET",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        &[b'A'; 300_000],
    ] {
        let mut stream = TcpStream::connect(server.at).unwrap();
        let _ = stream.write_all(bytes);
    }
    assert_eq!(text(&server.complete("tiny-llama", "A cow says")), " moo.");
}

#[test]
fn paths_lead_nowhere_but_into_the_roots() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    std::fs::create_dir_all(root.join("broken")).unwrap();
    std::fs::create_dir_all(root.join("leads-out")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let real = std::path::Path::new(&fixtures("adapters/robot"))
            .canonicalize()
            .unwrap()
            .join(file);
        std::os::unix::fs::symlink(real, root.join("leads-out").join(file)).unwrap();
    }
    std::os::unix::fs::symlink(fixtures("adapters/robot"), root.join("link")).unwrap();
    std::fs::write(root.join("broken/adapter_config.json"), "{").unwrap();
    std::fs::create_dir_all(root.join("leads-nowhere")).unwrap();
    let nowhere = root.join("leads-nowhere/adapter_config.json");
    std::os::unix::fs::symlink("/nowhere/at/all", nowhere).unwrap();
    let mut confined = options();
    confined.roots = vec![root.clone()];
    let server = Running::with(confined);
    let outside = fixtures("adapters/robot");
    for path in [
        &outside,
        "link",
        "../root/link",
        "/etc/passwd",
        "../../etc",
        "a\0b",
        &"../".repeat(50),
    ] {
        let refused = server.load("robot", path);
        assert_eq!(refused.status, 404, "{path}: {}", refused.text());
        assert!(
            !refused.refusal().contains(outside.as_str()),
            "it tells what exists elsewhere"
        );
    }
    // Inside, and not an adapter.
    for path in ["broken", ""] {
        let refused = server.load("robot", path);
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
    }
    // A link that is none of the adapter's files is of no concern.
    std::fs::create_dir_all(root.join("own")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(format!("{outside}/{file}"), root.join("own").join(file)).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", root.join("own/README.md")).unwrap();
    assert_eq!(server.load("own", "own").status, 200);
    assert_eq!(server.unload("own").status, 200);
    // Its files are links out, to what is there or is not: nobody is told which.
    let told = ["leads-out", "leads-nowhere"].map(|path| {
        let refused = server.load("robot", path);
        assert_eq!(refused.status, 403, "{path}: {}", refused.text());
        refused.refusal()
    });
    assert_eq!(told[0], told[1]);
    assert!(told[0].contains("is a link that leads out"), "{}", told[0]);
    assert_eq!(
        server.get("/v1/models").json()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let mut closed = options();
    closed.roots = Vec::new();
    let server = Running::with(closed);
    let refused = server.load("robot", &outside);
    assert_eq!(refused.status, 403);
    assert!(refused.refusal().contains("--adapter-root"));
}

#[test]
fn whoever_may_not_change_adapters_does_not() {
    let mut guarded = options();
    guarded.admin_token = Some("s3cret\n".parse().unwrap());
    let server = Running::with(guarded);
    let load = json!({ "lora_name": "robot", "lora_path": "robot" }).to_string();
    let unload = json!({ "lora_name": "robot" }).to_string();
    let try_with = |path: &str, body: &str, given: Option<&str>| {
        let given = given.map(|given| ("Authorization", given));
        let headers: Vec<_> = [Some(JSON), given].into_iter().flatten().collect();
        ask(server.at, "POST", path, &headers, body.as_bytes())
    };
    for given in [
        None,
        Some("Bearer "),
        Some("Bearer s3cre"),
        Some("Bearer s3cret2"),
        Some("s3cret"),
        Some("Basic s3cret"),
    ] {
        for (path, body) in [
            ("/v1/load_lora_adapter", &load),
            ("/v1/unload_lora_adapter", &unload),
        ] {
            let refused = try_with(path, body, given);
            assert_eq!(refused.status, 401, "{given:?}");
            assert!(
                refused
                    .head
                    .to_ascii_lowercase()
                    .contains("www-authenticate: bearer")
            );
            assert!(!refused.refusal().contains("s3cret"));
        }
    }
    assert_eq!(
        try_with("/v1/load_lora_adapter", &load, Some("Bearer s3cret")).status,
        200
    );
    assert_eq!(
        text(&server.complete("robot", "A cow says")),
        " moo, beep boop!",
        "which needs no token"
    );
    assert_eq!(
        try_with("/v1/unload_lora_adapter", &unload, Some("Bearer s3cret")).status,
        200
    );
}

/// Many at once, of one name: one after the other, as vLLM has it.
#[test]
fn loads_of_one_name_take_turns() {
    let server = Running::start();
    let all = |in_place: bool| -> Vec<(u16, String)> {
        let load = json!({ "lora_name": "a", "lora_path": "shout", "load_inplace": in_place });
        std::thread::scope(|scope| {
            let post = || server.post("/v1/load_lora_adapter", load.clone());
            let tries: Vec<_> = (0..6).map(|_| scope.spawn(post)).collect();
            let answers = tries.into_iter().map(|one| one.join().unwrap());
            answers.map(|one| (one.status, one.text())).collect()
        })
    };
    for _ in 0..5 {
        let plain = all(false);
        let good = plain.iter().filter(|(status, _)| *status == 200);
        assert_eq!(good.count(), 1, "{plain:?}");
        let refused = plain.iter().filter(|(status, text)| {
            *status == 400 && text.contains("InvalidUserInput") && text.contains("already")
        });
        assert_eq!(refused.count(), 5, "{plain:?}");
        let in_place = all(true);
        assert!(
            in_place.iter().all(|(status, _)| *status == 200),
            "{in_place:?}"
        );
        assert_eq!(server.unload("a").status, 200);
    }
}

#[test]
fn no_more_is_taken_than_may_be() {
    let mut small = options();
    (small.max_adapters, small.running, small.waiting) = (2, 1, 1);
    let server = Running::with(small);
    assert_eq!(server.load("a", "pirate-v1").status, 200);
    assert_eq!(server.load("b", "pirate-v1").status, 200);
    let refused = server.load("c", "pirate-v1");
    assert_eq!(refused.status, 429, "{}", refused.text());
    let inplace = json!({ "lora_name": "b", "lora_path": "pirate-v2", "load_inplace": true });
    assert_eq!(
        server.post("/v1/load_lora_adapter", inplace).status,
        200,
        "which takes no more"
    );
    assert_eq!(server.unload("a").status, 200);
    assert_eq!(server.load("c", "pirate-v1").status, 200);
    // Many at once, for one place.
    assert_eq!(server.unload("c").status, 200);
    let loaded: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|at| {
                scope.spawn({
                    let server = &server;
                    move || {
                        usize::from(server.load(&format!("many-{at}"), "pirate-v1").status == 200)
                    }
                })
            })
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(loaded, 1, "into one place");

    // One runs, one waits, no more.
    let long = json!({ "model": "tiny-llama", "prompt": "x", "temperature": 2, "max_tokens": 250, "stream": true });
    let body = long.to_string();
    let admit = || {
        connect(
            server.at,
            "POST",
            "/v1/completions",
            &[JSON],
            body.as_bytes(),
        )
    };
    // One may say its last word before the others come: then it is tried again.
    loop {
        let _admitted = [admit(), admit()];
        let full = |now: &Value| now["serving"]["running"] == 1 && now["serving"]["waiting"] == 1;
        if !full(&server.document()) {
            continue;
        }
        let third = server.post("/v1/completions", asked("tiny-llama", "A cow says"));
        if third.status == 429 {
            assert!(third.refusal().contains("1 "), "{}", third.text());
            break;
        }
        assert_eq!(third.status, 200, "{}", third.text());
    }
    for name in ["tiny-llama", "", "a/b\nc", &"n".repeat(10_000)] {
        let refused = server.load(name, "pirate-v1");
        assert!(
            matches!(refused.status, 400 | 429),
            "{name}: {}",
            refused.text()
        );
    }
}

#[test]
fn what_makes_no_sense_does_not_start() {
    use weighbridge_serve::{Options, Server, StartError};
    let fails = |change: &dyn Fn(&mut Options)| {
        let mut options = options();
        change(&mut options);
        match Server::open(options) {
            Ok(_) => panic!("it started"),
            Err(error) => error,
        }
    };
    assert!(matches!(
        fails(&|o| o.model = Some("nowhere".into())),
        StartError::File { .. }
    ));
    assert!(matches!(
        fails(&|o| o.model = Some(fixtures("adapters/robot").into())),
        StartError::File { .. }
    ));
    assert!(matches!(
        fails(&|o| o.roots = vec!["nowhere".into()]),
        StartError::File { .. }
    ));
    assert!(matches!(
        fails(&|o| o.running = 0),
        StartError::Option { .. }
    ));
    for change in [
        &(|o: &mut Options| o.connections = 0) as &dyn Fn(&mut Options),
        &|o: &mut Options| o.client_timeout = 0,
        &|o: &mut Options| o.client_timeout = u64::MAX,
    ] {
        assert!(matches!(fails(change), StartError::Option { .. }));
    }
    assert!(matches!(
        fails(&|o| o.limit = Some(1000)),
        StartError::Weights { .. }
    ));
    assert!(matches!(
        fails(&|o| o.name = Some(String::new())),
        StartError::Weights { .. }
    ));
    let broken = |o: &mut Options| o.adapters = vec![("x".into(), fixtures("tiny-llama").into())];
    assert!(matches!(fails(&broken), StartError::Weights { .. }));
    let taken = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let at = taken.local_addr().unwrap();
    assert!(matches!(
        fails(&|o| o.listen = at),
        StartError::Address { .. }
    ));
}

/// An adapter that the model could not apply as a whole is refused when it is loaded, not request by request; and what
/// is there stays.
#[test]
fn an_adapter_that_would_answer_nobody_is_not_loaded() {
    let place = tempfile::tempdir().unwrap();
    let odd = place.path().join("odd");
    std::fs::create_dir(&odd).unwrap();
    let robot = fixtures("adapters/robot");
    std::fs::copy(
        format!("{robot}/adapter_config.json"),
        odd.join("adapter_config.json"),
    )
    .unwrap();
    std::fs::write(
        odd.join("adapter_model.safetensors"),
        with_replacement(&robot),
    )
    .unwrap();
    let mut own = options();
    own.roots.push(place.path().into());
    let server = Running::with(own);
    let refused = server.load("odd", "odd");
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.refusal().contains("replaces"), "{}", refused.text());
    assert_eq!(server.load("robot", "robot").status, 200);
    let inplace = json!({ "lora_name": "robot", "lora_path": "odd", "load_inplace": true });
    assert_eq!(server.post("/v1/load_lora_adapter", inplace).status, 400);
    assert_eq!(
        text(&server.complete("robot", "A cow says")),
        " moo, beep boop!"
    );
}

/// Robot's weights, and a whole tensor beside them.
fn with_replacement(robot: &str) -> Vec<u8> {
    let file = std::fs::read(format!("{robot}/adapter_model.safetensors")).unwrap();
    let (len, rest) = file.split_at(8);
    let len = u64::from_le_bytes(len.try_into().unwrap()) as usize;
    let (head, data) = rest.split_at(len);
    let mut head: Value = serde_json::from_slice(head).unwrap();
    let ends = [data.len(), data.len() + 4 * 96];
    head["base_model.model.model.norm.weight"] =
        json!({ "dtype": "F32", "shape": [96], "data_offsets": ends });
    let head = head.to_string();
    let mut made = (head.len() as u64).to_le_bytes().to_vec();
    made.extend_from_slice(head.as_bytes());
    made.extend_from_slice(data);
    made.extend_from_slice(&[0; 4 * 96]);
    made
}
