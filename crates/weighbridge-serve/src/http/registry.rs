//! `GET /v1/registry`: the registry as it is now, for the page, `weighbridge top` and whoever looks for what is in the
//! way.
//!
//! What lives here: the document. What does not: the parts of it that are the library's own (its docs/JSON.md).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::App;
use super::refusal::Refusal;
use crate::counters::Counters;

/// A document of `"schema": 1`. Fields may be added.
#[derive(serde::Serialize)]
pub(super) struct Document {
    schema: u32,
    model: String,
    stats: Box<RawValue>,
    catalog: Box<RawValue>,
    accounts: Value,
    leases: Vec<Value>,
    going: Vec<Value>,
    requests: Vec<Value>,
    serving: Value,
}

pub(super) async fn registry(State(app): State<Arc<App>>) -> Result<Json<Document>, Refusal> {
    let registry = &app.world.registry;
    let catalog = registry.catalog();
    // Leases are counted by one view, at one instant; sets that went since the picture have none.
    let leases = registry.scope(|scope| {
        let entries = catalog.entries().iter();
        let counted = entries.filter_map(|entry| {
            let view = scope.get(entry.handle).ok()?;
            Some(json!({
                "namespace": entry.name.namespace(),
                "name": entry.name.name(),
                "generation": view.generation(),
                "leases": view.leases(),
            }))
        });
        counted.collect()
    });
    let going = registry.retired().into_iter().map(|going| {
        json!({
            "namespace": going.name().namespace(),
            "name": going.name().name(),
            "generation": going.generation(),
            "bytes": going.bytes(),
            "leases": going.leases(),
            "holders": going.holders(),
        })
    });
    let running = app.counters.running();
    let age = |since: std::time::Instant| since.elapsed().as_secs_f64();
    let requests = running.iter().map(|one| {
        json!({
            "label": one.label,
            "model": one.model,
            "generation": one.generation,
            "age_seconds": age(one.since),
            "tokens": one.tokens,
        })
    });
    let account = |name| {
        registry
            .account(&weighbridge::Account::foreign(name))
            .total()
    };
    let raw = |json: String| RawValue::from_string(json).map_err(Refusal::internal);
    let stats = app.scheduler.stats();
    Ok(Json(Document {
        schema: 1,
        model: app.world.name.clone(),
        stats: raw(registry.stats().to_json())?,
        catalog: raw(catalog.to_json())?,
        accounts: json!({ "candle": account("candle"), "kv-caches": account("kv-caches") }),
        leases,
        going: going.collect(),
        requests: requests.collect(),
        serving: json!({
            "running": app.scheduler.running(),
            "waiting": app.scheduler.waiting(),
            "requests": Counters::read(&app.counters.requests),
            "failed": Counters::read(&app.counters.failed),
            "cancelled": Counters::read(&app.counters.cancelled),
            "swaps": stats.swaps,
            "tokens": Counters::read(&app.counters.tokens),
            "tokens_per_second": app.counters.tokens_per_second(),
            "oldest_request_seconds": running.iter().map(|one| age(one.since)).reduce(f64::max),
        }),
    }))
}
