//! A server of canned answers, in this process.

#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a server says: the lists of the library's docs/JSON.md, and a field that nobody knows.
pub const DOCUMENT: &str = include_str!("registry.json");

/// What it answers.
pub enum Reply {
    /// These bytes, and the end.
    Bytes(Vec<u8>),
    /// These, and then nothing more for as long as the other side waits.
    Then(Vec<u8>),
    /// Nothing, for as long as the other side waits.
    Silence,
    /// These, and then `x` after `x`, until the other side has had enough.
    Endless(&'static str),
}

/// A good answer.
pub fn json(body: &str) -> Reply {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let length = body.len();
    Reply::Bytes(format!("{head}Content-Length: {length}\r\n\r\n{body}").into_bytes())
}

/// Answers until the process ends.
pub struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `reply` says what to answer to which request, counted from 0.
    pub fn new(reply: impl Fn(usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let request = head(&mut stream);
                let number = {
                    let mut heard = heard.lock().unwrap();
                    heard.push(request);
                    heard.len() - 1
                };
                answer(stream, reply(number));
            }
        });
        Server { url, requests }
    }

    /// Nobody listens there: the port was free a moment ago.
    pub fn gone() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer(mut stream: TcpStream, reply: Reply) {
    // That the other side goes is its right.
    let _ = match reply {
        Reply::Bytes(bytes) => stream.write_all(&bytes),
        Reply::Then(bytes) => stream.write_all(&bytes).map(|()| wait(&mut stream)),
        Reply::Silence => {
            wait(&mut stream);
            Ok(())
        }
        Reply::Endless(start) => {
            let piece = vec![b'x'; 1 << 16];
            let mut sent = stream.write_all(start.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(&piece);
            }
            sent
        }
    };
}

/// Until the other side hangs up.
fn wait(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]);
}
