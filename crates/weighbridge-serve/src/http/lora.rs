//! vLLM's way to load and unload adapters: the same paths, JSON and answers.
//!
//! What lives here: what those requests are. What does not: what they do (`adapters`).

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;

use super::App;
use super::body::Body;
use super::refusal::Refusal;
use crate::adapters::Refused;

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
    apart(app, move |app| {
        app.adapters
            .load(&load.lora_name, &load.lora_path, load.load_inplace)?;
        Ok(format!(
            "Success: LoRA adapter '{}' added successfully.",
            load.lora_name
        ))
    })
    .await
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
    apart(app, move |app| {
        app.adapters.unload(&unload.lora_name)?;
        Ok(format!(
            "Success: LoRA adapter '{}' removed successfully.",
            unload.lora_name
        ))
    })
    .await
}

/// Files are read, and writers wait for each other: on a thread that serves nobody else. It goes on to its end,
/// also if the client goes.
async fn apart(
    app: Arc<App>,
    work: impl FnOnce(&App) -> Result<String, Refused> + Send + 'static,
) -> Result<String, Refusal> {
    let done = tokio::task::spawn_blocking(move || work(&app)).await;
    done.map_err(|_| Refusal::internal("it panicked"))?
        .map_err(Refusal::from)
}
