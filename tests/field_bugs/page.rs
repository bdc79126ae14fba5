//! docs/FIELD_BUGS.md: every row of it is answered by a test that is there, or says why there is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The functions of a file that are tests.
fn tests_of(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]").skip(1).filter_map(|after| {
        let name = after.split_once("fn ")?.1;
        Some(&name[..name.find('(')?])
    })
}

/// What is in backticks in a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_row_has_its_test_or_its_reason() {
    let page = std::fs::read_to_string(root().join("docs/FIELD_BUGS.md")).unwrap();
    let mut files = Vec::new();
    rust_files(&root().join("tests"), &mut files);
    rust_files(&root().join("src"), &mut files);
    let texts: Vec<String> = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let all: BTreeSet<&str> = texts.iter().flat_map(|text| tests_of(text)).collect();
    let (mut numbers, mut named) = (Vec::new(), BTreeSet::new());
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(number) = cells[0].parse::<usize>() else {
            continue; // The head of a table.
        };
        numbers.push(number);
        let [_, thread, happened, cause, test] = cells[..] else {
            panic!("{line}")
        };
        assert!(thread.contains("https://"), "{line}");
        assert!(!happened.is_empty() && !cause.is_empty(), "{line}");
        let tests = quoted(test);
        assert!(!tests.is_empty() || test.starts_with("none: "), "{line}");
        for test in tests {
            assert!(all.contains(test), "row {number}: there is no test {test}");
            named.insert(test);
        }
    }
    assert_eq!(numbers, (1..=55).collect::<Vec<_>>());
    // The other way round: nothing is answered here that the page does not know.
    let mut own = Vec::new();
    rust_files(&root().join("tests/field_bugs"), &mut own);
    for file in own.iter().filter(|file| !file.ends_with("page.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        for test in tests_of(&text) {
            assert!(named.contains(test), "the page does not name {test}");
        }
    }
}
