//! `weighbridge inspect`: what headers tell.
//!
//! What lives here: what is asked, and what its answer has. What does not: words for people (`text`),
//! reading (`reading`).

mod text;

use std::collections::BTreeMap;

use serde::Serialize;
use weighbridge::plan::PlannedTensor;
use weighbridge::source::Source;
use weighbridge::{Plan, WeightKind};

use crate::cli;
use crate::failure::Failure;
use crate::fits::{self, Fits};
use crate::headers::{self, Fit, LoraModule};
use crate::output::{Answer, Form};
use crate::reading;
use crate::subject::{Subject, WeightFile, made_for};
use crate::warnings;

/// What was found. These are the fields of the JSON.
#[derive(Debug, Serialize)]
struct Report {
    command: &'static str,
    path: String,
    kind: &'static str,
    files: Vec<WeightFile>,
    tensors: Vec<Tensor>,
    dtypes: Vec<OfDtype>,
    /// Of adapters.
    modules: Option<Vec<LoraModule>>,
    /// What an adapter says that it was made for.
    made_for: Option<String>,
    bytes: Bytes,
    /// `null`: it was not read.
    identity: Option<String>,
    #[serde(skip)]
    identity_shown: Option<String>,
    base: Option<Fit>,
    fits: Option<Fits>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
    role: &'static str,
    /// The tensor whose bytes these are.
    tied_to: Option<String>,
    /// The base's tensor that it replaces.
    replaces: Option<String>,
}

/// Ties are not counted.
#[derive(Debug, Serialize)]
struct OfDtype {
    dtype: String,
    tensors: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Bytes {
    /// Of the files of weights, with their headers.
    files: u64,
    /// Of tensors, ties once.
    tensors: u64,
    /// What a registry's ledger is charged.
    charged: u64,
}

pub(crate) fn run(args: &cli::Inspect, form: Form) -> Result<Answer, Failure> {
    let subject = Subject::open(&args.path)?;
    let base = subject.base(args.base.as_deref())?;
    let plan = subject.plan().clone();
    let files = subject.files(&args.path)?;
    let kind = subject.kind();
    let adapter = matches!(subject, Subject::Adapter(_));

    let fit = base.as_ref().map(|base| headers::fit(&plan, base.plan()));
    let fit = fit.transpose()?;
    let both: Vec<&Plan> = base.iter().map(Source::plan).chain([&plan]).collect();
    let fits = args
        .limit
        .map(|limit| fits::ask(&both, limit))
        .transpose()?;
    let whole = match args.hash {
        // Its fit is told above: a base that it does not fit is no reason not to read it.
        true => Some(reading::read(subject, None, None, form)?),
        false => None,
    };
    let (tensors, dtypes) = (tensors(&plan), dtypes(&plan));
    let good = fit.as_ref().is_none_or(|fit| fit.fits) && fits.as_ref().is_none_or(Fits::fits);
    let report = Report {
        command: "inspect",
        path: plan.origin().to_owned(),
        kind,
        bytes: Bytes {
            files: files.iter().map(|file| file.bytes).sum(),
            tensors: dtypes.iter().map(|dtype| dtype.bytes).sum(),
            charged: plan.charged_bytes(),
        },
        files,
        tensors,
        dtypes,
        modules: adapter.then(|| headers::modules(&plan)),
        made_for: adapter.then(|| made_for(&args.path)).flatten(),
        identity: whole.as_ref().map(|whole| whole.identity.clone()),
        identity_shown: whole.map(|whole| whole.identity_shown),
        warnings: warnings::of(
            &args.path,
            &plan,
            fit.as_ref().map(|fit| &*fit.unchecked_modules),
        ),
        base: fit,
        fits,
    };
    Ok(Answer::new(form, good, &report, |paint| {
        text::lines(&report, paint, args.all)
    }))
}

fn tensors(plan: &Plan) -> Vec<Tensor> {
    // The plan does not name a tie's target: it is the tensor that is in the same place, and is the same.
    let target = |tie: &PlannedTensor| {
        plan.tensors().iter().find(|own| {
            own.kind() != WeightKind::TiedAlias
                && (own.offset(), own.dtype(), own.shape())
                    == (tie.offset(), tie.dtype(), tie.shape())
        })
    };
    let tensors = plan.tensors().iter();
    let tensors = tensors.map(|tensor| Tensor {
        name: tensor.name().to_owned(),
        dtype: tensor.dtype().name().to_owned(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.byte_len(),
        role: role(tensor.kind()),
        tied_to: (tensor.kind() == WeightKind::TiedAlias)
            .then(|| target(tensor).map(|target| target.name().to_owned()))
            .flatten(),
        replaces: tensor.replaces().map(str::to_owned),
    });
    tensors.collect()
}

fn role(kind: WeightKind) -> &'static str {
    match kind {
        WeightKind::Base => "base",
        WeightKind::LoraA => "lora_a",
        WeightKind::LoraB => "lora_b",
        WeightKind::TiedAlias => "tie",
        WeightKind::Replacement => "replacement",
        _ => "other",
    }
}

fn dtypes(plan: &Plan) -> Vec<OfDtype> {
    let mut sums: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let own = plan.tensors().iter();
    for tensor in own.filter(|tensor| tensor.kind() != WeightKind::TiedAlias) {
        let sum = sums.entry(tensor.dtype().name()).or_default();
        sum.0 += 1;
        sum.1 += tensor.byte_len();
    }
    let sums = sums.into_iter().map(|(dtype, (tensors, bytes))| OfDtype {
        dtype: dtype.to_owned(),
        tensors,
        bytes,
    });
    sums.collect()
}
