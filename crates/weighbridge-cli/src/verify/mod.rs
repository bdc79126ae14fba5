//! `weighbridge verify`: every check of the loaders on every byte.
//!
//! What lives here: what is read, and what its answer has. What does not: reading (`reading`), words for
//! people (`text`).

mod text;

use serde::Serialize;
use weighbridge::source::Source;

use crate::cli;
use crate::failure::Failure;
use crate::output::{Answer, Form};
use crate::reading;
use crate::subject::{Subject, WeightFile};
use crate::warnings;

/// What was found. These are the fields of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    command: &'static str,
    path: String,
    kind: &'static str,
    /// Everything checked is right, and the identity is the expected one, if one is.
    good: bool,
    identity: String,
    #[serde(skip)]
    identity_shown: String,
    expected: Option<String>,
    files: Vec<WeightFile>,
    tensors: usize,
    bytes: Bytes,
    seconds: f64,
    bytes_per_second: f64,
    base: Option<Base>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Bytes {
    /// Of tensors, ties once: what was read.
    read: u64,
    charged: u64,
    peak: u64,
    /// In the ledger, at the end.
    left: u64,
}

/// The base that an adapter was checked against.
#[derive(Debug, Serialize)]
struct Base {
    path: String,
    unchecked_modules: Vec<String>,
}

pub(crate) fn run(args: &cli::Verify, form: Form) -> Result<Answer, Failure> {
    let subject = Subject::open(&args.path)?;
    let base = subject.base(args.base.as_deref())?;
    let files = subject.files(&args.path)?;
    let (plan, kind) = (subject.plan().clone(), subject.kind());
    let declared = args.declared.as_deref();
    let base_plan = base.as_ref().map(Source::plan);
    let whole = reading::read(subject, base_plan, declared, form)?;

    let expected = args.expect.clone();
    let good = expected.as_ref().is_none_or(|text| *text == whole.identity);
    let own = plan
        .tensors()
        .iter()
        .filter(|tensor| !is_tie(tensor.kind()));
    let read: u64 = own.map(weighbridge::plan::PlannedTensor::byte_len).sum();
    let unchecked = base.is_some().then_some(&*whole.unchecked_modules);
    let mut warnings = warnings::of(&args.path, &plan, unchecked);
    if kind == "adapter" && base.is_none() {
        warnings.push("whether it fits its base was not checked: give it with --base".to_owned());
    }
    let base = base.map(|base| Base {
        path: base.plan().origin().to_owned(),
        unchecked_modules: whole.unchecked_modules,
    });
    let report = Report {
        command: "verify",
        path: plan.origin().to_owned(),
        kind,
        good,
        identity: whole.identity,
        identity_shown: whole.identity_shown,
        expected,
        files,
        tensors: plan.tensors().len(),
        bytes: Bytes {
            read,
            charged: whole.charged,
            peak: whole.peak,
            left: whole.left,
        },
        seconds: whole.seconds,
        bytes_per_second: read as f64 / whole.seconds.max(1e-9),
        base,
        warnings,
    };
    Ok(Answer::new(form, good, &report, |paint| {
        text::lines(&report, paint)
    }))
}

fn is_tie(kind: weighbridge::WeightKind) -> bool {
    kind == weighbridge::WeightKind::TiedAlias
}
