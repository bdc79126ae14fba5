//! A request's JSON.
//!
//! What lives here: [`Body`], which says what is wrong with it in our words. What does not: what is in it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::App;
use super::refusal::Refusal;

/// The JSON of a request that says it is JSON. That it must say so keeps other sites' forms out: a browser does
/// not send this type for them without asking, and is answered no.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("");
        let essence = kind.split(';').next().unwrap_or("").trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let message = "Content-Type must be application/json";
            return Err(Refusal::other(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let most = app.options.max_body;
        let bytes = tokio::time::timeout(app.patience(), Bytes::from_request(request, app)).await;
        let late = |_| Refusal::other(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
        let bytes = bytes.map_err(late)?.map_err(|error| {
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                let message = format!("the body is larger than {most} bytes");
                return Refusal::other(StatusCode::PAYLOAD_TOO_LARGE, message);
            }
            Refusal::bad(error)
        })?;
        // serde would take a list for an object, field by field.
        if bytes
            .trim_ascii_start()
            .first()
            .is_some_and(|first| *first != b'{')
        {
            return Err(Refusal::bad("the body must be a JSON object"));
        }
        let parsed = serde_json::from_slice(&bytes).map_err(Refusal::bad)?;
        Ok(Body(parsed))
    }
}
