//! What `verify` says to people.
//!
//! What lives here: words. What does not: what was found (`verify`).

use super::Report;
use crate::escape::clean;
use crate::paint::Paint;
use crate::sizes::{exact, seconds};
use crate::table::{count, field};

pub(super) fn lines(report: &Report, paint: Paint) -> Vec<String> {
    let path = clean(&report.path);
    let verdict = if report.good {
        format!("{path}: {}", paint.good("good"))
    } else {
        let differs = paint.bad("the files are sound, but not what was expected");
        format!("{path}: {differs}")
    };
    let what = format!(
        "{}, {} in {}",
        report.kind,
        count(report.tensors, "tensor"),
        count(report.files.len(), "file")
    );
    let speed = format!(
        "{} in {}, {:.2} GB/s",
        exact(report.bytes.read),
        seconds(report.seconds),
        report.bytes_per_second / 1e9
    );
    let charged = format!(
        "{}, exactly what its headers say; the ledger is at {} again",
        exact(report.bytes.charged),
        report.bytes.left
    );
    let mut lines = vec![
        verdict,
        field("kind", &what),
        field("identity", &report.identity_shown),
    ];
    if let Some(expected) = &report.expected {
        let same = if report.good {
            "the same"
        } else {
            &clean(expected)
        };
        lines.push(field("expected", same));
    }
    lines.push(field("read", &speed));
    lines.push(field("charged", &charged));
    if let Some(base) = &report.base {
        let fits = match base.unchecked_modules.len() {
            0 => format!("fits {}", clean(&base.path)),
            some => format!(
                "fits {}, as far as it can be known: {} unchecked",
                clean(&base.path),
                count(some, "module")
            ),
        };
        lines.push(field("base", &fits));
    }
    for warning in &report.warnings {
        lines.push(format!("{} {warning}", paint.warning("warning:")));
    }
    lines
}
