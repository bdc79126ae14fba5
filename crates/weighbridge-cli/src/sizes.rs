//! Numbers of bytes and lengths of time, as people write them and as they are shown to people.
//!
//! What lives here: both directions. What does not: which argument takes which (`cli`).

use std::time::Duration;

const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `123`, `2GiB`, `1.5 GiB`, `2GB`.
///
/// A bare `G` is refused: whether it is of 1000 or of 1024 is what the answer may hang on.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let size = match unit {
        "" => 1,
        unit => {
            let known = UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit));
            let known = known.ok_or("units are B, KiB, MiB, GiB, TiB and KB, MB, GB, TB")?;
            known.1
        }
    };
    let bytes = scaled(number, size)?;
    u64::try_from(bytes).map_err(|_| "more than 2^64 bytes".to_owned())
}

/// Reads `500ms`, `2s`, `1.5s`, `1m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err("a number and ms, s or m, such as 500ms".to_owned()),
    };
    let millis = scaled(number, millis)?;
    match u64::try_from(millis) {
        Ok(0) => Err("more than nothing".to_owned()),
        Ok(millis @ ..=86_400_000) => Ok(Duration::from_millis(millis)),
        _ => Err("a day at most".to_owned()),
    }
}

/// The number and the unit after it.
fn split(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    if number.is_empty() {
        return Err("a number is expected, such as 2147483648 or 2GiB".to_owned());
    }
    Ok((number, unit.trim_start()))
}

/// `number` units of `size`, rounded down: in whole numbers, so that no byte is lost.
fn scaled(number: &str, size: u64) -> Result<u128, String> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let wrong = |_| format!("{number} is not a number");
    let whole: u64 = whole.parse().map_err(wrong)?;
    let mut bytes = u128::from(whole) * u128::from(size);
    if number.contains('.') {
        if fraction.len() > 12 {
            return Err("12 digits after the point at most".to_owned());
        }
        let digits: u64 = fraction.parse().map_err(wrong)?;
        let places = 10u128.pow(fraction.len() as u32);
        bytes += u128::from(digits) * u128::from(size) / places;
    }
    Ok(bytes)
}

/// `841616 (821.9 KiB)`; without the second where it would say nothing new.
pub(crate) fn exact(bytes: u64) -> String {
    if bytes < 1 << 10 {
        bytes.to_string()
    } else {
        format!("{bytes} ({})", human(bytes))
    }
}

/// `821.9 KiB`, `128 B`.
pub(crate) fn human(bytes: u64) -> String {
    const NAMES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut name = 0;
    // What would be shown as 1024.0 is one of the next.
    while value >= 1023.95 && name + 1 < NAMES.len() {
        value /= 1024.0;
        name += 1;
    }
    format!("{value:.1} {}", NAMES[name])
}

/// `0.52 ms`, `12.0 ms`, `0.50 s`, `12.1 s`, `2 min 5 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        ..0.001 => format!("{:.2} ms", seconds * 1e3),
        ..0.1 => format!("{:.1} ms", seconds * 1e3),
        ..10.0 => format!("{seconds:.2} s"),
        ..60.0 => format!("{seconds:.1} s"),
        _ => {
            let whole = seconds as u64;
            format!("{} min {} s", whole / 60, whole % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_to_the_byte() {
        for (text, bytes) in [
            ("0", 0),
            ("841616", 841_616),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("0.1KiB", 102),
            ("2GB", 2_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        let wrong = [
            "",
            "GiB",
            "2G",
            "-1",
            "1.",
            ".5GiB",
            "1.2.3",
            "1e9",
            "2GiBs",
            "18446744073709551616",
            "16777216TiB",
            "0.0000000000001GiB",
        ];
        for text in wrong {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        let ms = Duration::from_millis;
        for (text, duration) in [("500ms", ms(500)), ("1.5s", ms(1500)), ("2m", ms(120_000))] {
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
        for wrong in ["", "1", "s", "0s", "0.1ms", "1h", "90000s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_shown_exactly_and_for_people() {
        assert_eq!(exact(128), "128");
        assert_eq!(exact(841_616), "841616 (821.9 KiB)");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human((1 << 20) - 1), "1.0 MiB");
        assert_eq!(human(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn times_are_shown_for_people() {
        assert_eq!(seconds(0.000_52), "0.52 ms");
        assert_eq!(seconds(0.012), "12.0 ms");
        assert_eq!(seconds(0.5), "0.50 s");
        assert_eq!(seconds(12.06), "12.1 s");
        assert_eq!(seconds(125.0), "2 min 5 s");
    }
}
