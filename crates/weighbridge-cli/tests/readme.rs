//! What the README shows is what the program says: its outputs, in full, are the snapshots.
//!
//! Only times are left out of the comparison, and the port of the server.

mod common;
mod server;

use common::program;
use server::{Server, json};

const README: &str = include_str!("../README.md");

/// The commands that the README runs, each with what it shows, which is everything up to the next one.
fn shown() -> Vec<(Vec<&'static str>, String)> {
    let mut shown: Vec<(Vec<&str>, String)> = Vec::new();
    let blocks = README.split("```console\n").skip(1);
    for block in blocks.map(|block| block.split("```").next().unwrap_or_default()) {
        for line in block.lines() {
            match (line.strip_prefix("$ "), shown.last_mut()) {
                (Some(command), _) => {
                    let words = command.split_whitespace().collect();
                    shown.push((words, String::new()));
                }
                (None, Some((_, output))) => {
                    output.push_str(line);
                    output.push('\n');
                }
                (None, None) => panic!("{line:?} is nobody's output"),
            }
        }
    }
    shown
}

/// `read  837696 (818.1 KiB) in 1.7 ms, 0.48 GB/s`: no run is as fast as another.
fn without_times(text: &str) -> String {
    let line = |line: &str| {
        let timed = line.starts_with("read ") && line.ends_with(" GB/s");
        let until = line.find(" in ").filter(|_| timed);
        let times = line.trim_start().starts_with("\"seconds\"")
            || line.trim_start().starts_with("\"bytes_per_second\"");
        let end = until.unwrap_or(if times { 0 } else { line.len() });
        format!("{}\n", &line[..end])
    };
    text.lines().map(line).collect()
}

#[test]
fn what_the_readme_shows_is_what_the_program_says() {
    let server = Server::new(|_| json(server::DOCUMENT));
    let place = server.url().strip_prefix("http://").unwrap();
    let mut compared = Vec::new();
    for (words, expected) in shown() {
        if words[0] != "weighbridge" {
            assert_eq!(expected, "", "{words:?} is not run here");
            continue;
        }
        let mut codes = None;
        let mut args = Vec::new();
        let mut rest = words[1..].iter();
        while let Some(&word) = rest.next() {
            // `; echo $?` shows the exit code.
            if let Some(last) = word.strip_suffix(';') {
                args.push(last.to_owned());
                assert_eq!(rest.as_slice(), ["echo", "$?"]);
                codes = Some(());
                break;
            }
            args.push(word.replace("127.0.0.1:8000", place));
        }
        let output = program().args(&args).output().unwrap();
        let mut said = String::from_utf8(output.stdout).unwrap();
        said.push_str(&String::from_utf8(output.stderr).unwrap());
        if codes.is_some() {
            said.push_str(&format!("{}\n", output.status.code().unwrap()));
        } else {
            assert!(output.status.success(), "{words:?}: {said}");
        }
        let said = said.replace(place, "127.0.0.1:8000");
        assert_eq!(without_times(&said), without_times(&expected), "{words:?}");
        compared.push(words[1]);
    }
    for command in ["inspect", "verify", "top"] {
        assert!(compared.contains(&command), "{command}: {compared:?}");
    }
}
