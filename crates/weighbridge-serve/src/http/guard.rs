//! Who may come in.
//!
//! What lives here: the token of whoever may change adapters, and which names a server on loopback answers to. What
//! does not: which paths may be named (`roots`).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::refusal::Refusal;

/// Only whoever has the token, if there is one.
pub(super) async fn token(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(token) = &app.options.admin_token else {
        return next.run(request).await;
    };
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|given| given.to_str().ok());
    let given = given
        .and_then(|given| given.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    // Digests are compared in constant time: how much of a guess was right is not to be timed.
    let right = given.is_some_and(|given| {
        blake3::hash(given.as_bytes()) == blake3::hash(token.as_str().as_bytes())
    });
    if !right {
        return Refusal::unauthorized().into_response();
    }
    next.run(request).await
}

/// A server on loopback answers to loopback's names only. A page of another site can have its own name lead to
/// 127.0.0.1, and its visitor's browser would then let it read what is answered here.
pub(super) async fn host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.options.listen.ip().to_canonical().is_loopback() {
        let host = request.headers().get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or("");
        if !is_loopback(host) {
            let message = "a server on loopback answers to localhost, 127.0.0.1 and [::1]";
            return Refusal::other(StatusCode::MISDIRECTED_REQUEST, message).into_response();
        }
    }
    next.run(request).await
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn loopback_has_few_names() {
        for good in [
            "localhost",
            "LOCALHOST:8000",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.1.2.3:1",
            "[::1]:8000",
            "[::ffff:127.0.0.1]:8000",
            "[::1]",
        ] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example:8000",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "localhost:8a",
            ":8000",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
