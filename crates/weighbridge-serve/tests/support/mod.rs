//! A server in this process, and a client of it.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weighbridge::WeightRegistry;
use weighbridge_serve::{Options, Server, StartError};

pub const SOON: Duration = Duration::from_secs(60);

pub fn fixtures(path: &str) -> String {
    format!("{}/../../fixtures/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// The tiny model on a port of its own; adapters may be loaded from the fixtures.
pub fn options() -> Options {
    let mut options = Options::new(fixtures("tiny-llama"));
    options.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    options.roots = vec![fixtures("adapters").into()];
    options.grace = 5;
    options
}

pub struct Running {
    pub at: SocketAddr,
    pub registry: Arc<WeightRegistry>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), StartError>>>,
}

impl Running {
    pub fn start() -> Self {
        Self::with(options())
    }

    pub fn with(options: Options) -> Self {
        let server = Server::open(options).unwrap();
        let (at, registry) = (server.address(), server.registry());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            server.run(async {
                let _ = stopped.await;
            })
        });
        Running {
            at,
            registry,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        ask(self.at, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: Value) -> Answer {
        let body = body.to_string();
        ask(
            self.at,
            "POST",
            path,
            &[("Content-Type", "application/json")],
            body.as_bytes(),
        )
    }

    pub fn load(&self, name: &str, directory: &str) -> Answer {
        self.post(
            "/v1/load_lora_adapter",
            json!({ "lora_name": name, "lora_path": directory }),
        )
    }

    pub fn unload(&self, name: &str) -> Answer {
        self.post("/v1/unload_lora_adapter", json!({ "lora_name": name }))
    }

    /// Greedy, as much as it says.
    pub fn complete(&self, model: &str, prompt: &str) -> Value {
        let answer = self.post("/v1/completions", asked(model, prompt));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    pub fn document(&self) -> Value {
        self.get("/v1/registry").json()
    }

    /// Until the registry's document says so.
    pub fn until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let document = self.document();
            if so(&document) {
                return document;
            }
            assert!(Instant::now() < deadline, "{what}: {document:#}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

pub fn asked(model: &str, prompt: &str) -> Value {
    json!({ "model": model, "prompt": prompt, "temperature": 0, "max_tokens": 40 })
}

pub fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The message of a refusal, whose form is checked.
    pub fn refusal(&self) -> String {
        let json = self.json();
        assert_eq!(json["error"]["code"], self.status);
        assert!(json["error"]["type"].is_string());
        json["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// One request on a connection of its own, as it goes over the wire: hostile ones, too.
pub fn ask(
    at: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = connect(at, method, path, headers, body);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    parse(&all)
}

/// Sent, and not read yet.
pub fn connect(
    at: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> TcpStream {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request += &format!("Host: {at}\r\n");
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    // Who is refused before its body was read may find the door closed.
    let _ = stream.write_all(body);
    stream
}

pub fn parse(all: &[u8]) -> Answer {
    let end = all
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(all)));
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let mut body = all[end + 4..].to_vec();
    if chunked {
        body = unchunk(&body);
    }
    Answer { status, head, body }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        whole.extend_from_slice(&body[end + 2..end + 2 + len]);
        body = &body[end + 2 + len + 2..];
        if len == 0 {
            break;
        }
    }
    whole
}

/// The `data:` lines of a stream of events.
pub fn events(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(str::to_owned).collect()
}

/// Reads until the first event of a stream.
pub fn first_event(stream: &TcpStream) -> String {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let found = lines.find_map(|line| line.unwrap().strip_prefix("data: ").map(str::to_owned));
    found.unwrap()
}
