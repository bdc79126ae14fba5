//! How a refusal looks: OpenAI's error object, with vLLM's types.
//!
//! What lives here: [`Refusal`], and which of the library's errors is which status. What does not: when something is
//! refused.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::adapters::Refused;
use crate::engine::Failure;
use crate::roots::Outside;

/// `{"error": {"message", "type", "param", "code"}}`
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    param: Option<&'static str>,
    message: String,
    /// When it may be worth another try.
    again: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl ToString) -> Self {
        Refusal {
            status,
            kind,
            param: None,
            message: message.to_string(),
            again: None,
        }
    }

    /// vLLM's word for a load or unload that makes no sense.
    pub(super) fn invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message)
    }

    pub(super) fn bad(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// A field that is wrong.
    pub(super) fn field(param: &'static str, message: impl ToString) -> Self {
        Refusal {
            param: Some(param),
            ..Self::bad(message)
        }
    }

    pub(super) fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    pub(super) fn no_model(name: &str) -> Self {
        Self::not_found(format!("The model `{name}` does not exist."))
    }

    pub(super) fn unauthorized() -> Self {
        let message =
            "this needs the token that the server was started with: Authorization: Bearer TOKEN";
        Self::new(StatusCode::UNAUTHORIZED, "AuthenticationError", message)
    }

    pub(super) fn forbidden(message: impl ToString) -> Self {
        Self::new(StatusCode::FORBIDDEN, "PermissionDeniedError", message)
    }

    pub(super) fn too_many(message: impl ToString) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "RateLimitError", message)
    }

    pub(super) fn internal(message: impl ToString) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            message,
        )
    }

    /// The server ends.
    pub(super) fn stopping() -> Self {
        Self::unavailable("the server is stopping")
    }

    pub(super) fn unavailable(message: impl ToString) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailableError",
            message,
        )
    }

    pub(super) fn other(status: StatusCode, message: impl ToString) -> Self {
        Self::new(status, "BadRequestError", message)
    }

    /// The same as an object, for a stream that has begun.
    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        }})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let how = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        if let Some(again) = self.again {
            let seconds = again.as_secs_f64().ceil() as u64;
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<weighbridge::Error> for Refusal {
    fn from(error: weighbridge::Error) -> Self {
        Self::of(&error)
    }
}

impl Refusal {
    fn of(error: &weighbridge::Error) -> Self {
        if error.is_not_found() {
            Self::not_found(error)
        } else if error.is_conflict() {
            Self::new(StatusCode::CONFLICT, "ConflictError", error)
        } else if error.is_out_of_memory() || error.is_exhausted() {
            Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "InsufficientStorageError",
                error,
            )
        } else if error.is_io() {
            // A file that cannot be read is the request's, which named it.
            Self::bad(error)
        } else if error.is_malformed() || error.is_unsupported() || error.is_misuse() {
            Self::bad(error)
        } else {
            Self::internal(error)
        }
    }
}

/// What ended a request that had been admitted. Its files are the server's own affair by then: what is wrong with
/// them is in the server's log, and not in what a client reads.
impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Stopping => Self::stopping(),
            Failure::Fault(why) => Self::internal(why),
            Failure::Weights(error) if error.is_not_found() => {
                Self::not_found("what it wants was unloaded while it waited for its bytes")
            }
            Failure::Weights(error) if error.is_out_of_memory() || error.is_exhausted() => {
                Self::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "InsufficientStorageError",
                    error,
                )
            }
            // A load that failed lately is not tried again at once.
            Failure::Weights(error) => match *error {
                weighbridge::Error::BackingOff { retry_in, .. } => Refusal {
                    again: Some(retry_in),
                    ..Self::unavailable("its weights could not be read a moment ago; try again")
                },
                _ if error.is_conflict() || error.is_timeout() => {
                    Self::unavailable("its weights are not to be had at this moment; try again")
                }
                _ => Self::internal("its weights could not be read: the server's log says why"),
            },
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Outside(Outside::Elsewhere) => Self::not_found(Outside::Elsewhere),
            Refused::Outside(outside) => Self::forbidden(outside),
            Refused::TooMany(_) => Self::too_many(refused),
            Refused::Unknown(_) => Self::not_found(refused),
            Refused::There(_) | Refused::IsModel(_) => Self::invalid(refused),
            Refused::Unfit(error) => Self::bad(error),
            Refused::Files { error, message } => Refusal {
                message,
                ..Self::of(&error)
            },
            // It passes: whoever has it ends at some time.
            Refused::InUse { .. } => Refusal {
                again: Some(Duration::from_secs(1)),
                ..Self::unavailable(refused)
            },
            Refused::NoRoom { .. } => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "InsufficientStorageError",
                refused,
            ),
            Refused::Registry(error) => error.into(),
        }
    }
}

/// There is nothing at this path.
pub(super) async fn no_route(uri: Uri) -> Refusal {
    Refusal::not_found(format!("there is nothing at {}", uri.path()))
}

/// There is, for another method.
pub(super) async fn no_method(uri: Uri) -> Refusal {
    let message = format!("{} answers another method", uri.path());
    Refusal::other(StatusCode::METHOD_NOT_ALLOWED, message)
}
