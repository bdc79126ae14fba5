//! `weighbridge top`, against a server of canned answers.

mod common;
mod server;

use common::{Said, program, run, steers};
use server::{Reply, Server, json};

/// Runs it once.
fn once(server: &Server, more: &[&str]) -> Said {
    let args = ["top", server.url(), "--once"];
    run(args.iter().chain(more))
}

/// It must be refused with this code and these words, in both forms, and steer no terminal.
#[track_caller]
fn refused(server: &Server, more: &[&str], code: i32, words: &[&str]) {
    let text = once(server, more);
    assert_eq!((text.code, &*text.stdout), (code, ""), "{text:?}");
    assert!(!steers(&text.stderr), "{text:?}");
    let as_json = once(server, &[more, &["--json"]].concat());
    assert_eq!((as_json.code, &*as_json.stderr), (code, ""), "{as_json:?}");
    let error = as_json.json()["error"].clone();
    for word in words {
        assert!(text.stderr.contains(word), "{word:?}: {text:?}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
}

#[test]
fn a_page_shows_what_is_held_and_who_is_in_the_way() {
    let server = Server::new(|_| json(server::DOCUMENT));
    let said = run(["top", server.url()]); // not a terminal: one page
    assert_eq!((said.code, &*said.stderr), (0, ""), "{said:?}");
    for line in [
        "bytes       942848 (920.8 KiB) of 1410368 (1.3 MiB), 66.9 %",
        "requests    2 running, 0 waiting, the oldest for 0.40 s",
        "so far      100 answered, 0 failed, 12 swaps, 4000 tokens (35.5/s)",
    ] {
        let there = said.stdout.lines().any(|own| own == line);
        assert!(there, "{line}: {}", said.stdout);
    }
    // The whole page is in the README, with which it is compared (`tests/readme.rs`).
    let request = &server.requests()[0];
    assert!(
        request.starts_with("GET /v1/registry HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        !request.to_ascii_lowercase().contains("authorization"),
        "{request}"
    );
}

#[test]
fn json_is_what_the_server_said_as_far_as_it_is_known() {
    let server = Server::new(|_| json(server::DOCUMENT));
    let said = run(["top", server.url(), "--json"]);
    assert_eq!((said.code, &*said.stderr), (0, ""));
    let (report, sent): (_, serde_json::Value) =
        (said.json(), serde_json::from_str(server::DOCUMENT).unwrap());
    assert_eq!(report["command"], "top");
    for part in ["model", "leases", "going", "serving"] {
        assert_eq!(report[part], sent[part], "{part}");
    }
    assert_eq!(report["stats"]["ledger"], sent["stats"]["ledger"]);
    assert_eq!(report["catalog"]["sets"][0]["name"], "pirate");
    assert!(report.get("of a later version").is_none());
}

#[test]
fn what_a_server_does_not_say_is_not_demanded() {
    for body in [
        r#"{"schema":1}"#,
        r#"{"schema":1,"model":null,"stats":null,"catalog":{"sets":[]},"going":[]}"#,
        r#"{"schema":1,"stats":{"ledger":{}},"serving":{},"catalog":{"sets":[{"name":"s"}]}}"#,
    ] {
        let server = Server::new(move |_| json(body));
        let said = once(&server, &[]);
        assert_eq!((said.code, &*said.stderr), (0, ""), "{body}: {said:?}");
        assert!(!said.stdout.is_empty());
    }
}

#[test]
fn names_from_servers_do_not_reach_the_terminal_raw() {
    let evil = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}\n\r";
    let long = format!("{evil}{}", "x".repeat(1 << 20));
    let document = serde_json::json!({
        "schema": 1, "model": evil,
        "stats": {"ledger": {}, "oldest_lease": {"label": evil, "age_seconds": 1.0}},
        "catalog": {"sets": [
            {"namespace": evil, "name": long, "kind": evil, "identity": evil},
        ]},
        "going": [{"namespace": evil, "name": evil, "holders": [{"label": long}], "leases": 1}],
    });
    let server = Server::new(move |_| json(&document.to_string()));
    let said = once(&server, &[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!steers(&said.stdout), "{:?}", said.stdout);
    assert!(said.stdout.contains("\\u{1b}[2J"), "{}", said.stdout);
    assert!(said.stdout.len() < 8192, "{} bytes", said.stdout.len());
    let report = once(&server, &["--json"]).json();
    assert_eq!(report["model"], evil);
}

#[test]
fn what_is_no_registry_is_refused() {
    for (body, word) in [
        ("", "not what a registry says"),
        ("<html>\u{1b}[2J</html>", "not what a registry says"),
        (r#"{"schema":2}"#, "schema 2"),
        (r#"{"model":"m"}"#, "no schema number"),
        (r#"{"schema":1,"catalog":[]}"#, "invalid"),
        (r#"{"schema":1,"model":7}"#, "invalid type"),
        (
            r#"{"schema":1,"stats":{"ledger":{"resident":"\u001b[2J"}}}"#,
            "invalid type",
        ),
        (
            r#"{"schema":1,"stats":{"ledger":{"resident":1e300}}}"#,
            "invalid",
        ),
        (r#"{"schema":1,"serving":{"running":-2}}"#, "invalid value"),
    ] {
        let server = Server::new(move |_| json(body));
        refused(&server, &[], 1, &[word]);
    }
}

#[test]
fn answers_are_bounded() {
    let server = Server::new(|_| Reply::Endless("HTTP/1.1 200 OK\r\n\r\n"));
    refused(&server, &["--timeout", "60s"], 1, &["longer than 16 MiB"]);
    let claimed = Server::new(|_| {
        Reply::Bytes(
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX).into_bytes(),
        )
    });
    let said = once(&claimed, &["--timeout", "60s"]);
    assert!(
        [1, 3].contains(&said.code) && said.stdout.is_empty(),
        "{said:?}"
    );
    let header = Server::new(|_| Reply::Endless("HTTP/1.1 200 OK\r\nx: "));
    let said = once(&header, &["--timeout", "60s"]);
    assert_eq!((said.code, &*said.stdout), (3, ""), "{said:?}");
}

#[test]
fn a_server_that_does_not_answer_is_not_waited_for() {
    let silent = Server::new(|_| Reply::Silence);
    refused(&silent, &["--timeout", "200ms"], 3, &["no answer in time"]);
    let halfway =
        Server::new(|_| Reply::Then(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec()));
    refused(&halfway, &["--timeout", "200ms"], 3, &["no answer in time"]);
    let hung_up =
        Server::new(|_| Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec()));
    refused(&hung_up, &[], 3, &["hung up"]);
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let server = Server::gone();
    refused(&server, &[], 3, &["nobody listens there"]);
}

#[test]
fn other_statuses_are_told_with_what_to_do() {
    for (status, words) in [
        ("401 Unauthorized", &["401", "--token"][..]),
        ("404 Not Found", &["404", "is it a weighbridge server?"]),
        ("503 Service Unavailable", &["503"]),
        ("204 No Content", &["204"]),
    ] {
        let server = Server::new(move |_| {
            Reply::Bytes(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes())
        });
        refused(&server, &[], 3, words);
    }
}

#[test]
fn what_is_not_http_is_told() {
    for bytes in [
        "HTTP/1.1 503 \u{1b}[2J\r\n\r\n",
        "SSH-2.0-\u{1b}[2J\r\n",
        "\0\0\0",
        "",
    ] {
        let server = Server::new(move |_| Reply::Bytes(bytes.as_bytes().to_vec()));
        refused(&server, &[], 3, &["/v1/registry: "]);
    }
}

/// Wherever it leads: the token is for one server.
#[test]
fn a_redirect_is_told_and_not_followed() {
    let other = Server::new(|_| json(server::DOCUMENT));
    let to = other.url().to_owned();
    let server = Server::new(move |_| {
        let head = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        Reply::Bytes(head.into_bytes())
    });
    refused(&server, &["--token", "secret"], 3, &["302", other.url()]);
    assert!(other.requests().is_empty());
}

#[test]
fn a_token_is_sent_as_it_was_given() {
    let server = Server::new(|_| json(r#"{"schema":1}"#));
    let from_environment = |value: &str| {
        let mut command = program();
        command.args(["top", server.url(), "--once"]);
        command.env("WEIGHBRIDGE_TOKEN", value).output().unwrap()
    };
    once(&server, &["--token", "one"]);
    from_environment("two");
    from_environment("");
    let sent: Vec<Option<String>> = server
        .requests()
        .iter()
        .map(|request| {
            let own = |line: &str| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("authorization")
                    .then(|| value.to_owned())
            };
            request.lines().find_map(own)
        })
        .collect();
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    assert_eq!(sent, [bearer("one"), bearer("two"), None]);
    let help = program()
        .args(["top", "--help"])
        .env("WEIGHBRIDGE_TOKEN", "hush")
        .output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    assert!(help.contains("WEIGHBRIDGE_TOKEN") && !help.contains("hush"));
}
