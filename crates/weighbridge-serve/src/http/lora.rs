//! vLLM's way to load and unload adapters: the same paths, JSON and answers.
//!
//! What lives here: what those requests are. What does not: what they do (`adapters`).

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::App;
use super::body::Body;
use super::refusal::Refusal;
use crate::adapters::Refused;

/// Loads that may be under way, or wait for room.
pub(crate) const LOADS: usize = 64;

/// How long a load waits before it looks again whether there is room, at first and at most. No event tells that a request
/// has ended.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
pub(super) struct Load {
    #[serde(default)]
    lora_name: String,
    #[serde(default)]
    lora_path: String,
    #[serde(default)]
    load_inplace: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Unload {
    #[serde(default)]
    lora_name: String,
}

/// `POST /v1/load_lora_adapter`
pub(super) async fn load(
    State(app): State<Arc<App>>,
    Body(load): Body<Load>,
) -> Result<String, Refusal> {
    if load.lora_name.is_empty() || load.lora_path.is_empty() {
        return Err(Refusal::invalid(
            "Both 'lora_name' and 'lora_path' must be provided.",
        ));
    }
    let _one = app.loads.try_acquire().map_err(|_| {
        Refusal::too_many(format!("{LOADS} loads are under way, and no more may be"))
    })?;
    let until = Instant::now() + Duration::from_secs(app.options.room_timeout);
    let turn = timeout_at(until, app.adapters.turn(&load.lora_name)).await;
    let late = |_| Refusal::unavailable("somebody else is loading an adapter of this name");
    let mut turn = turn.map_err(late)??;
    let mut pause = PAUSE;
    let load = Arc::new(load);
    loop {
        let (own, what) = (Arc::clone(&app), Arc::clone(&load));
        let tried = apart(move || {
            let tried = own
                .adapters
                .load(&what.lora_name, &what.lora_path, what.load_inplace);
            (turn, tried)
        });
        let tried = tried.await?;
        turn = match tried {
            (turn, Err(Refused::InUse { .. })) if Instant::now() < until => turn,
            (_, tried) => {
                tried?;
                return Ok(format!(
                    "Success: LoRA adapter '{}' added successfully.",
                    load.lora_name
                ));
            }
        };
        sleep_until(until.min(Instant::now() + pause)).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// `POST /v1/unload_lora_adapter`. Requests that were admitted end on their leases.
pub(super) async fn unload(
    State(app): State<Arc<App>>,
    Body(unload): Body<Unload>,
) -> Result<String, Refusal> {
    if unload.lora_name.is_empty() {
        return Err(Refusal::invalid(
            "'lora_name' needs to be provided to unload a LoRA adapter.",
        ));
    }
    let name = unload.lora_name.clone();
    apart(move || app.adapters.unload(&name)).await??;
    Ok(format!(
        "Success: LoRA adapter '{}' removed successfully.",
        unload.lora_name
    ))
}

/// Files are read, and writers wait for each other: on a thread that serves nobody else. It goes on to its end,
/// also if the client goes; it does not wait for long.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Refusal::internal("it panicked"))
}
