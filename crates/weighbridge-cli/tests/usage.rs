//! The command line itself: help, mistakes, readers that go.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{program, run};

#[test]
fn help_has_examples_and_exit_codes() {
    for args in [
        &["--help"][..],
        &["inspect", "--help"],
        &["verify", "-h"],
        &["top", "--help"],
        #[cfg(feature = "serve")]
        &["serve", "--help"],
    ] {
        let said = run(args);
        assert_eq!((said.code, &*said.stderr), (0, ""), "{said:?}");
        for word in ["Examples:", "Exit codes:", "  3  it cannot be read"] {
            assert!(said.stdout.contains(word), "{word}: {said:?}");
        }
    }
    let version = run(["--version"]);
    let expected = format!("weighbridge {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((version.code, version.stdout), (0, expected));
}

#[test]
fn mistakes_have_a_code_of_their_own() {
    for args in [
        &[][..],
        &["weigh"],
        &["inspect"],
        &["inspect", "x", "--limit", "2G"],
        &["verify", "x", "--expect", "d51cc72d"],
        &["verify", "x", "--declared", ""],
        &["top", "127.0.0.1:1", "--interval", "1ms"],
        &["top", "https://127.0.0.1"],
        &["top", "127.0.0.1:1", "--token", "two\nlines"],
    ] {
        let said = run(args);
        assert_eq!((said.code, &*said.stdout), (2, ""), "{said:?}");
        assert!(!said.stderr.is_empty());
        if args.is_empty() {
            continue;
        }
        let json = run(args.iter().chain(&["--json"]));
        assert_eq!((json.code, &*json.stderr), (2, ""), "{json:?}");
        let error = &json.json()["error"];
        assert_eq!(
            (&error["class"], &error["exit"]),
            (&"usage".into(), &2.into())
        );
    }
}

/// `| head` closes the pipe: no message, and the verdict's own code.
#[test]
fn a_reader_that_goes_is_no_failure() {
    for (args, code) in [
        (&["inspect", "fixtures/tiny-llama", "--json"][..], 0),
        (&["inspect", "fixtures/tiny-llama", "--limit", "1"], 1),
        (&["--help"], 0),
    ] {
        let mut command = program();
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let mut told = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut told)
            .unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), &*told), (Some(code), ""), "{args:?}");
    }
}

#[test]
fn nothing_is_coloured_and_no_progress_is_drawn_where_nobody_looks() {
    for args in [
        ["inspect", "fixtures/tiny-llama"],
        ["verify", "fixtures/tiny-llama"],
    ] {
        let said = run(args);
        assert!(!said.stdout.contains('\u{1b}'), "{said:?}");
        assert_eq!(said.stderr, "");
    }
}
