//! `GET /v1/models`: the model, and the adapters that are loaded.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;

pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let world = &app.world;
    let card = |id: &str, parent: Option<&str>| {
        json!({
            "id": id,
            "object": "model",
            "created": world.created,
            "owned_by": "weighbridge",
            "parent": parent,
            "max_model_len": world.model.config().max_position_embeddings,
        })
    };
    let mut data = vec![card(&world.name, None)];
    for adapter in app.adapters.list() {
        let mut card = card(&adapter.name, Some(&world.name));
        card["generation"] = adapter.generation.into();
        card["identity"] = adapter.identity.into();
        data.push(card);
    }
    Json(json!({ "object": "list", "data": data }))
}
