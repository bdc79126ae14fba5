//! Which adapters serve, and which are wanted: what routers of requests ask for.
//!
//! What lives here: [`LoraRequestsInfo`]. What does not: other figures (`catalog`, `observe`).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::WeightRegistry;
use super::generation::generation;
use crate::handle::{SetHandle, SetKind};
use crate::names::SetName;

/// The adapters that are leased and those that requests wait for, at one moment: what vLLM tells by its gauge
/// `vllm:lora_requests_info`, which routers such as the Gateway API's inference extension read.
///
/// # Examples
/// ```
/// use weighbridge::WeightRegistry;
/// use weighbridge::source::{Checkpoint, PeftAdapter};
///
/// let registry = WeightRegistry::builder().build()?;
/// let base = registry.publish("tiny", Checkpoint::open("fixtures/tiny-llama")?)?;
/// let shout = PeftAdapter::open("fixtures/adapters/shout")?.on(base);
/// let shout = registry.publish("shout", shout)?;
///
/// let _request = registry.acquire([base, shout])?;
/// let info = registry.lora_requests_info();
/// let line = info.to_prometheus("vllm:lora_requests_info", 4);
/// assert!(line.starts_with(
///     r#"vllm:lora_requests_info{max_lora="4",running_lora_adapters="shout",waiting_lora_adapters=""} "#
/// ));
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoraRequestsInfo {
    /// Adapters that somebody leases, by name.
    pub running: Vec<SetName>,
    /// Adapters that are being loaded, or that requests in the line for room want, by name.
    pub waiting: Vec<SetName>,
    /// When this was so.
    pub at: SystemTime,
}

impl WeightRegistry {
    /// Which adapters are leased, and which are waited for. O(sets).
    pub fn lora_requests_info(&self) -> LoraRequestsInfo {
        let wanted: BTreeSet<SetHandle> = self.room.wanted().into_iter().collect();
        let (mut running, mut waiting) = (Vec::new(), Vec::new());
        self.view().for_each(|_, node| {
            let Some(meta) = node.meta().filter(|meta| meta.kind == SetKind::Adapter) else {
                return;
            };
            if node.vitals().state().holds() > 0 {
                running.push(meta.record.name.clone());
            }
            let coming = || meta.record.flight(generation(node)).is_some();
            if wanted.contains(&meta.handle) || coming() {
                waiting.push(meta.record.name.clone());
            }
        });
        running.sort();
        waiting.sort();
        LoraRequestsInfo {
            running,
            waiting,
            at: SystemTime::now(),
        }
    }
}

impl LoraRequestsInfo {
    /// One line in the text format of Prometheus, with the labels of vLLM's gauge and the time in seconds
    /// since 1970 as its value. `max_lora`: how many adapters the engine serves at a time. Names are as they
    /// were given, a tenant's after its namespace and a slash; they are joined by commas, so names that have some cannot
    /// be told apart.
    pub fn to_prometheus(&self, name: &str, max_lora: usize) -> String {
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = format!("{name}{{max_lora=\"{max_lora}\",running_lora_adapters=\"");
        joined(&mut line, &self.running);
        line.push_str("\",waiting_lora_adapters=\"");
        joined(&mut line, &self.waiting);
        // Writing to a string does not fail.
        let _ = write!(line, "\"}} {:.3}", at.as_secs_f64());
        line
    }
}

/// As the value of a label.
fn joined(line: &mut String, names: &[SetName]) {
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        // As requests name it, which is not as it prints.
        let space = [name.namespace(), "/"];
        let space = space.into_iter().filter(|_| !name.namespace().is_empty());
        for char in space.chain([name.name()]).flat_map(str::chars) {
            match char {
                '\\' => line.push_str("\\\\"),
                '"' => line.push_str("\\\""),
                '\n' => line.push_str("\\n"),
                other => line.push(other),
            }
        }
    }
}
