//! What figures were to be, and why some are not.
//!
//! What lives here: the wishes, which were written down before they were measured, and the texts for those
//! that are missed, which come after. What does not: measuring.

use super::rows::{Held, Row};

/// Wanted of one row.
struct Target {
    name: &'static str,
    way: Option<&'static str>,
    threads: usize,
    peer: &'static str,
    /// The peer's time over ours.
    ratio: f64,
    /// Ours at most, in nanoseconds.
    nanos: f64,
    /// Why it is missed, where it is.
    why: &'static str,
}

/// Any ratio, or any time, will do.
const ANY: f64 = f64::NAN;
/// What is flat, or does not depend on a count, takes at most half as long again where there is a thousand
/// times as much.
const FLAT: f64 = 0.67;

const TARGETS: &[Target] = &[
    at_two_threads(
        "get by handle, one key",
        Some("held scope"),
        "dashmap",
        10.0,
    ),
    at_two_threads(
        "get by handle, one key",
        Some("reader in hand"),
        "dashmap",
        4.0,
    ),
    at_two_threads(
        "get by handle, one key",
        Some("from any thread"),
        "dashmap",
        1.5,
    ),
    at_two_threads(
        "acquire and drop, one set",
        Some("reader in hand"),
        "ArcSwap<Entry>",
        1.0,
    ),
    at_two_threads(
        "acquire and drop, one set",
        Some("from any thread"),
        "ArcSwap<Entry>",
        1.0,
    ),
    Target {
        name: "publish, 1120 tensor(s)",
        way: None,
        threads: 1,
        peer: "itself, 1 tensor(s)",
        ratio: FLAT,
        nanos: 2_000.0,
        why: "",
    },
    flat("queries, total_bytes, 1000000 tensors"),
    flat("queries, adapter_handles, 1000000 tensors"),
    flat("queries, adapter_names, 1000000 tensors"),
];

const fn at_two_threads(
    name: &'static str,
    way: Option<&'static str>,
    peer: &'static str,
    ratio: f64,
) -> Target {
    Target {
        name,
        way,
        threads: 2,
        peer,
        ratio,
        nanos: ANY,
        why: "",
    }
}

const fn flat(name: &'static str) -> Target {
    Target {
        name,
        way: None,
        threads: 1,
        peer: "itself, 1000 tensors",
        ratio: FLAT,
        nanos: ANY,
        why: "",
    }
}

/// Bytes per tensor at most, of what is held, and why it is missed, where it is.
const HELD: &[(&str, f64, &str)] = &[("2000 adapters of 448 tensors", 48.0, "")];

/// Enters what was wanted of a row, and whether it is so.
pub(super) fn judge(row: &mut Row) {
    let Some(target) = TARGETS.iter().find(|target| {
        (target.name, target.threads, target.peer) == (&*row.name, row.threads, &*row.peer)
            && target.way == row.way.as_deref()
    }) else {
        return;
    };
    let mut wanted = Vec::new();
    let mut met = true;
    if !target.ratio.is_nan() {
        wanted.push(format!("a ratio of {} or more", target.ratio));
        met &= row.ratio >= target.ratio;
    }
    if !target.nanos.is_nan() {
        wanted.push(format!("at most {} ns", target.nanos));
        met &= row.ours_ns <= target.nanos;
    }
    row.target = Some(wanted.join(", and "));
    row.met = Some(met);
    row.why = (!met && !target.why.is_empty()).then(|| target.why.to_owned());
}

/// The same of bytes; nothing is wanted of a peer's.
pub(super) fn judge_held(held: &mut Held) {
    let target = HELD.iter().find(|(name, ..)| *name == held.name);
    let (Some((_, most, why)), true) = (target, held.who.is_empty()) else {
        return;
    };
    let met = held.bytes <= *most;
    held.target = Some(format!("at most {most} bytes"));
    held.met = Some(met);
    held.why = (!met && !why.is_empty()).then(|| (*why).to_owned());
}
