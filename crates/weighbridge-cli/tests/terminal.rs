//! What is only shown on a terminal, on a terminal.
#![cfg(unix)]

mod common;
mod server;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use common::program;
use server::{Reply, Server, json};

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// Nothing here takes long. This is for what never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program on a terminal of 100 columns and 24 rows.
struct Terminal {
    child: Child,
    pieces: Receiver<Vec<u8>>,
    seen: String,
}

/// Which of its streams are the terminal.
enum On {
    Both,
    Stderr,
}

impl Terminal {
    fn start(mut command: Command, on: On) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let size = Winsize {
            ws_row: 24,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).unwrap();
        if matches!(on, On::Both) {
            command.stdout(slave.try_clone().unwrap());
        } else {
            command.stdout(std::process::Stdio::null());
        }
        command.stderr(slave.try_clone().unwrap());
        let child = command.spawn().unwrap();
        // The child's are the only ones left, with those in `command`: its end is the end of the terminal.
        drop((slave, command));
        let (send, pieces) = channel();
        let mut master = File::from(master);
        std::thread::spawn(move || {
            let mut piece = vec![0; 1 << 16];
            // On Linux the end is an error (EIO), elsewhere it is the end.
            while let Ok(length @ 1..) = master.read(&mut piece) {
                if send.send(piece[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            child,
            pieces,
            seen: String::new(),
        }
    }

    /// Waits until it has written `what` since the last call of this.
    #[track_caller]
    fn expect(&mut self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(what) {
                let rest = self.seen.split_off(at + what.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(_) => panic!("{what:?} did not come: {:?}", self.seen),
            }
        }
    }

    /// Everything that is left, and how it ended.
    fn end(mut self) -> (String, ExitStatus) {
        loop {
            match self.pieces.recv_timeout(PATIENCE) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("no end: {:?}", self.seen),
            }
        }
        (self.seen, self.child.wait().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

fn on_terminal(args: &[&str], no_color: bool) -> (String, ExitStatus) {
    let mut command = program();
    command.args(args);
    if no_color {
        command.env("NO_COLOR", "1");
    }
    Terminal::start(command, On::Both).end()
}

#[test]
fn long_lists_are_shortened_and_the_flag_for_all_is_named() {
    let (short, status) = on_terminal(&["inspect", "fixtures/tiny-llama"], true);
    assert!(status.success());
    assert!(
        short.contains("... and 19 tensors more: --all shows them"),
        "{short}"
    );
    assert!(!short.contains("model.norm.weight"), "{short}");
    let (all, _) = on_terminal(&["inspect", "fixtures/tiny-llama", "--all"], true);
    assert!(
        all.contains("model.norm.weight") && !all.contains("more: --all"),
        "{all}"
    );
}

#[test]
fn colours_are_for_terminals_and_not_for_who_wants_none() {
    let args = ["inspect", "fixtures/tiny-llama", "--limit", "1GiB"];
    let (coloured, _) = on_terminal(&args, false);
    assert!(coloured.contains("\u{1b}[32myes: "), "{coloured:?}");
    let (plain, _) = on_terminal(&args, true);
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
}

#[test]
fn progress_is_drawn_on_stderr_and_not_for_programs() {
    let verify = |more: &[&str]| {
        let mut command = program();
        command.args(["verify", "fixtures/tiny-llama"]).args(more);
        let (drawn, status) = Terminal::start(command, On::Stderr).end();
        assert!(status.success(), "{drawn:?}");
        drawn
    };
    let drawn = verify(&[]);
    assert!(drawn.contains("reading ["), "{drawn:?}");
    assert_eq!(verify(&["--json"]), "");
}

/// A server that answers, or not, as it is told.
fn moody() -> (Server, Arc<Mutex<bool>>) {
    let well = Arc::new(Mutex::new(true));
    let asked = Arc::clone(&well);
    let server = Server::new(move |_| {
        if *asked.lock().unwrap() {
            json(server::DOCUMENT)
        } else {
            Reply::Bytes(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_vec())
        }
    });
    (server, well)
}

fn top(server: &Server) -> Terminal {
    let mut command = program();
    command.args([
        "top",
        server.url(),
        "--interval",
        "100ms",
        "--timeout",
        "30s",
    ]);
    Terminal::start(command, On::Both)
}

#[test]
fn a_live_table_survives_its_server_and_gives_the_terminal_back() {
    let (server, well) = moody();
    let mut terminal = top(&server);
    terminal.expect(ENTER);
    terminal.expect("request-42 for 0.50 s");
    *well.lock().unwrap() = false;
    terminal.expect("no answer");
    let told = terminal.expect("Ctrl-C ends");
    assert!(
        told.contains(" since ") && told.contains("it answers 503"),
        "{told:?}"
    );
    assert!(
        told.contains("What it said last:") && told.contains("pirate"),
        "{told:?}"
    );
    *well.lock().unwrap() = true;
    // A page without trouble begins with the model.
    terminal.expect("\u{1b}[H\u{1b}[K\u{1b}[1mtiny-llama");
    terminal.signal(Signal::INT);
    let (rest, status) = terminal.end();
    assert_eq!(status.code(), Some(0), "{rest:?}");
    assert!(rest.ends_with(LEAVE), "{rest:?}");
}

/// Ctrl-C is heard while a server is waited for, and so are other ends.
#[test]
fn the_terminal_comes_back_while_a_server_is_silent() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let server = Server::new(|_| Reply::Silence);
        let mut terminal = top(&server);
        terminal.expect("asking ");
        terminal.signal(signal);
        let (rest, status) = terminal.end();
        assert_eq!(status.code(), Some(0), "{signal:?}: {rest:?}");
        assert!(rest.ends_with(LEAVE), "{signal:?}: {rest:?}");
    }
}

#[test]
fn a_page_is_never_larger_than_its_terminal() {
    let sets: Vec<String> = (0..200)
        .map(|n| {
            format!(
                r#"{{"name":"set-{n}-{}","generation":1}}"#,
                "long".repeat(20)
            )
        })
        .collect();
    let body = format!(
        r#"{{"schema":1,"catalog":{{"sets":[{}]}}}}"#,
        sets.join(",")
    );
    let server = Server::new(move |_| json(&body));
    let mut terminal = top(&server);
    terminal.expect("set-0-");
    terminal.expect("\u{1b}[H");
    let frame = terminal.expect("Ctrl-C ends");
    let lines: Vec<&str> = frame.split("\r\n").collect();
    assert!(lines.len() <= 24, "{}", lines.len());
    for line in lines {
        let width = console::measure_text_width(line);
        assert!(width <= 100, "{width}: {line:?}");
    }
    assert!(frame.contains("more, with fewer leases"), "{frame:?}");
    terminal.signal(Signal::INT);
    terminal.end();
}

#[test]
fn with_once_there_is_no_other_screen() {
    let server = Server::new(|_| json(server::DOCUMENT));
    let mut command = program();
    command.args(["top", server.url(), "--once"]);
    let (page, status) = Terminal::start(command, On::Both).end();
    assert!(status.success() && page.contains("request-42"), "{page:?}");
    assert!(!page.contains(ENTER), "{page:?}");
}
