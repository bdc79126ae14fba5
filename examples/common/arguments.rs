//! What the examples' command lines have in common.

/// The value of an option that takes a whole number from 1.
pub fn number(option: &str, value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!(
            "{option} takes a whole number from 1, not {value:?}"
        )),
    }
}
