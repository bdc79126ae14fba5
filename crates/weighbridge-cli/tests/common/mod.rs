//! What the tests of the built program share: running it, fixtures, broken copies of them.

#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub const IDENTITY: &str =
    "blake3:d51cc72dcdbfc87f4a3eef0655c851266640e6fc18f406694c81f0bb71599242";

/// The program, in the repository's folder, with nothing of the caller's environment that it looks at.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weighbridge"));
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env_remove("WEIGHBRIDGE_TOKEN")
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    command
}

/// What it said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    pub fn json(&self) -> Value {
        assert!(self.stdout.is_ascii(), "{self:?}");
        let document: Value = serde_json::from_str(&self.stdout).expect(&self.stdout);
        assert_eq!(document["schema"], 1, "{document}");
        document
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Said {
            code: output.status.code().expect("it was killed"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Said {
    program().args(args).output().expect("it runs").into()
}

/// Runs `command path`, which must be refused with this code and all of these words, as text on stderr
/// and as JSON on stdout.
#[track_caller]
pub fn refused(command: &str, path: &Path, more: &[&str], code: i32, words: &[&str]) {
    let args = || [OsStr::new(command), path.as_os_str()];
    let more = || more.iter().map(OsStr::new);
    let text = run(args().into_iter().chain(more()));
    assert_eq!(text.code, code, "{text:?}");
    assert_eq!(text.stdout, "", "{text:?}");
    assert_eq!(text.stderr.lines().count(), 1, "{text:?}");
    let json = run(args()
        .into_iter()
        .chain(more())
        .chain([OsStr::new("--json")]));
    assert_eq!((json.code, &*json.stderr), (code, ""), "{json:?}");
    let error = json.json()["error"].clone();
    assert_eq!(error["exit"], code);
    let message = error["message"].as_str().unwrap();
    for word in words {
        assert!(text.stderr.contains(word), "{word:?}: {text:?}");
        assert!(message.contains(word), "{word:?}: {message}");
    }
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

/// A copy of a fixture, to be broken.
pub fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// A safetensors file with this header and these data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A checkpoint of these bytes in one file.
pub fn checkpoint(file: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

/// What a terminal could take for more than text.
pub fn steers(text: &str) -> bool {
    let direction = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .any(|c| (c.is_control() && c != '\n') || direction(c))
}
