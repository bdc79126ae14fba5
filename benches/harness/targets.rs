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

/// No lookup is to be slower than a peer's by more than a tenth.
const LOOKUP: f64 = 0.91;
const NOISE: &str = "not told from chance by its rounds: they overlap with the peer's, on a machine that others use";
const ONE_BY_ONE: &str = "a set of one tensor is a set: a name of its own with an owner, a slot, a node, a record, memory of its own \
     with a charge in the ledger, an identity, an event; some twenty allocations, where the map has three. Tensors \
     that belong together belong in one set";
const COUNTED: &str = "a lease must not be had of what was superseded, so the count is taken by compare-and-exchange under a pin, where \
     load_full adds to a count; the line goes to and fro between the two cores as often, but each has more to do \
     between taking and giving back, so it is taken away in between more often";
const WAKES: &str = "what the library does is the same for 1 and for 1,120 tensors, some 14,000 instructions; what the allocator does is not: \
     the next large block that the caller asks for is found among the many small ones that the reclaimer freed. And the \
     reclaimer's thread is woken twice (a system call and an interrupt each), which is most of what one tensor takes";

const TARGETS: &[Target] = &[
    at_two_threads(
        "get by handle, one key",
        Some("held scope"),
        "dashmap",
        10.0,
        "",
    ),
    at_two_threads(
        "get by handle, one key",
        Some("reader in hand"),
        "dashmap",
        4.0,
        "",
    ),
    at_two_threads(
        "get by handle, one key",
        Some("from any thread"),
        "dashmap",
        1.5,
        "",
    ),
    at_two_threads(
        "acquire and drop, one set",
        Some("reader in hand"),
        "ArcSwap<Entry>",
        1.0,
        COUNTED,
    ),
    at_two_threads(
        "acquire and drop, one set",
        Some("from any thread"),
        "ArcSwap<Entry>",
        1.0,
        COUNTED,
    ),
    Target {
        name: "publish, 1120 tensor(s)",
        way: None,
        threads: 1,
        peer: "itself, 1 tensor(s)",
        ratio: FLAT,
        nanos: 2_000.0,
        why: WAKES,
    },
    in_bulk(
        "register, 1000000 sets of one tensor",
        "one transaction",
        ONE_BY_ONE,
    ),
    in_bulk(
        "register, 1000000 sets of one tensor",
        "FlatRegistry::register_all",
        ONE_BY_ONE,
    ),
    in_bulk(
        "register, 2000 adapters of 448",
        "one transaction",
        "a tensor's bytes are hashed, its name and shape are checked, kept and compared with those of the layout that \
         its set shares; the map clones a string and an Arc. What a commit itself takes is some 10 ns per tensor",
    ),
    flat("queries, total_bytes, 1000000 tensors"),
    flat("queries, adapter_handles, 1000000 tensors"),
    flat("queries, adapter_names, 1000000 tensors"),
];

const fn at_two_threads(
    name: &'static str,
    way: Option<&'static str>,
    peer: &'static str,
    ratio: f64,
    why: &'static str,
) -> Target {
    Target {
        name,
        way,
        threads: 2,
        peer,
        ratio,
        nanos: ANY,
        why,
    }
}

const fn in_bulk(name: &'static str, way: &'static str, why: &'static str) -> Target {
    Target {
        name,
        way: Some(way),
        threads: 1,
        peer: "dashmap",
        ratio: 1.0,
        nanos: ANY,
        why,
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
    if row.group == "lookup" && row.counts() {
        row.target = Some(format!("a ratio of {LOOKUP} or more"));
        row.met = Some(row.ratio >= LOOKUP);
        // What is told from chance has no excuse yet.
        let noise = row.met == Some(false) && row.sign_p > 0.05;
        row.why = noise.then(|| NOISE.to_owned());
        return;
    }
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
