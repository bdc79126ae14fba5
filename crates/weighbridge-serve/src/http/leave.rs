//! Who is being answered, so that a server that stops waits for them, and tells the rest.
//!
//! What lives here: the count, and the cut. What does not: when it is cut (`server`), connections (`door`), what runs
//! or waits in the scheduler, which the engine tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::refusal::Refusal;

/// One of those that are counted, for as long as it is there. Relaxed: a number, which says nothing of other memory.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is done for a request that is cut off goes on to its end where it cannot be left in the middle.
pub(super) async fn attend(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let _one = Counted::new(&app.answering);
    let mut cut = app.cut.subscribe();
    tokio::select! {
        biased;
        response = next.run(request) => response,
        _ = cut.wait_for(|cut| *cut) => Refusal::stopping().into_response(),
    }
}
