//! Documents made to hurt: each is refused with its reason, within 1 MiB of memory, and nothing is left
//! behind. What was read of each file is printed (`--nocapture`), so is the memory it took.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weighbridge::source::{Checkpoint, InMemory, OpenOptions, PeftAdapter};
use weighbridge::{Error, WeightRegistry};

/// Counts what this thread has allocated: opening a source starts no other.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    NOW.set(NOW.get() + bytes);
    PEAK.set(PEAK.get().max(NOW.get()));
}

// SAFETY: hands everything on to `System`; counting allocates nothing (the cells are constants without
// destructors).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is `System`'s, which allocated it.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time: descriptors and bytes read are the process's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const MIB: usize = 1 << 20;

/// Open descriptors, where the system tells.
fn descriptors() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}

/// Bytes read so far, where the system tells.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Runs `open` and returns its answer with the most memory that it held at once.
fn measured<T>(what: &str, open: impl FnOnce() -> T) -> (T, usize) {
    let (before, read) = (NOW.get(), bytes_read());
    PEAK.set(NOW.get());
    let answer = open();
    let peak = (PEAK.get() - before) as usize;
    let read = bytes_read().saturating_sub(read);
    println!("{what}: {read} bytes read, {peak} bytes held at most");
    (answer, peak)
}

/// `open` must refuse with every one of `words`, within a mebibyte, and leave nothing open.
#[track_caller]
fn refused<T>(what: &str, open: impl FnOnce() -> Result<T, Error>, words: &[&str]) {
    let before = descriptors();
    let (answer, peak) = measured(what, || open().err());
    let error = answer.unwrap_or_else(|| panic!("{what}: was accepted"));
    let text = error.to_string();
    assert!(error.is_malformed(), "{what}: {text}");
    for word in words {
        assert!(
            text.contains(word),
            "{what}: {word:?} is missing in: {text}"
        );
    }
    assert!(
        text.len() < 4096,
        "{what}: a message of {} bytes",
        text.len()
    );
    assert!(peak < MIB, "{what}: {peak} bytes for a refusal: {text}");
    assert_eq!(descriptors(), before, "{what}: descriptors");
}

/// `begin`, then `fill` as often as it takes to be `len` long, then `end`.
fn filled(len: usize, begin: &str, fill: &str, end: &str) -> Vec<u8> {
    let mut text = String::with_capacity(len);
    text.push_str(begin);
    while text.len() + fill.len() + end.len() <= len {
        text.push_str(fill);
    }
    text.push_str(end);
    text.into_bytes()
}

/// `begin`, then what `entry` says for 0, 1, ..., then `end`.
fn listed(count: usize, begin: &str, entry: impl Fn(usize) -> String, end: &str) -> Vec<u8> {
    let entries: Vec<String> = (0..count).map(entry).collect();
    format!("{begin}{}{end}", entries.join(",")).into_bytes()
}

/// A file with this header and no data.
fn with_header(header: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file
}

fn empty_tensor(name: impl std::fmt::Display) -> String {
    format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)
}

/// What is wrong with a document, and the words that must say so.
type Row = (&'static str, Vec<u8>, &'static [&'static str]);

/// Makes a document when its turn comes: they are big.
type Make = Box<dyn Fn() -> Vec<u8>>;

/// Headers of `len` bytes.
fn headers(len: usize) -> impl Iterator<Item = Row> {
    const END: &str = r#"],"data_offsets":[0,0]}}"#;
    let of = move |begin, fill, end| move || filled(len, begin, fill, end);
    let rows: Vec<(&str, Make, &[&str])> = vec![
        (
            "one tensor with millions of dimensions",
            Box::new(of(r#"{"t":{"dtype":"U8","shape":[1"#, ",1", END)),
            &["\"t\"", "16384 bytes"],
        ),
        (
            "one giant name",
            Box::new(of("{\"", "a", r#"":{"dtype":"U8"}}"#)),
            &["\"aaaa", "…", "16384 bytes"],
        ),
        (
            "one giant name in escapes",
            Box::new(of("{\"", "\\u0061", r#"":{"dtype":"U8"}}"#)),
            &["16384 bytes"],
        ),
        (
            "one giant dtype",
            Box::new(of(
                r#"{"t":{"dtype":""#,
                "F",
                r#"","shape":[0],"data_offsets":[0,0]}}"#,
            )),
            &["\"t\"", "16384 bytes"],
        ),
        (
            "one giant key of a field",
            Box::new(of(r#"{"t":{""#, "k", r#"":0}}"#)),
            &["\"t\"", "16384 bytes"],
        ),
        (
            "a field that nobody knows",
            Box::new(of(r#"{"t":{"new":[0"#, ",0", r#"],"dtype":"U8"}}"#)),
            &["\"t\"", "16384 bytes"],
        ),
        (
            "a giant number",
            Box::new(of(r#"{"t":{"dtype":"U8","shape":[1"#, "0", END)),
            &["\"t\"", "16384 bytes"],
        ),
        (
            "the same name again and again",
            Box::new(of(
                "{",
                r#""the same name":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":"0123456789"},"#,
                r#""t":0}"#,
            )),
            &["\"the same name\"", "twice"],
        ),
        (
            "more tensors than are read",
            Box::new(of("{", r#""t":{},"#, r#""t":{}}"#)),
            &["more than 250000 tensors"],
        ),
        (
            "a giant value in the metadata",
            Box::new(of(r#"{"__metadata__":{"k":""#, "a", r#""}}"#)),
            &["__metadata__", "1048576 bytes"],
        ),
        (
            "a giant key in the metadata",
            Box::new(of(r#"{"__metadata__":{""#, "a", r#"":""}}"#)),
            &["__metadata__", "1048576 bytes"],
        ),
        (
            "millions of entries in the metadata",
            Box::new(of(r#"{"__metadata__":{"#, r#""k":"v","#, r#""k":"v"}}"#)),
            &["__metadata__", "1048576 bytes"],
        ),
        (
            "metadata again and again",
            Box::new(of("{", r#""__metadata__":{},"#, r#""__metadata__":{}}"#)),
            &["__metadata__", "twice"],
        ),
        (
            "deep arrays",
            Box::new(of(r#"{"t":"#, "[", "}")),
            &["more than 32 deep"],
        ),
        (
            "deep objects",
            Box::new(of(r#"{"t":"#, r#"{"a":"#, "}")),
            &["more than 32 deep"],
        ),
        (
            "spaces before it",
            Box::new(of("", " ", "{}")),
            &["16384 bytes"],
        ),
        (
            "something after it",
            Box::new(of("{}", " ", "x")),
            &["after the end"],
        ),
        (
            "no end",
            Box::new(of(
                "{",
                r#""t":{"w":"0123456789 0123456789 0123456789 0123456789 0123456789 0123456789"},"#,
                "",
            )),
            &["ends before"],
        ),
        ("no JSON", Box::new(of("", "\u{1}", "")), &["JSON object"]),
        (
            "commas",
            Box::new(of(r#"{"a""#, ",", "}")),
            &["','", "\"a\""],
        ),
        (
            "colons",
            Box::new(of(r#"{"a""#, ":", "}")),
            &["':'", "\"a\""],
        ),
        (
            "closing brackets",
            Box::new(of("{", "}", "")),
            &["after the end"],
        ),
        (
            "words",
            Box::new(of(r#"{"a":"#, "null ", "}")),
            &["\"a\"", "16384 bytes"],
        ),
        (
            "tensors that all have the same bytes",
            Box::new(move || {
                let entry =
                    |at| format!(r#""{at:060}":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#);
                let mut header = listed(len / 116, "{", entry, "}");
                header.resize(len, b' ');
                header
            }),
            &["ends at 8", "0 bytes of data"],
        ),
    ];
    rows.into_iter()
        .map(|(what, make, words)| (what, make(), words))
}

#[test]
fn headers_are_refused_in_bounded_memory() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for (what, header, words) in headers(16 * MIB) {
        let file = with_header(&header);
        std::fs::write(&path, &file).unwrap();
        refused(what, || Checkpoint::open(&path), words);
        refused(what, || InMemory::from_safetensors(&file), words);
    }
}

#[test]
fn the_length_of_a_header_is_bounded_whatever_is_asked_for() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // Sparse: as long as it claims, without taking the space.
    let claim = |bytes: u64| {
        std::fs::write(&path, bytes.to_le_bytes()).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(8 + bytes).unwrap();
    };
    let wide = OpenOptions::new()
        .max_header_bytes(u64::MAX)
        .max_tensors(usize::MAX);
    claim(100_000_000);
    let words = &["claims a header of 100000000 bytes", "at most 16777216"];
    refused("100 MB, as it is", || Checkpoint::open(&path), words);
    let words = &["'\\0'", "JSON object"];
    refused(
        "100 MB of zeros",
        || Checkpoint::open_with(&path, &wide),
        words,
    );
    claim(100_000_001);
    let words = &["claims a header of 100000001 bytes", "at most 100000000"];
    refused(
        "more than 100 MB",
        || Checkpoint::open_with(&path, &wide),
        words,
    );
    std::fs::write(&path, (u64::MAX >> 2).to_le_bytes()).unwrap();
    refused(
        "an exabyte",
        || Checkpoint::open_with(&path, &wide),
        &["at most 100000000"],
    );

    // Within what was asked for, everything else is as bounded as before.
    for (what, header, words) in headers(20 * MIB) {
        if words != ["more than 250000 tensors"] {
            std::fs::write(&path, with_header(&header)).unwrap();
            refused(what, || Checkpoint::open_with(&path, &wide), words);
        }
    }
    let header = listed(1_000_001, "{", |at| format!("\"{at}\":{{}}"), "}");
    std::fs::write(&path, with_header(&header)).unwrap();
    let words = &["more than 1000000 tensors"];
    refused(
        "a million and one",
        || Checkpoint::open_with(&path, &wide),
        words,
    );

    // A long header that is legal, and the same one as it is.
    let header = filled(17 * MIB, &format!("{{{}}}", empty_tensor("t")), " ", "");
    std::fs::write(&path, with_header(&header)).unwrap();
    refused(
        "17 MiB, as it is",
        || Checkpoint::open(&path),
        &["at most 16777216"],
    );
    let (opened, peak) = measured("17 MiB of padding", || Checkpoint::open_with(&path, &wide));
    opened.expect("padding is legal");
    assert!(peak < MIB, "{peak} bytes for padding");
}

#[test]
fn as_many_tensors_as_are_read_and_one_more() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let most = 250_000;
    let header = |count| with_header(&listed(count, r#"{"__metadata__":{},"#, empty_tensor, "}"));
    std::fs::write(&path, header(most)).unwrap();
    let (opened, peak) = measured("250,000 tensors", || Checkpoint::open(&path));
    drop(opened.expect("it is legal"));
    assert!(peak < most * 512, "{peak} bytes for {most} tensors");
    std::fs::write(&path, header(most + 1)).unwrap();
    refused(
        "one more",
        || Checkpoint::open(&path),
        &["more than 250000 tensors"],
    );
    let few = OpenOptions::new().max_tensors(2);
    std::fs::write(&path, header(3)).unwrap();
    let words = &["more than 2 tensors"];
    refused("three of two", || Checkpoint::open_with(&path, &few), words);
}

#[test]
fn indices_are_refused_in_bounded_memory() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors.index.json");
    let len = 20 * MIB;
    let of = |begin, fill, end| filled(len, begin, fill, end);
    let shards = |count| {
        let entry = |at| format!(r#""t{at}":"model-{at:05}.safetensors""#);
        listed(count, r#"{"weight_map":{"#, entry, "}}")
    };
    let rows: Vec<Row> = vec![
        (
            "more tensors than are read",
            of(r#"{"weight_map":{"#, r#""a":"b","#, r#""a":"b"}}"#),
            &["more than 250000 tensors"],
        ),
        (
            "the same tensor again and again",
            of(
                r#"{"weight_map":{"#,
                &format!(r#""a":"{}","#, "b".repeat(90)),
                r#""a":"b"}}"#,
            ),
            &["\"a\"", "twice"],
        ),
        (
            "more shards than are read",
            shards(4097),
            &["more than 4096 shards"],
        ),
        (
            "one giant tensor name",
            of(r#"{"weight_map":{""#, "a", r#"":"b"}}"#),
            &["weight_map", "16384 bytes"],
        ),
        (
            "one giant shard name",
            of(r#"{"weight_map":{"a":""#, "b", r#""}}"#),
            &["weight_map", "16384 bytes"],
        ),
        (
            "giant metadata",
            of(r#"{"metadata":{"k":[0"#, ",0", r#"]},"weight_map":{}}"#),
            &["\"metadata\"", "16384 bytes"],
        ),
        (
            "metadata again and again",
            of("{", r#""metadata":{},"#, r#""weight_map":{}}"#),
            &["16384 bytes"],
        ),
        (
            "tables again and again",
            of("{", r#""weight_map":{},"#, r#""weight_map":{}}"#),
            &["16384 bytes"],
        ),
        (
            "two tables",
            br#"{"weight_map":{},"weight_map":{}}"#.to_vec(),
            &["weight_map", "twice"],
        ),
        (
            "deep",
            of(r#"{"weight_map":"#, r#"{"a":"#, "}"),
            &["more than 32 deep"],
        ),
        ("an array", of("[", "{},", "{}]"), &["JSON object"]),
    ];
    for (what, index, words) in rows {
        std::fs::write(&path, &index).unwrap();
        let words = [words, &["model.safetensors.index.json"]].concat();
        refused(what, || Checkpoint::open(dir.path()), &words);
    }
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((64 * MIB + 1) as u64).unwrap();
    let words = &["67108865 bytes", "at most 67108864"];
    refused(
        "64 MiB and one byte",
        || Checkpoint::open(dir.path()),
        words,
    );
}

#[test]
fn configurations_are_refused_in_bounded_memory() {
    let _alone = alone();
    let len = MIB;
    let of = |begin, fill, end| filled(len, begin, fill, end);
    let rows: Vec<Row> = vec![
        ("one giant key", of("{\"", "a", "\":0}"), &["16384 bytes"]),
        (
            "one giant value",
            of(r#"{"r":""#, "a", "\"}"),
            &["\"r\"", "16384 bytes"],
        ),
        (
            "a giant number",
            of(r#"{"r":1"#, "0", "}"),
            &["\"r\"", "16384 bytes"],
        ),
        (
            "more options than there are",
            listed(60_000, "{", |at| format!("\"{at}\":null"), "}"),
            &["more than 1024 options"],
        ),
        (
            "deep arrays",
            of(r#"{"r":"#, "[", "}"),
            &["more than 32 deep"],
        ),
        ("an array", of("[", "0,", "0]"), &["JSON object"]),
        ("spaces", of("", " ", "{}"), &["16384 bytes"]),
        ("no end", of("{\"r\":[0", ",0", ""), &["ends before"]),
        (
            "too long",
            filled(MIB + 1, "{}", " ", ""),
            &["1048577 bytes", "at most 1048576"],
        ),
    ];
    let only_adapters: Vec<Row> = vec![
        (
            "lists in place of a number",
            of(r#"{"peft_type":"LORA","r":[0"#, ",0", "]}"),
            &["r must be"],
        ),
        (
            "more patterns than are tried",
            listed(
                60_000,
                r#"{"peft_type":"LORA","r":1,"lora_alpha":1,"rank_pattern":{"#,
                |at| format!("\"{at}\":1"),
                "}}",
            ),
            &["rank_pattern", "2048 keys"],
        ),
        (
            "the same pattern again and again",
            of(r#"{"rank_pattern":{"#, "\"q\":1,", "\"q\":1}}"),
            &["rank_pattern", "2048 keys"],
        ),
        (
            "expressions that explode",
            listed(
                1000,
                r#"{"peft_type":"LORA","r":1,"lora_alpha":1,"rank_pattern":{"#,
                |at| format!("\"((a{{50}}){{50}}){{{}}}\":1", at + 50),
                "}}",
            ),
            &["rank_pattern", "size"],
        ),
        (
            "expressions without end",
            listed(
                2000,
                r#"{"peft_type":"LORA","r":1,"lora_alpha":1,"alpha_pattern":{"#,
                |at| format!("\"[ab]{at}\":1"),
                "}}",
            ),
            &["alpha_pattern", "more than 64"],
        ),
    ];
    let base = tempfile::tempdir().unwrap();
    let empty = with_header(b"{}");
    std::fs::write(base.path().join("model.safetensors"), &empty).unwrap();
    let adapter = tempfile::tempdir().unwrap();
    std::fs::write(adapter.path().join("adapter_model.safetensors"), &empty).unwrap();
    let write = |dir: &Path, name: &str, config: &[u8]| {
        std::fs::write(dir.join(name), config).unwrap();
    };
    for (what, config, words) in rows {
        write(base.path(), "config.json", &config);
        refused(what, || Checkpoint::open(base.path()), words);
        write(adapter.path(), "adapter_config.json", &config);
        refused(what, || PeftAdapter::open(adapter.path()), words);
    }
    for (what, config, words) in only_adapters {
        write(adapter.path(), "adapter_config.json", &config);
        refused(what, || PeftAdapter::open(adapter.path()), words);
    }
}

/// A registry that refused all of it holds nothing, and still works.
#[test]
fn what_was_refused_leaves_no_trace_in_a_registry() {
    let _alone = alone();
    let registry = WeightRegistry::builder()
        .limit_bytes(MIB as u64)
        .build()
        .unwrap();
    for (what, header, _) in headers(2 * MIB) {
        let file = with_header(&header);
        let open = || -> Result<_, Error> {
            Ok(registry.publish("x", InMemory::from_safetensors(&file)?)?)
        };
        open().expect_err(what);
        assert_eq!(registry.ledger().total(), 0, "{what}");
        assert_eq!(registry.lookup("x"), None, "{what}");
    }
    let good = with_header(format!("{{{}}}", empty_tensor("t")).as_bytes());
    registry
        .publish("x", InMemory::from_safetensors(&good).unwrap())
        .unwrap();
}
