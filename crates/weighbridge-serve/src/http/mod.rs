//! What clients talk to.
//!
//! What lives here: the routes, and what all of them share. What does not: what each answers (a file each), who may
//! come in (`guard`), how a refusal looks (`refusal`).

mod asked;
mod body;
mod completions;
mod cut;
mod door;
mod guard;
mod lora;
mod metrics;
mod models;
mod page;
mod refusal;
mod registry;
mod split;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Semaphore, watch};
use weighbridge_scheduler::Scheduler;

use crate::adapters::Adapters;
use crate::counters::Counters;
use crate::engine::Job;
use crate::options::Options;
use crate::world::World;

pub(crate) use self::door::Door;
pub(crate) use self::lora::LOADS;
pub(crate) use self::metrics::recorder;
pub(crate) use self::split::Splitters;

/// What every route knows.
pub(crate) struct App {
    pub(crate) world: Arc<World>,
    pub(crate) adapters: Adapters,
    pub(crate) scheduler: Arc<Scheduler<Job>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) recorder: PrometheusHandle,
    pub(crate) options: Options,
    /// Requests so far: their ids.
    pub(crate) asked: AtomicU64,
    /// Connections that are open.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Whoever is not answered by then is told that the server stops.
    pub(crate) cut: watch::Sender<bool>,
    pub(crate) splitters: Splitters,
    /// For each load one.
    pub(crate) loads: Semaphore,
}

impl App {
    /// How long a client may keep the server waiting.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.options.client_timeout)
    }
}

pub(crate) fn router(app: Arc<App>) -> Router {
    let admin = Router::new()
        .route("/v1/load_lora_adapter", post(lora::load))
        .route("/v1/unload_lora_adapter", post(lora::unload))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            guard::token,
        ));
    Router::new()
        .route("/", get(page::page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/health", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{id}", get(models::model))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/registry", get(registry::registry))
        .merge(admin)
        .fallback(refusal::no_route)
        .method_not_allowed_fallback(refusal::no_method)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            guard::host,
        ))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            cut::until_cut,
        ))
        .layer(DefaultBodyLimit::max(app.options.max_body))
        .with_state(app)
}
