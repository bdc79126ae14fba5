//! `GET /metrics`, for Prometheus.
//!
//! What lives here: the scrape, and the process's one recorder. What does not: what the library counts (its feature
//! `metrics`), what the engine counts (`counters`).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use weighbridge::{LoraRequestsInfo, SetName};

use super::App;
use crate::counters::Counters;

/// The process's recorder: there can be one only, and its metrics tell registries apart by a label. If somebody else
/// has installed another, ours shows nothing of the library's.
pub(crate) fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    let made = RECORDER.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let _ = metrics::set_global_recorder(recorder);
        handle
    });
    made.clone()
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    app.world.registry.record_metrics();
    app.recorder.run_upkeep();
    let mut text = app.recorder.render();
    let counters = &app.counters;
    let mut add = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    };
    let stats = app.scheduler.stats();
    add(
        "vllm:num_requests_running",
        "gauge",
        "Requests that run.",
        app.scheduler.running() as f64,
    );
    add(
        "vllm:num_requests_waiting",
        "gauge",
        "Requests that wait.",
        app.scheduler.waiting() as f64,
    );
    add(
        "weighbridge_serve_connections",
        "gauge",
        "Connections that are open.",
        app.connections.load(Ordering::Relaxed) as f64,
    );
    for (name, help, counter) in [
        (
            "vllm:prompt_tokens_total",
            "Tokens of prompts.",
            &counters.prompt_tokens,
        ),
        (
            "vllm:generation_tokens_total",
            "Tokens of answers.",
            &counters.tokens,
        ),
        (
            "weighbridge_serve_requests_total",
            "Requests that began.",
            &counters.requests,
        ),
        (
            "weighbridge_serve_failed_total",
            "Requests that failed after their admission.",
            &counters.failed,
        ),
        (
            "weighbridge_serve_cancelled_total",
            "Requests whose clients went before they had their answers.",
            &counters.cancelled,
        ),
    ] {
        add(name, "counter", help, Counters::read(counter) as f64);
    }
    let help = "Adapter generations that came into the batch.";
    add(
        "weighbridge_serve_swaps_total",
        "counter",
        help,
        stats.swaps as f64,
    );
    let help = "Tokens of answers per second, over the last five seconds.";
    add(
        "weighbridge_serve_tokens_per_second",
        "gauge",
        help,
        counters.tokens_per_second(),
    );
    let lora = lora_requests_info(&app);
    text += "# HELP vllm:lora_requests_info Adapters that requests run with and wait for.\n";
    text += "# TYPE vllm:lora_requests_info gauge\n";
    text += lora
        .to_prometheus("vllm:lora_requests_info", app.options.running_adapters)
        .trim_end();
    text.push('\n');
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
}

/// The registry takes who leases an adapter for one that runs. Here some who lease one wait for a place in the batch.
fn lora_requests_info(app: &App) -> LoraRequestsInfo {
    let mut info = app.world.registry.lora_requests_info();
    let runs: BTreeSet<String> = {
        let running = app.counters.running().into_iter();
        running.map(|request| request.model).collect()
    };
    let leased = std::mem::take(&mut info.running).into_iter();
    let (running, wait) = leased.partition(|name| runs.contains(name.name()));
    info.running = running;
    info.waiting.extend::<Vec<SetName>>(wait);
    info.waiting.sort();
    info.waiting.dedup();
    info
}
