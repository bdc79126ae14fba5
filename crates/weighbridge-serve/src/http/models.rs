//! `GET /v1/models`, `GET /v1/models/{id}`: the model, and the adapters that are loaded.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::App;
use super::refusal::Refusal;
use crate::adapters::Loaded;

pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let mut data = vec![of_model(&app)];
    let adapters = app.adapters.list();
    data.extend(adapters.iter().map(|adapter| of_adapter(&app, adapter)));
    Json(json!({ "object": "list", "data": data }))
}

pub(super) async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Refusal> {
    let Path(id) = id.map_err(|_| Refusal::bad("the name is not UTF-8"))?;
    if id == app.world.name {
        return Ok(Json(of_model(&app)));
    }
    let adapters = app.adapters.list();
    let adapter = adapters.iter().find(|adapter| adapter.name == id);
    let adapter = adapter.ok_or_else(|| Refusal::no_model(&id))?;
    Ok(Json(of_adapter(&app, adapter)))
}

fn of_model(app: &App) -> Value {
    card(app, &app.world.name, None)
}

fn of_adapter(app: &App, adapter: &Loaded) -> Value {
    let mut card = card(app, &adapter.name, Some(&app.world.name));
    card["generation"] = adapter.generation.into();
    card["identity"] = adapter.identity.as_str().into();
    card
}

fn card(app: &App, id: &str, parent: Option<&str>) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": app.world.created,
        "owned_by": "weighbridge",
        // vLLM has a path here. Where files are is nothing that a client needs to know.
        "root": id,
        "parent": parent,
        "max_model_len": app.world.model.config().max_position_embeddings,
    })
}
