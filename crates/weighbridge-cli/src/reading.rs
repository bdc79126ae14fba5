//! Reading every byte, through a registry of its own.
//!
//! What lives here: publish, identity, retire, and the ledger at the end; the bar on stderr meanwhile.
//! What does not: what is told of it (`inspect`, `verify`).

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use weighbridge::source::{Progress, Source, WithProgress};
use weighbridge::{Identity, Plan, SetHandle, WeightRegistry};

use crate::failure::Failure;
use crate::headers::{publish_base, unchecked, without_staged};
use crate::output::Form;
use crate::subject::Subject;

/// Nobody else holds anything: this is for a reclaimer that hangs, not for one that is slow.
const RECLAIMED_WITHIN: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug)]
pub(crate) struct Whole {
    /// As JSON has it: exact.
    pub(crate) identity: String,
    /// The same, fit for a terminal.
    pub(crate) identity_shown: String,
    /// What the ledger was charged.
    pub(crate) charged: u64,
    /// The most that it ever was.
    pub(crate) peak: u64,
    /// What was left in it at the end.
    pub(crate) left: u64,
    pub(crate) seconds: f64,
    /// Modules of an adapter that could not be checked against the base.
    pub(crate) unchecked_modules: Vec<String>,
}

/// Reads all of `subject`, with the limit that its headers say, and lets go of it.
pub(crate) fn read(
    subject: Subject,
    base: Option<&Plan>,
    declared: Option<&str>,
    form: Form,
) -> Result<Whole, Failure> {
    let planned = subject.plan().charged_bytes();
    let registry = WeightRegistry::builder().limit_bytes(planned).build()?;
    let outcome = publish(&registry, subject, base, declared, form);
    // Also after a failure: whatever is wrong with the files, nothing may stay.
    let left = registry.ledger().total();
    if left != 0 {
        return Err(Failure::fault(format!(
            "the ledger has {left} bytes at the end, not 0; please report this"
        )));
    }
    let whole = outcome?;
    if (whole.charged, whole.peak) != (planned, planned) {
        return Err(Failure::fault(format!(
            "the headers say {planned} bytes, {} were charged, {} at most; please report this",
            whole.charged, whole.peak
        )));
    }
    Ok(whole)
}

fn publish(
    registry: &WeightRegistry,
    subject: Subject,
    base: Option<&Plan>,
    declared: Option<&str>,
    form: Form,
) -> Result<Whole, Failure> {
    const NAME: &str = "set";
    let bar = bar(form);
    let report = |now: Progress| {
        bar.set_length(now.of);
        bar.set_position(now.bytes);
    };
    let base = match &subject {
        Subject::Checkpoint(_) => None,
        Subject::Adapter(adapter) => Some(publish_base(registry, adapter.plan(), base)?),
    };
    let started = Instant::now();
    let set = match subject {
        Subject::Checkpoint(mut checkpoint) => {
            if let Some(revision) = declared {
                checkpoint = checkpoint.declared(revision);
            }
            registry.publish(NAME, WithProgress::new(checkpoint, report))
        }
        Subject::Adapter(mut adapter) => {
            if let Some(revision) = declared {
                adapter = adapter.declared(revision);
            }
            if let Some(base) = base {
                adapter = adapter.on(base);
            }
            registry.publish(NAME, WithProgress::new(adapter, report))
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let set = set.map_err(without_staged)?;
    let whole = look(registry, set, base.is_some(), seconds)?;
    for set in [Some(set), base].into_iter().flatten() {
        registry.retire(set)?.reclaimed(RECLAIMED_WITHIN)?;
    }
    let left = registry.ledger().total();
    Ok(Whole { left, ..whole })
}

fn look(
    registry: &WeightRegistry,
    set: SetHandle,
    adapter: bool,
    seconds: f64,
) -> Result<Whole, Failure> {
    let (identity, charged) = registry.scope(|scope| {
        let view = scope.get(set)?;
        Ok::<_, Failure>((view.identity().clone(), view.bytes()))
    })?;
    let unchecked_modules = if adapter {
        unchecked(registry, set)?
    } else {
        Vec::new()
    };
    let ledger = registry.ledger();
    Ok(Whole {
        identity: exact_text(&identity)?,
        identity_shown: identity.to_string(),
        charged,
        peak: ledger.peak,
        left: ledger.total(),
        seconds,
        unchecked_modules,
    })
}

/// What machines compare: it displays with escapes, and is serialised without.
fn exact_text(identity: &Identity) -> Result<String, Failure> {
    match serde_json::to_value(identity) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        _ => Err(Failure::fault("an identity that is no text")),
    }
}

/// On stderr, for people: never for who asked for JSON, and only if they see it.
fn bar(form: Form) -> ProgressBar {
    if matches!(form, Form::Json) || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "reading [{bar:40}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    // A template that does not parse leaves the default one.
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("#>."));
    bar
}
