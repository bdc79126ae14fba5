//! `metrics`: what is counted as it happens, and gauges on demand.
//!
//! What lives here: the names and labels; docs/JSON.md lists them. No name of a set is ever a label: tenants would choose how many series there are.

use std::time::Duration;

use metrics::{Label, counter, gauge, histogram};

use super::super::WeightRegistry;
use super::super::event::{Cause, Operation};

fn labels(registry: &WeightRegistry, more: &[(&'static str, &'static str)]) -> Vec<Label> {
    let mut labels = vec![Label::new("registry", registry.id.to_string())];
    labels.extend(
        more.iter()
            .map(|&(key, value)| Label::from_static_parts(key, value)),
    );
    labels
}

pub(super) fn done(registry: &WeightRegistry, operation: Operation, took: Duration) {
    registry.shielded(|| {
        let labels = labels(registry, &[("operation", operation.as_str())]);
        counter!("weighbridge_operations_total", labels.clone()).increment(1);
        histogram!("weighbridge_operation_seconds", labels).record(took);
    });
}

pub(super) fn refused(registry: &WeightRegistry, operation: Operation, cause: Cause) {
    registry.shielded(|| {
        let more = [("operation", operation.as_str()), ("cause", cause.as_str())];
        counter!("weighbridge_refusals_total", labels(registry, &more)).increment(1);
    });
}

pub(super) fn committed(registry: &WeightRegistry, changes: usize) {
    registry.shielded(|| {
        let labels = labels(registry, &[]);
        counter!("weighbridge_commits_total", labels.clone()).increment(1);
        counter!("weighbridge_changes_total", labels).increment(changes as u64);
    });
}

impl WeightRegistry {
    /// Sets the gauges of the `metrics` recorder to what [`stats`](Self::stats) says now, and the
    /// counters of what happens on the reclaimer's thread, where no recorder is called. To be called
    /// before each scrape, or every few seconds. Costs what `stats` costs.
    pub fn record_metrics(&self) {
        let stats = self.stats();
        self.shielded(|| {
            let seconds = |age: Option<Duration>| age.unwrap_or_default().as_secs_f64();
            let ledger = &stats.ledger;
            for (state, bytes) in [
                ("reserved", ledger.reserved),
                ("resident", ledger.resident),
                ("kept", ledger.kept),
                ("retired", ledger.retired),
                ("pooled", ledger.pooled),
            ] {
                let labels = labels(self, &[("state", state)]);
                gauge!("weighbridge_bytes", labels).set(bytes as f64);
            }
            let oldest_lease = stats.oldest_lease.as_ref().map(|lease| lease.age);
            for (name, value) in [
                ("weighbridge_limit_bytes", ledger.limit as f64),
                ("weighbridge_soft_limit_bytes", ledger.soft_limit as f64),
                ("weighbridge_peak_bytes", ledger.peak as f64),
                ("weighbridge_pinned_bytes", stats.pinned_bytes as f64),
                ("weighbridge_stranded_bytes", stats.stranded_bytes as f64),
                ("weighbridge_sets", stats.sets as f64),
                ("weighbridge_layouts", stats.layouts as f64),
                (
                    "weighbridge_retired_generations",
                    stats.retired_generations as f64,
                ),
                (
                    "weighbridge_metadata_waiting",
                    stats.metadata_waiting as f64,
                ),
                ("weighbridge_oldest_lease_seconds", seconds(oldest_lease)),
                (
                    "weighbridge_oldest_scope_seconds",
                    seconds(stats.oldest_scope_at_least),
                ),
                ("weighbridge_pending_fences", stats.pending_fences as f64),
                ("weighbridge_waiting_requests", stats.waiting as f64),
                ("weighbridge_streams", stats.streams as f64),
                (
                    "weighbridge_oldest_fence_seconds",
                    seconds(stats.oldest_fence),
                ),
            ] {
                gauge!(name, labels(self, &[])).set(value);
            }
            for (name, value) in [
                (
                    "weighbridge_reclaimed_generations_total",
                    stats.reclaimed_generations,
                ),
                ("weighbridge_reclaimed_bytes_total", stats.reclaimed_bytes),
                ("weighbridge_loads_total", stats.loads),
                ("weighbridge_evictions_total", stats.evictions),
                ("weighbridge_part_reads_total", stats.part_reads),
                ("weighbridge_part_read_bytes_total", stats.part_read_bytes),
                ("weighbridge_part_failures_total", stats.part_failures),
                ("weighbridge_unlabelled_leases_total", stats.unlabelled),
                ("weighbridge_fence_panics_total", stats.fence_panics),
                ("weighbridge_reclaimer_panics_total", stats.reclaimer_panics),
                ("weighbridge_observer_panics_total", stats.observer_panics),
            ] {
                counter!(name, labels(self, &[])).absolute(value);
            }
        });
    }
}
