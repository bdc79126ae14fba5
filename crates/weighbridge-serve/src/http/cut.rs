//! Who is left when a server stops is told so.
//!
//! What lives here: the cut. What does not: when it is cut (`server`), connections (`door`), what runs or waits in the
//! scheduler, which the engine tells.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::refusal::Refusal;

/// What is done for a request that is cut off goes on to its end where it cannot be left in the middle.
pub(super) async fn until_cut(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let mut cut = app.cut.subscribe();
    tokio::select! {
        biased;
        response = next.run(request) => response,
        _ = cut.wait_for(|cut| *cut) => Refusal::stopping().into_response(),
    }
}
