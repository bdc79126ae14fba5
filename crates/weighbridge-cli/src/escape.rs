//! Text from files and servers, made fit for a terminal.
//!
//! What lives here: [`clean`], the rule of the library's own messages, which is not public there. What
//! does not: JSON (`output`).

/// The text on one line, with everything that does not print (control characters, line and direction
/// marks, invisible characters) as an escape. What prints stays as it is, so cleaning twice is cleaning
/// once.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut escaped = text.escape_debug();
    while let Some(c) = escaped.next() {
        if c != '\\' {
            clean.push(c);
            continue;
        }
        match escaped.next() {
            // These print.
            Some(c @ ('\\' | '"' | '\'')) => clean.push(c),
            Some(c) => clean.extend(['\\', c]),
            None => {}
        }
    }
    clean
}

/// The same, cut after `most` characters: names from a server have no bound of their own.
pub(crate) fn clean_up_to(text: &str, most: usize) -> String {
    let mut characters = text.chars();
    let mut start: String = characters.by_ref().take(most).collect();
    if characters.next().is_some() {
        start.push('…');
    }
    clean(&start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped_and_the_rest_is_left_alone() {
        for plain in ["", "llama 3/\\x \"q\" 'q' - äé 漢字 🦙"] {
            assert_eq!(clean(plain), plain);
        }
        let hostile = "a\nb\t\r\0\u{1b}[31m\u{202e}\u{200b}\u{2028}\u{7f}\u{9b}\u{feff}";
        let shown = "a\\nb\\t\\r\\0\\u{1b}[31m\\u{202e}\\u{200b}\\u{2028}\\u{7f}\\u{9b}\\u{feff}";
        assert_eq!(clean(hostile), shown);
        assert_eq!(clean(shown), shown, "cleaning twice is cleaning once");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(clean_up_to("漢字", 2), "漢字");
        assert_eq!(clean_up_to("漢字漢", 2), "漢字…");
        assert_eq!(clean_up_to("\u{1b}\u{1b}\u{1b}", 1), "\\u{1b}…");
    }
}
