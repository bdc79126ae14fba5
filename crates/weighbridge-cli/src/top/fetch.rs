//! Asking a server, within bounds.
//!
//! What lives here: one request, and every way in which it fails. What does not: what the answer has
//! (`document`).

use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderValue, StatusCode, header};

use super::document::Registry;
use crate::escape::{clean, clean_up_to};
use crate::failure::{Class, Failure};

/// The longest answer that is read: a registry of 10,000 sets has 3 MB.
const BODY_CAP: u64 = 16 << 20;

/// A server, and how it is asked.
pub(super) struct Server {
    agent: Agent,
    url: String,
    authorization: Option<HeaderValue>,
}

impl Server {
    /// Nobody is asked yet.
    pub(super) fn new(
        url: String,
        timeout: Duration,
        token: Option<&str>,
    ) -> Result<Self, Failure> {
        // A variable that is set to nothing is none.
        let token = token.filter(|token| !token.is_empty());
        let authorization = token.map(|token| {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            value.map_err(|_| Failure::usage("--token has characters that no header may have"))
        });
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            // Statuses and redirects are answers, which are told; a token goes to nobody else.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A registry is inside, proxies are for what is outside.
            .proxy(None)
            .user_agent(concat!("weighbridge/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Server {
            agent: config.into(),
            url,
            authorization: authorization.transpose()?,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What it holds now.
    ///
    /// # Errors
    /// Not reachable, too slow, not willing; or an answer that is none.
    pub(super) fn ask(&self) -> Result<Registry, Failure> {
        let mut request = self
            .agent
            .get(&self.url)
            .header(header::ACCEPT, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        let mut response = request.call().map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            let location = response.headers().get(header::LOCATION);
            return Err(self.unwilling(status, location));
        }
        let body = response.body_mut().with_config().limit(BODY_CAP);
        let body = body.read_to_vec().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => {
                let reason = format!("its answer is longer than {} MiB", BODY_CAP >> 20);
                self.failure(Class::Bad, "malformed", &reason)
            }
            error => self.unreachable(&error),
        })?;
        Registry::parse(&body).map_err(|reason| {
            let reason = clean_up_to(&reason, 300);
            let reason = format!("its answer is not what a registry says: {reason}");
            self.failure(Class::Bad, "malformed", &reason)
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let (kind, reason) = match error {
            ureq::Error::Timeout(_) => ("timeout", "no answer in time (--timeout)".to_owned()),
            ureq::Error::Io(error) => ("unreachable", io(error)),
            ureq::Error::HostNotFound => ("unreachable", "there is no such host".to_owned()),
            ureq::Error::Protocol(error) => (
                "unreachable",
                format!("its answer is no good HTTP: {error}"),
            ),
            error => ("unreachable", error.to_string()),
        };
        self.failure(Class::Unreadable, kind, &clean_up_to(&reason, 300))
    }

    fn unwilling(&self, status: StatusCode, location: Option<&HeaderValue>) -> Failure {
        let advice = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ": it wants a token, or another one (--token)".to_owned()
            }
            StatusCode::NOT_FOUND => ": is it a weighbridge server?".to_owned(),
            status if status.is_redirection() => {
                let to = location.map(|to| String::from_utf8_lossy(to.as_bytes()));
                let to = to.map_or_else(|| "nowhere".to_owned(), |to| clean_up_to(&to, 200));
                format!(": it leads to {to}, and is not followed there")
            }
            _ => String::new(),
        };
        let reason = format!("it answers {}{advice}", status.as_u16());
        self.failure(Class::Unreadable, "status", &reason)
    }

    fn failure(&self, class: Class, kind: &'static str, reason: &str) -> Failure {
        Failure {
            class,
            kind,
            message: format!("{}: {reason}", clean(&self.url)),
        }
    }
}

/// The usual ones as people say them.
fn io(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof => {
            "it hung up in the middle of its answer".to_owned()
        }
        _ => error.to_string(),
    }
}
