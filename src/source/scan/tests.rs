//! The lexer on documents of each form, cut in every way.

use super::*;

/// What `scan` says of a document, read in pieces of `piece` bytes.
fn scanned(mut scan: Scan, document: &[u8], piece: usize) -> Result<usize, Fault> {
    for piece in document.chunks(piece) {
        scan.feed(piece)?;
    }
    scan.end()?;
    Ok(scan.members)
}

#[test]
fn documents_are_told_apart_however_they_are_cut() {
    let long = "x".repeat(ITEM_CAP as usize);
    let (header, index, config) = (Scan::header(3), Scan::index(3), Scan::config());
    for (scan, document, expected) in [
        (&header, "{}", Ok(0)),
        (&header, "  {} \n\t\r ", Ok(0)),
        (&header, r#"{"a":{"s":[0,0]},"b":{}}"#, Ok(2)),
        (
            &header,
            r#"{"a":1,"__metadata__":{"x":"{[,:","y":"\""},"b":2,"c":3}"#,
            Ok(3),
        ),
        (&header, r#"{"a":1,"b":2,"c":3,"__metadata__":{}}"#, Ok(3)),
        (&header, r#"{"a":1,"b":2,"c":3,"d":4}"#, Err(Fault::TooMany)),
        // Quotes, escapes, and brackets in strings.
        (&header, r#"{"a\"}":"\\","b":"]}{\\\""}"#, Ok(2)),
        (&header, r#"{"a\\":"b"}"#, Ok(1)),
        (&header, r#"{"a\\"":1}"#, Err(Fault::Ends)),
        // Not the metadata: written otherwise, deeper, or a value.
        (&header, r#"{"__metadat\u0061__":[]}"#, Ok(1)),
        (&header, r#"{"__me\tadata__":[]}"#, Ok(1)),
        (&header, r#"{"__metadata__x":[],"x__metadata__":[]}"#, Ok(2)),
        (
            &header,
            r#"{"a":{"__metadata__":[1]},"b":"__metadata__"}"#,
            Ok(2),
        ),
        (&header, r#"{"__metadata__":{"a":1}}"#, Err(Fault::Metadata)),
        (
            &header,
            r#"{"__metadata__":{"a":{}}}"#,
            Err(Fault::Metadata),
        ),
        (
            &header,
            r#"{"__metadata__":{"a":null}}"#,
            Err(Fault::Metadata),
        ),
        (&header, r#"{"__metadata__":["a"]}"#, Err(Fault::Metadata)),
        (&header, r#"{"__metadata__":null}"#, Err(Fault::Metadata)),
        (&header, r#"{"__metadata__":"a"}"#, Err(Fault::Metadata)),
        (
            &header,
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            Err(Fault::MetadataTwice),
        ),
        (&header, "", Err(Fault::Ends)),
        (&header, "{", Err(Fault::Ends)),
        (&header, r#"{"a"#, Err(Fault::Ends)),
        (&header, "[]", Err(Fault::Begins(b'['))),
        (&header, "x", Err(Fault::Begins(b'x'))),
        (&header, "\"x\"", Err(Fault::Begins(b'"'))),
        (&header, "\u{feff}{}", Err(Fault::Begins(0xef))),
        (&header, "{}{}", Err(Fault::After)),
        (&header, "{}]", Err(Fault::After)),
        (&header, "{,}", Err(Fault::Misplaced(b','))),
        (&header, r#"{"a":1,,"b":2}"#, Err(Fault::Misplaced(b','))),
        (&header, r#"{"a"::1}"#, Err(Fault::Misplaced(b':'))),
        (
            &header,
            &format!(r#"{{"a":{}"#, "[".repeat(32)),
            Err(Fault::TooDeep),
        ),
        (
            &header,
            &format!(r#"{{"a":{}{}}}"#, "[".repeat(31), "]".repeat(31)),
            Ok(1),
        ),
        (
            &header,
            &format!(r#"{{"a":"{long}"}}"#),
            Err(Fault::TooLong),
        ),
        (
            &header,
            &format!(r#"{{"a":0,"b":"{long}","c":0}}"#),
            Err(Fault::TooLong),
        ),
        // An entry is what is between two commas of the outermost object, and no others.
        (
            &header,
            &format!(r#"{{"a":"{0}","b":"{0}"}}"#, &long[9000..]),
            Ok(2),
        ),
        (
            &header,
            &format!(r#"{{"a":["{0}","{0}"]}}"#, &long[8000..]),
            Err(Fault::TooLong),
        ),
        (
            &header,
            &format!(r#"{{"__metadata__":{{"a":"{long}"}}}}"#),
            Ok(0),
        ),
        (&header, &format!("{{}}{}", long.replace('x', " ")), Ok(0)),
        (
            &header,
            &format!("{} {{}}", long.replace('x', " ")),
            Err(Fault::TooLong),
        ),
        // Only the table of an index is counted; what is around it is bounded as a whole.
        (
            &index,
            r#"{"metadata":{"a":1,"b":2,"c":3,"d":4},"weight_map":{"t":"f","u":"f"}}"#,
            Ok(2),
        ),
        (
            &index,
            r#"{"weight_map":{"a":"f","b":"f","c":"f","d":"f"}}"#,
            Err(Fault::TooMany),
        ),
        (
            &index,
            r#"{"x":{"weight_map":{"a":1,"b":1,"c":1,"d":1}}}"#,
            Ok(0),
        ),
        (
            &index,
            &format!(
                r#"{{"weight_map":{{"a":"{}","b":"{}"}}}}"#,
                &long[40..],
                &long[40..]
            ),
            Ok(2),
        ),
        (
            &index,
            &format!(
                r#"{{"m":"{}","n":"{}","weight_map":{{}}}}"#,
                &long[9000..],
                &long[9000..]
            ),
            Ok(0),
        ),
        (
            &index,
            &format!(
                r#"{{"m":"{}","n":"{}","weight_map":{{}}}}"#,
                &long[8000..],
                &long[8000..]
            ),
            Err(Fault::TooLong),
        ),
        (
            &index,
            &format!(
                r#"{{"m":{{"a":"{0}","b":"{0}"}},"weight_map":{{}}}}"#,
                &long[8000..]
            ),
            Err(Fault::TooLong),
        ),
        (&config, r#"{"a":[1,2,3],"b":{"c":{}}}"#, Ok(2)),
        (
            &config,
            &format!(r#"{{"a":["{}","{}"]}}"#, &long[9..], &long[9..]),
            Ok(1),
        ),
    ] {
        for piece in [1, 2, 3, 7, 64, usize::MAX] {
            let found = scanned(scan.clone(), document.as_bytes(), piece);
            let shown = &document[..document.len().min(60)];
            assert_eq!(found, expected, "{shown:?} in pieces of {piece}");
        }
    }
}

#[test]
fn messages_show_no_more_of_a_key_than_helps() {
    let mut scan = Scan::header(1);
    let fault = scan.feed(format!("{{\"{}", "é".repeat(20_000)).as_bytes());
    let text = scan.reason(fault.unwrap_err());
    assert!(text.contains("éé\"…") && text.len() < 200, "{text}");
    let mut scan = Scan::header(1);
    let fault = scan.feed(format!("{{\"\n\x7f\":\"{}", "x".repeat(20_000)).as_bytes());
    let text = scan.reason(fault.unwrap_err());
    assert!(text.contains(r#""\n\u{7f}""#), "{text}");
    // A key that came in pieces, the last of which does not fit.
    let mut scan = Scan::header(1);
    let key = format!("{{\"{}{}", "a".repeat(40), "b".repeat(40));
    let (first, second) = key.as_bytes().split_at(42);
    scan.feed(first).and_then(|()| scan.feed(second)).unwrap();
    let text = scan.reason(Fault::NotUtf8);
    let shown = format!("{}{}\"…", "a".repeat(40), "b".repeat(8));
    assert!(text.contains(&shown), "{text}");
    // One that just fits is whole.
    let mut scan = Scan::header(1);
    scan.feed(format!("{{\"{}", "a".repeat(KEY_SHOWN)).as_bytes())
        .unwrap();
    let text = scan.reason(Fault::NotUtf8);
    assert!(
        text.ends_with(&format!("{:?}", "a".repeat(KEY_SHOWN))),
        "{text}"
    );
}

#[test]
fn what_is_too_many_is_named() {
    for (scan, name) in [
        (Scan::header(3), "3 tensors"),
        (Scan::index(3), "3 tensors"),
        (Scan::config(), "1024 options"),
    ] {
        let text = scan.reason(Fault::TooMany);
        assert!(text.ends_with(name), "{text}");
    }
}

#[test]
fn text_is_utf8_however_it_is_cut() {
    let in_metadata = |text: &[u8]| {
        let [begin, end] = [&br#"{"__metadata__":{"k":""#[..], br#""}}"#];
        [begin, text, end].concat()
    };
    for (text, expected) in [
        (&b"plain"[..], Ok(0)),
        ("é€𝄞é".as_bytes(), Ok(0)),
        (
            "\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}".as_bytes(),
            Ok(0),
        ),
        (b"\xff", Err(Fault::NotUtf8)),
        (b"\xc3", Err(Fault::NotUtf8)),
        (b"\xc3x", Err(Fault::NotUtf8)),
        (b"\xe2\x82", Err(Fault::NotUtf8)),
        (b"\xf0\x9d\x84", Err(Fault::NotUtf8)),
        (b"\x82", Err(Fault::NotUtf8)),
        // Overlong, a surrogate, beyond the last character.
        (b"\xc0\xaf", Err(Fault::NotUtf8)),
        (b"\xed\xa0\x80", Err(Fault::NotUtf8)),
        (b"\xf4\x90\x80\x80", Err(Fault::NotUtf8)),
    ] {
        let document = in_metadata(text);
        for piece in [1, 2, 3, 4, 5, 7, usize::MAX] {
            let found = scanned(Scan::header(1), &document, piece);
            assert_eq!(found, expected, "{text:x?} in pieces of {piece}");
        }
    }
}
