//! Clients that keep the server waiting: each is let go of in time, and the others are answered.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Running, SOON, options, parse};

/// Which gives clients a second.
fn impatient(connections: usize) -> Running {
    let mut options = options();
    (options.client_timeout, options.connections) = (1, connections);
    Running::with(options)
}

fn say(server: &Running, what: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.at).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(what.as_bytes()).unwrap();
    stream
}

/// Until the server has closed it.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    all
}

fn connections(server: &Running) -> u64 {
    let metrics = server.get("/metrics").text();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("weighbridge_serve_connections "));
    line.unwrap().parse().unwrap()
}

/// Its place is free a moment after a connection is closed.
fn until_alone(server: &Running) {
    let deadline = Instant::now() + SOON;
    while connections(server) > 1 {
        assert!(Instant::now() < deadline, "some are still there");
    }
}

#[test]
fn who_does_not_end_what_he_began_is_let_go() {
    let server = impatient(1024);
    let host = format!("Host: {}\r\n", server.at);
    let post = format!("POST /v1/completions HTTP/1.1\r\n{host}Content-Type: application/json\r\n");
    // Nothing, half a head, no body, half a body, half a body in chunks.
    let silent = [
        say(&server, ""),
        say(&server, "GET /healthz HTTP/1.1\r\nHost: "),
        say(&server, &format!("{post}Content-Length: 100\r\n\r\n")),
        say(&server, &format!("{post}Content-Length: 100\r\n\r\n{{")),
        say(
            &server,
            &format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n"),
        ),
        // One that was answered, and has nothing more to say.
        say(&server, &format!("GET /healthz HTTP/1.1\r\n{host}\r\n")),
    ];
    let [_, _, body, half, chunk, idle] = silent.map(rest);
    for late in [body, half, chunk] {
        let late = parse(&late);
        assert_eq!(late.status, 408, "{}", late.text());
        assert!(late.refusal().contains("in time"));
    }
    assert!(parse(&idle).status == 200);
    until_alone(&server);
}

/// What is sent to him fills every buffer on the way, and then nobody waits for him.
#[test]
fn who_does_not_read_is_let_go() {
    let server = impatient(1024);
    let mut deaf = TcpStream::connect(server.at).unwrap();
    deaf.set_write_timeout(Some(SOON)).unwrap();
    let asks = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", server.at).repeat(100);
    let deadline = Instant::now() + SOON;
    // Until it is closed: the server reads no more when it cannot write, and then lets go.
    let end = loop {
        match deaf.write_all(asks.as_bytes()) {
            Ok(()) => assert!(Instant::now() < deadline, "it takes whatever comes"),
            Err(error) => break error,
        }
    };
    let closed = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(closed.contains(&end.kind()), "{end}");
    until_alone(&server);
}

/// Who finds every place taken waits, and has one when another is let go.
#[test]
fn no_more_are_let_in_than_may_be() {
    let mut few = options();
    few.connections = 2;
    let server = Running::with(few);
    let [first, second] = ["", ""].map(|nothing| say(&server, nothing));
    let health = format!(
        "GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        server.at
    );
    let mut waits = say(&server, &health);
    waits
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let early = waits.read(&mut [0; 1]).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock, "both places are taken");
    drop(first);
    waits.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(parse(&rest(waits)).status, 200);
    drop(second);
}

/// A text that is too long in any case is not even split; one that may not be is, and is looked at after that.
#[test]
fn a_long_prompt_is_told_that_it_is_too_long() {
    let server = Running::start();
    for (text, told) in [
        ("moo ".repeat(200_000), "800000 characters are more"),
        // It knows no llamas.
        (
            "x".repeat(300) + &"🦙".repeat(700),
            "301 in the prompt, 1 for",
        ),
    ] {
        let long = json!({ "model": "tiny-llama", "prompt": text, "max_tokens": 1 });
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| server.post("/v1/completions", long.clone())))
                .collect();
            for one in asking {
                let refused = one.join().unwrap();
                assert_eq!(refused.status, 400);
                assert_eq!(refused.json()["error"]["param"], "prompt");
                let message = refused.refusal();
                assert!(message.contains(told), "{message}");
                assert!(message.contains("maximum context length"), "{message}");
            }
        });
    }
    assert_eq!(server.get("/health").status, 200);
}
