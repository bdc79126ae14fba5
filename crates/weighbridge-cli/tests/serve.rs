//! `weighbridge serve` as a process: what it says when it listens, what it does on a signal, why it does not start.

#![cfg(all(unix, feature = "serve"))]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use common::{program, run};
use rustix::process::{Pid, Signal, kill_process};

/// One that listens, and where.
fn serve(args: &[&str]) -> (Child, String) {
    let mut child = program()
        .args(["serve", "--listen", "127.0.0.1:0", "--json"])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = child.stdout.as_mut().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&said["schema"], &said["command"]),
        (&1.into(), &"serve".into())
    );
    (child, said["url"].as_str().unwrap().to_owned())
}

fn stop(child: &mut Child, signal: Signal) {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).unwrap();
}

#[test]
fn top_shows_what_serve_holds_and_a_signal_ends_it() {
    for signal in [Signal::INT, Signal::TERM] {
        let (mut child, url) = serve(&[]);
        let shown = run(["top", &url, "--once", "--json"]);
        assert_eq!(shown.code, 0, "{shown:?}");
        let shown = shown.json();
        assert_eq!(shown["model"], "tiny-llama");
        let sets = shown["catalog"]["sets"].as_array().unwrap();
        let names: Vec<_> = sets
            .iter()
            .map(|set| set["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["pirate", "robot", "tiny-llama"]);
        let text = run(["top", &url, "--once"]);
        assert!(
            text.stdout.contains("tiny-llama") && text.stdout.contains("Nothing is on its way out")
        );
        stop(&mut child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

/// It waits for what runs, and for no longer than it may: the second signal is for who does not want to wait.
#[test]
fn a_second_signal_ends_it_at_once() {
    let (mut child, url) = serve(&[]);
    let place = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(place).unwrap();
    let body = r#"{"model": "tiny-llama", "prompt": "x", "temperature": 2, "max_tokens": 250, "stream": true}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stop(&mut child, Signal::INT);
    // It may have ended by itself by now.
    let _ = kill_process(Pid::from_child(&child), Signal::INT);
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
}

#[test]
fn what_does_not_start_says_why() {
    let nowhere = run(["serve", "--model", "fixtures/nowhere", "--json"]);
    assert_eq!(nowhere.code, 3);
    assert_eq!(nowhere.json()["error"]["kind"], "io");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let said = run(["serve", "--listen", &at]);
    assert_eq!((said.code, &*said.stdout), (3, ""), "{said:?}");
    assert!(said.stderr.contains(&at), "{said:?}");
    for wrong in [
        &["--running", "0"][..],
        &["--adapter", "x"],
        &["--listen", "nowhere"],
        &["--limit", "2G"],
        &["--connections", "0"],
    ] {
        let said = run(["serve"].iter().chain(wrong));
        assert_eq!(said.code, 2, "{said:?}");
    }
}
