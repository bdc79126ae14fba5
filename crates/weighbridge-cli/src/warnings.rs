//! What is no error, and should not pass unseen.
//!
//! What lives here: the texts, fit for a terminal. What does not: what makes a set bad (the library).

use std::path::Path;

use weighbridge::Plan;

use crate::escape::clean;
use crate::subject::{is_checkpoint_too, is_lone_adapter_file};
use crate::table::count;

/// Of what was opened at `path`, and of its modules that its base tells nothing of, if it has one.
pub(crate) fn of(path: &Path, plan: &Plan, unchecked: Option<&[String]>) -> Vec<String> {
    let mut warnings = Vec::new();
    if plan.tensors().is_empty() {
        warnings.push("it has no tensors".to_owned());
    }
    if is_lone_adapter_file(path) {
        warnings.push(
            "by its name this file is an adapter's, and without its adapter_config.json it is read as \
             a plain set of tensors: give the directory"
                .to_owned(),
        );
    }
    if plan.adapter().is_some() && is_checkpoint_too(path) {
        warnings.push(
            "there is a checkpoint in this directory, too, which is not looked at: give its file"
                .to_owned(),
        );
    }
    let unreadable = plan.tensors().iter();
    let unreadable = unreadable.filter(|tensor| tensor.dtype().dtype().is_none());
    if let Some(first) = unreadable.clone().next() {
        warnings.push(format!(
            "{} of a dtype that is not known can be held and not be read, first {}: {}",
            count(unreadable.count(), "tensor"),
            clean(first.name()),
            clean(first.dtype().name())
        ));
    }
    if let Some([first, ..]) = unchecked {
        warnings.push(format!(
            "{} could not be checked, because the base's files do not tell the features, first {}",
            count(unchecked.map_or(0, <[String]>::len), "module"),
            clean(first)
        ));
    }
    warnings
}
