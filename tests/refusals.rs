//! Bad input: a typed error that names file, tensor and reason, and nothing left behind.

mod support;

use support::{adapter, copy, file_of, fixture, refused, registry, rewrite, tiny};
use tempfile::TempDir;
use weighbridge::source::{Checkpoint, InMemory, PeftAdapter, Source};
use weighbridge::{Dtype, Error, WeightKind};

/// A header and its data as a file, as a directory, and in memory: refused each time, with each word.
#[track_caller]
fn refused_header(header: &[u8], data: usize, words: &[&str]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 7);
    refused_file(&bytes, words);
}

#[track_caller]
fn refused_file(bytes: &[u8], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let words = [words, &["model.safetensors"]].concat();
    let error = refused(dir.path(), &words, || Checkpoint::open(&path));
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    refused(dir.path(), &words, || Checkpoint::open(dir.path()));
    let words = &words[..words.len() - 1];
    refused(dir.path(), words, || InMemory::from_safetensors(bytes));
}

/// A header with one tensor `t`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"t":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn one_tensor_that_lies() {
    for (dtype, shape, offsets, data, words) in [
        // Longer or shorter than its file, its shape, or anything.
        (
            "\"U8\"",
            "[4]",
            "[0,4]",
            3,
            &["ends at 4", "3 bytes of data", "truncated"][..],
        ),
        ("\"U8\"", "[4]", "[0,3]", 3, &["4 bytes", "are 3"]),
        ("\"U8\"", "[4]", "[0,5]", 5, &["4 bytes", "are 5"]),
        ("\"U8\"", "[4]", "[4,0]", 4, &["before it begins"]),
        ("\"U8\"", "[4]", "[1,5]", 5, &["hole"]),
        ("\"U8\"", "[0]", "[1,1]", 1, &["hole"]),
        ("\"F4\"", "[3]", "[0,1]", 1, &["within a byte"]),
        (
            "\"U8\"",
            "[4]",
            "[18446744073709551612,18446744073709551615]",
            4,
            &["4 bytes", "are 3"],
        ),
        (
            "\"U8\"",
            "[3]",
            "[18446744073709551612,18446744073709551615]",
            3,
            &["3 bytes of data"],
        ),
        (
            "\"X\"",
            "[3]",
            "[0,18446744073709551615]",
            3,
            &["3 bytes of data"],
        ),
        ("\"U8\"", "[4294967296,4294967296,4]", "[0,4]", 4, &["2^64"]),
        ("\"F64\"", "[2305843009213693952]", "[0,0]", 0, &["2^64"]),
        ("\"U8\"", "[18446744073709551615]", "[0,4]", 4, &["2^64"]),
        // Numbers of the wrong kind.
        (
            "\"U8\"",
            "[18446744073709551616]",
            "[0,4]",
            4,
            &["e+19`", "usize"],
        ),
        ("\"U8\"", "[-1]", "[0,4]", 4, &["`-1`", "usize"]),
        ("\"U8\"", "[4.0]", "[0,4]", 4, &["`4.0`", "usize"]),
        ("\"U8\"", "[4e0]", "[0,4]", 4, &["`4.0`", "usize"]),
        ("\"U8\"", "[\"4\"]", "[0,4]", 4, &["string \"4\""]),
        ("\"U8\"", "[1e999]", "[0,4]", 4, &["out of range"]),
        ("\"U8\"", "[NaN]", "[0,4]", 4, &["expected"]),
        ("\"U8\"", "[04]", "[0,4]", 4, &["invalid number"]),
        ("\"U8\"", "[4]", "[-1,3]", 4, &["`-1`", "u64"]),
        ("\"U8\"", "[4]", "[0.0,4.0]", 4, &["`0.0`", "u64"]),
        (
            "\"U8\"",
            "[4]",
            "[0,18446744073709551616]",
            4,
            &["e+19`", "u64"],
        ),
        // Fields of the wrong form.
        (
            "\"U8\"",
            "[1,1,1,1,1,1,1,1,1]",
            "[0,1]",
            1,
            &["9 dimensions", "at most 8"],
        ),
        ("\"U8\"", "4", "[0,4]", 4, &["dimensions"]),
        ("\"U8\"", "{\"0\":4}", "[0,4]", 4, &["dimensions"]),
        ("\"U8\"", "null", "[0,4]", 4, &["dimensions"]),
        ("\"U8\"", "[[4]]", "[0,4]", 4, &["sequence"]),
        ("\"U8\"", "[4]", "[0]", 4, &["length 1"]),
        ("\"U8\"", "[4]", "[0,4,4]", 4, &["trailing"]),
        ("\"U8\"", "[4]", "4", 4, &["integer `4`"]),
        ("\"U8\"", "[4]", "{}", 4, &["map"]),
        ("1", "[4]", "[0,4]", 4, &["integer `1`", "string"]),
        ("null", "[4]", "[0,4]", 4, &["null", "string"]),
        ("\"\"", "[4]", "[0,4]", 4, &["dtype", "0 bytes"]),
        ("\"U8\\u0000\"", "[4]", "[0,4]", 4, &["dtype", "control"]),
        (
            "\"U8\",\"dtype\":\"U8\"",
            "[4]",
            "[0,4]",
            4,
            &["duplicate field `dtype`"],
        ),
        (
            "\"U8\",\"shape\":[4]",
            "[4]",
            "[0,4]",
            4,
            &["duplicate field `shape`"],
        ),
    ] {
        let words = [words, &["\"t\""]].concat();
        refused_header(one(dtype, shape, offsets).as_bytes(), data, &words);
    }
    let long = format!("\"{}\"", "D".repeat(65));
    refused_header(
        one(&long, "[4]", "[0,4]").as_bytes(),
        4,
        &["dtype", "65 bytes"],
    );
}

#[test]
fn headers_that_lie() {
    let t = one("\"U8\"", "[4]", "[0,4]");
    assert!(
        InMemory::from_safetensors(&file_of(&t, 4)).is_ok(),
        "the control"
    );
    let two = |a: &str, b: &str| {
        let tensor = |name, offsets: &str| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#)
        };
        format!("{{{},{}}}", tensor("a", a), tensor("b", b))
    };
    for (header, data, words) in [
        (t.clone(), 5, &["5 bytes of data", "end at 4"][..]),
        ("{}".to_owned(), 1, &["1 bytes of data", "end at 0"]),
        (
            one("\"U8\"", "4", "[0,4]"),
            4,
            &["\"t\"", "an array of dimensions"],
        ),
        (two("[0,4]", "[2,6]"), 6, &["\"b\"", "overlaps"]),
        (
            two("[2,6]", "[0,4]"),
            8,
            &["\"a\"", "overlaps", "begins at 2 where 4"],
        ),
        (two("[0,4]", "[0,4]"), 4, &["\"b\"", "overlaps"]),
        (
            two("[0,4]", "[0,4]"),
            8,
            &["\"b\"", "overlaps", "begins at 0 where 4"],
        ),
        (
            two("[0,4]", "[5,9]"),
            9,
            &["\"b\"", "hole", "begins at 5 where 4"],
        ),
        (
            two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""),
            8,
            &["\"a\"", "twice"],
        ),
        // The same name, written otherwise.
        (
            two("[0,4]", "[4,8]").replace("\"b\"", "\"\\u0061\""),
            8,
            &["\"a\"", "twice"],
        ),
        (
            r#"{"t":{"dtype":"U8","shape":[4]}}"#.to_owned(),
            4,
            &["\"t\"", "data_offsets"],
        ),
        (
            r#"{"t":{"dtype":"U8","data_offsets":[0,4]}}"#.to_owned(),
            4,
            &["\"t\"", "shape"],
        ),
        (
            r#"{"t":{"shape":[4],"data_offsets":[0,4]}}"#.to_owned(),
            4,
            &["\"t\"", "dtype"],
        ),
        (r#"{"t":{}}"#.to_owned(), 0, &["\"t\"", "missing field"]),
        (r#"{"t":[]}"#.to_owned(), 0, &["\"t\""]),
        (r#"{"t":null}"#.to_owned(), 0, &["\"t\"", "null"]),
        (
            r#"{"__metadata__":{"n":1}}"#.to_owned(),
            0,
            &["__metadata__", "strings"],
        ),
        (
            r#"{"__metadata__":null}"#.to_owned(),
            0,
            &["__metadata__", "strings"],
        ),
        (
            r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(),
            0,
            &["__metadata__", "twice"],
        ),
        ("not json".to_owned(), 0, &["header", "'n'", "object"]),
        ("[]".to_owned(), 0, &["header", "'['", "object"]),
        (String::new(), 0, &["header", "ends before"]),
        (t[..t.len() - 1].to_owned(), 4, &["header", "ends before"]),
        (format!("{t}{t}"), 4, &["header", "after the end"]),
        (t.replace(':', "="), 4, &["expected"]),
        (t.replace("}}", ",}}"), 4, &["\"t\"", "trailing comma"]),
        (t.replace("\"dtype\"", "'dtype'"), 4, &["\"t\""]),
        (t.replace("\"t\"", "t"), 4, &["header", "key"]),
        (
            format!(r#"{{"t":{}"#, "[".repeat(100)),
            4,
            &["header", "32 deep"],
        ),
    ] {
        refused_header(header.as_bytes(), data, words);
    }
}

#[test]
fn names_that_are_none() {
    let named = |name: &str| {
        let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
        format!("{{\"{name}\":{entry}}}")
    };
    let longest = "n".repeat(512);
    for name in [
        "a", " ", "é", "\u{202e}", &longest, "a/b", "..", "\\\"", "\\\\",
    ] {
        let file = file_of(&named(name), 0);
        assert!(InMemory::from_safetensors(&file).is_ok(), "{name:?}");
    }
    for (name, words) in [
        ("", &["0 bytes"][..]),
        (&format!("{longest}n"), &["1 to 512 bytes", "513"]),
        (&format!("{}é", &longest[..511]), &["513"]),
        (&"n".repeat(10_000), &["10000", "…"]),
        (r"a\u0000b", &["control", r"a\0b"]),
        (r"a\nb", &["control", r"a\nb"]),
        (r"\u001b[2J", &["control", r"\u{1b}"]),
        (r"\u007f", &["control"]),
        (r"\u0085", &["control"]),
        ("a\nb", &["header", "control"]),
        (r"\ud800", &["header", "escape"]),
        (r"\x41", &["header", "escape"]),
    ] {
        refused_header(named(name).as_bytes(), 0, words);
    }
    let mut no_utf8 = named("X").into_bytes();
    let at = no_utf8.iter().position(|&byte| byte == b'X').unwrap();
    no_utf8[at] = 0xff;
    refused_header(&no_utf8, 0, &["header", "UTF-8"]);
}

/// A name that is no name is told as far as a name goes, and that it went on.
#[test]
fn a_name_that_is_too_long_is_told_cut() {
    for (name, told) in [
        ("n".repeat(512) + "x", "n".repeat(512) + "…"),
        ("n".repeat(512), "n".repeat(512)),
    ] {
        // Not as long as it says, so that a name of legal length is refused, too.
        let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,0]}"#;
        let file = file_of(&format!("{{\"{name}\":{entry}}}"), 0);
        let refused = InMemory::from_safetensors(&file).unwrap_err();
        let Error::Malformed { tensor, .. } = &refused else {
            panic!("{refused}");
        };
        assert_eq!(*tensor, Some(told));
    }
}

#[test]
fn oddities_that_are_legal() {
    for (header, data) in [
        ("{}".to_owned(), 0),
        (r#"{"__metadata__":{}}"#.to_owned(), 0),
        (
            r#"{"__metadata__":{"a":"{\"b\":[1]}","c":"\u0000"}}"#.to_owned(),
            0,
        ),
        (format!("{{}}{}", " ".repeat(100_000)), 0),
        (format!("  \n{{}}{}", "\t\r\n ".repeat(9)), 0),
        (one("\"F32\"", "[]", "[0,4]"), 4),
        (one("\"F32\"", "[0]", "[0,0]"), 0),
        (one("\"F32\"", "[7,0,9]", "[0,0]"), 0),
        (one("\"U8\"", "[1,1,1,1,1,1,1,1]", "[0,1]"), 1),
        (one("\"F4\"", "[2]", "[0,1]"), 1),
        // Fields and dtypes of later versions.
        (one("\"U8\",\"new\":{\"a\":[1]}", "[4]", "[0,4]"), 4),
        (one("\"MXFP5\"", "[4]", "[0,3]"), 3),
        // Any order, any white space; tensors without bytes between others.
        (
            r#"{"b" : {"data_offsets" : [4 , 8],"shape":[4],"dtype":"U8"},
                "a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                "n":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}"#
                .to_owned(),
            8,
        ),
    ] {
        let file = file_of(&header, data);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
        let shown = &header[..header.len().min(60)];
        let source =
            Checkpoint::open(dir.path()).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let registry = registry();
        let set = registry.publish("x", source).unwrap();
        let again = InMemory::from_safetensors(&file).unwrap();
        let staged = registry.stage(again).unwrap();
        let lease = registry.acquire(set).unwrap();
        assert_eq!(
            lease.set(set).unwrap().identity(),
            staged.identity(),
            "{shown}"
        );
    }
}

#[test]
fn lengths_that_lie() {
    for (bytes, word) in [
        (vec![], "at least 8"),
        (vec![0; 7], "at least 8"),
        (vec![0; 8], "ends before"),
        (100u64.to_le_bytes().to_vec(), "header of 100 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "at most"),
        ((u64::MAX - 7).to_le_bytes().to_vec(), "at most"),
        ((17u64 << 20).to_le_bytes().to_vec(), "at most"),
    ] {
        refused_file(&bytes, &[word]);
    }
}

/// Every byte of a small header flipped, replaced, removed and doubled, and every prefix: never a panic,
/// and never another verdict than that of the format's own crate, but for the rules that are ours.
#[test]
fn damaged_headers_are_judged_as_the_format_demands() {
    let header = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},"b\\":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}}"#;
    let mut verdicts = [0; 2];
    let mut check = |header: &[u8]| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.extend_from_slice(&[7; 7]);
        let theirs = safetensors::SafeTensors::deserialize(&file);
        let shown = String::from_utf8_lossy(header);
        match InMemory::from_safetensors(&file) {
            Ok(source) => {
                verdicts[0] += 1;
                let plan = source.plan();
                let mut arena = vec![0; plan.arena_bytes() as usize];
                source.read_into(&mut arena).unwrap();
                let total: u64 = plan.tensors().iter().map(|tensor| tensor.byte_len()).sum();
                assert_eq!(total, 7, "not all of the data is somebody's: {shown}");
                let unknown = plan.tensors().iter().any(|t| t.dtype().dtype().is_none());
                let ours = unknown || header[0] != b'{';
                assert!(ours || theirs.is_ok(), "{theirs:?}: {shown}");
            }
            Err(error) => {
                verdicts[1] += 1;
                let text = error.to_string();
                let ours = ["twice", "control", "1 to 512 bytes"];
                let ours = ours.iter().any(|rule| text.contains(rule));
                assert!(ours || theirs.is_err(), "{text}: {shown}");
            }
        }
    };
    let good = header.as_bytes();
    check(good);
    for at in 0..good.len() {
        check(&good[..at]);
        let (before, after) = (&good[..at], &good[at + 1..]);
        check(&[before, after].concat());
        check(&[before, &[good[at]; 2], after].concat());
        let flips = [1, 2, 4, 8, 16, 32, 64, 128, 255].map(|flip| good[at] ^ flip);
        for &byte in flips.iter().chain(br#"{}[]:,"\ 0-.e"#) {
            check(&[before, &[byte], after].concat());
        }
    }
    assert!(verdicts.iter().all(|&seen| seen > 50), "{verdicts:?}");
}

#[test]
fn a_truncated_file_is_refused_before_anything_is_reserved() {
    let dir = copy("tiny-llama");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let text = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(
        text.contains("model.safetensors") && text.contains("truncated"),
        "{text}"
    );
}

#[test]
fn adapters_that_cannot_be_right() {
    const CONFIG: &str = "adapter_config.json";
    let open = |dir: &TempDir| PeftAdapter::open(dir.path()).unwrap_err();
    let dir = copy("adapters/pirate-v1");
    rewrite(
        &dir.path().join(CONFIG),
        "\"use_dora\": false",
        "\"use_dora\": true",
    );
    let error = open(&dir);
    assert!(
        matches!(&error, Error::Unsupported { option, .. } if option == "use_dora"),
        "{error}"
    );

    let dir = copy("adapters/pirate-v1");
    rewrite(&dir.path().join(CONFIG), "\"r\": 4", "\"r\": 8");
    let error = open(&dir);
    let text = error.to_string();
    assert!(matches!(error, Error::AdapterMismatch { .. }), "{text}");
    assert!(
        text.contains("rank 8") && text.contains("[4, 96]"),
        "{text}"
    );

    let dir = copy("adapters/pirate-v1");
    std::fs::remove_file(dir.path().join(CONFIG)).unwrap();
    assert!(open(&dir).to_string().contains(CONFIG));

    let dir = copy("adapters/pirate-v1");
    let weights = dir.path().join("adapter_model.safetensors");
    std::fs::rename(&weights, dir.path().join("adapter_model.bin")).unwrap();
    let error = open(&dir);
    assert!(
        error.is_unsupported() && error.to_string().contains("pickle"),
        "{error}"
    );

    // A without B.
    let bytes = std::fs::read(fixture("adapters/pirate-v1/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let dir = copy("adapters/pirate-v1");
    let missing = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight";
    let rest = file.iter().filter(|(name, _)| *name != missing);
    let written = safetensors::serialize(rest, None).unwrap();
    std::fs::write(dir.path().join("adapter_model.safetensors"), written).unwrap();
    let text = open(&dir).to_string();
    assert!(
        text.contains("model.layers.2.self_attn.v_proj") && text.contains("no B"),
        "{text}"
    );
}

/// An adapter directory: options beside kind, rank 1 and alpha 2, and tensors with their shapes.
fn adapter_dir(options: &str, tensors: &[(&str, &[usize])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(r#"{{"peft_type":"LORA","r":1,"lora_alpha":2{options}}}"#);
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let mut end = 0;
    let mut entry = |&(name, shape): &(&str, &[usize])| {
        let begin = end;
        end += shape.iter().product::<usize>();
        format!(
            r#""base_model.model.{name}":{{"dtype":"U8","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        )
    };
    let entries: Vec<String> = tensors.iter().map(&mut entry).collect();
    let header = format!("{{{}}}", entries.join(","));
    std::fs::write(
        dir.path().join("adapter_model.safetensors"),
        file_of(&header, end),
    )
    .unwrap();
    dir
}

const PAIR: [(&str, &[usize]); 2] = [("m.lora_A.weight", &[1, 3]), ("m.lora_B.weight", &[2, 1])];

/// As trainers of classifiers publish them: saved modules that the configuration does not list, or
/// lists twice, or that do not exist.
#[test]
fn adapters_as_they_are_found() {
    let saved: (&str, &[usize]) = ("score.weight", &[2, 2]);
    for (options, tensors) in [
        ("", vec![PAIR[0], PAIR[1]]),
        (r#","modules_to_save":null"#, vec![PAIR[0], PAIR[1], saved]),
        (
            r#","modules_to_save":["pre_classifier","classifier","classifier","score"]"#,
            vec![saved, PAIR[1], PAIR[0], ("score.bias", &[2])],
        ),
        (
            r#","target_modules":"all-linear","rank_pattern":{"m":1},"alpha_pattern":{"other":9}"#,
            vec![
                ("m.lora_A.default.weight", &[1, 3]),
                ("m.lora_B.default.weight", &[2, 1]),
            ],
        ),
    ] {
        let dir = adapter_dir(options, &tensors);
        let source = PeftAdapter::open(dir.path()).unwrap_or_else(|e| panic!("{options}: {e}"));
        let modules: Vec<_> = source.plan().adapter().unwrap().modules().collect();
        assert_eq!(modules.len(), 1);
        assert_eq!((modules[0].0, modules[0].1.scaling), ("m", 2.0));
        for tensor in source.plan().tensors() {
            let replaces = tensor.name().contains("score");
            assert_eq!(tensor.kind() == WeightKind::Replacement, replaces);
        }
    }
}

#[test]
fn adapters_that_are_none() {
    let [a, b] = PAIR;
    let many: Vec<String> = (0..8_300)
        .flat_map(|at| ["A", "B"].map(|side| format!("{at}.lora_{side}.weight")))
        .collect();
    let many: Vec<(&str, &[usize])> = many.iter().map(|name| (&**name, &[1, 1][..])).collect();
    let keys: Vec<String> = (0..2_048).map(|at| format!("\"k{at}\":1")).collect();
    let keys = format!(r#","rank_pattern":{{{}}}"#, keys.join(","));
    for (options, tensors, words) in [
        ("", &[][..], &["no LoRA tensors"][..]),
        ("", &[("score.weight", &[1][..])], &["no LoRA tensors"]),
        ("", &[a], &["\"m\"", "no B"]),
        ("", &[b], &["\"m\"", "no A"]),
        (
            "",
            &[a, b, ("m.lora_A.default.weight", &[1, 3])],
            &["\"m\"", "two tensors"],
        ),
        (
            "",
            &[a, ("m.lora_B.weight", &[2, 2])],
            &["rank 1", "[2, 2]"],
        ),
        (
            "",
            &[("m.lora_A.weight", &[1, 3, 1, 1]), b],
            &["rank 1", "[1, 3, 1, 1]"],
        ),
        (r#","rank_pattern":{"m":3}"#, &[a, b], &["rank 3", "[1, 3]"]),
        (
            "",
            &[a, b, ("n.lora_embedding_A", &[1])],
            &["n.lora_embedding_A", "embeddings"],
        ),
        (
            "",
            &[a, b, ("m.lora_magnitude_vector", &[2])],
            &["lora_magnitude_vector", "DoRA"],
        ),
        (
            r#","use_dora":true"#,
            &[a, b],
            &["use_dora = true", "adapter_config.json"],
        ),
        (
            r#","bias":"all""#,
            &[a, b],
            &["bias = \"all\"", "adapter_config.json"],
        ),
        (
            &keys,
            &many,
            &["rank_pattern", "2048 plain keys", "8300 modules"],
        ),
    ] {
        let dir = adapter_dir(options, tensors);
        refused(dir.path(), words, || PeftAdapter::open(dir.path()));
    }
}

#[test]
fn adapters_that_do_not_fit_their_base() {
    let registry = registry();
    let base = registry.publish("tiny", tiny()).unwrap();
    let zeros = |len: usize| vec![0u8; len];
    let lora = |module: &str, inputs: usize, outputs: usize| {
        let a = ([2, inputs], zeros(2 * inputs));
        let b = ([outputs, 2], zeros(2 * outputs));
        InMemory::new()
            .lora(module, Dtype::U8, a, b, 1.0)
            .unwrap()
            .on(base)
    };
    let q = "model.layers.0.self_attn.q_proj";
    registry.publish("fits", lora(q, 96, 96)).unwrap();
    let before = registry.ledger();
    for (adapter, words) in [
        (
            lora("model.layers.9.self_attn.q_proj", 96, 96),
            ["layers.9", "no tensor of this module"],
        ),
        (lora(q, 95, 96), ["95", "96"]),
        (lora(q, 96, 97), ["97", "96"]),
    ] {
        let error = registry.publish("x", adapter).unwrap_err();
        assert!(
            matches!(error.error(), Error::AdapterMismatch { .. }),
            "{error}"
        );
        for word in words {
            assert!(
                error.to_string().contains(word),
                "{word:?} is missing in: {error}"
            );
        }
    }
    let other = registry.publish("other", support::bytes(4, 1)).unwrap();
    let error = registry
        .publish("x", adapter("pirate-v1", other))
        .unwrap_err();
    assert!(
        matches!(error.error(), Error::AdapterMismatch { .. }),
        "{error}"
    );
    assert_eq!(registry.ledger().reserved, before.reserved);
    assert_eq!(registry.lookup("x"), None);
}

#[test]
fn tensors_in_memory_that_cannot_be_right() {
    let new = InMemory::new;
    let of = |error: Error| error.to_string();
    let text = of(new().tensor("w", Dtype::F32, [2], [0; 7]).unwrap_err());
    assert!(
        text.contains("\"w\"") && text.contains("8 bytes") && text.contains('7'),
        "{text}"
    );
    let twice = new().tensor("w", Dtype::U8, [1], [0]).unwrap();
    assert!(of(twice.tensor("w", Dtype::U8, [1], [0]).unwrap_err()).contains("already"));
    let text = of(new()
        .tensor("w", Dtype::F64, [usize::MAX, 2], [])
        .unwrap_err());
    assert!(text.contains("2^64"), "{text}");
    let ranks = new()
        .lora("m", Dtype::U8, ([2, 1], [0; 2]), ([1, 3], [0; 3]), 1.0)
        .unwrap_err();
    assert!(matches!(ranks, Error::AdapterMismatch { .. }));
}
