//! What `inspect` says to people.
//!
//! What lives here: words and tables. What does not: what was found (`inspect`).

use std::collections::BTreeMap;
use std::io::IsTerminal;

use super::{Report, Tensor};
use crate::escape::clean;
use crate::headers::LoraModule;
use crate::paint::Paint;
use crate::sizes::{exact, human};
use crate::table::{Align, Table, count, field};

/// Rows of a list on a terminal, where nobody asked for all.
const SHOWN: usize = 20;

pub(super) fn lines(report: &Report, paint: Paint, all: bool) -> Vec<String> {
    // Shortened for people only: who pipes it into grep would miss what is left out.
    let shown = match all || !std::io::stdout().is_terminal() {
        true => usize::MAX,
        false => SHOWN,
    };
    let mut lines = vec![paint.bold(&clean(&report.path)), field("kind", report.kind)];
    lines.extend(about(report));
    lines.push(String::new());
    if let Some(modules) = &report.modules {
        lines.extend(module_table(modules, paint, shown));
        lines.push(String::new());
    }
    if !report.tensors.is_empty() {
        lines.extend(tensor_table(&report.tensors, paint, shown));
        lines.push(String::new());
    }
    lines.extend(totals(report, paint));
    for warning in &report.warnings {
        lines.push(format!("{} {warning}", paint.warning("warning:")));
    }
    lines
}

/// Files, dtypes, and what an adapter is for.
fn about(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, file) in report.files.iter().enumerate() {
        let label = if at == 0 { "files" } else { "" };
        let file = format!("{}  {}", clean(&file.name), exact(file.bytes));
        lines.push(field(label, &file));
    }
    let ties = report.tensors.iter();
    let ties = ties.filter(|tensor| tensor.role == "tie").count();
    let tensors = match ties {
        0 => report.tensors.len().to_string(),
        ties => format!("{}, of which {ties} tied", report.tensors.len()),
    };
    lines.push(field("tensors", &tensors));
    for (at, dtype) in report.dtypes.iter().enumerate() {
        let label = if at == 0 { "dtypes" } else { "" };
        let of = format!(
            "{}  {}, {}",
            clean(&dtype.dtype),
            count(dtype.tensors, "tensor"),
            exact(dtype.bytes)
        );
        lines.push(field(label, &of));
    }
    if let Some(modules) = &report.modules {
        lines.push(field("modules", &by_last_name(modules)));
        let made_for = report.made_for.as_deref().map(clean);
        let made_for = made_for.map_or_else(
            || "it does not say".to_owned(),
            |name| format!("{name}, by its adapter_config.json"),
        );
        lines.push(field("made for", &made_for));
    }
    lines
}

/// `8: q_proj x 4, v_proj x 4`.
fn by_last_name(modules: &[LoraModule]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for module in modules {
        let last = module.name.rsplit('.').next().unwrap_or(&module.name);
        *kinds.entry(last).or_default() += 1;
    }
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(kind, times)| format!("{} x {times}", clean(kind)))
        .collect();
    format!("{}: {}", modules.len(), kinds.join(", "))
}

fn module_table(modules: &[LoraModule], paint: Paint, shown: usize) -> Vec<String> {
    let mut table = Table::new([
        ("module", Align::Left),
        ("rank", Align::Right),
        ("alpha", Align::Right),
        ("scaling", Align::Right),
        ("rsLoRA", Align::Left),
        ("in", Align::Right),
        ("out", Align::Right),
    ]);
    for module in modules.iter().take(shown) {
        table.row([
            clean(&module.name),
            module.rank.to_string(),
            module.alpha.to_string(),
            number(module.scaling),
            if module.rslora { "yes" } else { "no" }.to_owned(),
            module.in_features.to_string(),
            module.out_features.to_string(),
        ]);
    }
    let mut lines = table.lines(paint);
    lines.extend(left_out(modules.len(), shown, "module"));
    lines
}

/// Four places, or all of them if there are fewer.
fn number(value: f64) -> String {
    let (all, four) = (value.to_string(), format!("{value:.4}"));
    if all.len() <= four.len() { all } else { four }
}

fn tensor_table(tensors: &[Tensor], paint: Paint, shown: usize) -> Vec<String> {
    let mut table = Table::new([
        ("tensor", Align::Left),
        ("dtype", Align::Left),
        ("shape", Align::Left),
        ("bytes", Align::Right),
        ("", Align::Left),
    ]);
    for tensor in tensors.iter().take(shown) {
        let size = match tensor.bytes {
            ..1024 => String::new(),
            bytes => format!("({})", human(bytes)),
        };
        let (bytes, note) = match (&tensor.tied_to, &tensor.replaces) {
            (Some(target), _) => (String::new(), format!("= {}", clean(target))),
            (_, Some(base)) => {
                let note = format!("{size} replaces {}", clean(base));
                (tensor.bytes.to_string(), note.trim_start().to_owned())
            }
            _ => (tensor.bytes.to_string(), size),
        };
        table.row([
            clean(&tensor.name),
            clean(&tensor.dtype),
            shape(&tensor.shape),
            bytes,
            note,
        ]);
    }
    let mut lines = table.lines(paint);
    lines.extend(left_out(tensors.len(), shown, "tensor"));
    lines
}

fn shape(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".to_owned();
    }
    let sides: Vec<String> = shape.iter().map(ToString::to_string).collect();
    sides.join(" x ")
}

fn left_out(all: usize, shown: usize, what: &str) -> Option<String> {
    let more = all.checked_sub(shown).filter(|more| *more > 0)?;
    Some(format!(
        "... and {} more: --all shows them",
        count(more, what)
    ))
}

fn totals(report: &Report, paint: Paint) -> Vec<String> {
    let files = format!(
        "{}, of which tensors {}",
        exact(report.bytes.files),
        exact(report.bytes.tensors)
    );
    let charged = format!(
        "{} in the ledger of a registry that holds it",
        exact(report.bytes.charged)
    );
    let identity = report
        .identity_shown
        .as_deref()
        .unwrap_or("not read (--hash reads every byte)");
    let mut lines = vec![
        field("in files", &files),
        field("charged", &charged),
        field("identity", identity),
    ];
    if let Some(base) = &report.base {
        let path = clean(&base.path);
        let fits = match (&base.reason, base.unchecked_modules.len()) {
            (Some(reason), _) => {
                format!("{} {path}: {reason}", paint.bad("does not fit"))
            }
            (None, 0) => format!("{} {path}", paint.good("fits")),
            (None, some) => format!(
                "fits {path}, as far as it can be known: {} unchecked",
                count(some, "module")
            ),
        };
        lines.push(field("base", &fits));
    }
    let fits = match &report.fits {
        None => "not asked (--limit BYTES)".to_owned(),
        Some(fits) => {
            let with = match &report.base {
                Some(base) => format!(", together with {}", clean(&base.path)),
                None => String::new(),
            };
            let words = format!("{}{with}", fits.words());
            match fits.fits() {
                true => paint.good(&words),
                false => paint.bad(&words),
            }
        }
    };
    lines.push(field("fits", &fits));
    lines
}
