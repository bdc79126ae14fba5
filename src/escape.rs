//! Text from outside, made fit to be shown: in an error, a log line, a terminal.
//!
//! What lives here: [`Clean`]. What does not: the names of sets, which must also be told apart
//! (`names::set_name`), and JSON, which escapes by itself.

use std::fmt::{self, Write};

/// Shows text on one line, with everything that does not print (control characters, line and
/// direction marks, invisible characters) as an escape. Text that prints stays what it is, so
/// cleaning twice is cleaning once; text that must be told apart is quoted with `{:?}` instead.
pub(crate) struct Clean<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Clean<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Cleaning(f), "{}", self.0)
    }
}

/// Cleans what is written through it.
struct Cleaning<'f, 'g>(&'f mut fmt::Formatter<'g>);

impl Write for Cleaning<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut escaped = text.escape_debug();
        while let Some(c) = escaped.next() {
            if c != '\\' {
                self.0.write_char(c)?;
                continue;
            }
            match escaped.next() {
                // These print.
                Some(c @ ('\\' | '"' | '\'')) => self.0.write_char(c)?,
                Some(c) => {
                    self.0.write_char('\\')?;
                    self.0.write_char(c)?;
                }
                None => {}
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::Clean;

    #[test]
    fn what_does_not_print_is_escaped_and_the_rest_is_left_alone() {
        let clean = |text: &str| Clean(text).to_string();
        for plain in ["", "llama 3/\\x \"q\" 'q' - äé 漢字 हिन्दी 🦙"] {
            assert_eq!(clean(plain), plain);
        }
        let hostile = "a\nb\t\r\0\u{1b}[31m\u{202e}\u{200b}\u{2028}\u{2066}\u{7f}\u{85}\u{feff}";
        let shown =
            "a\\nb\\t\\r\\0\\u{1b}[31m\\u{202e}\\u{200b}\\u{2028}\\u{2066}\\u{7f}\\u{85}\\u{feff}";
        assert_eq!(clean(hostile), shown);
        assert_eq!(clean(shown), shown, "cleaning twice is cleaning once");
    }
}
